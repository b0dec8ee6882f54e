"""A full board kept exact while stages are taken off and put back: earliest starts, and times from there to the end.

Both are longest paths of the graph of dependencies, lanes and models that are waited for. A stage that is off the board
keeps its dependencies, runs as long as on its fastest place, and moves nothing. Compiled.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.compiled import inlined, inner, lean
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared
from starloom.orchestrator.planner.problem import Flags, Floats
from starloom.orchestrator.planner.standing import lift, link, pays, settle


class Trail(NamedTuple):
    """What goes with a board. `tail` [n]: seconds from a stage's start to the end of all. `order`, `rank` [n]:
    upstreams first, and where each stage stands there. `off` [n]: not on the board. `least` [n]: its seconds then.
    `late`, `soon` [n]: start, tail to be computed again. `waits`, `critical`, `picked` [n], `there`, `rest`, `runs` [k]: scratch.
    `was` [3]: the lane, the stage before it there, and the place that a stage was taken from.
    `draw` [1]: the state of chance.
    """

    tail: Floats
    order: Numbers
    rank: Numbers
    off: Flags
    least: Floats
    late: Flags
    soon: Flags
    waits: Numbers
    critical: Numbers
    picked: Numbers
    there: Floats
    rest: Floats
    runs: Floats
    was: Numbers
    draw: npt.NDArray[np.uint64]


def trail(prepared: Prepared, seed: int) -> Trail:
    """An empty trail, and chance begun from a seed."""
    n, k = len(prepared.seconds), len(prepared.memory)
    seconds = np.where(prepared.allowed, prepared.seconds, np.inf).min(axis=1, initial=np.inf)
    return Trail(
        tail=np.zeros(n),
        order=prepared.order.copy(),
        rank=np.zeros(n, dtype=np.int64),
        off=np.zeros(n, dtype=np.bool_),
        least=seconds,
        late=np.zeros(n, dtype=np.bool_),
        soon=np.zeros(n, dtype=np.bool_),
        waits=np.zeros(n, dtype=np.int64),
        critical=np.zeros(n, dtype=np.int64),
        picked=np.zeros(n, dtype=np.int64),
        there=np.zeros(k),
        rest=np.zeros(k),
        runs=np.zeros(k),
        was=np.zeros(3, dtype=np.int64),
        draw=np.array([seed], dtype=np.uint64),
    )


@inlined
def chance(draw: npt.NDArray[np.uint64]) -> float:
    """A number from 0 up to 1: splitmix64 (Steele, Lea, Flood 2014)."""
    draw[0] += np.uint64(0x9E3779B97F4A7C15)
    mixed = draw[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return np.float64(mixed >> np.uint64(11)) / 9007199254740992.0


@inlined
def waited(p: Prepared, b: Board, stage: int) -> int:
    """The stage that loads this one's model, if it waits for that; -1 otherwise."""
    place = b.place[stage]
    if place < 0 or not pays(p, b, stage, place):
        return NONE
    loader = b.loader[p.model[stage], p.node[place]]
    return NONE if loader == stage else loader


@inlined
def _loading(p: Prepared, b: Board, stage: int) -> bool:
    place = b.place[stage]
    return place >= 0 and p.model[stage] >= 0 and b.loader[p.model[stage], p.node[place]] == stage


@inlined
def _waits_for(p: Prepared, b: Board, user: int, loader: int) -> bool:
    return user != loader and b.place[user] >= 0 and waited(p, b, user) == loader


@inner
def sort(p: Prepared, b: Board, t: Trail) -> bool:
    """Orders all stages anew, upstreams first. False if what stands on the lanes goes round in a circle."""
    n = len(t.order)
    count = 0
    for stage in range(n):
        waits = p.lead_heads[stage + 1] - p.lead_heads[stage]
        if b.before[stage] >= 0 and b.lane[stage] >= 0:
            waits += 1
        if waited(p, b, stage) >= 0:
            waits += 1
        t.waits[stage] = waits
        if waits == 0:
            t.order[count] = stage
            count += 1
    index = 0
    while index < count:
        stage = t.order[index]
        t.rank[stage] = index
        index += 1
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            count = _release(t, p.follow_stage[follow], count)
        if b.lane[stage] >= 0 and b.after[stage] >= 0:
            count = _release(t, b.after[stage], count)
        if _loading(p, b, stage):
            model = p.model[stage]
            for slot in range(p.user_heads[model], p.user_heads[model + 1]):
                if _waits_for(p, b, p.user_stage[slot], stage):
                    count = _release(t, p.user_stage[slot], count)
    return count == n


