"""Outcomes that go past gRPC on one host: who is let in, both ends' breaks, what a full socket and faults do to them."""

import asyncio
import os
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio
from tests.agents.fakes import TOKEN, WAIT_SECONDS, assign, task
from tests.agents.peerkit import FakePeer, Node, fake_peer, node, waiting

from starloom.agents import shortcuts, status, wire
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.faultrules import Armed
from starloom.agents.messages import AwaitUnreachable, Outcome
from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.devices.faults import FaultKind
from starloom.v1 import data_pb2, data_pb2_grpc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no abstract names for sockets")

LENGTH = struct.Struct("<I")
ENTERED = LENGTH.pack(0)


def frame(outcome: Outcome) -> bytes:
    data = wire.outcome_to_wire(outcome)
    return LENGTH.pack(len(data)) + data


class Asker:
    """A raw call of Await, and the first message that it got."""

    def __init__(self, call: Any, first: data_pb2.AwaitResponse) -> None:
        self.call = call
        self.name = first.shortcut.name
        self.key = first.shortcut.key

    async def ask(self, *stages: str) -> None:
        await self.call.write(data_pb2.AwaitRequest(asked=[wire.task_to_wire(task(stage)) for stage in stages]))

    async def by_stream(self) -> list[str]:
        """The stages of the next message on the stream."""
        return [wire.outcome_from_wire(each).task.stage for each in (await self.call.read()).outcomes]

    @asynccontextmanager
    async def dialed(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(f"\0{self.name}")
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                yield reader, writer
        finally:
            writer.close()

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[asyncio.StreamReader]:
        async with self.dialed() as (reader, writer):
            writer.write(self.key)
            assert await reader.readexactly(LENGTH.size) == ENTERED
            yield reader


@asynccontextmanager
async def asking(address: str) -> AsyncIterator[Asker]:
    async with aio.insecure_channel(address, options=status.channel_options(address)) as channel:
        stub: Any = data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Await(metadata=status.auth_metadata(TOKEN))
        try:
            yield Asker(call, await call.read())
        finally:
            call.cancel()


async def heard(reader: asyncio.StreamReader) -> Outcome:
    """The next outcome that comes by a shortcut."""
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return wire.outcome_from_wire(await reader.readexactly(size))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def asked(peer: FakePeer) -> None:
    await peer.until(lambda: peer.asked)


async def unreachable(agent: Node) -> str:
    """Why an agent says that it cannot ask."""
    await agent.told.until(lambda: agent.reports(AwaitUnreachable))
    reason: str = agent.reports(AwaitUnreachable)[0].reason
    return reason


async def test_whoever_has_entered_hears_outcomes_by_the_shortcut_and_nothing_by_the_stream() -> None:
    async with node("a") as a, asking(a.address) as asker, asker.entered() as reader:
        a.send(assign("one"), assign("two"))
        await asker.ask("one", "two")
        report = await a.finished(task("one"))
        got = {outcome.task: outcome for outcome in [await heard(reader), await heard(reader)]}
        assert got[task("one")] == Outcome(task=task("one"), outputs=report.outputs)
        assert task("two") in got
        await asker.call.done_writing()
        assert await asker.call.read() is aio.EOF  # type: ignore[attr-defined]


async def test_a_key_that_is_none_or_was_used_lets_nobody_in_and_the_stream_goes_on() -> None:
    async with node("a") as a, asking(a.address) as asker:
        a.send(assign("one"), assign("two"))
        wrong = bytes(shortcuts.KEY_BYTES)
        for sent in (wrong, asker.key[:-1] + b"\0\0", asker.key + b"\0"):
            async with asker.dialed() as (reader, writer):
                writer.write(sent)
                assert await reader.read() == b""
        await asker.ask("one")
        assert await asker.by_stream() == ["one"]
        async with asker.entered() as entered:
            async with asker.dialed() as (reader, writer):
                writer.write(asker.key)
                assert await reader.read() == b""
            await asker.ask("two")
            assert (await heard(entered)).task == task("two")


async def test_one_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)
    async with node("a") as a, asking(a.address) as asker, asker.dialed() as (reader, _):
        assert await reader.read() == b""


async def test_the_shortcut_ends_with_the_stream_and_the_stream_with_the_shortcut() -> None:
    async with node("a") as a:
        async with asking(a.address) as asker, asker.entered() as reader:
            asker.call.cancel()
            assert await reader.read() == b""
        async with asking(a.address) as asker:
            async with asker.entered():
                pass
            with pytest.raises(aio.AioRpcError) as raised:
                await asker.call.read()
            error = status.from_rpc(raised.value)
            assert isinstance(error, Unavailable)
            assert "shortcut" in str(error)


