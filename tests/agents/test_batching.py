"""Attempts that share a call: who goes with whom and when, and that each has its own inputs, cancel and end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.agents.fakes import TOKEN, WAIT_SECONDS, MemoryStore, NoModels, Stages, Told, assign, given, task
from tests.agents.test_core import Driven, starts
from tests.agents.test_runtime import AGENT, Rig, serving

from starloom.agents.attempts import Attempt
from starloom.agents.batching import Batches
from starloom.agents.core import AgentCore, Instruction, StartTogether, Wake
from starloom.agents.holder import Holder
from starloom.agents.messages import Cancel, Failed, Finished, Report, Started, WasCancelled
from starloom.agents.runtime import Runtime
from starloom.agents.stage import CancelToken, Outputs, Stage, StageCall
from starloom.agents.transfer import Transfer
from starloom.dag.errors import StageError
from starloom.dag.ids import TaskToken
from starloom.dag.kinds import Batch, KindSpec
from starloom.dag.values import Port, PortType

KIND = "t.shared"
BATCH = Batch(max=3, wait_seconds=0.001)
WAIT = 1_000_000


def attempt(stage: str, order: int = 0, kind: str = KIND, **fields: Any) -> Attempt:
    return Attempt(assign(stage, kind, **fields), 0, order)


def together(instructions: Sequence[Instruction]) -> list[list[str]]:
    return [
        [start.assign.task.stage for start in each.starts] for each in instructions if isinstance(each, StartTogether)
    ]


class TestQueue:
    def test_they_go_when_the_first_has_waited_long_enough(self) -> None:
        queue = Batches({KIND: BATCH})
        first, second = attempt("a", 1), attempt("b", 2)
        assert queue.add(first, 10, True) == 10 + WAIT
        assert queue.add(second, 20, True) is None, "it goes with the first"
        assert queue.first(9 + WAIT) is None
        assert queue.first(10 + WAIT) is first
        assert queue.take(first) == [first, second]
        assert queue.first(10 + WAIT) is None

    def test_they_go_at_once_when_there_are_enough_and_the_rest_stay_due(self) -> None:
        queue = Batches({KIND: BATCH})
        found = [attempt(name, order) for order, name in enumerate("abcd")]
        for each in found:
            queue.add(each, 0, True)
        assert queue.take(found[0]) == found[:3]
        assert queue.first(0) is None
        assert queue.first(WAIT) is found[3]

    def test_kinds_and_targets_gather_apart_and_the_most_urgent_goes_first(self) -> None:
        queue = Batches({KIND: BATCH, "t.other": BATCH})
        early, npu, urgent = attempt("a", 1), attempt("b", 2, target="npu"), attempt("c", 3, "t.other", priority=1)
        for each in (early, npu, urgent):
            queue.add(each, 0, True)
        assert queue.first(WAIT) is urgent
        assert queue.take(urgent) == [urgent]
        assert queue.take(early) == [early]
        assert queue.take(npu) == [npu]

    def test_one_that_is_taken_back_leaves_the_others_their_time(self) -> None:
        queue = Batches({KIND: BATCH})
        first, second = attempt("a", 1), attempt("b", 2)
        queue.add(first, 0, True)
        queue.add(second, 5, True)
        queue.remove(first)
        assert queue.first(WAIT) is second
        queue.remove(second)
        queue.remove(second)
        assert queue.add(attempt("c", 3), 50, True) == 50 + WAIT, "they are gone, and the next one begins anew"

    def test_one_that_is_alone_goes_at_once(self) -> None:
        queue = Batches({KIND: BATCH})
        first = attempt("a")
        assert queue.add(first, 10, False) is None
        assert queue.first(10) is first


class TestCore:
    def driven(self, slots: int = 1) -> Driven:
        found = Driven(slots)
        found.core = AgentCore(AGENT, slots, batching={KIND: BATCH})
        return found

    def test_one_waits_for_others_if_there_are_any_and_they_share_one_slot(self) -> None:
        w = self.driven(2)
        assert together(w.tell(assign("a", KIND))) == [["a"]]
        assert w.tell(assign("b", KIND)) == [Wake(WAIT)]
        assert together(w.tell(assign("c", KIND))) == []
        w.now = WAIT
        assert together(w.core.woken(w.now)) == [["b", "c"]]
        assert starts(w.tell(assign("next"))) == []
        assert starts(w.finish(task("b"))) == [], "c still computes in that slot"
        assert starts(w.finish(task("c"))) == ["next"]

    def test_as_many_as_a_call_takes_go_at_once(self) -> None:
        w = self.driven()
        assert together(w.tell(*(assign(name, KIND) for name in "abc"))) == [["a", "b", "c"]]

    def test_those_that_find_no_slot_gather_on(self) -> None:
        w = self.driven()
        w.tell(assign("long"), assign("a", KIND))
        w.now = 5 * WAIT
        assert together(w.core.woken(w.now)) == []
        w.tell(assign("b", KIND))
        assert together(w.finish(task("long"))) == [["a", "b"]]

    def test_the_more_urgent_goes_first_whether_it_shares_a_call_or_not(self) -> None:
        w = self.driven()
        w.tell(assign("long"))
        w.tell(assign("a", KIND), assign("urgent", priority=1))
        w.now = 5 * WAIT
        found = w.finish(task("long"))
        assert (starts(found), together(found)) == (["urgent"], [])
        assert together(w.finish(task("urgent"))) == [["a"]]

    def test_a_cancel_while_they_gather_takes_one_out(self) -> None:
        w = self.driven(2)
        w.tell(assign("running", KIND))
        w.tell(assign("a", KIND), assign("b", KIND))
        w.tell(Cancel(task=task("a")))
        w.now = WAIT
        assert together(w.core.woken(w.now)) == [["b"]]


class Shared(Stage):
    """Passes values on, many in a call; records who shared one, and does to them what the test says."""

    spec = KindSpec(
        name=KIND,
        inputs={"value": Port(PortType.JSON)},
        outputs={"value": Port(PortType.JSON)},
        batch=Batch(max=3, wait_seconds=1.0),
    )

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.alone: list[Any] = []
        self.give: Callable[[StageCall], Outputs | Exception] = lambda call: {"value": call.inputs["value"]}
        self.entered = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.tokens: list[CancelToken] = []

    def run(self, call: StageCall) -> Outputs:
        self.alone.append(call.inputs["value"])
        return {"value": call.inputs["value"]}

    def run_batch(self, calls: Sequence[StageCall]) -> Sequence[Outputs | Exception]:
        self.calls.append([call.inputs["value"] for call in calls])
        calls[0].models.path("m", "f")
        self.entered.set()
        assert self.open.wait(WAIT_SECONDS)
        return [self.give(call) for call in calls]


class Known(NoModels):
    """Models that have every file."""

    def path(self, model: str, file: str) -> str:
        return file


@asynccontextmanager
async def rigged(stage: Shared) -> AsyncIterator[Rig]:
    """A runtime with one slot, in which three attempts share a call."""
    told, holder, store = Told(), Holder(), MemoryStore()
    assert stage.spec.batch is not None
    core = AgentCore(AGENT, 1, batching={KIND: stage.spec.batch})

    def models(cancel: CancelToken, target: str) -> Known:
        stage.tokens.append(cancel)
        return Known()

    async with serving(store) as address, Transfer(TOKEN) as transfer:
        runtime = Runtime(core, Stages(stage), models, holder, transfer, address, told)
        try:
            yield Rig(runtime, told, holder, store)
        finally:
            stage.open.set()
            await runtime.stop()


NAMES = ("a", "b", "c")


def orders(**values: Any) -> list[Any]:
    """An attempt of each of NAMES, each of a job of its own; its value is its name unless another is given."""
    return [
        assign(name, KIND, job=f"job-{name}", inputs=(given("value", PortType.JSON, values.get(name, name)),))
        for name in NAMES
    ]


def of(name: str) -> TaskToken:
    return task(name, job=f"job-{name}")


async def ends(rig: Rig) -> dict[str, Report]:
    return {name: await rig.told.final(of(name)) for name in NAMES}


def given_back(report: Report) -> Any:
    assert isinstance(report, Finished), report
    return report.outputs["value"].inline


def message(report: Report) -> str:
    assert isinstance(report, Failed), report
    return report.error.message


async def test_attempts_of_several_jobs_share_a_call_and_each_gets_its_own_result() -> None:
    stage = Shared()
    async with rigged(stage) as rig:
        rig.send(*orders())
        found = await ends(rig)
        assert {name: given_back(report) for name, report in found.items()} == {
            name: f'"{name}"'.encode() for name in NAMES
        }
        assert stage.calls == [["a", "b", "c"]]
        assert stage.alone == []
        assert all(Started(task=of(name)) in rig.told.reports for name in NAMES)


async def test_one_that_is_alone_runs_by_itself() -> None:
    stage = Shared()
    async with rigged(stage) as rig:
        rig.send(orders()[0])
        assert given_back(await rig.told.final(of("a"))) == b'"a"'
        assert (stage.calls, stage.alone) == ([], ["a"])


async def test_failure_of_one_is_its_own() -> None:
    stage = Shared()
    stage.give = lambda call: StageError("not b") if call.inputs["value"] == "b" else {"value": call.inputs["value"]}
    async with rigged(stage) as rig:
        rig.send(*orders())
        found = await ends(rig)
        assert message(found["b"]) == "not b"
        assert (given_back(found["a"]), given_back(found["c"])) == (b'"a"', b'"c"')


async def test_unfit_inputs_and_outputs_of_one_are_its_own() -> None:
    stage = Shared()
    stage.give = lambda call: {"wrong": 1} if call.inputs["value"] == "c" else {"value": call.inputs["value"]}
    async with rigged(stage) as rig:
        first, _, third = orders()
        rig.send(first, assign("b", KIND, job="job-b"), third)
        found = await ends(rig)
        assert given_back(found["a"]) == b'"a"'
        assert "has no value" in message(found["b"])
        assert "no such output port" in message(found["c"])
        assert stage.calls == [["a", "c"]]


@pytest.mark.parametrize("how", ["raises", "gives too few"])
async def test_a_call_that_fails_as_a_whole_is_made_one_by_one(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(calls: Sequence[StageCall]) -> Sequence[Outputs | Exception]:
        if how == "raises":
            raise SystemExit("the model takes one at a time")
        return [{"value": 1}]

    stage = Shared()
    monkeypatch.setattr(stage, "run_batch", broken)
    async with rigged(stage) as rig:
        rig.send(*orders())
        found = await ends(rig)
        assert [given_back(found[name]) for name in NAMES] == [b'"a"', b'"b"', b'"c"']
        assert stage.alone == ["a", "b", "c"]


async def test_cancel_of_one_leaves_the_call_to_the_others_and_of_all_stops_it() -> None:
    stage = Shared()
    stage.open.clear()
    async with rigged(stage) as rig:
        rig.send(*orders())
        assert await asyncio.to_thread(stage.entered.wait, WAIT_SECONDS)
        rig.send(Cancel(task=of("a")))
        [shared] = stage.tokens
        assert not shared.cancelled
        stage.open.set()
        found = await ends(rig)
        assert isinstance(found["a"], WasCancelled)
        assert (given_back(found["b"]), given_back(found["c"])) == (b'"b"', b'"c"')
        stage.open.clear()
        stage.entered.clear()
        again = [assign(name, KIND, 2, inputs=(given("value", PortType.JSON, name),)) for name in NAMES]
        rig.send(*again)
        assert await asyncio.to_thread(stage.entered.wait, WAIT_SECONDS)
        rig.send(*(Cancel(task=order.task) for order in again))
        assert stage.tokens[-1].cancelled
        stage.open.set()
        assert all([isinstance(await rig.told.final(order.task), WasCancelled) for order in again])