@inlined
def _release(t: Trail, stage: int, count: int) -> int:
    t.waits[stage] -= 1
    if t.waits[stage] == 0:
        t.order[count] = stage
        return count + 1
    return count


@inner
def _start(p: Prepared, b: Board, t: Trail, stage: int) -> float:
    if p.started[stage]:
        return 0.0
    start = p.release[stage]
    place = b.place[stage]
    node = p.node[place] if place >= 0 else 0
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        up = p.lead_stage[lead]
        there = b.start[up] + b.length[up]
        if place >= 0 and not t.off[up]:
            source = p.node[b.place[up]]
            there += p.latency[source, node] + p.lead_bytes[lead] * p.per_byte[source, node]
        start = max(start, there)
    if b.lane[stage] >= 0:
        start = max(start, p.available[place])
        before = b.before[stage]
        if before >= 0:
            start = max(start, b.start[before] + b.length[before])
        loader = waited(p, b, stage)
        if loader >= 0:
            start = max(start, b.start[loader] + p.load[p.model[stage], b.place[loader]])
    return start


@inner
def _tail(p: Prepared, b: Board, t: Trail, stage: int) -> float:
    tail = 0.0
    place = b.place[stage]
    node = p.node[place] if place >= 0 else 0
    for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
        down = p.follow_stage[follow]
        rest = t.tail[down]
        if place >= 0 and not t.off[down]:
            sink = p.node[b.place[down]]
            rest += p.latency[node, sink] + p.follow_bytes[follow] * p.per_byte[node, sink]
        tail = max(tail, rest)
    if b.lane[stage] >= 0 and b.after[stage] >= 0:
        tail = max(tail, t.tail[b.after[stage]])
    tail += b.length[stage]
    if _loading(p, b, stage):
        model = p.model[stage]
        for slot in range(p.user_heads[model], p.user_heads[model + 1]):
            user = p.user_stage[slot]
            if _waits_for(p, b, user, stage):
                tail = max(tail, p.load[model, place] + t.tail[user])
    return tail


@inner
def mark_behind(p: Prepared, b: Board, t: Trail, stage: int) -> None:
    """The starts of all that follow a stage are to be computed again."""
    for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
        t.late[p.follow_stage[follow]] = True
    if b.lane[stage] >= 0 and b.after[stage] >= 0:
        t.late[b.after[stage]] = True
    if _loading(p, b, stage):
        model = p.model[stage]
        for slot in range(p.user_heads[model], p.user_heads[model + 1]):
            if _waits_for(p, b, p.user_stage[slot], stage):
                t.late[p.user_stage[slot]] = True


@inner
def mark_ahead(p: Prepared, b: Board, t: Trail, stage: int) -> None:
    """The tails of all that lead to a stage are to be computed again."""
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        t.soon[p.lead_stage[lead]] = True
    if b.lane[stage] >= 0 and b.before[stage] >= 0:
        t.soon[b.before[stage]] = True
    loader = waited(p, b, stage)
    if loader >= 0:
        t.soon[loader] = True


@inner
def settle_times(p: Prepared, b: Board, t: Trail, low: int, high: int) -> float:
    """Computes what is marked again: starts from index `low` of the order on, tails from `high` back. The last finish."""
    n = len(t.order)
    for index in range(low, n):
        stage = t.order[index]
        if t.late[stage]:
            t.late[stage] = False
            start = _start(p, b, t, stage)
            if start != b.start[stage]:
                b.start[stage] = start
                mark_behind(p, b, t, stage)
    for index in range(high, -1, -1):
        stage = t.order[index]
        if t.soon[stage]:
            t.soon[stage] = False
            tail = _tail(p, b, t, stage)
            if tail != t.tail[stage]:
                t.tail[stage] = tail
                mark_ahead(p, b, t, stage)
    last = 0.0
    for stage in range(n):
        last = max(last, b.start[stage] + b.length[stage])
    return last


