"""Failures that are put aside while what the stage rests on is made again: each is taken up again, whatever comes between."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.orchestrator.harness import World, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation

from starloom.agents.messages import Failed
from starloom.dag.facts import ErrorInfo, StageFailed
from starloom.dag.ids import JobId, StageId

LINE = """
stages:
  see: {kind: t.work}
  words: {kind: t.work, in: {x: see.value}}
  find: {kind: t.work, in: {x: words.value}POLICY}
  say: {kind: t.work, in: {x: find.value}}
  aside: {kind: t.work}
"""
AGAIN = "- set_policy: {stage: see, retry: 5}"


def see_runs_again(w: World, text: str = LINE, policy: str = "", **options: Any) -> JobId:
    """A job of which `find` runs on what is there while `see` runs again, with `words` between them."""
    job = w.submit(constellation(text.replace("POLICY", policy)), **options)
    w.finish("see", "words")
    w.start("find")
    w.patched(w.patch(job, AGAIN, restart=True))
    return job


def put_aside(world: Any) -> tuple[World, JobId]:
    """`find` has failed meanwhile."""
    w: World = world(node("edge-1", slots=4))
    job = see_runs_again(w)
    w.fail("find")
    assert waits(w, job)
    assert (w.stage(job, "find").failures, facts_of(w, StageFailed)) == (0, [])
    return w, job


def waits(w: World, job: JobId) -> bool:
    """Whether `find` waits for what is made again."""
    return w.coordinator.waits_for(job, StageId("find")).startswith("another try: see, which it rests on, runs again")


def test_it_counts_once_it_fails_on_what_is_there(world: Any) -> None:
    w, job = put_aside(world)
    w.finish("see")
    w.fail("find")
    assert (w.status(job), w.stage(job, "find").failures, w.stage(job, "find").tries) == ("failed", 1, 2)


def test_retries_are_used_up_first_and_one_more_is_tried_then(world: Any) -> None:
    w: World = world(node("edge-1", slots=4))
    job = see_runs_again(w, policy=", retry: {times: 1, first: 1s}")
    w.fail("find", transient=True)
    assert w.coordinator.waits_for(job, StageId("find")).startswith("the next attempt")
    w.advance(1.1)
    w.fail("find", transient=True)
    assert waits(w, job)
    w.advance(10)
    assert waits(w, job)
    w.finish("see")
    w.fail("find", transient=True)
    assert (w.status(job), w.stage(job, "find").failures) == ("failed", 2)


def test_a_copy_that_goes_on_is_waited_for_first(world: Any) -> None:
    w: World = world(node("edge-1", slots=4), node("edge-2", slots=4))
    job = see_runs_again(w, policy=", straggler: {factor: 1, after: 1s}")
    w.advance(5)
    one, two = (agent for agent in w.agents.values() if any(task.stage == "find" for task in agent.tasks))
    for agent in (one, two):
        assert not waits(w, job)
        task = next(task for task in agent.tasks if task.stage == "find")
        w.report(agent, Failed(task=task, error=ErrorInfo(message="broken")))
    assert waits(w, job)
    w.finish_all()
    assert w.status(job) == "succeeded"


def lose_the_node(w: World, job: JobId) -> None:
    w.join(node("edge-2", slots=4))
    agent = w.agents["edge-1"]
    w.goodbye("edge-1")
    agent.tasks.clear()


def restart(w: World, job: JobId) -> None:
    w.restart()


def restart_twice(w: World, job: JobId) -> None:
    w.restart()
    w.fail("find")
    w.restart()


def patched(text: str, **more: Any) -> Callable[[World, JobId], None]:
    def do(w: World, job: JobId) -> None:
        w.patched(w.patch(job, text, **more))

    return do


def made_again_below_as_well(w: World, job: JobId) -> None:
    w.patched(w.patch(job, "- set_policy: {stage: words, retry: 5}", restart=True))
    w.finish("see")
    assert w.active() == ["aside", "words"]


def comes_out_otherwise(w: World, job: JobId) -> None:
    w.finish("see", salt="x")


def upstream_fails_for_now(w: World, job: JobId) -> None:
    w.fail("see", transient=True)
    w.advance(60)


@pytest.mark.parametrize(
    "between",
    [
        lose_the_node,
        restart,
        restart_twice,
        made_again_below_as_well,
        comes_out_otherwise,
        upstream_fails_for_now,
        patched("- replace: {stage: find, params: {label: new}}"),
        patched("- set_policy: {stage: find, retry: 3}"),
        patched("- rewire: {stage: find, in: {x: aside.value}}"),
        patched("- remove: find\n- rewire: {stage: say, in: {x: words.value}}"),
        patched("- cancel_stage: find"),
        patched("- remove: see\n- rewire: {stage: words, in: {x: aside.value}}", restart=True),
        patched("- cancel_stage: see", restart=True),
        patched("- set_privacy: {stage: see, private: edge}", restart=True),
        patched("- add: {more: {kind: t.work, in: {x: find.value}}}"),
    ],
)
def test_whatever_comes_between_it_is_tried_again(world: Any, between: Callable[[World, JobId], None]) -> None:
    w, job = put_aside(world)
    between(w, job)
    w.check_replay()
    w.acknowledge_cancels()
    w.finish_all()
    assert w.status(job) == "succeeded"
    w.check_replay()


@pytest.mark.parametrize("way", ["cancel", "job", "stage"])
def test_it_ends_with_its_job(world: Any, way: str) -> None:
    w: World = world(node("edge-1", slots=4))
    options: dict[str, Any] = {"deadline_seconds": 5.0} if way == "job" else {}
    job = see_runs_again(w, policy=", deadline: 5s" if way == "stage" else "", **options)
    w.fail("find")
    assert waits(w, job)
    if way == "cancel":
        w.cancel(job)
    else:
        w.advance(5.5)
    w.acknowledge_cancels()
    w.finish_all()
    assert w.status(job) == ("cancelled" if way == "cancel" else "failed")
    if way != "cancel":
        assert "deadline exceeded" in w.job(job).error


@pytest.mark.parametrize("taken", [True, False])
def test_a_patch_that_settles_holds_it_and_lets_it_go(world: Any, taken: bool) -> None:
    w: World = world(node("edge-1", slots=4), node("far"))
    job = see_runs_again(w, LINE.replace("aside: {kind: t.work", "aside: {kind: t.work, require: {node: far}"))
    w.fail("find")
    asked = w.patch(job, "- replace: {stage: find, params: {label: new}}\n- set_policy: {stage: aside, retry: 3}")
    assert asked not in w.answers
    w.finish("see")
    assert w.status(job, "find") == ["pending"]
    if taken:
        w.give_back("aside")
        w.patched(asked)
    else:
        w.start("aside")
        w.refused(asked)
    w.finish_all()
    assert w.status(job) == "succeeded"


def test_it_may_fail_in_place_of_being_given_back(world: Any) -> None:
    w: World = world(node("edge-1", slots=4))
    job = w.submit(constellation(LINE.replace("POLICY", "")))
    w.finish("see", "words")
    w.patched(w.patch(job, AGAIN, restart=True))
    asked = w.patch(job, "- replace: {stage: find, params: {label: new}}")
    assert asked not in w.answers
    w.fail("find")
    w.patched(asked)
    w.finish_all()
    assert w.status(job) == "succeeded"


def test_it_does_not_go_ahead_of_what_is_made_again(world: Any) -> None:
    """It stood in two ways for a place, and its job failed by an internal error."""
    w: World = world(node("edge-1", slots=4), delegate=True)
    job = w.submit(constellation("stages: {see: {kind: t.work}, find: {kind: t.work, in: {x: see.value}}}"))
    w.finish("see")
    w.patched(w.patch(job, AGAIN, restart=True))
    w.fail("find")
    agent = w.where("see")
    agent.tasks.clear()
    w.hello(agent)
    assert w.active() == ["see"]
    w.finish("see", salt="x")
    w.finish_all()
    assert w.status(job) == "succeeded"


def test_one_that_is_skipped_then_lets_those_go_on_that_waited_for_it(world: Any) -> None:
    w: World = world(node("edge-1", slots=8))
    job = w.submit(
        constellation(
            """
stages:
  see: {kind: t.work}
  words: {kind: t.work, in: {x: see.value}}
  judge: {kind: t.judge, params: {score: 5}}
  asked: {kind: t.work, in: {a: words.value, b: {from: judge.value, when: {path: score, is: ">", value: 3}}}}
  then: {kind: t.work, after: [{stage: asked, on: completion}]}
  find: {kind: t.work, in: {x: then.value}}
"""
        )
    )
    w.finish("see", "words", "judge", "asked", "then")
    w.patched(w.patch(job, "- set_policy: {stage: asked, retry: 5}", restart=True))
    w.fail("find")
    w.patched(w.patch(job, f"{AGAIN}\n- replace: {{stage: judge, params: {{score: 1}}}}", restart=True))
    w.fail("asked")
    w.finish("judge")
    assert w.status(job, "asked", "then", "find") == ["pending", "succeeded", "pending"]
    w.finish("see")
    assert w.status(job, "asked", "then", "find") == ["skipped", "succeeded", "placed"]
    w.finish_all()
    assert w.status(job) == "succeeded"
