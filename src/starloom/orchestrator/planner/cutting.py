"""A small problem cut out of a large one and its plan: some stages free, their neighbours bound to their places.

What has ended before the free stages begin is a mark that takes no time, on its node, from its end on. What begins
after they have ended is a mark that takes as long as the job then lasts.
"""

from typing import NamedTuple

import numpy as np

from starloom.orchestrator.planner.check import SLACK
from starloom.orchestrator.planner.problem import (
    NO_MODEL,
    Arrays,
    Flags,
    Floats,
    Indices,
    Place,
    Plan,
    Problem,
    successors,
    zones,
)
from starloom.orchestrator.planner.timing import bound_together, in_order, retimed, spans

NONE = -1


class Cut(NamedTuple):
    """`problem`, `plan`: of the part. `stages`: which stages of the whole those are, first `inner` that run in it.

    `after` [m]: seconds that the job lasts at least, once the last of the part has ended on a place. `late` [n]: stages
    of the whole that come behind the part.
    """

    problem: Problem
    plan: Plan
    stages: Indices
    inner: int
    after: Floats
    late: Flags


def lasts(problem: Problem, plan: Plan) -> Floats:
    """[n]: how many seconds the job lasts, at least, once a stage has ended, with all places and orders kept."""
    arrays, what = problem.arrays, spans(problem, plan.place, plan.loads)
    heads, follows = successors(arrays)
    found = np.zeros(len(plan.place))
    takes = plan.finish > plan.start + SLACK
    behind: dict[int, list[int]] = {}
    bound = bound_together(arrays)[plan.place]
    for stage in reversed(in_order(problem, plan.start)):
        longest = 0.0
        for edge in follows[heads[stage] : heads[stage + 1]]:
            sink = arrays.downstream[edge]
            longest = max(longest, what.lag[edge] + what.run[sink] + found[sink])
        if takes[stage]:
            others = behind.setdefault(int(bound[stage]), [])
            after = [other for other in others if plan.start[other] >= plan.finish[stage] - SLACK / 2]
            longest = max(longest, float((what.run[after] + found[after]).max(initial=0.0)))
            others.append(stage)
        found[stage] = longest
    return found


def cut(problem: Problem, plan: Plan, chosen: Indices, rest: Floats) -> Cut:
    """The part of the problem in which `chosen` stages are free; `rest`: what `lasts` says."""
    arrays, n = problem.arrays, len(plan.place)
    early, late = _sides(problem, plan, chosen)
    inner = ~early & ~late
    leads, sinks = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    leads[arrays.upstream[inner[arrays.downstream]]] = True
    sinks[arrays.downstream[inner[arrays.upstream]]] = True
    groups = [np.flatnonzero(inner), np.flatnonzero(leads & early), np.flatnonzero(sinks & late)]
    stages = np.concatenate(groups).astype(np.int32)
    count = len(groups[0]), len(groups[1])
    takes = plan.finish > plan.start + SLACK
    run = np.where(takes, plan.finish - plan.start, 0.0) + rest
    after = np.zeros(len(problem.places) + len(problem.nodes))
    bound = bound_together(arrays)
    for place, first in enumerate(bound):
        after[place] = run[late & takes & (bound[plan.place] == first)].max(initial=0.0)
    made = _part(problem, plan, stages, count, np.isin(stages, chosen), early, run)
    return Cut(made, _standing(problem, plan, stages, count, run), stages, count[0], after, late)


def _sides(problem: Problem, plan: Plan, chosen: Indices) -> tuple[Flags, Flags]:
    """Which stages come before the part, and which behind it: none that overlaps or feeds back across its border."""
    arrays = problem.arrays
    free = np.zeros(len(plan.place), dtype=np.bool_)
    free[chosen] = True
    early = ~free & (plan.finish <= plan.start[chosen].min() + SLACK / 2)
    late = ~free & ~early & (plan.start >= plan.finish[chosen].max() - SLACK / 2)
    bound = bound_together(arrays)[plan.place]
    before = -1
    while before != (before := int(early.sum() + late.sum())):
        early[arrays.downstream[~early[arrays.upstream]]] = False
        late[arrays.upstream[~late[arrays.downstream]]] = False
        for first in np.unique(bound):
            here = bound == first
            inner = here & ~early & ~late
            early &= ~(here & (plan.finish > plan.start[inner].min(initial=np.inf) + SLACK / 2))
            late &= ~(here & (plan.start < plan.finish[inner].max(initial=0.0) - SLACK / 2))
    return early, late


