"""A defect that shows in handling something of one job ends that job, and no other."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.agents.messages import Cancel
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Retry, Straggler
from starloom.dag.errors import InternalError
from starloom.dag.facts import JobEnded, JobPatched
from starloom.dag.ids import JobId, StageId
from starloom.dag.job import JobState
from starloom.dag.kinds import KindSpec

BAD, GOOD = JobId("job-bad"), JobId("job-good")


class PlantedError(Exception):
    """What no code expects."""


def chain(*names: str, **policy: Any) -> Constellation:
    graph = Graph("chain")
    policies = Policy(retry=Retry(times=2, first_seconds=0.5), **policy)
    stage = graph.stage(names[0], "t.work", policy=policies)
    for name in names[1:]:
        stage = graph.stage(name, "t.work", x=stage["value"], policy=policies)
    graph.output("out", stage["value"])
    return graph.build(KINDS)


def of_bad(given: tuple[Any, ...]) -> bool:
    """Whether a call is about the bad job."""
    for each in given:
        job = getattr(each, "job", each)
        job = getattr(getattr(each, "run", None), "job", job)
        if BAD in (getattr(job, "id", job), getattr(getattr(each, "task", None), "job", None)):
            return True
    return False


def plant(w: World, part: str, method: str) -> None:
    """From now on a method of one of the coordinator's parts raises where it is about the bad job."""
    owner = getattr(w.coordinator, part)
    plain = getattr(owner, method)

    def broken(*args: Any, **more: Any) -> Any:
        if of_bad(args):
            raise PlantedError("planted")
        return plain(*args, **more)

    setattr(owner, method, broken)


def both(world: Any, **policy: Any) -> World:
    w: World = world(node("edge-1"), node("edge-2"))
    w.submit(chain("x", "y"), job=GOOD)
    w.submit(chain("a", "b", **policy), job=BAD)
    return w


def check(w: World, handled: str) -> None:
    """The bad job has failed and says so, the good one succeeds, and the journal agrees."""
    assert w.status(BAD) == "failed"
    error = w.job(BAD).error
    assert error.startswith(f"internal error in handling {handled}: PlantedError('planted') at test_coordinator")
    assert "please report it" in error
    assert w.job(BAD).cause == "InternalError"
    w.check_replay()
    w.acknowledge_cancels()
    w.finish_all()
    assert w.status(GOOD) == "succeeded"
    assert [fact.status.value for fact in facts_of(w, JobEnded)] == ["failed", "succeeded"]
    w.restart()
    assert w.status(BAD) == "failed"
    w.submit(chain("m", "n"), job="job-new")
    w.finish_all()
    assert w.status(JobId("job-new")) == "succeeded"


def finish_a(w: World) -> None:
    w.finish("a")


def fail_a(w: World) -> None:
    w.fail("a", transient=True)


def start_a(w: World) -> None:
    w.start("a")


def lose_a(w: World) -> None:
    agent = w.where("a")
    w.goodbye(agent.name)
    agent.tasks.clear()
    w.join(agent.profile)


def fail_a_and_wait(w: World) -> None:
    w.fail("a", transient=True)
    w.advance(0.6)


def cancel(w: World) -> None:
    w.cancel(BAD)


PLACES: list[tuple[str, str, Callable[[World], None], str]] = [
    ("_settler", "commit", finish_a, "edge-2's report Finished of a, token 1.1"),
    ("_settler", "fail", fail_a, "edge-2's report Failed of a, token 1.1"),
    ("_reports", "_started", start_a, "edge-2's report Started of a, token 1.1"),
    ("_propagation", "_follow", finish_a, "what follows from a"),
    ("_endings", "check", finish_a, "its end"),
    ("_dispatcher", "assign", finish_a, "the placement of b"),
    ("_settler", "supersede", lose_a, "the loss of a, token 1.1"),
    ("_settler", "decide", fail_a_and_wait, "the next attempt of a"),
    ("_endings", "cancel", cancel, "its cancellation"),
]


