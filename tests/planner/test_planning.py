"""Plans: valid for whatever is asked, no worse than the classics, the same for the same seed, best where that is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.brute import best_objective
from tests.planner.instances import NETWORKS, SHAPES, constrained, instance

from starloom.dag import limits
from starloom.dag.errors import Infeasible, InvalidInput
from starloom.orchestrator.bench.placing import instances
from starloom.orchestrator.bench.placing.peers import plans
from starloom.orchestrator.planner import listing, planning
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.decode import value_of
from starloom.orchestrator.planner.planning import NO_PLAN, UNPROVEN, Budget, plan
from starloom.orchestrator.planner.prepared import board, prepare
from starloom.orchestrator.planner.problem import PROVEN, Place, Plan, Problem, problem

SHORT = Budget(iterations=50)
PAIR = [Place("a"), Place("b")]


def _classics(asked: Problem) -> list[float]:
    prepared = prepare(asked)
    made = board(prepared)
    ways = list(listing.classics(listing.Table(prepared)))
    return [value_of(prepared, made) for way in ways if listing.run(prepared, made, way) < 0]


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 100_000))
def test_a_plan_keeps_all_requirements(stages: int, nodes: int, seed: int) -> None:
    asked = constrained(stages, nodes, seed)
    try:
        found = plan(asked, SHORT, seed)
    except Infeasible as error:
        assert error.what in (NO_PLAN, UNPROVEN)  # noqa: PT017
        return
    assert faults(asked, found) == []
    assert found.objective <= min(_classics(asked), default=np.inf) + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_plan_is_no_worse_than_the_classics(shape: str, network: str) -> None:
    for stages, ratio in ((10, 5.0), (60, 0.3), (200, 1.0)):
        asked = instance(shape, network, stages, 8, ratio, seed=stages)
        found = plan(asked, SHORT)
        assert faults(asked, found) == []
        assert found.objective <= min(_classics(asked)) + 1e-9


def _same(one: Plan, other: Plan) -> bool:
    return (
        one.method == other.method and np.array_equal(one.place, other.place) and np.array_equal(one.start, other.start)
    )


def test_the_same_seed_gives_the_same_plan() -> None:
    asked = instance("layered", "tiered", 60, 8, 1.0, seed=3)
    assert _same(plan(asked, SHORT, seed=7), plan(asked, SHORT, seed=7))


def test_a_warm_start_is_never_worse_than_what_it_starts_from() -> None:
    asked = instance("fork", "uneven", 50, 6, 2.0, seed=5)
    first = plan(asked, Budget(iterations=500), seed=1)
    assert plan(asked, Budget(iterations=0), seed=2, warm=first).objective <= first.objective + 1e-9


def test_stages_side_by_side_use_both_nodes() -> None:
    found = plan(problem(["x", "y"], PAIR, [[2.0, 2.0], [2.0, 2.0]]), SHORT)
    assert found.makespan == 2.0
    assert set(found.place.tolist()) == {0, 1}


def test_a_chain_stays_where_moving_costs_more_than_the_faster_node_saves() -> None:
    asked = problem(["x", "y"], PAIR, [[2.0, 9.0], [3.0, 1.0]], [(0, 1, 10.0)], seconds_per_byte=0.3)
    found = plan(asked, SHORT)
    assert found.place.tolist() == [0, 0]
    assert found.makespan == 5.0


def test_a_model_is_loaded_once_and_waited_for() -> None:
    asked = problem(
        ["x", "y"],
        [Place("a", "cpu", 2)],
        [[1.0], [1.0]],
        models=["m"],
        model=[0, 0],
        load_seconds=2.0,
        weight_bytes=1.0,
    )
    found = plan(asked, SHORT)
    assert found.makespan == 3.0
    assert sorted(found.start.tolist()) == [0.0, 2.0]
    assert found.loads.sum() == 1


def test_a_model_that_is_there_is_worth_a_slower_node() -> None:
    asked = problem(
        ["x"], PAIR, [[1.0, 2.0]], models=["m"], model=[0], load_seconds=5.0, resident=[[False, True]], weight_bytes=1.0
    )
    assert plan(asked, SHORT).place.tolist() == [1]


def test_penalties_outweigh_seconds() -> None:
    asked = problem(["x"], PAIR, [[1.0, 2.0]], penalty=[[5.0, 0.0]])
    found = plan(asked, SHORT)
    assert found.place.tolist() == [1]
    assert found.objective == 2.0


def test_what_runs_stays_and_what_has_ended_takes_no_slot() -> None:
    inf = float("inf")
    asked = problem(
        ["ended", "runs", "next"],
        PAIR,
        [[0.0, inf], [4.0, inf], [1.0, 3.0]],
        [(0, 2, 1.0)],
        seconds_per_byte=1.0,
        started=[False, True, False],
        available=[0.0, 0.0],
    )
    found = plan(asked, SHORT)
    assert found.start[1] == 0.0
    assert found.place[2] == 1
    assert found.makespan == 4.0


def test_groups_share_a_node_or_do_not() -> None:
    alike = [[1.0, 1.0]] * 2
    together = plan(problem(["x", "y"], PAIR, alike, together=[0, 0]), SHORT)
    assert len(set(together.place.tolist())) == 1
    apart = plan(problem(["x", "y"], PAIR, [[1.0, 5.0]] * 2, apart=[3, 3]), SHORT)
    assert len(set(apart.place.tolist())) == 2


def test_memory_sends_a_model_elsewhere() -> None:
    asked = problem(
        ["x", "y"], PAIR, [[1.0, 3.0]] * 2, models=["m", "n"], model=[0, 1], weight_bytes=2.0, memory_bytes=[3.0, 3.0]
    )
    found = plan(asked, SHORT)
    assert len(set(found.place.tolist())) == 2


def test_a_stage_without_a_place_is_named() -> None:
    with pytest.raises(Infeasible, match=r"stages\.y: no place may have it"):
        plan(problem(["x", "y"], PAIR, [[1.0, 1.0], [np.inf, np.inf]]), SHORT)


def test_a_dead_end_is_an_error() -> None:
    with pytest.raises(Infeasible, match="no plan can keep all of this:\n  conflict: x, y, z stand on different nodes"):
        plan(problem(["x", "y", "z"], PAIR, 1.0, apart=[0, 0, 0]), SHORT)


def test_a_stage_without_a_place_is_told_with_all_reasons() -> None:
    with pytest.raises(Infeasible) as raised:
        plan(problem(["x", "y"], PAIR, [[np.inf] * 2] * 2), SHORT, reasons=[{"is private": [0], "is slow": [1]}])
    assert [str(trouble) for trouble in raised.value.problems] == [
        "stages.x: no place may have it: a: is private; b: is slow",
        "stages.y: no place may have it",
    ]


def test_reasons_are_told_with_what_would_be_enough() -> None:
    asked = problem(["x"], PAIR, [[np.inf, 1.0]], working_bytes=5, memory_bytes=4)
    with pytest.raises(Infeasible) as raised:
        plan(asked, SHORT, reasons=[{"is private": [0]}])
    told = [str(trouble) for trouble in raised.value.problems]
    assert told == [
        "conflict: x may not have a: is private",
        "conflict: b has 4 bytes of memory",
        "enough would be: b with 5 bytes of memory",
    ]


def test_a_plan_is_found_where_list_schedulers_find_none() -> None:
    """The big stage fits as long as the other's model is not there yet: they count both at one time."""
    asked = problem(
        ["big", "model"],
        [Place("a")],
        [[1.0], [2.0]],
        models=["m"],
        model=[-1, 0],
        load_seconds=1.0,
        weight_bytes=4,
        working_bytes=[8, 1],
        memory_bytes=10,
    )
    assert _classics(asked) == []
    found = plan(asked, SHORT)
    assert faults(asked, found) == []
    assert found.start.tolist() == [0.0, 1.0]
    assert found.makespan == 4.0


