"""Jobs that come again and again: no placement of all that there are holds a shorter period, and rounds are what queues say they are."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.instances import constrained, instance

from starloom.dag import limits
from starloom.dag.constellation import Goal, Measure, Slo
from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner import pacing
from starloom.orchestrator.planner.balance import Balanced, balanced, within
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.filling import overfull
from starloom.orchestrator.planner.goals import Asked
from starloom.orchestrator.planner.levelling import levelled
from starloom.orchestrator.planner.pacing import Promise, conflict, find_paced, held_by_none
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.prepared import prepare
from starloom.orchestrator.planner.problem import Indices, Place, Plan, Problem, problem
from starloom.orchestrator.planner.promises import Answering
from starloom.orchestrator.planner.rounds import simulate
from starloom.orchestrator.planner.steady import Pace, loads, pace, work

NOTHING = Rates(np.zeros(1), np.zeros(1), np.zeros((1, 1)), np.zeros((1, 1)))
PLACES = (Place("cam"), Place("edge", slots=2), Place("far", slots=4))
#: three stages: the fastest place has one slot, and does all of a round in 0.6 s
CHAIN = problem(
    ["see", "think", "say"], (Place("fast"), Place("slow", slots=2)), [[0.2, 0.3]] * 3, [(0, 1, 0), (1, 2, 0)]
)


def planned(what: Problem, warm: Plan | None) -> Plan:
    return plan(what, Budget(200), 0, warm)


def asked(what: Problem, *goals: Measure) -> Asked:
    m, k = len(what.places), len(what.nodes)
    rates = Rates(np.zeros(m), np.zeros(m), np.zeros((k, k)), np.zeros((k, k)))
    return Asked(rates, [Goal(by=goal) for goal in goals], effort=0.5)


def least_of_all(what: Problem, how: Pace) -> float:
    """The least period of all placements, by trying each; infinite where there is none that `faults` would pass for a plan."""
    allowed = [np.flatnonzero(np.isfinite(row)) for row in what.arrays.seconds]
    arrays, best = what.arrays, np.inf
    for each in product(*allowed):
        place = np.array(each, dtype=np.int32)
        nodes = arrays.node[place]
        if any(len(set(nodes[arrays.together == g])) > 1 for g in set(arrays.together.tolist()) - {-1}):
            continue
        best = min(best, work(what, place, how).period)
    return float(best)


def test_what_a_round_keeps_busy_is_added_up_by_hand() -> None:
    what = problem(
        ["a", "b", "c"],
        PLACES,
        [[4.0, 2.0, 1.0]] * 3,
        [(0, 1, 10.0), (0, 2, 10.0)],
        seconds_per_byte=0.1,
        latency=5.0,
        working_bytes=[0, 3, 3],
        memory_bytes=[np.inf, 4, np.inf],
        models=["eyes"],
        model=[-1, 0, -1],
        weight_bytes=1.0,
    )
    place = np.array([0, 1, 1], dtype=np.int32)
    took = work(what, place, pace(what, 0))
    assert took.places.tolist() == [4.0, 2.0, 0.0]
    assert took.links[0, 1] == 2.0
    assert took.links.sum() == 2.0
    # Two seconds of three bytes, twice, in the three bytes that the model leaves of four.
    assert took.memory.tolist() == [0.0, 4.0, 0.0]
    assert took.period == 4.0
    assert [each.what for each in loads(what, place, pace(what, 0))][:3] == ["cam", "the memory of edge", "edge"]
    alone = pace(what, 5.0)._replace(alone=np.ones(3, np.bool_))
    assert list(overfull(what, place, alone._replace(every=5.0))) == []
    assert len(list(overfull(what, place, alone._replace(every=4.0)))) == 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 1.5))
def test_the_checker_and_the_sums_agree(seed: int, share: float) -> None:
    what = constrained(6, 3, seed)
    draw = np.random.default_rng(seed)
    place = np.array([draw.choice(np.flatnonzero(np.isfinite(row))) for row in what.arrays.seconds], dtype=np.int32)
    if not np.isfinite(period := work(what, place, pace(what, 0)).period) or not period:
        return
    at = pace(what, period / limits.PLAN_LOAD_MAX * share)._replace(alone=draw.random(6) < 0.5)
    assert work(what, place, at).fits(at.cap) == (not list(overfull(what, place, at)))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_no_placement_of_all_that_there_are_has_a_less_busy_bottleneck(seed: int, lonely: bool) -> None:
    what = instance(("layered", "fork")[seed % 2], ("uneven", "tiered")[seed // 2 % 2], 5, 3, 0.5 + seed % 3, seed)
    groups = np.array([0, -1, 0, -1, -1], dtype=np.int32)
    what = what._replace(arrays=what.arrays._replace(together=groups))
    how = pace(what, 0)._replace(alone=np.full(5, lonely))
    found = balanced(what, how, plan(what).place, effort=2.0)
    assert found.place is not None
    best = least_of_all(what, how)
    assert work(what, found.place, how).period == pytest.approx(best, rel=1e-4)
    assert found.proven
    assert best * (1 - 1e-4) <= found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_of_few_dependencies_and_of_many_the_same_links_are_looked_at(seed: int) -> None:
    few = instance("layered", "uneven", 12, 8, 4.0, seed)
    # Each dependency with ones beside it that carry nothing: as many links as before, and more dependencies than pairs of nodes.
    many = few._replace(
        arrays=few.arrays._replace(
            upstream=np.repeat(few.arrays.upstream, 8),
            downstream=np.repeat(few.arrays.downstream, 8),
            size_bytes=(few.arrays.size_bytes[:, None] * np.eye(8)[0]).ravel(),
        )
    )
    assert 2 * len(few.arrays.upstream) < 64 < 2 * len(many.arrays.upstream)
    found = [levelled(each, prepare(each), pace(each, 0), plan(few).place, 0.0, seed) for each in (few, many)]
    assert found[0].tolist() == found[1].tolist()
    assert work(few, found[0], pace(few, 0)).period < work(few, plan(few).place, pace(few, 0)).period


def test_the_fastest_plan_is_given_up_for_a_period_that_it_does_not_hold() -> None:
    alone = plan(CHAIN)
    assert alone.makespan == pytest.approx(0.6)
    chosen = find_paced(CHAIN, asked(CHAIN), pace(CHAIN, 0.7), planned)
    assert chosen.best.found.plan.makespan == pytest.approx(0.6)
    # At 0.4 s no more than 0.36 s of a round may be on the one slot: one stage there, two on the others.
    chosen = find_paced(CHAIN, asked(CHAIN), pace(CHAIN, 0.4), planned)
    assert chosen.best.holds
    assert sorted(chosen.best.found.plan.place.tolist()) == [0, 1, 1]
    assert chosen.least.bound == pytest.approx(0.3, rel=1e-3)
    assert faults(CHAIN, chosen.best.found.plan) == []


def test_a_period_that_none_holds_is_told_with_the_fewest_stages_that_take_too_much() -> None:
    what = problem(
        ["a", "b", "c", "d"],
        (Place("one"), Place("two")),
        [[0.5, np.inf], [0.4, np.inf], [0.1, 0.1], [np.inf, 0.1]],
    )
    how = pace(what, 0.8)
    chosen = find_paced(what, asked(what), how, planned)
    assert not chosen.best.holds
    assert held_by_none(how, chosen.least)
    assert conflict(what, how, chosen.least, 1.0) == ((0, 1), True)
    assert chosen.best.work.period == pytest.approx(0.9)
    fits = find_paced(what, asked(what), pace(what, 1.0), planned)
    assert fits.best.holds
    assert conflict(what, pace(what, 1.0), fits.least, 1.0) is None


def test_what_takes_too_much_among_many_is_found_in_a_few_tries_or_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # One by one 64 tries were made: of 300 stages, minutes after a plan that had a tenth of a second.
    seconds = np.full((64, 2), 0.001)
    seconds[37] = 1.0
    what = problem([f"s{stage}" for stage in range(64)], (Place("one"), Place("two")), seconds)
    how = pace(what, 0.8)
    least = balanced(what, how, np.zeros(64, dtype=np.int32))
    tries: list[int] = []

    def counted(*given: Any, of: list[int], **more: Any) -> Balanced:
        tries.append(len(of))
        return balanced(*given, of=of, **more)

    monkeypatch.setattr(pacing, "balanced", counted)
    assert conflict(what, how, least, 1.0) == ((37,), True)
    assert len(tries) <= 2 * 6 + 1
    monkeypatch.setattr(limits, "PLAN_SETTLED_CHOICES_MAX", 100)
    assert conflict(what, how, least, 1.0) is None


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1_000))
def test_of_small_jobs_none_that_holds_the_period_is_faster(seed: int) -> None:
    what = instance(("layered", "fork")[seed % 2], ("uneven", "tiered")[seed // 2 % 2], 5, 3, 0.5, seed)
    least = balanced(what, pace(what, 0), plan(what).place, effort=2.0)
    how = pace(what, 1.1 * least.bound / limits.PLAN_LOAD_MAX)
    found = within(what, how, how.cap, effort=4.0)
    assert found.plan is not None
    assert faults(what, found.plan) == []
    chosen = find_paced(what, asked(what), how, planned)
    assert chosen.best.holds
    if found.proven:
        assert chosen.best.found.plan.objective <= found.plan.objective * (1 + 1e-4)
        # The same by brute force: each placement that holds, at its fastest.
        for each in product(*(range(len(what.places)) for _ in range(5))):
            place = np.array(each, dtype=np.int32)
            if not work(what, place, how).fits(how.cap):
                continue
            only = np.full_like(what.arrays.seconds, np.inf)
            only[np.arange(5), place] = what.arrays.seconds[np.arange(5), place]
            bound = what._replace(arrays=what.arrays._replace(seconds=only))
            assert plan(bound, Budget(1)).objective >= found.plan.objective * (1 - 1e-4)


def test_a_large_job_comes_near_the_least_period_that_is_known() -> None:
    what = instance("layered", "tiered", 24, 6, 0.5, 4)
    free = find_paced(what, asked(what, Measure.PERIOD)._replace(effort=0.2), pace(what, 0), planned)
    first = plan(what, Budget(200)).place
    assert free.best.work.period <= min(0.8 * work(what, first, pace(what, 0)).period, 2.0 * free.least.bound)
    at = pace(what, free.best.work.least_period * 1.2)
    held = find_paced(what, asked(what), at, planned)
    assert held.best.holds
    assert faults(what, held.best.found.plan) == []
    assert held.best.found.plan.makespan <= free.best.found.plan.makespan
    assert (
        find_paced(what, asked(what), at, planned).best.found.plan.place.tolist() == held.best.found.plan.place.tolist()
    )


def test_rounds_far_apart_take_what_the_plan_says_and_one_slot_takes_them_in_turn() -> None:
    what = problem(["a", "b"], (Place("one"),), [[1.0], [1.0]], [(0, 1, 0)])
    made = plan(what)
    sure = pace(what, 100.0, deviation=0.0)
    assert simulate(what, made, sure).quantile(1.0) == pytest.approx(2.0)
    # One slot, two seconds of work a round: at a period of 2 s there is no queue, at 1 s each waits a second longer.
    assert simulate(what, made, sure._replace(every=2.0)).quantile(1.0) == pytest.approx(2.0)
    late = simulate(what, made, sure._replace(every=1.0), rounds=100)
    assert late.quantile(1.0) == pytest.approx(101.0)
    assert late.growth == pytest.approx(1.0)
    assert simulate(what, made, pace(what, 2.5)).growth == pytest.approx(0.0, abs=0.05)


def test_a_queue_is_as_long_as_theory_has_it() -> None:
    # D/G/1 in heavy traffic (Kingman 1961): the mean wait is about load / (1 - load) x variance / 2 of what runs take.
    what = problem(["a"], (Place("one"),), [[0.9]])
    rounds = simulate(what, plan(what), pace(what, 1.0, deviation=0.5), rounds=20_000)
    waits = rounds.start[:, 0].mean()
    assert waits == pytest.approx(0.9 / 0.1 * 0.25 / 2 * 0.9, rel=0.25)
    assert rounds.seconds.mean() - waits == pytest.approx(0.9, rel=0.02)


def test_values_on_one_link_come_one_after_the_other_and_memory_is_waited_for() -> None:
    what = problem(
        ["a", "b", "c"],
        (Place("cam", slots=2), Place("edge", slots=2)),
        [[1.0, np.inf], [1.0, np.inf], [np.inf, 0.5]],
        [(0, 2, 1.0), (1, 2, 1.0)],
        seconds_per_byte=1.0,
        latency=0.25,
    )
    sure = pace(what, 10.0, deviation=0.0)
    assert simulate(what, plan(what), sure).quantile(1.0) == pytest.approx(1.0 + 2.0 + 0.25 + 0.5)
    tight = problem(["a", "b"], (Place("cam", slots=2),), 1.0, working_bytes=3.0, memory_bytes=4.0)
    assert simulate(tight, plan(tight), pace(tight, 10.0, deviation=0.0)).quantile(1.0) == pytest.approx(2.0)


def test_promises_of_rounds_are_told_by_their_share_and_choose_among_plans() -> None:
    promised = [Promise(Slo(p50_seconds=0.7, p95_seconds=0.65, first_token_seconds=0.35, token_seconds=0.02))]
    answering = Answering(np.full((3, 2), 0.1) * [[0], [0], [1]], np.full((3, 2), 0.01) * [[0], [0], [1]])
    chosen = find_paced(CHAIN, asked(CHAIN), pace(CHAIN, 5.0, deviation=0.0), planned, promised, answering)
    told = {each.what: each for each in chosen.best.kept}
    assert set(told) == {"p50", "p95", "first_token", "token"}
    assert told["p50"].met
    assert told["p95"].took == pytest.approx(0.6)
    # Two stages of 0.2 s come first, and it is 0.1 s into the third: not within 0.35 s.
    assert told["first_token"].took == pytest.approx(0.5)
    assert not told["first_token"].met
    assert told["token"].took == pytest.approx(0.01)
    at = pace(CHAIN, 0.68, deviation=0.2)
    fast = find_paced(CHAIN, asked(CHAIN), at, planned)
    tail = find_paced(CHAIN, asked(CHAIN, Measure.P95), at, planned)
    assert tail.best.value(Measure.P95) <= fast.best.value(Measure.P95)
    assert tail.tried > 1


def test_jobs_that_share_nodes_have_periods_of_their_own() -> None:
    what = problem(["a", "b"], (Place("one"),), [[0.5], [1.0]])
    how = Pace(1.0, np.array([1.0, 0.25]), np.zeros(2, np.bool_), np.array([0, 1], dtype=np.int32), np.zeros(2))
    assert work(what, np.zeros(2, np.int32), how).period == pytest.approx(0.75)
    rounds = simulate(what, plan(what), how, rounds=80)
    assert (rounds.job == 0).sum() == 64
    assert (rounds.job == 1).sum() == 16
    assert rounds.quantile(1.0, 1) == pytest.approx(1.5)


def test_requirements_of_one_round_hold_for_all() -> None:
    for seed in range(6):
        what = constrained(8, 4, seed)
        try:
            chosen = find_paced(what, asked(what, Measure.PERIOD), pace(what, 0), planned)
        except Infeasible:
            continue
        assert faults(what, chosen.best.found.plan) == []
        assert chosen.best.work.period >= chosen.least.bound * (1 - 1e-6)


def test_a_bound_is_known_where_sums_alone_would_put_stages_together_that_stand_apart() -> None:
    what = problem(["a", "b"], (Place("fast", slots=2), Place("slow")), [[1.0, 2.0]] * 2, apart=[0, 0])
    chosen = find_paced(what, asked(what), pace(what, 1.0), planned)
    assert not chosen.best.holds
    assert chosen.best.work.period == pytest.approx(2.0)
    assert chosen.least.bound == pytest.approx(2.0, rel=1e-4)
    assert held_by_none(pace(what, 1.0), chosen.least)


def varied(seed: int) -> tuple[Problem, Rates]:
    """Three stages on two nodes, each in up to three variants that are faster the more they lack of a quality of 1."""
    draw = np.random.default_rng(seed)
    places = [Place(node, slots=slots, variant=which) for which in range(3) for node, slots in (("a", 1), ("b", 2))]
    seconds = draw.uniform(0.5, 2.0, (3, 2))[:, None, :] * np.array([1.0, 0.6, 0.3])[None, :, None]
    how_many = [3, int(draw.integers(1, 4)), 2]
    what = problem(
        ["x", "y", "z"],
        places,
        seconds.reshape(3, 6),
        [(0, 1, 1.0), (0, 2, 1.0)],
        seconds_per_byte=0.2,
        variants=how_many,
        working_bytes=draw.uniform(0, 3, (3, 3)),
        memory_bytes=[9.0, 7.0],
    )
    loss = np.cumsum(draw.uniform(0.05, 0.3, (3, 3)), axis=1)
    return what, Rates(np.zeros(6), np.zeros(6), np.zeros((2, 2)), np.zeros((2, 2)), loss)


def ways(what: Problem) -> list[Indices]:
    return [np.array(each, dtype=np.int32) for each in product(*map(np.flatnonzero, np.isfinite(what.arrays.seconds)))]


@pytest.mark.parametrize("seed", range(6))
def test_variants_of_one_target_keep_its_slots_busy_together(seed: int) -> None:
    what, _ = varied(seed)
    for at in (0.4, 0.8, 1.6):
        how = pace(what, at)
        for place in ways(what):
            assert work(what, place, how).fits(how.cap) == (not list(overfull(what, place, how)))
    for lonely in (False, True):
        how = pace(what, 1.6)._replace(alone=np.full(3, lonely))
        least = min(work(what, place, how).period for place in ways(what))
        found = balanced(what, how, ways(what)[0])
        assert found.proven
        assert found.bound == pytest.approx(least, rel=1e-4)
        assert found.place is not None
        assert work(what, found.place, how).period == pytest.approx(least, rel=1e-4)
    one = plan(what, Budget(50))._replace(place=np.array([0, 0, 2], dtype=np.int32))
    took = simulate(what, one, pace(what, 9.0, deviation=0.0), rounds=10)
    # Both followers of the first stage wait for the one slot that all variants on the first node share.
    assert took.seconds.max() >= what.arrays.seconds[[0, 1, 2], one.place].sum() - 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_no_more_quality_is_given_up_for_a_period_than_need_be(seed: int) -> None:
    what, rates = varied(seed)
    ask = Asked(rates, effort=1.0)

    def often(every: float) -> Pace:
        return pace(what, every)._replace(alone=np.full(3, seed % 2 == 1))

    periods = np.array([work(what, place, often(1.0)).least_period for place in ways(what)])
    lost = np.array([rates.loss[[0, 1, 2], what.arrays.variant[place]].sum() for place in ways(what)])
    for every in (float(periods.min()) * 1.0001, float(np.quantile(periods, 0.2)), float(periods.max())):
        found = find_paced(what, ask, often(every), planned).best
        assert faults(what, found.found.plan) == []
        assert found.holds
        assert found.found.bill.loss == pytest.approx(lost[periods <= every * (1 + 1e-9)].min())
    # Below what any holds, what comes nearest is told with the bound of all variants.
    below = find_paced(what, ask, often(float(periods.min()) * 0.8), planned)
    assert not below.best.holds
    assert below.best.work.least_period == pytest.approx(periods.min(), rel=1e-4)
    assert held_by_none(below.best.pace, below.least)


def test_smaller_variants_are_taken_for_a_promise_and_of_many_stages_where_they_gain_most() -> None:
    what = problem(["x"], [Place("a"), Place("a", variant=1)], [[1.0, 0.3]], variants=2)
    rates = Rates(np.zeros(2), np.zeros(2), np.zeros((1, 1)), np.zeros((1, 1)), np.array([[0.1, 0.4]]))
    for seconds, variant in ((2.0, 0), (0.6, 1)):
        said = [Promise(Slo(p95_seconds=seconds))]
        found = find_paced(what, Asked(rates, effort=0.2), pace(what, 3.0), planned, said).best
        assert not found.missed
        assert what.arrays.variant[found.found.plan.place].tolist() == [variant]
    # What names quality chooses as it says: for a period as short as can be the small one, for quality the other.
    for goals, variant in (
        ((Measure.PERIOD, Measure.QUALITY), 1),
        ((Measure.QUALITY, Measure.PERIOD), 0),
        ((Measure.PERIOD,), 0),
    ):
        ask = Asked(rates, [Goal(by=goal) for goal in goals], effort=0.2)
        found = find_paced(what, ask, pace(what, 3.0), planned).best
        assert what.arrays.variant[found.found.plan.place].tolist() == [variant], goals
    n = 30
    many = problem([f"s{i}" for i in range(n)], [Place("a"), Place("a", variant=1)], [[1.0, 0.5]] * n, variants=[2] * n)
    loss = np.stack([np.zeros(n), np.linspace(0.1, 0.4, n)], axis=1)
    found = find_paced(many, Asked(rates._replace(loss=loss), effort=0.2), pace(many, 25.0 / 0.9), planned).best
    assert found.holds
    # Ten stages have to give half a second each, and the ten that lose least by that do.
    assert found.found.bill.loss == pytest.approx(loss[:10, 1].sum())
