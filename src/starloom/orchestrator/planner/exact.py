"""The best plan of a small job, and the proof that it is."""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from ortools.sat.python import cp_model

from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.holding import hold
from starloom.orchestrator.planner.model import Model
from starloom.orchestrator.planner.problem import Floats, Plan, Problem, zones
from starloom.orchestrator.planner.ticks import FAR, Modes, Ticks, Whole, fitting_tick, heads, near, tails, ticked, up
from starloom.orchestrator.planner.timing import Spans, earliest, retimed, spans

EFFORT = 2.0
"""CP-SAT's deterministic time, about seconds of one core."""

SHARES = (0.05, 0.15, 0.8)
"""Of the effort, of one run after the other: the better the plan in hand, the fewer modes are left to look at."""

CONFLICTS = (1_000, 1 << 40, 1 << 40)
"""After which each run ends. Some bounds rise by a tick a conflict, which deterministic time hardly counts, for seconds."""


_REACH: Final = FAR << 8
"""Ticks up to which plans are looked for: whole numbers of CP-SAT end not far above."""


class Proof(NamedTuple):
    """`plan`: the best that was found. `bound`: seconds below which no plan's objective lies.

    `proven`: nothing is better than `plan` by more than rounding to ticks, some millionths; or there is no plan.
    """

    plan: Plan | None
    bound: float
    proven: bool


def exact(
    problem: Problem, hint: Plan | None = None, *, effort: float = EFFORT, wall_seconds: float = math.inf, seed: int = 0
) -> Proof:
    """The best plan that `effort` finds, from `hint` on if that is a valid plan; never a worse one.

    The same for the same arguments, unless `wall_seconds` ends it.
    """
    if not problem.stages:
        none = np.zeros(0)
        return Proof(Plan(none.astype(np.int32), none, none, none.astype(np.bool_), 0.0, 0.0, "exact"), 0.0, True)
    ticks = fitted(problem)
    if ticks is None:
        return Proof(None, math.inf, True)
    best = retimed(problem, hint) if hint is not None and not faults(problem, hint) else None
    if hint is not None and best is not None and (best.objective > hint.objective or faults(problem, best)):
        best = hint
    bound = 0.0
    for turn, (share, conflicts) in enumerate(zip(SHARES, CONFLICTS, strict=True)):
        most = None if best is None else _most(ticks, best, turn)
        search = Search(ticks, best, most)
        found = search.run(share * effort, wall_seconds, seed, conflicts)
        wall_seconds = max(0.0, wall_seconds - search.wall_seconds)
        # Where nothing is as good as was asked for, what was asked for is the bound.
        short = found.proven and found.plan is None and most is not None
        least = (search.most + 1 - ticks.rounding()) * ticks.tick if short else found.bound
        bound = max(bound, least)
        if found.plan is not None and (best is None or found.plan.objective < best.objective):
            best = found.plan
        if found.proven:
            # Penalties beyond FAR count as that, so that which of several is least was not seen.
            seen = best is None or best.objective < FAR * ticks.tick
            return Proof(best, bound if best is None else min(bound, best.objective), seen)
    return Proof(best, bound, False)


FINE: Final = (1e-9, 1e-3, 1e3)
"""Seconds of the ticks in which it is seen how long a job takes: in the first of these that is far enough."""


def fitted(problem: Problem) -> Ticks | None:
    """In ticks that suit the least that the objective can be; nothing where a stage has no place, or all takes for ever."""
    arrays = problem.arrays
    for tick in FINE:
        fine = ticked(problem, tick)
        if not all(fine.modes):
            return None
        path = max(
            int((head + tail + [mode.ticks for mode in modes]).min())
            for head, tail, modes in zip(heads(fine, fine.modes), tails(fine, fine.modes), fine.modes, strict=True)
        )
        if path < FAR:
            # In seconds, for in ticks of these a penalty may be beyond FAR.
            costs = [
                float(arrays.penalty[stage, [mode.place for mode in modes]].min())
                for stage, modes in enumerate(fine.modes)
            ]
            return ticked(problem, fitting_tick(path * tick + sum(costs) or float(arrays.penalty.max(initial=0.0))))
    return None


def _most(ticks: Ticks, best: Plan, turn: int) -> int:
    """The most ticks that a run looks for: first those of the plan in hand, to begin from it, and then fewer.

    To show that nothing is better asks for no plan; to find the one in hand once more, to the tick, may take seconds.
    """
    if turn == 0:
        return ticks.within(best.objective)
    return max(0, math.floor(best.objective / ticks.tick) - 1)


