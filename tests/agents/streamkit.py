"""Agents with stream stages for tests: runtimes with real threads and real calls, stages under a test's hand, and a store."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from grpc import aio
from tests.agents.fakes import TOKEN, WAIT_SECONDS, MemoryStore, Stages, Told, no_models, task

from starloom.agents import status
from starloom.agents.core import AgentCore
from starloom.agents.dataservice import DataServer, DataService, add_data_service
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Await, Command, Finished, Reader
from starloom.agents.runtime import Runtime
from starloom.agents.stage import Chunk, Received, Stage, StageCall, StreamStage
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.flow import Flow
from starloom.agents.streams.hub import Hub
from starloom.agents.streams.records import Bound, Credit, ReadOpen, StreamBatch, StreamChunk, StreamName, WriteOpen
from starloom.agents.streams.runner import Streams
from starloom.agents.transfer import Transfer
from starloom.dag.errors import StarloomError, Unavailable
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.kinds import KindSpec, Param
from starloom.dag.values import Full, Port, PortType

NUMBERS = Port(PortType.JSON, stream=True)
VALUE = Port(PortType.JSON)
OF_THE_JOB = FencingToken(Epoch(0), Attempt(0))


class Gate:
    """Lets a stage through as often as a test says so, and counts who comes. For any thread and loop."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._come = threading.Condition()
        self.came = 0

    def open(self, times: int = 1) -> None:
        self._permits.release(times)

    async def wait(self) -> None:
        """For the stage."""
        with self._come:
            self.came += 1
            self._come.notify_all()
        assert await asyncio.to_thread(self._permits.acquire, True, WAIT_SECONDS)

    async def until_came(self, times: int) -> None:
        """For the test."""
        assert await asyncio.to_thread(self._until, times)

    def _until(self, times: int) -> bool:
        with self._come:
            return self._come.wait_for(lambda: self.came >= times, WAIT_SECONDS)


def streaming(
    name: str,
    function: Callable[[StageCall], AsyncGenerator[Chunk, None]],
    *,
    inputs: dict[str, Port] | None = None,
    outputs: dict[str, Port] | None = None,
    **fields: Any,
) -> StreamStage:
    """A stream stage whose `stream` is a function."""

    class Made(StreamStage):
        spec = KindSpec(name=name, inputs=inputs or {}, outputs=outputs or {}, **fields)

        def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
            return function(call)

    return Made()


async def _count(call: StageCall) -> AsyncGenerator[Chunk, None]:
    for number in range(call.params["count"]):
        yield Chunk("out", number)


async def _double(call: StageCall) -> AsyncGenerator[Chunk, None]:
    async for received in call.inputs["in"]:
        yield Chunk("out", 2 * received.value, received.generation, received.at)


async def _gather(call: StageCall) -> AsyncGenerator[Chunk, None]:
    found = [received.value async for received in call.inputs["in"]]
    yield Chunk("all", found)


COUNT = streaming("t.count", _count, outputs={"out": NUMBERS}, params={"count": Param(type="integer", default=10)})
DOUBLE = streaming("t.double", _double, inputs={"in": NUMBERS}, outputs={"out": NUMBERS})
GATHER = streaming("t.gather", _gather, inputs={"in": NUMBERS}, outputs={"all": VALUE})


