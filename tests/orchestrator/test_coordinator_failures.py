"""Failures and their policies, and reports that do not count."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, facts_of, inline, node, stored

from starloom.agents.messages import Cancel, Failed, Finished, Release, Started, WasCancelled
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, OnFailure, Policy, Retry
from starloom.dag.facts import Consumed, ErrorInfo, StageCommitted, StageFailed, StageStarted, Timing
from starloom.dag.ids import Attempt, FencingToken, StageId, TaskToken
from starloom.dag.values import PortType
from starloom.orchestrator.inputs import AgentReports
from starloom.orchestrator.retrypolicy import back_off


def one(retry: Retry | None = None, **policy: Any) -> Constellation:
    graph = Graph("one")
    stage = graph.stage("a", "t.work", policy=Policy(retry=retry or Retry(), **policy))
    graph.output("out", stage["value"])
    return graph.build(KINDS)


class TestRetries:
    def test_a_transient_failure_is_tried_again_after_a_wait(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(Retry(times=2, first_seconds=1.0, factor=3.0)))
        w.fail("a", "busy", transient=True)
        assert w.active() == []
        assert w.coordinator.waits_for(job, "a") == "the next attempt, in 1.0 s, after: busy"
        w.advance(0.9)
        assert w.active() == []
        w.advance(0.2)
        assert w.active() == ["a"]
        w.fail("a", "busy", transient=True)
        w.advance(2.8)
        assert w.active() == []
        w.advance(0.3)
        w.finish("a")
        assert w.status(job) == "succeeded"
        assert (w.stage(job, "a").tries, w.stage(job, "a").error) == (3, None)
        assert [fact.retry_seconds for fact in facts_of(w, StageFailed)] == [1.0, 3.0]

    def test_after_a_timeout_another_node_goes_first(self, world: Any) -> None:
        """Where it ran it may still run, and keep the slot that the next attempt would wait for."""
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(one(retry=Retry(times=2, first_seconds=0.1)))
        where = w.where("a")
        error = ErrorInfo(message="t.work ran longer than its timeout", cause="DeadlineExceeded", transient=True)
        late = where.result(w.assigned("a"))
        w.report(where, Failed(task=w.assigned("a").task, error=error))
        w.advance(0.2)
        assert w.where("a") is not where
        w.report(where, late)
        assert (w.status(job, "a"), w.coordinator.stale_refused) == (["placed"], 1)

    def test_retries_are_used_up(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(Retry(times=1, first_seconds=0.0)))
        w.fail("a", "first", transient=True)
        w.advance(0.1)
        w.fail("a", "second", transient=True)
        assert w.status(job) == "failed"
        assert w.job(job).error == "stage a failed on edge-1: second"

    def test_only_transient_failures_are_tried_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        w.fail("a", "wrong input")
        assert w.status(job) == "failed"

    def test_waits_grow_up_to_the_last(self) -> None:
        retry = Retry(times=1000, first_seconds=0.5, factor=2.0, last_seconds=5.0)
        assert [back_off(retry, failures) for failures in range(5)] == [0.5, 1.0, 2.0, 4.0, 5.0]
        assert back_off(Retry(times=1000, factor=1000.0, last_seconds=7.0), 999) == 7.0


class TestFailedJobs:
    def test_everything_else_is_stopped_and_released(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("several")
        for name in ("a", "b", "c", "d", "e"):
            first = graph.stage(name, "t.work")
        graph.stage("later", "t.work", x=first["value"])
        job = w.submit(graph.build(KINDS))
        w.finish("b")
        agent, task = w.where("c"), w.assigned("c").task
        w.fail("a", "broken")
        assert w.status(job) == "failed"
        assert w.status(job, "a", "b", "c", "later") == ["failed", "succeeded", "cancelled", "cancelled"]
        commands = [command for command in agent.log if isinstance(command, Cancel | Release)]
        assert Cancel(task=task) in commands
        assert commands[-1] == Release(job=job)
        assert all(Release(job=job) in each.log for each in w.agents.values())
        assert w.active() == []

    def test_outputs_that_were_there_are_kept(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("partial")
        graph.output("a", graph.stage("a", "t.work")["value"])
        graph.output("b", graph.stage("b", "t.work")["value"])
        job = w.submit(graph.build(KINDS))
        w.finish("a")
        w.fail("b")
        assert list(w.job(job).outputs) == ["a"]

    def test_a_job_that_failed_takes_no_more_reports(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("two")
        graph.stage("a", "t.work")
        graph.stage("b", "t.work")
        job = w.submit(graph.build(KINDS))
        agent = w.where("b")
        late = agent.result(w.assigned("b"))
        w.fail("a")
        agent.log.clear()
        w.report(agent, Started(task=late.task), late, WasCancelled(task=late.task))
        assert w.coordinator.stale_refused == 2
        assert w.stage(job, "b").status == "cancelled"
        assert agent.log == [Cancel(task=late.task), Release(job=job), Release(job=job)]


class TestReports:
    def test_reports_may_come_twice(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("chain")
        a = graph.stage("a", "t.work")
        graph.stage("b", "t.work", x=a["value"])
        job = w.submit(graph.build(KINDS))
        agent = w.where("a")
        started, finished = Started(task=w.assigned("a").task), agent.result(w.assigned("a"))
        w.report(agent, started, started, finished, finished, started)
        assert len(facts_of(w, StageStarted)) == len(facts_of(w, StageCommitted)) == 1
        assert w.coordinator.stale_refused == 0
        assert w.status(job, "a", "b") == ["succeeded", "placed"]

    def test_a_report_of_a_superseded_token_is_refused(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(one())
        agent = w.where("a")
        late = agent.result(w.assigned("a"))
        w.goodbye(agent.name)
        w.handle(AgentReports(agent=agent.name, incarnation=agent.incarnation, reports=(late,)))
        assert w.coordinator.stale_refused == 1
        assert w.status(job, "a") == ["placed"]
        assert w.stage(job, "a").attempt == 2

    def test_a_report_of_another_agent_is_refused(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(one())
        report = w.where("a").result(w.assigned("a"))
        (other,) = [agent for agent in w.agents.values() if agent is not w.where("a")]
        w.report(other, report)
        assert w.coordinator.stale_refused == 1
        assert w.status(job, "a") == ["placed"]

    def test_reports_of_what_never_was_are_refused(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        token = w.assigned("a").task.token
        agent = w.agents["edge-1"]
        for task in (
            TaskToken(job, StageId("b"), token),
            TaskToken(job, StageId("a"), FencingToken(w.epoch, Attempt(9))),
        ):
            w.report(agent, Failed(task=task, error=ErrorInfo(message="?")))
        assert w.coordinator.stale_refused == 2
        assert w.status(job) == "running"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"outputs": {}}, "outputs []"),
            ({"outputs": {"value": stored()}}, "value is bytes instead of json"),
            ({"holds": (True,)}, "1 comparisons were answered, of 0 asked"),
            ({"published": ("value", "other")}, "published other"),
        ],
    )
    def test_a_result_that_does_not_fit_fails_the_stage(self, world: Any, change: Any, message: str) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        report = msgspec.structs.replace(w.agents["edge-1"].result(w.assigned("a")), **change)
        w.report(w.agents["edge-1"], report)
        assert w.status(job) == "failed"
        assert message in w.job(job).error

    def test_a_declared_output_has_to_be_brought_to_the_job_store(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("blob")
        graph.output("out", graph.stage("a", "t.blob")["data"])
        job = w.submit(graph.build(KINDS))
        report: Finished = w.agents["edge-1"].result(w.assigned("a"))
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, published=()))
        assert "was not brought to the job store" in w.job(job).error

    def test_a_small_declared_output_is_durable_by_itself(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        report = w.agents["edge-1"].result(w.assigned("a"))
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, published=()))
        assert w.status(job) == "succeeded"
        assert w.job(job).outputs["out"].inline is not None

    def test_times_and_figures_that_are_none_are_left_out(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        figures = {"tokens": 3.0, "odd": float("nan"), "odder": float("inf"), "": 1.0}
        report = w.agents["edge-1"].result(w.assigned("a"), run=float("nan"), load=-1.0)
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, figures=figures))
        assert w.status(job) == "succeeded"
        assert w.stage(job, "a").timing == Timing()
        assert w.stage(job, "a").figures == {"tokens": 3.0}

    def test_a_run_that_took_longer_than_any_may_tells_nothing_of_the_next(self, world: Any) -> None:
        """1e300 s in place of 2 ms came to infinitely many for a stage of 2 s, and every job of the kind failed at its placement."""
        w = world(node("edge-1"))

        def job(seconds: float) -> Any:
            graph = Graph("task")
            graph.stage("a", "t.task", params={"seconds": seconds})
            return w.submit(graph.build(KINDS))

        first = job(0.002)
        w.finish("a", run=1e300)
        assert w.status(first) == "succeeded"
        assert w.stage(first, "a").timing == Timing()
        second = job(2.0)
        w.finish("a", run=limits.DURATION_SECONDS_MAX)
        assert w.status(second) == "succeeded"
        assert w.stage(second, "a").timing == Timing(run=limits.DURATION_SECONDS_MAX)

    def test_the_holder_is_who_reported(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("blob")
        a = graph.stage("a", "t.blob")
        graph.stage("b", "t.need", data=a["data"])
        job = w.submit(graph.build(KINDS))
        report = w.agents["edge-1"].result(w.assigned("a"))
        outputs = {"data": msgspec.structs.replace(report.outputs["data"], holder="elsewhere")}
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, outputs=outputs))
        assert w.stage(job, "a").outputs["data"].holder == "edge-1"

    def test_an_agent_that_stops_an_attempt_by_itself_gives_it_back(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(Retry(times=0)))
        w.report(w.agents["edge-1"], WasCancelled(task=w.assigned("a").task))
        assert w.stage(job, "a").attempt == 2
        w.finish("a")
        assert w.status(job) == "succeeded"


class TestLineage:
    def test_a_result_that_read_something_else_is_run_again(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("chain")
        a = graph.stage("a", "t.work")
        graph.stage("b", "t.work", x=a["value"])
        job = w.submit(graph.build(KINDS))
        w.finish("a")
        report = w.agents["edge-1"].result(w.assigned("b"))
        other = msgspec.structs.replace(report.consumed["x"], digest=inline("else").digest)
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, consumed={"x": other}))
        assert w.status(job, "b") == ["placed"]
        assert "read from another result of a" in w.stage(job, "b").reason
        w.finish("b")
        assert w.status(job) == "succeeded"

    @pytest.mark.parametrize("missing", ["x", "y"])
    def test_every_input_has_to_be_accounted_for(self, world: Any, missing: str) -> None:
        w = world(node("edge-1"))
        graph = Graph("chain")
        given = graph.input("given", PortType.JSON)
        a = graph.stage("a", "t.work")
        graph.stage("b", "t.work", x=a["value"], y=given)
        job = w.submit(graph.build(KINDS), {"given": inline(1)})
        w.finish("a")
        report = w.agents["edge-1"].result(w.assigned("b"))
        consumed = {port: link for port, link in report.consumed.items() if port != missing}
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, consumed=consumed))
        assert f"input {missing} was not read" in w.stage(job, "b").reason
        report = w.agents["edge-1"].result(w.assigned("b"))
        consumed = {**report.consumed, "z": report.consumed["x"]}
        w.report(w.agents["edge-1"], msgspec.structs.replace(report, consumed=consumed))
        assert "nothing feeds" in w.stage(job, "b").reason

    def test_results_that_never_fit_end_in_a_failure(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one())
        for _ in range(100):
            if w.status(job) != "running":
                break
            report = w.agents["edge-1"].result(w.assigned("a"))
            consumed = {"ghost": Consumed(StageId("a"), None, "?")}
            w.report(w.agents["edge-1"], msgspec.structs.replace(report, consumed=consumed))
        assert w.status(job) == "failed"
        assert "could not be had 20 times" in w.job(job).error


class TestFailurePolicies:
    def test_skip_lets_the_job_succeed_without(self, world: Any) -> None:
        w = world(node("edge-1"))
        job = w.submit(one(Retry(times=0), on_failure=OnFailure.SKIP))
        w.fail("a", "no luck", transient=True)
        assert w.status(job) == "succeeded"
        assert w.stage(job, "a").error.message == "no luck"
        assert w.stage(job, "a").error.node == "edge-1"
