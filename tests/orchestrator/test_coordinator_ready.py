"""When stages start: joins, conditions, skips, and the order in which ready stages go out."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, World, facts_of, inline, node

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Join, OnFailure, Policy, Requirements, Retry, Tier
from starloom.dag.facts import StageDefaulted, StageSkipped
from starloom.dag.values import PortType
from starloom.orchestrator.inputs import Tick

SKIP = Policy(retry=Retry(times=0), on_failure=OnFailure.SKIP)


class TestConditions:
    def test_a_stage_waits_for_all_its_upstreams(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("join")
        a, b = graph.stage("a", "t.work"), graph.stage("b", "t.work")
        graph.stage("c", "t.work", x=a["value"], after=[b])
        job = w.submit(graph.build(KINDS))
        w.finish("a")
        assert w.status(job, "c") == ["pending"]
        assert w.coordinator.waits_for(job, "c") == "its upstreams: b"
        w.finish("b")
        assert w.status(job, "c") == ["placed"]
        assert [item.port for item in w.assigned("c").inputs] == ["x"]

    def test_a_join_of_any_starts_at_the_first(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("any")
        a, b = graph.stage("a", "t.work"), graph.stage("b", "t.work")
        graph.stage("c", "t.work", x=a["value"], y=b["value"], join=Join.ANY)
        job = w.submit(graph.build(KINDS))
        assert w.coordinator.waits_for(job, "c") == "one of its upstreams: a, b"
        w.finish("b")
        assert [item.port for item in w.assigned("c").inputs] == ["y"]
        w.finish("c")
        assert w.status(job) == "running"
        w.finish("a")
        assert w.status(job) == "succeeded"

    def test_a_comparison_decides_between_two_ways(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("ways")
        judge = graph.stage("judge", "t.judge", params={"score": 5})
        graph.stage("high", "t.work", after=[judge.when("value", ">", 3, path="score")])
        low = graph.stage("low", "t.work", after=[judge.when("value", "<=", 3, path="score")])
        graph.stage("lower", "t.work", x=low["value"])
        graph.output("low", low["value"])
        job = w.submit(graph.build(KINDS))
        assert len(w.assigned("judge").comparisons) == 2
        w.finish("judge")
        assert w.status(job, "high", "low", "lower") == ["placed", "skipped", "skipped"]
        assert w.stage(job, "low").reason == "judge: value.score <= 3 does not hold"
        assert w.stage(job, "lower").reason == "low was skipped"
        w.finish("high")
        assert w.status(job) == "succeeded"
        assert w.job(job).outputs == {}, "the output of a skipped stage is absent"

    def test_equal_comparisons_are_asked_once(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("same")
        judge = graph.stage("judge", "t.judge", params={"score": 1})
        for name in ("x", "y"):
            graph.stage(name, "t.work", after=[judge.when("value", "==", 1, path="score")])
        job = w.submit(graph.build(KINDS))
        assert len(w.assigned("judge").comparisons) == 1
        w.finish("judge")
        assert w.status(job, "x", "y") == ["placed", "placed"]

    def test_on_completion_starts_after_a_skip_without_its_value(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("completion")
        a = graph.stage("a", "t.work", policy=SKIP)
        graph.stage("b", "t.work", x=a["value"].on_completion())
        graph.stage("c", "t.work", x=a["value"])
        job = w.submit(graph.build(KINDS))
        w.fail("a")
        assert w.status(job, "a", "b", "c") == ["skipped", "placed", "skipped"]
        assert w.assigned("b").inputs == ()
        assert w.stage(job, "a").reason == "failed: broken"
        w.finish("b")
        assert w.status(job) == "succeeded"

    def test_any_is_skipped_once_no_upstream_can_satisfy_it(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("any")
        a, b = graph.stage("a", "t.work", policy=SKIP), graph.stage("b", "t.work", policy=SKIP)
        graph.stage("c", "t.work", after=[a, b], join=Join.ANY)
        job = w.submit(graph.build(KINDS))
        w.fail("a")
        assert w.status(job, "c") == ["pending"]
        w.fail("b")
        assert w.status(job, "c") == ["skipped"]
        assert w.status(job) == "succeeded"

    def test_a_skip_is_a_result_with_a_token(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("skip")
        a = graph.stage("a", "t.work", policy=SKIP)
        graph.stage("b", "t.work", x=a["value"])
        w.submit(graph.build(KINDS))
        w.fail("a")
        own, below = facts_of(w, StageSkipped)
        assert (own.token.attempt, below.token.attempt) == (2, 1)

    def test_a_long_chain_of_skips_is_no_recursion(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("long")
        last = graph.stage("s0", "t.work", policy=SKIP)
        for index in range(1, 3_000):
            last = graph.stage(f"s{index}", "t.work", x=last["value"])
        job = w.submit(graph.build(KINDS))
        w.fail("s0")
        assert w.status(job) == "succeeded"
        assert w.stage(job, "s2999").reason == "s2998 was skipped"

    def test_a_needed_input_without_a_value_fails_the_stage(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("needs")
        a = graph.stage("a", "t.blob", policy=SKIP)
        graph.stage("b", "t.need", data=a["data"].on_completion())
        job = w.submit(graph.build(KINDS))
        w.fail("a")
        assert w.status(job) == "failed"
        assert "stage b failed: input data has no value" in w.job(job).error


class TestDefaults:
    def test_defaults_stand_in_for_outputs_and_comparisons(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("default")
        policy = Policy(retry=Retry(times=0), on_failure=OnFailure.DEFAULT, defaults={"value": {"score": 9}})
        a = graph.stage("a", "t.work", policy=policy)
        graph.stage("b", "t.work", x=a["value"].when(">", 5, path="score"))
        graph.stage("c", "t.work", x=a["value"].when("<", 5, path="score"))
        graph.output("a", a["value"])
        job = w.submit(graph.build(KINDS))
        w.fail("a", "no luck")
        assert w.status(job, "a", "b", "c") == ["succeeded", "placed", "skipped"]
        (item,) = w.assigned("b").inputs
        assert item.ref.inline == b'{"score":9}'
        assert item.ref == inline({"score": 9})
        w.finish("b")
        assert w.job(job).outputs["a"].inline == b'{"score":9}'
        assert w.stage(job, "a").error.message == "no luck"

    def test_text_defaults(self, world: Any) -> None:
        w = world(node("edge-1"))
        graph = Graph("default")
        policy = Policy(retry=Retry(times=0), on_failure=OnFailure.DEFAULT, defaults={"text": ""})
        graph.output("said", graph.stage("say", "t.say", policy=policy)["text"])
        job = w.submit(graph.build(KINDS))
        w.fail("say")
        (fact,) = facts_of(w, StageDefaulted)
        assert (fact.outputs["text"].type, fact.outputs["text"].inline) == (PortType.TEXT, b"")
        assert w.status(job) == "succeeded"


def wide(count: int, name: str = "wide", **more: Any) -> Any:
    graph = Graph(name)
    for index in range(count):
        graph.stage(f"{name}{index}", "t.work", **more)
    return graph.build(KINDS)


def finish_in_order(w: World, agent: str) -> list[str]:
    """Finishes an agent's attempts, the first given out first, and tells the order."""
    order: list[str] = []
    while w.agents[agent].tasks:
        stage = next(iter(w.agents[agent].tasks)).stage
        order.append(stage)
        w.finish(stage)
    return order


