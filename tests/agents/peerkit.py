"""Agents that ask each other for their attempts, as tests have them: whole ones without a session, and ones under a test's hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio
from tests.agents.fakes import TOKEN, WAIT_SECONDS, Stages, Told, assign, no_models, task

from starloom.agents import status, wire
from starloom.agents.core import AgentCore
from starloom.agents.dataservice import DataServer
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Await, Command, Finished, Outcome, Report
from starloom.agents.peers import Peers
from starloom.agents.runtime import Runtime
from starloom.agents.stages.basic import Echo, MakeBytes, Noop
from starloom.agents.transfer import Transfer
from starloom.dag.errors import StarloomError
from starloom.dag.ids import AgentId, Epoch, StageId, TaskToken
from starloom.v1 import data_pb2, data_pb2_grpc


class Node:
    """One agent's runtime, its data service and its peers, without a session."""

    def __init__(self, runtime: Runtime, peers: Peers, told: Told, address: str) -> None:
        self.runtime = runtime
        self.peers = peers
        self.told = told
        self.address = address

    def send(self, *commands: Command) -> None:
        self.runtime.commands(commands, Epoch(1))

    async def finished(self, wanted: TaskToken) -> Finished:
        report = await self.told.final(wanted)
        assert isinstance(report, Finished), report
        return report

    def reports(self, kind: type[Report]) -> list[Any]:
        return [report for report in self.told.reports if isinstance(report, kind)]


@asynccontextmanager
async def node(name: str, faults: FaultLayer | None = None) -> AsyncIterator[Node]:
    told, holder, peers = Told(), Holder(), Peers(TOKEN, faults)
    data = DataServer(holder, TOKEN, awaits=peers)
    address = await data.start()
    known = Stages(Noop(), Echo(), MakeBytes())
    async with Transfer(TOKEN) as transfer:
        core = AgentCore(AgentId(name), 2)
        runtime = Runtime(core, known, no_models, holder, transfer, "127.0.0.1:1", told, peers=peers)
        try:
            yield Node(runtime, peers, told, address)
        finally:
            await runtime.stop()
            await data.stop()


class FakePeer(data_pb2_grpc.DataServiceServicer):
    """An agent that is asked, under a test's hand; it comes back on the same address."""

    def __init__(self) -> None:
        self.asked: list[TaskToken] = []
        self.unasked: list[TaskToken] = []
        self.address = ""
        self.token = TOKEN
        #: the first message of each call
        self.first = data_pb2.AwaitResponse()
        self._server: aio.Server | None = None
        self._contexts: list[Any] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._server = aio.server(interceptors=[status.TokenCheck(self.token)], options=status.server_options())
        data_pb2_grpc.add_DataServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def answer(self, *outcomes: Outcome) -> None:
        for message in wire.outcomes_to_wire(outcomes):
            await self.write(message)

    async def write(self, message: data_pb2.AwaitResponse) -> None:
        await self._contexts[-1].write(message)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def Await(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        await context.write(self.first)
        self._contexts.append(context)
        async for request in request_iterator:
            asked, unasked = wire.asks_from_wire(request)
            self.asked += asked
            self.unasked += unasked
            self._changed.set()


@asynccontextmanager
async def fake_peer() -> AsyncIterator[FakePeer]:
    peer = FakePeer()
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()


def awaits(stage: str, address: str, agent: str, **fields: Any) -> Await:
    return Await(upstream=StageId(stage), token=task(stage).token, agent=AgentId(agent), address=address, **fields)


def waiting(address: str, stage: str = "down", upstream: str = "far") -> Assign:
    return assign(stage, awaits=(awaits(upstream, address, "other"),))


@asynccontextmanager
async def calling(address: str, token: str = TOKEN, welcomed: bool = True) -> AsyncIterator[Any]:
    """A raw call of Await."""
    async with aio.insecure_channel(address, options=status.channel_options(address)) as channel:
        stub: Any = data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Await(metadata=status.auth_metadata(token))
        if welcomed:
            assert not (await call.read()).outcomes
        try:
            yield call
        finally:
            call.cancel()


async def error_of(call: Any) -> StarloomError:
    with pytest.raises(aio.AioRpcError) as raised:
        await call.read()
    return status.from_rpc(raised.value)
