"""Local search on a full board: take a few stages that hang together off, mostly critical ones, and put each back best.

Where a stage goes is judged by its longest path through the schedule without it (after Mastrolilli and Gambardella
2000, whose neighbourhood is for job shops), so that all places and positions are seen for less than one schedule costs.
What comes out is taken by annealing. Compiled.
"""

import numpy as np

from starloom.orchestrator.planner.compiled import inlined, inner, lean
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared, board, copy
from starloom.orchestrator.planner.problem import Floats
from starloom.orchestrator.planner.standing import fits, pays
from starloom.orchestrator.planner.trail import Trail, begin, chance, put_on, settle_times, sort, take_off, trail

CYCLE_FIRST = 256
SLIGHT = 1e-3
"""What a second on a path that is not the longest counts."""


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
    return total


@inner
def _around(p: Prepared, b: Board, t: Trail, stage: int) -> None:
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
    price, node = p.penalty[stage, place], p.node[place]
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
def _score(path: float, span: float, price: float) -> float:
    return max(path, span) + SLIGHT * path + price


@inner
def seek(
    p: Prepared, b: Board, t: Trail, stage: int, span: float, priced: bool, blind: float, lane_was: int, was: int
) -> tuple[int, int, int]:
    """The best place for a stage, its lane, and the stage before it there; place -1 for none.

    `span`: the last finish without the stage. `blind`: the share of places overlooked by chance. `lane_was`, `was`:
    where it may not return to.
    """
    _around(p, b, t, stage)
    best, found, on, behind = np.inf, NONE, NONE, NONE
    for place in range(len(p.node)):
        if not p.allowed[stage, place]:
            continue
        node, length = p.node[place], p.seconds[stage, place]
        ready, rest = max(t.there[node], p.available[place] if length > 0.0 else 0.0), t.rest[node]
        if _score(ready + length + rest, span, 0.0) >= best or not fits(p, b, stage, place):
            continue
        price = _price(p, b, t, stage, place) if priced else 0.0
        if pays(p, b, stage, place):
            loader = b.loader[p.model[stage], node]
            if loader < 0:
                length += p.load[p.model[stage], place]
            else:
                ready = max(ready, b.start[loader] + p.load[p.model[stage], b.place[loader]])
        if _score(ready + length + rest, span, price) >= best:
            continue
        if blind > 0.0 and chance(t.draw) < blind:
            continue
        if length <= 0.0:
            best, found, on, behind = _score(ready + rest, span, price), place, NONE, NONE
            continue
        empty = False
        for lane in range(p.lanes[place], p.lanes[place + 1]):
            before, after = NONE, b.first[lane]
            if after < 0:
                if empty:
                    continue
                empty = True
            while after >= 0 and (p.started[after] or b.start[after] + b.length[after] <= ready):
                before, after = after, b.after[after]
            while True:
                start = ready if before < 0 else max(ready, b.start[before] + b.length[before])
                if _score(start + length + rest, span, price) >= best:
                    break
                path = start + length + (rest if after < 0 else max(rest, t.tail[after]))
                score = _score(path, span, price)
                if score < best and not (lane == lane_was and before == was):
                    best, found, on, behind = score, place, lane, before
                # Behind what has the shorter rest it would start later for nothing, and might close a circle.
                if after < 0 or t.tail[after] <= rest:
                    break
                before, after = after, b.after[after]
    return found, on, behind


@inlined
def _over(source: Floats | Numbers, target: Floats | Numbers) -> None:
    for index in range(len(source)):
        target[index] = source[index]


@inlined
def _over_table(source: Numbers, target: Numbers) -> None:
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@inner
def _copy(source: Board, target: Board, deep: bool) -> None:
    _over(source.place, target.place)
    _over(source.lane, target.lane)
    _over(source.before, target.before)
    _over(source.after, target.after)
    _over(source.start, target.start)
    _over(source.length, target.length)
    _over(source.first, target.first)
    _over(source.last, target.last)
    if deep:
        _over_table(source.loader, target.loader)
        _over_table(source.users, target.users)
        _over(source.held, target.held)
        _over(source.top, target.top)
        _over(source.group_node, target.group_node)
        _over(source.group_count, target.group_count)
        _over_table(source.taken, target.taken)


