"""Why a stage stands where it does, and what would change: each other place tried, each node taken away."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner.problem import NO_MODEL, Floats, Plan, Problem

_TOLD_MAX: Final = 3
"""Reasons why there is no plan that are told in full."""

Replan = Callable[[Problem, Plan], Plan]
"""Plans a problem again, beginning with a plan. Raises Infeasible."""


class Alternative(NamedTuple):
    """Another place for a stage: the best plan found with it there and its objective, or why there is none."""

    place: int
    objective: float | None
    excluded: str = ""
    plan: Plan | None = None


class Loss(NamedTuple):
    """A node taken away: the best plan found without it and its objective, or what cannot be planned then."""

    node: str
    stages: tuple[str, ...]
    objective: float | None
    excluded: str = ""
    plan: Plan | None = None


class Part(NamedTuple):
    """What a stage waits for and does, in seconds. `last`: the upstream whose value comes last; empty without any."""

    waits: float
    last: str
    transfer: float
    load: float
    run: float


def alternatives(problem: Problem, plan: Plan, stage: int, replan: Replan) -> list[Alternative]:
    """Every place for one stage, the best first; of the one that it has, the plan's own objective."""
    found = [Alternative(int(plan.place[stage]), plan.objective, "", plan)]
    allowed = np.isfinite(problem.arrays.seconds[stage])
    for place in np.flatnonzero(allowed):
        if place != plan.place[stage]:
            seconds = problem.arrays.seconds.copy()
            seconds[stage, np.arange(len(allowed)) != place] = np.inf
            found.append(Alternative(int(place), *_objective(problem, plan, seconds, replan)))
    return sorted(
        found, key=lambda each: (each.objective is None, each.objective or 0.0, each.place != plan.place[stage])
    )


def losses(problem: Problem, plan: Plan, replan: Replan) -> list[Loss]:
    """Each node that has a stage of the plan, taken away before the job begins; the worst first.

    What takes no time runs as well; what an input is fed from, and an output taken to, is on no node.
    """
    arrays = problem.arrays
    used = arrays.node[plan.place]
    found = []
    for node, name in enumerate(problem.nodes):
        here = np.flatnonzero(used == node)
        if not len(here) or not name:
            continue
        seconds = arrays.seconds.copy()
        seconds[:, arrays.node == node] = np.inf
        stages = tuple(problem.stages[stage] for stage in here)
        found.append(Loss(name, stages, *_objective(problem, plan, seconds, replan)))
    return sorted(found, key=lambda each: (each.objective is not None, -(each.objective or 0.0), each.node))


def part(problem: Problem, plan: Plan, stage: int, lag: Floats) -> Part:
    """How a stage's time is made up. `lag` [e]: of each dependency's transfer, as `uplinks.lags` has it."""
    arrays = problem.arrays
    place = plan.place[stage]
    load = 0.0
    if plan.loads[stage] and arrays.model[stage] != NO_MODEL:
        load = float(arrays.load_seconds[arrays.model[stage], place])
    comes, last, moved = 0.0, "", 0.0
    for edge in np.flatnonzero(arrays.downstream == stage):
        up = arrays.upstream[edge]
        transfer = float(lag[edge])
        if not last or plan.finish[up] + transfer > comes:
            comes, last, moved = float(plan.finish[up]) + transfer, problem.stages[up], transfer
    run = float(plan.finish[stage] - plan.start[stage]) - load
    return Part(max(0.0, float(plan.start[stage]) - comes), last, moved, load, run)


def _objective(problem: Problem, plan: Plan, seconds: Floats, replan: Replan) -> tuple[float | None, str, Plan | None]:
    changed = problem._replace(arrays=problem.arrays._replace(seconds=seconds))
    try:
        found = replan(changed, plan)
        return found.objective, "", found
    except Infeasible as error:
        told = [str(problem) for problem in error.problems]
        more = f"; and {len(told) - _TOLD_MAX} more" if len(told) > _TOLD_MAX else ""
        return None, "; ".join(told[:_TOLD_MAX]) + more, None
