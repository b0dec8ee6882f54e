"""A stage runs in the best variant that a node may run, keeps it, and where that cannot be the job tells that it is degraded."""

from typing import Any

import pytest
from tests.orchestrator.harness import KINDS, facts_of, node
from tests.orchestrator.test_coordinator_patch import constellation
from tests.orchestrator.test_coordinator_privacy import three

from starloom.dag.constellation import StageSpec, Tier
from starloom.dag.errors import Infeasible
from starloom.dag.facts import StagePlaced
from starloom.dag.ids import StageId
from starloom.dag.variants import ways_of
from starloom.orchestrator import lanes
from starloom.orchestrator.fleetfile import parse
from starloom.orchestrator.planner.building import build, preferred
from starloom.orchestrator.planner.planning import Budget, plan

VARIANTS = """
      variants:
        - {name: large, quality: 0.9, params: {label: large}, require: {tier: cloud}}
        - {name: small, quality: 0.5, params: {label: small}}
"""
ONE = f"stages:\n  a:\n      kind: t.work{VARIANTS}"


def taken(w: Any, job: str) -> list[tuple[str, str]]:
    """In which variant and where each attempt was given out."""
    return [(fact.variant, fact.agent) for fact in facts_of(w, StagePlaced) if fact.job == job]


def lose(w: Any, name: str) -> None:
    w.goodbye(name)
    w.agents[name].tasks.clear()
    w.advance(5)


def test_the_best_that_a_node_may_run_is_taken_with_its_parameters(world: Any) -> None:
    w = world(*three())
    job = w.submit(constellation(ONE))
    assert taken(w, job) == [("large", "a-cloud")]
    assert w.assigned("a").params["label"] == "large"
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert w.job(job).degraded == ()


def test_where_no_node_may_run_the_best_the_next_is_taken_and_nothing_is_degraded(world: Any) -> None:
    w = world(node("b-edge"))
    job = w.submit(constellation(ONE))
    assert taken(w, job) == [("small", "b-edge")]
    w.finish_all()
    assert w.job(job).degraded == ()


@pytest.mark.parametrize("where", ["of the stage", "of the job"])
def test_a_variant_below_the_least_quality_is_not_taken(world: Any, where: str) -> None:
    w = world(node("b-edge"))
    text = f"{ONE}      least_quality: 0.6\n" if where == "of the stage" else f"least_quality: 0.6\n{ONE}"
    with pytest.raises(Infeasible, match="is on the edge tier"):
        w.submit(constellation(text))


def test_it_is_kept_over_retries_and_restarts_though_a_better_one_can_be_had(world: Any) -> None:
    w = world(node("b-edge"))
    job = w.submit(constellation(ONE))
    w.join(node("a-cloud", Tier.CLOUD))
    w.fail("a", transient=True)
    w.advance(5)
    w.restart()
    w.advance(5)
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert [variant for variant, _ in taken(w, job)] == ["small", "small"]


def test_where_it_can_run_nowhere_any_more_another_one_is_taken_and_the_job_tells(world: Any) -> None:
    w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
    job = w.submit(constellation(ONE))
    assert taken(w, job) == [("large", "a-cloud")]
    lose(w, "a-cloud")
    assert taken(w, job) == [("large", "a-cloud"), ("small", "b-edge")]
    assert w.assigned("a").params["label"] == "small"
    told = ("a ran as large, and does as small",)
    assert w.job(job).degraded == told
    w.restart()
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert w.job(job).degraded == told
    stage = w.job(job).stages[StageId("a")]
    assert (stage.variant, stage.degraded) == ("small", "large")


def test_a_node_whose_process_is_replaced_at_once_is_not_lost_to_its_variant(world: Any) -> None:
    w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
    job = w.submit(constellation(ONE))
    w.join(node("a-cloud", Tier.CLOUD))
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert taken(w, job) == [("large", "a-cloud"), ("large", "a-cloud")]
    assert w.job(job).degraded == ()


def test_it_waits_for_a_node_of_its_own_where_no_other_variant_can_be_had_either(world: Any) -> None:
    w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
    job = w.submit(constellation(f"{ONE}      least_quality: 0.6\n"))
    lose(w, "a-cloud")
    assert "b-edge is on the edge tier" in w.coordinator.waits_for(job, "a")
    w.join(node("c-cloud", Tier.CLOUD))
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert taken(w, job) == [("large", "a-cloud"), ("large", "c-cloud")]
    assert w.job(job).degraded == ()


