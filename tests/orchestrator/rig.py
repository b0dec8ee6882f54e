"""An orchestrator and agents in this process, over real gRPC, for tests that need the whole."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from grpc import aio

from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.stage import Outputs, Stage, StageCall, StreamStage
from starloom.agents.stages import basic
from starloom.agents.status import CallEnd, auth_metadata, channel_options
from starloom.agents.values import refer
from starloom.agents.wire import ref_to_wire
from starloom.dag.constellation import Constellation
from starloom.dag.document import load, to_json
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.values import JOB_STORE, Port, PortType, ValueRef
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.server import Orchestrator
from starloom.v1 import control_pb2 as pb
from starloom.v1 import control_pb2_grpc, data_pb2, data_pb2_grpc

TOKEN = "a token"
SECONDS = 30


class Gate:
    """What `test.gate` waits at: tests see who came, and let all through."""

    def __init__(self) -> None:
        self.arrived = 0
        self._open = False
        self._changed = threading.Condition()

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def pass_through(self, call: StageCall) -> None:
        with self._changed:
            self.arrived += 1
            self._changed.notify_all()
            forget = call.cancel.on_cancel(self._wake)
            self._changed.wait_for(lambda: self._open or call.cancel.cancelled, SECONDS)
        forget()
        call.cancel.raise_if_cancelled()

    def _wake(self) -> None:
        # From the thread that cancels; a waiter may hold the lock for a moment only.
        with self._changed:
            self._changed.notify_all()

    async def until_arrived(self, count: int) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.arrived >= count, SECONDS)

        assert await asyncio.to_thread(wait), f"{self.arrived} of {count} came to the gate"


class AtGate(Stage):
    """Passes `value` on once its gate is open."""

    spec = KindSpec(
        name="test.gate",
        inputs={"value": Port(PortType.JSON, optional=True)},
        outputs={"value": Port(PortType.JSON)},
        variadic_input=Port(PortType.JSON),
    )

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def run(self, call: StageCall) -> Outputs:
        self._gate.pass_through(call)
        return {"value": call.inputs.get("value")}


class Stages:
    """The stages of a test's agents."""

    def __init__(self, gate: Gate) -> None:
        made: tuple[Stage, ...] = (
            AtGate(gate),
            basic.Noop(),
            basic.Add(),
            basic.Echo(),
            basic.MakeBytes(),
            basic.Fail(),
        )
        self._stages = {stage.spec.name: stage for stage in made}
        self.kinds = KindCatalog(stage.spec for stage in made)

    def stage(self, name: str) -> Stage | StreamStage:
        return self._stages[name]


