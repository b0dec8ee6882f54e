"""Whether a plan keeps all that a problem asks for: simple, slow, and apart from what makes plans."""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from starloom.orchestrator.planner.problem import NO_MODEL, Plan, Problem, Uplink

SLACK = 1e-6
"""Seconds, and shares of a byte count, by which rounding may put a number off."""


def transfer_seconds(problem: Problem, edge: int, source: int, sink: int) -> float:
    """What a dependency's value takes from one place to another."""
    arrays = problem.arrays
    a, b = arrays.node[source], arrays.node[sink]
    return float(arrays.latency[a, b] + arrays.size_bytes[edge] * arrays.seconds_per_byte[a, b])


def penalty(problem: Problem, plan: Plan) -> float:
    """The penalties of a plan's places, transfers and shared zones, in seconds."""
    arrays = problem.arrays
    total = float(arrays.penalty[np.arange(len(plan.place)), plan.place].sum())
    nodes = arrays.node[plan.place]
    moved = arrays.byte_penalty[nodes[arrays.upstream], nodes[arrays.downstream]] * arrays.size_bytes
    return total + float(moved.sum()) + _crowding(problem, plan)


def faults(problem: Problem, plan: Plan, deadline: float | None = None) -> list[str]:
    """Everything that is wrong with a plan, in words; none for a valid one. `deadline`: seconds by which all has to end."""
    n, m = problem.arrays.seconds.shape
    if not all(len(column) == n for column in (plan.place, plan.start, plan.finish, plan.loads)):
        return [f"the plan does not have {n} stages"]
    if ((plan.place < 0) | (plan.place >= m)).any():
        return [f"{problem.stages[i]} has no place" for i in np.flatnonzero((plan.place < 0) | (plan.place >= m))]
    if not (np.isfinite(plan.start).all() and np.isfinite(plan.finish).all()):
        return ["a start or finish is no number"]
    found = [*_runs(problem, plan), *_dependencies(problem, plan), *_slots(problem, plan)]
    found += [*_loads(problem, plan), *_memory(problem, plan), *_stores(problem, plan), *_groups(problem, plan)]
    found += _uplinks(problem, plan)
    last = float(plan.finish.max()) if n else 0.0
    if abs(last - plan.makespan) > SLACK:
        found.append(f"the makespan is {plan.makespan}, and the last stage ends at {last}")
    if deadline is not None and last > deadline + SLACK:
        found.append(f"the last stage ends at {last}, after the deadline of {deadline}")
    if abs(penalty(problem, plan) - plan.penalty) > SLACK * (1 + abs(plan.penalty)):
        found.append(f"the penalty is {plan.penalty}, and adds up to {penalty(problem, plan)}")
    return found


def _runs(problem: Problem, plan: Plan) -> Iterator[str]:
    arrays, each = problem.arrays, np.arange(len(plan.place))
    runs = arrays.seconds[each, plan.place]
    seconds = runs.copy()
    loading = np.flatnonzero(plan.loads & (arrays.model != NO_MODEL))
    seconds[loading] += arrays.load_seconds[arrays.model[loading], plan.place[loading]]
    # What takes no time takes no slot: it has ended, or is a mark.
    opens = np.where(runs > 0, arrays.available[plan.place], 0.0)
    earliest = np.where(arrays.started, 0.0, np.maximum(arrays.release, opens))
    takes = plan.finish - plan.start
    unknown = np.array([each.variant for each in problem.places])[plan.place] >= arrays.variants
    barred, long = ~np.isfinite(runs) | unknown, abs(takes - seconds) > SLACK
    soon, late = plan.start < earliest - SLACK, arrays.started & (plan.start > SLACK)
    for stage in np.flatnonzero(barred | long | soon | late):
        name = problem.stages[stage]
        if barred[stage]:
            yield f"{name} may not run on {problem.places[plan.place[stage]]}"
            continue
        if long[stage]:
            yield f"{name} takes {takes[stage]} s, not {seconds[stage]}"
        if soon[stage]:
            yield f"{name} starts at {plan.start[stage]}, before {earliest[stage]}"
        if late[stage]:
            yield f"{name} runs already, and is to start at {plan.start[stage]}"


