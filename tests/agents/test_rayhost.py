"""The actor that hosts a guest, without Ray and with a stand-in for the agent."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from starloom.agents.agent import AgentConfig
from starloom.agents.rayhost import ENDED_EARLY, HostActor
from starloom.dag import limits
from starloom.dag.errors import InvalidInput

CONFIG = AgentConfig(name="edge-1", tier="edge", orchestrator="127.0.0.1:1", token="t")
ENDS_EARLY = """
import sys
from starloom.agents.rayhost import HostActor
from tests.agents.test_rayhost import CONFIG, StandIn

class Short(StandIn):
    async def run(self):
        {ending}

HostActor(CONFIG, sys.argv[1], Short)._thread.join()
"""


class StandIn:
    """Does what an agent does, without doing anything."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.ended = asyncio.Event()
        self.heard: list[str] = []

    async def start(self) -> None:
        self.heard.append("start")

    async def run(self) -> None:
        await self.ended.wait()
        self.heard.append("end")

    async def stop(self) -> None:
        self.ended.set()
        # Lets `run` end before this does.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.heard.append("goodbye")


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_it_runs_one_agent_from_its_construction_until_stop(tmp_path: Path) -> None:
    made: list[StandIn] = []

    def make(config: AgentConfig) -> StandIn:
        made.append(StandIn(config))
        return made[0]

    actor = HostActor(CONFIG, str(tmp_path / "logs" / "agent.log"), make)
    assert await actor.ready() == os.getpid()
    assert made[0].config == CONFIG
    assert await actor.stop() == os.getpid()
    await asyncio.to_thread(actor._thread.join)
    assert made[0].heard == ["start", "end", "goodbye"]


async def test_what_is_there_once_its_agent_has_started_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    gc.unfreeze()
    host = HostActor(CONFIG, str(tmp_path / "agent.log"), StandIn)
    await host.ready()
    assert gc.get_freeze_count() > 0
    await host.stop()
    gc.unfreeze()


async def test_it_runs_without_a_log_where_none_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    host = HostActor(CONFIG, str(tmp_path / "logs" / "agent.log"), StandIn)
    assert await host.ready() == os.getpid()
    assert await host.stop() == os.getpid()


async def test_an_agent_that_cannot_start_is_told_to_whoever_waits_and_its_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty(StandIn):
        async def start(self) -> None:
            raise InvalidInput("no such target")

    ended: Future[int] = Future()
    monkeypatch.setattr("os._exit", ended.set_result)
    monkeypatch.setattr(limits, "START_AGAIN_SECONDS", 0.0)
    actor = HostActor(CONFIG, str(tmp_path / "agent.log"), Faulty)
    with pytest.raises(InvalidInput, match="no such target"):
        await actor.ready()
    assert await asyncio.wrap_future(ended) == ENDED_EARLY


@pytest.mark.parametrize("ending", ["return", "raise RuntimeError('out of luck')"])
def test_the_process_ends_with_its_agent(tmp_path: Path, ending: str) -> None:
    log = tmp_path / "agent.log"
    command = [sys.executable, "-c", ENDS_EARLY.format(ending=ending), str(log)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == ENDED_EARLY
    assert "edge-1 ended without having been told to" in log.read_text()
    assert ("out of luck" in log.read_text()) == ending.startswith("raise")
