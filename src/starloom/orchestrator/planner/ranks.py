"""How urgent stages are: the ranks of the list schedulers, and orders made of them. Compiled.

Upward and downward rank: Topcuoglu, Hariri, Wu 2002. Optimistic cost table: Arabnejad, Barbosa 2014 (PEFT).
"""

import numpy as np

from starloom.orchestrator.planner.compiled import compiled
from starloom.orchestrator.planner.prepared import Numbers, Prepared
from starloom.orchestrator.planner.problem import Floats

MEAN, LEAST, MOST = 0, 1, 2
"""Which of a stage's run times over its places a rank counts."""


@compiled
def typical(p: Prepared, how: int) -> Floats:
    """[n] Seconds of each stage over the places that it may have: mean, least or most."""
    n, m = p.seconds.shape
    found = np.zeros(n)
    for stage in range(n):
        total, count, low, high = 0.0, 0, np.inf, 0.0
        for place in range(m):
            if p.allowed[stage, place]:
                seconds = p.seconds[stage, place]
                total += seconds
                count += 1
                low = min(low, seconds)
                high = max(high, seconds)
        if count:
            found[stage] = total / count if how == MEAN else (low if how == LEAST else high)
    return found


@compiled
def mean_link(p: Prepared) -> tuple[float, float]:
    """The mean latency, and seconds per byte, between places of two nodes."""
    latency, per_byte, count = 0.0, 0.0, 0
    places = np.zeros(len(p.memory))
    for node in p.node:
        places[node] += 1
    for a in range(len(places)):
        for z in range(len(places)):
            if a != z and np.isfinite(p.latency[a, z]) and np.isfinite(p.per_byte[a, z]):
                weight = places[a] * places[z]
                latency += p.latency[a, z] * weight
                per_byte += p.per_byte[a, z] * weight
                count += weight
    return (latency / count, per_byte / count) if count else (0.0, 0.0)


@compiled
def upward(p: Prepared, seconds: Floats, latency: float, per_byte: float) -> Floats:
    """[n] Seconds from the stage's start to the end of all, over its longest path."""
    rank = seconds.copy()
    for index in range(len(rank) - 1, -1, -1):
        stage = p.order[index]
        longest = 0.0
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            moved = latency + p.follow_bytes[follow] * per_byte
            longest = max(longest, moved + rank[p.follow_stage[follow]])
        rank[stage] += longest
    return rank


@compiled
def downward(p: Prepared, seconds: Floats, latency: float, per_byte: float) -> Floats:
    """[n] Seconds from the begin of all to the stage's start, over its longest path."""
    rank = np.zeros(len(seconds))
    for stage in p.order:
        for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
            up = p.lead_stage[lead]
            moved = latency + p.lead_bytes[lead] * per_byte
            rank[stage] = max(rank[stage], rank[up] + seconds[up] + moved)
    return rank


@compiled
def optimistic(p: Prepared, latency: float, per_byte: float) -> Floats:
    """[n, m] The least seconds from the stage's end to the end of all, if it stands there and all choose freely."""
    n, m = p.seconds.shape
    table = np.zeros((n, m))
    least_of = np.zeros(len(p.memory))
    for index in range(n - 1, -1, -1):
        stage = p.order[index]
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            down = p.follow_stage[follow]
            moved = latency + p.follow_bytes[follow] * per_byte
            least_of[:] = np.inf
            least = np.inf
            for place in range(m):
                if p.allowed[down, place]:
                    rest = table[down, place] + p.seconds[down, place]
                    least_of[p.node[place]] = min(least_of[p.node[place]], rest)
                    least = min(least, rest)
            for place in range(m):
                rest = min(least_of[p.node[place]], least + moved)
                if rest < np.inf:
                    table[stage, place] = max(table[stage, place], rest)
    return table


@compiled
def urgent_first(p: Prepared, urgency: Floats, late: bool) -> Numbers:
    """The stages, upstreams first, of those that are ready the most urgent; of equals the last if `late`."""
    n = len(urgency)
    waits = np.zeros(n, dtype=np.int64)
    heap, count = np.zeros(n, dtype=np.int64), 0
    rank = np.zeros(n, dtype=np.int64)
    for index in range(n):
        rank[p.order[index]] = n - index if late else index
    found = np.zeros(n, dtype=np.int64)
    for stage in range(n):
        waits[stage] = p.lead_heads[stage + 1] - p.lead_heads[stage]
        if waits[stage] == 0:
            count = push(heap, count, stage, urgency, rank)
    for index in range(n):
        stage = heap[0]
        count = pop(heap, count, urgency, rank)
        found[index] = stage
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            down = p.follow_stage[follow]
            waits[down] -= 1
            if waits[down] == 0:
                count = push(heap, count, down, urgency, rank)
    return found


@compiled
def _sooner(a: int, z: int, urgency: Floats, rank: Numbers) -> bool:
    return urgency[a] > urgency[z] or (urgency[a] == urgency[z] and rank[a] < rank[z])


@compiled
def push(heap: Numbers, count: int, stage: int, urgency: Floats, rank: Numbers) -> int:
    """Adds a stage to a heap of `count` stages, the most urgent on top. Returns the new count."""
    slot = count
    while slot > 0:
        above = (slot - 1) // 2
        if not _sooner(stage, heap[above], urgency, rank):
            break
        heap[slot] = heap[above]
        slot = above
    heap[slot] = stage
    return count + 1


@compiled
def pop(heap: Numbers, count: int, urgency: Floats, rank: Numbers) -> int:
    """Takes the top off the heap. Returns the new count."""
    count -= 1
    stage = heap[count]
    slot = 0
    while True:
        below = 2 * slot + 1
        if below >= count:
            break
        if below + 1 < count and _sooner(heap[below + 1], heap[below], urgency, rank):
            below += 1
        if not _sooner(heap[below], stage, urgency, rank):
            break
        heap[slot] = heap[below]
        slot = below
    heap[slot] = stage
    return count
