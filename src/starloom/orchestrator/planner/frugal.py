"""Of small jobs the plan that costs least of those that end in time, and the proof that it does. Pure.

Weights find what lies on the lower hull of seconds and costs; the best plan within a deadline may lie above it.
"""

import math
from typing import Any, NamedTuple

from ortools.sat.python import cp_model

from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.exact import fitted, hinted, longest, read, solving
from starloom.orchestrator.planner.holding import hold
from starloom.orchestrator.planner.model import Model
from starloom.orchestrator.planner.problem import Floats, Plan, Problem
from starloom.orchestrator.planner.ticks import EXACT, Modes, Ticks, Whole, heads, near, tails

METHOD = "exact, in time"


class Frugal(NamedTuple):
    """`plan`: of those found that end in time the one of least cost; none where none was found. `proven`: none costs less."""

    plan: Plan | None
    proven: bool


def frugal(
    problem: Problem, latest: float, loading: Floats, hint: Plan | None = None, *, effort: float, seed: int = 0
) -> Frugal:
    """The valid plan of least penalties that ends by `latest` seconds, infinite for no bound; and of such ones the fastest.

    `loading` [w, m]: what loading a model at a place costs, beside the problem's penalties, in seconds. Times are
    whole ticks, rounded up: what ends some millionths before `latest` may be missed, and what costs differ by less than
    some millionths is the same. The same for the same arguments.
    """
    ticks = fitted(problem) if problem.stages else None
    if ticks is None:
        return Frugal(None, False)
    horizon = longest(ticks) if math.isinf(latest) else min(longest(ticks), math.floor(latest / ticks.tick + EXACT))
    modes, bounds = _in_time(ticks, horizon)
    if not all(modes):
        return Frugal(None, True)
    model = Model(ticks, modes, bounds, horizon)
    hold(model)
    if hint is not None and hint.makespan <= latest:
        hinted(model, hint)
    found, proven = None, False
    for goal in (sum([*model.costs, *_loads(model, loading)]), model.makespan):
        model.cp.minimize(goal)
        solver = solving(effort / 2, math.inf, seed)
        status = solver.solve(model.cp)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            break
        plan = read(model, solver, METHOD)
        if not faults(problem, plan, None if math.isinf(latest) else latest):
            proven, found = proven or (found is None and status == cp_model.OPTIMAL), plan
        model.cp.add(goal <= round(solver.objective_value))
        model.cp.clear_hints()
        hinted(model, plan)
    return Frugal(found, proven)


def _loads(model: Model, loading: Floats) -> list[Any]:
    """What each mode that loads costs for that."""
    of = model.ticks.problem.arrays.model
    ticks = near(loading, model.ticks.tick)
    pairs = (
        (stage, *pair) for stage, modes in enumerate(model.modes) for pair in zip(modes, model.uses[stage], strict=True)
    )
    return [use * int(ticks[of[stage], mode.place]) for stage, mode, use in pairs if mode.loads]


def _in_time(ticks: Ticks, horizon: int) -> tuple[Modes, tuple[list[Whole], list[Whole]]]:
    """The modes in which a stage, and all that hangs on it, can end by then."""
    modes = ticks.modes
    while True:
        bounds = heads(ticks, modes), tails(ticks, modes)
        kept = [
            [m for m, h, t in zip(each, head, tail, strict=True) if h + m.ticks + t <= horizon]
            for each, head, tail in zip(modes, *bounds, strict=True)
        ]
        if [len(each) for each in kept] == [len(each) for each in modes]:
            return modes, bounds
        modes = kept
