"""Attempts through the runtime, with real threads and real transfers: ends, cancels, timeouts, lost inputs, publishing."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.agents.fakes import (
    TOKEN,
    WAIT_SECONDS,
    MemoryStore,
    Stages,
    Told,
    assign,
    given,
    made,
    no_models,
    task,
)

from starloom.agents import runtime as runtime_module
from starloom.agents.core import AgentCore, Phase
from starloom.agents.dataservice import DataServer
from starloom.agents.fetching import InputFetcher
from starloom.agents.holder import Holder
from starloom.agents.messages import (
    Cancel,
    Command,
    Failed,
    Finished,
    InputLost,
    Publish,
    Published,
    Release,
    Started,
    WasCancelled,
)
from starloom.agents.runtime import Runtime
from starloom.agents.stage import CancelToken, Outputs, Stage, StageCall
from starloom.agents.stages.basic import Add, Echo, Fail, MakeBytes, Noop, Sleep
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.constellation import Comparison
from starloom.dag.errors import DigestMismatch, InvalidInput, Unavailable
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.dag.kinds import KindSpec
from starloom.dag.values import Port, PortType

AGENT = AgentId("a")
EPOCH = Epoch(1)
BIG = bytes(range(256)) * 256


class Gate:
    """A stage that waits in its thread until the test lets it go on; `deaf` to cancels, if told so."""

    def __init__(self, kind: str = "t.gate", deaf: bool = False) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self._deaf = deaf
        self._told_to_stop = threading.Event()
        spec = KindSpec(
            name=kind, inputs={"value": Port(PortType.JSON, optional=True)}, outputs={"value": Port(PortType.JSON)}
        )
        self.stage = made(spec, self._run)

    def _run(self, call: StageCall) -> Outputs:
        forget = call.cancel.on_cancel(self._hear)
        self.entered.release()
        assert self.open.wait(WAIT_SECONDS)
        forget()
        call.cancel.raise_if_cancelled()
        return {"value": threading.get_ident()}

    def _hear(self) -> None:
        self._told_to_stop.set()
        if not self._deaf:
            self.open.set()

    async def until_told_to_stop(self) -> None:
        assert await asyncio.to_thread(self._told_to_stop.wait, WAIT_SECONDS)

    async def until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, True, WAIT_SECONDS)


class Rig:
    """A runtime with its reports, its values and the job store that it publishes to."""

    def __init__(self, runtime: Runtime, told: Told, holder: Holder, store: MemoryStore) -> None:
        self.runtime = runtime
        self.told = told
        self.holder = holder
        self.store = store

    def send(self, *commands: Command, epoch: int = EPOCH) -> None:
        self.runtime.commands(commands, Epoch(epoch))

    def time_out(self, stage: str) -> None:
        """As its timer does: a timer that is short enough for a test may ring before the stage's thread runs."""
        self.runtime._time_out(self.runtime._works[task(stage)])


@asynccontextmanager
async def serving(source: Any) -> AsyncIterator[str]:
    """The address of a data service over the source, which also takes values in."""
    server = DataServer(source, TOKEN, sink=source if isinstance(source, MemoryStore) else None)
    try:
        yield await server.start()
    finally:
        await server.stop()


@asynccontextmanager
async def rigged(*stages: Stage, slots: int = 2, store_address: str = "") -> AsyncIterator[Rig]:
    told, holder, store = Told(), Holder(), MemoryStore()
    known = Stages(Noop(), Echo(), Add(), Sleep(), Fail(), MakeBytes(), *stages)
    async with serving(store) as address, Transfer(TOKEN) as transfer:
        runtime = Runtime(AgentCore(AGENT, slots), known, no_models, holder, transfer, store_address or address, told)
        try:
            yield Rig(runtime, told, holder, store)
        finally:
            await runtime.stop()


async def failed(rig: Rig, **fields: Any) -> Failed:
    order = assign(**fields)
    rig.send(order)
    report = await rig.told.final(order.task)
    assert isinstance(report, Failed), report
    return report


async def finished(rig: Rig, order: Any) -> Finished:
    rig.send(order)
    report = await rig.told.final(order.task)
    assert isinstance(report, Finished), report
    return report