async def test_what_does_not_fit_into_a_full_socket_goes_by_the_stream_and_each_once() -> None:
    async with node("a") as a, asking(a.address) as asker, asker.entered() as reader:
        names = [f"s{number}" for number in range(100)]
        for name in names:
            a.send(assign(name, "basic.make_bytes", params={"size": limits.INLINE_VALUE_BYTES_MAX}))
        for name in names:
            await a.finished(task(name))
        await asker.ask(*names)
        by_stream = await asker.by_stream()
        by_shortcut: list[str] = []

        async def empty_stream() -> None:
            while True:
                by_stream.extend(await asker.by_stream())

        async def empty_shortcut() -> None:
            while True:
                by_shortcut.append((await heard(reader)).task.stage)

        emptying = [asyncio.create_task(empty_stream()), asyncio.create_task(empty_shortcut())]
        await until(lambda: len(by_stream) + len(by_shortcut) >= len(names))
        for each in emptying:
            each.cancel()
        await asyncio.gather(*emptying, return_exceptions=True)
        assert by_shortcut
        assert sorted(by_stream + by_shortcut) == sorted(names)


class FakeShortcut:
    """A shortcut under a test's hand; `come` are the connections that showed the key."""

    def __init__(self, name: str) -> None:
        self.offer = data_pb2.Shortcut(name=name, key=b"k" * shortcuts.KEY_BYTES)
        self.come: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(shortcuts.KEY_BYTES) == self.offer.key
        writer.write(ENTERED)
        self.come.append(writer)

    async def entered(self, number: int = 1) -> asyncio.StreamWriter:
        await until(lambda: len(self.come) == number)
        return self.come[-1]


@asynccontextmanager
async def met(faults: FaultLayer | None = None) -> AsyncIterator[tuple[FakePeer, FakeShortcut, Node]]:
    """A peer under the test's hand with a shortcut, and an agent that may ask it."""
    name = f"starloom-test-{os.urandom(8).hex()}"
    shortcut = FakeShortcut(name)
    server = await asyncio.start_unix_server(shortcut.take, f"\0{name}")
    async with server, fake_peer() as peer, node("a", faults) as a:
        peer.first = data_pb2.AwaitResponse(shortcut=shortcut.offer)
        yield peer, shortcut, a
        for writer in shortcut.come:
            writer.close()


async def test_an_agent_takes_in_what_comes_by_either_way_in_any_pieces() -> None:
    async with met() as (peer, shortcut, a):
        for number in range(4):
            a.send(waiting(peer.address, f"down{number}", f"up{number}"))
        writer = await shortcut.entered()
        await peer.until(lambda: len(peer.asked) == 4)
        data = b"".join(frame(Outcome(task=task(f"up{number}"))) for number in range(3))
        for piece in (data[:2], data[2:9], data[9:-1], data[-1:]):
            writer.write(piece)
            await asyncio.sleep(0.001)
        await peer.answer(Outcome(task=task("up3")))
        for number in range(4):
            await a.finished(task(f"down{number}"))


async def test_a_shortcut_that_breaks_has_all_that_is_open_asked_for_again() -> None:
    async with met() as (peer, shortcut, a):
        a.send(waiting(peer.address, "one", "x"), waiting(peer.address, "two", "y"))
        writer = await shortcut.entered()
        await peer.until(lambda: len(peer.asked) == 2)
        writer.write(frame(Outcome(task=task("x"))))
        await a.finished(task("one"))
        writer.close()
        writer = await shortcut.entered(2)
        await peer.until(lambda: len(peer.asked) == 3)
        assert peer.asked[2] == task("y")
        writer.write(frame(Outcome(task=task("y"))))
        await a.finished(task("two"))
        assert a.reports(AwaitUnreachable) == []


async def test_a_shortcut_that_is_not_there_or_lets_nobody_in_leaves_the_stream() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    name = f"starloom-test-{os.urandom(8).hex()}"
    server = await asyncio.start_unix_server(refuse, f"\0{name}")
    async with server:
        for offered in ("starloom-nobody", name, "x" * 200, "zero\0byte"):
            async with fake_peer() as peer, node("a") as a:
                peer.first = data_pb2.AwaitResponse(shortcut=data_pb2.Shortcut(name=offered, key=b"k"))
                a.send(waiting(peer.address))
                await asked(peer)
                await peer.answer(Outcome(task=task("far")))
                await a.finished(task("down"))