def test_a_stage_that_waits_for_a_node_takes_the_variant_of_the_first_that_comes(world: Any) -> None:
    w = world(node("a-cloud", Tier.CLOUD), node("z-pi", Tier.DEVICE))
    text = ONE.replace("label: small}", "label: small}, require: {tier: [edge, device]}")
    job = w.submit(constellation(f"{text}  z: {{kind: t.work}}\n"))
    w.finish_all()
    assert w.status(job) == "succeeded"
    gone = w.submit(constellation(f"{text}      in: {{x: z.value}}\n  z: {{kind: t.work, require: {{node: z-pi}}}}\n"))
    lose(w, "a-cloud")
    w.finish_all()
    assert w.status(gone) == "succeeded"
    assert ("small", "z-pi") in taken(w, gone)
    assert w.job(gone).degraded == ()


def test_a_patch_gives_other_variants_and_begins_anew(world: Any) -> None:
    w = world(*three())
    job = w.submit(constellation(f"{ONE}      in: {{x: z.value}}\n  z: {{kind: t.work}}\n"))
    w.patched(w.patch(job, "- set_variants: {stage: a, variants: [{name: tiny, quality: 0.1, params: {label: tiny}}]}"))
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert [variant for variant, _ in taken(w, job) if variant] == ["tiny"]


def test_a_job_that_is_bound_to_a_plan_runs_in_the_variants_of_the_plan(world: Any) -> None:
    fleet = parse(b"nodes: [{name: a-cloud, tier: cloud}, {name: b-edge, tier: edge}, {name: z-pi, tier: device}]")
    asked = constellation(ONE)
    built = build(asked, KINDS, fleet)
    seconds = built.problem.arrays.seconds.copy()
    seconds[0, [place.variant == 0 for place in built.problem.places]] = float("inf")
    worse = built.problem._replace(arrays=built.problem.arrays._replace(seconds=seconds))
    w = world(*three())
    job = w.submit(preferred(asked, built, plan(worse, Budget(50))))
    assert [variant for variant, _ in taken(w, job)] == ["small"]


def grouped(how: str, other: str) -> str:
    """The stage, and another that it shares a node with or stands apart from."""
    return f"{ONE}      {how}: g\n  b: {{kind: t.work, {how}: g, require: {{{other}}}}}\n"


@pytest.mark.parametrize(("how", "other"), [("colocate", "tier: edge"), ("spread", "tier: cloud")])
def test_of_those_in_a_group_that_variant_is_taken_for_which_the_group_leaves_a_node(
    world: Any, how: str, other: str
) -> None:
    w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
    job = w.submit(constellation(grouped(how, other)))
    assert [each for each in taken(w, job) if each[0]] == [("small", "b-edge")]
    w.finish_all()
    assert w.status(job) == "succeeded"


@pytest.mark.parametrize(("how", "other"), [("colocate", "tier: edge"), ("spread", "tier: cloud")])
def test_a_group_that_only_a_variant_below_the_least_quality_would_let_run_is_not_accepted(
    world: Any, how: str, other: str
) -> None:
    w = world(node("a-cloud", Tier.CLOUD), node("b-edge"))
    with pytest.raises(Infeasible, match=r"no node may run all of 'g'|need nodes of their own"):
        w.submit(constellation(f"least_quality: 0.6\n{grouped(how, other)}"))


@pytest.mark.parametrize("how", ["colocate", "spread"])
def test_a_group_with_variants_is_looked_at_no_more_often_than_its_stages_for_each_other(
    world: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    count = 8
    looked: list[object] = []

    def ways(*given: Any) -> list[StageSpec]:
        looked.append(given)
        assert len(looked) < 10 * count * count
        return ways_of(*given)

    monkeypatch.setattr(lanes, "ways_of", ways)
    w = world(*(node(f"n{number}") for number in range(count)))
    stage = f"kind: t.work\n      in: {{x: z.value}}\n      {how}: g{VARIANTS}"
    text = "".join(f"  s{number}:\n      {stage}" for number in range(count))
    job = w.submit(constellation(f"stages:\n  z: {{kind: t.work}}\n{text}"))
    w.finish_all()
    assert w.status(job) == "succeeded"
    assert len({agent for variant, agent in taken(w, job) if variant}) == (1 if how == "colocate" else count)
