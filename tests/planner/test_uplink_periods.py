"""Placements for periods where nodes share up-links: what these carry counts, and what gives them less to carry is looked for."""

from itertools import product

import numpy as np
import pytest
from tests.planner.instances import instance
from tests.planner.test_pacing import asked, least_of_all, planned

from starloom.dag import limits
from starloom.orchestrator.planner.balance import balanced, within
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.filling import overfull
from starloom.orchestrator.planner.levelling import levelled
from starloom.orchestrator.planner.pacing import conflict, find_paced, held_by_none
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.prepared import prepare
from starloom.orchestrator.planner.problem import Place, Problem, Uplink, problem
from starloom.orchestrator.planner.steady import pace, work
from starloom.orchestrator.planner.uplinks import shared


def small(seed: int) -> Problem:
    """Six stages on four nodes, three of which share an up-link, a wire or a radio; what begins is on these, and what ends on the other."""
    what = instance(("layered", "fork")[seed % 2], ("uneven", "tiered")[seed // 2 % 2], 6, 4, 3.0, seed)
    seconds = what.arrays.seconds.copy()
    for stage, place in ((0, 0), (1, 1), (5, 3)):
        seconds[stage, np.arange(len(what.places)) != place] = np.inf
    rate = 0.5 / float(np.median(what.arrays.seconds_per_byte[what.arrays.seconds_per_byte > 0]))
    pinned = what._replace(arrays=what.arrays._replace(seconds=seconds))
    return shared(pinned, (Uplink("u", (0, 1, 2), rate, rate * (1 + seed % 3), half=seed % 3 == 0),))


def crowded() -> Problem:
    """Of each of six robots two stages that see, and two that think of it, soon on the edge node: the line to it is what is busiest then."""
    sees = [[0.1 if place == robot else np.inf for place in range(7)] for robot in range(6) for _ in range(2)]
    thinks = [[0.5] * 6 + [0.1]] * 12
    edges = [(stage, stage + 12, 10.0) for stage in range(12)]
    places = [*(Place(f"r{robot}") for robot in range(6)), Place("edge", slots=4)]
    free = problem([f"s{index}" for index in range(24)], places, sees + thinks, edges, seconds_per_byte=0.001)
    return shared(free, (Uplink("line", tuple(range(6)), 60.0, 60.0),))


@pytest.mark.parametrize("seed", [1, 2, 3, 6, 9])
def test_no_placement_has_a_less_busy_bottleneck_with_what_uplinks_carry(seed: int) -> None:
    what = small(seed)
    how = pace(what, 0)
    found = balanced(what, how, plan(what, Budget(1)).place, effort=2.0)
    assert found.place is not None
    best = least_of_all(what, how)
    assert work(what, found.place, how).period == pytest.approx(best, rel=1e-4)
    assert best * (1 - 1e-4) <= found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", [2, 3, 6])
def test_of_placements_that_hold_with_what_uplinks_carry_none_is_faster(seed: int) -> None:
    what = small(seed)
    least = balanced(what, pace(what, 0), plan(what, Budget(1)).place, effort=2.0)
    how = pace(what, 1.1 * least.bound / limits.PLAN_LOAD_MAX)
    found = within(what, how, how.cap, effort=4.0)
    assert found.plan is not None
    assert work(what, found.plan.place, how).fits(how.cap)
    assert faults(what.free, found.plan) == []
    if found.proven:
        for each in product(*(np.flatnonzero(np.isfinite(row)).tolist() for row in what.arrays.seconds)):
            place = np.array(each, dtype=np.int32)
            if work(what, place, how).fits(how.cap):
                only = np.full_like(what.arrays.seconds, np.inf)
                only[np.arange(6), place] = what.arrays.seconds[np.arange(6), place]
                bound = what.free._replace(arrays=what.arrays._replace(seconds=only))
                assert plan(bound, Budget(1)).objective >= found.plan.objective * (1 - 1e-4)


def test_stages_are_moved_until_an_uplink_carries_no_more_than_it_may() -> None:
    what, how = crowded(), pace(crowded(), 1.2)
    fastest = np.array([stage // 2 for stage in range(12)] + [6] * 12, dtype=np.int32)
    assert work(what, fastest, how).period == pytest.approx(2.0)
    assert levelled(what.free, prepare(what), how, fastest, 0.0).tolist() == fastest.tolist()
    # One of each robot's stages thinks there: 0.7 s of its slot, and six values for a second of the line.
    level = levelled(what, prepare(what), how, fastest, 0.0)
    assert work(what, level, how).period == pytest.approx(1.0)


def test_a_period_that_an_uplink_does_not_hold_is_held_by_another_placement() -> None:
    what = crowded()
    chosen = find_paced(what, asked(what), pace(what, 1.2), planned)
    assert chosen.best.holds
    assert list(overfull(what, chosen.best.found.plan.place, chosen.best.pace)) == []
    assert faults(what, chosen.best.found.plan) == []
    short = pace(what, 0.8)
    assert not held_by_none(short, balanced(what.free, short, chosen.best.found.plan.place))
    assert held_by_none(short, find_paced(what, asked(what), short, planned).least)


def test_of_what_an_uplink_cannot_carry_the_fewest_stages_are_told() -> None:
    """Three values of 0.4 s each, of which two fit the 0.9 s of a line; what reads them may stand on the other side alone."""
    first, second, far = np.where(np.eye(3) > 0, 0.1, np.inf).tolist()
    seconds = [first, second, first, far, far, far, [0.1] * 3]
    edges = [(stage, stage + 3, 4.0) for stage in range(3)]
    free = problem("abcdefg", tuple(Place(name, slots=9) for name in ("r1", "r2", "edge")), seconds, edges)
    what = shared(free, (Uplink("line", (0, 1), 10.0, 10.0),))
    how = pace(what, 1.0)
    least = balanced(what, how, plan(what, Budget(1)).place)
    found = conflict(what, how, least, 0.5)
    assert found is not None
    assert found.stages == (0, 1, 2, 3, 4, 5)
    assert found.smallest
