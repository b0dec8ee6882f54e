"""A plan's times where transfers share up-links: places, loads and orders kept, and each up-link's rate shared fairly.

Values that pass an up-link at one time share its rate: max-min fair, none faster than its own link, as flows of TCP do roughly
(Bertsekas, Gallager 1992, Data Networks, for how such rates are found). A value is on its way from when its stage ends, and
is there one latency after its last byte has passed. From one event to the next rates stay as they are.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from starloom.orchestrator.fleetfile import Fleet
from starloom.orchestrator.planner.check import SLACK
from starloom.orchestrator.planner.flowing import Asked, Counts, Flows, Ways, simulate
from starloom.orchestrator.planner.problem import Flags, Floats, Indices, Plan, Problem, Uplink, successors
from starloom.orchestrator.planner.timing import Spans, bound_together, in_order, loaders, spans


class Channels(NamedTuple):
    """The ways of up-links, each direction one, of a radio both together. `name` [c], `rate` [c] in bytes a second, `uplink` [c]."""

    name: tuple[str, ...]
    rate: Floats
    uplink: tuple[int, ...]


Between = Callable[[int, int], tuple[tuple[int, float], ...]]
"""From one node to another: channels by their numbers, and the seconds that a byte takes of each."""


class Passers(NamedTuple):
    """What passes a channel: from node `source` [p] to node `sink` [p], each two nodes once, and how many `times` [p], 1 or 2.

    `way`: its number; `rate`: its bytes a second.
    """

    way: int
    rate: float
    source: Indices
    sink: Indices
    times: Counts


class Carried(NamedTuple):
    """What a channel carries for a plan: bytes, and the seconds that it takes for them at its full rate. `stages`: that send them."""

    name: str
    bytes: float
    seconds: float
    stages: tuple[int, ...]


def of_fleet(fleet: Fleet) -> tuple[Uplink, ...]:
    """Those that nodes of a fleet share. The job store, which is a node of its own in problems, is behind none of them."""
    found = []
    for each in fleet.uplinks:
        nodes = tuple(number for number, node in enumerate(fleet.nodes) if each.name in node.node.uplinks)
        found.append(Uplink(each.name, nodes, each.up, each.down, each.half))
    return tuple(found)


def shared(problem: Problem, uplinks: tuple[Uplink, ...]) -> Problem:
    """The problem with these up-links, and with no link between two nodes faster than what it passes."""
    made = problem._replace(uplinks=uplinks)
    if not uplinks:
        return made
    slowest = problem.arrays.seconds_per_byte.copy()
    for each in passers(made):
        pairs = each.source, each.sink
        slowest[pairs] = np.maximum(slowest[pairs], each.times / each.rate)
    return made._replace(arrays=problem.arrays._replace(seconds_per_byte=slowest))


def channels(problem: Problem) -> Channels:
    """Those of the problem's up-links, in their order."""
    names, rates, which = [], [], []
    for index, each in enumerate(problem.uplinks):
        ways = [("", each.up)] if each.half else [(" up", each.up), (" down", each.down)]
        names += [each.name + way for way, _ in ways]
        rates += [rate for _, rate in ways]
        which += [index] * len(ways)
    return Channels(tuple(names), np.array(rates, dtype=np.float64), tuple(which))


def passers(problem: Problem) -> Iterator[Passers]:
    """Of each channel what passes it, in their order. Only what does, for of many nodes and up-links that is little of all."""
    rate = channels(problem).rate.tolist()
    way = 0
    for each in problem.uplinks:
        inside = np.array(sorted(each.nodes), dtype=np.int32)
        outside = np.setdiff1d(np.arange(len(problem.nodes), dtype=np.int32), inside)
        a, b = np.repeat(inside, len(outside)), np.tile(outside, len(inside))
        once = np.ones(len(a), dtype=np.int64)
        if each.half:
            c, d = np.repeat(inside, len(inside)), np.tile(inside, len(inside))
            c, d = c[c != d], d[c != d]
            twice = np.full(len(c), 2, dtype=np.int64)
            yield Passers(
                way,
                rate[way],
                np.concatenate([a, b, c]),
                np.concatenate([b, a, d]),
                np.concatenate([once, once, twice]),
            )
            way += 1
        else:
            yield Passers(way, rate[way], a, b, once)
            yield Passers(way + 1, rate[way + 1], b, a, once)
            way += 2


