"""Min-min: of the stages that are ready always the one that can end first. Compiled.

Finishes are kept for each ready stage and place as if places were filled in order, without gaps and requirements; only
the stage that is taken is placed in full. Taking one touches one column: 10,000 stages cost no more than HEFT's.
"""

import numpy as np

from starloom.orchestrator.planner.compiled import compiled, inlined
from starloom.orchestrator.planner.decode import choose, inputs_at, late_inputs, put, seat_started
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared
from starloom.orchestrator.planner.problem import Floats
from starloom.orchestrator.planner.standing import clear


@inlined
def _free(p: Prepared, b: Board, place: int) -> float:
    """When the place has a lane that is free for good."""
    free = np.inf
    for lane in range(p.lanes[place], p.lanes[place + 1]):
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
def _first(ready: Numbers, count: int, ends: Floats) -> int:
    """The index in `ready` of the stage that ends first, the lowest of equals."""
    best = 0
    for index in range(1, count):
        a, z = ready[index], ready[best]
        if ends[a] < ends[z] or (ends[a] == ends[z] and a < z):
            best = index
    return best


@compiled
def minmin(p: Prepared, b: Board) -> int:
    """Sets all stages out. Returns -1, or the stage for which no place was left."""
    clear(p, b)
    n, m = p.seconds.shape
    arrive, paid = np.zeros((n, len(p.memory))), np.zeros(len(p.memory))
    look = np.zeros((n, m))
    waits = p.lead_heads[1:] - p.lead_heads[:-1]
    ends, where = np.zeros(n), np.zeros(n, dtype=np.int64)
    ready, count = np.zeros(n, dtype=np.int64), 0
    stuck = seat_started(p, b)
    if stuck >= 0:
        return stuck
    free = np.array([_free(p, b, place) for place in range(m)])
    for stage in range(n):
        if waits[stage] == 0:
            ready[count] = stage
            count += 1
            inputs_at(p, b, stage, arrive[stage], paid)
            ends[stage], where[stage] = _soonest(p, stage, arrive[stage], free)
    while count:
        index = _first(ready, count, ends)
        stage = ready[index]
        count -= 1
        ready[index] = ready[count]
        if p.started[stage]:
            if late_inputs(p, b, stage):
                return stage
        else:
            place = choose(p, b, stage, p.everywhere, look, 0.0, False, arrive[stage], paid)
            if place < 0:
                return stage
            put(p, b, stage, place, arrive[stage, p.node[place]])
            free[place] = _free(p, b, place)
            for other in ready[:count]:
                if where[other] == place:
                    ends[other], where[other] = _soonest(p, other, arrive[other], free)
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            down = p.follow_stage[follow]
            waits[down] -= 1
            if waits[down] == 0:
                ready[count] = down
                count += 1
                inputs_at(p, b, down, arrive[down], paid)
                ends[down], where[down] = _soonest(p, down, arrive[down], free)
    return NONE
