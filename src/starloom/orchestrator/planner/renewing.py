"""Plans renewed while their job runs: what is left of it at a moment, and whether a new plan is worth its moves.

    event = Event(now=12.5, lost=frozenset({"edge-2"}))
    renewed = renew(problem, plan, event)
    renewed.plan.start    # seconds from 12.5 on, for the same stages

What has ended stays where its outputs are and takes no time; what runs stays where it runs. What a lost node held, and
a stage that has not ended needs, is computed again, with what that needs in turn.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.planning import Budget
from starloom.orchestrator.planner.planning import plan as find
from starloom.orchestrator.planner.problem import NO_MODEL, Flags, Floats, Indices, Plan, Problem

_SLACK: Final = 1e-9


class Event(NamedTuple):
    """What has become of a plan's world by the second `now`: nodes that are lost, and how many times as slow others are."""

    now: float
    lost: frozenset[str] = frozenset()
    slowed: Mapping[str, float] = {}


class Renewed(NamedTuple):
    """What is left, a plan for it, which stages changed their places, and whether the old plan's places were kept."""

    problem: Problem
    plan: Plan
    moved: tuple[str, ...]
    kept: bool


def renew(
    problem: Problem,
    plan: Plan,
    event: Event,
    budget: Budget = Budget(),  # noqa: B008
    seed: int = 0,
    *,
    move_seconds: float = 0.0,
    least_share: float = limits.PLAN_RENEW_SHARE,
) -> Renewed:
    """A plan for what is left, beginning with the old one.

    `move_seconds`: what it counts, in the objective, that a stage which has not started changes its place. The old
    places are kept, if they can be, unless the new plan's objective is better by `least_share` of it. Raises Infeasible.
    """
    left = remaining(problem, plan, event, move_seconds)
    return steadied(left, plan._replace(start=np.maximum(plan.start - event.now, 0.0)), budget, seed, least_share)


def steadied(
    left: Problem,
    old: Plan,
    budget: Budget = Budget(),  # noqa: B008
    seed: int = 0,
    least_share: float = limits.PLAN_RENEW_SHARE,
) -> Renewed:
    """A plan for what is left, or the old places where a new plan would not be worth its moves.

    `old`: for the same stages, with starts in seconds from now; a place of -1 is none. Raises Infeasible.
    """
    found = find(left, budget, seed, old)
    kept = find(_held(left, old), Budget(0), seed, old) if _standing(left, old).all() else None
    if kept is not None and not faults(left, kept) and found.objective > kept.objective * (1 - least_share):
        return Renewed(left, kept, (), True)
    moved = tuple(left.stages[stage] for stage in np.flatnonzero((found.place != old.place) & (old.place >= 0)))
    return Renewed(left, found, moved, False)


def remaining(problem: Problem, plan: Plan, event: Event, move_seconds: float = 0.0) -> Problem:
    """What is left to plan: the same stages and places, in seconds from the event on."""
    arrays = problem.arrays
    n = len(problem.stages)
    lost = np.array([name in event.lost for name in problem.nodes], dtype=bool)
    gone = lost[arrays.node]
    ended = plan.finish <= event.now + _SLACK
    running = ~ended & (plan.start < event.now - _SLACK) & ~gone[plan.place]
    ended &= ~_again(problem, plan, ended, running, gone)
    standing = ended | running

    slow = np.array([event.slowed.get(name, 1.0) for name in problem.nodes])[arrays.node]
    seconds = arrays.seconds * slow
    seconds[:, gone] = np.inf
    at = np.arange(n)
    left = np.where(running, (plan.finish - event.now) * slow[plan.place], 0.0)
    seconds[standing] = np.inf
    seconds[at[standing], plan.place[standing]] = left[standing]
    penalty = moving(arrays.penalty, plan.place, ~standing & ~gone[plan.place], move_seconds)
    waits = ~standing[arrays.downstream]
    return problem._replace(
        arrays=arrays._replace(
            seconds=seconds,
            penalty=penalty,
            available=np.maximum(arrays.available - event.now, 0.0),
            release=np.where(standing, 0.0, np.maximum(arrays.release - event.now, 0.0)),
            started=running,
            upstream=arrays.upstream[waits],
            downstream=arrays.downstream[waits],
            size_bytes=arrays.size_bytes[waits],
            resident=_loaded(problem, plan, event.now, lost),
        )
    )


def moving(penalty: Floats, place: Indices, movable: Flags, seconds: float) -> Floats:
    """The penalties [n, m] with a price for each other place than the one [n] that a movable stage [n] had."""
    moves = np.repeat(movable[:, None], penalty.shape[1], axis=1)
    at = np.flatnonzero(movable)
    moves[at, place[at]] = False
    priced: Floats = penalty + np.where(moves, seconds, 0.0)
    return priced


def _again(problem: Problem, plan: Plan, ended: Flags, running: Flags, gone: Flags) -> Flags:
    """Which stages that have ended have to run again: those whose outputs are lost, and needed, from the last on."""
    arrays = problem.arrays
    lost = ended & gone[plan.place]
    again = np.zeros(len(ended), dtype=bool)
    changed = True
    while changed:
        # What runs has its inputs; what has not begun, or begins again, needs them.
        needs = ~(ended & ~again) & ~running
        needed = np.zeros(len(ended), dtype=bool)
        needed[arrays.upstream[needs[arrays.downstream]]] = True
        changed = bool((lost & needed & ~again).any())
        again |= lost & needed
    return again


def _loaded(problem: Problem, plan: Plan, now: float, lost: Flags) -> Flags:
    """Which models are loaded where: those of before, and those that a stage there has loaded or is loading."""
    arrays = problem.arrays
    found = arrays.resident.copy()
    for stage in np.flatnonzero(plan.loads & (plan.start < now) & (arrays.model != NO_MODEL)):
        found[arrays.model[stage], arrays.node[plan.place[stage]]] = True
    found[:, lost] = False
    return found


def _standing(left: Problem, plan: Plan) -> Flags:
    """For each stage, whether its old place may still have it, if it had one."""
    allowed: Flags = np.isfinite(left.arrays.seconds[np.arange(len(plan.place)), plan.place]) | (plan.place < 0)
    return allowed


def _held(left: Problem, plan: Plan) -> Problem:
    """What is left, with every stage bound to the place that it had."""
    seconds = left.arrays.seconds.copy()
    at = np.flatnonzero(plan.place >= 0)
    seconds[at] = np.inf
    seconds[at, plan.place[at]] = left.arrays.seconds[at, plan.place[at]]
    return left._replace(arrays=left.arrays._replace(seconds=seconds))
