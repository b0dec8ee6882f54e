"""Deadlines of jobs and stages: what counts, what follows, and what a restart does to them."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, SECOND, World, facts_of, node

from starloom.agents.messages import Cancel, Failed, Started
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, OnFailure, Policy, Requirements, Retry
from starloom.dag.facts import DeadlineSpent, ErrorInfo, JobCancelRequested, JobEnded, StageFailed
from starloom.orchestrator.effects import Stopped


def two(deadline: float = 0.0, of_job: float = 0.0, **policy: Any) -> Constellation:
    graph = Graph("two", deadline_seconds=of_job)
    first = graph.stage("a", "t.work")
    second = graph.stage("b", "t.work", x=first["value"])
    third = graph.stage("c", "t.work", policy=Policy(deadline_seconds=deadline, **policy), x=second["value"])
    graph.stage("d", "t.work", x=third["value"].on_completion())
    return graph.build(KINDS)


def streamed(deadline: float, require: Requirements | None = None) -> Constellation:
    """A producer, which may have requirements, and a reader with a deadline."""
    graph = Graph("streamed")
    ticks = graph.stage("tick", "t.ticks", require=require)["ticks"]
    graph.stage("sum", "t.sum", policy=Policy(deadline_seconds=deadline), a=ticks)
    return graph.build(KINDS)


def one(deadline: float, require: Requirements | None = None, **policy: Any) -> Constellation:
    graph = Graph("one")
    stage = graph.stage("a", "t.work", policy=Policy(deadline_seconds=deadline, **policy), require=require)
    graph.stage("b", "t.work", x=stage["value"].on_completion())
    return graph.build(KINDS)


class TestStages:
    def test_its_time_begins_when_its_dependencies_hold(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(two(3.0))
        w.advance(10)
        w.finish("a", "b")
        w.advance(2.9)
        assert w.status(job, "c") == ["placed"]
        w.advance(0.2)
        assert w.status(job, "c") == ["failed"]
        error = w.stage(job, "c").error
        assert (error.cause, error.transient) == ("DeadlineExceeded", False)

    def test_time_in_the_queue_counts_and_is_told(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0))
        w.advance(3.0)
        w.start("a")
        w.advance(2.1)
        message = w.stage(job, "a").error.message
        assert message == (
            "deadline exceeded: 5 s from when its dependencies held; it waited 3.0 s and ran 2.0 s; "
            "last it waited for edge-1 to end it"
        )
        assert w.status(job) == "failed"
        assert w.job(job).cause == "DeadlineExceeded"

    def test_back_offs_and_retries_count(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0, retry=Retry(times=100, first_seconds=1.0, factor=1.0)))
        for _ in range(4):
            w.start("a")
            w.advance(0.2)
            w.fail("a", "busy", transient=True)
            w.advance(1.1)
        assert w.status(job) == "failed"
        assert "it waited 4.2 s and ran 0.8 s" in w.stage(job, "a").error.message
        assert "after: busy" in w.stage(job, "a").error.message

    def test_a_stage_without_a_place_runs_out_of_time_as_well(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2", labels={"rack": "left"}))
        w.goodbye("edge-2")
        job = w.submit(one(5.0, Requirements(labels={"rack": "left"})))
        w.advance(5.1)
        assert w.status(job) == "failed"
        assert "last it waited for a node that may run it: edge-1" in w.stage(job, "a").error.message

    def test_a_readers_time_begins_when_its_producer_is_given_out(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2", labels={"rack": "left"}))
        w.goodbye("edge-2")
        job = w.submit(streamed(3.0, Requirements(labels={"rack": "left"})))
        w.advance(30.0)
        assert w.status(job, "tick", "sum") == ["pending", "pending"]
        w.join(node("edge-2", labels={"rack": "left"}))
        assert w.status(job, "tick", "sum") == ["placed", "placed"]
        w.advance(2.9)
        assert w.status(job) == "running"
        w.advance(0.2)
        assert w.status(job, "sum") == ["failed"]
        assert w.job(job).cause == "DeadlineExceeded"

    def test_what_runs_is_cancelled_and_what_it_gives_is_refused(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0, on_failure=OnFailure.SKIP))
        w.start("a")
        agent, assign = w.where("a"), w.assigned("a")
        w.advance(5.1)
        assert Cancel(task=assign.task) in agent.log
        assert w.status(job, "a", "b") == ["skipped", "placed"]
        w.report(agent, agent.result(assign))
        assert w.coordinator.stale_refused == 1
        w.finish("b")
        assert w.status(job) == "succeeded"

    def test_its_defaults_stand_in(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0, on_failure=OnFailure.DEFAULT, defaults={"value": 3}))
        w.advance(5.1)
        assert w.status(job, "a") == ["succeeded"]
        w.acknowledge_cancels()
        w.finish("b")
        assert w.status(job) == "succeeded"

    def test_what_ends_in_time_is_left_alone(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0))
        w.advance(4.5)
        w.finish("a")
        w.advance(10.0)
        assert w.status(job, "a", "b") == ["succeeded", "placed"]

    def test_a_result_that_is_made_again_has_a_new_deadline(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("again")
        made = graph.stage("make", "t.blob", policy=Policy(deadline_seconds=5.0))
        graph.stage("use", "t.need", data=made["data"])
        job = w.submit(graph.build(KINDS))
        w.advance(4.0)
        holder = w.where("make")
        w.finish("make")
        w.goodbye(holder.name)
        holder.tasks.clear()
        assert w.status(job, "make") == ["placed"]
        w.advance(4.0)
        w.finish("make")
        w.finish("use")
        assert w.status(job) == "succeeded"

    def test_a_patch_gives_another_deadline(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0))
        w.advance(4.0)
        request = w.patch(job, "- set_policy: {stage: a, deadline: 6s}")
        w.give_back()
        assert w.patched(request).revision == 2
        w.advance(5.9)
        assert w.status(job, "a") == ["placed"]
        w.advance(0.2)
        assert w.status(job) == "failed"

    def test_a_cancelled_job_has_no_deadlines(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(5.0), deadline_seconds=5.0)
        w.cancel(job)
        w.advance(10.0)
        assert w.status(job) == "cancelling"
        w.acknowledge_cancels()
        assert w.status(job) == "cancelled"


class TestJobs:
    def test_it_fails_once_nothing_of_it_runs_any_more(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(two(), deadline_seconds=4.0)
        w.finish("a")
        w.start("b")
        agent, task = w.where("b"), w.assigned("b").task
        w.advance(4.1)
        assert Cancel(task=task) in agent.log
        assert w.status(job) == "cancelling"
        assert w.status(job, "a", "b", "c") == ["succeeded", "running", "cancelled"]
        w.acknowledge_cancels()
        assert w.status(job) == "failed"
        (ended,) = facts_of(w, JobEnded)
        assert ended.cause == "DeadlineExceeded"
        assert ended.error.startswith(
            "deadline exceeded: 4 s from its acceptance; 3 of 4 stages had not ended: "
            "b waited for edge-1 to end it; c waited for its upstreams: b; d waited for its upstreams: c"
        )

    def test_the_option_goes_before_the_constellation(self, world: Any) -> None:
        w = world(node("edge-1"))
        early, late = w.submit(two(of_job=9.0), deadline_seconds=2.0), w.submit(two(of_job=3.0))
        w.advance(2.5)
        assert (w.status(early), w.status(late)) == ("cancelling", "running")
        w.advance(1.0)
        assert w.status(late) == "cancelling"

    def test_a_client_that_cancels_it_then_is_told_that_it_failed(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(two(), deadline_seconds=2.0)
        w.advance(2.1)
        request = w.cancel(job)
        w.acknowledge_cancels()
        assert isinstance(w.answers[request], Stopped)
        assert w.stopped(request).status == "failed"
        assert len(facts_of(w, JobCancelRequested)) == 1

    @pytest.mark.parametrize("seconds", [-1.0, float("nan"), limits.DURATION_SECONDS_MAX * 2])
    def test_one_that_is_none_is_refused(self, world: Any, seconds: float) -> None:
        w = world(node("edge-1"))
        error = w.ask_submit(two(), deadline_seconds=seconds)
        assert "options.deadline" in str(error)

    def test_it_stays_with_a_job_that_waits_for_a_silent_agent(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(two(), deadline_seconds=2.0)
        w.silence("edge-1")
        w.advance(2.1)
        assert w.status(job) == "cancelling"
        w.advance(limits.LEASE_SECONDS + limits.LOST_AFTER_SUSPECT_SECONDS)
        assert w.status(job) == "failed"


class TestRestart:
    def restart_after(self, w: World, seconds: float, times: int) -> None:
        for _ in range(times):
            w.advance(seconds)
            w.restart()

    def test_what_had_passed_counts_up_to_a_part(self, world: Any) -> None:
        """However often the orchestrator starts, each start costs at most a tenth of the deadline, or a note's time."""
        w = world(node("edge-1"))
        job = w.submit(one(20.0), deadline_seconds=60.0)
        self.restart_after(w, 5.0, 3)
        assert w.stage(job, "a").deadline_spent > 15.0 - 3 * 20.0 / limits.DEADLINE_NOTES
        began = w.now
        while w.status(job) == "running":
            w.advance(0.5)
        assert 5.0 <= (w.now - began) / SECOND <= 5.0 + 3 * 20.0 / limits.DEADLINE_NOTES + 0.5
        w.check_replay()

    def test_a_readers_time_goes_on_while_its_producer_does(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(streamed(20.0))
        w.start("tick", "sum")
        w.advance(6.1)
        w.restart()
        w.advance(13.5)
        assert w.status(job) == "running"
        w.advance(1.0)
        assert w.status(job) == "failed"
        assert "it waited 0.0 s and ran 20.0 s" in w.stage(job, "sum").error.message

    def test_it_never_comes_early(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(two(of_job=20.0))
        self.restart_after(w, 4.9, 4)
        assert w.status(job) == "running"

    def test_time_that_it_ran_is_kept(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(20.0))
        w.start("a")
        w.advance(6.1)
        w.restart()
        w.advance(14.5)
        assert "it waited 0.0 s and ran 20.0 s" in w.stage(job, "a").error.message

    def test_what_has_ended_has_none(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(10.0))
        w.advance(2.5)
        w.finish("a")
        w.restart()
        w.advance(20.0)
        assert w.status(job, "a", "b") == ["succeeded", "placed"]

    def test_what_is_being_cancelled_has_none(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(10.0))
        w.start("a")
        w.advance(2.5)
        w.cancel(job)
        w.restart()
        w.advance(20.0)
        w.acknowledge_cancels()
        assert w.status(job) == "cancelled"

    def test_notes_are_few(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.submit(one(100.0))
        w.advance(101.0)
        assert len(facts_of(w, DeadlineSpent)) == limits.DEADLINE_NOTES - 1
        w = world(node("edge-1"))
        w.submit(one(2.0))
        w.advance(3.0)
        assert [fact.seconds for fact in facts_of(w, DeadlineSpent)] == [limits.DEADLINE_NOTE_SECONDS]

    def test_a_back_off_over_a_restart_counts(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(10.0, retry=Retry(times=3, first_seconds=30.0, last_seconds=30.0)))
        w.advance(4.0)
        agent, task = w.where("a"), w.assigned("a").task
        w.report(agent, Started(task=task), Failed(task=task, error=ErrorInfo(message="busy", transient=True)))
        w.restart()
        w.advance(7.1)
        assert w.status(job) == "failed"
        assert len(facts_of(w, StageFailed)) == 2