async def test_attempt_runs_and_its_report_has_everything() -> None:
    async with rigged() as rig:
        seven = given("value", PortType.JSON, 7)
        asked = (Comparison(output="value", operator=">", value=3),)
        report = await finished(rig, assign(inputs=(seven,), comparisons=asked))
        assert report.outputs["value"].inline == b"7"
        assert report.outputs["value"].holder == AGENT
        assert report.consumed == {"value": seven.consumed}
        assert report.holds == (True,)
        assert (report.target, report.emulated, report.published) == ("cpu", False, ())
        timing = report.timing
        assert min(timing.queue, timing.run) >= 0
        assert (timing.transfer, timing.load) == (0, 0)
        assert rig.told.reports[0] == Started(task=report.task)


async def test_many_cheap_attempts_end_each_once() -> None:
    async with rigged() as rig:
        orders = [assign(f"s{number}") for number in range(500)]
        rig.send(*orders)
        for order in orders:
            assert isinstance(await rig.told.final(order.task), Finished)
        assert rig.runtime.core.active == ()


async def test_slots_are_threads_and_the_loop_is_free_meanwhile() -> None:
    gate = Gate()
    async with rigged(gate.stage, slots=2) as rig:
        orders = [assign(f"s{number}", "t.gate") for number in range(3)]
        rig.send(*orders)
        await gate.until_entered()
        await gate.until_entered()
        assert rig.runtime.core.phase(orders[2].task) is Phase.READY
        gate.open.set()
        reports = [await rig.told.final(order.task) for order in orders]
        threads = {report.outputs["value"].inline for report in reports if isinstance(report, Finished)}
        assert len(threads) == 2


async def test_large_value_is_held_and_used_by_the_next_stage_here() -> None:
    async with rigged() as rig:
        size = limits.INLINE_VALUE_BYTES_MAX + 1
        first = await finished(rig, assign("make", "basic.make_bytes", params={"size": size}))
        ref = first.outputs["data"]
        assert (ref.inline, ref.holder) == (None, AGENT)
        assert len(rig.holder.get(JobId("j"), ref.digest)) == size
        own = given("data", PortType.BYTES, b"", inline=False)
        second = await finished(rig, assign("echo", "basic.echo", inputs=(_with(own, ref=ref),)))
        assert second.outputs["data"].digest == ref.digest
        assert rig.holder.held_bytes == size
        rig.send(Release(job=JobId("j")))
        assert rig.holder.held_bytes == 0


def _with(item: Any, **fields: Any) -> Any:
    return type(item)(**{name: getattr(item, name) for name in item.__struct_fields__} | fields)


async def test_inputs_come_from_their_holders_at_the_same_time() -> None:
    there, store = MemoryStore(), MemoryStore()
    there.add(BIG)
    async with serving(there) as address, rigged() as rig:
        rig.store.add(BIG[::-1])
        echo = assign(
            "e", "basic.echo", inputs=(given("data", PortType.BYTES, BIG, holder="b", address=address, inline=False),)
        )
        report = await finished(rig, echo)
        assert report.outputs["data"].digest == echo.inputs[0].ref.digest
        assert report.timing.transfer > 0
        of_job = assign("f", "basic.echo", inputs=(given("data", PortType.BYTES, BIG[::-1], inline=False),))
        assert (await finished(rig, of_job)).outputs["data"].digest == of_job.inputs[0].ref.digest
    assert store.reads == []


async def test_value_for_several_attempts_is_fetched_once_until_the_job_is_released() -> None:
    there = MemoryStore()
    there.add(BIG)
    async with serving(there) as address, rigged() as rig:
        item = given("data", PortType.BYTES, BIG, holder="b", address=address, inline=False)
        orders = [assign(f"s{number}", "basic.echo", inputs=(item,)) for number in range(20)]
        rig.send(*orders)
        for order in orders:
            assert isinstance(await rig.told.final(order.task), Finished)
        assert len(there.reads) == 1
        rig.send(Release(job=JobId("j")))
        await finished(rig, assign("again", "basic.echo", inputs=(item,)))
        assert len(there.reads) == 2


async def test_cancel_of_one_fetch_leaves_it_to_the_others() -> None:
    there = HeldBack()
    async with serving(there) as address, rigged() as rig:
        item = given("data", PortType.BYTES, BIG, holder="b", address=address, inline=False)
        rig.send(assign("x", "basic.echo", inputs=(item,)), assign("y", "basic.echo", inputs=(item,)))
        await there.until_asked()
        rig.send(Cancel(task=task("x")))
        assert isinstance(await rig.told.final(task("x")), WasCancelled)
        there.go_on.set()
        assert isinstance(await rig.told.final(task("y")), Finished)
        assert there.asked == 1


