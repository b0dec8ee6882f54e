"""The other ends that an agent meets, in memory: an orchestrator's session and data services, under a test's hand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from grpc import aio

from starloom.agents import status, values, wire
from starloom.agents.channel import Channel
from starloom.agents.dataservice import DataService, add_data_service
from starloom.agents.messages import (
    NOT_ENDS,
    Assign,
    AwaitUnreachable,
    Command,
    Hello,
    Input,
    Load,
    Report,
    Started,
    Welcome,
)
from starloom.agents.stage import CancelToken, Model, Outputs, Stage, StageCall, StreamStage
from starloom.dag.errors import ModelMissing, NotFound, StarloomError, Unavailable
from starloom.dag.facts import Consumed
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.values import PortType, ValueRef
from starloom.v1 import session_pb2 as pb
from starloom.v1 import session_pb2_grpc

TOKEN = "letmein"
WAIT_SECONDS = 20.0
"""No test waits that long unless it fails."""


def task(stage: str = "s", attempt: int = 1, job: str = "j", epoch: int = 1) -> TaskToken:
    return TaskToken(JobId(job), StageId(stage), FencingToken(Epoch(epoch), Attempt(attempt)))


def assign(stage: str = "s", kind: str = "basic.noop", attempt: int = 1, job: str = "j", **fields: Any) -> Assign:
    return Assign(task=task(stage, attempt, job), kind=kind, **fields)


def given(
    port: str, port_type: PortType, value: Any, *, holder: str = "", address: str = "", inline: bool = True
) -> Input:
    """An input with a value that a test makes up, of stage `up`."""
    ref = reference(port_type, value, holder=holder, inline=inline)
    return Input(port=port, ref=ref, consumed=consumed(ref), address=address)


def reference(port_type: PortType, value: Any, *, holder: str = "", inline: bool = True) -> ValueRef:
    data, meta = values.encode(port_type, value)
    return ValueRef(
        type=port_type,
        bytes=len(data),
        digest=values.digest(data),
        meta=meta,
        inline=data if inline else None,
        holder=holder,
    )


def consumed(ref: ValueRef, upstream: str = "up") -> Consumed:
    return Consumed(StageId(upstream), FencingToken(Epoch(1), Attempt(1)), ref.digest)


class Stages:
    """A lookup of stages that a test brings: `agents.execution.StageLookup`."""

    def __init__(self, *stages: Stage | StreamStage) -> None:
        self._stages = {stage.spec.name: stage for stage in stages}

    @property
    def kinds(self) -> KindCatalog:
        return KindCatalog(stage.spec for stage in self._stages.values())

    def stage(self, name: str) -> Stage | StreamStage:
        if name not in self._stages:
            raise NotFound(f"there is no kind {name!r}")
        return self._stages[name]


def made(spec: KindSpec, function: Callable[[StageCall], Outputs]) -> Stage:
    """A stage whose `run` is a function."""

    class Made(Stage):
        def run(self, call: StageCall) -> Outputs:
            return function(call)

    stage = Made()
    # Shadows the class variable: each made stage has its own.
    type(stage).spec = spec
    return stage


class MemoryStore:
    """A job store in memory: `dataservice.ValueSource` and `ValueSink`. While `closed` has an error, it is raised."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.puts = 0
        self.reads: list[tuple[str, int]] = []
        self.closed: StarloomError | None = None
        #: for each read to come, how many parts to give before it breaks off
        self.breaks: list[int] = []
        self.part_bytes = 64 * 1024
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Waits until the condition holds, asked after each read and put."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def add(self, data: bytes) -> str:
        digest = values.digest(data)
        self.values[digest] = data
        return digest

    async def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes | memoryview]:
        self.reads.append((digest, offset))
        self._changed.set()
        if self.closed is not None:
            raise self.closed
        if digest not in self.values:
            raise NotFound(f"no value {digest[:12]}")
        parts_left = self.breaks.pop(0) if self.breaks else -1
        data = self.values[digest]
        for start in range(offset, len(data), self.part_bytes):
            if parts_left == 0:
                raise Unavailable("broken off")
            parts_left -= 1
            yield data[start : start + self.part_bytes]

    async def put(self, ref: ValueRef, chunks: AsyncIterator[bytes]) -> ValueRef:
        self.puts += 1
        self._changed.set()
        if self.closed is not None:
            raise self.closed
        data = values.verify(ref, b"".join([chunk async for chunk in chunks]))
        self.values[ref.digest] = data
        return ValueRef(type=ref.type, bytes=ref.bytes, digest=ref.digest, meta=ref.meta)


