"""Agents that ask each other for their attempts, over real streams: answers, breaks, silence, and who is let in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio
from tests.agents.fakes import TOKEN, WAIT_SECONDS, Stages, Told, assign, no_models, task

from starloom.agents import status, wire
from starloom.agents.core import AgentCore, Ask, Phase
from starloom.agents.dataservice import DataServer
from starloom.agents.holder import Holder
from starloom.agents.messages import (
    Assign,
    Await,
    AwaitUnreachable,
    Cancel,
    Command,
    Finished,
    Outcome,
    Release,
    Report,
    Resolve,
)
from starloom.agents.peerasks import PeerAsks
from starloom.agents.peers import Peers
from starloom.agents.runtime import Runtime
from starloom.agents.stages.basic import Echo, MakeBytes, Noop
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, StarloomError, Unauthenticated
from starloom.dag.ids import AgentId, Epoch, JobId, StageId, TaskToken
from starloom.v1 import data_pb2, data_pb2_grpc

SECOND = 10**9


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
async def node(name: str) -> AsyncIterator[Node]:
    told, holder, peers = Told(), Holder(), Peers(TOKEN)
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
        await context.write(data_pb2.AwaitResponse())
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


async def test_a_chain_goes_to_and_fro_between_two_agents_without_an_orchestrator() -> None:
    async with node("a") as a, node("b") as b:
        nodes, orders = (a, b), [assign("s0")]
        for number in range(1, 40):
            before = nodes[(number - 1) % 2]
            orders.append(
                assign(f"s{number}", awaits=(awaits(f"s{number - 1}", before.address, "ab"[(number - 1) % 2]),))
            )
        b.send(*orders[1::2])
        a.send(*orders[::2])
        await b.finished(orders[-1].task)
        done = [report.task.stage for each in nodes for report in each.reports(Finished)]
        assert sorted(done) == sorted(order.task.stage for order in orders)


async def test_values_come_with_the_answer_or_are_fetched_from_who_gave_it() -> None:
    async with node("a") as a, node("b") as b:
        size = limits.INLINE_VALUE_BYTES_MAX + 1
        a.send(assign("small", "basic.make_bytes", params={"size": 3}))
        a.send(assign("large", "basic.make_bytes", params={"size": size}))
        feeds = {"data": "data"}
        for name in ("small", "large"):
            b.send(assign(f"of-{name}", "basic.echo", awaits=(awaits(name, a.address, "a", feeds=feeds),)))
        for name in ("small", "large"):
            report = await b.finished(task(f"of-{name}"))
            (consumed,) = report.consumed.values()
            made = await a.finished(task(name))
            assert (consumed.upstream, consumed.token) == (name, task(name).token)
            assert consumed.digest == made.outputs["data"].digest == report.outputs["data"].digest


async def test_an_attempt_that_ended_long_ago_is_answered_for_until_its_job_is_released() -> None:
    async with node("a") as a, node("b") as b:
        a.send(assign("far"), assign("other"))
        await a.finished(task("far"))
        b.send(waiting(a.address))
        await b.finished(task("down"))
        a.send(Release(job=JobId("j")))
        b.send(waiting(a.address, "late"))
        b.send(waiting(a.address, "fresh", "again"))
        a.send(assign("again"))
        await b.finished(task("fresh"))
        assert task("late") in b.runtime.core.active, "its question came before the one that was answered"


async def test_what_is_open_is_asked_for_again_on_a_new_stream() -> None:
    async with fake_peer() as peer, node("a") as a:
        a.send(waiting(peer.address, "one", "x"), waiting(peer.address, "two", "y"))
        await peer.until(lambda: len(peer.asked) == 2)
        await peer.answer(Outcome(task=task("x")))
        await a.finished(task("one"))
        await peer.stop()
        await peer.start()
        await peer.until(lambda: len(peer.asked) == 3)
        assert peer.asked == [task("x"), task("y"), task("y")]
        await peer.answer(Outcome(task=task("y")))
        await a.finished(task("two"))
        assert a.reports(AwaitUnreachable) == []


async def test_what_was_taken_back_is_told_to_the_peer_and_not_asked_for_again() -> None:
    async with fake_peer() as peer, node("a") as a:
        a.send(waiting(peer.address, "one", "x"), waiting(peer.address, "two", "y"))
        await peer.until(lambda: len(peer.asked) == 2)
        a.send(Cancel(task=task("one")))
        await peer.until(lambda: peer.unasked)
        assert peer.unasked == [task("x")]
        await peer.stop()
        await peer.start()
        await peer.until(lambda: len(peer.asked) == 3)
        assert peer.asked[2] == task("y")


async def test_a_peer_is_believed_only_of_what_it_was_asked_for() -> None:
    async with fake_peer() as holder, fake_peer() as liar, node("a") as a:
        a.send(waiting(holder.address, "one", "x"), waiting(liar.address, "two", "y"))
        await holder.until(lambda: holder.asked)
        await liar.until(lambda: liar.asked)
        await liar.answer(Outcome(task=task("x")), Outcome(task=task("y")))
        await a.finished(task("two"))
        assert a.runtime.core.phase(task("one")) is Phase.WAITING
        await holder.answer(Outcome(task=task("x")))
        await a.finished(task("one"))


async def test_a_peer_whose_answer_cannot_be_read_is_reported_at_once() -> None:
    async with fake_peer() as peer, node("a") as a:
        order = waiting(peer.address)
        a.send(order)
        await peer.until(lambda: peer.asked)
        await peer.write(data_pb2.AwaitResponse(outcomes=[data_pb2.Outcome()]))
        await a.told.until(lambda: a.reports(AwaitUnreachable))
        assert "outcomes.0" in a.reports(AwaitUnreachable)[0].reason
        a.send(Resolve(task=order.task, upstream=StageId("far"), token=task("far").token))
        await a.finished(order.task)


async def test_a_peer_that_nobody_reaches_is_reported_and_the_orchestrators_word_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)
    async with fake_peer() as peer, node("a") as a:
        await peer.stop()
        order = waiting(peer.address)
        a.send(order)
        await a.told.until(lambda: a.reports(AwaitUnreachable))
        (report,) = a.reports(AwaitUnreachable)
        assert (report.task, report.upstreams) == (order.task, ("far",))
        assert peer.address in report.reason
        a.send(Resolve(task=order.task, upstream=StageId("far"), token=task("far").token))
        await a.finished(order.task)


async def test_a_peer_that_accepts_and_says_nothing_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, node("a") as a:
        a.send(waiting(f"{host}:{port}"))
        await a.told.until(lambda: a.reports(AwaitUnreachable))
        assert "INPUT_PATIENCE_SECONDS" in a.reports(AwaitUnreachable)[0].reason


async def test_a_peer_that_refuses_the_token_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)
    async with fake_peer() as peer, node("a") as a:
        await peer.stop()
        peer.token = "another"
        await peer.start()
        a.send(waiting(peer.address))
        await a.told.until(lambda: a.reports(AwaitUnreachable))
        assert "no valid token" in a.reports(AwaitUnreachable)[0].reason


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


async def test_the_call_is_refused_without_the_token() -> None:
    async with node("a") as a, calling(a.address, "wrong", welcomed=False) as call:
        assert isinstance(await error_of(call), Unauthenticated)


async def test_a_malformed_question_ends_the_call_and_says_where() -> None:
    async with node("a") as a, calling(a.address) as call:
        await call.write(data_pb2.AwaitRequest(asked=[wire.task_to_wire(task()), data_pb2.AwaitRequest().asked.add()]))
        error = await error_of(call)
        assert isinstance(error, InvalidInput)
        assert "asked.1" in str(error)


async def test_a_data_service_without_attempts_says_so() -> None:
    server = DataServer(Holder(), TOKEN)
    address = await server.start()
    try:
        async with calling(address, welcomed=False) as call:
            assert "has no attempts" in str(await error_of(call))
    finally:
        await server.stop()


async def test_an_asker_that_ends_its_side_gets_what_is_due_and_the_end() -> None:
    async with node("a") as a, calling(a.address) as call:
        a.send(assign("far"))
        report = await a.finished(task("far"))
        await call.write(data_pb2.AwaitRequest(asked=[wire.task_to_wire(task("far"))]))
        await call.done_writing()
        (outcome,) = (await call.read()).outcomes
        assert wire.outcome_from_wire(outcome) == Outcome(task=task("far"), outputs=report.outputs)
        assert await call.read() is aio.EOF  # type: ignore[attr-defined]


async def test_large_answers_go_in_several_messages() -> None:
    async with node("a") as a, calling(a.address) as call:
        size = limits.INLINE_VALUE_BYTES_MAX
        count = 2 * limits.SESSION_FRAME_BYTES_MAX // size
        asked = [wire.task_to_wire(task(f"s{number}")) for number in range(count)]
        for number in range(count):
            a.send(assign(f"s{number}", "basic.make_bytes", params={"size": size}))
        for number in range(count):
            await a.finished(task(f"s{number}"))
        await call.write(data_pb2.AwaitRequest(asked=asked))
        got: list[str] = []
        while len(got) < count:
            message = await call.read()
            assert message.ByteSize() <= 1.1 * limits.SESSION_FRAME_BYTES_MAX
            got += [outcome.task.stage for outcome in message.outcomes]
        assert sorted(got) == sorted(f"s{number}" for number in range(count))


def test_asks_are_reported_once_an_outage() -> None:
    asks = PeerAsks()
    patience = round(limits.INPUT_PATIENCE_SECONDS * SECOND)
    asks.ask(task("x"))
    asks.dialing(5)
    assert asks.failed(4 + patience) == []
    assert asks.failed(5 + patience) == [task("x")]
    asks.ask(task("y"))
    assert asks.failed(6 + patience) == [task("y")]
    asks.close(task("y"))
    asks.connected()
    assert asks.open == (task("x"),)
    assert asks.failed(9 * patience) == []
    assert asks.failed(10 * patience) == [task("x")]
    asks.connected()
    assert asks.failed(11 * patience, at_once=True) == [task("x")]


def test_an_ask_has_the_address_that_its_await_names() -> None:
    core = AgentCore(AgentId("a"), 1)
    assert core.commands([waiting("b:7")], Epoch(1), 0) == [Ask(task("far"), AgentId("other"), "b:7")]
