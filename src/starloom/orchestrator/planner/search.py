"""Local search on a full board: take a few stages that hang together off, mostly critical ones, and put each back best.

What comes out is taken by annealing, in cycles that grow. How bad it may be is drawn beforehand, so that most of what
is not taken is given up early. Compiled.
"""

from typing import NamedTuple

import numpy as np

from starloom.orchestrator.planner.compiled import inlined, inner, lean
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared, board, copy
from starloom.orchestrator.planner.problem import Floats
from starloom.orchestrator.planner.seeking import around, penalties, seek
from starloom.orchestrator.planner.trail import Trail, begin, chance, put_on, settle_times, sort, take_off, trail

CYCLE_FIRST = 256
"""Iterations of the first cycle of annealing; each has twice as many as the one before."""

DRAWN = 4
"""Stages drawn to find one that is near in time."""
NEAR = 0.4
"""How often to go on with such a one, beside four ways to go on with a neighbour."""


class Ways(NamedTuple):
    """How the search goes about it: shares of iterations, but for six. Chosen by trial.

    `single`: take one stage off; otherwise 2 up to 1 + `more`. `critical`: begin with a critical stage. `scattered`: go
    on with critical ones; `along`: with a path of dependencies; `cluster`: with 2 up to `most` that hang together on one
    node, and put all on another; otherwise with neighbours. `one_node`: put all on one node. `drawn`: nodes drawn, of
    which that is the most promising. `blind`: the share of places that are overlooked. `hot`, `cold`: a cycle's first
    and last temperature, as shares of the objective.
    """

    single: float = 0.2
    more: float = 5.0
    scattered: float = 0.2
    critical: float = 0.7
    hot: float = 0.01
    cold: float = 0.0005
    blind: float = 0.03
    one_node: float = 0.2
    along: float = 0.25
    cluster: float = 0.2
    most: float = 12.0
    drawn: float = 4.0


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
        _over(source.busy, target.busy)
        _over(source.top, target.top)
        _over(source.group_node, target.group_node)
        _over(source.group_count, target.group_count)
        _over_table(source.taken, target.taken)
        _over(source.drawn, target.drawn)


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
    """One of the stages beside this one: by a dependency, on the lane, or in time."""
    leads = p.lead_heads[stage + 1] - p.lead_heads[stage]
    follows = p.follow_heads[stage + 1] - p.follow_heads[stage]
    which = int(chance(t.draw) * (4.0 + NEAR))
    if which == 0 and leads > 0:
        return p.lead_stage[p.lead_heads[stage] + int(chance(t.draw) * leads)]
    if which == 1 and follows > 0:
        return p.follow_stage[p.follow_heads[stage] + int(chance(t.draw) * follows)]
    if which == 2 and b.lane[stage] >= 0 and b.before[stage] >= 0:
        return b.before[stage]
    if which == 3 and b.lane[stage] >= 0 and b.after[stage] >= 0:
        return b.after[stage]
    nearest, least = stage, np.inf
    for _ in range(DRAWN):
        other = int(chance(t.draw) * len(t.tail))
        far = abs(b.start[other] - b.start[stage])
        if other != stage and far < least:
            nearest, least = other, far
    return nearest


@inner
def _further(p: Prepared, t: Trail, up: int, down: int) -> tuple[int, int]:
    """The two ends of a path of dependencies, one stage further each."""
    leads = p.lead_heads[up + 1] - p.lead_heads[up]
    if leads > 0:
        up = p.lead_stage[p.lead_heads[up] + int(chance(t.draw) * leads)]
    follows = p.follow_heads[down + 1] - p.follow_heads[down]
    if follows > 0:
        down = p.follow_stage[p.follow_heads[down] + int(chance(t.draw) * follows)]
    return up, down


@inner
def _attached(p: Prepared, b: Board, t: Trail, stage: int) -> int:
    """A stage on the same node that this one depends on or that depends on it; this one if none of some drawn is."""
    lead, follow = p.lead_heads[stage], p.follow_heads[stage]
    leads = p.lead_heads[stage + 1] - lead
    both = leads + p.follow_heads[stage + 1] - follow
    for _ in range(min(DRAWN, both)):
        which = int(chance(t.draw) * both)
        other = p.lead_stage[lead + which] if which < leads else p.follow_stage[follow + which - leads]
        if not t.off[other] and p.node[b.place[other]] == p.node[b.place[stage]]:
            return other
    return stage