async def test_what_cannot_be_read_is_reported_at_once() -> None:
    nobody = TaskToken(JobId("j"), StageId(""), task().token)
    for data, said in (
        (b"\xc1", "is no readable MessagePack"),
        (wire.outcome_to_wire(Outcome(task=nobody)), "outcome.task"),
        (None, "MESSAGE_BYTES_MAX"),
    ):
        async with met() as (peer, shortcut, a):
            a.send(waiting(peer.address))
            writer = await shortcut.entered()
            length = limits.MESSAGE_BYTES_MAX + 1 if data is None else len(data)
            writer.write(LENGTH.pack(length) + (data or b""))
            assert said in await unreachable(a)


async def test_a_peer_is_believed_by_the_shortcut_only_of_what_it_was_asked_for() -> None:
    async with met() as (peer, shortcut, a), fake_peer() as other:
        a.send(waiting(other.address, "one", "x"), waiting(peer.address, "two", "y"))
        writer = await shortcut.entered()
        await peer.until(lambda: peer.asked)
        writer.write(frame(Outcome(task=task("x"))) + frame(Outcome(task=task("y"))))
        await a.finished(task("two"))
        assert task("one") in a.runtime.core.active


@pytest.mark.parametrize(
    "fault",
    [
        Armed(id="f", what=FaultKind.PARTITION_DATA),
        Armed(id="f", what=FaultKind.LINK_SLOW, delay_seconds=3600.0),
    ],
)
async def test_faults_of_the_path_hold_up_what_comes_by_the_shortcut(fault: Armed) -> None:
    faults = FaultLayer()
    async with met(faults) as (peer, shortcut, a):
        a.send(waiting(peer.address, "one", "x"), waiting(peer.address, "two", "y"))
        writer = await shortcut.entered()
        await peer.until(lambda: len(peer.asked) == 2)
        faults.arm(fault, None)
        writer.write(frame(Outcome(task=task("x"))) + frame(Outcome(task=task("y"))))
        await until(lambda: faults.armed()[0][2])
        assert {task("one"), task("two")} <= set(a.runtime.core.active)
        faults.heal(["f"])
        for stage in ("one", "two"):
            await a.finished(task(stage))


async def test_a_fault_of_another_path_holds_nothing_up() -> None:
    faults = FaultLayer()
    faults.arm(Armed(id="f", what=FaultKind.PARTITION_DATA, peer="other", address="127.0.0.1:1"), None)
    async with met(faults) as (peer, shortcut, a):
        a.send(waiting(peer.address))
        writer = await shortcut.entered()
        await peer.until(lambda: peer.asked)
        writer.write(frame(Outcome(task=task("far"))))
        await a.finished(task("down"))


async def test_another_users_end_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starloom.agents.shortcuts.os.getuid", lambda: 4321)
    async with node("a") as a, node("b") as b:
        a.send(assign("far"))
        b.send(waiting(a.address))
        await b.finished(task("down"))


async def test_where_there_are_no_abstract_names_all_goes_by_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starloom.agents.shortcuts.sys.platform", "other")
    async with node("a") as a, asking(a.address) as asker:
        assert asker.name == ""
        a.send(assign("far"))
        await asker.ask("far")
        assert await asker.by_stream() == ["far"]


async def test_nothing_is_lost_over_breaks_of_shortcuts_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    outlets: list[shortcuts.Outlet] = []
    send = shortcuts.Outlet.send

    def sometimes(outlet: shortcuts.Outlet, data: bytes) -> bool:
        sent = send(outlet, data)
        outlets.append(outlet)
        if len(outlets) % 3 == 0 and outlet._transport is not None:
            outlet._transport.abort()
        return sent

    monkeypatch.setattr(shortcuts.Outlet, "send", sometimes)
    monkeypatch.setattr(limits, "RECONNECT_FIRST_SECONDS", 0.001)
    async with node("a") as a, node("b") as b:
        nodes = (a, b)
        orders = [assign("s0")]
        for number in range(1, 60):
            before = nodes[(number - 1) % 2].address
            orders.append(waiting(before, f"s{number}", f"s{number - 1}"))
        b.send(*orders[1::2])
        a.send(*orders[::2])
        last: TaskToken = orders[-1].task
        await b.finished(last)
        assert len(set(outlets)) > 1