@pytest.mark.parametrize(("part", "method", "drive", "handled"), PLACES, ids=[place[3] for place in PLACES])
def test_a_defect_ends_the_job_at_fault_and_no_other(
    world: Any, part: str, method: str, drive: Callable[[World], None], handled: str
) -> None:
    w = both(world)
    plant(w, part, method)
    drive(w)
    check(w, handled)


def test_one_that_shows_when_time_is_up(world: Any) -> None:
    w = both(world, deadline_seconds=2.0)
    plant(w, "_settler", "expire")
    w.advance(2.1)
    check(w, "the deadline of a")


def test_one_that_shows_in_placing_a_copy(world: Any) -> None:
    w = both(world, straggler=Straggler(after_seconds=1.0))
    w.start("a")
    plant(w, "_dispatcher", "copy")
    w.advance(1.1)
    check(w, "the copy of a")


def test_one_that_shows_in_another_try(world: Any) -> None:
    w = world(node("edge-1", slots=8))
    w.submit(chain("x", "y"), job=GOOD)
    w.submit(chain("a", "b", "c"), job=BAD)
    w.finish("a", "b")
    w.patched(w.patch(BAD, "- set_policy: {stage: a, retry: 5}", restart=True))
    w.fail("c")
    assert "another try" in w.coordinator.waits_for(BAD, StageId("c"))
    plant(w, "_settler", "decide")
    w.finish("a")
    assert w.status(BAD) == "failed"
    w.finish("x", "y")
    assert w.status(GOOD) == "succeeded"


def nothing(w: World) -> None:
    """What is planted shows in what follows."""


def greet_again(w: World) -> None:
    for agent in tuple(w.agents.values()):
        w.hello(agent)


def wait(w: World) -> None:
    w.advance(30)


def come_with_a_new_kind(w: World) -> None:
    w.join(msgspec.structs.replace(node("edge-3"), kinds=("t.new",)), kinds=[KindSpec(name="t.new")])


def come(w: World) -> None:
    w.join(node("edge-9"))


CHAIN = "a: {kind: t.work}, b: {kind: t.work, in: {x: a.value}}"
COPIED = "a: {kind: t.blob, replicate: 1}, b: {kind: t.need, in: {data: a.data}}"
STREAMS = "a: {kind: t.ticks, require: {node: edge-9}}, b: {kind: t.sum, in: {x: a.ticks}}"
STRAGGLER = "a: {kind: t.work, straggler: {factor: 1, after: 1s}}"
Drive = Callable[[World], None]
ASIDE: list[tuple[str, str, str, Drive, Drive, str]] = [
    ("_replicas", "_look", COPIED, nothing, finish_a, "the copies of a"),
    ("_replicas", "_ask", COPIED, finish_a, greet_again, "the copies of a"),
    ("_resolving", "_tell", CHAIN, nothing, greet_again, "what b awaits"),
    ("_watchdog", "_is_stuck", CHAIN, nothing, wait, "its being stuck"),
    ("_clocks", "watch", "a: {kind: t.work, deadline: 100s}", nothing, wait, "the deadline of a"),
    ("_stragglers", "_patience", STRAGGLER, start_a, wait, "the copy of a"),
    ("_streaming", "_waits", STREAMS, nothing, come, "a, which waited for nodes to stream with others"),
    ("_changing", "relabel", "a: {kind: t.work, private: edge}", nothing, come_with_a_new_kind, "what is private"),
]


@pytest.mark.parametrize(("part", "method", "text", "before", "drive", "handled"), ASIDE, ids=[a[1] for a in ASIDE])
def test_one_that_shows_beside_reports_ends_no_other(
    world: Any, part: str, method: str, text: str, before: Drive, drive: Drive, handled: str
) -> None:
    """In what follows from time, from agents and from what was decided: nothing asked for the job just then."""
    w = world(node("edge-1"), node("edge-2"), node("edge-9", slots=1), delegate=True)
    w.goodbye("edge-9")
    w.submit(chain("x", "y"), job=GOOD)
    w.submit(constellation(f"stages: {{{text}}}"), job=BAD)
    before(w)
    plant(w, part, method)
    drive(w)
    assert w.job(BAD).error.startswith(f"internal error in handling {handled}")
    w.acknowledge_cancels()
    w.finish_all()
    assert (w.status(BAD), w.status(GOOD)) == ("failed", "succeeded")


