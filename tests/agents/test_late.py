"""Values that are passed on before they are hashed: who begins when, and that nothing is told that has no digest."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.agents.fakes import TOKEN, WAIT_SECONDS, Stages, Told, assign, made, no_models, reference, task
from tests.agents.test_awaiting import awaits
from tests.agents.test_core import Driven, cancelled, starts

from starloom.agents import earlyvalues, values
from starloom.agents.core import AgentCore, Answer, Fetch, Instruction, Named, Phase, Stop, Tell, Unask
from starloom.agents.dataservice import DataServer
from starloom.agents.execution import idempotency_key
from starloom.agents.holder import Holder
from starloom.agents.late import name_of
from starloom.agents.messages import (
    Assign,
    Await,
    Cancel,
    Command,
    Failed,
    Finished,
    Input,
    Outcome,
    Release,
    Revoke,
    Started,
    WasCancelled,
)
from starloom.agents.neighbours import Neighbours, is_anothers
from starloom.agents.peers import Peers
from starloom.agents.runtime import Runtime
from starloom.agents.sharedmemory import open_arena
from starloom.agents.stage import Outputs, StageCall
from starloom.agents.stages.tensors import MakeTensor
from starloom.agents.transfer import Transfer
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import NotFound
from starloom.dag.facts import Consumed, ErrorInfo, Timing
from starloom.dag.ids import AgentId, Epoch, StageId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.dag.values import Port, PortType, ValueRef

BLOB = reference(PortType.JSON, [1], holder="b", inline=False)
UP = task("up")
SIZE = limits.LATE_DIGEST_BYTES_MIN


def named(ref: ValueRef = BLOB, of: TaskToken = UP) -> ValueRef:
    return ValueRef(type=ref.type, bytes=ref.bytes, digest=name_of(of, "data"), holder=ref.holder)


def early(of: TaskToken = UP, ref: ValueRef = BLOB) -> Outcome:
    return Outcome(task=of, outputs={"data": named(ref, of)}, late=("data",))


def final(of: TaskToken = UP, ref: ValueRef = BLOB) -> Outcome:
    return Outcome(task=of, outputs={"data": ref})


def down(stage: str = "down", kind: str = "basic.noop", *upstreams: str) -> Assign:
    fed = [awaits(name, "b", feeds={f"x{number}": "data"}) for number, name in enumerate(upstreams or ("up",))]
    return assign(stage, kind, awaits=tuple(fed))


def result(driven: Driven, of: TaskToken, **outputs: ValueRef) -> list[Instruction]:
    """What follows where the shell reports a result with what the assignment said when it began."""
    attempt = driven.core._attempts[of]
    read = {item.port: item.consumed for item in attempt.assign.inputs}
    report = Finished(task=of, outputs=outputs, consumed=read, timing=Timing())
    return driven.core.ended(of, report, driven.now)


def begin(driven: Driven, order: Assign, *outcomes: Outcome) -> list[Instruction]:
    found = driven.tell(order)
    for outcome in outcomes:
        found += driven.core.answered(outcome, driven.now)
    found += driven.core.fetched(order.task, driven.now)
    return found + driven.core.began(order.task, driven.now)


def told(instructions: Sequence[Instruction]) -> list[Finished]:
    return [each.report for each in instructions if isinstance(each, Tell) and isinstance(each.report, Finished)]


def digests(report: Finished) -> dict[str, str]:
    return {port: read.digest for port, read in report.consumed.items()}


def test_what_awaits_a_value_begins_before_its_digest_and_is_told_after_it() -> None:
    driven = Driven()
    order = down()
    found = begin(driven, order, early())
    assert starts(found) == ["down"]
    (fetch,) = [each for each in found if isinstance(each, Fetch)]
    assert fetch.assign.inputs[0].late
    assert result(driven, order.task) == []
    assert driven.core.phase(order.task) is Phase.SETTLING
    assert not [each for each in found if isinstance(each, Unask)]
    (report,) = told(driven.core.answered(final(), 1))
    assert digests(report) == {"x0": BLOB.digest}
    assert driven.core.idle


def test_a_result_that_waits_for_digests_has_no_slot() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    assert driven.tell(assign("other")) == []
    assert starts(result(driven, order.task)) == ["other"]


def test_a_digest_that_comes_while_the_stage_runs_is_given_to_it_and_its_report_waits_for_nothing() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    (given,) = driven.core.answered(final(), 1)
    assert isinstance(given, Named)
    assert not given.assign.inputs[0].late
    (report,) = told(result(driven, order.task))
    assert digests(report) == {"x0": BLOB.digest}


def test_a_report_that_was_made_before_the_digest_came_names_it_all_the_same() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    driven.core.computed(order.task, 1)
    made_before = {"x0": Consumed(StageId("up"), UP.token, named().digest)}
    driven.core.answered(final(), 2)
    report = Finished(task=order.task, outputs={}, consumed=made_before, timing=Timing())
    (ended,) = told(driven.core.ended(order.task, report, 3))
    assert digests(ended) == {"x0": BLOB.digest}


def test_a_digest_that_comes_first_is_enough_and_what_is_early_then_changes_nothing() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, final(), early())
    (report,) = told(result(driven, order.task))
    assert digests(report) == {"x0": BLOB.digest}


def test_all_digests_are_waited_for_whichever_comes_first() -> None:
    for order_of in (("one", "two"), ("two", "one")):
        driven = Driven()
        order = down("down", "basic.noop", "one", "two")
        begin(driven, order, early(task("one")), early(task("two")))
        result(driven, order.task)
        first, second = (task(name) for name in order_of)
        assert told(driven.core.answered(final(first), 1)) == []
        (report,) = told(driven.core.answered(final(second), 1))
        assert digests(report) == {"x0": BLOB.digest, "x1": BLOB.digest}


def test_one_that_still_awaits_another_begins_with_the_digest_if_it_has_come_by_then() -> None:
    driven = Driven()
    order = down("down", "basic.noop", "one", "two")
    driven.tell(order)
    driven.core.answered(early(task("one")), 0)
    driven.core.answered(final(task("one")), 0)
    found = driven.core.answered(final(task("two")), 0)
    (fetch,) = [each for each in found if isinstance(each, Fetch)]
    assert [item.late for item in fetch.assign.inputs] == [False, False]


def test_several_consumers_are_all_told_once_the_digest_is_there() -> None:
    driven = Driven(slots=2)
    orders = [down("one"), down("two")]
    driven.tell(*orders)
    driven.core.answered(early(), 0)
    for order in orders:
        driven.core.fetched(order.task, 0)
        driven.core.began(order.task, 0)
        result(driven, order.task)
    assert [report.task.stage for report in told(driven.core.answered(final(), 1))] == ["one", "two"]


def test_streaming_kinds_wait_for_the_digest() -> None:
    driven = Driven(streaming=frozenset({"flows"}))
    order = down("down", "flows")
    driven.tell(order)
    assert driven.core.answered(early(), 0) == []
    assert [type(each) for each in driven.core.answered(final(), 0)] == [Fetch]


def test_a_cancel_wins_over_a_result_that_waits_for_a_digest_and_nobody_is_asked_any_more() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    result(driven, order.task)
    found = driven.tell(Cancel(task=order.task))
    assert cancelled(order.task) in found
    assert Unask(UP) in found
    assert driven.core.answered(final(), 1) == []


def test_a_result_that_waits_for_a_digest_has_started_and_is_not_given_back() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    result(driven, order.task)
    assert driven.tell(Revoke(task=order.task)) == [Tell(Started(task=order.task))]
    assert len(told(driven.core.answered(final(), 1))) == 1


def test_a_release_forgets_what_waits_for_a_digest() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    result(driven, order.task)
    assert Unask(UP) in driven.tell(Release(job=UP.job))
    assert driven.core.idle
    assert driven.core.answered(final(), 1) == []


def test_who_asks_is_told_early_and_told_again() -> None:
    driven = Driven()
    driven.tell(assign("up"))
    driven.core.subscribed(1, UP)
    driven.core.began(UP, 0)
    assert driven.core.made(UP, early().outputs, (), ("data",), 1) == [Answer(1, early())]
    assert driven.core.subscribed(2, UP) == [Answer(2, early())]
    found = result(driven, UP, data=BLOB)
    assert [each for each in found if isinstance(each, Answer)] == [Answer(1, final()), Answer(2, final())]


def test_a_chain_on_one_agent_begins_early_and_is_told_in_the_order_of_its_data() -> None:
    driven = Driven(slots=3)
    names = ["up", "s1", "s2"]
    orders = [assign("up")]
    own = ValueRef(type=BLOB.type, bytes=BLOB.bytes, digest=BLOB.digest, holder="a")
    for before, name in pairwise(names):
        orders.append(assign(name, awaits=(awaits(before, feeds={"x": "data"}),)))
    driven.tell(*orders)
    for order in orders:
        driven.core.began(order.task, 0)
        driven.core.made(order.task, early(order.task, own).outputs, (), ("data",), 1)
    assert told(result(driven, task("s2"), data=own)) == []
    assert told(result(driven, task("s1"), data=own)) == []
    found = told(result(driven, UP, data=own))
    assert [report.task.stage for report in found] == names
    assert [digests(report) for report in found] == [{}, {"x": own.digest}, {"x": own.digest}]


def test_what_read_of_an_attempt_that_fails_after_all_is_not_told_and_waits_to_be_taken_back() -> None:
    driven = Driven(slots=2)
    order = assign("down", awaits=(awaits(feeds={"x": "data"}),))
    driven.tell(assign("up"), order)
    driven.core.began(UP, 0)
    driven.core.made(UP, early(ref=ValueRef(type=BLOB.type, bytes=3, digest="", holder="a")).outputs, (), ("data",), 1)
    driven.core.began(order.task, 1)
    result(driven, order.task)
    failed = Failed(task=UP, error=ErrorInfo(message="no"))
    assert driven.core.ended(UP, failed, 2) == [Tell(failed)]
    assert driven.core.phase(order.task) is Phase.SETTLING
    assert cancelled(order.task) in driven.tell(Cancel(task=order.task))


def test_one_that_is_cancelled_while_it_is_hashed_gives_its_readers_the_digest_and_ends_then() -> None:
    driven = Driven(slots=2)
    own = ValueRef(type=BLOB.type, bytes=BLOB.bytes, digest=BLOB.digest, holder="a")
    order = assign("down", awaits=(awaits(feeds={"x": "data"}),))
    driven.tell(assign("up"), order)
    driven.core.subscribed(1, UP)
    driven.core.began(UP, 0)
    driven.core.made(UP, early(ref=own).outputs, (), ("data",), 1)
    driven.core.began(order.task, 1)
    result(driven, order.task)
    assert driven.tell(Cancel(task=UP)) == []
    found = result(driven, UP, data=own)
    assert Answer(1, final(ref=own)) in found
    assert [digests(report) for report in told(found)] == [{"x": own.digest}]
    assert cancelled(UP) in found
    assert driven.core.idle


def test_one_that_is_cancelled_while_it_waits_for_a_digest_gives_its_readers_its_own() -> None:
    driven = Driven(slots=2)
    own = ValueRef(type=BLOB.type, bytes=BLOB.bytes, digest=BLOB.digest, holder="a")
    order, reader = down(), assign("reader", awaits=(awaits("down", feeds={"x": "data"}),))
    begin(driven, order, early())
    driven.tell(reader)
    driven.core.made(order.task, early(order.task, own).outputs, (), ("data",), 1)
    driven.core.began(reader.task, 1)
    result(driven, order.task, data=own)
    result(driven, reader.task)
    found = driven.tell(Cancel(task=order.task))
    assert cancelled(order.task) in found
    assert [digests(report) for report in told(found)] == [{"x": own.digest}]


def test_a_release_stops_the_hashing() -> None:
    driven = Driven()
    driven.tell(assign("up"))
    driven.core.began(UP, 0)
    driven.core.made(UP, early().outputs, (), ("data",), 1)
    assert Stop(UP) in driven.tell(Release(job=UP.job))
    assert driven.core.ended(UP, WasCancelled(task=UP), 2) == []


def test_a_result_that_was_published_and_waits_for_a_digest_gives_its_slot_back_once() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    driven.tell(assign("one"), assign("two"))
    assert starts(driven.core.computed(order.task, limits.AGENT_CHEAP_NANOS)) == ["one"]
    assert result(driven, order.task) == []
    assert len(told(driven.core.answered(final(), 1))) == 1
    assert starts(driven.finish(task("one"))) == ["two"]


def test_a_digest_that_was_found_here_is_for_those_that_have_read_the_value_and_the_others_go_on_waiting() -> None:
    driven = Driven(streaming=frozenset({"flows"}))
    order, other = down(), down("other", "flows")
    driven.tell(other)
    begin(driven, order, early())
    result(driven, order.task)
    (report,) = told(found := driven.core.hashed(final(), 1))
    assert digests(report) == {"x0": BLOB.digest}
    assert Unask(UP) not in found
    assert driven.core.phase(other.task) is Phase.WAITING
    assert [type(each) for each in driven.core.answered(final(), 2)] == [Fetch]


def test_nobody_is_asked_any_more_once_the_digest_was_found_here_by_all_that_wanted_it() -> None:
    driven = Driven()
    order = down()
    begin(driven, order, early())
    assert Unask(UP) in driven.core.hashed(final(), 1)
    assert driven.core.hashed(final(), 2) == []


def test_a_value_that_is_renamed_is_counted_once_and_one_of_a_released_job_not_at_all() -> None:
    holder = Holder()
    holder.keep(UP.job, "name", b"bytes")
    holder.rename(UP.job, "name", "digest")
    assert (holder.has(UP.job, "name"), holder.get(UP.job, "digest"), holder.held_bytes) == (False, b"bytes", 5)
    assert holder.get(UP.job, "name") == b"bytes"
    holder.release(UP.job)
    with pytest.raises(NotFound):
        holder.get(UP.job, "name")
    holder.rename(UP.job, "digest", "other")
    assert holder.held_bytes == 0


class Hash:
    """In the place of the hashing of late values: of those of at most `most` bytes it waits, and fails if it is to.

    With `makers` only who made a value waits.
    """

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.error: Exception | None = None
        self.most = 1 << 40
        self.makers = False

    async def __call__(self, data: Data) -> str:
        if len(data) <= self.most and not (self.makers and is_anothers(data)):
            await self.open.wait()
        if self.error is not None:
            raise self.error
        return values.digest(data)


KEYS: list[str] = []
SEEN: list[np.ndarray[Any, Any]] = []


def _keyed(call: StageCall) -> Outputs:
    KEYS.append(call.key)
    return {"value": call.inputs["value"][:1]}


def _seen(call: StageCall) -> Outputs:
    SEEN.append(call.inputs["value"])
    return {"value": call.inputs["value"][:1]}


def _doubled(call: StageCall) -> Outputs:
    return {"value": np.tile(call.inputs["value"], 2)}


_PORTS: dict[str, Any] = {"inputs": {"value": Port(PortType.TENSOR)}, "outputs": {"value": Port(PortType.TENSOR)}}
KEYED = made(KindSpec(name="test.keyed", **_PORTS), _keyed)
DOUBLE = made(KindSpec(name="test.double", **_PORTS), _doubled)
SEE = made(KindSpec(name="test.see", **_PORTS), _seen)


class Node:
    """An agent with an arena, without a session."""

    def __init__(self, name: str, runtime: Runtime, holder: Holder, told: Told, address: str, peers: Peers) -> None:
        self.name = name
        self.runtime = runtime
        self.holder = holder
        self.told = told
        self.address = address
        self.peers = peers

    def send(self, *commands: Command) -> None:
        self.runtime.commands(commands, Epoch(1))

    def break_off(self) -> None:
        """Ends the streams on which others ask this agent; they ask again."""
        for subscriber in self.peers._subscribers.values():
            subscriber.left()

    def tells(self, kind: type[Any], of: TaskToken) -> bool:
        return any(isinstance(report, kind) and report.task == of for report in self.told.reports)


@asynccontextmanager
async def node(name: str, folder: Path) -> AsyncIterator[Node]:
    arena = open_arena(256 * 1024 * 1024, folder)
    assert arena is not None
    reports, holder, peers = Told(), Holder(arena=arena), Peers(TOKEN)
    data = DataServer(holder, TOKEN, arena=arena, awaits=peers)
    address = await data.start()
    async with Transfer(TOKEN) as transfer:
        runtime = Runtime(
            AgentCore(AgentId(name), 1),
            Stages(MakeTensor(), KEYED, DOUBLE, SEE),
            no_models,
            holder,
            transfer,
            "127.0.0.1:1",
            reports,
            Neighbours(transfer, folder=folder),
            peers,
        )
        try:
            yield Node(name, runtime, holder, reports, address, peers)
        finally:
            await runtime.stop()
            await data.stop()
            arena.close()


def reads(upstream: str, of: Node, stage: str, kind: str = "test.see") -> Assign:
    awaited = Await(
        upstream=StageId(upstream),
        token=task(upstream).token,
        agent=AgentId(of.name),
        address=of.address,
        feeds={"value": "value"},
    )
    return assign(stage, kind, awaits=(awaited,))


def makes(stage: str) -> Assign:
    return assign(stage, "basic.make_tensor", params={"size": SIZE})


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        # What is waited for tells nobody.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def met(a: Node, b: Node) -> None:
    """Both have read of each other: what is told early can be read from then on, and comes by the shortcut."""
    a.send(makes("meet"))
    b.send(reads("meet", a, "met"))
    await b.told.final(task("met"))


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Hash:
    found = Hash()
    found.open.set()
    monkeypatch.setattr(earlyvalues, "_digest", found)
    KEYS.clear()
    SEEN.clear()
    return found


async def finished(node: Node, of: TaskToken) -> Finished:
    report = await node.told.final(of)
    assert isinstance(report, Finished), report
    return report


async def test_a_stage_on_another_agent_has_read_a_value_before_it_is_hashed(tmp_path: Path, hashing: Hash) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        b.send(reads("up", a, "down"))
        a.send(makes("up"))
        await until(lambda: len(SEEN) == 2)
        await until(lambda: b.runtime.core.phase(task("down")) is Phase.SETTLING)
        assert not a.tells(Finished, UP)
        assert not b.tells(Finished, task("down"))
        hashing.open.set()
        made_, read = await finished(a, UP), await finished(b, task("down"))
        assert made_.outputs["value"].digest == values.digest(a.holder.get(UP.job, made_.outputs["value"].digest))
        assert read.consumed["value"].digest == made_.outputs["value"].digest
        assert not b.runtime._outcomes.early_values._told


async def test_who_dies_before_the_digest_leaves_what_it_told_of_and_its_reader_finds_the_digest(
    tmp_path: Path, hashing: Hash
) -> None:
    async with node("b", tmp_path) as b:
        async with node("a", tmp_path) as a:
            await met(a, b)
            hashing.open.clear()
            b.send(reads("up", a, "down"))
            a.send(makes("up"))
            await until(lambda: b.runtime.core.phase(task("down")) is Phase.SETTLING)
        assert not a.tells(Finished, UP)
        await asyncio.sleep(0)
        assert not b.tells(Finished, task("down"))
        hashing.open.set()
        read = await finished(b, task("down"))
        assert read.consumed["value"].digest == values.digest(SEEN[-1].data)


async def test_what_read_of_one_that_died_is_cancelled_as_ever(tmp_path: Path, hashing: Hash) -> None:
    async with node("b", tmp_path) as b:
        async with node("a", tmp_path) as a:
            await met(a, b)
            hashing.open.clear()
            b.send(reads("up", a, "down"))
            a.send(makes("up"))
            await until(lambda: b.runtime.core.phase(task("down")) is Phase.SETTLING)
        b.send(Cancel(task=task("down")))
        assert isinstance(await b.told.final(task("down")), WasCancelled)
        assert not b.runtime._outcomes.early_values._told


async def test_a_hash_that_fails_fails_its_attempt_and_its_reader_is_told_of_by_nobody(
    tmp_path: Path, hashing: Hash
) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        hashing.error = MemoryError("no room")
        b.send(reads("up", a, "down"))
        a.send(makes("up"))
        await until(lambda: b.runtime.core.phase(task("down")) is Phase.SETTLING)
        hashing.open.set()
        assert isinstance(await a.told.final(UP), Failed)
        b.send(Revoke(task=task("down")), Cancel(task=task("down")))
        assert isinstance(await b.told.final(task("down")), WasCancelled)


async def test_what_begins_with_a_name_whose_digest_came_since_finds_the_value(tmp_path: Path, hashing: Hash) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        # What `double` gives is hashed at once, but not told of before what it read is hashed.
        hashing.most = SIZE + limits.AGENT_ARENA_VALUE_BYTES_MIN
        gate = msgspec.structs.replace(reads("gate", a, "down").awaits[0], feeds={})
        b.send(reads("up", a, "double", "test.double"))
        b.send(msgspec.structs.replace(down_ := reads("double", b, "down"), awaits=(*down_.awaits, gate)))
        a.send(makes("up"))
        await until(lambda: b.holder.held_bytes >= 2 * SIZE and not b.runtime._works)
        assert b.runtime.core.phase(task("double")) is Phase.SETTLING
        a.send(makes("gate"))
        await until(lambda: b.runtime.core.phase(task("down")) is Phase.SETTLING)
        assert SEEN[-1].nbytes > hashing.most
        hashing.open.set()
        value = (await finished(b, task("double"))).outputs["value"]
        assert (await finished(b, task("down"))).consumed["value"].digest == value.digest


async def test_what_still_waits_when_the_stream_breaks_has_the_value_that_its_maker_has_not_hashed_yet(
    tmp_path: Path, hashing: Hash
) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        hashing.makers = True
        gate = msgspec.structs.replace(reads("gate", a, "down").awaits[0], feeds={})
        b.send(msgspec.structs.replace(down_ := reads("up", a, "down"), awaits=(*down_.awaits, gate)))
        # Other bytes than those that both met by, which have their digest.
        a.send(assign("up", "basic.make_tensor", params={"size": 2 * SIZE}))
        await until(lambda: b.runtime.core._awaiting.owes(task("down")))
        a.break_off()
        await until(lambda: not b.runtime.core._awaiting.owes(task("down")))
        a.send(assign("gate", "basic.make_tensor", params={"size": 8}))
        read = await finished(b, task("down"))
        assert not a.tells(Finished, UP)
        assert read.consumed["value"].digest == values.digest(SEEN[-1].data)
        hashing.open.set()
        assert (await finished(a, UP)).outputs["value"].digest == read.consumed["value"].digest
        b.send(Release(job=UP.job))
        assert not b.runtime._outcomes.early_values._kept


async def test_where_no_thread_can_be_begun_a_value_is_hashed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def submit(self, *_: Any) -> Any:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(earlyvalues, "_hashers", Full())
    assert await earlyvalues._digest(b"bytes") == values.digest(b"bytes")


async def test_a_stage_that_asks_for_its_key_waits_for_the_digest(tmp_path: Path, hashing: Hash) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        b.send(reads("up", a, "down", "test.keyed"))
        a.send(makes("up"))
        await until(lambda: b.tells(Started, task("down")))
        hashing.open.set()
        ref = (await finished(a, UP)).outputs["value"]
        await finished(b, task("down"))
        given = Input(port="value", ref=ref, consumed=Consumed(StageId("up"), UP.token, ref.digest))
        assert [idempotency_key(assign("down", "test.keyed", inputs=(given,)))] == KEYS


async def test_a_stage_that_waits_for_its_key_is_cancelled(tmp_path: Path, hashing: Hash) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        b.send(reads("up", a, "down", "test.keyed"))
        a.send(makes("up"))
        await until(lambda: b.tells(Started, task("down")))
        b.send(Cancel(task=task("down")))
        assert isinstance(await b.told.final(task("down")), WasCancelled)
        assert KEYS == []
        hashing.open.set()


async def test_a_block_stays_until_its_readers_are_done_though_the_job_is_over(tmp_path: Path, hashing: Hash) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        await met(a, b)
        hashing.open.clear()
        b.send(reads("up", a, "down"))
        a.send(makes("up"))
        await until(lambda: len(SEEN) == 2)
        before = SEEN[-1].tobytes()
        a.send(Release(job=UP.job))
        await until(lambda: a.runtime.core.idle)
        for number in range(3):
            a.send(assign(f"n{number}", "basic.make_tensor", job="other", params={"size": SIZE}))
        hashing.open.set()
        for number in range(3):
            await a.told.final(task(f"n{number}", job="other"))
        assert SEEN[-1].tobytes() == before


async def test_without_a_shortcut_or_an_arena_that_was_met_the_digest_is_waited_for(
    tmp_path: Path, hashing: Hash
) -> None:
    async with node("a", tmp_path) as a, node("b", tmp_path) as b:
        hashing.open.clear()
        b.send(reads("up", a, "down"))
        a.send(makes("up"))
        await until(lambda: a.runtime.core.phase(UP) is Phase.SETTLING)
        assert b.runtime.core.phase(task("down")) is Phase.WAITING
        hashing.open.set()
        read = await finished(b, task("down"))
        assert read.consumed["value"].digest == (await finished(a, UP)).outputs["value"].digest