class Rig:
    """Starts an orchestrator on `folder`, and agents when told to; stops all at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = Gate()
        self.orchestrator = Orchestrator(folder, token=TOKEN)
        self.address = ""
        self._stack = AsyncExitStack()
        self._channel: aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self.address = await self.orchestrator.start()
        self._stack.push_async_callback(self.stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.open()
        await self._stack.aclose()

    async def stop(self) -> None:
        await self.orchestrator.stop()

    async def restart(self) -> None:
        """Another orchestrator on the same folder and port."""
        await self.orchestrator.stop()
        self.orchestrator = Orchestrator(self.folder, port=int(self.address.rpartition(":")[2]), token=TOKEN)
        assert await self.orchestrator.start() == self.address

    async def agent(self, name: str, slots: int = 4, tier: str = "edge") -> Agent:
        """One more agent, once it is connected."""
        config = AgentConfig(name=name, tier=tier, orchestrator=self.address, token=TOKEN, slots=slots, measures=False)
        agent = Agent(config, Stages(self.gate))
        await agent.start()
        self._stack.push_async_callback(agent.stop)
        async with asyncio.timeout(SECONDS):
            await agent.connected.wait()
        await until(self.online(name))
        return agent

    def online(self, name: str) -> Callable[[], Any]:
        async def found() -> bool:
            nodes = (await self.call("ListNodes", pb.ListNodesRequest())).nodes
            return any(node.name == name and node.state == "online" for node in nodes)

        return found

    async def until_jobs(self, count: int) -> None:
        """Once so many jobs are decided, whether they are journaled or not."""
        engine = self.orchestrator.engine

        async def decided() -> bool:
            await asyncio.sleep(0)
            return len(engine.coordinator.jobs) >= count

        await until(decided)

    async def client(self) -> AsyncClient:
        return await self._stack.enter_async_context(AsyncClient(self.address, TOKEN))

    @property
    def channel(self) -> aio.Channel:
        if self._channel is None:
            options = [
                option for option in channel_options(self.address) if option[0] != "grpc.max_send_message_length"
            ]
            options.append(("grpc.max_send_message_length", -1))
            self._channel = aio.insecure_channel(self.address, options=options)
            self._stack.push_async_callback(self._channel.close, None)
        return self._channel

    async def call(self, method: str, request: Any, token: str = TOKEN) -> Any:
        """The answer of a Control RPC, all answers of a stream; raises the StarloomError that it ended with."""
        stub = control_pb2_grpc.ControlServiceStub(self.channel)  # type: ignore[no-untyped-call]
        return await answered(getattr(stub, method)(request, metadata=auth_metadata(token), timeout=SECONDS))

    def stream(self, method: str, request: Any) -> AsyncIterator[Any]:
        """The answers of a Control RPC as they come."""
        stub = control_pb2_grpc.ControlServiceStub(self.channel)  # type: ignore[no-untyped-call]
        return aiter(getattr(stub, method)(request, metadata=auth_metadata(TOKEN), timeout=SECONDS))

    async def put(self, ref: ValueRef, chunks: Iterable[bytes], token: str = TOKEN) -> data_pb2.PutResponse:
        requests = [data_pb2.PutRequest(ref=ref_to_wire(ref)), *(data_pb2.PutRequest(chunk=chunk) for chunk in chunks)]
        stub = data_pb2_grpc.DataServiceStub(self.channel)  # type: ignore[no-untyped-call]
        call = stub.Put(iter(requests), metadata=auth_metadata(token), timeout=SECONDS)
        response = await answered(call)
        assert isinstance(response, data_pb2.PutResponse)
        return response

    async def fetch(self, job: str, digest: str, offset: int = 0, token: str = TOKEN) -> bytes:
        stub = data_pb2_grpc.DataServiceStub(self.channel)  # type: ignore[no-untyped-call]
        request = data_pb2.FetchRequest(job_id=job, digest=digest, offset=offset)
        call = stub.Fetch(request, metadata=auth_metadata(token), timeout=SECONDS)
        return b"".join(message.chunk for message in await answered(call))

    async def submit(self, text: str, inputs: Mapping[str, ValueRef] | None = None, **options: Any) -> str:
        """A job's id, from its document as YAML."""
        return str((await self.call("Submit", request(text, inputs, **options))).job_id)

    async def ended(self, job: str) -> pb.Job:
        """The job, once it has ended."""
        await self.call("StreamEvents", pb.StreamEventsRequest(job_id=job, follow=True, kinds=["job-ended"]))
        found = (await self.call("GetJob", pb.GetJobRequest(job_id=job))).job
        assert isinstance(found, pb.Job)
        return found


async def answered(call: Any) -> Any:
    """The answer of a call, or all of a streaming one; raises the StarloomError that it ended with."""
    end = CallEnd(call)
    try:
        if isinstance(call, AsyncIterator) or hasattr(call, "__aiter__"):
            return [message async for message in call]
        return await call
    except aio.AioRpcError as error:
        raise await end.error() from error


async def until(true: Callable[[], Any]) -> None:
    """Asks again and again, as fast as answers come, until it is true."""
    async with asyncio.timeout(SECONDS):
        while not await true():
            pass


def constellation(text: str) -> Constellation:
    return load(f"api_version: starloom/v1\nname: test\n{text}")


def request(text: str, inputs: Mapping[str, ValueRef] | None = None, **options: Any) -> pb.SubmitRequest:
    """A Submit of a document as YAML, without its head."""
    document = msgspec.json.encode(to_json(constellation(text)))
    wired = {name: ref_to_wire(ref) for name, ref in (inputs or {}).items()}
    return pb.SubmitRequest(constellation_json=document, inputs=wired, **options)


def bytes_ref(data: bytes, *, inline: bool) -> ValueRef:
    ref = refer(PortType.BYTES, data, {}, JOB_STORE)
    return msgspec.structs.replace(ref, inline=data if inline else None)