def test_one_that_shows_at_the_first_stages(world: Any) -> None:
    w = world(node("edge-1"), node("edge-2"))
    w.submit(chain("x", "y"), job=GOOD)
    plant(w, "_settler", "decide")
    w.submit(chain("a", "b"), job=BAD)
    check(w, "its beginning")


def test_one_that_shows_after_a_restart_is_no_loop_of_restarts(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    w = both(world)
    plain = type(w.coordinator)._resume

    def broken(self: Any, run: Any) -> None:
        if run.job.id == BAD:
            raise PlantedError("planted")
        plain(self, run)

    with monkeypatch.context() as patched:
        patched.setattr(type(w.coordinator), "_resume", broken)
        w.restart()
    check(w, "its resumption after a restart")


def test_what_runs_of_the_job_is_told_to_stop(world: Any) -> None:
    w = both(world)
    w.start("a")
    agent, task = w.where("a"), w.assigned("a").task
    plant(w, "_settler", "fail")
    w.fail("a")
    assert Cancel(task=task) in agent.log


class TestPatches:
    def test_one_that_cannot_be_judged_is_refused_and_changes_nothing(self, world: Any) -> None:
        w = both(world)
        plant(w, "_patching", "_plan")
        request = w.patch(BAD, "- replace: {stage: b, params: {label: new}}")
        assert isinstance(w.answers[request], InternalError)
        assert "could not be judged, by a defect of Starloom's: PlantedError('planted')" in w.refused(request)
        assert (w.status(BAD), w.job(BAD).revision) == ("running", 1)
        w.finish_all()
        assert (w.status(BAD), w.status(GOOD)) == ("succeeded", "succeeded")

    def test_one_that_breaks_while_it_is_taken_fails_the_job_with_every_answer(self, world: Any) -> None:
        w = both(world)
        requests = [w.patch(BAD, f"- replace: {{stage: a, params: {{label: '{index}'}}}}") for index in range(3)]
        assert not any(request in w.answers for request in requests)
        plant(w, "_patching", "_release")
        w.give_back()
        assert all(isinstance(w.answers[request], InternalError) for request in requests)
        assert len(facts_of(w, JobPatched)) == 1
        check(w, "a patch")


class TestDamage:
    def test_a_fact_that_was_perhaps_applied_in_part_ends_the_process(self) -> None:
        w = both(World)
        plain = JobState.apply

        def broken(self: JobState, fact: Any) -> None:
            plain(self, fact)
            if self.id == BAD:
                raise PlantedError("planted")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(JobState, "apply", broken)
            with pytest.raises(PlantedError):
                w.finish("a")

    def test_a_state_that_does_not_hold_ends_the_process(self) -> None:
        w = both(World)
        w.job(BAD).open_stages += 1
        plant(w, "_settler", "commit")
        with pytest.raises(AssertionError, match="open_stages is off"):
            w.finish("a")

    def test_what_is_no_jobs_ends_the_process(self) -> None:
        w = both(World)

        def broken(*args: Any) -> None:
            raise PlantedError("planted")

        w.coordinator._membership._heard = broken  # type: ignore[assignment]
        with pytest.raises(PlantedError):
            w.advance(1.0)


def test_a_defect_that_shows_again_in_failing_the_job_ends_the_process() -> None:
    w = both(World)
    plant(w, "_settler", "commit")
    plain = w.coordinator._endings.cancel_attempts

    def broken(job: JobState, stage: StageId, **more: Any) -> None:
        if job.id == BAD:
            raise PlantedError("again")
        plain(job, stage, **more)

    w.coordinator._endings.cancel_attempts = broken  # type: ignore[assignment]
    with pytest.raises(PlantedError, match="again"):
        w.finish("a")
