"""Cancelling jobs: what waits stops at once, what runs once its agent says so."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, facts_of, node

from starloom.agents.messages import Cancel, Release
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry
from starloom.dag.errors import NotFound
from starloom.dag.facts import JobCancelRequested, JobEnded, JobStatus, StageCancelled


def line() -> Constellation:
    """a, then b, with c beside; each may be tried twice."""
    graph = Graph("line")
    policy = Policy(retry=Retry(times=1))
    a = graph.stage("a", "t.work", policy=policy)
    graph.stage("b", "t.work", x=a["value"], policy=policy)
    graph.stage("c", "t.work", policy=policy)
    graph.output("a", a["value"])
    return graph.build(KINDS)


class TestCancel:
    def test_the_answer_comes_when_nothing_runs_any_more(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        w.start("a")
        request = w.cancel(job)
        assert w.status(job) == "cancelling"
        assert w.status(job, "a", "b", "c") == ["running", "cancelled", "placed"]
        assert request not in w.answers
        assert [type(command) for command in w.agents["edge-1"].log[-2:]] == [Cancel, Cancel]
        w.advance(1.5)
        w.acknowledge_cancels()
        answer = w.stopped(request)
        assert (answer.status, answer.seconds) == (JobStatus.CANCELLED, 1.5)
        assert w.status(job, "a", "b", "c") == ["cancelled", "cancelled", "cancelled"]
        assert w.agents["edge-1"].log[-1] == Release(job=job)
        (fact,) = facts_of(w, JobCancelRequested)
        assert (fact.principal, fact.reason) == ("tester", "test")
        assert w.job(job).error == "cancelled by tester: test"

    def test_a_job_without_attempts_stops_at_once(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.goodbye("edge-1")
        job = w.submit(line())
        assert w.stopped(w.cancel(job)).status is JobStatus.CANCELLED
        assert len(facts_of(w, StageCancelled)) == 3

    def test_a_result_that_came_first_is_kept(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        request = w.cancel(job)
        w.finish("a")
        assert w.status(job, "a", "b") == ["succeeded", "cancelled"]
        w.acknowledge_cancels()
        assert w.stopped(request).status is JobStatus.CANCELLED
        assert w.job(job).stages["a"].outputs

    def test_a_failure_that_came_first_is_not_tried_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        request = w.cancel(job)
        w.fail("a", transient=True)
        w.fail("c")
        assert w.stopped(request).status is JobStatus.CANCELLED
        w.advance(60)
        assert w.active() == []

    def test_a_lost_input_is_not_looked_for(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        w.finish("a")
        request = w.cancel(job)
        w.lose_input("b", "a", gone=True)
        w.acknowledge_cancels()
        assert w.stopped(request).status is JobStatus.CANCELLED
        assert w.status(job, "a", "b") == ["succeeded", "cancelled"]

    def test_the_loss_of_the_agent_stops_as_well(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        request = w.cancel(job)
        w.silence("edge-1")
        w.advance(limits.LEASE_SECONDS + limits.LOST_AFTER_SUSPECT_SECONDS + 0.1)
        answer = w.stopped(request)
        assert answer.status is JobStatus.CANCELLED
        assert answer.seconds == pytest.approx(6.0, abs=0.2)

    def test_waits_for_a_retry_end(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        w.fail("a", transient=True)
        w.cancel(job)
        w.acknowledge_cancels()
        assert w.status(job) == "cancelled"
        w.advance(60)
        assert w.active() == []

    def test_everybody_who_asked_is_answered(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        first = w.cancel(job)
        w.advance(1.0)
        second = w.cancel(job)
        w.acknowledge_cancels()
        assert (w.stopped(first).seconds, w.stopped(second).seconds) == (1.0, 0.0)
        assert len(facts_of(w, JobCancelRequested)) == 1

    def test_a_job_that_has_ended_answers_with_what_it_became(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line(), key="mine")
        w.finish_all()
        answer = w.stopped(w.cancel("mine"))
        assert (answer.job, answer.status, answer.seconds) == (job, JobStatus.SUCCEEDED, 0.0)

    def test_an_unknown_job_is_not_found(self, world: Any) -> None:
        w = world(node("edge-1"))
        assert isinstance(w.answers[w.cancel("nobody")], NotFound)

    def test_other_jobs_run_on(self, world: Any) -> None:
        w = world(node("edge-1"))
        job, other = w.submit(line()), w.submit(line())
        w.cancel(job)
        w.acknowledge_cancels()
        w.finish_all()
        assert (w.status(job), w.status(other)) == ("cancelled", "succeeded")


class TestDisturbed:
    def test_a_cancel_that_was_lost_is_sent_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        agent = w.agents["edge-1"]
        w.silence("edge-1")
        request = w.cancel(job)
        assert not agent.cancelled
        w.hello(agent)
        w.acknowledge_cancels()
        assert w.stopped(request).status is JobStatus.CANCELLED

    def test_what_never_arrived_is_cancelled_at_the_hello(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.silence("edge-1")
        job = w.submit(line())
        request = w.cancel(job)
        w.hello(w.agents["edge-1"])
        assert w.stopped(request).status is JobStatus.CANCELLED

    def test_a_restart_goes_on_cancelling(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(line())
        w.cancel(job)
        w.agents["edge-1"].cancelled.clear()
        w.restart()
        assert w.status(job) == "cancelling"
        request = w.cancel(job)
        w.acknowledge_cancels()
        assert w.stopped(request).status is JobStatus.CANCELLED
        assert [fact.status for fact in facts_of(w, JobEnded)] == ["cancelled"]

    def test_a_bounded_job_with_stages_in_line_is_forgotten(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("many")
        for index in range(20):
            graph.stage(f"s{index}", "t.work", require=Requirements(node="edge-1"))
        job = w.submit(graph.build(KINDS), max_parallel=1)
        w.cancel(job)
        w.acknowledge_cancels()
        other = w.submit(line())
        w.finish_all()
        assert w.status(other) == "succeeded"
        assert w.coordinator.waits_for(job, "s19") == ""

    def test_stages_that_waited_for_a_place_are_out_of_line(self, world: Any) -> None:
        w = world(node("edge-1"))
        w.silence("edge-1")
        w.advance(limits.LEASE_SECONDS + 0.1)
        for _ in range(3):
            w.cancel(w.submit(line()))
        assert all(not lane.jobs and not lane.stages for lane in w.coordinator._lanes._lanes.values())
