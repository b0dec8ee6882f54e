"""Smaller variants where a placement is too busy for its period, as few and as good as that can be had with. Pure."""

import numpy as np

from starloom.orchestrator.planner.problem import Flags, Floats, Indices, Problem
from starloom.orchestrator.planner.steady import Pace, work


def lowered(problem: Problem, allowed: Flags, loss: Floats, pace: Pace, place: Indices, cap: float) -> Indices:
    """Places [n] on the same targets, in variants at which nothing is busier than `cap` seconds a round; or nearer to that.

    `allowed` [n, m]: places that stages may have. `loss` [n, m]: what their variants lack of a quality of 1. Of what is busiest, one
    stage at a time, that which loses least for the seconds that it gains; then better ones again, worst first, as far as they fit.
    """
    found = place.copy()
    while not work(problem, found, pace).fits(cap):
        steps = [
            (float((loss[stage, at] - loss[stage, found[stage]]) / gain), stage, at)
            for stage in _busiest(problem, found, pace)
            for at, gain in _quicker(problem, allowed, stage, found)
        ]
        if not steps:
            break
        _, stage, at = min(steps)
        found[stage] = at
    return raised(problem, allowed, loss, pace, found, cap)


def raised(problem: Problem, allowed: Flags, loss: Floats, pace: Pace, place: Indices, cap: float) -> Indices:
    """Places [n] on the same targets, in variants as good as can be without anything being busier than `cap` seconds a round."""
    found, arrays = place.copy(), problem.arrays
    if not work(problem, found, pace).fits(cap):
        return found
    now = loss[np.arange(len(found)), found]
    for stage in np.argsort(-now, kind="stable").tolist():
        here = allowed[stage] & (arrays.shares == arrays.shares[found[stage]]) & (loss[stage] < now[stage])
        for at in sorted(np.flatnonzero(here).tolist(), key=lambda each: (loss[stage, each], each)):
            before, found[stage] = found[stage], at
            if work(problem, found, pace).fits(cap):
                break
            found[stage] = before
    return found


def _busiest(problem: Problem, place: Indices, pace: Pace) -> list[int]:
    """The stages that keep busy what is busiest; none where that is a link, which carries as much in any variant."""
    arrays, took = problem.arrays, work(problem, place, pace)
    most = took.period
    if took.places.max(initial=0.0) >= most:
        here = arrays.shares[place] == took.places.argmax()
    elif took.memory.max(initial=0.0) >= most:
        here = arrays.node[place] == took.memory.argmax()
    else:
        here = took.stages >= most
    return [int(stage) for stage in np.flatnonzero(here)]


def _quicker(problem: Problem, allowed: Flags, stage: int, place: Indices) -> list[tuple[int, float]]:
    """The variants of a stage on its target that take less time than its own, and how many seconds less."""
    arrays, at = problem.arrays, place[stage]
    if arrays.started[stage]:
        return []
    less = np.where(allowed[stage] & (arrays.shares == arrays.shares[at]), arrays.seconds[stage, at], 0.0)
    gains = less - np.where(less > 0, arrays.seconds[stage], 0.0)
    return [(each, float(gains[each])) for each in np.flatnonzero(gains > 0).tolist()]
