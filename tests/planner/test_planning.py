"""Plans: valid for whatever is asked, no worse than the classics, the same for the same seed, best where that is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.instances import NETWORKS, SHAPES, constrained, instance

from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.bound import lower_bound
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.decode import value_of
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.prepared import board, prepare
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem

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
        assert error.what == "no plan was found" or "no place may have it" in str(error)  # noqa: PT017
        return
    assert faults(asked, found) == []
    assert found.objective >= lower_bound(prepare(asked)) - 1e-6
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
    with pytest.raises(Infeasible, match="no plan was found"):
        plan(problem(["x", "y", "z"], PAIR, 1.0, apart=[0, 0, 0]), SHORT)


def test_nothing_to_plan_is_a_plan() -> None:
    found = plan(problem([], PAIR, np.zeros((0, 2))), SHORT)
    assert found.makespan == 0.0