class FakeOrchestrator(session_pb2_grpc.SessionServiceServicer):
    """Takes one agent's session. What it heard is in `reports`, `hellos` and `loads`; `until` waits for more.

    `streams` are those of its data service. `acknowledge`: whether reports are acknowledged as soon as they come. `twice`: whether each frame is sent twice.
    """

    def __init__(self, epoch: int = 1, streams: Any = None) -> None:
        self.epoch = Epoch(epoch)
        self._streams = streams
        self.acknowledge = True
        self.twice = False
        self.answer_heartbeats = True
        self.lease_seconds = 3.0
        self.heartbeat_seconds = 0.02
        self.refuse: StarloomError | None = None
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.frames: list[tuple[int, int]] = []
        self.loads: list[Load] = []
        self.goodbyes: list[str] = []
        self.store = MemoryStore()
        self.address = ""
        self._server: aio.Server | None = None
        self._channel: Channel[Command, Report] = Channel()
        self._session = ""
        self._sessions = 0
        self._changed = asyncio.Condition()
        self._woken = asyncio.Event()
        self._stream: asyncio.Task[None] | None = None
        self._outgoing: list[pb.ConnectResponse] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> str:
        """Serves, on the same address as before if there was one."""
        self._server = aio.server(interceptors=[status.TokenCheck(TOKEN)], options=status.server_options())
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        add_data_service(
            self._server, DataService(self.store, self.store, streams=self._streams, stream_sink=self._streams)
        )
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        return self.address

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def restart(self) -> None:
        """Stops, forgets its sessions, and serves again as the next epoch."""
        await self.stop()
        self.forget()
        self.epoch = Epoch(self.epoch + 1)
        await self.start()

    def forget(self) -> None:
        """The next hello begins a new session."""
        self._session = ""
        self._channel = Channel()

    def drop(self) -> None:
        """Breaks the present stream."""
        assert self._stream is not None
        self._stream.cancel()

    @property
    def kept(self) -> Sequence[Command]:
        """Commands that the agent has not acknowledged."""
        return self._channel.kept

    def send(self, *commands: Command) -> None:
        self._channel.send(commands)
        self._woken.set()

    def send_raw(self, message: pb.ConnectResponse) -> None:
        self._outgoing.append(message)
        self._woken.set()

    def accept_all(self) -> None:
        """Acknowledges every report so far."""
        self._channel.done()
        self._woken.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Waits until the condition holds, asked after each message from the agent."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(condition)

    async def last(self, wanted: TaskToken) -> Report:
        """The final report of an attempt, or of a replica, once it is here."""
        await self.until(lambda: self.finals(wanted))
        return self.finals(wanted)[0]

    def finals(self, wanted: TaskToken) -> Sequence[Report]:
        return [report for report in self.reports if report.task == wanted and not isinstance(report, NOT_ENDS)]

    def started(self, wanted: TaskToken) -> bool:
        return Started(task=wanted) in self.reports

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: aio.ServicerContext[Any, Any]
    ) -> None:
        messages = aiter(request_iterator)
        first = await anext(messages)
        hello = wire.hello_from_wire(first.hello)
        self.hellos.append(hello)
        if self.refuse is not None:
            await self._notify()
            await status.abort(context, self.refuse)
        resumed = bool(self._session) and hello.session == self._session
        if resumed:
            self._channel.resume(hello.received)
        else:
            kept = self._channel.kept if not self._session else ()
            self._channel = Channel()
            self._channel.send(kept)
            self._sessions += 1
            self._session = f"{self.epoch}-{self._sessions}"
        welcome = Welcome(
            session=self._session,
            epoch=self.epoch,
            resumed=resumed,
            received=self._channel.received,
            lease_seconds=self.lease_seconds,
            heartbeat_seconds=self.heartbeat_seconds,
        )
        self._stream = asyncio.create_task(self._write(context, welcome))
        reader = asyncio.create_task(self._read(messages))
        await self._notify()
        try:
            await asyncio.wait([self._stream, reader], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stream.cancel()
            reader.cancel()
            await asyncio.gather(self._stream, reader, return_exceptions=True)

    async def _write(self, context: aio.ServicerContext[Any, Any], welcome: Welcome) -> None:
        await context.write(pb.ConnectResponse(welcome=wire.welcome_to_wire(welcome)))
        self._woken.set()
        while True:
            await self._woken.wait()
            self._woken.clear()
            for message in self._messages():
                for _ in range(1 + self.twice):
                    await context.write(message)

    def _messages(self) -> list[pb.ConnectResponse]:
        raw, self._outgoing = self._outgoing, []
        parts = [part for frame in self._channel.frames() for part in wire.commands_to_wire(frame, self.epoch)]
        if not parts:
            parts = [pb.Commands(acknowledged=self._channel.acknowledged, sender_epoch=self.epoch)]
        return [*(pb.ConnectResponse(commands=part) for part in parts), *raw]

    async def _read(self, messages: AsyncIterator[pb.ConnectRequest]) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "reports":
                    frame = wire.reports_from_wire(message.reports, self.hellos[-1].agent)
                    self.frames.append((frame.sequence, len(frame.messages)))
                    self.reports += self._channel.receive(frame)
                    if self.acknowledge:
                        self.accept_all()
                case "heartbeat":
                    self.loads.append(wire.load_from_wire(message.heartbeat.load_json))
                    self._channel.acknowledge(message.heartbeat.acknowledged)
                    if self.answer_heartbeats:
                        beat = pb.HeartbeatReply(
                            sent_nanos=message.heartbeat.sent_nanos, acknowledged=self._channel.acknowledged
                        )
                        self.send_raw(pb.ConnectResponse(heartbeat=beat))
                case "goodbye":
                    self.goodbyes.append(message.goodbye.reason)
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class Told:
    """Takes reports, as a session would, and lets a test wait for them."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._changed = asyncio.Event()

    def __call__(self, report: Report) -> None:
        self.reports.append(report)
        self._changed.set()

    async def final(self, wanted: TaskToken) -> Report:
        """The final report of an attempt, or of a replica, once it is here; fails if there are two."""

        def last() -> list[Report]:
            return [r for r in self.reports if r.task == wanted and not isinstance(r, Started | AwaitUnreachable)]

        await self.until(last)
        (found,) = last()
        return found

    def ended(self, wanted: TaskToken) -> bool:
        return any(report.task == wanted and not isinstance(report, Started) for report in self.reports)

    async def started(self, wanted: TaskToken) -> None:
        await self.until(lambda: Started(task=wanted) in self.reports)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class NoModels:
    """The models of a call that has none."""

    load_seconds = 0.0
    models: list[str] = []
    targets: list[str] = []
    emulated = False

    def session(self, model: str, file: str = "model.onnx", *, target: str | None = None) -> Model:
        raise ModelMissing(f"model {model} is not here")

    def path(self, model: str, file: str) -> str:
        raise ModelMissing(f"model {model} is not here")

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        return make()

    def close(self, kind: str = "") -> None:
        return


def no_models(cancel: CancelToken, target: str) -> NoModels:
    return NoModels()
