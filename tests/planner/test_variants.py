"""Variants are chosen with places: the best of every choice, quality among the goals, and what floors and deadlines say."""

import numpy as np
import pytest
from tests.planner.brute import best_objective

from starloom.dag.constellation import Goal, Measure
from starloom.dag.document import load
from starloom.dag.ids import StageId
from starloom.dag.kinds import Cost, CostParams, KindSpec, Param
from starloom.dag.values import Port, PortType
from starloom.orchestrator.bench.placing.cases import Shape, feasible
from starloom.orchestrator.fleetfile import parse
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.building import Built, build, pinned
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.exact import exact
from starloom.orchestrator.planner.explain import settle
from starloom.orchestrator.planner.goals import Asked, Found, find
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem

TINY = Shape(stages=(2, 3), nodes=(2, 2), variants=1.0)
LATENCY, ENERGY, PRICE = (Goal(by=each) for each in (Measure.LATENCY, Measure.ENERGY, Measure.PRICE))
QUALITY = Goal(by=Measure.QUALITY)
WORK = KindSpec(
    name="work",
    params={"seconds": Param(type="number"), "memory": Param(type="integer", default=0)},
    cost=Cost(params=CostParams(run_seconds="seconds", memory_bytes="memory")),
)
FLEET = parse(
    b"nodes:\n  - {name: near, tier: edge, memory: 1KiB}\n  - {name: far, tier: cloud, speed: 2, memory: 4KiB}\n"
    b"links: [{between: [edge, cloud], latency: 1s}]\n"
)
JOB = """
api_version: starloom/v1
name: answering
stages:
  ask: {kind: work, params: {seconds: 1}, require: {tier: edge}}
  answer:
    kind: work
    after: [ask]
    variants:
      - {name: large, quality: 0.9, params: {seconds: 8, memory: 2000}}
      - {name: middle, quality: 0.8, params: {seconds: 4}}
      - {name: small, quality: 0.5, params: {seconds: 1}}
"""


def planned(asked: Problem, warm: Plan | None) -> Plan:
    return plan(asked, Budget(200, effort=0.2), 0, warm)


def built(more: str = "", stage: str = "") -> Built:
    return build(load(f"{JOB}{stage}{more}"), {"work": WORK}, FLEET)


def taken(made: Built, found: Found) -> tuple[str, float]:
    """Where the second stage is and how, and when the job ends."""
    assert faults(made.problem, found.plan) == []
    return made.named(1, int(found.plan.place[1])), found.plan.makespan


def chosen(made: Built, *goals: Goal, deadline: float = 0.0) -> tuple[str, float]:
    return taken(made, find(made.problem, Asked(made.rates, goals, deadline, 1.0), planned))


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_of_places_and_variants_is_better(seed: int) -> None:
    case = feasible(seed, TINY).problem
    assert case.arrays.variants.max() > 1 or case.arrays.started.any() or (case.arrays.seconds == 0).any()
    best = best_objective(case)
    made = plan(case, Budget(400))
    assert faults(case, made) == []
    assert made.objective >= best * (1 - 1e-9)
    proof = exact(case, made)
    assert proof.plan is not None
    assert proof.proven
    assert faults(case, proof.plan) == []
    assert proof.plan.objective == pytest.approx(best, rel=1e-4)


def test_variants_of_one_target_share_its_slots_and_its_memory_by_what_each_takes() -> None:
    places = [Place("x", slots=2), Place("x", slots=2, variant=1)]
    what = problem(
        ["a", "b", "c"], places, [[3.0, 2.0]] * 3, variants=2, working_bytes=[[6.0, 2.0]] * 3, memory_bytes=8.0
    )
    made = plan(what, Budget(200, effort=0.5))
    assert faults(what, made) == []
    # Two at a time, and never two of the large ones.
    assert made.makespan == pytest.approx(4.0)
    three = made._replace(start=np.zeros(3), finish=np.full(3, 2.0), place=np.ones(3, dtype=np.int32), makespan=2.0)
    assert faults(what, three) == ["3 stages run on x at 0.0, which has 2 slots"]
    large = three._replace(place=np.array([0, 0, 1], dtype=np.int32), finish=np.array([3.0, 3.0, 5.0]))
    large = large._replace(start=np.array([0.0, 0.0, 3.0]), makespan=5.0)
    assert faults(what, large) == ["x would hold 12 bytes at 0.0, and has 8"]
    alone = problem(["a"], places, [[3.0, 2.0]], variants=1)
    assert np.isinf(alone.arrays.seconds[0, 1])
    one = Plan(np.array([1], dtype=np.int32), np.zeros(1), np.full(1, 2.0), np.zeros(1, dtype=bool), 2.0, 0.0, "hand")
    opened = alone._replace(arrays=alone.arrays._replace(seconds=np.array([[3.0, 2.0]])))
    assert faults(opened, one) == ["a may not run on x, variant 2"]


def test_without_a_word_of_quality_the_best_variant_is_taken_that_ends_in_time() -> None:
    made = built()
    assert chosen(made) == ("far as large", 6.0)
    assert chosen(made, LATENCY) == ("far as large", 6.0)
    assert chosen(made, deadline=6.0) == ("far as large", 6.0)
    assert chosen(made, deadline=5.5) == ("far as middle", 4.0)
    assert chosen(made, deadline=2.5) == ("near as small", 2.0)
    assert chosen(made, ENERGY, PRICE, deadline=2.5) == ("near as small", 2.0)