class Slow:
    """A stage that takes one chunk at each opening of its gate, and gives what it took in the end."""

    def __init__(self, kind: str = "t.slow", full: Full | None = None) -> None:
        self.gate = Gate()
        self.taken: list[Received] = []
        port = Port(PortType.JSON, stream=True, full=full)
        self.stage = streaming(kind, self._run, inputs={"in": port}, outputs={"all": VALUE})

    async def _run(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for received in call.inputs["in"]:
            self.taken.append(received)
            await self.gate.wait()
        yield Chunk("all", [received.value for received in self.taken])


class Station:
    """One agent: its runtime, what it reported, its streams and its data service's address."""

    def __init__(self, name: str, runtime: Runtime, told: Told, streams: "Breakable", address: str) -> None:
        self.name = AgentId(name)
        self.runtime = runtime
        self.told = told
        self.streams = streams
        self.address = address

    def send(self, *commands: Command) -> None:
        self.runtime.commands(commands, Epoch(1))

    async def finished(self, stage: str) -> Finished:
        report = await self.told.final(task(stage))
        assert isinstance(report, Finished), report
        return report

    def awaits(self, **streams: str) -> tuple[Await, ...]:
        """Awaits of streams of stages on this agent: `port="stage.output"`."""
        found = []
        for port, source in streams.items():
            stage, _, output = source.partition(".")
            port = port.rstrip("_")
            token = task(stage).token
            stage_id = StageId(stage)
            found.append(
                Await(
                    upstream=stage_id,
                    token=token,
                    agent=self.name,
                    address=self.address,
                    streams={port: output},
                    incarnation=incarnation(self.name),
                )
            )
        return tuple(found)


def values(report: Finished, port: str = "all") -> Any:
    """What a one-shot output says."""
    inline = report.outputs[port].inline
    assert inline is not None
    return msgspec.json.decode(inline)


def producing(
    stage: str, kind: str, *readers: str, full: Full = Full.BLOCK, port: str = "out", **fields: Any
) -> Assign:
    """An attempt whose stream is read by `stage.port`."""
    declared = tuple(Reader(port=port, reader=reader, full=full) for reader in readers)
    return Assign(task=task(stage), kind=kind, readers=declared, **fields)


def consuming(stage: str, kind: str, awaits: tuple[Await, ...], **fields: Any) -> Assign:
    return Assign(task=task(stage), kind=kind, awaits=awaits, **fields)


class StreamStore:
    """The orchestrator's streams: a job's inputs, and those that are written to it."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.written: dict[StreamName, list[StreamChunk]] = {}
        self.ends: dict[StreamName, Any] = {}
        #: after how many chunks each call of Write to come breaks off
        self.write_breaks: list[int] = []
        self.window = Bound(4, 1_000_000)
        self.refuse_streams: StarloomError | None = None
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Waits until the condition holds, asked whenever more is stored."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def input(self, port: str, *readers: str, full: Full = Full.BLOCK, job: str = "j") -> Flow:
        """An input stream of a job, which a test feeds."""
        flow = Flow(StreamBuffer(None, [(reader, full) for reader in readers]))
        self.hub.add(StreamName(JobId(job), StageId(""), OF_THE_JOB, port), flow)
        return flow

    async def read(self, wish: ReadOpen, told: AsyncIterator[Credit | None]) -> AsyncIterator[StreamBatch]:
        reading = await self.hub.open(wish)

        async def listen() -> None:
            async for credit in told:
                if credit is None:
                    reading.close()
                else:
                    reading.credit(credit)

        listening = asyncio.create_task(listen())
        try:
            while True:
                batch = await reading.next()
                yield batch
                if batch.end is not None:
                    return
        finally:
            listening.cancel()

    async def write(self, wish: WriteOpen, parts: AsyncIterator[StreamBatch]) -> AsyncIterator[Credit]:
        if self.refuse_streams is not None:
            raise self.refuse_streams
        stored = self.written.setdefault(wish.stream, [])
        left = self.write_breaks.pop(0) if self.write_breaks else -1
        yield Credit(stored[-1].offset + 1 if stored else 0, self.window)
        async for part in parts:
            for chunk in part.chunks:
                if left == 0:
                    raise Unavailable("broken off")
                left -= 1
                stored.append(chunk)
                self._changed.set()
            if part.end is not None:
                self.ends[wish.stream] = part.end
                return
            yield Credit(stored[-1].offset + 1, self.window)


class Cluster:
    """Agents by name, and the store."""

    def __init__(self, store: StreamStore) -> None:
        self.store = store
        self.stations: dict[str, Station] = {}

    def __getitem__(self, name: str) -> Station:
        return self.stations[name]


class Breakable:
    """Streams whose calls of Read break off as a test says, as by a network."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._hub = streams._hub
        self._loops = streams._loops
        #: after how many batches each call to come breaks off
        self.breaks: list[int] = []
        #: the offset from which each call went on
        self.opened: list[int] = []

    def flow(self, stage: str, port: str = "out") -> Flow | None:
        return self._hub.get(StreamName(JobId("j"), StageId(stage), task(stage).token, port))

    def kept(self, stage: str) -> Bound:
        """What a stage's stream keeps."""
        flow = self.flow(stage)
        assert flow is not None
        return flow.buffer.kept

    async def until_kept(self, stage: str, chunks: int) -> None:
        """Waits until a stage's stream keeps as many chunks."""
        await self._until(stage, lambda buffer: buffer.kept.chunks >= chunks)

    async def until_left(self, stage: str, reader: str) -> None:
        """Waits until a declared reader of a stage's stream wants no more of it."""
        await self._until(stage, lambda buffer: reader not in buffer.readers)

    async def _until(self, stage: str, condition: Callable[[StreamBuffer], bool]) -> None:
        # An attempt that has begun has its streams, once this loop has done what it was told before.
        await self.settled()
        flow = self.flow(stage)
        assert flow is not None

        async def wait() -> None:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition(flow.buffer):
                    await flow.change()

        await self._loops.on_streams(wait())

    def hold_up(self, free: threading.Event) -> None:
        """Has the loop of stream stages do nothing until it is free."""
        self._loops.to_streams(free.wait, WAIT_SECONDS)

    async def settled(self) -> None:
        """Lasts until the loop of stream stages has done what it was told before."""

        async def nothing() -> None:
            return

        await self._loops.on_streams(nothing())

    async def read(self, wish: ReadOpen, told: AsyncIterator[Credit | None]) -> AsyncIterator[StreamBatch]:
        self.opened.append(wish.credit.acknowledged)
        left = self.breaks.pop(0) if self.breaks else -1
        async for batch in self._streams.read(wish, told):
            if left == 0:
                raise Unavailable("broken off")
            left -= 1
            yield batch


@asynccontextmanager
async def cluster(
    *names: str, stages: tuple[Stage | StreamStage, ...] = (), slots: int = 2, faults: FaultLayer | None = None
) -> AsyncIterator[Cluster]:
    """Agents of these names with these kinds, beside those of this module; `faults` meet what each calls."""
    store = StreamStore()
    found = Cluster(store)
    known = Stages(COUNT, DOUBLE, GATHER, *stages)
    async with AsyncExitStack() as stack:
        server = aio.server(interceptors=[status.TokenCheck(TOKEN)], options=status.server_options())
        service = DataService(MemoryStore(), streams=store, stream_sink=store)
        add_data_service(server, service)
        store_address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        stack.push_async_callback(_stop, server.stop)
        for name in names:
            transfer = await stack.enter_async_context(Transfer(TOKEN, faults))
            streams = Streams(AgentId(name), known, no_models, transfer, store_address, incarnation(name))
            breakable = Breakable(streams)
            data = DataServer(Holder(), TOKEN, streams=breakable)
            address = await data.start()
            stack.push_async_callback(data.stop)
            told = Told()
            core = AgentCore(AgentId(name), slots, streams.kinds)
            runtime = Runtime(core, known, no_models, Holder(), transfer, store_address, told, streams=streams)
            stack.push_async_callback(runtime.stop)
            found.stations[name] = Station(name, runtime, told, breakable, address)
        yield found


def incarnation(name: str) -> str:
    """What the only process of an agent is called."""
    return f"{name}-1"


async def _stop(stop: Callable[[float | None], Awaitable[None]]) -> None:
    await stop(None)
