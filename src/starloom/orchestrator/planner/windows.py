"""Large plans made better a window at a time: a dozen stages are placed anew by CP-SAT, all others stay where they are."""

import math
from collections.abc import Callable

import numpy as np

from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.cutting import cut, join, lasts
from starloom.orchestrator.planner.exact import Search, fitted
from starloom.orchestrator.planner.problem import Floats, Indices, Plan, Problem
from starloom.orchestrator.planner.timing import retimed

SIZE = 12
"""Stages of a window."""

EFFORT = 0.02
"""CP-SAT's deterministic time for a window, about seconds."""

INNER = 80
"""Stages of a part that a window is looked at in; where many run beside each other, one window draws in all of them."""

GAIN = 1e-3
"""Share of the objective that a window has to win: what wins less takes long to find."""


def improved(
    problem: Problem,
    plan: Plan,
    rounds: int,
    seed: int = 0,
    *,
    size: int = SIZE,
    effort: float = EFFORT,
    spent: Callable[[], bool] = lambda: False,
    left: Callable[[], float] = lambda: math.inf,
) -> Plan:
    """A valid plan, the best that so many windows of the given one lead to, or the given one itself.

    Windows are drawn around stages that the makespan hangs on, now in time, now along the critical paths. The same for
    the same arguments, unless `spent` ends it, or `left`, which tells how many seconds are left.
    """
    if rounds <= 0 or spent():
        return plan
    draw = np.random.default_rng(seed)
    best, rest, quickest = plan, lasts(problem, plan), 0.0
    for turn in range(rounds if len(plan.place) > 1 else 0):
        before = left()
        # What is cut out and built for the solver is for nothing if no time is left for it then.
        if spent() or before < quickest:
            break
        chosen = window(best, rest, size, bool(turn % 2), draw)
        found = mended(problem, best, chosen, rest, effort, seed, left)
        if before < math.inf:
            took = before - left()
            quickest = min(quickest, took) if turn else took
        if found is not None:
            best = found
            rest = lasts(problem, best)
    return best


def window(plan: Plan, rest: Floats, size: int, along: bool, draw: np.random.Generator) -> Indices:
    """Stages around one of those on which the makespan hangs: the nearest in time, or if `along` the least slack, too."""
    slack = plan.makespan - plan.finish - rest
    critical = np.flatnonzero(slack <= slack.min() + 1e-6 * (1 + plan.makespan))
    middle = (plan.start + plan.finish) / 2
    far = np.abs(middle - middle[draw.choice(critical)])
    if along:
        far = far + slack
    return np.sort(np.argsort(far, kind="stable")[:size]).astype(np.int32)


def mended(
    problem: Problem,
    plan: Plan,
    chosen: Indices,
    rest: Floats,
    effort: float = EFFORT,
    seed: int = 0,
    left: Callable[[], float] = lambda: math.inf,
) -> Plan | None:
    """A better valid plan in which only the `chosen` stages have new places, and their neighbours a new order, or none.

    `left`: seconds until CP-SAT has to end.
    """
    part = cut(problem, plan, chosen, rest)
    ticks = fitted(part.problem) if part.inner <= INNER else None
    if ticks is None:
        return None
    stands = retimed(part.problem, part.plan)
    value = float((stands.finish + part.after[stands.place]).max()) + stands.penalty
    won = GAIN * max(plan.objective, 0.0)
    search = Search(ticks, stands, math.floor((value - won) / ticks.tick), part.after)
    # To build it takes time as well.
    seconds = left()
    found = search.run(effort, seconds, seed).plan if seconds > 0 else None
    if found is None:
        return None
    whole = join(problem, plan, part, found)
    return whole if whole.objective < plan.objective and not faults(problem, whole) else None
