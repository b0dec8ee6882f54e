"""From an order and wishes to a schedule: each stage in turn to where it ends first, in gaps too. Compiled.

The insertion of HEFT (Topcuoglu, Hariri, Wu 2002), with slots, models that have to be loaded, memory and groups.
"""

import numpy as np

from starloom.orchestrator.planner.compiled import inlined, inner, lean
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared
from starloom.orchestrator.planner.problem import Flags, Floats
from starloom.orchestrator.planner.standing import clear, crowding, crowds, fits, link, pays, settle

SLACK = 1e-9
"""Seconds by which rounding may put an input that is there off."""


@inlined
def gap(b: Board, started: Flags, lane: int, ready: float, length: float) -> tuple[float, int]:
    """The earliest start on the lane, and the stage behind which that is, or -1."""
    best, behind = np.inf, NONE
    stage, ends = b.last[lane], np.inf
    while True:
        begins = ready if stage < 0 else max(ready, b.start[stage] + b.length[stage])
        if begins + length <= ends:
            best, behind = begins, stage
        if stage < 0 or started[stage] or b.start[stage] + b.length[stage] <= ready:
            return best, behind
        ends = b.start[stage]
        stage = b.before[stage]


@inlined
def earliest(p: Prepared, b: Board, stage: int, place: int, there: float) -> tuple[float, float, int, int]:
    """Start, length, lane and the stage before it, for a stage whose inputs are `there` at that second."""
    length = p.seconds[stage, place]
    if length <= 0.0:
        return there, 0.0, NONE, NONE
    ready = max(there, p.available[place])
    if pays(p, b, stage, place):
        model = p.model[stage]
        loader = b.loader[model, p.node[place]]
        if loader < 0:
            length += p.load[model, place]
        else:
            ready = max(ready, b.start[loader] + p.load[model, b.place[loader]])
    start, lane, before = np.inf, NONE, NONE
    empty = False
    for candidate in range(p.lanes[place], p.upto[place]):
        if b.first[candidate] < 0:
            if empty:
                continue
            empty = True
        begins, behind = gap(b, p.started, candidate, ready, length)
        if begins < start:
            start, lane, before = begins, candidate, behind
            if start <= ready:
                break
    return start, length, lane, before


@inner
def put(p: Prepared, b: Board, stage: int, place: int, there: float) -> None:
    """Puts the stage where it starts first at a place that it fits."""
    start, length, lane, before = earliest(p, b, stage, place, there)
    if pays(p, b, stage, place) and b.loader[p.model[stage], p.node[place]] < 0:
        b.loader[p.model[stage], p.node[place]] = stage
    settle(p, b, stage, place)
    b.start[stage], b.length[stage] = start, length
    if lane >= 0:
        link(b, stage, lane, before)


@inner
def inputs_at(p: Prepared, b: Board, stage: int, there: Floats, paid: Floats) -> None:
    """For each node the second at which the stage's inputs are there, and what moving them costs beside."""
    there[:] = p.release[stage]
    paid[:] = 0.0
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        up, size = p.lead_stage[lead], p.lead_bytes[lead]
        source, ends = p.node[b.place[up]], b.start[up] + b.length[up]
        for node in range(len(there)):
            there[node] = max(there[node], ends + p.latency[source, node] + size * p.per_byte[source, node])
            paid[node] += size * p.byte_penalty[source, node]


@inner
def seat_started(p: Prepared, b: Board) -> int:
    """Puts what runs already first, at 0. Returns a stage that has no place, or -1."""
    for stage in p.order:
        if not p.started[stage]:
            continue
        found = NONE
        for place in range(len(p.node)):
            if fits(p, b, stage, place) and (p.seconds[stage, place] <= 0.0 or _empty_lane(p, b, place) >= 0):
                found = place
                break
        if found < 0:
            return stage
        lane = _empty_lane(p, b, found)
        settle(p, b, stage, found)
        b.start[stage], b.length[stage] = 0.0, p.seconds[stage, found]
        if b.length[stage] > 0.0:
            link(b, stage, lane, NONE)
    return NONE


@inner
def _empty_lane(p: Prepared, b: Board, place: int) -> int:
    for lane in range(p.lanes[place], p.upto[place]):
        if b.first[lane] < 0:
            return lane
    return NONE


@inner
def choose(
    p: Prepared, b: Board, stage: int, among: Flags, look: Floats, price: float, late: bool, there: Floats, paid: Floats
) -> int:
    """The place with the least finish, `look` and `price` x penalty; the last of equals if `late`. -1 for none."""
    best, found = np.inf, NONE
    for place in range(len(p.node)):
        if not among[place] or not fits(p, b, stage, place):
            continue
        node = p.node[place]
        rest = look[stage, place] + price * (p.penalty[stage, place] + paid[node] + crowds(p, b, stage, node))
        ready = max(there[node], p.available[place] if p.seconds[stage, place] > 0.0 else 0.0)
        if ready + p.seconds[stage, place] + rest > best:
            continue
        start, length, _, _ = earliest(p, b, stage, place, there[node])
        value = start + length + rest
        if value < best or (late and value == best and found >= 0):
            best, found = value, place
    return found


@lean
def decode(
    p: Prepared, b: Board, order: Numbers, wished: Numbers, among: Flags, look: Floats, price: float, late: bool
) -> int:
    """Sets all stages out, in this order, upstreams first. Returns -1, or the stage at a dead end.

    `wished` [n]: the place to take if it fits, or -1. `among` [m]: the places to take otherwise, unless none fits.
    `look` [n, m]: seconds to add to a finish when places are compared; `price`: what a penalty's second counts.
    """
    clear(p, b)
    there, paid = b.there, b.paid
    stuck = seat_started(p, b)
    if stuck >= 0:
        return stuck
    for stage in order:
        inputs_at(p, b, stage, there, paid)
        if p.started[stage]:
            if there[p.node[b.place[stage]]] - p.release[stage] > SLACK and late_inputs(p, b, stage):
                return stage
            continue
        place = wished[stage]
        if place < 0 or not fits(p, b, stage, place) or there[p.node[place]] == np.inf:
            place = choose(p, b, stage, among, look, price, late, there, paid)
        if place < 0:
            place = choose(p, b, stage, p.everywhere, look, price, late, there, paid)
        if place < 0:
            return stage
        put(p, b, stage, place, there[p.node[place]])
    return NONE


@inner
def late_inputs(p: Prepared, b: Board, stage: int) -> bool:
    """Whether an input of a stage that runs would come after its start."""
    node = p.node[b.place[stage]]
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        up, size = p.lead_stage[lead], p.lead_bytes[lead]
        source = p.node[b.place[up]]
        if b.start[up] + b.length[up] + p.latency[source, node] + size * p.per_byte[source, node] > SLACK:
            return True
    return False


@lean
def value_of(p: Prepared, b: Board) -> float:
    """The objective of a full board, in seconds: the last finish and all penalties."""
    last, total = 0.0, 0.0
    for stage in range(len(b.place)):
        place = b.place[stage]
        node = p.node[place]
        last = max(last, b.start[stage] + b.length[stage])
        total += p.penalty[stage, place]
        for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
            source = p.node[b.place[p.lead_stage[lead]]]
            total += p.lead_bytes[lead] * p.byte_penalty[source, node]
    return last + total + crowding(p, b)
