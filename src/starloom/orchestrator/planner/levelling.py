"""Stages moved until what is busiest is as little so as can be found: what a period needs, without setting stages out. Compiled.

Threshold accepting (Dueck, Scheuer 1990) on a sum of powers of all that is busy, in which the busiest counts most.
"""

from typing import NamedTuple

import numpy as np

from starloom.orchestrator.planner.compiled import compiled, inlined, inner
from starloom.orchestrator.planner.prepared import Numbers, Prepared
from starloom.orchestrator.planner.problem import Floats, Indices, Problem
from starloom.orchestrator.planner.steady import Pace, rates, room, work
from starloom.orchestrator.planner.uplinks import channels, passers

MOVES = 150_000
"""Moves that are tried; a hundredth of a second or so for each ten thousand."""
POWER = 6
THRESHOLD = 0.5
"""By which share the sum may grow with a move, at first; at the end by nothing. Chosen by trial, of 0.03 to 3."""
NEAR = 0.5
"""How often a stage moves to the node of one that it sends to or reads from."""


class Held(NamedTuple):
    """A problem as sums need it. `seconds` [n, m]: of one round, infinite where a stage may not stand. `share` [n, m]: of the node's memory.

    `edge_*`: dependencies by either end, those of stage i from `heads[i]` to `heads[i + 1]`; `size` times `per_byte` is what one takes.
    `group` [n]: stages that share a node, -1 for none. `shares` [m]: whose slots those of a place are. `ways`: the channels of
    up-links that what goes from node a to node b passes, from `pairs[a * k + b]` on, and what a byte takes of each, `way_byte`.
    """

    seconds: Floats
    share: Floats
    node: Numbers
    slots: Floats
    shares: Numbers
    alone: Floats
    heads: Numbers
    other: Numbers
    size: Floats
    sends: Numbers
    per_byte: Floats
    group: Numbers
    pairs: Numbers
    ways: Numbers
    way_byte: Floats


class Sums(NamedTuple):
    """What is busy, for how many seconds of a round: `places` [m], `links` [k, k], `memory` [k], `stages` [n], `uplinks` [c].

    `total` [1]: of powers.
    """

    places: Floats
    links: Floats
    memory: Floats
    stages: Floats
    uplinks: Floats
    total: Floats


def levelled(problem: Problem, prepared: Prepared, pace: Pace, place: Indices, cap: float, seed: int = 0) -> Indices:
    """Places [n] at which nothing is busier than `cap` seconds a round, or the least busy bottleneck that was found; from places that are allowed.

    Groups that share a node do so; those apart, batteries and what a node holds at one time are not looked at. The same for the
    same arguments.
    """
    unit = work(problem, place, pace).period
    if unit <= cap or not len(place):
        return place
    arrays, n = problem.arrays, len(place)
    seconds = np.where(prepared.allowed, arrays.seconds * pace.rate[:, None], np.inf)
    left = room(problem, place)[arrays.node]
    with np.errstate(divide="ignore", invalid="ignore"):
        needs = arrays.working_bytes[:, arrays.variant]
        share = np.where(needs > 0, needs / left[None, :], 0.0)
    ends = np.concatenate([arrays.upstream, arrays.downstream])
    by_end = np.argsort(ends, kind="stable")
    size = arrays.size_bytes * rates(problem, pace)
    held = Held(
        seconds / unit,
        share,
        arrays.node.astype(np.int64),
        arrays.slots.astype(np.float64),
        arrays.shares.astype(np.int64),
        pace.alone.astype(np.float64),
        np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=n))]).astype(np.int64),
        np.concatenate([arrays.downstream, arrays.upstream])[by_end].astype(np.int64),
        np.concatenate([size, size])[by_end],
        (by_end < len(size)).astype(np.int64),
        arrays.seconds_per_byte / unit,
        prepared.together,
        *_passed(problem, unit),
    )
    k, c = len(problem.nodes), len(channels(problem).rate)
    sums = Sums(np.zeros(len(arrays.node)), np.zeros((k, k)), np.zeros(k), np.zeros(n), np.zeros(c), np.zeros(1))
    movers = np.flatnonzero((prepared.allowed.sum(axis=1) > 1) & ~prepared.started).astype(np.int64)
    if not len(movers):
        return place
    now = place.astype(np.int64)
    draws = np.random.default_rng(seed).random((MOVES, 3))
    best = _level(held, sums, now, movers, draws, cap / unit, THRESHOLD)
    return best.astype(np.int32)


