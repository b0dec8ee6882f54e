"""Agents that ask each other for their attempts, over real streams: answers, breaks, silence, and who is let in."""

import asyncio

import pytest
from grpc import aio
from tests.agents.fakes import TOKEN, WAIT_SECONDS, assign, task
from tests.agents.peerkit import awaits, calling, error_of, fake_peer, node, waiting

from starloom.agents import wire
from starloom.agents.core import AgentCore, Ask, Phase
from starloom.agents.dataservice import DataServer
from starloom.agents.holder import Holder
from starloom.agents.messages import AwaitUnreachable, Cancel, Finished, Outcome, Release, Resolve
from starloom.agents.peerasks import PeerAsks
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Unauthenticated
from starloom.dag.ids import AgentId, Epoch, JobId, StageId
from starloom.v1 import data_pb2

SECOND = 10**9


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


async def test_what_is_taken_back_and_awaited_by_another_at_once_stays_asked_for() -> None:
    async with fake_peer() as peer, node("a") as a:
        a.send(waiting(peer.address, "one", "x"))
        await peer.until(lambda: peer.asked)
        a.send(Cancel(task=task("one")), waiting(peer.address, "two", "x"), waiting(peer.address, "three", "y"))
        await peer.until(lambda: task("y") in peer.asked)
        assert peer.unasked == []
        await peer.answer(Outcome(task=task("x")))
        await a.finished(task("two"))


async def test_what_is_asked_for_and_taken_back_at_once_is_not_asked_for() -> None:
    async with fake_peer() as peer, node("a") as a:
        a.send(waiting(peer.address, "one", "x"))
        await peer.until(lambda: peer.asked)
        a.send(waiting(peer.address, "two", "y"), Cancel(task=task("two")), waiting(peer.address, "three", "z"))
        await peer.until(lambda: task("z") in peer.asked)
        assert peer.asked == [task("x"), task("z")]


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
        await peer.write(data_pb2.AwaitResponse(outcomes=[b"\xc1"]))
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
    # Reported at its first failure, however long a busy machine takes to refuse it.
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(PeerAsks, "failed", lambda asks, now, at_once: asks.open)
    async with fake_peer() as peer, node("a") as a:
        await peer.stop()
        peer.token = "another"
        await peer.start()
        a.send(waiting(peer.address))
        await a.told.until(lambda: a.reports(AwaitUnreachable))
        assert "no valid token" in a.reports(AwaitUnreachable)[0].reason


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
            got += [wire.outcome_from_wire(outcome).task.stage for outcome in message.outcomes]
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
