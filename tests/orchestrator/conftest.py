"""What tests of the coordinator, of clients and of the command line share."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.orchestrator.harness import World
from tests.orchestrator.live import Cluster, gates

from starloom.devices.node import NodeProfile


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    """Makes worlds of nodes; at the end of the test each is compared with one that has only its facts."""
    worlds: list[World] = []

    def make(*nodes: NodeProfile) -> World:
        worlds.append(World(*nodes))
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
