"""What tests of the coordinator, of clients and of the command line share."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.orchestrator.harness import World
from tests.orchestrator.live import Cluster, gates
from tests.orchestrator.onray import command_line, embedded

from starloom.devices.node import NodeProfile

__all__ = ["cluster", "command_line", "embedded", "world"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """Makes worlds of nodes; at the end of the test, and before its patches go, each is compared with one of its facts."""
    worlds: list[World] = []

    def make(*nodes: NodeProfile, delegate: bool = False, guided: bool = False) -> World:
        worlds.append(World(*nodes, delegate=delegate, guided=guided))
        return worlds[-1]

    yield make
    for each in worlds:
        each.check_replay()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """An orchestrator with one agent; see `live`."""
    gates.clear()
    made = Cluster(tmp_path / "orchestrator")
    await made.up()
    try:
        async with made.agent():
            yield made
            for gate in gates.values():
                gate.set()
    finally:
        await made.down()