def test_where_list_schedulers_find_none_of_a_large_job_there_may_be_one() -> None:
    more: dict[str, Any] = {"models": ["m"], "model": [-1] * 10 + [0] * 30, "load_seconds": 1.0, "weight_bytes": 4.0}
    asked = problem(
        [f"s{i}" for i in range(40)],
        [Place("a", slots=2)],
        1.0,
        memory_bytes=9,
        working_bytes=[8.0] * 10 + [1.0] * 30,
        **more,
    )
    found = plan(asked, SHORT)
    assert faults(asked, found) == []
    assert found.makespan < 40.0


@pytest.mark.parametrize("stages", [4, 120])
def test_a_pair_that_cannot_share_a_node_is_told_in_jobs_of_any_size(
    stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PLAN_SETTLED_CHOICES_MAX", 1_000)
    seconds = np.ones((stages, 20))
    seconds[1, ::2] = np.inf
    seconds[3, 1::2] = np.inf
    together = np.full(stages, -1)
    together[[1, 3]] = 7
    asked = problem([f"s{i}" for i in range(stages)], [Place(f"n{i}") for i in range(20)], seconds, together=together)
    with pytest.raises(Infeasible) as raised:
        plan(asked, SHORT)
    assert raised.value.what == NO_PLAN
    assert "conflict: s1, s3 share a node" in [str(trouble) for trouble in raised.value.problems]


def test_what_is_not_proven_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLAN_SETTLED_CHOICES_MAX", 4)
    monkeypatch.setattr(planning, "HARD_STAGES", 2)
    with pytest.raises(Infeasible) as raised:
        plan(problem(["x", "y", "z"], PAIR, 1.0, apart=[0, 0, 0]), SHORT)
    assert raised.value.what == UNPROVEN
    assert raised.value.problems


def test_a_tier_alone_is_tried_where_tiers_are_known() -> None:
    for spec in instances.specs("100")[3::6]:
        made = instances.instance(spec)
        found = plan(made.problem, Budget(0))
        for name, peer in plans(made):
            assert not name.startswith("all-") or peer is None or found.objective <= peer.objective * (1 + 1e-9), name


def test_tiers_are_one_for_each_node() -> None:
    with pytest.raises(InvalidInput, match="tiers: are 1, of 2 nodes"):
        problem(["x"], PAIR, 1.0, tiers=[0])


def test_effort_finds_and_proves_the_best_of_small_jobs() -> None:
    for seed in range(12):
        asked = constrained(4, 2, seed)
        best = best_objective(asked)
        if best < np.inf:
            found = plan(asked, Budget(iterations=20, effort=1.0), seed)
            assert found.method.endswith(PROVEN)
            assert faults(asked, found) == []
            assert found.objective == pytest.approx(best, rel=1e-4)


def test_effort_makes_plans_of_larger_jobs_no_worse_and_the_same_each_time() -> None:
    asked = instance("layered", "tiered", 40, 6, 1.0, seed=3)
    without = plan(asked, Budget(iterations=5), seed=7)
    one, other = (plan(asked, Budget(iterations=5, effort=0.2), seed=7) for _ in range(2))
    assert faults(asked, one) == []
    assert one.objective <= without.objective
    assert _same(one, other)


def test_nothing_to_plan_is_a_plan() -> None:
    found = plan(problem([], PAIR, np.zeros((0, 2))), SHORT)
    assert found.makespan == 0.0


def test_so_many_iterations_are_made_however_little_time_there_is() -> None:
    gained = 0
    for index, spec in enumerate(instances.specs(instances.HUNDRED)[:6]):
        asked = instances.instance(spec).problem
        none, some, again = (plan(asked, Budget(spent=lambda: True, least=least)) for least in (0, 400, 400))
        assert faults(asked, some) == [], index
        assert _same(some, again), index
        assert some.objective <= none.objective, index
        gained += some.objective < none.objective * 0.99
    assert gained
