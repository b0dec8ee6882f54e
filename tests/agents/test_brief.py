"""Attempts of brief kinds: on the event loop while they keep what they promise, with the workers when they don't."""

import asyncio
import threading
from itertools import pairwise
from typing import Any

import pytest
from tests.agents.fakes import WAIT_SECONDS, assign, given, made, task
from tests.agents.test_runtime import BIG, Gate, failed, finished, rigged

from starloom.agents.brief import BriefKinds, BriefRuns
from starloom.agents.messages import Cancel, Failed, Finished, Started, WasCancelled
from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.errors import StageError
from starloom.dag.kinds import KindSpec
from starloom.dag.values import Port, PortType

LATE = limits.AGENT_CHEAP_NANOS
SPEC = KindSpec(
    name="t.brief",
    brief=True,
    inputs={"data": Port(PortType.BYTES, optional=True)},
    outputs={"value": Port(PortType.JSON)},
    variadic_input=Port(PortType.JSON),
)


def where(call: StageCall) -> Outputs:
    return {"value": threading.get_ident()}


def brief_stage(run: Any = where) -> Stage:
    return made(SPEC, run)


def thread_of(report: Finished) -> bytes | None:
    return report.outputs["value"].inline


def here() -> bytes:
    return str(threading.get_ident()).encode()


def test_a_kind_is_brief_until_too_many_of_its_runs_are_late() -> None:
    kinds = BriefKinds([SPEC])
    for _ in range(100):
        assert not kinds.ran("t.brief", LATE, LATE)
        for _ in range(8):
            assert not kinds.ran("t.brief", LATE - 1, 10 * LATE - 1)
    assert kinds.takes(assign(kind="t.brief"))
    assert [kinds.ran("t.brief", 0, 10 * LATE) for _ in range(8)] == [*[False] * 7, True]
    assert not kinds.takes(assign(kind="t.brief"))


def test_one_run_that_takes_very_long_is_enough() -> None:
    kinds = BriefKinds([SPEC])
    assert not kinds.ran("t.brief", 0, limits.AGENT_BRIEF_NANOS_MAX - 1)
    assert kinds.ran("t.brief", 0, limits.AGENT_BRIEF_NANOS_MAX)
    assert not kinds.takes(assign(kind="t.brief"))


def test_only_few_small_inputs_are_for_the_event_loop() -> None:
    kinds = BriefKinds([SPEC, KindSpec(name="t.other")])
    small = given("value", PortType.JSON, 1)
    assert kinds.takes(assign(kind="t.brief", inputs=(small,) * limits.AGENT_BRIEF_INPUTS_MAX))
    assert not kinds.takes(assign(kind="t.brief", inputs=(small,) * (limits.AGENT_BRIEF_INPUTS_MAX + 1)))
    assert not kinds.takes(assign(kind="t.brief", inputs=(given("data", PortType.BYTES, BIG, inline=False),)))
    assert not kinds.takes(assign(kind="t.other"))


async def test_the_loop_has_a_turn_after_so_many_runs_and_before_any_where_it_asks_for_one() -> None:
    resumed = asyncio.Event()
    runs: BriefRuns[int] = BriefRuns(resumed.set)
    for number in range(limits.AGENT_BRIEF_RUNS + 1):
        runs.add(number)
    assert [runs.next() for _ in range(limits.AGENT_BRIEF_RUNS)] == list(range(limits.AGENT_BRIEF_RUNS))
    assert runs.next() is None
    assert not resumed.is_set()
    await resumed.wait()
    runs.pause()
    assert runs.next() is None
    resumed.clear()
    await resumed.wait()
    assert runs.next() == limits.AGENT_BRIEF_RUNS
    assert runs.next() is None


async def test_a_brief_attempt_runs_on_the_event_loop_and_reports_as_ever() -> None:
    async with rigged(brief_stage()) as rig:
        report = await finished(rig, assign(kind="t.brief", inputs=(given("value", PortType.JSON, 7),)))
        assert thread_of(report) == here()
        assert rig.told.reports == [Started(task=report.task), report]
        assert report.outputs["value"].holder == "a"


async def test_many_brief_attempts_leave_the_loop_its_turns() -> None:
    turns: list[int] = []
    run = 0

    def count(call: StageCall) -> Outputs:
        nonlocal run
        run += 1
        return {"value": run}

    async with rigged(brief_stage(count)) as rig:
        loop = asyncio.get_running_loop()

        def turn() -> None:
            turns.append(run)
            if run < 200:
                loop.call_soon(turn)

        orders = [assign(f"s{number}", "t.brief") for number in range(200)]
        loop.call_soon(turn)
        rig.send(*orders)
        for order in orders:
            assert isinstance(await rig.told.final(order.task), Finished)
    assert max(after - before for before, after in pairwise(turns)) <= limits.AGENT_BRIEF_RUNS


