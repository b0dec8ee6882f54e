"""How good a plan can be at most: a lower bound of the objective, by what each place would make of each stage. Pure.

Destructive bounds (Klein, Scholl 1999): of what a plan of some seconds could have, all that cannot be is struck out, and where a
stage has nothing left, or places have more to do than time, no plan is that short. Halving tells the longest that none is.
"""

import math
from typing import Final, NamedTuple

import numpy as np

from starloom.orchestrator.planner.compiled import lean
from starloom.orchestrator.planner.prepared import Numbers, Prepared, prepare
from starloom.orchestrator.planner.prices import Prices, Ways
from starloom.orchestrator.planner.problem import Flags, Floats, Plan, Problem

EXACT: Final = 1e-12
"""The share by which rounding may put sums of the same numbers apart."""
NEAR: Final = 1e-9
"""The share of a plan below which another is looked for first: where there is none, the plan is the best."""
FINE: Final = 1e-4
"""The share of a plan up to which halving goes on."""
STEPS: Final = 30_000_000
"""Pairs of nodes that are looked at for dependencies, over all: a tenth of a second or so."""
STRIKES: Final = 4
"""How often what is struck out is taken in, for one number of seconds."""


class Least(NamedTuple):
    """Seconds before which no plan of a problem ends, and below which no plan's objective is."""

    makespan: float
    objective: float


def least(problem: Problem, plan: Plan, shown: float = 0.0) -> Least:
    """Bounds by `lower_bound`, beside a valid plan of the problem. `shown`: seconds that no plan's objective is below, as known otherwise."""
    prepared, arrays = prepare(problem), problem.arrays
    objective = min(max(lower_bound(prepared, plan.objective), shown), plan.objective)
    crowding = bool((np.isfinite(arrays.crowding) & (arrays.crowding > 0)).any())
    if not (prepared.penalty[prepared.allowed].any() or arrays.byte_penalty.any() or crowding):
        return Least(objective, objective)
    free = prepared._replace(penalty=np.where(np.isfinite(prepared.penalty), 0.0, prepared.penalty))
    return Least(lower_bound(free, plan.makespan), objective)


def lower_bound(prepared: Prepared, most: float) -> float:
    """Seconds that no plan's objective is below, and `most` at the most, which a plan has.

    Looks at paths, transfers, what a stage has to load, places' slots, groups, penalties of places, and what working sets hold of memory
    over time; not at penalties of links and of zones that are shared, nor at batteries and models' memory, but where one stage alone
    has too little. Infinite if a stage has no place. The same for the same arguments.
    """
    if not len(prepared.seconds):
        return 0.0
    if not prepared.allowed.any(axis=1).all():
        return math.inf
    look = _Look(prepared)
    low, high = min(most, look.least(most)), most
    target = most * (1 - NEAR)
    while low < target and high - low > FINE * most and look.steps < STEPS:
        least = look.least(target)
        low = max(low, min(target, least))
        if least <= target:
            high = target
        target = (low + high) / 2
    return low


