"""Min-min: of the stages that are ready always the one that can end first. Compiled.

Finishes are kept for each ready stage as if places were filled in order, without gaps and requirements; only the stage
that is taken is placed in full. They only grow, so that one is looked at again no sooner than it comes first.
"""

import numpy as np

from starloom.orchestrator.planner.compiled import compiled, inlined
from starloom.orchestrator.planner.decode import choose, inputs_at, late_inputs, put, seat_started
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared
from starloom.orchestrator.planner.problem import Floats
from starloom.orchestrator.planner.ranks import pop, push
from starloom.orchestrator.planner.standing import clear


@inlined
def _free(p: Prepared, b: Board, place: int) -> float:
    """When the place has a lane that is free for good."""
    free = np.inf
    for lane in range(p.lanes[place], p.upto[place]):
        stage = b.last[lane]
        if stage < 0:
            return p.available[place]
        free = min(free, b.start[stage] + b.length[stage])
    return max(free, p.available[place])


@inlined
def _soonest(p: Prepared, stage: int, there: Floats, free: Floats) -> tuple[float, int]:
    """The least finish of a stage over its places, and the place."""
    best, found = np.inf, NONE
    for place in range(len(free)):
        if p.allowed[stage, place]:
            ends = max(there[p.node[place]], free[place]) + p.seconds[stage, place]
            if ends < best:
                best, found = ends, place
    return best, found


@inlined
def _reckon(p: Prepared, stage: int, there: Floats, free: Floats, soon: Floats, where: Numbers, opened: Floats) -> None:
    ends, place = _soonest(p, stage, there, free)
    soon[stage], where[stage], opened[stage] = -ends, place, free[place]


@compiled
def minmin(p: Prepared, b: Board) -> int:
    """Sets all stages out. Returns -1, or the stage for which no place was left."""
    clear(p, b)
    n, m = p.seconds.shape
    arrive, paid = np.zeros((n, len(p.memory))), np.zeros(len(p.memory))
    look = np.zeros((n, m))
    waits = p.lead_heads[1:] - p.lead_heads[:-1]
    soon, where, opened = np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n)
    heap, rank, count = np.zeros(n, dtype=np.int64), np.arange(n), 0
    stuck = seat_started(p, b)
    if stuck >= 0:
        return stuck
    free = np.array([_free(p, b, place) for place in range(m)])
    for stage in range(n):
        if waits[stage] == 0:
            inputs_at(p, b, stage, arrive[stage], paid)
            _reckon(p, stage, arrive[stage], free, soon, where, opened)
            count = push(heap, count, stage, soon, rank)
    while count:
        stage = heap[0]
        count = pop(heap, count, soon, rank)
        if free[where[stage]] != opened[stage]:
            _reckon(p, stage, arrive[stage], free, soon, where, opened)
            count = push(heap, count, stage, soon, rank)
            continue
        if p.started[stage]:
            if late_inputs(p, b, stage):
                return stage
        else:
            place = choose(p, b, stage, p.everywhere, look, 0.0, False, arrive[stage], paid)
            if place < 0:
                return stage
            put(p, b, stage, place, arrive[stage, p.node[place]])
            for other in range(m):
                if p.lanes[other] == p.lanes[place]:
                    free[other] = _free(p, b, other)
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            down = p.follow_stage[follow]
            waits[down] -= 1
            if waits[down] == 0:
                inputs_at(p, b, down, arrive[down], paid)
                _reckon(p, down, arrive[down], free, soon, where, opened)
                count = push(heap, count, down, soon, rank)
    return NONE
