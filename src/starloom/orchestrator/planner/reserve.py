"""By when what a plan has will have ended, though runs take longer than predicted. Pure.

What is said of each run is off independently of others, so what a chain of them is late by is the root of a sum of squares:
of a long chain a small share of its seconds, of the last run alone nearly all that it is off by.
"""

from typing import Final

import numpy as np

from starloom.orchestrator.planner.check import SLACK
from starloom.orchestrator.planner.compiled import compiled
from starloom.orchestrator.planner.prepared import Numbers
from starloom.orchestrator.planner.problem import Floats, Indices, Place, Plan, Problem, predecessors, problem
from starloom.orchestrator.planner.timing import spans

BOUND: Final = 1.645
"""Deviations from the mean of a normal distribution to the upper bound of its middle 90 %, as predicted intervals have it."""


def latest(left: Problem, plan: Plan, deviation: Floats) -> float:
    """The second, counted as the plan's, by which all stages have ended if each is late by no more than the bound of its interval.

    `deviation` [n, m]: the standard deviation of each stage's end at each place once all that it waits for is there, in seconds. A
    stage is late by its own and that of what it waits for, and so on: of its upstreams and of those that had its slots before
    it, the one that is done last.
    """
    arrays, place = left.arrays, plan.place
    heads, leads = predecessors(arrays)
    variance = deviation[np.arange(len(place)), place] ** 2
    lag = spans(left, place, plan.loads).lag
    _add_up(
        np.lexsort((plan.finish, plan.start)).astype(np.int64),
        arrays.shares[place],
        plan.start,
        plan.finish,
        heads,
        arrays.upstream[leads],
        lag[leads],
        variance,
    )
    return float((plan.finish + BOUND * np.sqrt(variance)).max(initial=0.0))


def warm_up() -> None:
    """Compiles this, or reads what was compiled before."""
    none = np.zeros(1)
    made = Plan(np.zeros(1, dtype=np.int32), none, none + 1.0, np.zeros(1, dtype=np.bool_), 1.0, 0.0, "none")
    latest(problem(["a"], [Place("a")], 1.0), made, np.zeros((1, 1)))


@compiled
def _add_up(
    turn: Numbers,
    slots: Indices,
    start: Floats,
    finish: Floats,
    heads: Indices,
    leads: Indices,
    lag: Floats,
    variance: Floats,
) -> None:
    """Adds to the variance [n] of each stage, in `turn`, that of the one it waits for; dependencies lie by downstream, as `heads` say."""
    for at in range(len(turn)):
        stage = turn[at]
        last, waited = 0.0, 0.0
        for edge in range(heads[stage], heads[stage + 1]):
            there = finish[leads[edge]] + lag[edge]
            if there > last:
                last, waited = there, variance[leads[edge]]
        if finish[stage] > start[stage]:
            for earlier in turn[:at]:
                if slots[earlier] == slots[stage] and last < finish[earlier] <= start[stage] + SLACK:
                    last, waited = finish[earlier], variance[earlier]
        variance[stage] += waited