def _part(
    problem: Problem, plan: Plan, stages: Indices, count: tuple[int, int], free: Flags, early: Flags, run: Floats
) -> Problem:
    arrays, m, k = problem.arrays, len(problem.places), len(problem.nodes)
    inner, marks = count[0], count[0] + count[1]
    seconds = np.full((len(stages), m + k), np.inf)
    penalty = np.zeros_like(seconds)
    seconds[:inner, :m] = _choices(problem, plan, stages, inner, free)
    costs = arrays.penalty[stages[:inner]] + _crowded(problem, plan, stages, inner)
    penalty[:inner, :m] = np.where(free[:inner, None], costs, 0.0)
    charge = np.zeros_like(seconds)
    charge[:inner, :m] = arrays.charge[stages[:inner]]
    seconds[np.arange(inner, marks), plan.place[stages[inner:marks]]] = 0.0
    late = np.arange(marks, len(stages))
    seconds[late, m + arrays.node[plan.place[stages[late]]]] = run[stages[late]]
    opens, bound = np.zeros(m + k), bound_together(arrays)
    done = early & (plan.finish > plan.start + SLACK)
    np.maximum.at(opens, bound[plan.place[done]], plan.finish[done])
    opens[:m] = np.maximum(opens[bound], arrays.available)
    loaded = np.flatnonzero(plan.loads & early)
    resident = arrays.resident.copy()
    resident[arrays.model[loaded], arrays.node[plan.place[loaded]]] = True
    runs = np.arange(len(stages)) < inner
    number = np.full(len(plan.place), NONE, dtype=np.int32)
    number[stages] = np.arange(len(stages), dtype=np.int32)
    up, down = number[arrays.upstream], number[arrays.downstream]
    kept = (up != NONE) & (down != NONE) & ((up < inner) | (down < inner))
    part = arrays._replace(
        seconds=seconds,
        penalty=penalty,
        node=np.concatenate([arrays.node, np.arange(k, dtype=np.int32)]),
        slots=np.concatenate([arrays.slots, np.full(k, len(plan.place), dtype=np.int32)]),
        variant=np.concatenate([arrays.variant, np.zeros(k, dtype=np.int32)]),
        shares=np.concatenate([arrays.shares, np.arange(m, m + k, dtype=np.int32)]),
        variants=arrays.variants[stages],
        available=opens,
        release=np.where(runs, arrays.release[stages], np.where(early[stages], plan.finish[stages], 0.0)),
        started=arrays.started[stages] & runs,
        upstream=up[kept],
        downstream=down[kept],
        size_bytes=arrays.size_bytes[kept],
        model=np.where(runs, arrays.model[stages], NO_MODEL),
        load_seconds=np.concatenate([arrays.load_seconds, np.full((len(problem.models), k), np.inf)], axis=1),
        resident=resident,
        working_bytes=np.where(runs[:, None], arrays.working_bytes[stages], 0.0),
        together=np.where(runs, arrays.together[stages], NONE),
        apart=np.where(runs, arrays.apart[stages], NONE),
        charge=charge,
        store=np.maximum(0.0, arrays.store - _drawn(arrays, plan, stages[:inner])),
    )
    behind = tuple(Place(node, "behind", len(plan.place)) for node in problem.nodes)
    names = tuple(problem.stages[stage] for stage in stages)
    return Problem(names, (*problem.places, *behind), problem.nodes, problem.models, part)


def _choices(problem: Problem, plan: Plan, stages: Indices, inner: int, free: Flags) -> Floats:
    """[inner, m]: the seconds of stages where they may be; of those that are not free, where they are."""
    arrays, found = problem.arrays, np.full((inner, len(problem.places)), np.inf)
    outside = np.ones(len(plan.place), dtype=np.bool_)
    outside[stages[:inner]] = False
    nodes = arrays.node[plan.place]
    zone, crowding = zones(arrays)
    for index, stage in enumerate(stages[:inner]):
        place = plan.place[stage]
        if not free[index]:
            found[index, place] = arrays.seconds[stage, place]
            continue
        found[index] = arrays.seconds[stage]
        if arrays.together[stage] >= 0:
            others = nodes[outside & (arrays.together == arrays.together[stage])]
            found[index, ~np.isin(arrays.node, others) & (len(others) > 0)] = np.inf
        if arrays.apart[stage] >= 0 and crowding[arrays.apart[stage]] == np.inf:
            found[index, _beside(arrays, plan, outside, int(stage), zone)] = np.inf
    return found


