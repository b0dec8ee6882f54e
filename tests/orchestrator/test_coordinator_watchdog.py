"""Jobs that cannot go on: they say so, and after a grace they fail instead of hanging."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, node

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry
from starloom.dag.facts import JobEnded
from starloom.dag.ids import JobId

JOB = JobId("job")
LEFT = Requirements(labels={"rack": "left"})
GRACE = limits.STUCK_GRACE_SECONDS + 2 * limits.STUCK_LOOK_SECONDS


def job_of_three(require: Requirements = LEFT) -> Constellation:
    graph = Graph("three")
    first = graph.stage("a", "t.work")
    second = graph.stage("b", "t.work", x=first["value"], require=require)
    graph.output("out", graph.stage("c", "t.work", x=second["value"])["value"])
    return graph.build(KINDS)


@pytest.fixture
def left(world: Any) -> World:
    """A job whose second stage had a node, which has left; the first has ended."""
    w: World = world(node("edge-1"), node("edge-2", labels={"rack": "left"}))
    w.submit(job_of_three(), job=JOB)
    w.goodbye("edge-2")
    w.agents["edge-2"].tasks.clear()
    w.finish("a")
    return w


def test_a_job_without_a_node_says_so_and_fails_after_the_grace(left: World) -> None:
    left.advance(2 * limits.STUCK_LOOK_SECONDS)
    said = left.coordinator.stuck(JOB)
    why = "each of the 2 stages that have not ended waits for what cannot come: b waits for a node that may run it: "
    assert said.startswith(f"{why}edge-1 has no label rack; edge-2 is lost; it fails in ")
    assert left.status(JOB) == "running"
    left.advance(GRACE)
    assert left.status(JOB) == "failed"
    (ended,) = facts_of(left, JobEnded)
    assert ended.cause == "Stuck"
    assert ended.error.startswith(f"stuck for {limits.STUCK_GRACE_SECONDS:.0f} s: {why}")
    assert left.coordinator.stuck(JOB) == ""
    left.check_replay()


def test_a_node_that_comes_back_in_time_is_waited_for(left: World) -> None:
    left.advance(limits.STUCK_GRACE_SECONDS - 10)
    left.join(node("edge-2", labels={"rack": "left"}))
    assert left.coordinator.stuck(JOB) == ""
    left.finish("b")
    left.advance(2 * GRACE)
    left.finish("c")
    assert left.status(JOB) == "succeeded"


def test_the_grace_is_whole_each_time(left: World) -> None:
    """A node that was back for a moment has shown that it may come."""
    for _ in range(2):
        left.advance(limits.STUCK_GRACE_SECONDS / 2)
        left.join(node("edge-2", labels={"rack": "left"}))
        left.advance(limits.STUCK_LOOK_SECONDS)
        left.goodbye("edge-2")
        left.agents["edge-2"].tasks.clear()
    left.advance(limits.STUCK_GRACE_SECONDS - 10)
    assert left.status(JOB) == "running"


def test_another_node_that_may_run_it_will_do(left: World) -> None:
    left.advance(20.0)
    left.join(node("edge-9", labels={"rack": "left"}))
    left.finish("b", "c")
    assert left.status(JOB) == "succeeded"


def test_what_still_runs_keeps_a_job_from_being_stuck(world: Any) -> None:
    w = world(node("edge-1"), node("edge-2", labels={"rack": "left"}))
    graph = Graph("wide")
    graph.stage("long", "t.work")
    graph.stage("b", "t.work", require=LEFT)
    w.goodbye("edge-2")
    w.submit(graph.build(KINDS), job=JOB)
    w.start("long")
    w.advance(2 * GRACE)
    assert (w.status(JOB), w.coordinator.stuck(JOB)) == ("running", "")
    w.finish("long")
    w.advance(GRACE)
    assert w.status(JOB) == "failed"


def test_a_back_off_is_something_that_comes(world: Any) -> None:
    w = world(node("edge-1"))
    graph = Graph("one")
    graph.stage("a", "t.work", policy=Policy(retry=Retry(times=1, first_seconds=3 * GRACE, last_seconds=3 * GRACE)))
    job = w.submit(graph.build(KINDS))
    w.fail("a", "busy", transient=True)
    w.advance(2 * GRACE)
    assert (w.status(job), w.coordinator.stuck(job)) == ("running", "")


def test_a_node_without_room_is_something_that_comes(world: Any) -> None:
    w = world(node("edge-1", slots=1))
    graph = Graph("many")
    for index in range(limits.AGENT_BACKLOG_STAGES + 1):
        graph.stage(f"s{index}", "t.work")
    w.submit(graph.build(KINDS), job="first")
    graph = Graph("one")
    graph.stage("a", "t.work")
    w.submit(graph.build(KINDS), job="second")
    w.advance(2 * GRACE)
    assert (w.status(JobId("first")), w.status(JobId("second"))) == ("running", "running")


def test_while_nobody_is_heard_of_no_time_counts(left: World) -> None:
    """Then the orchestrator itself may be cut off, and no job is to blame."""
    left.silence("edge-1")
    left.advance(2 * GRACE)
    assert left.status(JOB) == "running"
    assert left.coordinator.stuck(JOB).endswith("; no agent is heard of, so that no time counts")
    left.hello(left.agents["edge-1"])
    left.advance(limits.STUCK_GRACE_SECONDS - 10)
    assert left.status(JOB) == "running"
    left.advance(30)
    assert left.status(JOB) == "failed"


def test_a_restart_gives_the_grace_again(left: World) -> None:
    left.advance(limits.STUCK_GRACE_SECONDS - 10)
    left.restart()
    left.advance(limits.STUCK_GRACE_SECONDS - 10)
    assert left.status(JOB) == "running"
    left.advance(30)
    assert left.status(JOB) == "failed"


def test_a_kind_that_nobody_offers_any_more(world: Any) -> None:
    w = world(node("edge-1"))
    w.join(node("edge-2"), [kind for kind in KINDS.values() if kind.name != "t.say"])
    graph = Graph("says")
    graph.stage("a", "t.say")
    w.submit(graph.build(KINDS), job=JOB)
    w.goodbye("edge-1")
    w.agents["edge-1"].tasks.clear()
    w.advance(20)
    assert "edge-1 is lost; edge-2 does not offer t.say" in w.coordinator.stuck(JOB)
    w.advance(GRACE)
    assert w.status(JOB) == "failed"


def test_a_patch_may_help(left: World) -> None:
    left.advance(20)
    left.patch(JOB, "- move: {stage: b, require: {}}")
    assert left.coordinator.stuck(JOB) == ""
    left.finish("b", "c")
    assert left.status(JOB) == "succeeded"


def test_nobody_is_woken_where_no_job_is_open(world: Any) -> None:
    w = world()
    assert w.coordinator.next_wake() is None
