"""The variants of what is left of a job that runs: the best that end in time, and no swinging between them. Pure.

Each stage has its best variant as long as all ends well before the deadline. Else the plan begins with the fastest, or with
the variants of the plan before, and gives back to stages what there is time for: first those that lose least seconds for what
they gain.

What is predicted is off, so some of what is left is kept in reserve: a share of it (1 - PLAN_DEADLINE_SHARE), for what all runs
have in common, and no less than what the chain of stages that ends last may be late by, as runs were found to be off by
themselves (`reserve.latest`). Of a long chain that is less than the share, and of the last stages more. Where the plan before had
lesser variants, better ones need more time than that (PLAN_BETTER_SHARE), by the same share of what is left with either reserve,
so that what drifts to and fro changes nothing.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import Measure
from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.bills import Rates, costs
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.planning import Budget, warmed
from starloom.orchestrator.planner.planning import plan as find
from starloom.orchestrator.planner.prepared import board, plan_of, prepare
from starloom.orchestrator.planner.problem import Floats, Plan, Problem
from starloom.orchestrator.planner.renewing import Renewed, steadied
from starloom.orchestrator.planner.reserve import latest
from starloom.orchestrator.planner.uplinks import timed

_SAME: Final = 1e-9
_SHARES: Final = (limits.PLAN_DEADLINE_SHARE, limits.PLAN_BETTER_SHARE)
_LISTED: Final = 1e-6
"""What a variant lacks beside one before it of the same quality: without a plan the first is taken."""


class _Until(NamedTuple):
    """Until when a plan is to have ended, in seconds: as it says itself, and with what its runs may be late by."""

    makespan: float
    latest: float


def renewed(
    left: Problem, rates: Rates, old: Plan, seconds: float | None, budget: Budget, deviation: Floats
) -> Renewed:
    """A plan of what is left that ends within so many seconds, in the best variants with which one was found.

    `old`: the plan before, as for `steadied`. `seconds`: until the deadline; None where there is none, and each stage has its
    best variant then. `deviation` [n, m]: as for `reserve.latest`. Where no plan ends in time, the fastest that was found. Raises Infeasible.
    """
    lacking = _lacking(left, rates)
    worse = np.isfinite(lacking) & (lacking > _SAME)
    best = left._replace(arrays=left.arrays._replace(seconds=np.where(worse, np.inf, left.arrays.seconds)))
    if seconds is None or not worse.any():
        return steadied(best, old, budget)
    had = old.place >= 0
    lacks = lacking[np.arange(len(had)), old.place]
    again = bool((had & (lacks > _SAME) & np.isfinite(lacks)).any())
    # The classics alone are no plan worth choosing by, and the time for the first is over when it is there.
    budget = budget._replace(least=min(budget.iterations, limits.PLAN_TRY_ITERATIONS_MIN))
    well, better = (_Until(seconds * share, seconds * (1 - limits.PLAN_DEADLINE_SHARE + share)) for share in _SHARES)
    raising = _Raising(left, rates, deviation)
    with suppress(Infeasible):
        found = steadied(best, old, budget)
        if raising.ends(found.plan, better if again else well):
            return found
    if again:
        with suppress(Infeasible):
            kept = steadied(_in_variants_of(left, old), old, budget)
            if raising.ends(kept.plan, well):
                return raising.of(kept, better)
    fastest = find(left, budget, 0, old)
    moved = tuple(left.stages[stage] for stage in np.flatnonzero((fastest.place != old.place) & had))
    return raising.of(Renewed(left, fastest, moved, False), well)


def lesser(left: Problem, rates: Rates, plan: Plan) -> list[int]:
    """The stages that have a lesser variant by a plan than the best that they might have, by index."""
    lacks = _lacking(left, rates)[np.arange(len(plan.place)), plan.place]
    return [int(stage) for stage in np.flatnonzero(lacks > _SAME)]


def _lacking(left: Problem, rates: Rates) -> Floats:
    """[n, m]: what the variant of each place lacks beyond the best that its stage may have; infinite where it may not be."""
    arrays = left.arrays
    able = np.isfinite(arrays.seconds) & np.isfinite(arrays.penalty)
    loss = np.where(able, costs(left, rates, Measure.QUALITY)[0] + _LISTED * arrays.variant, np.inf)
    least = loss.min(axis=1, initial=np.inf, keepdims=True)
    found: Floats = np.where(able, loss - np.where(np.isfinite(least), least, 0.0), np.inf)
    return found


def _in_variants_of(left: Problem, old: Plan) -> Problem:
    """What is left, with each stage that had a place in the variant of that."""
    arrays = left.arrays
    had = old.place >= 0
    others = had[:, None] & (arrays.variant[None, :] != arrays.variant[old.place][:, None])
    return left._replace(arrays=arrays._replace(seconds=np.where(others, np.inf, arrays.seconds)))


class _Step(NamedTuple):
    """A stage in a variant that lacks no more than `lacks`, and the `seconds` that this loses for each 1 that it gains."""

    seconds: float
    stage: int
    lacks: float


def _dear(step: _Step) -> float:
    return step.seconds


class _Raising:
    """Gives back to stages of a plan better variants, as many as end in time."""

    def __init__(self, left: Problem, rates: Rates, deviation: Floats) -> None:
        self._left = left
        self._deviation = deviation
        self._lacks = _lacking(left, rates)
        self._prepared = prepare(left)
        self._table = listing.Table(self._prepared)
        self._board = board(self._prepared)

    def ends(self, plan: Plan, cap: _Until) -> bool:
        """Whether a plan has ended until then."""
        return plan.makespan <= cap.makespan and latest(self._left, plan, self._deviation) <= cap.latest

    def of(self, found: Renewed, cap: _Until) -> Renewed:
        """The plan in better variants that has ended until `cap`, or, if it is later itself, no later than it has."""
        plan = found.plan
        soonest = _Until(plan.makespan, latest(self._left, plan, self._deviation))
        cap = _Until(*(max(each) * (1 + _SAME) for each in zip(cap, soonest, strict=True)))
        steps = sorted((step for stage in range(len(plan.place)) for step in self._steps(stage, plan)), key=_dear)
        low, high = 0, len(steps)
        while low < high:
            # Most of them at once: as many of the first as there is time for.
            middle = (low + high + 1) // 2
            tried = self._with(plan, {step.stage: step.lacks for step in steps[low:middle]}, cap)
            if tried is None:
                high = middle - 1
            else:
                low, plan = middle, tried
        for step in steps[low:][: limits.PLAN_RAISES_MAX]:
            if step.lacks < self._lacks[step.stage, plan.place[step.stage]] - _SAME:
                plan = self._with(plan, {step.stage: step.lacks}, cap) or plan
        if plan is not found.plan and faults(self._left, plan):
            plan = found.plan
        return found._replace(problem=self._left, plan=plan)

    def _steps(self, stage: int, plan: Plan) -> list[_Step]:
        """From a stage's variant to its best, each step to that which loses least seconds for what it gains."""
        known, seconds = self._lacks[stage], self._left.arrays.seconds[stage]
        lacks, takes = float(known[plan.place[stage]]), float(seconds[plan.place[stage]])
        found = []
        while better := {float(each) for each in known[known < lacks - _SAME]}:
            ways = [
                _Step((float(seconds[known <= each].min()) - takes) / (lacks - each), stage, each) for each in better
            ]
            step = min(ways)
            takes += step.seconds * (lacks - step.lacks)
            lacks = step.lacks
            found.append(step)
        return found

    def _with(self, plan: Plan, raised: Mapping[int, float], cap: _Until) -> Plan | None:
        """The plan with some stages in variants that lack no more than this; None if that is too late, or cannot be."""
        place = plan.place.copy()
        for stage, lacks in raised.items():
            place[stage] = self._better(stage, int(place[stage]), lacks)
        made = warmed(self._table, plan._replace(place=place))
        if listing.run(self._prepared, self._board, made) >= 0 or not np.array_equal(self._board.place, place):
            return None
        found = timed(self._left, plan_of(self._left, self._prepared, self._board, plan.method))
        return found if self.ends(found, cap) else None

    def _better(self, stage: int, place: int, lacks: float) -> int:
        """Where a stage has a variant that lacks no more than this: where it is, or else where it runs fastest."""
        arrays = self._left.arrays
        seconds = np.where(self._lacks[stage] <= lacks + _SAME, arrays.seconds[stage], np.inf)
        here = np.where(arrays.shares == arrays.shares[place], seconds, np.inf)
        return int(np.argmin(here if np.isfinite(here).any() else seconds))