@inner
def _ruin(p: Prepared, b: Board, t: Trail, span: float, ways: Ways) -> tuple[int, bool]:
    """Picks the stages to take off; how many, and whether they are a cluster, which stays together."""
    n = len(t.tail)
    wanted = 1
    if chance(t.draw) >= ways.single:
        wanted = 2 + int(chance(t.draw) * ways.more)
    critical = _critical(b, t, span)
    how = chance(t.draw)
    first = int(chance(t.draw) * n)
    if critical > 0 and chance(t.draw) < ways.critical:
        first = t.critical[int(chance(t.draw) * critical)]
    count = _pick(p, t, first, 0)
    if count == 0:
        return 0, False
    apart = ways.scattered + ways.along
    whole = apart <= how < apart + ways.cluster
    if whole:
        wanted = 2 + int(chance(t.draw) * (ways.most - 1.0))
    tries, up, down = 0, first, first
    while count < wanted and tries < 4 * wanted:
        tries += 1
        if how < ways.scattered and critical > 0:
            count = _pick(p, t, t.critical[int(chance(t.draw) * critical)], count)
        elif how < apart:
            up, down = _further(p, t, up, down)
            count = _pick(p, t, up, count)
            if count < wanted:
                count = _pick(p, t, down, count)
        elif whole:
            count = _pick(p, t, _attached(p, b, t, t.picked[int(chance(t.draw) * count)]), count)
        else:
            count = _pick(p, t, _neighbour(p, b, t, t.picked[int(chance(t.draw) * count)]), count)
    for index in range(count):
        t.off[t.picked[index]] = False
    return count, whole


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
def _suited(p: Prepared, b: Board, t: Trail, count: int, drawn: int) -> int:
    """Of some nodes drawn the one with the shortest longest path through what is off, if all of it stood there alone.

    -1 if none of them may have all of it.
    """
    paths, longer = b.there, b.paid
    paths[:] = 0.0
    longer[:] = 0.0
    for index in range(count):
        stage = t.picked[index]
        around(p, b, t, stage)
        t.runs[:] = np.inf
        for place in range(len(p.node)):
            if p.allowed[stage, place]:
                t.runs[p.node[place]] = min(t.runs[p.node[place]], p.seconds[stage, place])
        # What is off still counts its least seconds in the starts and tails of others.
        for node in range(len(paths)):
            longer[node] += t.runs[node] - t.least[stage]
            paths[node] = max(paths[node], t.there[node] + t.least[stage] + t.rest[node])
    best, found = np.inf, NONE
    for _ in range(drawn):
        node = int(chance(t.draw) * len(paths))
        if paths[node] + longer[node] < best:
            best, found = paths[node] + longer[node], node
    return found


@inner
def _rebuild(p: Prepared, b: Board, t: Trail, count: int, whole: bool, priced: bool, limit: float, ways: Ways) -> float:
    """Takes the picked stages off and puts them back. The last finish; infinite if one found no place within `limit`.

    What is off only makes paths shorter: once they are longer than the limit, putting the rest back changes nothing.
    """
    t.was[0], t.was[1], t.was[2] = b.lane[t.picked[0]], b.before[t.picked[0]], b.place[t.picked[0]]
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
    if span > limit:
        return np.inf
    only = NONE
    if count > 1 and (whole or chance(t.draw) < ways.one_node):
        only = _suited(p, b, t, count, int(ways.drawn))
    for index in range(count):
        place, lane, before = seek(p, b, t, t.picked[index], span, priced, ways.blind, only, count > 1, limit)
        if place < 0 and only >= 0:
            place, lane, before = seek(p, b, t, t.picked[index], span, priced, 0.0, NONE, True, limit)
        if place < 0:
            return np.inf
        span = put_on(p, b, t, t.picked[index], place, lane, before)
        if span > limit:
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
    ways: Ways,
) -> None:
    """So many iterations. `b` with `t` is where the search stands, `best` what it found; `saved`, `kept`: scratch."""
    for _ in range(iterations):
        if counts[STEP] >= counts[CYCLE]:
            counts[STEP] = 0
            counts[CYCLE] *= 2
        heat = ways.hot * (ways.cold / ways.hot) ** (counts[STEP] / counts[CYCLE]) * values[BEST]
        counts[STEP] += 1
        worth = values[CURRENT] - heat * np.log(1.0 - chance(t.draw))
        count, whole = _ruin(p, b, t, values[SPAN], ways)
        if count == 0:
            continue
        _copy(b, saved, deep)
        _over(t.tail, kept.tail)
        _over(t.order, kept.order)
        _over(t.rank, kept.rank)
        span = _rebuild(p, b, t, count, whole, priced, worth, ways)
        value = span + (penalties(p, b) if priced and span < np.inf else 0.0)
        if value < np.inf and value <= worth:
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


WAYS = Ways()


class Search:
    """A search that goes on: from a full board, in steps of some iterations."""

    def __init__(self, prepared: Prepared, first: Board, seed: int) -> None:
        self.prepared = prepared
        self.board, self.saved, self.best = board(prepared), board(prepared), board(prepared)
        self.trail, self.kept = trail(prepared, seed), trail(prepared, seed)
        self.priced = bool(
            prepared.penalty.any() or prepared.byte_penalty.any() or np.isfinite(prepared.crowding).any()
        )
        groups = max(prepared.together.max(initial=NONE), prepared.apart.max(initial=NONE)) >= 0
        counted = np.isfinite(prepared.memory).any() or np.isfinite(prepared.store).any()
        self.deep = bool(len(prepared.weight) or counted or groups)
        copy(first, self.board)
        span = begin(prepared, self.board, self.trail)
        value = span + (penalties(prepared, self.board) if self.priced else 0.0)
        copy(self.board, self.best)
        self.values = np.array([value, value, span, span])
        self.counts = np.array([0, CYCLE_FIRST], dtype=np.int64)

    def step(self, iterations: int, ways: Ways = WAYS) -> None:
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
            ways,
        )

    @property
    def value(self) -> float:
        """The objective of the best board, in seconds."""
        return float(self.values[BEST])
