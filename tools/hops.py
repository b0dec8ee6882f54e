"""What a hop costs between agents alone: a chain of no-ops that two agents run by themselves, beside a raw stream.

Core, runtime, data service and streams of two agents, in two processes; nobody takes their reports. Prints medians.

    python tools/hops.py [repetitions]
"""

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from starloom.agents.core import AgentCore
from starloom.agents.dataservice import DataServer
from starloom.agents.execution import CountedModels
from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Await, Finished, Release, Report
from starloom.agents.peers import Peers
from starloom.agents.runtime import Runtime
from starloom.agents.stage import CancelToken, Stage
from starloom.agents.stages.basic import Noop
from starloom.agents.transfer import Transfer
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.kinds import KindCatalog
from starloom.orchestrator.bench import streampeer
from starloom.orchestrator.bench.shapes import Form, Work, shape

LENGTH = 100
EPOCH = Epoch(1)
FIRST = FencingToken(EPOCH, Attempt(1))
SETTLED_SECONDS = 0.05
"""How long asks have to get through before a chain is set off."""


class Stages:
    """One kind, which does nothing."""

    def __init__(self) -> None:
        self._noop = Noop()

    @property
    def kinds(self) -> KindCatalog:
        return KindCatalog([self._noop.spec])

    def stage(self, name: str) -> Stage:
        return self._noop


def no_models(cancel: CancelToken, target: str) -> CountedModels:
    raise NotImplementedError("a no-op has no models")


class Agent:
    """One agent without a session; `ended` is called with each result."""

    def __init__(self, name: str, ended: Callable[[TaskToken], None]) -> None:
        self._ended = ended
        self._peers = Peers("token")
        self._holder = Holder()
        self._transfer = Transfer("token")
        self._data = DataServer(self._holder, "token", awaits=self._peers)
        self._core = AgentCore(AgentId(name), 1)
        self.address = ""

    async def start(self) -> None:
        self.address = await self._data.start()
        self._runtime = Runtime(
            self._core, Stages(), no_models, self._holder, self._transfer, "", self._tell, peers=self._peers
        )

    async def stop(self) -> None:
        await self._runtime.stop()
        await self._transfer.close()
        await self._data.stop()

    def commands(self, commands: Sequence[Assign | Release]) -> None:
        self._runtime.commands(commands, EPOCH)

    def _tell(self, report: Report) -> None:
        if isinstance(report, Finished):
            self._ended(report.task)


def chain(job: str, places: Sequence[tuple[str, str]]) -> list[Assign]:
    """LENGTH stages in a row, at `places` (agents with their addresses) in turns, the last one at the first."""
    orders = []
    for number in range(LENGTH):
        awaits: tuple[Await, ...] = ()
        if number:
            name, address = places[(LENGTH - number) % len(places)]
            awaits = (Await(upstream=StageId(f"s{number - 1}"), token=FIRST, agent=AgentId(name), address=address),)
        task = TaskToken(JobId(job), StageId(f"s{number}"), FIRST)
        orders.append(Assign(task=task, kind="basic.noop", awaits=awaits))
    return orders


def other(pipe: Any) -> None:
    """The other agent's process: does what comes through the pipe until None does."""
    asyncio.run(_other(pipe))


async def _other(pipe: Any) -> None:
    agent = Agent("b", lambda task: None)
    await agent.start()
    pipe.send(agent.address)
    while (commands := await asyncio.to_thread(pipe.recv)) is not None:
        agent.commands(commands)
        pipe.send(None)
    await agent.stop()


class Measured:
    """The agent of this process, and the way to the other one."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._agent = Agent("a", self._ended)
        self._last: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._awaited: TaskToken | None = None
        self._there = ""

    async def start(self) -> None:
        self._there = await asyncio.to_thread(self._pipe.recv)
        await self._agent.start()

    async def stop(self) -> None:
        self._pipe.send(None)
        await self._agent.stop()

    async def same(self, job: str) -> float:
        """Seconds a hop on one agent."""
        orders = chain(job, [("a", self._agent.address)])
        began = self._expect(orders)
        self._agent.commands(orders)
        return await self._seconds(job, began)

    async def two(self, job: str) -> float:
        """Seconds a hop to and fro; the first stage is with the other agent."""
        orders = chain(job, [("a", self._agent.address), ("b", self._there)])
        first, *theirs = orders[::2]
        await self._send(theirs)
        self._agent.commands(orders[1::2])
        await asyncio.sleep(SETTLED_SECONDS)
        began = self._expect(orders)
        self._pipe.send([first])
        seconds = await self._seconds(job, began)
        await asyncio.to_thread(self._pipe.recv)
        await self._send([Release(job=JobId(job))])
        return seconds

    def _expect(self, orders: Sequence[Assign]) -> float:
        self._awaited = orders[-1].task
        self._last = asyncio.get_running_loop().create_future()
        return time.perf_counter()

    async def _seconds(self, job: str, began: float) -> float:
        seconds = (await self._last - began) / LENGTH
        self._agent.commands([Release(job=JobId(job))])
        return seconds

    async def _send(self, commands: Sequence[Assign | Release]) -> None:
        self._pipe.send(commands)
        await asyncio.to_thread(self._pipe.recv)

    def _ended(self, task: TaskToken) -> None:
        if task == self._awaited:
            self._last.set_result(time.perf_counter())


def agents(repetitions: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds a hop on one agent and on two, and of a raw stream's round trip, in turns."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=other, args=(there,), daemon=True)
    process.start()
    same: list[float] = []
    two: list[float] = []
    raw: list[float] = []
    messages = shape(Work(form=Form.CHAIN, size=2 * LENGTH, workers=2))
    with asyncio.Runner() as runner, streampeer.open_peers() as peers:

        async def begin() -> Measured:
            found = Measured(here)
            await found.start()
            return found

        measured = runner.run(begin())
        for number in range(repetitions + 1):
            same.append(runner.run(measured.same(f"same-{number}")))
            two.append(runner.run(measured.two(f"two-{number}")))
            began = time.perf_counter()
            peers["grpc-stream"].run(messages)
            raw.append((time.perf_counter() - began) / LENGTH)
        runner.run(measured.stop())
    process.join()
    # The first of each is for warming up.
    return same[1:], two[1:], raw[1:]


def main() -> None:
    same, two, raw = agents(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
    for what, seconds in (("one agent", same), ("two agents", two), ("raw stream, round trip", raw)):
        low, middle, high = (1000 * each for each in statistics.quantiles(seconds, n=4))
        sys.stdout.write(f"{what:24s} {middle:.3f} ms [{low:.3f} to {high:.3f}]\n")


if __name__ == "__main__":
    main()
