"""Plans for energy and price: what they take is added up by hand here, and no plan that was seen is better by the goals."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.brute import best_objective
from tests.planner.instances import constrained

from starloom.dag.constellation import Goal, Measure
from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.placing.cases import Shape, feasible
from starloom.orchestrator.planner.bills import Rates, bill, least, loading
from starloom.orchestrator.planner.check import faults, penalty
from starloom.orchestrator.planner.goals import Asked, Found, best, find, tries, weighed
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem

LATENCY, ENERGY, PRICE, *_ = Measure
PLACES = (Place("phone"), Place("edge", slots=2), Place("cloud", slots=4))
RATES = Rates(
    watts=np.array([2.0, 10.0, 25.0]),
    price=np.array([0.0, 0.5, 4.0]),
    joules_per_byte=np.array([[0, 1, 3], [1, 0, 2], [3, 2, 0.0]]),
    price_per_byte=np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0.0]]),
)
SECONDS = [[8.0, 3.0, 1.0]] * 3


def chain(**more: object) -> Problem:
    return problem(["a", "b", "c"], PLACES, SECONDS, [(0, 1, 1.0), (1, 2, 1.0)], seconds_per_byte=0.1, **more)  # type: ignore[arg-type]


def planned(what: Problem, warm: Plan | None) -> Plan:
    return plan(what, Budget(300), 0, warm)


def goals(*measures: Measure) -> list[Goal]:
    return [Goal(by=measure) for measure in measures]


def places(found: Found) -> list[int]:
    return [int(place) for place in found.plan.place]


def test_a_bill_is_the_sum_of_what_stages_and_links_take() -> None:
    what = chain()
    made = plan(
        problem(
            ["a", "b", "c"],
            PLACES,
            [[8, np.inf, np.inf], [np.inf, 3, np.inf], [np.inf, np.inf, 1]],
            [(0, 1, 1.0), (1, 2, 1.0)],
        )
    )
    took = bill(what, RATES, made)
    assert took.stage_joules.tolist() == [16.0, 30.0, 25.0]
    assert took.stage_price.tolist() == [0.0, 1.5, 4.0]
    assert took.joules == 16 + 30 + 25 + 1 + 2
    assert took.price == 1.5 + 4.0 + 1.0
    assert took.drawn.tolist() == [16.0, 30.0, 25.0]


def test_loading_is_paid_by_who_loads() -> None:
    what = problem(["a", "b"], PLACES[:1], 2.0, models=["eyes"], model=[0, 0], load_seconds=3.0)
    rates = Rates(np.array([2.0]), np.array([1.0]), np.zeros((1, 1)), np.zeros((1, 1)))
    took = bill(what, rates, plan(what))
    assert sorted(took.stage_joules.tolist()) == [4.0, 10.0]


@pytest.mark.parametrize(
    ("order", "expected"),
    [((), [2, 2, 2]), ((LATENCY,), [2, 2, 2]), ((ENERGY,), [0, 0, 0]), ((PRICE,), [0, 0, 0])],
)
def test_each_measure_has_its_place(order: tuple[Measure, ...], expected: list[int]) -> None:
    found = find(chain(), Asked(RATES, goals(*order), 0.0), planned)
    assert places(found) == expected
    assert faults(chain(), found.plan) == []


def test_of_equal_ones_the_fastest_is_taken() -> None:
    rates = RATES._replace(watts=np.array([1.0, 8 / 3, 8.0]))
    assert places(find(problem(["a"], PLACES, [[8, 3, 1]]), Asked(rates, goals(ENERGY), 0.0), planned)) == [2]


def test_within_a_share_of_the_fastest_the_cheapest_is_taken() -> None:
    what = problem(["a"], PLACES, [[8.0, 1.05, 1.0]])
    order = [Goal(by=LATENCY, within=0.1), Goal(by=PRICE)]
    assert places(find(what, Asked(RATES, order, 0.0), planned)) == [1]
    assert places(find(what, Asked(RATES, [Goal(by=LATENCY, within=0.01), Goal(by=PRICE)], 0.0), planned)) == [2]


def test_weights_are_seconds_for_a_joule() -> None:
    what = problem(["a"], PLACES, [[8.0, 3.0, 1.0]])
    for weight, place in ((1e-9, 2), (2.0, 0)):
        said = [Goal(by=LATENCY, weight=1.0), Goal(by=ENERGY, weight=weight)]
        assert places(find(what, Asked(RATES, said, 0.0), planned)) == [place]
    # A weight of latency is one of all else, turned over.
    assert places(
        find(what, Asked(RATES, [Goal(by=LATENCY, weight=1e9), Goal(by=ENERGY, weight=2.0)], 0.0), planned)
    ) == [2]


def test_what_takes_next_to_nothing_leaves_places_to_be_had() -> None:
    rates = RATES._replace(watts=np.full(3, 1e-320))
    assert faults(chain(), find(chain(), Asked(rates, goals(ENERGY)), planned).plan) == []


def test_of_plans_that_end_in_time_the_cheapest_is_taken() -> None:
    found = find(chain(), Asked(RATES, goals(PRICE), 10.0), planned)
    assert places(found) == [1, 1, 1]
    assert faults(chain(), found.plan, 10.0) == []
    late = find(chain(), Asked(RATES, goals(PRICE), 1.0), planned)
    assert faults(chain(), late.plan, 1.0) == [
        f"the last stage ends at {late.plan.makespan}, after the deadline of 1.0"
    ]


def test_no_plan_takes_more_of_a_node_than_it_has() -> None:
    store = [20.0, np.inf, np.inf]
    what = chain(charge=np.array(SECONDS) * RATES.watts, store=store)
    found = find(what, Asked(RATES, goals(ENERGY), 0.0), planned)
    assert found.bill.drawn[0] == 16.0
    tight = problem(["a", "b"], PLACES[:1], 2.0, charge=4.0, store=7.0)
    over = Plan(
        np.array([0, 0], dtype=np.int32),
        np.array([0.0, 2.0]),
        np.array([2.0, 4.0]),
        np.zeros(2, dtype=bool),
        4.0,
        0.0,
        "hand",
    )
    assert faults(tight, over) == ["phone would take 8.0 J, and has 7.0 J"]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.permutations([LATENCY, ENERGY, PRICE]), st.floats(0, 0.5))
def test_no_plan_that_was_seen_is_better_by_the_goals(seed: int, order: list[Measure], within: float) -> None:
    draw = np.random.default_rng(seed)
    what = problem(
        [f"s{i}" for i in range(4)],
        PLACES,
        draw.uniform(0.5, 4.0, (4, 3)),
        [(0, 1, 1.0), (0, 2, 1.0), (2, 3, 2.0)],
        seconds_per_byte=0.3,
        penalty=draw.uniform(0, 0.2, (4, 3)),
    )
    seen: list[Found] = []

    def looked(asked: Problem, warm: Plan | None) -> Plan:
        made = plan(asked, Budget(100), 0, warm)
        plain = made._replace(penalty=penalty(what, made))
        seen.append(Found(asked, made, plain, bill(what, RATES, plain)))
        return made

    said = [Goal(by=order[0], within=within), *goals(*order[1:])]
    found = find(what, Asked(RATES, said, 0.0), looked)
    assert len(seen) <= tries(said)
    least = min(each.value(order[0]) for each in seen)
    assert found.value(order[0]) <= least * (1 + within) * (1 + 1e-6)
    for each in seen:
        if each.value(order[0]) <= least * (1 + within) * (1 - 1e-6):
            assert found.value(order[1]) <= each.value(order[1]) * (1 + 1e-6)
    assert found.plan.objective == pytest.approx(found.plan.makespan + penalty(what, found.plan))


def test_what_is_weighed_adds_up_to_the_bill() -> None:
    what = chain()
    for place in product(range(3), repeat=3):
        seconds = np.full((3, 3), np.inf)
        seconds[range(3), place] = np.array(SECONDS)[range(3), place]
        made = plan(what._replace(arrays=what.arrays._replace(seconds=seconds)), Budget(1))
        for measure, value in ((ENERGY, bill(what, RATES, made).joules), (PRICE, bill(what, RATES, made).price)):
            assert penalty(weighed(what, RATES, {measure: 2.0}), made) == pytest.approx(2.0 * value)


def test_jobs_that_follow_each_other_wait_for_the_busiest_slot_and_not_for_what_is_loaded_once() -> None:
    what = problem(["a", "b", "c"], PLACES[:2], [[2.0, 3.0]] * 3, models=["eyes"], model=[0, 0, 0], load_seconds=3.0)
    made = Plan(
        np.array([1, 1, 0], dtype=np.int32),
        np.zeros(3),
        np.array([6, 3, 5.0]),
        np.zeros(3, dtype=bool),
        6.0,
        0.0,
        "hand",
    )
    took = bill(what, Rates(np.zeros(2), np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))), made)
    assert took.work.tolist() == [2.0, 3.0]
    assert took.period == 3.0


def test_best_goes_by_each_goal_in_turn() -> None:
    what = chain()
    seen = [find(what, Asked(RATES, goals(measure), 0.0), planned) for measure in (LATENCY, ENERGY, PRICE)]
    assert best(seen, goals(LATENCY)) is seen[0]
    assert best(seen, goals(ENERGY)).bill.joules == min(each.bill.joules for each in seen)


TINY = Shape(stages=(2, 4), nodes=(2, 3))
HEAVY = 1e6
"""Seconds for a unit of a measure, beside which those of the makespan are lost."""


def proving(what: Problem, warm: Plan | None) -> Plan:
    return plan(what, Budget(200, effort=0.2), 0, warm)


def drawn(seed: int) -> tuple[Problem, Rates]:
    what, draw = feasible(seed, TINY).problem, np.random.default_rng([seed, 7])
    m, k = len(what.places), len(what.nodes)
    by_byte = [draw.uniform(0, 1e-7, (k, k)) * ~np.eye(k, dtype=bool) for _ in range(2)]
    return what, Rates(draw.uniform(0, 9, m), draw.uniform(0, 9, m) * (draw.random(m) < 0.7), *by_byte)


def least_of_all(what: Problem, rates: Rates, measure: Measure, latest: float) -> float:
    """What the plan that takes least takes, among every plan that there is."""
    loads = HEAVY * loading(what, rates, measure)
    return best_objective(weighed(what, rates, {measure: HEAVY}), latest, loads) / HEAVY


@pytest.mark.parametrize("measure", [ENERGY, PRICE])
@pytest.mark.parametrize("seed", range(20))
def test_no_plan_of_a_tiny_job_takes_less_within_its_deadline(seed: int, measure: Measure) -> None:
    what, rates = drawn(seed)
    fastest = plan(what, Budget(200, effort=0.2)).makespan
    for latest in (np.inf, fastest * 1.2, fastest * 0.9):
        expected = least_of_all(what, rates, measure, latest)
        asked = Asked(rates, goals(measure), 0.0 if latest == np.inf else latest, effort=1.0)
        found = find(what, asked, proving)
        assert faults(what, found.plan) == []
        assert found.ends_by(asked.deadline) == (expected < np.inf)
        if expected < np.inf:
            assert found.value(measure) == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert found.value(measure) >= least(what, rates, measure) * (1 - 1e-9)
            assert "proven" in found.plan.method


@pytest.mark.parametrize("seed", range(20))
def test_no_plan_of_a_tiny_job_weighs_less(seed: int) -> None:
    what, rates = drawn(seed)
    weights = {ENERGY: 0.3, PRICE: 0.1}
    said = [Goal(by=LATENCY, weight=2.0), Goal(by=ENERGY, weight=0.6), Goal(by=PRICE, weight=0.2)]
    found = find(what, Asked(rates, said, effort=1.0), proving)
    assert faults(what, found.plan) == []
    assert found.priced.objective == pytest.approx(best_objective(weighed(what, rates, weights)), rel=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_no_plan_of_a_tiny_job_costs_less_and_is_as_fast_as_may_be(seed: int) -> None:
    what, rates = drawn(seed)
    # Seconds and nothing else, for a bound on them to be one on the latency.
    none = np.zeros_like(what.arrays.penalty), np.zeros_like(what.arrays.byte_penalty)
    what = what._replace(
        arrays=what.arrays._replace(penalty=none[0], byte_penalty=none[1], apart=-np.ones_like(what.arrays.apart))
    )
    fastest = best_objective(what)
    assert find(what, Asked(rates, goals(LATENCY)), proving).value(LATENCY) == pytest.approx(fastest, rel=1e-4)
    for within in (0.0, 0.3):
        said = [Goal(by=LATENCY, within=within), Goal(by=PRICE)]
        found = find(what, Asked(rates, said, effort=1.0), proving)
        assert faults(what, found.plan) == []
        assert found.value(LATENCY) <= fastest * (1 + within) * (1 + 1e-4)
        tight, loose = (least_of_all(what, rates, PRICE, fastest * (1 + within) * by) for by in (1 - 1e-4, 1 + 1e-4))
        assert loose * (1 - 1e-4) - 1e-4 <= found.value(PRICE) <= tight * (1 + 1e-4) + 1e-4


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 25), st.integers(2, 5), st.integers(0, 100_000), st.permutations([LATENCY, ENERGY, PRICE]))
def test_whatever_is_to_be_small_plans_keep_all_requirements_and_are_the_same_again(
    stages: int, nodes: int, seed: int, order: list[Measure]
) -> None:
    what, draw = constrained(stages, nodes, seed), np.random.default_rng(seed)
    m, k = len(what.places), len(what.nodes)
    rates = Rates(
        draw.uniform(0, 9, m), draw.uniform(0, 9, m), *(draw.uniform(0, 1, (2, k, k)) * ~np.eye(k, dtype=bool))
    )
    said = [Goal(by=order[0], within=float(draw.choice([0.0, 0.2]))), *goals(*order[1 : int(draw.integers(1, 4))])]
    if draw.random() < 0.3:
        said = [Goal(by=goal.by, weight=float(draw.uniform(0.1, 9))) for goal in said]

    def hurried(asked: Problem, warm: Plan | None) -> Plan:
        return plan(asked, Budget(spent=lambda: True, least=20), seed, warm)

    asked = Asked(rates, said, float(draw.choice([0.0, 4.0])), effort=0.02, seed=seed)
    try:
        found, again = find(what, asked, hurried), find(what, asked, hurried)
    except Infeasible:
        return
    assert faults(what, found.plan) == []
    assert np.array_equal(found.plan.place, again.plan.place)
    assert np.array_equal(found.plan.start, again.plan.start)
    took = bill(what, rates, found.plan)
    assert (took.joules, took.price) == (found.bill.joules, found.bill.price)
    assert found.bill.joules >= least(what, rates, ENERGY) * (1 - 1e-9)
    assert found.bill.price >= least(what, rates, PRICE) * (1 - 1e-9)