def test_quality_is_a_goal_like_others() -> None:
    made = built()
    assert chosen(made, QUALITY, LATENCY) == ("far as large", 6.0)
    assert chosen(made, QUALITY, deadline=5.0) == ("far as middle", 4.0)
    assert chosen(made, LATENCY, QUALITY) == ("near as small", 2.0)
    assert chosen(made, Goal(by=Measure.LATENCY, within=1.0), QUALITY) == ("far as middle", 4.0)
    for weight, expected in ((1.0, "near as small"), (10.0, "far as middle"), (30.0, "far as large")):
        said = Goal(by=Measure.LATENCY, weight=1.0), Goal(by=Measure.QUALITY, weight=weight)
        assert chosen(made, *said)[0] == expected


def test_two_stages_give_up_quality_where_it_gains_most() -> None:
    """Of two in a row, that one is made smaller which loses less for as many seconds: all four choices are looked at."""
    places = [Place("x"), Place("x", variant=1)]
    what = problem(["a", "b"], places, [[5.0, 2.0], [5.0, 2.0]], [(0, 1, 0.0)], variants=2)
    rates = Rates(np.zeros(2), np.zeros(2), np.zeros((1, 1)), np.zeros((1, 1)), np.array([[0.1, 0.4], [0.1, 0.2]]))
    for deadline, expected in ((10.0, [0, 0]), (8.0, [0, 1]), (5.0, [1, 1])):
        found = find(what, Asked(rates, [], deadline, 1.0), planned)
        assert found.plan.place.tolist() == expected
        assert found.ends_by(deadline)


def test_floors_of_a_stage_and_of_a_job_are_kept_and_named_where_nothing_keeps_them() -> None:
    floor = built(stage="    least_quality: 0.6\n")
    assert chosen(floor, LATENCY, QUALITY) == ("far as middle", 4.0)
    assert chosen(built("least_quality: 0.85\n"), LATENCY, QUALITY) == ("far as large", 6.0)
    late = settle(floor.problem, floor.excluded, 2.5)
    assert "its variant small has a quality of 0.5, under the 0.6 asked for" in str(late)
    assert "all ends within 2.5 s" in str(late)


def test_a_variant_that_is_asked_for_is_the_only_one_and_so_are_plans_that_are_written() -> None:
    assert chosen(built(stage="    variant: middle\n"), LATENCY) == ("far as middle", 4.0)
    made = built()
    found = find(made.problem, Asked(made.rates, [], 2.5, 1.0), planned)
    bound = pinned(load(JOB), made, found.plan)
    assert (bound.stages[StageId("answer")].variant, bound.stages[StageId("ask")].variant) == ("small", "")
    again = build(bound, {"work": WORK}, FLEET)
    assert taken(again, find(again.problem, Asked(again.rates), planned)) == ("near as small", 2.0)


def test_values_are_as_large_as_in_the_first_variant_that_may_be_taken() -> None:
    kind = KindSpec(
        name="make",
        outputs={"data": Port(PortType.BYTES)},
        params={"size": Param(type="integer")},
        cost=Cost(params=CostParams(output_bytes="size")),
    )
    text = """
api_version: starloom/v1
name: made
stages:
  make:
    kind: make
    variants:
      - {name: large, quality: 0.9, params: {size: 9000}}
      - {name: middle, quality: 0.8, params: {size: 3000}}
      - {name: small, quality: 0.5, params: {size: 1000}}
"""
    outputs = "outputs: {data: make.data}\n"
    for more, size in (("", 9000.0), ("    variant: small\n", 1000.0), ("least_quality: 0.85\n", 9000.0)):
        made = build(load(f"{text}{more}{outputs}"), {"make": kind}, FLEET)
        assert made.problem.arrays.size_bytes.tolist() == [size], more


APART = """
api_version: starloom/v1
name: apart
stages:
  see:
    kind: work
    params: {seconds: 1}
    colocate: both
    variants:
      - {name: large, quality: 0.9, require: {tier: edge}}
      - {name: small, quality: 0.8}
  tell:
    kind: work
    params: {seconds: 2}
    colocate: both
    variants:
      - {name: large, quality: 0.9, require: {tier: cloud}}
      - {name: small, quality: 0.3, params: {seconds: 0.1}}
  keep: {kind: work, params: {seconds: 1}}
"""


def test_of_plans_that_lose_as_little_of_quality_the_best_by_the_goals_is_taken_and_only_that_called_proven() -> None:
    """The best variants of both cannot share a node, so that the rule of the best variant alone gives no plan."""
    fleet = parse(
        b"nodes:\n  - {name: near, tier: edge, price_per_hour: 10}\n  - {name: far, tier: cloud, speed: 0.5}\n"
        b"links: [{between: [edge, cloud], latency: 10ms}]\n"
    )
    made = build(load(APART), {"work": WORK}, fleet)
    found = find(made.problem, Asked(made.rates, [PRICE, ENERGY], 0.0, 1.0), planned)
    assert found.bill.loss == pytest.approx(0.3)
    assert found.bill.price == 0.0
    assert "proven" not in found.plan.method
    fast = find(made.problem, Asked(made.rates, [], 0.0, 1.0), planned)
    assert fast.bill.loss == pytest.approx(0.3)
    assert fast.plan.makespan == pytest.approx(6.0)
