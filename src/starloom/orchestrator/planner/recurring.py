"""The plan of jobs that run again and again: held to their period as `starloom plan --every` holds it, and renewed for a reason only. Pure.

What others take of a node's time makes all runs there longer by what is left of it: a slot of which half is taken is worth half
a slot, and who waits for it waits twice as long.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import Constellation, Measure
from starloom.dag.ids import AgentId
from starloom.orchestrator.advice import PlannedRounds
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.goals import Asked
from starloom.orchestrator.planner.pacing import Paced, Promise, find_paced, judged
from starloom.orchestrator.planner.planning import Budget
from starloom.orchestrator.planner.planning import plan as find
from starloom.orchestrator.planner.problem import Indices, Plan, Problem
from starloom.orchestrator.planner.renewing import Renewed
from starloom.orchestrator.planner.steady import pace, work

_SAME: Final = 1e-9
_MEASURES: Final = (Measure.LATENCY, Measure.PERIOD, Measure.P95, Measure.QUALITY)
"""What is known of nodes that run: none tells what it draws, or costs."""


class Recurring(NamedTuple):
    """A plan of a round, and what it tells of rounds; `ends`: within so many seconds nearly all of them, or one by itself where they pile up."""

    renewed: Renewed
    rounds: PlannedRounds
    ends: float


def recurring(
    problem: Problem,
    constellation: Constellation,
    rates: Rates,
    taken: Mapping[str, float],
    old: Plan,
    budget: Budget,
) -> Recurring:
    """The plan for the constellation's period, or the old one where that is as good but for `PLAN_RENEW_SHARE` or the noise of rounds.

    `problem`: of a whole round. `taken`: of nodes, by name, the share of their time that others take. `old`: the plan before; a
    place of -1 is none. Raises Infeasible.
    """
    shared = _shared(problem, taken)
    goals = [goal for goal in constellation.objective if goal.by in _MEASURES]
    budget = budget._replace(least=min(budget.iterations, limits.PLAN_TRY_ITERATIONS_MIN))
    asked = Asked(rates, goals, constellation.deadline_seconds)
    often = pace(shared, constellation.every_seconds)
    promises = [Promise(constellation.slo, constellation.deadline_seconds)]
    best = find_paced(shared, asked, often, lambda each, warm: find(each, budget, 0, warm), promises).best
    place = _whole(shared, old)
    before = judged(shared, asked, often, place, promises) if place is not None else None
    kept = before is not None and _as_good(before, best)
    chosen = before if before is not None and kept else best
    plan = chosen.found.plan
    moved = (
        () if kept else tuple(problem.stages[i] for i in np.flatnonzero((plan.place != old.place) & (old.place >= 0)))
    )
    p95 = chosen.rounds.quantile(0.95)
    told = PlannedRounds(holds=chosen.holds, least=chosen.work.least_period, p95=p95, busy=_busy(problem, plan))
    return Recurring(Renewed(shared, plan, moved, kept), told, p95 if chosen.holds else plan.makespan)


def _shared(problem: Problem, taken: Mapping[str, float]) -> Problem:
    """The problem with what is left of each node."""
    arrays = problem.arrays
    share = np.array([min(taken.get(name, 0.0), limits.PLAN_TAKEN_MAX) for name in problem.nodes])
    return problem._replace(arrays=arrays._replace(seconds=arrays.seconds / (1.0 - share)[arrays.node]))


def _whole(problem: Problem, old: Plan) -> Indices | None:
    """[n]: the places of the plan before, and the store for what a job is given and gives; None if one is not there any more."""
    seconds = problem.arrays.seconds
    only = np.isfinite(seconds).sum(axis=1) == 1
    place = np.where(only & (old.place < 0), np.argmin(seconds, axis=1), old.place).astype(np.int32)
    stands = (place >= 0) & np.isfinite(seconds[np.arange(len(place)), place])
    return place if stands.all() else None


def _as_good(before: Paced, best: Paced) -> bool:
    """Whether the plan before keeps as much as the best, and is not slower by what is worth its moves."""

    def no_worse(measure: Measure, share: float) -> bool:
        return before.value(measure) <= best.value(measure) * (1 + share) + _SAME

    if (best.holds and not before.holds) or before.missed > best.missed + _SAME:
        return False
    if not before.holds and not no_worse(Measure.PERIOD, limits.PLAN_RENEW_SHARE):
        return False
    return no_worse(Measure.QUALITY, 0.0) and no_worse(Measure.LATENCY, limits.PLAN_DRIFT_SHARE)


def _busy(problem: Problem, plan: Plan) -> dict[AgentId, float]:
    """Seconds that a slot of each node is busy for a round, of its busiest target."""
    places = work(problem, plan.place, pace(problem, 1.0)).places
    found: dict[AgentId, float] = {}
    for index, place in enumerate(problem.places):
        if places[index] > 0:
            found[AgentId(place.node)] = max(found.get(AgentId(place.node), 0.0), float(places[index]))
    return found
