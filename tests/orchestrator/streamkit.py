"""Stages that stream, and an orchestrator and agents as processes that tests can kill: `python -m tests.orchestrator.streamkit NAME ADDRESS`."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.stage import Chunk, Outputs, Stage, StageCall, StreamStage
from starloom.dag.constellation import Constellation, Policy, Requirements
from starloom.dag.kinds import KindCatalog, KindSpec, Param
from starloom.dag.values import Port, PortType
from starloom.orchestrator.client import AsyncClient

TOKEN = "secret"
NUMBERS = Port(PortType.JSON, stream=True)


class Numbers(StreamStage):
    """Gives `count` numbers from 0 on, each with so many characters beside it."""

    spec: ClassVar = KindSpec(
        name="test.numbers",
        outputs={"numbers": NUMBERS},
        params={"count": Param(type="integer", required=True), "size": Param(type="integer", default=0)},
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        for number in range(call.params["count"]):
            yield Chunk("numbers", [number, "x" * call.params["size"]])


class Twice(StreamStage):
    """Gives twice the first part of what comes; `at` and generations go through."""

    spec: ClassVar = KindSpec(name="test.twice", inputs={"numbers": NUMBERS}, outputs={"numbers": NUMBERS})

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for each in call.inputs["numbers"]:
            number, *rest = each.value
            yield Chunk("numbers", [2 * number, *rest], each.generation, each.at)


class First(StreamStage):
    """Passes on what comes, up to the first that is `last`; then it wants no more."""

    spec: ClassVar = KindSpec(
        name="test.first",
        inputs={"numbers": NUMBERS},
        outputs={"numbers": NUMBERS},
        params={"last": Param(type="integer", required=True)},
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for each in call.inputs["numbers"]:
            yield Chunk("numbers", each.value)
            if each.value[0] == call.params["last"]:
                return


class Paced(StreamStage):
    """Passes a number on for each chunk of `go`."""

    spec: ClassVar = KindSpec(
        name="test.paced",
        inputs={"numbers": NUMBERS, "go": Port(PortType.JSON, stream=True)},
        outputs={"numbers": NUMBERS},
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        go = aiter(call.inputs["go"])
        async for each in call.inputs["numbers"]:
            if await anext(go, None) is None:
                return
            yield Chunk("numbers", each.value)


class Total(Stage):
    """The sum of the first parts of all that came."""

    spec: ClassVar = KindSpec(name="test.total", inputs={"numbers": NUMBERS}, outputs={"total": Port(PortType.JSON)})

    def run(self, call: StageCall) -> Outputs:
        return {"total": sum(value[0] for value in call.inputs["numbers"])}


class Broken(StreamStage):
    """Passes one chunk on, and fails at the next."""

    spec: ClassVar = KindSpec(name="test.broken", inputs={"numbers": NUMBERS}, outputs={"numbers": NUMBERS})

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for each in call.inputs["numbers"]:
            if each.offset:
                raise ValueError("no more of this")
            yield Chunk("numbers", each.value)


class Stages:
    """The kinds above, as an agent looks them up."""

    def __init__(self) -> None:
        stages: list[Stage | StreamStage] = [Numbers(), Twice(), First(), Paced(), Total(), Broken()]
        self._stages = {stage.spec.name: stage for stage in stages}
        self.kinds = KindCatalog(stage.spec for stage in stages)

    def stage(self, name: str) -> Stage | StreamStage:
        return self._stages[name]


KINDS = Stages().kinds


def fed(*, second: str = "", total: bool = True, kind: str = "test.twice", **params: Any) -> Constellation:
    """The input stream `mic` through two stages into the output `answer`, and its sum; the `second` is at that node."""
    graph = Graph("fed")
    first = graph.stage("first", "test.twice", numbers=graph.input("mic", PortType.JSON, stream=True))
    require = Requirements(node=second)
    last = graph.stage("second", kind, numbers=first["numbers"], require=require, params=params)["numbers"]
    graph.output("answer", last)
    if total:
        graph.output("total", graph.stage("total", "test.total", numbers=last)["total"])
    return graph.build(KINDS)


def counted(count: int, size: int = 0, producer: str = "", consumer: str = "") -> Constellation:
    """So many numbers, made on one node and doubled on another."""
    graph = Graph("counted")
    params = {"count": count, "size": size}
    made = graph.stage("made", "test.numbers", params=params, require=Requirements(node=producer))["numbers"]
    require, policy = Requirements(node=consumer), Policy()
    twice = graph.stage("twice", "test.twice", numbers=made, require=require, policy=policy)["numbers"]
    graph.output("answer", twice)
    return graph.build(KINDS)


def paced(count: int, size: int) -> Constellation:
    """So many numbers made on `a` and passed on by `b`, each when `go` says so."""
    graph = Graph("paced")
    go = graph.input("go", PortType.JSON, stream=True)
    made = graph.stage("made", "test.numbers", params={"count": count, "size": size}, require=Requirements(node="a"))
    last = graph.stage("last", "test.paced", numbers=made["numbers"], go=go, require=Requirements(node="b"))
    graph.output("answer", last["numbers"])
    return graph.build(KINDS)


class Processes:
    """An orchestrator and agents as processes. `kill` is SIGKILL; what was killed is started again under its name and address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._port = 0
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Self:
        self._folder.mkdir()
        (self._folder / "token").write_text(TOKEN)
        await self.orchestrator()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()
        for process in self._running.values():
            if process.returncode is None:
                process.kill()
                await process.wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def orchestrator(self) -> None:
        """Starts one, once it serves."""
        ready, told = os.pipe()
        options = ("--folder", self._folder / "state", "--token-file", self._folder / "token", "--port", self._port)
        command = [sys.executable, "-m", "starloom.orchestrator.process", *map(str, options), "--ready-fd", str(told)]
        self._running["orchestrator"] = await asyncio.create_subprocess_exec(*command, pass_fds=(told,))
        os.close(told)
        assert await asyncio.to_thread(os.read, ready, 1), "the orchestrator did not start"
        os.close(ready)
        if not self._port:
            import json

            found = json.loads((self._folder / "state" / "orchestrator.json").read_text())
            self._port = int(found["address"].rpartition(":")[2])

    async def agent(self, name: str) -> None:
        """Starts one, once it is connected."""
        command = [sys.executable, "-m", "tests.orchestrator.streamkit", name, self.address]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        self._running[name] = process
        assert process.stdout is not None
        assert await process.stdout.readline() == b"there\n"

    async def kill(self, name: str) -> None:
        process = self._running[name]
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def client(self) -> AsyncClient:
        return await self._stack.enter_async_context(AsyncClient(self.address, TOKEN))


@asynccontextmanager
async def agent(address: str, name: str, slots: int = 1) -> AsyncIterator[Agent]:
    """An agent with these stages, in this process."""
    made = Agent(
        AgentConfig(name=name, tier="edge", orchestrator=address, token=TOKEN, slots=slots, measures=False), Stages()
    )
    await made.start()
    await made.connected.wait()
    try:
        yield made
    finally:
        await made.stop()


async def main() -> None:
    """An agent until it is killed."""
    name, address = sys.argv[1:]
    async with agent(address, name) as made:
        sys.stdout.write("there\n")
        sys.stdout.flush()
        await made.run()


if __name__ == "__main__":
    asyncio.run(main())