@inner
def _critical(b: Board, t: Trail, span: float) -> int:
    """Lists the stages on the longest paths; how many."""
    count = 0
    for stage in range(len(t.tail)):
        if b.start[stage] + t.tail[stage] >= span * (1 - 1e-9):
            t.critical[count] = stage
            count += 1
    return count


@inlined
def _pick(p: Prepared, t: Trail, stage: int, count: int) -> int:
    """Adds a stage, and those that share its group, to the picked ones."""
    if p.started[stage] or t.off[stage]:
        return count
    t.off[stage] = True
    t.picked[count] = stage
    count += 1
    group = p.together[stage]
    if group >= 0:
        for other in range(len(p.together)):
            if p.together[other] == group and not t.off[other] and not p.started[other]:
                t.off[other] = True
                t.picked[count] = other
                count += 1
    return count


@inner
def _neighbour(p: Prepared, b: Board, t: Trail, stage: int) -> int:
    """One of the stages beside this one, by a dependency or on the lane."""
    leads = p.lead_heads[stage + 1] - p.lead_heads[stage]
    follows = p.follow_heads[stage + 1] - p.follow_heads[stage]
    which = int(chance(t.draw) * 4)
    if which == 0 and leads > 0:
        return p.lead_stage[p.lead_heads[stage] + int(chance(t.draw) * leads)]
    if which == 1 and follows > 0:
        return p.follow_stage[p.follow_heads[stage] + int(chance(t.draw) * follows)]
    if which == 2 and b.lane[stage] >= 0 and b.before[stage] >= 0:
        return b.before[stage]
    if which == 3 and b.lane[stage] >= 0 and b.after[stage] >= 0:
        return b.after[stage]
    return stage


@inner
def _ruin(p: Prepared, b: Board, t: Trail, span: float, knobs: Floats) -> int:
    """Picks the stages to take off; how many."""
    n = len(t.tail)
    wanted = 1
    if chance(t.draw) >= knobs[0]:
        wanted = 2 + int(chance(t.draw) * knobs[1])
    critical = _critical(b, t, span)
    scatter = critical > 0 and chance(t.draw) < knobs[2]
    first = int(chance(t.draw) * n)
    if critical > 0 and chance(t.draw) < knobs[3]:
        first = t.critical[int(chance(t.draw) * critical)]
    count = _pick(p, t, first, 0)
    if count == 0:
        return 0
    tries = 0
    while count < wanted and tries < 4 * wanted:
        tries += 1
        if scatter:
            count = _pick(p, t, t.critical[int(chance(t.draw) * critical)], count)
        else:
            count = _pick(p, t, _neighbour(p, b, t, t.picked[int(chance(t.draw) * count)]), count)
    for index in range(count):
        t.off[t.picked[index]] = False
    return count


@inner
def _arrange(t: Trail, count: int, how: float) -> None:
    """The picked stages in the order to put them back: upstreams first, or last."""
    for index in range(1, count):
        stage, slot = t.picked[index], index
        while slot > 0 and (t.rank[t.picked[slot - 1]] > t.rank[stage]) == (how < 0.6):
            t.picked[slot] = t.picked[slot - 1]
            slot -= 1
        t.picked[slot] = stage


@inner
def _rebuild(p: Prepared, b: Board, t: Trail, count: int, span: float, priced: bool, blind: float) -> float:
    """Takes the picked stages off and puts them back. The last finish; infinite if one found no place."""
    lane_was, was = NONE, NONE
    if count == 1:
        lane_was, was = b.lane[t.picked[0]], b.before[t.picked[0]]
    _arrange(t, count, chance(t.draw))
    low, high, anew = len(t.order), 0, False
    for index in range(count):
        stage = t.picked[index]
        anew |= take_off(p, b, t, stage)
        low, high = min(low, t.rank[stage]), max(high, t.rank[stage])
    if anew:
        if not sort(p, b, t):
            return np.inf
        low, high = 0, len(t.order) - 1
    span = settle_times(p, b, t, low, high)
    for index in range(count):
        place, lane, before = seek(p, b, t, t.picked[index], span, priced, blind, lane_was, was)
        if place < 0:
            return np.inf
        span = put_on(p, b, t, t.picked[index], place, lane, before)
        if span == np.inf:
            return np.inf
    return span


