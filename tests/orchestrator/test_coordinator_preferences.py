"""Preferences weigh the places that a stage may have, and keep it from none."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation
from tests.orchestrator.test_coordinator_privacy import places, three

from starloom.dag.constellation import Tier
from starloom.dag.facts import StagePlaced
from starloom.orchestrator.fleetfile import parse
from starloom.orchestrator.planner.building import build, preferred
from starloom.orchestrator.planner.planning import Budget, plan


class TestPlaces:
    @pytest.mark.parametrize("delegate", [False, True])
    def test_stages_of_one_kind_go_where_each_prefers_to(self, world: Any, delegate: bool) -> None:
        w = world(*three(), delegate=delegate)
        text = """
stages:
  plain: {kind: t.work}
  near: {kind: t.work, prefer: {tier: device}}
  named: {kind: t.work, prefer: {node: b-edge}}
  away: {kind: t.work, in: {x: near.value}, avoid: [{tier: [cloud, device]}]}
"""
        job = w.submit(constellation(text))
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job) == {"plain": {"a-cloud"}, "near": {"z-pi"}, "named": {"b-edge"}, "away": {"b-edge"}}

    def test_they_are_asked_instead_of_the_kinds_own_tier(self, world: Any) -> None:
        w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
        text = "stages: {one: {kind: t.heavy}, two: {kind: t.heavy, prefer: {tier: cloud}}, three: {kind: t.heavy, avoid: {node: x}}}"
        job = w.submit(constellation(text))
        w.finish_all()
        assert places(w, job) == {"one": {"b-edge"}, "two": {"a-cloud"}, "three": {"b-edge"}}

    def test_a_target_is_chosen_by_them(self, world: Any) -> None:
        w = world(node("a", targets=("cpu", "npu")))
        w.submit(constellation("stages: {one: {kind: t.see}, two: {kind: t.see, avoid: {target: npu}}}"))
        assert {fact.stage: fact.target for fact in facts_of(w, StagePlaced)} == {"one": "npu", "two": "cpu"}

    def test_requirements_come_first(self, world: Any) -> None:
        w = world(*three())
        text = "stages: {a: {kind: t.work, require: {tier: edge}, prefer: {tier: device, seconds: 1h}}}"
        job = w.submit(constellation(text))
        w.finish_all()
        assert places(w, job) == {"a": {"b-edge"}}

    def test_it_ends_elsewhere_where_the_preferred_node_is_lost(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(constellation("stages: {a: {kind: t.work, prefer: {node: z-pi, seconds: 1h}}}"))
        assert w.where("a").name == "z-pi"
        w.goodbye("z-pi")
        w.agents["z-pi"].tasks.clear()
        w.advance(5)
        w.finish_all()
        assert w.status(job) == "succeeded"
        assert places(w, job) == {"a": {"z-pi", "a-cloud"}}

    def test_a_node_that_is_not_there_is_no_reason_to_refuse_the_job(self, world: Any) -> None:
        w = world(node("a"))
        job = w.submit(constellation("stages: {a: {kind: t.work, prefer: {node: gone}}}"))
        w.finish_all()
        assert w.status(job) == "succeeded"

    def test_a_patch_moves_what_waits(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(constellation("stages: {a: {kind: t.work}, b: {kind: t.work, in: {x: a.value}}}"))
        w.patched(w.patch(job, "- set_preferences: {stage: b, prefer: {tier: edge}}"))
        w.finish_all()
        assert places(w, job) == {"a": {"a-cloud"}, "b": {"b-edge"}}

    def test_a_restart_keeps_to_them(self, world: Any) -> None:
        w = world(*three())
        job = w.submit(
            constellation("stages: {a: {kind: t.work}, b: {kind: t.work, in: {x: a.value}, prefer: {tier: device}}}")
        )
        w.restart()
        w.finish_all()
        assert places(w, job)["b"] == {"z-pi"}


def test_explain_tells_what_a_waiting_stage_prefers(world: Any) -> None:
    w = world(node("a-cpu", slots=1, targets=("cpu", "npu")))
    text = "{kind: t.see, prefer: [{target: npu, seconds: 2}, {node: b}], avoid: {tier: cloud}}"
    job = w.submit(constellation("stages:\n" + "".join(f"  s{n}: {text}\n" for n in range(200))))
    assert w.coordinator.waits_for(job, "s199") == (
        "a place on a-cpu; it prefers target npu by 2 s, node b by 1 s and avoids the cloud tier by 1 s"
    )


@pytest.mark.parametrize("lose", [False, True])
def test_a_job_runs_as_it_was_planned_and_elsewhere_where_its_node_is_lost(world: Any, lose: bool) -> None:
    fleet = parse(
        b"nodes: [{name: a-cloud, tier: cloud}, {name: b-edge, tier: edge}, {name: z-pi, tier: device, speed: 9}]"
    )
    asked = constellation("stages: {a: {kind: t.heavy}, b: {kind: t.work, in: {x: a.value}}}")
    built = build(asked, KINDS, fleet)
    w = world(*three())
    job = w.submit(preferred(asked, built, plan(built.problem, Budget(50))))
    assert w.where("a").name == "z-pi"
    if lose:
        w.goodbye("z-pi")
        w.agents["z-pi"].tasks.clear()
        w.advance(5)
    w.finish_all()
    assert w.status(job) == "succeeded"
    # What `b` reads is small: without its node all places are equal, and the first by name is taken.
    assert places(w, job) == ({"a": {"z-pi", "b-edge"}, "b": {"a-cloud"}} if lose else {"a": {"z-pi"}, "b": {"z-pi"}})
