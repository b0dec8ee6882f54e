"""The best plan of a tiny problem, by trying every order, place and load."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.problem import NO_MODEL, Problem


class Run(NamedTuple):
    """One stage of a partial plan."""

    stage: int
    place: int
    loads: bool
    start: float
    finish: float


def best_objective(problem: Problem, latest: float = np.inf, loading: npt.NDArray[np.float64] | None = None) -> float:
    """Of all plans that end by `latest`; infinite where there is none. `loading` [w, m]: a penalty for each load.

    Tries all ways to add one stage after the other, each as early as those before it let it: for makespan and
    penalties there is a best plan among these.
    """
    best, n = np.inf, len(problem.stages)
    partial: list[tuple[list[Run], float]] = [([], 0.0)]
    while partial:
        runs, costs = partial.pop()
        if costs + max((run.finish for run in runs), default=0.0) >= best:
            continue
        if len(runs) == n:
            best = costs + max((run.finish for run in runs), default=0.0)
            continue
        for run in _nexts(problem, runs):
            if run.finish <= latest * (1 + 1e-9):
                loads = (
                    loading[problem.arrays.model[run.stage], run.place] if run.loads and loading is not None else 0.0
                )
                partial.append(([*runs, run], costs + _cost(problem, runs, run) + loads))
    return float(best)


def _nexts(problem: Problem, runs: list[Run]) -> Iterator[Run]:
    arrays = problem.arrays
    there = {run.stage for run in runs}
    for stage in range(len(problem.stages)):
        if stage in there or not there.issuperset(arrays.upstream[arrays.downstream == stage].tolist()):
            continue
        for place in np.flatnonzero(np.isfinite(arrays.seconds[stage])).tolist():
            may_load = (
                arrays.model[stage] != NO_MODEL and not arrays.started[stage] and arrays.seconds[stage, place] > 0
            )
            for loads in (False, True) if may_load else (False,):
                yield from _earliest(problem, runs, stage, place, loads)


def _earliest(problem: Problem, runs: list[Run], stage: int, place: int, loads: bool) -> Iterator[Run]:
    arrays = problem.arrays
    takes = float(arrays.seconds[stage, place])
    if loads:
        takes += float(arrays.load_seconds[arrays.model[stage], place])
    soonest = max(float(arrays.release[stage]), float(arrays.available[place]) if takes else 0.0)
    for run in runs:
        for edge in np.flatnonzero((arrays.upstream == run.stage) & (arrays.downstream == stage)).tolist():
            a, b = arrays.node[run.place], arrays.node[place]
            sends = arrays.latency[a, b] + arrays.size_bytes[edge] * arrays.seconds_per_byte[a, b]
            soonest = max(soonest, run.finish + float(sends))
    moments = sorted({soonest, *(m for run in runs for m in (run.finish, _loaded(problem, run)) if m > soonest)})
    if arrays.started[stage]:
        moments = [0.0] if all(edge != stage for edge in arrays.downstream) or soonest == 0 else []
    for moment in moments:
        run = Run(stage, place, loads, moment, moment + takes)
        if _holds(problem, [*runs, run]):
            yield run
            return


def _loaded(problem: Problem, run: Run) -> float:
    arrays = problem.arrays
    return run.start + float(arrays.load_seconds[arrays.model[run.stage], run.place]) if run.loads else run.start


def _cost(problem: Problem, runs: list[Run], new: Run) -> float:
    arrays = problem.arrays
    total = float(arrays.penalty[new.stage, new.place])
    for run in runs:
        for edge in np.flatnonzero((arrays.upstream == run.stage) & (arrays.downstream == new.stage)):
            a, b = arrays.node[run.place], arrays.node[new.place]
            total += float(arrays.byte_penalty[a, b] * arrays.size_bytes[edge])
    # The second of a zone pays, and each one after it; so all but the first do.
    return total + max((_crowds(problem, run, new) for run in runs), default=0.0)


def _crowds(problem: Problem, run: Run, new: Run) -> float:
    """What two that are to stand apart cost where they do not."""
    arrays, (a, b) = problem.arrays, (problem.arrays.node[run.place], problem.arrays.node[new.place])
    group = int(arrays.apart[new.stage])
    if group < 0 or arrays.apart[run.stage] != group:
        return 0.0
    zone = arrays.zone[group]
    together = a == b or zone[a] == zone[b] >= 0
    return float(arrays.crowding[group]) if together else 0.0


def _holds(problem: Problem, runs: list[Run]) -> bool:
    """Whether what has been placed keeps slots, memory, models and groups; the last of `runs` is new."""
    arrays, new = problem.arrays, runs[-1]
    node = arrays.node[new.place]
    for run in runs[:-1]:
        same = arrays.node[run.place] == node
        if arrays.together[run.stage] == arrays.together[new.stage] >= 0 and not same:
            return False
        if _crowds(problem, run, new) == np.inf:
            return False
    drawn = sum(float(arrays.charge[run.stage, run.place]) for run in runs if arrays.node[run.place] == node)
    if drawn > arrays.store[node] * (1 + 1e-6):
        return False
    if not _found_loaded(problem, runs):
        return False
    busy = [run for run in runs if run.finish > run.start and arrays.node[run.place] == node]
    for moment in {run.start for run in busy}:
        now = [run for run in busy if run.start <= moment < run.finish]
        if sum(arrays.shares[run.place] == arrays.shares[new.place] for run in now) > arrays.slots[new.place]:
            return False
        held = sum(float(arrays.working_bytes[run.stage, arrays.variant[run.place]]) for run in now)
        for what in range(len(problem.models)):
            used = any(arrays.model[run.stage] == what and run.start <= moment for run in busy)
            held += float(arrays.weight_bytes[what]) if used or arrays.resident[what, node] else 0.0
        if held > arrays.memory_bytes[node] * (1 + 1e-6):
            return False
    return True


def _found_loaded(problem: Problem, runs: list[Run]) -> bool:
    arrays, new = problem.arrays, runs[-1]
    what, node = arrays.model[new.stage], arrays.node[new.place]
    if (
        what == NO_MODEL
        or new.loads
        or arrays.started[new.stage]
        or new.finish == new.start
        or arrays.resident[what, node]
    ):
        return True
    ready = [
        _loaded(problem, run)
        for run in runs[:-1]
        if run.loads and arrays.model[run.stage] == what and arrays.node[run.place] == node
    ]
    return bool(ready) and min(ready) <= new.start