def _passed(problem: Problem, unit: float) -> tuple[Numbers, Numbers, Floats]:
    """`pairs`, `ways` and `way_byte` of `Held`, in parts of `unit` seconds."""
    k, none = len(problem.nodes), np.zeros(0)
    found = [(each.source * np.int64(k) + each.sink, each) for each in passers(problem)]
    pair = np.concatenate([none.astype(np.int64), *(pairs for pairs, _ in found)])
    way = np.concatenate([none.astype(np.int64), *(np.full(len(pairs), each.way) for pairs, each in found)])
    takes = np.concatenate([none, *(each.times / (each.rate * unit) for _, each in found)])
    order = np.argsort(pair, kind="stable")
    return np.searchsorted(pair[order], np.arange(k * k + 1)), way[order], takes[order]


@inlined
def _power(value: float) -> float:
    square = value * value
    return square * square * square


@inlined
def _send(h: Held, s: Sums, a: int, b: int, size: float) -> None:
    """Counts so many bytes from one node to another, on their link and on the up-links on their way."""
    before, after = _power(s.links[a, b]), 0.0
    s.links[a, b] += size * h.per_byte[a, b]
    after += _power(s.links[a, b])
    pair = a * len(s.memory) + b
    for at in range(h.pairs[pair], h.pairs[pair + 1]):
        way = h.ways[at]
        before += _power(s.uplinks[way])
        s.uplinks[way] += size * h.way_byte[at]
        after += _power(s.uplinks[way])
    s.total[0] += after - before


@inner
def _count(h: Held, s: Sums, place: Numbers, stage: int, sign: float) -> None:
    """Takes a stage, at its place, and what it sends and reads, in or out of the sums; of its neighbours those that are there."""
    at = place[stage]
    node, seconds, slots = h.node[at], h.seconds[stage, at], h.shares[at]
    before = _power(s.places[slots]) + _power(s.memory[node]) + _power(s.stages[stage])
    s.places[slots] += sign * seconds / h.slots[at]
    s.memory[node] += sign * seconds * h.share[stage, at]
    s.stages[stage] += sign * seconds * h.alone[stage]
    s.total[0] += _power(s.places[slots]) + _power(s.memory[node]) + _power(s.stages[stage]) - before
    for edge in range(h.heads[stage], h.heads[stage + 1]):
        there = place[h.other[edge]]
        if there < 0 or h.size[edge] <= 0.0:
            continue
        a, b = node, h.node[there]
        if a == b:
            continue
        if not h.sends[edge]:
            a, b = b, a
        _send(h, s, a, b, sign * h.size[edge])


@inner
def _busiest(h: Held, s: Sums, place: Numbers) -> float:
    most, k = 0.0, len(s.memory)
    for each in range(len(s.places)):
        most = max(most, s.places[each])
    for each in range(k):
        most = max(most, s.memory[each])
    for each in range(len(s.stages)):
        most = max(most, s.stages[each])
    for each in range(len(s.uplinks)):
        most = max(most, s.uplinks[each])
    if len(h.other) < k * k:
        # Of many nodes few links carry anything: to look at all of them was most of what a move took.
        for stage in range(len(place)):
            for edge in range(h.heads[stage], h.heads[stage + 1]):
                if h.sends[edge] and h.size[edge] > 0.0:
                    a, b = h.node[place[stage]], h.node[place[h.other[edge]]]
                    if a != b:
                        most = max(most, s.links[a, b])
        return most
    for a in range(k):
        for b in range(k):
            most = max(most, s.links[a, b])
    return most


