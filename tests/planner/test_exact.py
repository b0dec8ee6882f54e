"""What is called the best plan is: against every plan there is of tiny problems, and never worse than a hint."""

from typing import Any

import numpy as np
import pytest
from tests.planner.brute import best_objective

from starloom.orchestrator.bench.placing.cases import Shape, feasible
from starloom.orchestrator.planner import exact as exact_module
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.exact import exact
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Plan, problem
from starloom.orchestrator.planner.timing import retimed

TINY = Shape(stages=(2, 5), nodes=(2, 3))
ROUNDING = 1e-4
"""Share by which an objective may be off: ticks are some millionths of it, a few for each stage."""


@pytest.mark.parametrize("seed", range(60))
def test_the_best_of_a_tiny_problem_is_found_and_proven(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = feasible(seed, TINY)
    proof = exact(case.problem)
    best = best_objective(case.problem)
    assert proof.plan is not None
    assert faults(case.problem, proof.plan) == []
    assert proof.proven
    assert proof.plan.objective == pytest.approx(best, rel=ROUNDING)
    assert proof.bound <= best * (1 + 1e-9)
    assert proof.bound == pytest.approx(best, rel=ROUNDING)
    # Where the first run ends at once, those after it find what is better than the plan in hand, and show that nothing is.
    monkeypatch.setattr(exact_module, "SHARES", (0.0, *exact_module.SHARES[1:]))
    for hint in (plan(case.problem, Budget(iterations=0)), proof.plan):
        again = exact(case.problem, hint)
        assert again.plan is not None
        assert again.proven
        assert again.plan.objective == pytest.approx(best, rel=ROUNDING)
        assert faults(case.problem, again.plan) == []
        assert again.bound <= best * (1 + 1e-9)
        assert again.bound == pytest.approx(best, rel=ROUNDING)


@pytest.mark.parametrize("seed", range(60))
def test_what_tiny_problems_without_a_plan_cannot_have_is_not_found(seed: int) -> None:
    """Memory is drawn anew, mostly too small."""
    case = feasible(seed, TINY._replace(models=1.0, memory=1.0)).problem
    rng = np.random.default_rng(seed)
    case = case._replace(arrays=case.arrays._replace(memory_bytes=rng.uniform(1, 6, len(case.nodes)) * 2**30))
    best = best_objective(case)
    proof = exact(case)
    assert proof.proven
    if proof.plan is None:
        assert best == np.inf
    else:
        assert proof.plan.objective == pytest.approx(best, rel=ROUNDING)
        assert faults(case, proof.plan) == []


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_whatever_is_found_is_valid_and_no_worse_than_one_after_the_other(first: int) -> None:
    for seed in range(first, first + 20):
        case = feasible(seed, Shape(stages=(2, 12)))
        proof = exact(case.problem, effort=0.02)
        if proof.plan is None:
            assert not proof.proven, seed
            continue
        assert faults(case.problem, proof.plan) == [], seed
        again = exact(case.problem, proof.plan, effort=0.01)
        assert again.plan is not None
        assert again.plan.objective <= proof.plan.objective, seed
        assert faults(case.problem, again.plan) == [], seed


def same(one: Plan | None, other: Plan | None) -> bool:
    assert one is not None
    assert other is not None
    alike = np.array_equal(one.place, other.place) and np.array_equal(one.loads, other.loads)
    return alike and np.array_equal(one.start, other.start) and np.array_equal(one.finish, other.finish)


def test_the_same_question_has_the_same_answer() -> None:
    for seed in range(5):
        case = feasible(seed, Shape(stages=(8, 12)))
        one, other = (exact(case.problem, effort=0.1, seed=5) for _ in range(2))
        assert (one.bound, one.proven) == (other.bound, other.proven)
        assert same(one.plan, other.plan) if one.plan else other.plan is None


def simple(**more: Any) -> tuple[Any, Plan]:
    """Two stages of one second on either of two places, and a plan that has them one after the other."""
    what = problem(["a", "b"], [Place("x"), Place("y")], 1.0, **more)
    made = Plan(
        np.zeros(2, dtype=np.int32), np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.zeros(2, bool), 2.0, 0.0, ""
    )
    return what, made


def test_a_hint_that_no_effort_can_better_comes_back() -> None:
    what, hint = simple()
    assert same(exact(what, hint, effort=0.0).plan, hint)
    proof = exact(what, hint)
    assert proof.plan is not None
    assert proof.plan.objective == 1.0


def test_a_hint_that_breaks_a_rule_is_not_taken() -> None:
    what, hint = simple(apart=0)
    proof = exact(what, hint)
    assert proof.proven
    assert proof.plan is not None
    assert faults(what, proof.plan) == []


def test_nothing_to_do_is_planned() -> None:
    proof = exact(problem([], [Place("x")], np.zeros((0, 1))))
    assert proof.plan is not None
    assert (proof.plan.objective, proof.bound, proof.proven) == (0.0, 0.0, True)


def test_what_takes_no_time_and_costs_nothing_is_planned() -> None:
    proof = exact(problem(["a", "b"], [Place("x"), Place("y")], 0.0, [(0, 1, 3.0)], seconds_per_byte=1.0))
    assert proof.plan is not None
    assert (proof.plan.objective, proof.proven) == (0.0, True)


@pytest.mark.parametrize(
    "more",
    [
        {"seconds": [[1, np.inf], [np.inf, np.inf]]},
        {"apart": 0, "seconds": [[1, np.inf], [1, np.inf]]},
        {"together": 0, "seconds": [[1, np.inf], [np.inf, 1]]},
        {"dependencies": [(0, 1, 1.0)], "seconds": [[1, np.inf], [np.inf, 1]], "latency": np.inf},
        {"available": np.inf},
        {"release": np.inf},
        {"working_bytes": 2.0, "memory_bytes": 1.0},
        {"working_bytes": 2.0, "memory_bytes": 0.0},
        {"started": True, "seconds": [[1, np.inf], [1, np.inf]]},
    ],
)
def test_where_there_is_no_plan_that_is_proven(more: dict[str, Any]) -> None:
    proof = exact(problem(["a", "b"], [Place("x"), Place("y")], **({"seconds": 1.0} | more)))
    assert (proof.plan, proof.proven) == (None, True)


def test_memory_that_fits_to_the_byte_is_used() -> None:
    what = problem(["a", "b", "c"], [Place("x", slots=3)], 1.0, working_bytes=[10**12, 3, 7], memory_bytes=10**12 + 10)
    proof = exact(what)
    assert proof.plan is not None
    assert proof.plan.objective == 1.0


def test_times_are_exact_though_ticks_are_not() -> None:
    what = problem(["a", "b", "c"], [Place("x")], [[1 / 3], [np.pi], [1e-3]], [(0, 1, 1.0)], release=[0, 0, 2 / 3])
    proof = exact(what)
    assert proof.plan is not None
    assert proof.plan.objective == pytest.approx(1 / 3 + np.pi + 1e-3, rel=1e-12)
    assert same(retimed(what, proof.plan), proof.plan)


@pytest.mark.parametrize("price", [1e6, 1e15, 1e17, 1e20, 1e30, 1e100])
def test_the_best_is_found_and_proven_however_much_places_cost(price: float) -> None:
    penalty = price * np.array([[1.0, 1.1, 1.2], [1.3, 1.0, 1.05], [1.2, 1.1, 1.01]])
    places = [Place("x"), Place("y"), Place("z")]
    case = problem(["a", "b", "c"], places, [[1, 2, 3]] * 3, [(0, 1, 5.0)], latency=0.1, penalty=penalty)
    dearest = plan(case._replace(arrays=case.arrays._replace(penalty=-penalty + 2 * price)), Budget(iterations=0))
    for hint in (None, retimed(case, dearest)):
        proof = exact(case, hint)
        assert proof.plan is not None
        assert proof.proven
        assert proof.plan.objective == pytest.approx(3.01 * price, rel=ROUNDING)
        assert proof.bound == pytest.approx(3.01 * price, rel=ROUNDING)


def test_which_of_several_costs_beyond_counting_is_least_is_not_called_proven() -> None:
    penalty = np.array([[0.0, 1e31], [0.0, 1e30]])
    case = problem(["a", "b"], [Place("x"), Place("y")], [[1, 1], [1, 1]], penalty=penalty, apart=0)
    proof = exact(case)
    assert not proof.proven
    assert proof.plan is not None
    assert faults(case, proof.plan) == []
    assert proof.bound <= 1e30