class _Look:
    """What plans of some length could have, and the least objective of those. `steps`: that it took."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.steps = prepared, 0
        (n, m), (w, k) = prepared.seconds.shape, prepared.resident.shape
        cold = (prepared.model >= 0) & ~prepared.started
        of = np.maximum(prepared.model, 0)
        self.load = np.zeros((n, m))
        if w:
            there = prepared.resident[:, prepared.node][of]
            self.load = np.where(cold[:, None] & ~there & (prepared.seconds > 0), prepared.load[of], 0.0)
        self.ends, self.begin = np.zeros((n, k)), np.zeros(k)
        self.soon, self.sooner = np.zeros((w, k)), np.zeros((w, k), dtype=np.int64)
        self.second = np.zeros((w, k))
        self.prices = Prices(prepared)

    def least(self, target: float) -> float:
        """What the objective of a plan is at the least that has no more than `target`; infinite where there is none."""
        prepared = self.prepared
        able, floor = prepared.allowed.copy(), -math.inf
        head = np.zeros_like(prepared.seconds)
        for _ in range(STRIKES):
            ways = self._ways(able, head)
            costs = ways.costs.min(axis=1)
            through = np.where(able, ways.head + ways.lasts + ways.tail + ways.costs, np.inf) - costs[:, None]
            floor = max(floor, float(through.min(axis=1).max()) + float(costs.sum()))
            kept = self._together(able & (through + float(costs.sum()) <= target * (1 + EXACT)))
            if not kept.any(axis=1).all() or not self._apart(kept):
                return math.inf
            if np.array_equal(kept, able):
                break
            able, head = kept, ways.head
        return max(floor, self.prices.least(ways, floor))

    def _ways(self, able: Flags, before: Floats) -> Ways:
        """What the places that are left ask, where stages start no sooner than `before` [n, m]."""
        prepared = self.prepared
        head, tail, takes, lasts = before.copy(), *np.zeros((3, *before.shape))
        room = self.ends, self.begin, self.soon, self.sooner, self.second
        _heads(prepared, able, self.load, head, takes, lasts, *room)
        _tails(prepared, able, takes, tail, self.ends, self.begin)
        self.steps += 2 * len(prepared.lead_stage) * len(prepared.memory) ** 2 + able.size
        return Ways(able, head, tail, takes, lasts, np.where(able, prepared.penalty, np.inf))

    def _together(self, able: Flags) -> Flags:
        """Without the places on nodes where another of a group that shares a node has none."""
        together, node = self.prepared.together, self.prepared.node
        for group in range(int(together.max(initial=-1)) + 1):
            members = together == group
            shared = np.ones(len(self.prepared.memory), dtype=np.bool_)
            for row in able[members]:
                shared &= np.bincount(node[row], minlength=len(shared)) > 0
            able[members] &= shared[node]
        return able

    def _apart(self, able: Flags) -> bool:
        """Whether those of each group that must not share a zone can each have one of their own: by augmenting paths (Kuhn 1955)."""
        prepared = self.prepared
        for group in np.flatnonzero(~np.isfinite(prepared.crowding)):
            zone = prepared.zone[group][prepared.node]
            wishes = [set(zone[row].tolist()) for row in able[prepared.apart == group]]
            taken: dict[int, int] = {}
            if not all(_seat(member, wishes, taken, set()) for member in range(len(wishes))):
                return False
        return True


def _seat(member: int, wishes: list[set[int]], taken: dict[int, int], seen: set[int]) -> bool:
    """Gives a member a zone, and another one to who had it, as far as that goes; whether there was any."""
    for zone in sorted(wishes[member] - seen):
        seen.add(zone)
        if zone not in taken or _seat(taken[zone], wishes, taken, seen):
            taken[zone] = member
            return True
    return False


@lean
def _heads(
    p: Prepared,
    able: Flags,
    load: Floats,
    head: Floats,
    takes: Floats,
    lasts: Floats,
    ends: Floats,
    begin: Floats,
    soon: Floats,
    sooner: Numbers,
    second: Floats,
) -> None:
    """Fills `head`, `takes` and `lasts` [n, m] in the order of stages; `head` has before what starts are known not to be below.

    `ends` [n, k]: the least second at which a stage can have ended on a node. A model is there once its first load is done: `soon`
    [w, k] by whom `sooner` says, and `second` by any other.
    """
    soon[:], second[:], sooner[:] = np.inf, np.inf, -1
    for stage in range(len(head)):
        model = p.model[stage]
        for place in range(len(p.node)):
            if not able[stage, place] or load[stage, place] <= 0.0:
                continue
            node, done = p.node[place], head[stage, place] + load[stage, place]
            if sooner[model, node] == stage:
                soon[model, node] = min(soon[model, node], done)
            elif done < soon[model, node]:
                second[model, node], soon[model, node], sooner[model, node] = soon[model, node], done, stage
            else:
                second[model, node] = min(second[model, node], done)
    for stage in p.order:
        begin[:] = 0.0 if p.started[stage] else p.release[stage]
        ends[stage, :] = np.inf
        for lead in range(p.lead_heads[stage], p.lead_heads[stage + 1]):
            up, size = p.lead_stage[lead], p.lead_bytes[lead]
            for node in range(len(begin)):
                there = np.inf
                for source in range(len(begin)):
                    moved = size * p.per_byte[source, node] if size > 0.0 else 0.0
                    there = min(there, ends[up, source] + p.latency[source, node] + moved)
                begin[node] = max(begin[node], there)
        for place in range(len(p.node)):
            if not able[stage, place]:
                continue
            node, seconds = p.node[place], p.seconds[stage, place]
            at = max(begin[node], p.available[place] if seconds > 0.0 else 0.0)
            if p.started[stage]:
                at = 0.0
            takes[stage, place], lasts[stage, place], head[stage, place] = seconds, seconds, at
            if load[stage, place] > 0.0 and at < np.inf:
                model = p.model[stage]
                other = second[model, node] if sooner[model, node] == stage else soon[model, node]
                waits = min(load[stage, place], max(0.0, other - at))
                lasts[stage, place] += waits
                if other == np.inf:
                    takes[stage, place] += load[stage, place]
            ends[stage, node] = min(ends[stage, node], at + lasts[stage, place])


@lean
def _tails(p: Prepared, able: Flags, takes: Floats, tail: Floats, rest: Floats, after: Floats) -> None:
    """Fills `tail` [n, m] from the last stages on. `rest` [n, k]: from a stage's start on a node until the job's end, at the least."""
    for turn in range(len(p.order)):
        stage = p.order[len(p.order) - 1 - turn]
        after[:] = 0.0
        rest[stage, :] = np.inf
        for follow in range(p.follow_heads[stage], p.follow_heads[stage + 1]):
            down, size = p.follow_stage[follow], p.follow_bytes[follow]
            for node in range(len(after)):
                last = np.inf
                for sink in range(len(after)):
                    moved = size * p.per_byte[node, sink] if size > 0.0 else 0.0
                    last = min(last, p.latency[node, sink] + moved + rest[down, sink])
                after[node] = max(after[node], last)
        for place in range(len(p.node)):
            if able[stage, place]:
                node = p.node[place]
                tail[stage, place] = after[node]
                rest[stage, node] = min(rest[stage, node], takes[stage, place] + after[node])
