"""Bounds of plans: no plan is below, which trying all plans shows, and what has to be loaded, moved and shared is in them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.brute import best_objective
from tests.planner.instances import constrained

from starloom.dag.constellation import Goal, Measure
from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.bound import least, lower_bound
from starloom.orchestrator.planner.goals import Asked, find
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.prepared import prepare
from starloom.orchestrator.planner.problem import Place, Problem, problem

SHORT = Budget(iterations=50)
PAIR = [Place("a"), Place("b")]


def bound(asked: Problem, most: float) -> float:
    return lower_bound(prepare(asked), most)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 100_000), st.sampled_from([1.0, 1.2, 3.0]))
def test_no_plan_of_a_tiny_job_is_below(stages: int, nodes: int, seed: int, more: float) -> None:
    asked = constrained(stages, nodes, seed)
    best = best_objective(asked)
    if np.isfinite(best):
        assert bound(asked, best * more) <= best * (1 + 1e-9)
        assert bound(asked, np.inf) <= best * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 100_000))
def test_a_plan_ends_no_sooner_than_told_and_takes_no_less(stages: int, nodes: int, seed: int) -> None:
    asked = constrained(stages, nodes, seed)
    try:
        found = plan(asked, SHORT, seed)
    except Infeasible:
        return
    told = least(asked, found)
    assert 0 <= told.makespan <= found.makespan
    assert 0 <= told.objective <= found.objective
    # Nothing that is worse than a plan in hand tells more of those that are better.
    assert lower_bound(prepare(asked), found.objective * 2) <= found.objective * (1 + 1e-9)


def test_the_end_and_what_it_costs_beside_are_bound_apart() -> None:
    asked = problem(["x"], PAIR, [[1.0, 2.0]], penalty=[[5.0, 0.5]])
    assert least(asked, plan(asked, SHORT)) == pytest.approx((1.0, 2.5), abs=1e-3)


def test_what_only_one_stage_can_load_is_in_it() -> None:
    asked = problem(["x", "y"], PAIR, 1.0, [(0, 1, 0.0)], models=["m", "n"], model=[0, 1], load_seconds=3.0)
    assert bound(asked, 9.0) == pytest.approx(8.0, rel=1e-3)
    shared = problem(["x", "y"], PAIR, 1.0, [(0, 1, 0.0)], latency=9.0, models=["m"], model=[0, 0], load_seconds=3.0)
    assert bound(shared, 5.0) == pytest.approx(5.0)


def test_a_value_that_has_to_go_out_and_back_moves_twice() -> None:
    pinned = [[1.0, np.inf], [5.0, 1.0], [1.0, np.inf]]
    asked = problem(["x", "y", "z"], PAIR, pinned, [(0, 1, 1.0), (1, 2, 1.0)], seconds_per_byte=1.5)
    assert bound(asked, 9.0) == pytest.approx(6.0, rel=1e-3)


def test_places_have_no_more_to_give_than_time() -> None:
    """Each stage runs in 1 s on the fast place, and all of them cannot: the best is 9 there beside 3 on the slow one."""
    asked = problem([f"s{i}" for i in range(12)], PAIR, [[1.0, 3.0]] * 12)
    assert bound(asked, 12.0) == pytest.approx(9.0, rel=1e-2)
    # And nothing of it begins before what comes first has ended, nor ends with the job.
    names = ["first", *(f"s{i}" for i in range(12)), "last"]
    seconds = [[2.0, 2.0], *([[1.0, 3.0]] * 12), [4.0, 4.0]]
    edges = [*((0, i, 0.0) for i in range(1, 13)), *((i, 13, 0.0) for i in range(1, 13))]
    assert bound(problem(names, PAIR, seconds, edges), 20.0) == pytest.approx(15.0, rel=1e-2)


def test_memory_has_no_more_to_give_than_time() -> None:
    """Three slots, and memory for one stage at a time."""
    places = [Place("a", slots=3)]
    here = problem([f"s{i}" for i in range(6)], places, 1.0, memory_bytes=[4.0], working_bytes=4.0)
    assert bound(here, 9.0) == pytest.approx(6.0, rel=1e-3)
    # What is there for good leaves less, and what only some hold is busy from the first of these to the last.
    names = ["first", *(f"s{i}" for i in range(4)), "last"]
    more: dict[str, Any] = {"models": ["m"], "resident": [[True]], "weight_bytes": [6.0], "memory_bytes": [10.0]}
    edges = [*((0, i, 0.0) for i in range(1, 5)), *((i, 5, 0.0) for i in range(1, 5))]
    held = [[0.0], *([[2.0]] * 4), [0.0]]
    asked = problem(names, places, [[2.0], *([[1.0]] * 4), [3.0]], edges, working_bytes=held, **more)
    assert bound(asked, 9.0) == pytest.approx(2.0 + 4 / 2 + 3.0, rel=1e-3)


def _tight(seed: int) -> Problem:
    """Few stages with working sets, of which fewer fit a node than it has slots."""
    draw = np.random.default_rng(seed)
    n, k = int(draw.integers(3, 6)), 1 + seed % 2
    places = [Place(f"n{node}", slots=int(draw.integers(2, 4))) for node in range(k)]
    working = draw.integers(1, 5, n).astype(float)
    memory = np.array([working.max() * draw.uniform(1.0, 1.8) for _ in range(k)])
    edges = [(up, down, float(draw.uniform(0, 2))) for down in range(n) for up in range(down) if draw.random() < 0.15]
    seconds = draw.uniform(1.0, 2.0, (n, k))
    return problem(
        [f"s{i}" for i in range(n)],
        places,
        seconds,
        edges,
        seconds_per_byte=0.2,
        memory_bytes=memory,
        working_bytes=working,
    )


@pytest.mark.parametrize("first", [0, 20])
def test_no_plan_where_memory_is_short_is_below_and_more_is_told_of_it(first: int) -> None:
    more = 0
    for seed in range(first, first + 20):
        asked = _tight(seed)
        best, told = best_objective(asked), bound(asked, np.inf)
        assert told <= best * (1 + 1e-9), seed
        assert bound(asked, best) <= best * (1 + 1e-9), seed
        roomy = asked._replace(arrays=asked.arrays._replace(memory_bytes=np.full(len(asked.nodes), np.inf)))
        more += told > bound(roomy, np.inf) * 1.01
    assert more >= 5


def test_stages_apart_cannot_all_have_the_fast_node() -> None:
    places = [*PAIR, Place("c")]
    asked = problem(["x", "y", "z"], places, [[1.0, 2.0, 7.0]] * 3, apart=0)
    assert bound(asked, 7.0) == pytest.approx(7.0)
    together = problem(["x", "y"], PAIR, [[1.0, 4.0], [4.0, 1.0]], together=0)
    assert bound(together, 4.0) == pytest.approx(4.0)


@pytest.mark.parametrize("goals", [[], [Measure.PRICE]])
def test_what_is_proven_of_some_variants_is_no_bound_of_all(goals: list[Measure]) -> None:
    """Within 3 s the middle one is the best; the small one would be faster, and no proof among the others says that none is."""
    places = [Place("a", variant=which) for which in range(3)]
    asked = problem(["x"], places, [[4.0, 2.0, 1.0]], variants=3)
    rates = Rates(np.ones(3), np.ones(3), np.zeros((1, 1)), np.zeros((1, 1)), np.array([[0.1, 0.2, 0.3]]))
    ask = Asked(rates, [Goal(by=goal) for goal in goals], deadline=3.0, effort=0.2)
    found = find(asked, ask, lambda what, warm: plan(what, Budget(50, effort=0.2), 0, warm))
    assert found.plan.place.tolist() == [1]
    assert found.bound <= 1.0
    assert least(asked, found.plan, found.bound).makespan == pytest.approx(1.0, rel=1e-3)
