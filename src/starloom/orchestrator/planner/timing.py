"""The earliest times at which a plan's stages can run, with its places, loads and orders kept."""

import heapq
from typing import NamedTuple

import numpy as np

from starloom.orchestrator.planner.check import SLACK
from starloom.orchestrator.planner.problem import (
    NO_MODEL,
    Arrays,
    Flags,
    Floats,
    Indices,
    Plan,
    Problem,
    crowded,
    predecessors,
    successors,
)


class Spans(NamedTuple):
    """What a plan's stages wait for and take, in one unit, whichever it is.

    `base` [n]: before which a stage may not start. `run` [n]: from start to finish. `load` [n]: the part of it that
    is loading. `lag` [e]: of each dependency's transfer.
    """

    base: Floats
    run: Floats
    load: Floats
    lag: Floats


def spans(problem: Problem, place: Indices, loads: Flags) -> Spans:
    """Those of stages on these places, in seconds."""
    arrays, each = problem.arrays, np.arange(len(place))
    seconds = arrays.seconds[each, place]
    opens = np.where(seconds > 0, arrays.available[place], 0.0)
    base = np.where(arrays.started, 0.0, np.maximum(arrays.release, opens))
    load = np.zeros(len(place))
    load[loads] = arrays.load_seconds[arrays.model[loads], place[loads]]
    a, b = arrays.node[place[arrays.upstream]], arrays.node[place[arrays.downstream]]
    return Spans(base, seconds + load, load, arrays.latency[a, b] + arrays.size_bytes * arrays.seconds_per_byte[a, b])


def bound_together(arrays: Arrays) -> Indices:
    """[m]: for each place the first of those on which stages keep their order: of a node whose memory is counted, all."""
    _, first = np.unique(arrays.node, return_index=True)
    return np.where(np.isfinite(arrays.memory_bytes)[arrays.node], first[arrays.node], arrays.shares).astype(np.int32)


def in_order(problem: Problem, start: Floats) -> list[int]:
    """The stages by their starts, but every upstream before its downstreams."""
    arrays = problem.arrays
    sooner = np.argsort(start, kind="stable")
    turn = np.empty(len(start), dtype=np.int64)
    turn[sooner] = np.arange(len(start))
    if (turn[arrays.upstream] < turn[arrays.downstream]).all():
        return [int(stage) for stage in sooner.tolist()]
    waits = np.bincount(arrays.downstream, minlength=len(start)).tolist()
    heads, follows = successors(arrays)
    ready = [(float(start[stage]), stage) for stage, count in enumerate(waits) if count == 0]
    heapq.heapify(ready)
    found = []
    while ready:
        _, stage = heapq.heappop(ready)
        found.append(stage)
        for edge in follows[heads[stage] : heads[stage + 1]]:
            down = int(arrays.downstream[edge])
            waits[down] -= 1
            if waits[down] == 0:
                heapq.heappush(ready, (float(start[down]), down))
    return found


def earliest(problem: Problem, plan: Plan, what: Spans) -> Floats:
    """Starts [n] in the unit of `what`: each stage as early as what comes before it in the plan lets it.

    Two stages that share a place, or a node whose memory is counted, do not overlap afterwards if they did not before:
    whatever runs at one time then ran at one time in the plan, so slots and memory are kept.
    """
    arrays, n = problem.arrays, len(plan.place)
    nodes, takes = arrays.node[plan.place], plan.finish > plan.start + SLACK
    bound = bound_together(arrays)[plan.place]
    heads, leads = predecessors(arrays)
    led = loaders(arrays, plan, nodes)
    before: dict[int, list[int]] = {}
    start, finish = np.zeros(n), np.zeros(n)
    for stage in in_order(problem, plan.start):
        soonest = what.base[stage]
        for edge in leads[heads[stage] : heads[stage + 1]]:
            soonest = max(soonest, finish[arrays.upstream[edge]] + what.lag[edge])
        if stage in led:
            soonest = max(soonest, start[led[stage]] + what.load[led[stage]])
        if takes[stage]:
            others = before.setdefault(int(bound[stage]), [])
            ended = [other for other in others if plan.finish[other] <= plan.start[stage] + SLACK / 2]
            soonest = max(soonest, finish[ended].max(initial=0.0))
            others.append(stage)
        start[stage] = 0.0 if arrays.started[stage] else soonest
        finish[stage] = start[stage] + what.run[stage]
    return start


def loaders(arrays: Arrays, plan: Plan, nodes: Indices) -> dict[int, int]:
    """Of each stage that finds its model loaded: who had loaded it, the first to be done with it."""
    loading = np.flatnonzero(plan.loads)
    first: dict[tuple[int, int], int] = {}
    ready = plan.start[loading] + arrays.load_seconds[arrays.model[loading], plan.place[loading]]
    for stage in loading[np.argsort(ready, kind="stable")]:
        first.setdefault((int(arrays.model[stage]), int(nodes[stage])), int(stage))
    found = {}
    for stage in np.flatnonzero((arrays.model != NO_MODEL) & ~plan.loads & ~arrays.started):
        key = (int(arrays.model[stage]), int(nodes[stage]))
        if key in first and not arrays.resident[key] and arrays.seconds[stage, plan.place[stage]] > 0:
            found[int(stage)] = first[key]
    return found


def retimed(problem: Problem, plan: Plan) -> Plan:
    """The same plan, each stage as early as it can be."""
    what = spans(problem, plan.place, plan.loads)
    start = earliest(problem, plan, what)
    finish, arrays = start + what.run, problem.arrays
    a, b = arrays.node[plan.place[arrays.upstream]], arrays.node[plan.place[arrays.downstream]]
    costs = float(arrays.penalty[np.arange(len(start)), plan.place].sum())
    costs += float((arrays.byte_penalty[a, b] * arrays.size_bytes).sum()) + crowded(arrays, plan.place)
    return plan._replace(start=start, finish=finish, makespan=float(finish.max(initial=0.0)), penalty=costs)