class TestOrder:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "AGENT_BACKLOG_STAGES", 0)

    def test_an_agent_is_given_its_slots_and_a_backlog(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "AGENT_BACKLOG_STAGES", 3)
        monkeypatch.setattr(limits, "AGENT_BACKLOG_SECONDS", 0.0)
        w = world(node("edge-1"))
        job = w.submit(wide(10))
        assert len(w.active()) == 5
        assert w.coordinator.waits_for(job, "wide9") == "a place on edge-1"
        w.finish("wide0")
        assert len(w.active()) == 5
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_of_short_stages_an_agent_has_more_in_hand_within_bounds(
        self, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "AGENT_BACKLOG_STAGES", 1)
        w = world(node("edge-1", slots=1))
        w.submit(wide(20))
        run_seconds = KINDS["t.work"].cost.run_seconds
        assert len(w.active()) == round(limits.AGENT_BACKLOG_SECONDS / run_seconds)
        monkeypatch.setattr(limits, "AGENT_BACKLOG_SECONDS", 1.0)
        w.finish("wide0")
        assert len(w.active()) == limits.AGENT_BACKLOG_FACTOR

    def test_the_greater_priority_goes_first(self, world: Any) -> None:
        w = world(node("edge-1", slots=1))
        w.submit(wide(3, "low"))
        w.submit(wide(2, "high"), priority=1)
        assert finish_in_order(w, "edge-1") == ["low0", "high0", "high1", "low1", "low2"]

    def test_a_large_job_is_placed_by_parts_and_an_urgent_one_goes_between(self, world: Any) -> None:
        part = limits.PLACEMENTS_PER_DECISION
        w = world(node("edge-1", slots=3 * part))
        low = w.submit(wide(2 * part + 1, "low"))
        assert len(w.placed) == part
        assert w.coordinator.next_wake() == w.now, "the rest is due at once"
        assert w.coordinator.waits_for(low, f"low{2 * part}") == "a place on edge-1"
        w.submit(wide(1, "high"), priority=1)
        assert w.placed[part][0] == "high0"
        assert len(w.placed) == 2 * part
        w.handle(Tick())
        assert len(w.placed) == 2 * part + 2
        assert w.coordinator.next_wake() > w.now

    def test_jobs_of_one_priority_take_turns(self, world: Any) -> None:
        w = world(node("edge-1", slots=1))
        w.submit(wide(6, "a"))
        w.submit(wide(3, "b"))
        order = finish_in_order(w, "edge-1")
        assert order[0] == "a0"
        assert [name[0] for name in order[1:7]] == ["b", "a", "b", "a", "b", "a"] or [
            name[0] for name in order[1:7]
        ] == ["a", "b", "a", "b", "a", "b"]

    def test_turns_are_taken_across_kinds(self, world: Any) -> None:
        w = world(node("edge-1", slots=1))
        graph = Graph("mixed")
        for index in range(4):
            graph.stage(f"m{index}", "t.work" if index % 2 else "t.say")
        w.submit(graph.build(KINDS))
        w.submit(wide(4, "w"))
        order = finish_in_order(w, "edge-1")
        assert sorted(name[0] for name in order[1:7]) == ["m", "m", "m", "w", "w", "w"]

    def test_the_longest_way_to_the_end_goes_first(self, world: Any) -> None:
        w = world(node("edge-1", slots=1))
        graph = Graph("ranks")
        graph.stage("short", "t.work")
        long = graph.stage("long", "t.work")
        graph.stage("heavy", "t.work", x=long["value"])
        w.submit(graph.build(KINDS))
        assert finish_in_order(w, "edge-1") == ["long", "short", "heavy"]

    def test_max_parallel_bounds_active_attempts(self, world: Any) -> None:
        w = world(node("edge-1", slots=8))
        job = w.submit(wide(5), max_parallel=2)
        other = w.submit(wide(2, "other"))
        assert w.active() == ["other0", "other1", "wide0", "wide1"]
        assert "max_parallel is 2" in w.coordinator.waits_for(job, "wide4")
        w.finish("wide0")
        assert w.active() == ["other0", "other1", "wide1", "wide2"]
        w.finish_all()
        assert (w.status(job), w.status(other)) == ("succeeded", "succeeded")

    def test_a_lane_that_is_full_does_not_keep_others_waiting(self, world: Any) -> None:
        w = world(node("cloud-1", Tier.CLOUD, slots=1), node("edge-1", slots=1))
        graph = Graph("two-tiers")
        for index in range(3):
            graph.stage(f"c{index}", "t.work", require=Requirements(tiers=(Tier.CLOUD,)))
        for index in range(3):
            graph.stage(f"e{index}", "t.work", require=Requirements(tiers=(Tier.EDGE,)))
        w.submit(graph.build(KINDS))
        assert w.active() == ["c0", "e0"]
        w.finish("e0")
        w.finish("e1")
        assert w.active() == ["c0", "e2"]

    def test_many_kinds_of_requirements_are_forgotten_again(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "READY_LANES_KEPT", 4)
        w = world(node("edge-1", slots=1))
        for index in range(12):
            w.submit(wide(1, f"n{index}", require=Requirements(memory_bytes=index)))
        w.finish_all()
        assert all(job.status == "succeeded" for job in w.coordinator.jobs.values())
        assert len(w.coordinator._lanes._lanes) <= 12
        w.submit(wide(1, "last", require=Requirements(memory_bytes=99)))
        assert len(w.coordinator._lanes._lanes) <= 5
