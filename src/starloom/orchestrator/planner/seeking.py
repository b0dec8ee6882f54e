"""The best place for a stage on a board that has all others: for each lane the positions worth a look. Compiled.

Where a stage goes is judged by its longest path through the schedule without it (after Mastrolilli and Gambardella
2000, whose neighbourhood is for job shops), so that all places and positions are seen for less than one schedule costs.
"""

from starloom.orchestrator.planner.compiled import inlined, inner, lean
from starloom.orchestrator.planner.prepared import NONE, Board, Prepared
from starloom.orchestrator.planner.standing import crowding, crowds, fits, pays
from starloom.orchestrator.planner.trail import Trail, chance

SLIGHT = 1e-3
"""What a second on a path that is not the longest counts."""

NOWHERE = -3
"""A stage before which none stands, nor first: nothing is forbidden."""


@lean
def penalties(p: Prepared, b: Board) -> float:
    """All penalties of a full board, in seconds."""
    total = 0.0
    for stage in range(len(b.place)):
        place = b.place[stage]
        total += p.penalty[stage, place]
        node = p.node[place]
        for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
            total += p.lead_bytes[lead] * p.byte_penalty[p.node[b.place[p.lead_stage[lead]]], node]
    return total + crowding(p, b)


@inner
def around(p: Prepared, b: Board, t: Trail, stage: int) -> None:
    """For each node: when the stage's inputs are there, and the longest rest behind its output."""
    k = len(t.there)
    t.there[:] = p.release[stage]
    t.rest[:] = 0.0
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        up, size = p.lead_stage[lead], p.lead_bytes[lead]
        ends = b.start[up] + b.length[up]
        if t.off[up]:
            for node in range(k):
                t.there[node] = max(t.there[node], ends)
        else:
            source = p.node[b.place[up]]
            for node in range(k):
                moved = p.latency[source, node] + size * p.per_byte[source, node]
                t.there[node] = max(t.there[node], ends + moved)
    for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
        down, size = p.follow_stage[follow], p.follow_bytes[follow]
        tail = t.tail[down]
        if t.off[down]:
            for node in range(k):
                t.rest[node] = max(t.rest[node], tail)
        else:
            sink = p.node[b.place[down]]
            for node in range(k):
                t.rest[node] = max(t.rest[node], tail + p.latency[node, sink] + size * p.per_byte[node, sink])


@inner
def _price(p: Prepared, b: Board, t: Trail, stage: int, place: int) -> float:
    node = p.node[place]
    price = p.penalty[stage, place] + crowds(p, b, stage, node)
    for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
        up = p.lead_stage[lead]
        if not t.off[up]:
            price += p.lead_bytes[lead] * p.byte_penalty[p.node[b.place[up]], node]
    for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
        down = p.follow_stage[follow]
        if not t.off[down]:
            price += p.follow_bytes[follow] * p.byte_penalty[node, p.node[b.place[down]]]
    return price


@inlined
def _score(path: float, span: float) -> float:
    return max(path, span) + SLIGHT * path


@inlined
def _on_lane(
    p: Prepared,
    b: Board,
    t: Trail,
    first: int,
    ready: float,
    length: float,
    rest: float,
    span: float,
    dear: float,
    not_behind: int,
) -> tuple[float, int]:
    """The best score below `dear` on a lane, and the stage before it, or -1; `first`: the first stage there."""
    best, behind = dear, NONE
    before, after = NONE, first
    while after >= 0 and (p.started[after] or b.start[after] + b.length[after] <= ready):
        before, after = after, b.after[after]
    while True:
        start = ready if before < 0 else max(ready, b.start[before] + b.length[before])
        if _score(start + length + rest, span) >= best:
            return best, behind
        score = _score(start + length + (rest if after < 0 else max(rest, t.tail[after])), span)
        if score < best and before != not_behind:
            best, behind = score, before
        # Behind what has the shorter rest it would start later for nothing, and might close a circle.
        if after < 0 or t.tail[after] <= rest:
            return best, behind
        before, after = after, b.after[after]


@inlined
def _when(p: Prepared, b: Board, stage: int, place: int, there: float) -> tuple[float, float]:
    """When the stage could start at the place if it had a lane, and how long it would take there, with loading."""
    node, length = p.node[place], p.seconds[stage, place]
    ready = max(there, p.available[place] if length > 0.0 else 0.0)
    if pays(p, b, stage, place):
        loader = b.loader[p.model[stage], node]
        if loader >= 0:
            return max(ready, b.start[loader] + p.load[p.model[stage], b.place[loader]]), length
        length += p.load[p.model[stage], place]
    return ready, length


@inner
def seek(
    p: Prepared,
    b: Board,
    t: Trail,
    stage: int,
    span: float,
    priced: bool,
    blind: float,
    only: int,
    back: bool,
    limit: float,
) -> tuple[int, int, int]:
    """The best place for a stage, its lane, and the stage before it there; place -1 for none.

    `span`: the last finish without the stage. `blind`: the share of places overlooked by chance. `only`: the node to
    look at, or -1. `back`: whether it may return to the lane and the stage before it that the trail has it from.
    `limit`: of the longest path through the stage with what it costs there, in seconds; what exceeds it is no place.
    """
    around(p, b, t, stage)
    best, found, on, behind = limit * (1.0 + SLIGHT), NONE, NONE, NONE
    for place in range(len(p.node)):
        if not p.allowed[stage, place] or (only >= 0 and p.node[place] != only):
            continue
        ready, length = _when(p, b, stage, place, t.there[p.node[place]])
        rest = t.rest[p.node[place]]
        if _score(ready + length + rest, span) >= best or not fits(p, b, stage, place):
            continue
        price = _price(p, b, t, stage, place) if priced else 0.0
        if _score(ready + length + rest, span) + price >= best or (blind > 0.0 and chance(t.draw) < blind):
            continue
        if length <= 0.0:
            best, found, on, behind = _score(ready + rest, span) + price, place, NONE, NONE
            continue
        empty = False
        for lane in range(p.lanes[place], p.upto[place]):
            first = b.first[lane]
            if first < 0:
                if empty:
                    continue
                empty = True
            again = not back and lane == t.was[0] and place == t.was[2]
            not_behind = t.was[1] if again else NOWHERE
            score, before = _on_lane(p, b, t, first, ready, length, rest, span, best - price, not_behind)
            if score + price < best:
                best, found, on, behind = score + price, place, lane, before
    return found, on, behind