def _dependencies(problem: Problem, plan: Plan) -> Iterator[str]:
    arrays = problem.arrays
    up, down, nodes = arrays.upstream, arrays.downstream, arrays.node[plan.place]
    a, b, moves = nodes[up], nodes[down], arrays.size_bytes > 0
    # Of nothing, a link without end carries nothing: infinity times zero is no number.
    per_byte = np.where(moves, arrays.seconds_per_byte[a, b], 0.0)
    there = plan.finish[up] + arrays.latency[a, b] + arrays.size_bytes * per_byte
    for edge in np.flatnonzero(plan.start[down] < there - SLACK):
        sink, source = problem.stages[down[edge]], problem.stages[up[edge]]
        yield f"{sink} starts at {plan.start[down[edge]]}, and its input from {source} comes at {there[edge]}"


def _slots(problem: Problem, plan: Plan) -> Iterator[str]:
    # Variants of a stage are places of their own, on one target.
    first: dict[tuple[str, str], int] = {}
    stands = np.array([first.setdefault((each.node, each.target), i) for i, each in enumerate(problem.places)])
    for place in first.values():
        what = problem.places[place]
        here = np.flatnonzero((stands[plan.place] == place) & (plan.finish > plan.start + SLACK))
        changes = [(plan.finish[stage] - SLACK / 2, -1) for stage in here] + [(plan.start[stage], 1) for stage in here]
        busy = 0
        for moment, change in sorted(changes):
            busy += change
            if busy > what.slots:
                yield f"{busy} stages run on {what} at {moment}, which has {what.slots} slots"
                break


def _loads(problem: Problem, plan: Plan) -> Iterator[str]:
    arrays = problem.arrays
    nodes = arrays.node[plan.place]
    for stage, name in enumerate(problem.stages):
        model, node = arrays.model[stage], nodes[stage]
        needs = model != NO_MODEL and not arrays.started[stage] and arrays.seconds[stage, plan.place[stage]] > 0
        if plan.loads[stage] and not needs:
            yield f"{name} loads a model, and has none to load: it names no model, runs already or takes no time"
        if not needs or plan.loads[stage] or arrays.resident[model, node]:
            continue
        loaders = np.flatnonzero((arrays.model == model) & (nodes == node) & plan.loads)
        ready = plan.start[loaders] + arrays.load_seconds[model, plan.place[loaders]]
        if not len(ready) or plan.start[stage] < ready.min() - SLACK:
            yield f"{name} starts on {problem.nodes[node]} before {problem.models[model]} is loaded there"


def _memory(problem: Problem, plan: Plan) -> Iterator[str]:
    """Of each node the running sum: every model from its first load on, or from now on, and what runs."""
    arrays = problem.arrays
    nodes = arrays.node[plan.place]
    for node, name in enumerate(problem.nodes):
        if not np.isfinite(arrays.memory_bytes[node]):
            continue
        here = np.flatnonzero((nodes == node) & (plan.finish > plan.start + SLACK))
        if not len(here):
            # What it holds already is none of the plan's doing.
            continue
        sizes = {stage: arrays.working_bytes[stage, problem.places[plan.place[stage]].variant] for stage in here}
        changes = [(plan.finish[stage] - SLACK / 2, -sizes[stage]) for stage in here]
        changes += [(plan.start[stage], sizes[stage]) for stage in here]
        for model in range(len(problem.models)):
            users = here[arrays.model[here] == model]
            if arrays.resident[model, node]:
                changes.append((-1.0, arrays.weight_bytes[model]))
            elif len(users):
                changes.append((plan.start[users].min(), arrays.weight_bytes[model]))
        held = 0.0
        for moment, change in sorted(changes):
            held += change
            if held > arrays.memory_bytes[node] * (1 + SLACK):
                yield f"{name} would hold {held:.0f} bytes at {moment}, and has {arrays.memory_bytes[node]:.0f}"
                break


def _stores(problem: Problem, plan: Plan) -> Iterator[str]:
    arrays = problem.arrays
    takes = arrays.charge[np.arange(len(plan.place)), plan.place]
    for node, name in enumerate(problem.nodes):
        total = float(takes[arrays.node[plan.place] == node].sum())
        if total > arrays.store[node] * (1 + SLACK):
            yield f"{name} would take {total} J, and has {arrays.store[node]} J"