def passes(problem: Problem, source: Indices, sink: Indices) -> Counts:
    """[c, e]: how many times what goes from each source to its sink, by nodes, passes each channel: 0, 1 or 2."""
    rows = []
    for each in problem.uplinks:
        inside = np.isin(np.arange(len(problem.nodes)), each.nodes)
        leaves, comes = inside[source] & ~inside[sink], inside[sink] & ~inside[source]
        within = inside[source] & inside[sink] & (source != sink)
        rows += [leaves | comes | within * np.int64(2)] if each.half else [leaves, comes]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(source))


def ways(problem: Problem, source: Indices, sink: Indices, moves: Flags) -> Ways:
    """What goes from each source to its sink, by nodes, as flows: those that `moves` [e], on their links and through the channels that they pass."""
    times = passes(problem, source, sink).T * moves[:, None]
    flow, way = np.nonzero(times)
    return Ways(
        np.searchsorted(flow, np.arange(len(source) + 1)).astype(np.int64),
        way.astype(np.int64),
        times[flow, way].astype(np.int64),
        problem.arrays.seconds_per_byte[source, sink],
        channels(problem).rate,
    )


def channels_between(problem: Problem) -> Between:
    """Of two nodes the channels that what goes from the first to the second passes, worked out as it is asked for."""
    rate, first = channels(problem).rate.tolist(), [0]
    for each in problem.uplinks:
        first.append(first[-1] + (1 if each.half else 2))
    behind: dict[int, set[int]] = {}
    for index, each in enumerate(problem.uplinks):
        for node in each.nodes:
            behind.setdefault(node, set()).add(index)
    none: set[int] = set()

    @cache
    def found(source: int, sink: int) -> tuple[tuple[int, float], ...]:
        near, far = behind.get(source, none), behind.get(sink, none)
        told = []
        for index in sorted(near | far) if source != sink else ():
            half, way, both = problem.uplinks[index].half, first[index], index in near and index in far
            if half:
                told.append((way, (2 if both else 1) / rate[way]))
            elif not both:
                way += index in far
                told.append((way, 1 / rate[way]))
        return tuple(told)

    return found


def still(flows: int, channels: int) -> Flows:
    """So many flows, none of them on its way, and room for what is worked out of so many channels."""
    numbers, marks = np.zeros((5, flows)), np.zeros((2, flows), dtype=np.bool_)
    found = Flows(np.zeros(flows, dtype=np.int64), *numbers, *marks, *np.zeros((2, channels)))
    found.many[:] = 1.0
    return found


def carried(problem: Problem, place: Indices, often: Floats | float = 1.0) -> list[Carried]:
    """What each channel that carries anything does with stages on these places [n], in the order of up-links. `often` [e]: how many times."""
    if not problem.uplinks:
        return []
    arrays, ways = problem.arrays, channels(problem)
    nodes, found = arrays.node[place], []
    for name, rate, times in zip(
        *ways[:2], passes(problem, nodes[arrays.upstream], nodes[arrays.downstream]), strict=True
    ):
        total = float((times * arrays.size_bytes * often).sum())
        if total > 0:
            senders = arrays.upstream[(times > 0) & (arrays.size_bytes > 0)]
            found.append(Carried(name, total, total / float(rate), tuple(np.unique(senders).tolist())))
    return found


def timed(problem: Problem, plan: Plan) -> Plan:
    """The same plan, each stage as early as it can be with what up-links carry; as it is where none carries anything.

    It ends no sooner than `timing.retimed` has it, and then where no two values meet. The same for the same arguments.
    """
    if not passed(problem, plan.place).any():
        return plan
    start, _ = _run(problem, plan)
    finish = start + spans(problem, plan.place, plan.loads).run
    return plan._replace(start=start, finish=finish, makespan=float(finish.max(initial=0.0)))