class Search:
    """One run of CP-SAT over what can have an objective of `most` ticks. `after` [m]: as in a `Cut`."""

    def __init__(self, ticks: Ticks, hint: Plan | None, most: int | None = None, after: Floats | None = None) -> None:
        self.ticks, self.most = ticks, min(longest(ticks) if most is None else most, _REACH)
        rest = np.zeros(len(ticks.problem.places)) if after is None else after
        self.modes, bounds = _worth(ticks, self.most, up(rest, ticks.tick))
        self.wall_seconds = 0.0
        self.empty = not all(self.modes)
        if not self.empty:
            self.model = Model(ticks, self.modes, bounds, self.most)
            hold(self.model)
            self.model.minimise(self.most)
            if hint is not None:
                hinted(self.model, hint)

    def run(self, effort: float, wall_seconds: float, seed: int, conflicts: int = CONFLICTS[-1]) -> Proof:
        if self.empty:
            return Proof(None, math.inf, True)
        solver = solving(effort, wall_seconds, seed)
        solver.parameters.max_number_of_conflicts = conflicts
        status = solver.solve(self.model.cp)
        self.wall_seconds = float(solver.wall_time)
        if status == cp_model.INFEASIBLE:
            return Proof(None, math.inf, True)
        bound = max(0.0, (solver.best_objective_bound - self.ticks.rounding()) * self.ticks.tick)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Proof(None, bound, False)
        return Proof(read(self.model, solver, "exact"), bound, status == cp_model.OPTIMAL)


def hinted(model: Model, plan: Plan) -> None:
    """Has the solver begin with a plan."""
    for stage, (modes, start) in enumerate(zip(model.modes, _started(model.ticks, plan), strict=True)):
        model.cp.add_hint(model.start[stage], int(start))
        for use, mode in zip(model.uses[stage], modes, strict=True):
            model.cp.add_hint(use, mode.place == plan.place[stage] and mode.loads == plan.loads[stage])


def solving(effort: float, wall_seconds: float, seed: int) -> Any:
    """A solver of one worker, which does the same each time. Linear relaxations cost it more than they save."""
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.linearization_level = 0
    # Else an objective with nothing but numbers below it is bettered tick by tick, millions of times, and no limit is looked at.
    solver.parameters.binary_search_num_conflicts = 10
    solver.parameters.max_deterministic_time = effort
    solver.parameters.max_time_in_seconds = wall_seconds
    return solver


def read(model: Model, solver: Any, method: str) -> Plan:
    """The plan that a solver has found, in seconds, each stage as early as can be."""
    place, loads, start, finish = [], [], [], []
    for stage, modes in enumerate(model.modes):
        mode = next(mode for use, mode in zip(model.uses[stage], modes, strict=True) if solver.boolean_value(use))
        place.append(mode.place)
        loads.append(mode.loads)
        start.append(float(solver.value(model.start[stage])))
        finish.append(start[-1] + mode.ticks)
    columns = np.array(place, dtype=np.int32), np.array(start), np.array(finish), np.array(loads, dtype=np.bool_)
    return retimed(model.ticks.problem, Plan(*columns, 0.0, 0.0, method))


def longest(ticks: Ticks) -> int:
    """Ticks that suffice for one stage after the other, at the worst places, and all penalties."""
    problem = ticks.problem
    everywhere = np.arange(len(problem.nodes), dtype=np.int32)
    total = int(ticks.base.max()) + int(ticks.opens.max()) + ticks.rounding()
    total += sum(max(mode.ticks for mode in modes) + max(mode.penalty for mode in modes) for modes in ticks.modes)
    for edge in range(len(problem.arrays.upstream)):
        total += int(ticks.transfer(edge, everywhere, everywhere).max())
        total += int(ticks.moved(edge, everywhere, everywhere).max())
    crowding = zones(problem.arrays)[1][problem.arrays.apart[problem.arrays.apart >= 0]]
    total += int(near(crowding[np.isfinite(crowding)], ticks.tick).sum())
    return total


def _worth(ticks: Ticks, most: int, after: Whole) -> tuple[Modes, tuple[list[Whole], list[Whole]]]:
    """The modes in which a stage can run and the objective still be `most` ticks; and all heads and tails."""
    modes = ticks.modes
    while True:
        bounds = heads(ticks, modes), tails(ticks, modes, after)
        least = [min((mode.penalty for mode in each), default=0) for each in modes]
        left = most - sum(least)
        kept = [
            [m for m, h, t in zip(each, head, tail, strict=True) if h + t + m.ticks + m.penalty - low <= left]
            for each, head, tail, low in zip(modes, *bounds, least, strict=True)
        ]
        if [len(each) for each in kept] == [len(each) for each in modes]:
            return modes, bounds
        modes = kept


def _started(ticks: Ticks, plan: Plan) -> Whole:
    """A plan's starts in ticks."""
    what = spans(ticks.problem, plan.place, plan.loads)
    whole = Spans(*(np.ceil(column / ticks.tick - 1e-9) for column in what))
    return earliest(ticks.problem, plan, whole).astype(np.int64)