def _drawn(arrays: Arrays, plan: Plan, inside: Indices) -> Floats:
    """[k]: what all stages but these take of the store of each node."""
    takes = arrays.charge[np.arange(len(plan.place)), plan.place]
    takes[inside] = 0.0
    return np.bincount(arrays.node[plan.place], weights=takes, minlength=len(arrays.store)).astype(np.float64)


def _beside(arrays: Arrays, plan: Plan, outside: Flags, stage: int, zone: Indices) -> Flags:
    """[m]: the places in a zone where others of the stage's group apart stand outside the part."""
    others = arrays.node[plan.place[outside & (arrays.apart == arrays.apart[stage])]]
    here = zone[arrays.apart[stage]]
    found: Flags = np.isin(here[arrays.node], here[others])
    return found


def _crowded(problem: Problem, plan: Plan, stages: Indices, inner: int) -> Floats:
    """[inner, m]: what stages cost beside others of their group outside the part."""
    arrays, found = problem.arrays, np.zeros((inner, len(problem.places)))
    zone, crowding = zones(arrays)
    outside = np.ones(len(plan.place), dtype=np.bool_)
    outside[stages[:inner]] = False
    for index, stage in enumerate(stages[:inner]):
        if arrays.apart[stage] >= 0 and np.isfinite(crowding[arrays.apart[stage]]):
            here = _beside(arrays, plan, outside, int(stage), zone)
            found[index, here] = crowding[arrays.apart[stage]]
    return found


def _standing(problem: Problem, plan: Plan, stages: Indices, count: tuple[int, int], run: Floats) -> Plan:
    """The plan's own way through the part."""
    inner, marks = count[0], count[0] + count[1]
    place = plan.place[stages].copy()
    place[marks:] = len(problem.places) + problem.arrays.node[place[marks:]]
    start, finish, loads = plan.start[stages].copy(), plan.finish[stages].copy(), plan.loads[stages].copy()
    start[inner:marks] = finish[inner:marks]
    finish[marks:] = start[marks:] + run[stages[marks:]]
    loads[inner:] = False
    return Plan(place, start, finish, loads, 0.0, 0.0, plan.method)


def join(problem: Problem, plan: Plan, part: Cut, found: Plan) -> Plan:
    """The whole plan with a part of it as it was found anew, timed: it may not keep all that the problem asks for."""
    inner = part.stages[: part.inner]
    place, loads = plan.place.copy(), plan.loads.copy()
    start, finish = plan.start.copy(), plan.finish.copy()
    place[inner], loads[inner] = found.place[: part.inner], found.loads[: part.inner]
    start[inner], finish[inner] = found.start[: part.inner], found.finish[: part.inner]
    # All of the part comes before all that was behind it.
    moved = max(0.0, float(finish[inner].max()) - float(start[part.late].min(initial=np.inf)))
    start[part.late] += moved
    finish[part.late] += moved
    _load_first(problem, place, start, loads, part.late)
    return retimed(problem, Plan(place, start, finish, loads, 0.0, 0.0, "windows"))


def _load_first(problem: Problem, place: Indices, start: Floats, loads: Flags, late: Flags) -> None:
    """Of the late stages the first that uses a model on a node loads it, unless an earlier one has."""
    arrays, nodes = problem.arrays, problem.arrays.node[place]
    loaded = {(int(arrays.model[i]), int(nodes[i])) for i in np.flatnonzero(loads & ~late)}
    users = late & (arrays.model != NO_MODEL) & ~arrays.started & (arrays.seconds[np.arange(len(place)), place] > 0)
    for stage in sorted(np.flatnonzero(users).tolist(), key=lambda stage: (start[stage], stage)):
        key = int(arrays.model[stage]), int(nodes[stage])
        loads[stage] = not arrays.resident[key] and key not in loaded
        loaded.add(key)
