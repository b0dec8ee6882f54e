"""Stages that stream into each other: placed together, given up together, and committed in order."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, node

from starloom import Graph
from starloom.agents.messages import Assign, Await, Cancel, Finished, Reader, Started
from starloom.dag import limits
from starloom.dag.constellation import Constellation, OnFailure, Policy, Requirements, Retry
from starloom.dag.facts import Consumed, StageCommitted, StagePlaced, StageSkipped, StageSuperseded, StreamOptions
from starloom.dag.ids import Attempt, Epoch, FencingToken, StageId
from starloom.dag.values import Full, PortType


def chain(stages: int = 1, **stage: Any) -> Constellation:
    """A producer, stages that pass its stream on, and a sum; all by their order."""
    graph = Graph("chain")
    last = graph.stage("tick", "t.ticks", **stage)["ticks"]
    for number in range(stages):
        last = graph.stage(f"twice-{number}", "t.twice", ticks=last)["ticks"]
    graph.output("ticks", last)
    graph.output("sum", graph.stage("sum", "t.sum", a=last)["value"])
    return graph.build(KINDS)


CHAIN = chain()


def meeting(*, gate: bool = False) -> Constellation:
    """Two producers whose streams meet in one sum, which also needs the value of a stage outside, behind `gate`."""
    graph = Graph("meeting")
    left, right = (graph.stage(name, "t.ticks")["ticks"] for name in ("left", "right"))
    after = [graph.stage("gate", "t.work")] if gate else []
    total = graph.stage("sum", "t.sum", a=left, b=right, after=after)
    graph.output("sum", total["value"])
    return graph.build(KINDS)


def fan(**stage: Any) -> Constellation:
    """One producer, whose stream two sums read."""
    graph = Graph("fan")
    ticks = graph.stage("tick", "t.ticks")["ticks"]
    for name in ("one", "two"):
        graph.stage(name, "t.sum", a=ticks, **stage)
    return graph.build(KINDS)


def token(attempt: int, epoch: int = 1) -> FencingToken:
    return FencingToken(Epoch(epoch), Attempt(attempt))


def attempts(w: World, *stages: str) -> list[int]:
    return [w.assigned(stage).task.token.attempt for stage in stages]


class TestPlaced:
    def test_a_chain_is_placed_at_once_and_each_reader_is_told_whom_it_reads(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(CHAIN)
        assert w.active() == ["sum", "tick", "twice-0"]
        twice: Assign = w.assigned("twice-0")
        assert twice.inputs == ()
        assert twice.awaits == (
            Await(
                upstream=StageId("tick"),
                token=token(1),
                agent=w.agents["edge-1"].name,
                address="edge-1:1",
                streams={"ticks": "ticks"},
                incarnation=w.agents["edge-1"].incarnation,
            ),
        )
        assert w.assigned("tick").readers == (Reader(port="ticks", reader="twice-0.ticks", full=Full.BLOCK),)
        assert twice.readers == (Reader(port="ticks", reader="sum.a"),)
        assert twice.publish == ("ticks",)
        assert [fact.awaits for fact in facts_of(w, StagePlaced, "sum")] == [{"twice-0": token(1)}]
        assert w.status(job, "tick", "twice-0", "sum") == ["placed"] * 3

    def test_readers_take_no_room_but_the_first_of_a_group_does(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("starloom.dag.limits.AGENT_BACKLOG_STAGES", 0)
        monkeypatch.setattr("starloom.dag.limits.DELEGATED_STAGES_PER_AGENT_MAX", 1)
        w = world(node("edge-1", slots=1))
        first = w.submit(chain(4))
        second = w.submit(chain(4))
        assert w.status(first, "tick", "twice-3", "sum") == ["placed"] * 3
        assert w.status(second, "tick", "twice-3", "sum") == ["pending"] * 3
        w.finish("tick", "twice-0", "twice-1", "twice-2", "twice-3", "sum")
        assert w.status(first) == "succeeded"
        assert w.status(second, "tick", "twice-3", "sum") == ["placed"] * 3

    def test_max_parallel_bounds_groups_and_never_parts_one(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        graph = Graph("two")
        for name in "ab":
            ticks = graph.stage(f"tick-{name}", "t.ticks")["ticks"]
            graph.stage(f"sum-{name}", "t.sum", a=ticks)
        w.submit(graph.build(KINDS), max_parallel=1)
        assert w.active() == ["sum-a", "tick-a"]
        w.finish("tick-a", "sum-a")
        assert w.active() == ["sum-b", "tick-b"]

    def test_max_parallel_lets_run_what_a_stage_waits_for_whose_group_is_under_way(self, world: Any) -> None:
        """What its producers give waits for it, so that they would never end, and never make room for what it needs."""
        w = world(node("edge-1", slots=8))
        graph = Graph("again")
        gate = graph.stage("gate", "t.work")
        ticks = graph.stage("tick", "t.ticks")["ticks"]
        graph.stage("sum", "t.sum", a=ticks, after=[gate])
        job = w.submit(graph.build(KINDS), max_parallel=1)
        w.finish("gate")
        assert w.active() == ["sum", "tick"]
        w.patched(w.patch(job, "- replace: {stage: gate, params: {seed: 8}}", restart=True))
        w.fail("sum", transient=True)
        w.advance(1)
        assert w.active() == ["gate", "tick"]
        w.finish("gate")
        assert w.active() == ["sum", "tick"]

    def test_two_producers_that_meet_are_placed_together(self, world: Any) -> None:
        w = world(node("edge-1", slots=1))
        w.submit(meeting(), max_parallel=1)
        assert w.active() == ["left", "right", "sum"]
        assert [each.streams for each in w.assigned("sum").awaits] == [{"a": "ticks"}, {"b": "ticks"}]

    def test_none_starts_before_all_that_its_group_needs_is_there(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        job = w.submit(meeting(gate=True))
        assert w.active() == ["gate"]
        assert w.coordinator.waits_for(job, StageId("left")) == "the upstreams of those that it streams with: gate"
        w.finish("gate")
        assert w.active() == ["left", "right", "sum"]

    def test_none_starts_while_one_of_them_has_no_node(self, world: Any) -> None:
        w = world(node("edge-1", slots=8), node("edge-2", slots=8, labels={"site": "north"}))
        graph = Graph("apart")
        ticks = graph.stage("tick", "t.ticks", require=Requirements(node="edge-1"))["ticks"]
        graph.stage("sum", "t.sum", a=ticks, require=Requirements(labels={"site": "north"}))
        made = graph.build(KINDS)
        w.goodbye("edge-2")
        job = w.submit(made)
        assert w.active() == []
        assert w.status(job, "tick", "sum") == ["pending"] * 2
        w.join(node("edge-2", slots=8, labels={"site": "north"}))
        assert w.active() == ["sum", "tick"]
        assert w.assigned("sum").awaits[0].agent == "edge-1"

    def test_a_job_with_open_input_streams_runs(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("fed")
        first, second = (
            graph.input(name, PortType.JSON, stream=True, optional=name == "two") for name in ("one", "two")
        )
        graph.stage("sum", "t.sum", a=first)
        graph.output("ticks", graph.stage("twice", "t.twice", ticks=first)["ticks"])
        del second
        job = w.submit(graph.build(KINDS), streams={"one": StreamOptions(full=Full.LATEST)})
        assert w.assigned("sum").awaits == (Await(upstream=StageId(""), token=token(0, 0), streams={"a": "one"}),)
        assert [fact.awaits for fact in facts_of(w, StagePlaced, "sum")] == [{}]
        w.finish("sum", "twice")
        assert w.status(job) == "succeeded"
        assert w.stage(job, "sum").consumed == {"a": Consumed(StageId(""), None, "")}


class TestCommitted:
    def test_a_readers_result_waits_for_its_producers(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain(2))
        w.start("tick", "twice-0", "sum")
        w.finish("sum")
        w.finish("twice-1", "twice-0")
        assert w.status(job, "twice-0", "twice-1", "sum") == ["running", "placed", "running"]
        w.finish("tick")
        assert w.status(job) == "succeeded"
        order = [fact.stage for fact in facts_of(w, StageCommitted)]
        assert order == ["tick", "twice-0", "twice-1", "sum"]
        assert w.job(job).outputs["ticks"].stream

    def test_what_was_read_of_another_attempt_does_not_count_unless_it_was_the_same(self, world: Any) -> None:
        for same in (True, False):
            w = world(node("edge-1"))
            job = w.submit(CHAIN)
            made = w.finish("tick").outputs["ticks"]
            agent, assign = w.where("twice-0"), w.assigned("twice-0")
            report: Finished = agent.result(assign)
            read = Consumed(StageId("tick"), token(9), made.digest if same else "")
            w.report(agent, msgspec.structs.replace(report, consumed={"ticks": read}))
            assert w.status(job, "twice-0") == ["succeeded" if same else "placed"]
            assert w.stage(job, "twice-0").input_losses == (not same)

    def test_a_stream_that_the_job_declares_has_to_be_in_the_job_store(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(CHAIN)
        w.finish("tick")
        agent, assign = w.where("twice-0"), w.assigned("twice-0")
        w.report(agent, msgspec.structs.replace(agent.result(assign), published=()))
        assert w.status(job) == "failed"
        assert "output ticks is declared by the job, and was not brought to the job store" in w.job(job).error


class TestTogether:
    def test_readers_die_with_their_producer_and_all_begin_again(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("chain")
        ticks = graph.stage("tick", "t.ticks", require=Requirements(node="edge-1"))["ticks"]
        twice = graph.stage("twice", "t.twice", ticks=ticks, require=Requirements(node="edge-2"))["ticks"]
        graph.stage("sum", "t.sum", a=twice, require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        w.start("tick", "twice", "sum")
        old = {w.assigned(stage).task for stage in ("twice", "sum")}
        w.goodbye("edge-1")
        assert {command.task for command in w.agents["edge-2"].log if isinstance(command, Cancel)} == old
        assert w.status(job, "tick", "twice", "sum") == ["pending"] * 3
        w.acknowledge_cancels()
        w.join(node("edge-1"))
        assert attempts(w, "tick", "twice", "sum") == [2, 2, 2]
        assert w.assigned("sum").awaits[0].token == token(2)
        assert [w.stage(job, name).deaths for name in ("tick", "twice", "sum")] == [1, 0, 0]
        assert [w.stage(job, name).failures + w.stage(job, name).input_losses for name in ("twice", "sum")] == [0, 0]
        w.finish("tick", "twice", "sum")
        assert w.status(job) == "succeeded"

    def test_a_reader_that_has_begun_again_gets_what_is_still_there(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("chain")
        ticks = graph.stage("tick", "t.ticks", require=Requirements(node="edge-1"))["ticks"]
        graph.stage("sum", "t.sum", a=ticks, require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        w.start("tick", "sum")
        w.goodbye("edge-2")
        w.join(node("edge-2"))
        assert attempts(w, "tick", "sum") == [1, 2]
        assert w.assigned("sum").awaits[0].token == token(1)
        assert w.stage(job, "sum").deaths == 1
        w.finish("tick", "sum")
        assert w.status(job) == "succeeded"

    def test_chunks_that_are_gone_are_produced_again_for_all_who_read_them(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        graph = Graph("two")
        ticks = graph.stage("tick", "t.ticks")["ticks"]
        for name in ("one", "two"):
            graph.stage(name, "t.sum", a=ticks)
        job = w.submit(graph.build(KINDS))
        w.start("tick", "one", "two")
        w.lose_input("one", "tick", gone=True)
        w.acknowledge_cancels()
        assert attempts(w, "tick", "one", "two") == [2, 2, 2]
        assert [w.stage(job, name).input_losses for name in ("tick", "one", "two")] == [0, 1, 0]
        w.finish("tick", "one", "two")
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize("dies", [False, True])
    def test_a_reader_that_fails_while_its_producer_is_made_again_holds_nobody_up(self, world: Any, dies: bool) -> None:
        w = world(node("edge-1", slots=8))
        job = w.submit(fan())
        w.start("tick", "one", "two")
        w.finish("tick")
        w.lose_input("one", "tick", gone=True)
        w.acknowledge_cancels()
        assert w.assigned("tick").task.token.attempt == 2
        if dies:
            w.join(node("edge-2", slots=8))
            for _ in range(limits.AGENT_DEATHS_PER_STAGE_MAX):
                name = w.where("one").name
                w.goodbye(name)
                w.join(node(name, slots=8))
        else:
            w.fail("one")
        assert w.status(job) == "failed"

    def test_a_producer_that_has_ended_is_made_again_with_what_read_it(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        job = w.submit(CHAIN)
        w.finish("tick")
        w.start("twice-0")
        w.lose_input("twice-0", "tick", gone=True)
        w.acknowledge_cancels()
        assert w.status(job, "tick", "twice-0", "sum") == ["placed"] * 3
        assert attempts(w, "tick") == [2]
        assert w.assigned("twice-0").awaits[0].token == token(2)
        w.finish("tick", "twice-0", "sum")
        assert w.status(job) == "succeeded"

    def test_a_producer_that_is_made_again_does_not_wait_for_readers_that_have_their_results(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        job = w.submit(fan())
        w.finish("tick", "one")
        w.start("two")
        w.lose_input("two", "tick", gone=True)
        assert w.status(job, "tick", "one", "two") == ["placed", "succeeded", "placed"]
        assert [reader.reader for reader in w.assigned("tick").readers] == ["two.a"]
        w.finish("tick", "two")
        assert w.status(job) == "succeeded"
        assert w.stage(job, "one").attempt == 1, "it does not run again"

    def test_a_producer_that_is_made_again_does_not_wait_for_a_reader_that_had_read_it_before(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        w.reads_all = True
        job = w.submit(fan())
        w.finish("tick")
        w.start("one", "two")
        w.lose_input("two", "tick", gone=True)
        assert [reader.reader for reader in w.assigned("tick").readers] == ["one.a", "two.a"]
        w.finish("one")
        w.acknowledge_cancels()
        assert w.status(job, "one") == ["succeeded"]
        assert [reader.reader for reader in w.assigned("tick").readers] == ["two.a"]
        w.finish("tick", "two")
        assert w.status(job) == "succeeded"

    def test_a_producer_begins_again_without_a_reader_that_is_given_up(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        job = w.submit(fan(policy=Policy(on_failure=OnFailure.SKIP)))
        w.start("tick", "one", "two")
        w.fail("one")
        w.acknowledge_cancels()
        assert w.status(job, "one") == ["skipped"]
        assert attempts(w, "tick", "two") == [2, 2]
        assert [reader.reader for reader in w.assigned("tick").readers] == ["two.a"]
        w.finish("tick", "two")
        assert w.status(job) == "succeeded"

    def test_a_stage_that_is_skipped_early_names_the_upstream_that_does_not_let_it_start(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        graph = Graph("meeting")
        left = graph.stage("left", "t.ticks")["ticks"]
        right = graph.stage("right", "t.ticks", policy=Policy(on_failure=OnFailure.SKIP))["ticks"]
        graph.stage("sum", "t.sum", a=left, b=right)
        job = w.submit(graph.build(KINDS))
        w.start("left", "right", "sum")
        w.fail("right")
        w.acknowledge_cancels()
        assert w.status(job, "left", "right", "sum") == ["placed", "skipped", "skipped"]
        assert [fact.reason for fact in facts_of(w, StageSkipped, "sum")] == ["right was skipped"]
        assert w.assigned("left").readers == ()

    def test_a_stream_that_is_spooled_is_read_from_there_when_its_agent_is_gone(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("chain")
        tick = graph.stage("tick", "t.ticks", require=Requirements(node="edge-1"))["ticks"]
        graph.output("ticks", tick)
        graph.stage("sum", "t.sum", a=tick, require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        w.finish("tick")
        w.goodbye("edge-1")
        w.goodbye("edge-2")
        w.join(node("edge-2"))
        assert w.assigned("sum").awaits == (Await(upstream=StageId("tick"), token=token(1), streams={"a": "ticks"}),)
        w.finish("sum")
        assert w.status(job) == "succeeded"

    def test_a_producer_whose_agent_is_lost_after_its_end_runs_again_for_a_reader(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("chain")
        tick = graph.stage("tick", "t.ticks", require=Requirements(node="edge-1"))["ticks"]
        graph.stage("sum", "t.sum", a=tick, require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        w.finish("tick")
        w.goodbye("edge-1")
        w.join(node("edge-1"))
        assert w.status(job, "tick", "sum") == ["succeeded", "placed"], "it has chunks to read, perhaps"
        w.lose_input("sum", "tick", gone=True)
        assert attempts(w, "tick", "sum") == [2, 2]
        w.finish("tick", "sum")
        assert w.status(job) == "succeeded"

    def test_a_reader_that_fails_does_not_wait_for_its_producer(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(CHAIN)
        w.start("tick", "twice-0", "sum")
        w.fail("sum")
        assert w.status(job) == "failed"

    def test_a_reader_that_fails_for_a_moment_is_tried_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("chain")
        ticks = graph.stage("tick", "t.ticks")["ticks"]
        graph.stage("sum", "t.sum", a=ticks, policy=Policy(retry=Retry(times=1, first_seconds=1.0)))
        job = w.submit(graph.build(KINDS))
        w.start("tick", "sum")
        w.fail("sum", transient=True)
        assert w.status(job, "tick", "sum") == ["running", "pending"]
        w.advance(1.5)
        assert attempts(w, "tick", "sum") == [1, 2]

    def test_what_needs_a_producer_that_is_skipped_is_skipped(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain(policy=Policy(on_failure=OnFailure.SKIP, retry=Retry(times=0))))
        w.start("tick", "twice-0")
        w.fail("tick")
        w.acknowledge_cancels()
        assert w.status(job, "tick", "twice-0", "sum") == ["skipped"] * 3
        assert w.status(job) == "succeeded"

    def test_an_input_stream_that_is_gone_fails_the_stage_by_name(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("fed")
        graph.stage("sum", "t.sum", a=graph.input("one", PortType.JSON, stream=True))
        job = w.submit(graph.build(KINDS))
        w.start("sum")
        w.lose_input("sum", "", gone=True)
        assert w.status(job) == "failed"
        assert "an input of the job is not there any more" in w.job(job).error

    def test_a_cancel_stops_the_whole_chain(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(chain(3))
        w.start("tick", "sum")
        request = w.cancel(job)
        w.acknowledge_cancels()
        assert w.stopped(request).status == "cancelled"


class TestRestart:
    def test_a_chain_goes_on_over_a_restart(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(CHAIN)
        w.start("tick", "twice-0")
        w.restart()
        assert attempts(w, "tick", "twice-0", "sum") == [1, 1, 1]
        w.finish("twice-0")
        w.finish("tick", "sum")
        assert w.status(job) == "succeeded"

    def test_a_kept_result_is_forgotten_with_a_restart_and_made_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(CHAIN)
        w.finish("sum")
        w.restart()
        assert attempts(w, "tick", "twice-0", "sum") == [1, 1, 2]
        w.finish("tick", "twice-0", "sum")
        assert w.status(job) == "succeeded"

    def test_readers_die_with_a_producer_that_did_not_come_back(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("chain")
        ticks = graph.stage("tick", "t.ticks", require=Requirements(tiers=()))["ticks"]
        graph.stage("sum", "t.sum", a=ticks, require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        producer = w.where("tick").name
        w.start("tick", "sum")
        w.restart(hello=False)
        for name in ("edge-1", "edge-2"):
            w.hello(w.agents[name], held=() if name == producer else None)
        w.acknowledge_cancels()
        reasons = [fact.reason for fact in facts_of(w, StageSuperseded, "sum")]
        assert reasons
        assert w.stage(job, "sum").attempt == 2
        assert w.stage(job, "tick").attempt == 2


def test_a_reader_goes_near_its_producer(world: Any) -> None:
    w = world(node("edge-1", slots=8), node("edge-2", slots=8))
    w.submit(CHAIN)
    assert len({name for _, name in w.placed}) == 1


def test_stages_that_stream_are_not_changed_while_their_job_runs(world: Any) -> None:
    w = world(node("edge-1", slots=8))
    job = w.submit(CHAIN)
    for text in (
        "- add: {again: {kind: t.sum, in: {a: twice-0.ticks}}}",
        "- replace: {stage: twice-0, kind: t.twice, params: {}}\n- remove: sum",
        "- outputs: {more: tick.ticks}",
    ):
        refusal = w.refused(w.patch(job, text, restart=True))
        assert "stages that stream are not changed while their job runs" in refusal
    w.patched(w.patch(job, "- add: {say: {kind: t.say, in: {x: sum.value}}}"))
    w.start("sum")
    w.report(w.where("tick"), Started(task=w.assigned("tick").task))
    w.finish("tick", "twice-0", "sum", "say")
    assert w.status(job) == "succeeded"