def _groups(problem: Problem, plan: Plan) -> Iterator[str]:
    arrays = problem.arrays
    nodes = arrays.node[plan.place]
    for group in np.unique(arrays.together[arrays.together >= 0]):
        members = np.flatnonzero(arrays.together == group)
        if len(np.unique(nodes[members])) > 1:
            yield f"{', '.join(problem.stages[i] for i in members)} are to share a node, and do not"
    for group in np.unique(arrays.apart[arrays.apart >= 0]):
        members = np.flatnonzero(arrays.apart == group)
        if not np.isfinite(_price(problem, group)) and _doubled(problem, plan, group):
            alone = len({_zone(problem, group, node) for node in range(len(problem.nodes))}) == len(problem.nodes)
            where = "on different nodes" if alone else "in different zones"
            yield f"{', '.join(problem.stages[i] for i in members)} are to stand {where}, and do not"


def _uplinks(problem: Problem, plan: Plan) -> Iterator[str]:
    """Of each way of each up-link: whether in every window all bytes can pass that have to, from when they are made until they are used."""
    arrays = problem.arrays
    nodes = arrays.node[plan.place]
    for uplink in problem.uplinks:
        for outward in (True,) if uplink.half else (True, False):
            rate = uplink.up if outward else uplink.down
            passing = []
            inside = np.isin(nodes, np.array(uplink.nodes, dtype=np.int64))
            # What has an end behind it passes it, or may.
            for edge in np.flatnonzero(inside[arrays.upstream] | inside[arrays.downstream]).tolist():
                up, down = arrays.upstream[edge], arrays.downstream[edge]
                source, sink = int(nodes[up]), int(nodes[down])
                size = passes(uplink, source, sink, outward) * float(arrays.size_bytes[edge])
                if size > 0:
                    by = float(plan.start[down] - arrays.latency[source, sink])
                    passing.append((float(plan.finish[up]), by, size, edge))
            if (late := _late(sorted(passing), rate)) >= 0:
                source, sink = problem.stages[arrays.upstream[late]], problem.stages[arrays.downstream[late]]
                yield f"the up-link {uplink.name} cannot carry all that it has to until {sink} takes what {source} gives"


def passes(uplink: Uplink, source: int, sink: int, outward: bool) -> int:
    """How many times what goes from one node to another passes an up-link one way; of a radio both ways."""
    within, comes = source in uplink.nodes, sink in uplink.nodes
    if uplink.half:
        return 0 if source == sink else within + comes
    return int(within and not comes) if outward else int(comes and not within)


def _late(passing: Sequence[tuple[float, float, float, int]], rate: float) -> int:
    """Which dependency's bytes cannot have passed in time, -1 for none. `passing`: from, until, bytes and which, by the first.

    What is due first passes first: if that is late, some window has more to carry than it can, and else none has (Horn 1974).
    """
    due: list[tuple[float, float, int]] = []
    now = 0.0
    for index in range(len(passing) + 1):
        until = passing[index][0] if index < len(passing) else float("inf")
        while due and now < until:
            by, left, edge = heapq.heappop(due)
            if now + left / rate > until:
                heapq.heappush(due, (by, left - (until - now) * rate, edge))
                break
            now += left / rate
            if now > by + SLACK:
                return edge
        now = max(now, until)
        if index < len(passing):
            heapq.heappush(due, passing[index][1:])
    return -1


def _crowding(problem: Problem, plan: Plan) -> float:
    """Seconds that stages pay for zones that they share, where they may."""
    apart = problem.arrays.apart
    groups = [group for group in np.unique(apart[apart >= 0]) if np.isfinite(_price(problem, group))]
    return sum(_price(problem, group) * _doubled(problem, plan, group) for group in groups)


def _doubled(problem: Problem, plan: Plan, group: int) -> int:
    """How many of a group apart stand in a zone in which another does, but for one in each."""
    members = np.flatnonzero(problem.arrays.apart == group)
    return len(members) - len({_zone(problem, group, problem.arrays.node[plan.place[stage]]) for stage in members})


def _zone(problem: Problem, group: int, node: int) -> int | str:
    """What a node counts as for a group apart: the number of its zone, or its own name."""
    zone = problem.arrays.zone
    number = int(zone[group, node]) if group < len(zone) else -1
    return number if number >= 0 else problem.nodes[node]


def _price(problem: Problem, group: int) -> float:
    """Seconds for each stage of a group in a zone beyond the first; infinite where there may be none."""
    return float(problem.arrays.crowding[group]) if group < len(problem.arrays.crowding) else float("inf")