async def test_large_inputs_are_read_by_a_worker() -> None:
    async with rigged(brief_stage()) as rig:
        rig.store.add(BIG)
        far = given("data", PortType.BYTES, BIG, inline=False)
        assert thread_of(await finished(rig, assign(kind="t.brief", inputs=(far,)))) != here()


async def test_a_kind_that_is_not_as_brief_as_it_says_gets_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGENT_BRIEF_NANOS_MAX", 0)
    async with rigged(brief_stage()) as rig:
        assert thread_of(await finished(rig, assign("first", "t.brief"))) == here()
        assert thread_of(await finished(rig, assign("second", "t.brief"))) != here()
        # Other kinds are not concerned.
        assert isinstance(await finished(rig, assign("third")), Finished)


async def test_what_was_due_when_its_kind_showed_not_to_be_brief_gets_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rigged(brief_stage()) as rig:
        await finished(rig, assign("known", "t.brief"))
        monkeypatch.setattr(limits, "AGENT_BRIEF_NANOS_MAX", 0)
        orders = [assign(f"s{number}", "t.brief") for number in range(5)]
        rig.send(*orders)
        reports = [await rig.told.final(order.task) for order in orders]
        threads = [thread_of(report) for report in reports if isinstance(report, Finished)]
        assert threads[0] == here()
        assert len(threads) == 5
        assert here() not in threads[1:]


async def test_a_brief_attempt_waits_while_the_workers_have_all_slots() -> None:
    gate = Gate()
    async with rigged(gate.stage, brief_stage(), slots=1) as rig:
        assert thread_of(await finished(rig, assign("known", "t.brief"))) == here()
        rig.send(assign("long", "t.gate"), assign("behind", "t.brief"))
        await gate.until_entered()
        assert task("behind") in rig.runtime.core.active
        gate.open.set()
        report = await rig.told.final(task("behind"))
        ends = [each.task.stage for each in rig.told.reports if isinstance(each, Finished)]
        assert ends == ["known", "long", "behind"]
        assert isinstance(report, Finished)


async def test_a_brief_attempt_fails_as_any_other() -> None:
    def fail(call: StageCall) -> Outputs:
        raise StageError("no luck", transient=True)

    def leave(call: StageCall) -> Outputs:
        raise SystemExit(1)

    async with rigged(brief_stage(fail), made(KindSpec(name="t.leaves", brief=True), leave)) as rig:
        error = (await failed(rig, kind="t.brief")).error
        assert (error.message, error.transient) == ("no luck", True)
        assert (await failed(rig, stage="other", kind="t.leaves")).error.cause == "SystemExit"


async def test_a_brief_attempt_that_is_late_has_failed() -> None:
    async with rigged(brief_stage()) as rig:
        error = (await failed(rig, kind="t.brief", timeout_seconds=1e-9)).error
        assert (error.cause, error.transient) == ("DeadlineExceeded", True)
        assert isinstance(await finished(rig, assign("next", "t.brief", timeout_seconds=WAIT_SECONDS)), Finished)


async def test_a_cancel_reaches_a_brief_attempt_that_is_due() -> None:
    ran: list[str] = []

    def run(call: StageCall) -> Outputs:
        ran.append(call.key)
        return {"value": None}

    async with rigged(brief_stage(run)) as rig:
        await finished(rig, assign("known", "t.brief"))
        orders = [assign(f"s{number}", "t.brief") for number in range(limits.AGENT_BRIEF_RUNS + 1)]
        rig.send(*orders)
        last = orders[-1].task
        assert last in rig.runtime.core.active
        rig.send(Cancel(task=last))
        assert await rig.told.final(last) == WasCancelled(task=last)
        assert len(ran) == 1 + limits.AGENT_BRIEF_RUNS


async def test_stopping_ends_what_is_due() -> None:
    async with rigged(brief_stage()) as rig:
        await finished(rig, assign("known", "t.brief"))
        rig.send(*(assign(f"s{number}", "t.brief") for number in range(3 * limits.AGENT_BRIEF_RUNS)))
        await rig.runtime.stop()
        assert rig.runtime.core.active == ()
        assert not any(isinstance(report, Failed) for report in rig.told.reports)
