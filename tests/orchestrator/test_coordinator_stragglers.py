"""Copies of stages that run too long: when, where, and what becomes of both."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, FakeAgent, World, facts_of, node

from starloom.agents.messages import Assign, Cancel, Failed, InputLost, Started, WasCancelled
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry, Straggler
from starloom.dag.facts import ErrorInfo, StageFailed, StagePlaced, StageSuperseded
from starloom.dag.kinds import KindCatalog
from starloom.dag.validate import problems
from starloom.orchestrator import dispatch
from starloom.orchestrator.fleet import Member
from starloom.orchestrator.inputs import Tick

SOON = Straggler(factor=3.0, after_seconds=2.0)


def one(straggler: Straggler | None = SOON, kind: str = "t.work", **policy: Any) -> Constellation:
    graph = Graph("one")
    stage = graph.stage("a", kind, policy=Policy(straggler=straggler, **policy))
    port = next(iter(KINDS[kind].outputs))
    if kind == "t.work":
        graph.stage("b", "t.work", x=stage[port])
    graph.output("out", stage[port])
    return graph.build(KINDS)


def copied(w: World, constellation: Constellation | None = None, **options: Any) -> tuple[str, FakeAgent, FakeAgent]:
    """A job whose stage `a` runs on one node, and has a copy on another: the job, and both nodes."""
    job = w.submit(constellation or one(), **options)
    first = w.where("a")
    w.start("a")
    w.advance(2.1)
    (second,) = [agent for agent in w.agents.values() if agent is not first and task_of(agent)]
    return job, first, second


def task_of(agent: FakeAgent) -> Assign | None:
    return next((assign for task, assign in agent.tasks.items() if task.stage == "a"), None)


def its(agent: FakeAgent) -> Assign:
    assign = task_of(agent)
    assert assign is not None
    return assign


def finish(w: World, agent: FakeAgent) -> None:
    w.report(agent, agent.result(its(agent)))


def failed(w: World, agent: FakeAgent, *, transient: bool = True) -> None:
    w.report(agent, Failed(task=its(agent).task, error=ErrorInfo(message="broken", transient=transient)))


class TestWhen:
    def test_a_stage_that_runs_too_long_gets_a_copy_on_another_node(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(one())
        w.start("a")
        w.advance(1.9)
        assert w.active() == ["a"]
        w.advance(0.2)
        assert w.active() == ["a", "a"]
        first, second = facts_of(w, StagePlaced)
        assert (first.copy, second.copy) == (False, True)
        assert first.agent != second.agent
        assert first.token != second.token
        assert w.stage(job, "a").live == {first.token: first.agent, second.token: second.agent}
        assert (w.stage(job, "a").tries, w.stage(job, "a").copies) == (2, 1)
        assert w.coordinator.waits_for(job, "a") == f"{first.agent}, or its copy on {second.agent}, to end it"

    def test_time_in_the_queue_is_no_reason(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(one())
        w.advance(10)
        assert w.active() == ["a"]

    def test_without_the_policy_there_is_none(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(one(None))
        w.start("a")
        w.advance(100)
        assert w.active() == ["a"]

    def test_what_was_measured_there_counts(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(one())
        w.start("a")
        w.finish("a", run=4.0)
        w.finish("b", run=4.0)
        w.submit(one(), job="later")
        w.start("a")
        w.advance(11.9)
        assert w.active() == ["a"]
        w.advance(0.2)
        assert w.active() == ["a", "a"]

    def test_never_more_than_one_at_a_time(self, world: Any) -> None:
        w = world(*(node(f"edge-{index}") for index in range(5)))
        _, _, second = copied(w)
        w.report(second, Started(task=its(second).task))
        w.advance(60)
        assert w.active() == ["a", "a"]

    def test_it_waits_for_a_node_with_a_free_slot(self, world: Any) -> None:
        w = world(node("edge-1", slots=1))
        job = w.submit(one())
        w.start("a")
        w.advance(10)
        assert w.active() == ["a"]
        waits = "edge-1 to end it; it runs too long, and its copy waits for a free slot on another node"
        assert w.coordinator.waits_for(job, "a") == waits
        w.join(node("edge-2", slots=1))
        w.advance(0.6)
        assert sorted(w.stage(job, "a").live.values()) == ["edge-1", "edge-2"]
        assert w.coordinator.waits_for(job, "a") == "edge-1, or its copy on edge-2, to end it"

    def test_few_are_looked_at_and_copied_at_a_time_and_all_in_the_end(self, world: Any) -> None:
        count = 3 * limits.STRAGGLERS_LOOKED_AT
        w = world(node("edge-1", slots=count))
        graph = Graph("many")
        for number in range(count):
            graph.stage(f"s{number}", "t.work", policy=Policy(straggler=SOON))
        w.submit(graph.build(KINDS))
        w.start(*(f"s{number}" for number in range(count)))
        w.advance(2.5)
        assert len(w.coordinator._stragglers._waiting) == count
        assert not any(fact.copy for fact in facts_of(w, StagePlaced))
        w.join(node("edge-2", slots=count))
        copies = [fact for fact in facts_of(w, StagePlaced) if fact.copy]
        assert len(copies) == limits.STRAGGLERS_COPIED_AT_ONCE
        w.advance(0.5)
        copies = [fact for fact in facts_of(w, StagePlaced) if fact.copy]
        assert {fact.agent for fact in copies} == {"edge-2"}
        assert len({fact.stage for fact in copies}) == count

    def test_full_nodes_are_gone_through_once_for_all_that_wait(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        w = world(*(node(f"edge-{number}", slots=2) for number in range(1, 51)))
        graph = Graph("many")
        for number in range(100):
            graph.stage(f"s{number}", "t.work", policy=Policy(straggler=SOON))
        w.submit(graph.build(KINDS))
        w.start(*(f"s{number}" for number in range(100)))
        w.advance(2.5)
        asked: list[str] = []
        plain = dispatch._has_slot

        def has_slot(member: Member) -> bool:
            asked.append(member.name)
            return plain(member)

        monkeypatch.setattr(dispatch, "_has_slot", has_slot)
        w.handle(Tick())
        assert len(asked) == 50

    def test_max_parallel_counts_copies(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job = w.submit(one(), max_parallel=1)
        w.start("a")
        w.advance(10)
        assert w.active() == ["a"]
        assert w.coordinator.waits_for(job, "a").endswith(
            "its copy waits for one of the job's active stages to end: max_parallel is 1"
        )

    def test_what_acts_outside_gets_none(self, world: Any) -> None:
        acting = msgspec.structs.replace(KINDS["t.work"], effects=True)
        kinds = KindCatalog([acting, *(kind for kind in KINDS.values() if kind.name != "t.work")])
        assert [problem.place for problem in problems(one(), kinds)] == ["stages.a.straggler"]
        w = World()
        for name in ("edge-1", "edge-2"):
            w.join(node(name))
        w.submit(one())
        w.start("a")
        for name in ("edge-1", "edge-2"):
            w.agents[name].kinds = tuple(kinds.values())
        w.silence("edge-2")
        w.hello(w.agents["edge-2"])
        assert "t.work" in w.coordinator.kinds
        w.coordinator._state.fleet.kinds = kinds
        w.advance(10)
        assert w.active() == ["a"]

    @pytest.mark.parametrize(
        ("straggler", "place"),
        [
            (Straggler(factor=0.5), "stages.a.straggler.factor"),
            (Straggler(factor=limits.STRAGGLER_FACTOR_MAX + 1), "stages.a.straggler.factor"),
            (Straggler(after_seconds=0.0), "stages.a.straggler.after"),
        ],
    )
    def test_a_policy_that_is_none_is_refused(self, world: Any, straggler: Straggler, place: str) -> None:
        graph = Graph("wrong")
        graph.stage("a", "t.work", policy=Policy(straggler=straggler))
        assert [problem.place for problem in problems(graph.build(), KINDS)] == [place]


class TestFirstWins:
    @pytest.mark.parametrize("winner", [0, 1])
    def test_the_other_is_cancelled_and_its_late_result_refused(self, world: Any, winner: int) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, *both = copied(w)
        wins, loses = both[winner], both[1 - winner]
        late = loses.result(its(loses))
        token = its(wins).task.token
        finish(w, wins)
        stage = w.stage(job, "a")
        assert (stage.committed, stage.agent, stage.incarnation) == (token, wins.name, wins.incarnation)
        assert Cancel(task=late.task) in loses.log
        assert Cancel(task=its(wins).task if task_of(wins) else late.task) not in wins.log
        w.report(loses, late)
        assert w.coordinator.stale_refused == 1
        assert w.stage(job, "a").committed == token
        w.finish("b")
        assert w.status(job) == "succeeded"
        w.check_replay()

    def test_what_the_winner_holds_is_where_it_is(self, world: Any) -> None:
        """The copy was placed last, and the first attempt wins: its process holds the value, not the copy's."""
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("held")
        made = graph.stage("a", "t.blob", policy=Policy(straggler=SOON))
        graph.stage("b", "t.need", data=made["data"])
        job, first, second = copied(w, graph.build(KINDS))
        finish(w, first)
        w.acknowledge_cancels()
        (fed,) = w.assigned("b").inputs
        assert fed.ref.holder == first.name
        w.goodbye(second.name)
        w.agents[second.name].tasks.clear()
        assert w.status(job, "a") == ["succeeded"], "its value is not lost with the copy's node"

    def test_an_acknowledgement_of_the_loser_is_no_stale_report(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        _, first, second = copied(w)
        finish(w, second)
        w.report(first, WasCancelled(task=its(first).task))
        assert w.coordinator.stale_refused == 0


class TestFailures:
    @pytest.mark.parametrize("transient", [True, False])
    def test_one_that_fails_leaves_the_stage_to_the_other(self, world: Any, transient: bool) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w)
        failed(w, first, transient=transient)
        assert w.status(job, "a") == ["placed"], "the copy has not begun"
        w.report(second, Started(task=its(second).task))
        assert w.status(job, "a") == ["running"]
        finish(w, second)
        assert w.status(job, "a") == ["succeeded"]
        assert w.stage(job, "a").failures == 0

    def test_both_failing_is_one_failure(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w, one(retry=Retry(times=1, first_seconds=0.0)))
        failed(w, second)
        assert w.status(job, "a") == ["running"]
        failed(w, first)
        assert (w.stage(job, "a").failures, w.status(job, "a")) == (1, ["placed"])
        w.fail("a", "again", transient=True)
        assert w.status(job) == "failed"
        assert len(facts_of(w, StageFailed)) == 2
        assert [fact.reason for fact in facts_of(w, StageSuperseded)] == [
            f"{second.name} failed: broken; the other attempt goes on"
        ]

    @pytest.mark.parametrize("dies", [0, 1])
    def test_a_node_that_is_lost_does_not_disturb_the_other(self, world: Any, dies: int) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3", labels={"x": "y"}, slots=1))
        job, *both = copied(w, one(retry=Retry(times=0)))
        lost, other = both[dies], both[1 - dies]
        placed = len(w.placed)
        w.goodbye(lost.name, "power cut")
        lost.tasks.clear()
        assert len(w.placed) == placed, "nothing is placed for the lost one at once"
        assert w.stage(job, "a").live == {its(other).task.token: other.name}
        assert w.stage(job, "a").agent == other.name
        finish(w, other)
        assert w.status(job, "a") == ["succeeded"]

    def test_a_lost_copy_is_followed_by_another_in_time(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job, first, second = copied(w)
        w.goodbye(second.name)
        second.tasks.clear()
        w.advance(4.2)
        (third,) = [agent for agent in w.agents.values() if agent not in (first, second)]
        assert set(w.stage(job, "a").live.values()) == {first.name, third.name}
        assert w.stage(job, "a").copies == 2

    def test_both_lost_is_another_attempt(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        job, first, second = copied(w)
        for agent in (first, second):
            w.goodbye(agent.name)
            agent.tasks.clear()
        assert w.where("a").name not in (first.name, second.name)
        assert w.stage(job, "a").deaths == 2
        w.finish("a")
        assert w.status(job, "a") == ["succeeded"]

    def test_inputs_that_one_cannot_have_do_not_end_the_other(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("fed")
        made = graph.stage("make", "t.blob")
        graph.stage("a", "t.need", data=made["data"], policy=Policy(straggler=SOON))
        job = w.submit(graph.build(KINDS))
        w.finish("make")
        first = w.where("a")
        w.start("a")
        w.advance(2.1)
        (second,) = [agent for agent in w.agents.values() if agent is not first]
        lost = InputLost(task=its(second).task, upstreams=(made.id,), reason="not there", gone=True)
        w.report(second, lost)
        assert w.status(job, "make", "a") == ["succeeded", "running"]
        finish(w, first)
        assert w.status(job) == "succeeded"


class TestTwoLiveTokens:
    def test_a_cancel_returns_when_both_have_stopped(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w)
        request = w.cancel(job)
        w.report(first, WasCancelled(task=its(first).task))
        assert (w.status(job), request in w.answers) == ("cancelling", False)
        w.report(second, WasCancelled(task=its(second).task))
        assert w.status(job) == "cancelled"
        assert w.stopped(request).status == "cancelled"

    @pytest.mark.parametrize("how", ["finish", "fail", "die"])
    def test_whatever_one_says_then_the_other_is_waited_for(self, world: Any, how: str) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w)
        w.cancel(job)
        match how:
            case "finish":
                finish(w, first)
            case "fail":
                failed(w, first)
            case _:
                w.goodbye(first.name)
        assert w.status(job) == "cancelling"
        w.report(second, WasCancelled(task=its(second).task))
        assert w.status(job) == "cancelled"

    def test_a_patch_of_it_needs_a_restart_and_stops_both(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w)
        refused = w.patch(job, "- replace: {stage: a, params: {label: new}}")
        assert "runs on edge-1, edge-2" in w.refused(refused)
        tasks = [its(agent).task for agent in (first, second)]
        taken = w.patch(job, "- replace: {stage: a, params: {label: new}}", restart=True)
        assert w.patched(taken).revision == 2
        for agent, task in zip((first, second), tasks, strict=True):
            assert Cancel(task=task) in agent.log
        w.acknowledge_cancels()
        assert w.assigned("a").params["label"] == "new"
        w.finish("a", "b")
        assert w.status(job) == "succeeded"

    def test_a_patch_takes_a_copy_back_that_has_not_begun(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w)
        failed(w, first)
        request = w.patch(job, "- replace: {stage: a, params: {label: new}}")
        assert its(second).task in second.revoking
        w.give_back()
        assert w.patched(request).revision == 2
        w.finish("a", "b")
        assert w.status(job) == "succeeded"

    def test_no_copy_is_made_while_a_patch_settles(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        graph = Graph("held")
        stage = graph.stage("a", "t.work", policy=Policy(straggler=SOON))
        graph.stage("b", "t.work")
        graph.stage("c", "t.work", x=stage["value"])
        job = w.submit(graph.build(KINDS))
        w.start("a")
        w.patch(job, "- replace: {stage: b, params: {label: new}}")
        w.advance(2.1)
        assert w.stage(job, "a").copies == 1, "what it does not touch gets its copy"
        w.give_back()
        assert w.job(job).revision == 2

    def test_a_restart_keeps_both(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w)
        w.restart()
        assert len(w.stage(job, "a").live) == 2
        w.advance(5.0)
        assert w.active() == ["a", "a"]
        finish(w, first)
        assert Cancel(task=its(second).task) in second.log
        assert w.status(job, "a") == ["succeeded"]

    def test_a_restart_before_the_copy_counts_from_then(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        w.submit(one())
        w.start("a")
        w.advance(1.5)
        w.restart()
        w.advance(1.5)
        assert w.active() == ["a"]
        w.advance(0.6)
        assert w.active() == ["a", "a"]

    def test_a_deadline_ends_both(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"))
        job, first, second = copied(w, one(deadline_seconds=3.0))
        tasks = [its(agent).task for agent in (first, second)]
        w.advance(1.0)
        assert w.status(job) == "failed"
        for agent, task in zip((first, second), tasks, strict=True):
            assert Cancel(task=task) in agent.log
        assert f"{first.name}, or its copy on {second.name}" in w.stage(job, "a").error.message

    def test_an_upstream_that_came_out_differently_ends_both(self, world: Any) -> None:
        w = world(node("edge-1"), node("edge-2"), node("edge-3"))
        graph = Graph("differs")
        made = graph.stage("make", "t.blob", require=Requirements(node="edge-3"))
        graph.stage("a", "t.need", data=made["data"], policy=Policy(straggler=SOON))
        graph.stage("c", "t.need", data=made["data"], require=Requirements(node="edge-2"))
        job = w.submit(graph.build(KINDS))
        w.finish("make")
        first = w.where("a")
        w.start("a")
        w.advance(2.1)
        assert len(w.stage(job, "a").live) == 2
        w.lose_input("c", "make", gone=True)
        w.finish("make", salt="other")
        w.acknowledge_cancels()
        assert w.stage(job, "a").tries == 3
        assert first.log
        w.finish("a", "c")
        assert w.status(job) == "succeeded"