class HeldBack:
    """A holder of BIG that answers when the test lets it."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self._asking = asyncio.Event()

    async def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes]:
        self.asked += 1
        self._asking.set()
        try:
            await self.go_on.wait()
            yield BIG[offset:]
        finally:
            self.ended.set()

    async def until_asked(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await self._asking.wait()


async def test_cancel_while_fetching_stops_the_transfer() -> None:
    there = HeldBack()
    async with serving(there) as address, rigged() as rig:
        order = assign(
            "x", "basic.echo", inputs=(given("data", PortType.BYTES, BIG, holder="b", address=address, inline=False),)
        )
        rig.send(order)
        await there.until_asked()
        rig.send(Cancel(task=order.task))
        assert await rig.told.final(order.task) == WasCancelled(task=order.task)
        async with asyncio.timeout(WAIT_SECONDS):
            await there.ended.wait()
        assert rig.told.reports == [WasCancelled(task=order.task)]


async def test_cancel_in_the_same_frame_as_its_assignment_is_told() -> None:
    there = HeldBack()
    async with serving(there) as address, rigged() as rig:
        far = given("data", PortType.BYTES, BIG, holder="b", address=address, inline=False)
        rig.send(assign("far", "basic.echo", inputs=(far,)), Cancel(task=task("far")))
        assert await rig.told.final(task("far")) == WasCancelled(task=task("far"))
        rig.send(assign("near"), Cancel(task=task("near")))
        assert await rig.told.final(task("near")) == WasCancelled(task=task("near"))


async def test_cancel_in_the_queue_starts_nothing() -> None:
    gate = Gate()
    async with rigged(gate.stage, slots=1) as rig:
        rig.send(assign("running", "t.gate"), assign("waiting", "t.gate"))
        await gate.until_entered()
        rig.send(Cancel(task=task("waiting")))
        assert await rig.told.final(task("waiting")) == WasCancelled(task=task("waiting"))
        gate.open.set()
        assert isinstance(await rig.told.final(task("running")), Finished)
        assert Started(task=task("waiting")) not in rig.told.reports


async def test_cancel_while_running_is_told_when_the_stage_is_back() -> None:
    async with rigged() as rig:
        order = assign("s", "basic.sleep", params={"seconds": 3600})
        rig.send(order)
        await rig.told.started(order.task)
        rig.send(Cancel(task=order.task))
        assert await rig.told.final(order.task) == WasCancelled(task=order.task)


async def test_failure_of_what_a_stage_does_on_its_cancel_stays_with_it(caplog: pytest.LogCaptureFixture) -> None:
    stopped, listening = threading.Event(), threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    def function(call: StageCall) -> Outputs:
        call.cancel.on_cancel(stopped.set)
        call.cancel.on_cancel(fail)
        listening.set()
        assert stopped.wait(WAIT_SECONDS)
        call.cancel.raise_if_cancelled()
        return {}

    async with rigged(made(KindSpec(name="t.clumsy"), function)) as rig:
        rig.send(assign("s", "t.clumsy"))
        assert await asyncio.to_thread(listening.wait, WAIT_SECONDS)
        rig.send(Cancel(task=task("s")), assign("next"))
        assert isinstance(await rig.told.final(task("s")), WasCancelled)
        assert isinstance(await rig.told.final(task("next")), Finished)
    assert "t.clumsy" in caplog.text


async def test_stage_that_ignores_its_cancel_is_waited_for_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "CANCEL_GRACE_SECONDS", 0.001)
    gate = Gate(deaf=True)
    async with rigged(gate.stage, slots=1) as rig:
        rig.send(assign("deaf", "t.gate"))
        await gate.until_entered()
        logged = asyncio.Event()
        monkeypatch.setattr(runtime_module._log, "warning", lambda *_: logged.set())
        rig.send(Cancel(task=task("deaf")))
        async with asyncio.timeout(WAIT_SECONDS):
            await logged.wait()
        assert rig.runtime.core.running == 1
        gate.open.set()
        assert await rig.told.final(task("deaf")) == WasCancelled(task=task("deaf"))


async def test_timeout_is_a_failure_that_may_be_tried_again() -> None:
    async with rigged() as rig:
        report = await failed(rig, kind="basic.sleep", params={"seconds": 3600}, timeout_seconds=0.01)
        assert (report.error.cause, report.error.transient, report.error.node) == ("DeadlineExceeded", True, AGENT)
        assert report.error.message == "basic.sleep ran longer than its timeout of 0.01 s"


async def test_timeout_of_a_deaf_stage_is_told_when_its_thread_is_back() -> None:
    gate = Gate(deaf=True)
    async with rigged(gate.stage, slots=1) as rig:
        rig.send(assign("deaf", "t.gate", timeout_seconds=3600), assign("next"))
        await gate.until_entered()
        await rig.told.started(task("deaf"))
        rig.time_out("deaf")
        await gate.until_told_to_stop()
        assert rig.told.reports == [Started(task=task("deaf"))]
        gate.open.set()
        report = await rig.told.final(task("deaf"))
        assert isinstance(report, Failed)
        assert report.error.cause == "DeadlineExceeded"
        assert isinstance(await rig.told.final(task("next")), Finished)


async def test_timeout_of_a_deaf_stage_is_told_after_the_grace_and_its_late_result_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CANCEL_GRACE_SECONDS", 0.001)
    gate = Gate(deaf=True)
    # Its cancel is not heard at all: what it gives in the end is a result.
    monkeypatch.setattr(CancelToken, "raise_if_cancelled", lambda _: None)
    async with rigged(gate.stage, slots=1) as rig:
        rig.send(assign("deaf", "t.gate", timeout_seconds=3600), assign("next"))
        await gate.until_entered()
        await rig.told.started(task("deaf"))
        rig.time_out("deaf")
        report = await rig.told.final(task("deaf"))
        assert isinstance(report, Failed)
        assert (report.error.cause, report.error.transient) == ("DeadlineExceeded", True)
        assert report.error.message == (
            "t.gate ran longer than its timeout of 3600 s, and does not react to its cancel since "
            "CANCEL_GRACE_SECONDS = 0.001; its thread still runs, and keeps its slot"
        )
        assert rig.runtime.core.phase(task("deaf")) is Phase.RUNNING
        assert rig.runtime.core.phase(task("next")) is Phase.READY
        assert rig.runtime.core.held([]) == (task("next"),)
        rig.send(Cancel(task=task("deaf")))
        gate.open.set()
        assert isinstance(await rig.told.final(task("next")), Finished)
        assert await rig.told.final(task("deaf")) == report, "and there is no other"
        assert rig.holder.held_bytes == 0


async def test_a_deaf_stage_that_is_cancelled_after_its_timeout_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CANCEL_GRACE_SECONDS", 0.001)
    gate = Gate(deaf=True)
    async with rigged(gate.stage, slots=1) as rig:
        logged = asyncio.Event()
        monkeypatch.setattr(runtime_module._log, "warning", lambda *_: logged.set())
        rig.send(assign("deaf", "t.gate", timeout_seconds=3600))
        await gate.until_entered()
        await rig.told.started(task("deaf"))
        rig.time_out("deaf")
        rig.send(Cancel(task=task("deaf")))
        async with asyncio.timeout(WAIT_SECONDS):
            await logged.wait()
        assert rig.told.reports == [Started(task=task("deaf"))]
        gate.open.set()
        assert await rig.told.final(task("deaf")) == WasCancelled(task=task("deaf"))


async def test_cancel_after_a_timeout_wins() -> None:
    gate = Gate(deaf=True)
    async with rigged(gate.stage, slots=1) as rig:
        rig.send(assign("deaf", "t.gate", timeout_seconds=3600))
        await gate.until_entered()
        await rig.told.started(task("deaf"))
        rig.time_out("deaf")
        await gate.until_told_to_stop()
        rig.send(Cancel(task=task("deaf")))
        gate.open.set()
        assert isinstance(await rig.told.final(task("deaf")), WasCancelled)


async def test_failures_are_told_with_their_nature() -> None:
    async with rigged() as rig:
        report = await failed(rig, kind="basic.fail", params={"message": "oh", "transient": True})
        assert (report.error.message, report.error.transient, report.error.node) == ("oh", True, AGENT)
        report = await failed(rig, stage="t", kind="basic.none")
        assert report.error.cause == "NotFound"


async def test_value_that_is_gone_is_told_with_its_stage() -> None:
    there = MemoryStore()
    async with serving(there) as address, rigged() as rig:
        items = tuple(
            given(port, PortType.JSON, port, holder="b", address=address, inline=False) for port in ("x", "y")
        )
        order = assign("s", "basic.add", inputs=items)
        rig.send(order)
        report = await rig.told.final(order.task)
        assert isinstance(report, InputLost)
        assert (report.upstreams, report.gone) == (("up",), True)
        assert "input x" in report.reason
        assert "input y" in report.reason


async def test_own_value_that_is_gone_is_told() -> None:
    async with rigged() as rig:
        order = assign("s", inputs=(given("value", PortType.JSON, 1, holder=AGENT, inline=False),))
        rig.send(order)
        report = await rig.told.final(order.task)
        assert isinstance(report, InputLost)
        assert (report.upstreams, report.gone) == (("up",), True)


async def test_of_many_values_that_are_gone_as_much_is_told_as_can_be_read() -> None:
    async with rigged() as rig:
        item = given("value", PortType.JSON, 1, holder=AGENT, inline=False)
        order = assign("s", inputs=tuple(msgspec.structs.replace(item, port=f"value{n}") for n in range(5_000)))
        rig.send(order)
        report = await rig.told.final(order.task)
        assert isinstance(report, InputLost)
        assert report.upstreams == ("up",)
        assert report.reason.startswith("input value0: ")
        assert report.reason.endswith(" ... (cut)")
        assert len(report.reason) < 1.1 * limits.STATUS_TEXT_CHARACTERS_MAX


async def test_holder_that_cannot_be_reached_is_told_after_some_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(limits, "RECONNECT_FIRST_SECONDS", 0.005)
    async with rigged() as rig:
        order = assign("s", inputs=(given("value", PortType.JSON, 1, holder="b", address="127.0.0.1:1", inline=False),))
        rig.send(order)
        report = await rig.told.final(order.task)
        assert isinstance(report, InputLost)
        assert (report.upstreams, report.gone) == (("up",), False)


async def test_damaged_value_is_fetched_once_more_and_then_gone() -> None:
    there = MemoryStore()
    item = given("data", PortType.BYTES, BIG, holder="b", inline=False)
    there.values[item.ref.digest] = b"x" + BIG[1:]
    async with serving(there) as address, rigged() as rig:
        order = assign("s", "basic.echo", inputs=(_with(item, address=address),))
        rig.send(order)
        report = await rig.told.final(order.task)
        assert isinstance(report, InputLost)
        assert report.gone
        assert len(there.reads) == 2


async def test_what_comes_damaged_from_the_job_store_is_not_gone() -> None:
    async with rigged() as rig:
        item = given("data", PortType.BYTES, BIG, inline=False)
        rig.store.values[item.ref.digest] = b"x" + BIG[1:]
        order = assign("s", "basic.echo", inputs=(item,))
        rig.send(order)
        report = await rig.told.final(order.task)
        assert isinstance(report, InputLost)
        assert not report.gone, "another fetch of it may be whole, and it cannot be made again"
        assert len(rig.store.reads) == 2


async def test_job_store_that_is_away_is_waited_for() -> None:
    async with rigged() as rig:
        rig.store.add(BIG)
        rig.store.closed = Unavailable("restarting")
        order = assign("s", "basic.echo", inputs=(given("data", PortType.BYTES, BIG, inline=False),))
        rig.send(order)
        await rig.store.until(lambda: len(rig.store.reads) >= 2)
        rig.store.closed = None
        assert isinstance(await rig.told.final(order.task), Finished)


async def test_declared_outputs_are_published_before_the_end_is_told() -> None:
    async with rigged() as rig:
        order = assign("s", "basic.make_bytes", params={"size": 100_000}, publish=("data",))
        report = await finished(rig, order)
        assert report.published == ("data",)
        assert list(rig.store.values) == [report.outputs["data"].digest]
        assert report.timing.transfer > 0


async def test_inline_outputs_are_published_by_their_report() -> None:
    async with rigged() as rig:
        report = await finished(rig, assign(publish=("value",)))
        assert (report.published, rig.store.puts) == (("value",), 0)


async def test_publishing_goes_on_until_the_store_is_back_and_takes_no_slot() -> None:
    async with rigged(slots=1) as rig:
        rig.store.closed = Unavailable("restarting")
        order = assign("s", "basic.make_bytes", params={"size": 100_000}, publish=("data",))
        rig.send(order)
        await rig.store.until(lambda: rig.store.puts >= 2)
        assert rig.runtime.core.phase(order.task) is Phase.PUBLISHING
        await finished(rig, assign("other"))
        rig.store.closed = None
        assert isinstance(await rig.told.final(order.task), Finished)


async def test_cancel_while_publishing_ends_it() -> None:
    async with rigged() as rig:
        rig.store.closed = Unavailable("restarting")
        order = assign("s", "basic.make_bytes", params={"size": 100_000}, publish=("data",))
        rig.send(order)
        await rig.store.until(lambda: rig.store.puts)
        rig.send(Cancel(task=order.task))
        assert isinstance(await rig.told.final(order.task), WasCancelled)


@pytest.mark.parametrize(("error", "tries"), [(InvalidInput("never"), 1), (DigestMismatch("this time"), 2)])
async def test_publishing_fails_only_for_what_no_repetition_mends(error: Any, tries: int) -> None:
    async with rigged() as rig:
        rig.store.closed = error
        order = assign("s", "basic.make_bytes", params={"size": 100_000}, publish=("data",))
        rig.send(order)
        await rig.store.until(lambda: rig.store.puts >= tries)
        rig.store.closed = None
        report = await rig.told.final(order.task)
        assert isinstance(report, Failed if tries == 1 else Finished)


async def test_agent_that_is_full_fails_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rigged() as rig:
        rig.holder._limit_bytes = 10
        report = await failed(rig, kind="basic.make_bytes", params={"size": 100_000})
        assert (report.error.cause, report.error.transient) == ("Overloaded", True)


async def test_release_while_running_keeps_nothing() -> None:
    big = 100_000
    opened = threading.Event()
    spec = KindSpec(name="t.big", outputs={"data": Port(PortType.BYTES)})

    def make(call: StageCall) -> Outputs:
        assert opened.wait(WAIT_SECONDS)
        return {"data": bytes(big)}

    async with rigged(made(spec, make), slots=1) as rig:
        rig.send(assign("s", "t.big"))
        await rig.told.started(task("s"))
        rig.send(Release(job=JobId("j")))
        opened.set()
        await finished(rig, assign("next", job="k"))
        assert rig.holder.held_bytes == 0
        assert [report for report in rig.told.reports if report.task == task("s")] == [Started(task=task("s"))]


async def test_older_orchestrator_is_not_obeyed() -> None:
    async with rigged() as rig:
        await finished(rig, assign("s"))
        rig.send(assign("t"), epoch=0)
        assert rig.runtime.core.stale_refused == 1
        assert rig.runtime.core.active == ()


async def test_stop_ends_everything_without_a_report() -> None:
    gate = Gate()
    before = threading.active_count()
    async with rigged(gate.stage, slots=2) as rig:
        rig.send(*(assign(f"s{number}", "t.gate") for number in range(4)))
        await gate.until_entered()
        await rig.runtime.stop()
        assert rig.runtime.core.active == ()
        assert not any(isinstance(report, WasCancelled) for report in rig.told.reports)
    names = [thread.name for thread in threading.enumerate()]
    assert not any("stage" in name for name in names), (before, names)


async def test_stop_gives_up_on_a_deaf_stage() -> None:
    gate = Gate(deaf=True)
    async with rigged(gate.stage, slots=1) as rig:
        rig.send(assign("deaf", "t.gate"))
        await gate.until_entered()
        await rig.runtime.stop(0.01)
        gate.open.set()


async def test_defect_in_fetching_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: InputFetcher, items: Any, job: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(InputFetcher, "remote", broken)
    async with rigged() as rig:
        report = await failed(rig, inputs=(given("value", PortType.JSON, 1, inline=False),))
        assert report.error.cause == "ZeroDivisionError"


async def test_values_are_brought_to_the_job_store_on_request() -> None:
    async with rigged() as rig:
        order = assign(kind="basic.make_bytes", params={"size": 50_000})
        rig.send(order)
        made = await rig.told.final(order.task)
        assert isinstance(made, Finished)
        ref = made.outputs["data"]
        rig.send(*[Publish(task=order.task, values=(ref,))] * 2)
        await rig.told.until(lambda: Published(task=order.task) in rig.told.reports)
        assert rig.store.values[ref.digest] == rig.holder.get(JobId("j"), ref.digest)
        assert rig.store.puts == 1
        rig.send(Release(job=JobId("j")), Publish(task=order.task, values=(ref,)))
        await rig.told.until(lambda: any(isinstance(r, Published) and "no value" in r.reason for r in rig.told.reports))


async def test_bringing_a_value_ends_with_its_job() -> None:
    async with rigged() as rig:
        ref = given("value", PortType.BYTES, BIG, inline=False).ref
        rig.holder.keep(JobId("j"), ref.digest, BIG)
        rig.send(Publish(task=task(), values=(ref,)), Release(job=JobId("j")))
        later = assign(job="k")
        rig.send(later)
        await rig.told.final(later.task)
        assert not [report for report in rig.told.reports if isinstance(report, Published)]
        assert rig.store.puts == 0