def lags(problem: Problem, plan: Plan) -> Floats:
    """[e]: seconds from when each dependency's upstream ends until its value is there, with what up-links carry."""
    what = spans(problem, plan.place, plan.loads)
    if not passed(problem, plan.place).any():
        return what.lag
    start, there = _run(problem, plan)
    found: Floats = there - (start + what.run)[problem.arrays.upstream]
    return found


def passed(problem: Problem, place: Indices) -> Flags:
    """[e]: which dependencies' values pass any up-link with stages on these places [n]."""
    arrays, nodes = problem.arrays, problem.arrays.node[place]
    if not problem.uplinks:
        return np.zeros(len(arrays.upstream), dtype=np.bool_)
    times = passes(problem, nodes[arrays.upstream], nodes[arrays.downstream])
    found: Flags = times.any(axis=0) & (arrays.size_bytes > 0)
    return found


def _run(problem: Problem, plan: Plan) -> tuple[Floats, Floats]:
    """Starts [n], and when each dependency's value is there [e]."""
    n, e = len(plan.place), len(problem.arrays.upstream)
    asked = _asked(problem, plan, spans(problem, plan.place, plan.loads))
    room = still(e, len(asked.ways.rate))
    start, there = np.zeros(n), np.zeros(e)
    simulate(asked, room, start, there, np.zeros(n, dtype=np.int64))
    return start, there


def _asked(problem: Problem, plan: Plan, what: Spans) -> Asked:
    arrays, n = problem.arrays, len(plan.place)
    turn = np.empty(n, dtype=np.int64)
    turn[in_order(problem, plan.start)] = np.arange(n)
    before, after = _orders(problem, plan, turn)
    led = [
        (by, stage) for stage, by in loaders(arrays, plan, arrays.node[plan.place]).items() if turn[by] < turn[stage]
    ]
    leaders, followers = np.array(led, dtype=np.int64).reshape(-1, 2).T
    waits = np.bincount(arrays.downstream, minlength=n) + np.bincount(after, minlength=n)
    waits += np.bincount(followers, minlength=n)
    nodes = arrays.node[plan.place]
    a, b = nodes[arrays.upstream], nodes[arrays.downstream]
    return Asked(
        what.base,
        what.run,
        what.load,
        arrays.started,
        waits.astype(np.int64),
        *successors(arrays),
        arrays.upstream,
        arrays.downstream,
        *_grouped(before, after, n),
        *_grouped(leaders, followers, n),
        what.lag,
        arrays.latency[a, b],
        arrays.size_bytes,
        ways(problem, a, b, arrays.size_bytes > 0),
    )


def _grouped(ends: Counts, others: Counts, n: int) -> tuple[Counts, Counts]:
    """`others` by their `ends`: those of stage i are `found[heads[i]:heads[i + 1]]`."""
    ordered = np.argsort(ends, kind="stable")
    return np.searchsorted(ends[ordered], np.arange(n + 1)).astype(np.int64), others[ordered]


def _orders(problem: Problem, plan: Plan, turn: Counts) -> tuple[Counts, Counts]:
    """Pairs of stages of which the second waits for the first to end: those of `timing.earliest`, without what follows from others."""
    takes, bound = plan.finish > plan.start + SLACK, bound_together(problem.arrays)[plan.place]
    before, after = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for where in np.unique(bound[takes]):
        here = np.flatnonzero(takes & (bound == where))
        ended = here[np.argsort(plan.finish[here], kind="stable")]
        finish, latest = plan.finish[ended], np.maximum.accumulate(plan.start[ended])
        upto = np.searchsorted(finish, plan.start[here] + SLACK / 2, side="right")
        since = np.zeros(len(here), dtype=np.int64)
        some = upto > 0
        since[some] = np.searchsorted(finish, latest[upto[some] - 1] + SLACK / 2, side="right")
        low = np.minimum(since, upto)
        many = upto - low
        # Of each the ended ones from `low` to `upto`, one after the other.
        at = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many - low, many)
        first, last = ended[at], np.repeat(here, many)
        kept = turn[first] < turn[last]
        before.append(first[kept])
        after.append(last[kept])
    return np.concatenate(before), np.concatenate(after)