@inner
def _recount(h: Held, s: Sums, place: Numbers) -> None:
    """All sums anew: what is added and taken away again and again leaves rounding behind."""
    s.places[:], s.memory[:], s.stages[:], s.uplinks[:], s.total[0] = 0.0, 0.0, 0.0, 0.0, 0.0
    for a in range(len(s.memory)):
        for b in range(len(s.memory)):
            s.links[a, b] = 0.0
    for stage in range(len(place)):
        # Each dependency is counted with that of its ends that comes later.
        for edge in range(h.heads[stage], h.heads[stage + 1]):
            if h.other[edge] < stage and h.size[edge] > 0.0:
                a, b = h.node[place[stage]], h.node[place[h.other[edge]]]
                if a != b and not h.sends[edge]:
                    a, b = b, a
                if a != b:
                    _send(h, s, a, b, h.size[edge])
        at = place[stage]
        node, seconds, slots = h.node[at], h.seconds[stage, at], h.shares[at]
        before = _power(s.places[slots]) + _power(s.memory[node]) + _power(s.stages[stage])
        s.places[slots] += seconds / h.slots[at]
        s.memory[node] += seconds * h.share[stage, at]
        s.stages[stage] += seconds * h.alone[stage]
        s.total[0] += _power(s.places[slots]) + _power(s.memory[node]) + _power(s.stages[stage]) - before


@inner
def _target(h: Held, place: Numbers, stage: int, first: float, second: float) -> int:
    """A place that the stage may have: half of the time on the node of a neighbour; -1 where none was drawn."""
    m, count = len(h.node), h.heads[stage + 1] - h.heads[stage]
    start = int(second * m)
    node = -1
    if first < NEAR and count > 0:
        node = h.node[place[h.other[h.heads[stage] + int(first / NEAR * count)]]]
    for step in range(m):
        at = (start + step) % m
        if h.seconds[stage, at] < np.inf and (node < 0 or h.node[at] == node):
            return at
    return -1


@inner
def _move(h: Held, s: Sums, place: Numbers, stage: int, at: int) -> None:
    _count(h, s, place, stage, -1.0)
    place[stage] = at
    _count(h, s, place, stage, 1.0)


@compiled
def _level(h: Held, s: Sums, place: Numbers, movers: Numbers, draws: Floats, cap: float, first: float) -> Numbers:
    _recount(h, s, place)
    best, least = place.copy(), _busiest(h, s, place)
    old = place.copy()
    for turn in range(len(draws)):
        if least <= cap:
            break
        if turn % 1_000 == 0:
            _recount(h, s, place)
        stage = movers[int(draws[turn, 0] * len(movers))]
        at = _target(h, place, stage, draws[turn, 1], draws[turn, 2])
        if at < 0 or at == place[stage]:
            continue
        before = s.total[0]
        old[:] = place
        _move(h, s, place, stage, at)
        fits = True
        for other in range(len(place)):
            if h.group[stage] >= 0 and other != stage and h.group[other] == h.group[stage]:
                there = -1
                for each in range(len(h.node)):
                    better = there < 0 or h.seconds[other, each] < h.seconds[other, there]
                    if h.node[each] == h.node[at] and h.seconds[other, each] < np.inf and better:
                        there = each
                if there < 0:
                    fits = False
                elif there != place[other]:
                    _move(h, s, place, other, there)
        threshold = first * (1.0 - turn / len(draws))
        if not fits or not s.total[0] <= before * (1.0 + threshold):
            for other in range(len(place)):
                if place[other] != old[other]:
                    _move(h, s, place, other, old[other])
            s.total[0] = before
            continue
        most = _busiest(h, s, place)
        if most < least:
            least = most
            best[:] = place
    return best
