"""Stream stages on agents: chains, policies, breaks, cancels, failures, generations, with real threads and real calls."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from tests.agents.fakes import assign, given, task
from tests.agents.streamkit import (
    NUMBERS,
    OF_THE_JOB,
    VALUE,
    Cluster,
    Gate,
    Slow,
    cluster,
    consuming,
    producing,
    streaming,
    values,
)

from starloom.agents.faultlayer import FaultLayer
from starloom.agents.faultrules import Armed
from starloom.agents.messages import Await, Cancel, Failed, Finished, InputLost, Release, Started, WasCancelled
from starloom.agents.stage import Chunk, Outputs, Received, Stage, StageCall
from starloom.agents.streams.records import StreamName
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, StageError
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.kinds import KindSpec, Param
from starloom.dag.values import Full, PortType
from starloom.devices.faults import FaultKind


@pytest.mark.parametrize("agents", ["a", "ab"])
async def test_consumer_gets_every_chunk_in_order(agents: str) -> None:
    async with cluster(*agents) as agents_:
        first, last = agents_[agents[0]], agents_[agents[-1]]
        first.send(producing("count", "t.count", "sum.in", params={"count": 500}))
        last.send(consuming("sum", "t.gather", first.awaits(in_="count.out")))
        report = await last.finished("sum")
        produced = await first.finished("count")
        assert values(report) == list(range(500))
        ref = produced.outputs["out"]
        assert ref.meta == {"stream": True, "chunks": 500}
        assert ref.holder == agents[0]
        assert report.consumed["in"].digest == ref.digest
        assert Started(task=task("sum")) in last.told.reports


async def test_chain_of_four_on_two_slots_with_a_computation_in_each_link() -> None:
    threads: set[str] = set()

    def add(number: int) -> int:
        threads.add(threading.current_thread().name)
        return number + 1

    async def link(call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for received in call.inputs["in"]:
            yield Chunk("out", await call.compute(add, received.value))

    adding = streaming("t.add", link, inputs={"in": NUMBERS}, outputs={"out": NUMBERS})
    async with cluster("a", stages=(adding,), slots=2) as agents:
        a = agents["a"]
        a.send(
            producing("s0", "t.count", "s1.in", params={"count": 300}),
            *(producing(f"s{n}", "t.add", f"s{n + 1}.in", awaits=a.awaits(in_=f"s{n - 1}.out")) for n in range(1, 5)),
            consuming("s5", "t.gather", a.awaits(in_="s4.out")),
        )
        assert values(await a.finished("s5")) == list(range(4, 304))
        assert threads <= {"a-stage-0", "a-stage-1"}


@pytest.mark.parametrize("consumer", ["a", "b"])
async def test_slow_consumer_holds_the_producer_up_and_misses_nothing(consumer: str) -> None:
    slow = Slow()
    async with cluster("a", "b", stages=(slow.stage,)) as agents:
        a, other = agents["a"], agents[consumer]
        a.send(producing("camera", "t.count", "slow.in", params={"count": 200}))
        other.send(consuming("slow", "t.slow", a.awaits(in_="camera.out")))
        await slow.gate.until_came(1)
        # The producer stands: what it has made and nobody is done with is bounded.
        await a.streams.until_kept("camera", limits.STREAM_BUFFER_CHUNKS)
        assert a.streams.kept("camera").chunks == limits.STREAM_BUFFER_CHUNKS
        assert not a.told.ended(task("camera"))
        slow.gate.open(200)
        assert values(await other.finished("slow")) == list(range(200))
        assert (await a.finished("camera")).outputs["out"].meta["chunks"] == 200


@pytest.mark.parametrize(("full", "first"), [(Full.LATEST, [0, 999]), (Full.OLDEST, None)])
@pytest.mark.parametrize("consumer", ["a", "b"])
async def test_live_input_is_dropped_and_counted_and_no_queue_is_built(
    consumer: str, full: Full, first: list[int] | None
) -> None:
    slow = Slow(full=full)
    begin = Gate()

    async def camera(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", 0)
        await begin.wait()
        for number in range(1, 1_000):
            yield Chunk("out", number)

    live = streaming("t.camera", camera, outputs={"out": NUMBERS})
    async with cluster("a", "b", stages=(slow.stage, live)) as agents:
        a, other = agents["a"], agents[consumer]
        a.send(producing("camera", "t.camera", "slow.in", full=full))
        other.send(consuming("slow", "t.slow", a.awaits(in_="camera.out")))
        await slow.gate.until_came(1)
        begin.open()
        # However slow its consumer is, the camera goes on, and all that is kept is bounded.
        await a.finished("camera")
        assert a.streams.kept("camera").chunks <= limits.STREAM_BUFFER_CHUNKS
        slow.gate.open(1_000)
        report = await other.finished("slow")
        taken = values(report)
        if first is not None:
            assert taken == first
        assert taken[-1] == 999
        assert taken == sorted(set(taken))
        assert len(taken) <= limits.STREAM_BUFFER_CHUNKS + limits.STREAM_WINDOW_CHUNKS
        assert report.figures["in_dropped_chunks"] == 1_000 - len(taken)


async def test_reading_goes_on_after_breaks_without_gap_or_repeat() -> None:
    slow = Slow()
    async with cluster("a", "b", stages=(slow.stage,)) as agents:
        a, b = agents["a"], agents["b"]
        a.streams.breaks = [1, 2, 1, 3]
        slow.gate.open(300)
        a.send(producing("count", "t.count", "slow.in", params={"count": 300}))
        b.send(consuming("slow", "t.slow", a.awaits(in_="count.out")))
        assert values(await b.finished("slow")) == list(range(300))
        assert [received.offset for received in slow.taken] == list(range(300))
        assert len(a.streams.opened) == 5
        assert a.streams.opened == sorted(a.streams.opened)
        assert a.streams.opened[-1] > 0


async def test_partition_delays_a_stream_and_costs_bounded_memory_and_no_chunk() -> None:
    slow = Slow()
    faults = FaultLayer()
    async with cluster("a", "b", stages=(slow.stage,), faults=faults) as agents:
        a, b = agents["a"], agents["b"]
        slow.gate.open(300)
        a.send(producing("count", "t.count", "slow.in", params={"count": 300}))
        await a.told.started(task("count"))
        faults.arm(Armed(id="cut", what=FaultKind.PARTITION_DATA), None)
        b.send(consuming("slow", "t.slow", a.awaits(in_="count.out")))
        await a.streams.until_kept("count", limits.STREAM_BUFFER_CHUNKS)
        assert not slow.taken
        faults.heal(["cut"])
        assert values(await b.finished("slow")) == list(range(300))


async def test_cancel_closes_the_whole_chain() -> None:
    slow = Slow()
    async with cluster("a", "b", stages=(slow.stage,)) as agents:
        a, b = agents["a"], agents["b"]
        a.send(producing("count", "t.count", "double.in", params={"count": 10**9}))
        b.send(producing("double", "t.double", "slow.in", awaits=a.awaits(in_="count.out")))
        a.send(consuming("slow", "t.slow", b.awaits(in_="double.out")))
        await slow.gate.until_came(1)
        for agent, stage in ((a, "count"), (b, "double"), (a, "slow")):
            agent.send(Cancel(task=task(stage)))
        slow.gate.open()
        for agent, stage in ((a, "count"), (b, "double"), (a, "slow")):
            assert isinstance(await agent.told.final(task(stage)), WasCancelled)
        assert a.runtime.core.idle
        assert b.runtime.core.idle


async def test_cancel_waits_for_what_still_computes() -> None:
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        entered.set()
        assert leave.wait(20)

    async def stage(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", await call.compute(compute))

    async with cluster("a", stages=(streaming("t.deaf", stage, outputs={"out": NUMBERS}),)) as agents:
        a = agents["a"]
        a.send(producing("deaf", "t.deaf"))
        assert await asyncio.to_thread(entered.wait, 20)
        a.send(Cancel(task=task("deaf")))
        # Another attempt comes and goes, and the first has not been told as cancelled.
        a.send(producing("count", "t.count"))
        await a.finished("count")
        assert not a.told.ended(task("deaf"))
        leave.set()
        assert isinstance(await a.told.final(task("deaf")), WasCancelled)


@pytest.mark.parametrize("consumer", ["a", "b"])
async def test_failure_of_the_producer_reaches_its_consumers_after_the_last_chunk(consumer: str) -> None:
    taken: list[Any] = []

    async def fails(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", 1)
        yield Chunk("out", 2)
        raise StageError("no more film")

    async def takes(call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for received in call.inputs["in"]:
            taken.append(received.value)  # noqa: PERF401 - what came before the break counts
        yield Chunk("all", taken)

    stages = (
        streaming("t.fails", fails, outputs={"out": NUMBERS}),
        streaming("t.takes", takes, inputs={"in": NUMBERS}, outputs={"all": VALUE}),
    )
    async with cluster("a", "b", stages=stages) as agents:
        a, other = agents["a"], agents[consumer]
        a.send(producing("fails", "t.fails", "takes.in"))
        other.send(consuming("takes", "t.takes", a.awaits(in_="fails.out")))
        failed = await a.told.final(task("fails"))
        assert isinstance(failed, Failed)
        assert failed.error.message == "no more film"
        lost = await other.told.final(task("takes"))
        assert isinstance(lost, InputLost)
        assert lost.upstreams == (StageId("fails"),)
        assert not lost.gone
        assert "no more film" in lost.reason
        assert taken == [1, 2]


async def test_consumer_that_swallows_a_break_has_no_result_all_the_same() -> None:
    async def fails(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", 1)
        raise StageError("torn")

    async def swallows(call: StageCall) -> AsyncGenerator[Chunk, None]:
        with suppress(Exception):
            async for _ in call.inputs["in"]:
                pass
        yield Chunk("all", "done")

    stages = (
        streaming("t.fails", fails, outputs={"out": NUMBERS}),
        streaming("t.swallows", swallows, inputs={"in": NUMBERS}, outputs={"all": VALUE}),
    )
    async with cluster("a", stages=stages) as agents:
        a = agents["a"]
        a.send(producing("f", "t.fails", "s.in"), consuming("s", "t.swallows", a.awaits(in_="f.out")))
        assert isinstance(await a.told.final(task("s")), InputLost)


async def test_agent_that_cannot_be_reached_is_reported_as_lost_input() -> None:
    async with cluster("b") as agents:
        b = agents["b"]
        nobody = Await(
            upstream=StageId("up"),
            token=task("up").token,
            agent=AgentId("gone"),
            address="127.0.0.1:1",
            streams={"in": "out"},
        )
        b.send(consuming("s", "t.gather", (nobody,)))
        lost = await b.told.final(task("s"))
        assert isinstance(lost, InputLost)
        assert not lost.gone
        assert "127.0.0.1:1 cannot be reached" in lost.reason


@pytest.mark.parametrize("consumer", ["a", "b"])
async def test_chunks_that_are_not_kept_any_more_are_reported_as_gone(consumer: str) -> None:
    slow = Slow()
    async with cluster("a", "b", stages=(slow.stage,)) as agents:
        a, other = agents["a"], agents[consumer]
        # Nobody is declared, so that nothing is kept for the one that comes late.
        a.send(producing("count", "t.count", params={"count": 2 * limits.STREAM_BUFFER_CHUNKS}))
        await a.finished("count")
        other.send(consuming("slow", "t.slow", a.awaits(in_="count.out")))
        lost = await other.told.final(task("slow"))
        assert isinstance(lost, InputLost)
        assert lost.gone
        assert lost.missing == {StageId("count"): (a.name,)}


async def test_process_that_took_anothers_place_is_not_waited_for() -> None:
    async with cluster("a", "b") as agents:
        a, b = agents["a"], agents["b"]
        (awaited,) = a.awaits(in_="count.out")
        b.send(consuming("g", "t.gather", (msgspec.structs.replace(awaited, incarnation="the one before"),)))
        lost = await b.told.final(task("g"))
        assert isinstance(lost, InputLost)
        assert lost.missing == {StageId("count"): (a.name,)}
        assert "a was started anew since" in lost.reason


async def test_short_stream_is_read_again_by_an_attempt_that_comes_after_its_end() -> None:
    async with cluster("a", "b") as agents:
        a, b = agents["a"], agents["b"]
        a.send(producing("count", "t.count", "g.in"), consuming("g", "t.gather", a.awaits(in_="count.out")))
        first = await a.finished("g")
        b.send(consuming("g", "t.gather", a.awaits(in_="count.out")))
        assert values(await b.finished("g")) == values(first) == list(range(10))


@pytest.mark.parametrize("consumer", ["a", "b"])
async def test_greater_generation_overtakes_what_waits(consumer: str) -> None:
    interrupt = Gate()
    taken: list[Received] = []

    async def speaks(call: StageCall) -> AsyncGenerator[Chunk, None]:
        for number in range(10):
            yield Chunk("out", number)
        await interrupt.wait()
        for number in range(100, 103):
            yield Chunk("out", number, generation=1)
        yield Chunk("out", 9, generation=0)

    async def listens(call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for received in call.inputs["in"]:
            taken.append(received)
            if received.value == 0:
                interrupt.open()
                # It is at something long, and hears at once that nobody wants it any more.
                assert await call.inputs["in"].overtaken(received.generation) == 1
        yield Chunk("all", [received.value for received in taken])

    stages = (
        streaming("t.speaks", speaks, outputs={"out": NUMBERS}),
        streaming("t.listens", listens, inputs={"in": NUMBERS}, outputs={"all": VALUE}),
    )
    async with cluster("a", "b", stages=stages) as agents:
        a, other = agents["a"], agents[consumer]
        a.send(producing("speaks", "t.speaks", "listens.in"))
        other.send(consuming("listens", "t.listens", a.awaits(in_="speaks.out")))
        report = await other.finished("listens")
        assert values(report) == [0, 100, 101, 102]
        assert [received.generation for received in taken] == [0, 1, 1, 1]
        assert report.figures["in_stale_chunks"] == 10


@pytest.mark.parametrize("consumer", ["a", "b"])
async def test_consumer_that_has_enough_ends_and_so_does_its_endless_producer(consumer: str) -> None:
    async def takes(call: StageCall) -> AsyncGenerator[Chunk, None]:
        found = []
        async for received in call.inputs["in"]:
            found.append(received.value)
            if len(found) == 3:
                break
        yield Chunk("all", found)

    stage = streaming("t.takes", takes, inputs={"in": NUMBERS}, outputs={"all": VALUE})
    async with cluster("a", "b", stages=(stage,)) as agents:
        a, other = agents["a"], agents[consumer]
        a.send(producing("count", "t.count", "takes.in", params={"count": 10**9}))
        other.send(consuming("takes", "t.takes", a.awaits(in_="count.out")))
        report = await other.finished("takes")
        assert values(report) == [0, 1, 2]
        assert report.consumed["in"].digest == (await a.finished("count")).outputs["out"].digest


async def test_break_after_a_consumer_has_enough_costs_it_nothing() -> None:
    gate = Gate()

    async def counts(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", 0)
        await gate.wait()
        for number in range(1, 3 * limits.STREAM_BUFFER_CHUNKS):
            yield Chunk("out", number)

    async def takes(call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for received in call.inputs["in"]:
            yield Chunk("all", received.value)
            break

    stages = (
        streaming("t.counts", counts, outputs={"out": NUMBERS}),
        streaming("t.takes", takes, inputs={"in": NUMBERS}, outputs={"all": VALUE}),
    )
    async with cluster("a", "b", stages=stages) as agents:
        a, b = agents["a"], agents["b"]
        # After the only chunk that it takes, which is before the end, and before it learns the digest of all.
        a.streams.breaks = [1]
        a.send(
            producing("counts", "t.counts", "takes.in", "all.in"),
            consuming("all", "t.gather", a.awaits(in_="counts.out")),
        )
        b.send(consuming("takes", "t.takes", a.awaits(in_="counts.out")))
        await a.streams.until_left("counts", "takes.in")
        gate.open()
        report = await b.finished("takes")
        assert values(report) == 0
        assert report.consumed["in"].digest == (await a.finished("counts")).outputs["out"].digest
        assert len(a.streams.opened) == 2


async def test_two_readers_each_get_everything() -> None:
    slow = Slow()
    async with cluster("a", "b", stages=(slow.stage,)) as agents:
        a, b = agents["a"], agents["b"]
        slow.gate.open(200)
        a.send(
            producing("count", "t.count", "slow.in", "all.in", params={"count": 200}),
            consuming("all", "t.gather", a.awaits(in_="count.out")),
        )
        b.send(consuming("slow", "t.slow", a.awaits(in_="count.out")))
        assert values(await a.finished("all")) == values(await b.finished("slow")) == list(range(200))


async def test_one_shot_inputs_and_outputs_of_a_stream_stage() -> None:
    async def scales(call: StageCall) -> AsyncGenerator[Chunk, None]:
        total = 0
        async for received in call.inputs["in"]:
            total += received.value * call.inputs["by"]
            yield Chunk("out", received.value * call.inputs["by"], at=received.value / 10)
            yield Chunk("total", total)

    spec_inputs = {"in": NUMBERS, "by": VALUE}
    stage = streaming("t.scales", scales, inputs=spec_inputs, outputs={"out": NUMBERS, "total": VALUE})
    slow = Slow()
    slow.gate.open(5)
    async with cluster("a", stages=(stage, slow.stage)) as agents:
        a = agents["a"]
        by = (given("by", PortType.JSON, 3),)
        a.send(
            producing("count", "t.count", "scales.in", params={"count": 5}),
            producing("scales", "t.scales", "slow.in", awaits=a.awaits(in_="count.out"), inputs=by),
            consuming("slow", "t.slow", a.awaits(in_="scales.out")),
        )
        report = await a.finished("scales")
        assert values(report, "total") == 30
        assert report.consumed.keys() == {"in", "by"}
        assert values(await a.finished("slow")) == [0, 3, 6, 9, 12]
        assert [received.at for received in slow.taken] == [0.0, 0.1, 0.2, 0.3, 0.4]


async def test_one_shot_stage_gets_its_stream_input_collected() -> None:
    class Sum(Stage):
        spec = KindSpec(name="t.sum", inputs={"in": NUMBERS}, outputs={"sum": VALUE})

        def run(self, call: StageCall) -> Outputs:
            return {"sum": sum(call.inputs["in"])}

    async with cluster("a", stages=(Sum(),)) as agents:
        a = agents["a"]
        a.send(
            producing("count", "t.count", "sum.in", params={"count": 200}),
            consuming("sum", "t.sum", a.awaits(in_="count.out")),
        )
        assert values(await a.finished("sum"), "sum") == sum(range(200))


async def test_missing_stream_input_and_unknown_output_are_told() -> None:
    async def wrong(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("nothing", 1)

    async with cluster("a", stages=(streaming("t.wrong", wrong, outputs={"out": NUMBERS}),)) as agents:
        a = agents["a"]
        a.send(assign("wrong", "t.wrong"), assign("gather", "t.gather"))
        first, second = await a.told.final(task("wrong")), await a.told.final(task("gather"))
        assert isinstance(first, Failed)
        assert "stages.wrong.out.nothing" in first.error.message
        assert isinstance(second, Failed)
        assert "stages.gather.in.in" in second.error.message


@pytest.mark.parametrize("generation", [-1, 1 << 64, 0.5])
async def test_generation_that_is_none_is_told_with_its_place(generation: Any) -> None:
    async def wrong(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", 1, generation=generation)

    async with cluster("a", stages=(streaming("t.wrong", wrong, outputs={"out": NUMBERS}),)) as agents:
        agents["a"].send(assign("wrong", "t.wrong"))
        failed = await agents["a"].told.final(task("wrong"))
        assert isinstance(failed, Failed)
        assert "stages.wrong.out.out" in failed.error.message
        assert "generation" in failed.error.message


async def test_stream_stage_that_takes_too_long_times_out() -> None:
    story: list[str] = []

    async def waits(call: StageCall) -> AsyncGenerator[Chunk, None]:
        story.append("entered")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            story.append("left")
        yield Chunk("out", 1)

    async with cluster("a", stages=(streaming("t.waits", waits, outputs={"out": NUMBERS}),)) as agents:
        a = agents["a"]
        a.send(assign("waits", "t.waits", timeout_seconds=0.05))
        failed = await a.told.final(task("waits"))
        assert isinstance(failed, Failed)
        assert failed.error.cause == "DeadlineExceeded"
        assert failed.error.transient
        # On a busy machine it may be over before the stage has begun.
        assert story in ([], ["entered", "left"])


async def test_declared_output_stream_is_written_to_the_store_over_breaks() -> None:
    async with cluster("a") as agents:
        a, store = agents["a"], agents.store
        store.write_breaks = [3, 7]
        a.send(producing("count", "t.count", params={"count": 200}, publish=("out",)))
        report = await a.finished("count")
        name = StreamName(JobId("j"), StageId("count"), task("count").token, "out")
        assert [chunk.data for chunk in store.written[name]] == [str(n).encode() for n in range(200)]
        assert store.ends[name].digest == report.outputs["out"].digest
        assert (report.outputs["out"].holder, report.published) == ("", ("out",))


async def test_store_that_takes_a_stream_no_more_fails_the_attempt_at_once() -> None:
    async with cluster("a") as agents:
        a = agents["a"]
        agents.store.refuse_streams = InvalidInput("no such output")
        a.send(producing("count", "t.count", params={"count": 10**9}, publish=("out",)))
        failed = await a.told.final(task("count"))
        assert isinstance(failed, Failed)
        assert "no such output" in failed.error.message


def _odd(*_: Any) -> Any:
    raise KeyError("a defect")


async def test_defect_in_reading_a_stream_ends_the_attempt_and_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("starloom.agents.streamframes.unframe", _odd)
    async with cluster("a", "b") as agents:
        a, b = agents["a"], agents["b"]
        a.send(producing("count", "t.count", "g.in"))
        b.send(consuming("g", "t.gather", a.awaits(in_="count.out")))
        lost = await b.told.final(task("g"))
        assert isinstance(lost, InputLost)
        assert "cannot be read: KeyError" in lost.reason
    assert "failed unexpectedly" in caplog.text


async def test_defect_in_writing_a_stream_fails_the_attempt_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starloom.agents.wirestreams.part_to_wire", _odd)
    async with cluster("a") as agents:
        a = agents["a"]
        a.send(producing("count", "t.count", params={"count": 10**9}, publish=("out",)))
        failed = await a.told.final(task("count"))
        assert isinstance(failed, Failed)
        assert failed.error.message == "KeyError: 'a defect'"


async def test_stream_for_an_unknown_port_is_told() -> None:
    async with cluster("a") as agents:
        a = agents["a"]
        a.send(consuming("gather", "t.gather", a.awaits(other="count.out")))
        failed = await a.told.final(task("gather"))
        assert isinstance(failed, Failed)
        assert "stages.gather.in.other" in failed.error.message


async def test_cancel_does_not_wait_for_a_computation_that_has_no_slot_yet() -> None:
    entered, leave = threading.Event(), threading.Event()

    def occupy() -> None:
        entered.set()
        assert leave.wait(20)

    async def occupies(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", await call.compute(occupy))

    async def waits(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", await call.compute(pytest.fail, "it was cancelled before it began"))

    stages = (
        streaming("t.occupies", occupies, outputs={"out": NUMBERS}),
        streaming("t.waits", waits, outputs={"out": NUMBERS}),
    )
    async with cluster("a", stages=stages, slots=1) as agents:
        a = agents["a"]
        a.send(producing("occupies", "t.occupies"))
        assert await asyncio.to_thread(entered.wait, 20)
        a.send(producing("waits", "t.waits"))
        await a.told.started(task("waits"))
        a.send(Cancel(task=task("waits")))
        assert isinstance(await a.told.final(task("waits")), WasCancelled)
        leave.set()
        assert isinstance(await a.told.final(task("occupies")), Finished)


async def test_input_stream_of_the_job_is_read_at_the_orchestrator() -> None:
    async with cluster("a") as agents:
        a = agents["a"]
        flow = agents.store.input("microphone", "gather.in")
        feed = Await(upstream=StageId(""), token=OF_THE_JOB, streams={"in": "microphone"})
        a.send(consuming("gather", "t.gather", (feed,)))
        for number in range(200):
            await flow.append(str(number).encode(), {})
        flow.finish()
        report = await a.finished("gather")
        assert values(report) == list(range(200))
        assert report.consumed == {}


async def test_released_job_is_forgotten() -> None:
    async with cluster("a") as agents:
        a = agents["a"]
        a.send(producing("count", "t.count"))
        await a.finished("count")
        assert a.streams.kept("count").chunks == 10
        a.send(Release(job=JobId("j")))
        await a.streams.settled()
        assert a.streams.flow("count") is None


async def test_job_that_is_released_before_a_stream_stage_begins_is_forgotten() -> None:
    free = threading.Event()
    async with cluster("a") as agents:
        a = agents["a"]
        a.streams.hold_up(free)
        try:
            a.send(producing("count", "t.count"))
            # That it was handed over is all that has happened when the job ends.
            a.send(Release(job=JobId("j")))
        finally:
            free.set()
        await a.streams.settled()
        assert a.streams.flow("count") is None


async def _diamond(agents: Cluster, gathers: int, count: int) -> None:
    a = agents["a"]
    a.send(
        producing("source", "t.count", "gathers.in", "passes.in", params={"count": count}),
        producing("gathers", "t.gathers", "meet.left", awaits=a.awaits(in_="source.out"), params={"count": gathers}),
        producing("passes", "t.double", "meet.right", awaits=a.awaits(in_="source.out")),
        consuming("meet", "t.meet", (*a.awaits(left="gathers.out"), *a.awaits(right="passes.out"))),
    )


async def _gathers(call: StageCall) -> AsyncGenerator[Chunk, None]:
    held: list[int] = []
    async for received in call.inputs["in"]:
        held.append(received.value)
        if len(held) == call.params["count"]:
            for value in held:
                yield Chunk("out", value)
            held.clear()


async def _meet(call: StageCall) -> AsyncGenerator[Chunk, None]:
    right = aiter(call.inputs["right"])
    yield Chunk("all", [[left.value, (await anext(right)).value] async for left in call.inputs["left"]])


DIAMOND = (
    streaming(
        "t.gathers",
        _gathers,
        inputs={"in": NUMBERS},
        outputs={"out": NUMBERS},
        params={"count": Param(type="integer", required=True)},
    ),
    streaming("t.meet", _meet, inputs={"left": NUMBERS, "right": NUMBERS}, outputs={"all": VALUE}),
)


async def test_diamond_whose_one_way_gathers_gets_the_room_it_needs() -> None:
    count = 4 * limits.STREAM_BUFFER_CHUNKS
    async with cluster("a", stages=DIAMOND) as agents:
        await _diamond(agents, gathers=count, count=count)
        assert values(await agents["a"].finished("meet")) == [[n, 2 * n] for n in range(count)]


async def test_diamond_without_room_fails_and_names_who_waits_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAM_BUFFER_CHUNKS_MAX", limits.STREAM_BUFFER_CHUNKS)
    monkeypatch.setattr(limits, "STREAM_STUCK_SECONDS", 0.0)
    count = 4 * limits.STREAM_BUFFER_CHUNKS
    async with cluster("a", stages=DIAMOND) as agents:
        await _diamond(agents, gathers=count, count=count)
        failed = await agents["a"].told.final(task("passes"))
        assert isinstance(failed, Failed)
        assert not failed.error.transient
        assert "meet waits for chunks of gathers, gathers waits for chunks of source" in failed.error.message