CURRENT, BEST, SPAN, BEST_SPAN = 0, 1, 2, 3
"""In `values`: of the board, of the best one, and their last finishes."""
STEP, CYCLE = 0, 1
"""In `counts`: iterations of this cycle of annealing, and its length."""


@lean
def improve(
    p: Prepared,
    b: Board,
    saved: Board,
    best: Board,
    t: Trail,
    kept: Trail,
    values: Floats,
    counts: Numbers,
    iterations: int,
    priced: bool,
    deep: bool,
    knobs: Floats,
) -> None:
    """So many iterations. `b` with `t` is where the search stands, `best` what it found; `saved`, `kept`: scratch."""
    for _ in range(iterations):
        if counts[STEP] >= counts[CYCLE]:
            counts[STEP] = 0
            counts[CYCLE] *= 2
        heat = knobs[4] * (knobs[5] / knobs[4]) ** (counts[STEP] / counts[CYCLE]) * values[BEST]
        counts[STEP] += 1
        count = _ruin(p, b, t, values[SPAN], knobs)
        if count == 0:
            continue
        _copy(b, saved, deep)
        _over(t.tail, kept.tail)
        _over(t.order, kept.order)
        _over(t.rank, kept.rank)
        span = _rebuild(p, b, t, count, values[SPAN], priced, knobs[6])
        value = span + (penalties(p, b) if priced and span < np.inf else 0.0)
        if value < np.inf and value <= values[CURRENT] - heat * np.log(1.0 - chance(t.draw)):
            values[CURRENT], values[SPAN] = value, span
            if value < values[BEST] * (1 - 1e-12):
                values[BEST], values[BEST_SPAN] = value, span
                _copy(b, best, deep)
        else:
            _copy(saved, b, deep)
            _over(kept.tail, t.tail)
            _over(kept.order, t.order)
            _over(kept.rank, t.rank)
            t.off[:] = False
            t.late[:] = False
            t.soon[:] = False


KNOBS = np.array([0.35, 5.0, 0.2, 0.7, 0.01, 0.0005, 0.03])


class Search:
    """A search that goes on: from a full board, in steps of some iterations."""

    def __init__(self, prepared: Prepared, first: Board, seed: int) -> None:
        self.prepared = prepared
        self.board, self.saved, self.best = first, board(prepared), board(prepared)
        self.trail, self.kept = trail(prepared, seed), trail(prepared, seed)
        self.priced = bool(prepared.penalty.any() or prepared.byte_penalty.any())
        groups = max(prepared.together.max(initial=NONE), prepared.apart.max(initial=NONE)) >= 0
        self.deep = bool(len(prepared.weight) or np.isfinite(prepared.memory).any() or groups)
        span = begin(prepared, first, self.trail)
        value = span + (penalties(prepared, first) if self.priced else 0.0)
        copy(first, self.best)
        self.values = np.array([value, value, span, span])
        self.counts = np.array([0, CYCLE_FIRST], dtype=np.int64)

    def step(self, iterations: int, knobs: Floats = KNOBS) -> None:
        """So many iterations more."""
        improve(
            self.prepared,
            self.board,
            self.saved,
            self.best,
            self.trail,
            self.kept,
            self.values,
            self.counts,
            iterations,
            self.priced,
            self.deep,
            knobs,
        )

    @property
    def movable(self) -> bool:
        """Whether there is anything to improve."""
        return bool(np.isfinite(self.values[BEST]) and not self.prepared.started.all())

    @property
    def value(self) -> float:
        """The objective of the best board, in seconds."""
        return float(self.values[BEST])