@lean
def begin(p: Prepared, b: Board, t: Trail) -> float:
    """Brings the trail up to a full board. The last finish; infinite if its lanes go round in a circle."""
    if not sort(p, b, t):
        return np.inf
    t.off[:] = False
    t.late[:] = True
    t.soon[:] = True
    return settle_times(p, b, t, 0, len(t.order) - 1)


@inner
def _name_loader(p: Prepared, b: Board, t: Trail, model: int, node: int) -> bool:
    """Of the stages left that need the model there, the first loads it. False if none is left."""
    found = NONE
    for slot in range(p.user_heads[model], p.user_heads[model + 1]):
        user = p.user_stage[slot]
        place = b.place[user]
        if place < 0 or p.node[place] != node or not pays(p, b, user, place):
            continue
        if found < 0 or b.start[user] < b.start[found]:
            found = user
    if found < 0:
        return False
    b.loader[model, node] = found
    b.length[found] += p.load[model, b.place[found]]
    t.soon[found] = True
    mark_behind(p, b, t, found)
    for slot in range(p.user_heads[model], p.user_heads[model + 1]):
        if _waits_for(p, b, p.user_stage[slot], found):
            t.late[p.user_stage[slot]] = True
    return True


@inner
def take_off(p: Prepared, b: Board, t: Trail, stage: int) -> bool:
    """Takes a stage off the board and marks what changes. Whether the order has to be made anew."""
    mark_behind(p, b, t, stage)
    mark_ahead(p, b, t, stage)
    place, loads = b.place[stage], _loading(p, b, stage)
    lift(p, b, stage)
    t.off[stage] = True
    b.length[stage] = t.least[stage]
    t.late[stage] = True
    t.soon[stage] = True
    mark_behind(p, b, t, stage)
    return loads and _name_loader(p, b, t, p.model[stage], p.node[place])


@inner
def put_on(p: Prepared, b: Board, t: Trail, stage: int, place: int, lane: int, before: int) -> float:
    """Puts a stage on the board, and keeps all times exact. The last finish; infinite for a circle."""
    t.off[stage] = False
    b.length[stage] = p.seconds[stage, place]
    if pays(p, b, stage, place) and b.loader[p.model[stage], p.node[place]] < 0:
        b.loader[p.model[stage], p.node[place]] = stage
        b.length[stage] += p.load[p.model[stage], place]
    settle(p, b, stage, place)
    if lane >= 0:
        link(b, stage, lane, before)
    t.late[stage] = True
    t.soon[stage] = True
    mark_behind(p, b, t, stage)
    mark_ahead(p, b, t, stage)
    if _slip(p, b, t, stage):
        return settle_times(p, b, t, t.rank[stage], t.rank[stage])
    if not sort(p, b, t):
        return np.inf
    return settle_times(p, b, t, 0, len(t.order) - 1)


@inner
def _slip(p: Prepared, b: Board, t: Trail, stage: int) -> bool:
    """Moves a stage within the order behind all that lead to it. False if others would have to move too."""
    low, high = -1, len(t.order)
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        low = max(low, t.rank[p.lead_stage[lead]])
    for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
        high = min(high, t.rank[p.follow_stage[follow]])
    if b.lane[stage] >= 0:
        if b.before[stage] >= 0:
            low = max(low, t.rank[b.before[stage]])
        if b.after[stage] >= 0:
            high = min(high, t.rank[b.after[stage]])
    loader = waited(p, b, stage)
    if loader >= 0:
        low = max(low, t.rank[loader])
    if low >= high:
        return False
    now = t.rank[stage]
    if now < low:
        for index in range(now, low):
            t.order[index] = t.order[index + 1]
            t.rank[t.order[index]] = index
        t.order[low], t.rank[stage] = stage, low
    elif now > high:
        for index in range(now, high, -1):
            t.order[index] = t.order[index - 1]
            t.rank[t.order[index]] = index
        t.order[high], t.rank[stage] = stage, high
    return True
