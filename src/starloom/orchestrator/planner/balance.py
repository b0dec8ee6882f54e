"""The least period that any placement holds, by CP-SAT: stages to places, so that what is busiest is least so. Pure.

When stages run is no matter here, so that this is a far smaller problem than a plan; rounds that overlap need no more.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from ortools.sat.python import cp_model

from starloom.dag import limits
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.exact import fitted, hinted, longest, read, solving
from starloom.orchestrator.planner.holding import hold
from starloom.orchestrator.planner.model import Model
from starloom.orchestrator.planner.prepared import Prepared, prepare
from starloom.orchestrator.planner.problem import Indices, Plan, Problem, zones
from starloom.orchestrator.planner.steady import Pace, rates, work
from starloom.orchestrator.planner.ticks import heads, tails
from starloom.orchestrator.planner.uplinks import Between, channels_between

FINE = 1_000_000
"""Ticks of the period that is known: what differs by less is the same."""

WHOLE = 1_000_000_000
"""Parts of what a resource may be busy: a sum of parts rounded down is above it by no more than is granted (`steady.GRANTED`)."""

EFFORT = 1.0
"""CP-SAT's deterministic time, about seconds of one core."""


class Balanced(NamedTuple):
    """`place` [n]: of the least period that was found; none where no place was. `bound`: seconds that any placement's period is not below.

    `proven`: the two are the same, but for some millionths.
    """

    place: Indices | None
    bound: float
    proven: bool


def balanced(
    problem: Problem,
    pace: Pace,
    known: Indices,
    *,
    of: Collection[int] | None = None,
    effort: float = EFFORT,
    seed: int = 0,
) -> Balanced:
    """The placement whose busiest resource is least busy, from places [n] that are `known` to be allowed; never a worse one.

    `of`: the only stages that take anything, for who asks which of them are too many. Links of jobs with more than
    PLAN_SETTLED_CHOICES_MAX pairs of dependencies and links are not looked at; nor is memory that models take. The same for the
    same arguments.
    """
    some = problem if of is None else taking(problem, of)
    had = work(some, known, pace).period
    if had <= 0:
        return Balanced(known, 0.0, True)
    model = _Balance(some, pace, known, had / FINE)
    solver = solving(effort, math.inf, seed)
    status = solver.solve(model.cp)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Balanced(None, 0.0, False)
    bound = max(0.0, solver.best_objective_bound - model.rounding) * model.tick
    found = np.array([int(solver.value(place)) for place in model.place], dtype=np.int32)
    best = found if work(some, found, pace).period < had else known
    return Balanced(best, min(bound, work(some, best, pace).period), status == cp_model.OPTIMAL)


class _Balance:
    """Stages, places, and the busiest of all resources, in ticks."""

    def __init__(self, problem: Problem, pace: Pace, known: Indices, tick: float) -> None:
        self.problem, self.pace, self.tick = problem, pace, tick
        self.cp: Any = cp_model.CpModel()
        self.prepared: Prepared = prepare(problem)
        arrays = problem.arrays
        n = len(arrays.seconds)
        self.seconds = np.where(self.prepared.allowed, arrays.seconds * pace.rate[:, None], 0.0)
        #: each resource's sum is off by half a tick for each stage or dependency
        self.rounding = n + len(arrays.upstream) + 1
        self.busiest = self.cp.new_int_var(0, FINE + self.rounding, "busiest")
        self.uses = [
            {place: self.cp.new_bool_var(f"u{stage}.{place}") for place in np.flatnonzero(allowed).tolist()}
            for stage, allowed in enumerate(self._worth(known))
        ]
        self.place = [sum(use * place for place, use in uses.items()) for uses in self.uses]
        self.on = [self._on(uses) for uses in self.uses]
        for stage, uses in enumerate(self.uses):
            self.cp.add_exactly_one(uses.values())
            for place, use in uses.items():
                self.cp.add_hint(use, place == known[stage])
        for place in np.unique(arrays.shares).tolist():
            sharing = np.flatnonzero(arrays.shares == place).tolist()
            here = [(uses[at], s, at) for s, uses in enumerate(self.uses) for at in sharing if at in uses]
            self._atmost(here, place)
        self._links()
        self._nodes()
        self._groups()
        self.cp.minimize(self.busiest)

    def _worth(self, known: Indices) -> Any:
        """Places at which a stage alone is no busier than the busiest is now; and the known ones."""
        width = np.where(self.pace.alone[:, None], 1, self.problem.arrays.slots[None, :])
        kept = self.prepared.allowed & (self.seconds / width <= FINE * self.tick * (1 + 1e-9))
        kept[np.arange(len(known)), known] = True
        return kept

    def _on(self, uses: dict[int, Any]) -> dict[int, Any]:
        nodes: dict[int, Any] = {}
        for place, use in uses.items():
            node = int(self.problem.arrays.node[place])
            nodes[node] = nodes.get(node, 0) + use
        return nodes

    def _ticks(self, seconds: float) -> int:
        return round(seconds / self.tick)

    def _atmost(self, here: list[tuple[Any, int, int]], place: int) -> None:
        busy = sum(use * self._ticks(self.seconds[stage, at]) for use, stage, at in here)
        self.cp.add(busy <= self.busiest * int(self.problem.arrays.slots[place]))
        for use, stage, at in here:
            if self.pace.alone[stage]:
                self.cp.add(use * self._ticks(self.seconds[stage, at]) <= self.busiest)

    def _links(self) -> None:
        """What crosses from one node to another adds up there; for each dependency and pair a literal that both ends force."""
        arrays, k = self.problem.arrays, len(self.problem.nodes)
        rate = rates(self.problem, self.pace)
        if len(arrays.upstream) * k * k > limits.PLAN_SETTLED_CHOICES_MAX:
            return
        crossing: dict[tuple[str, int, int], list[Any]] = {}
        through = channels_between(self.problem)
        for edge, (up, down) in enumerate(zip(arrays.upstream.tolist(), arrays.downstream.tolist(), strict=True)):
            for a, source in self.on[up].items():
                for b, sink in self.on[down].items():
                    size = float(arrays.size_bytes[edge] * rate[edge])
                    takes = _sent(self.problem, through, size, a, b)
                    # A link without end, or over which the value alone keeps it busier than what is known, is none.
                    if max(takes.values(), default=0.0) > FINE * self.tick * (1 + 1e-9):
                        self.cp.add(source + sink <= 1)
                        continue
                    ticks = {key: found for key, seconds in takes.items() if (found := self._ticks(seconds))}
                    if ticks:
                        crosses = self.cp.new_bool_var("")
                        self.cp.add(crosses >= source + sink - 1)
                        for key, found in ticks.items():
                            crossing.setdefault(key, []).append(crosses * found)
        for sums in crossing.values():
            self.cp.add(sum(sums) <= self.busiest)

    def _nodes(self) -> None:
        """Memory over time, and batteries."""
        arrays = self.problem.arrays
        standing: list[list[tuple[Any, int, int]]] = [[] for _ in self.problem.nodes]
        for stage, uses in enumerate(self.uses):
            for place, use in uses.items():
                standing[arrays.node[place]].append((use, stage, place))
        for node, here in enumerate(standing):
            memory = float(arrays.memory_bytes[node])
            if np.isfinite(memory) and memory > 0:
                shares = [
                    use * self._ticks(self.seconds[s, p] * arrays.working_bytes[s, arrays.variant[p]] / memory)
                    for use, s, p in here
                ]
                self.cp.add(sum(shares) <= self.busiest)
            store = float(self.prepared.store[node])
            if np.isfinite(store):
                # Whole shares of what there is, rounded up: a battery is not exceeded.
                takes = [use * math.ceil(arrays.charge[s, p] / max(store, 1e-12) * FINE - 1e-9) for use, s, p in here]
                self.cp.add(sum(takes) <= FINE)

    def _groups(self) -> None:
        arrays, k = self.problem.arrays, len(self.problem.nodes)
        for group in np.unique(arrays.together[arrays.together >= 0]):
            first, *others = np.flatnonzero(arrays.together == group).tolist()
            for other in others:
                for node in range(k):
                    self.cp.add(self.on[first].get(node, 0) == self.on[other].get(node, 0))
        zone, crowding = zones(arrays)
        for group in np.unique(arrays.apart[arrays.apart >= 0]):
            if np.isfinite(crowding[group]):
                continue
            members = np.flatnonzero(arrays.apart == group).tolist()
            for each in np.unique(zone[group]).tolist():
                inside = np.flatnonzero(zone[group] == each).tolist()
                here = [self.on[stage][node] for stage in members for node in inside if node in self.on[stage]]
                self.cp.add(sum(here) <= 1)


class Within(NamedTuple):
    """`plan`: the fastest found that holds the period, none where none was. `proven`: none that does is faster, or there is none."""

    plan: Plan | None
    proven: bool


def within(
    problem: Problem, pace: Pace, cap: float, hint: Plan | None = None, *, effort: float, seed: int = 0
) -> Within:
    """Of a small job the fastest plan, penalties included, that keeps each resource busy for at most `cap` seconds a round.

    It is timed, and is the fastest, as if values did not meet on up-links; what these carry counts among what is busy. The same for the same arguments.
    """
    # Up-links count among what is busy, and when stages start is as if each value had them to itself.
    free = problem.free
    ticks = fitted(free) if problem.stages else None
    if ticks is None:
        return Within(None, False)
    seconds, arrays = problem.arrays.seconds * pace.rate[:, None], problem.arrays
    width = np.where(pace.alone[:, None], 1, arrays.slots[None, :])
    modes = [
        [mode for mode in each if seconds[stage, mode.place] <= cap * width[stage, mode.place] * (1 + 1e-9)]
        for stage, each in enumerate(ticks.modes)
    ]
    if not all(modes):
        return Within(None, True)
    holds = hint is not None and work(problem, hint.place, pace).fits(cap)
    most = longest(ticks)
    if hint is not None and holds:
        most = min(most, ticks.within(hint.objective))
    model = Model(ticks, modes, (heads(ticks, modes), tails(ticks, modes)), longest(ticks))
    hold(model)
    _fill(model, problem, pace, cap)
    model.minimise(most)
    if hint is not None and holds:
        hinted(model, hint)
    solver = solving(effort, math.inf, seed)
    status = solver.solve(model.cp)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Within(hint if holds else None, status == cp_model.INFEASIBLE and not holds)
    found = read(model, solver, "exact, within the period")
    if faults(free, found) or not work(problem, found.place, pace).fits(cap):
        return Within(hint if holds else None, False)
    return Within(found, status == cp_model.OPTIMAL)


def _fill(model: Model, problem: Problem, pace: Pace, cap: float) -> None:
    """Has each slot, link, up-link and memory be busy for no longer than `cap` seconds a round; in parts of it, rounded down."""
    arrays, cp = model.ticks.problem.arrays, model.cp

    def parts(seconds: float) -> int:
        return math.floor(seconds / cap * WHOLE) if cap > 0 else (WHOLE + 1 if seconds > 0 else 0)

    sums: dict[tuple[str, int, int], list[Any]] = {}
    holders: dict[int, list[tuple[Any, int]]] = {}
    for stage, (modes, uses) in enumerate(zip(model.modes, model.uses, strict=True)):
        for mode, use in zip(modes, uses, strict=True):
            takes = float(arrays.seconds[stage, mode.place] * pace.rate[stage])
            node = int(arrays.node[mode.place])
            sums.setdefault(("slots", int(arrays.shares[mode.place]), 0), []).append(
                use * parts(takes / arrays.slots[mode.place])
            )
            if np.isfinite(arrays.memory_bytes[node]) and arrays.memory_bytes[node] > 0:
                held = parts(
                    takes * float(arrays.working_bytes[stage, arrays.variant[mode.place]] / arrays.memory_bytes[node])
                )
                holders.setdefault(node, []).append((use, held))
    rate, through = rates(problem, pace), channels_between(problem)
    for edge, (up, down) in enumerate(zip(arrays.upstream.tolist(), arrays.downstream.tolist(), strict=True)):
        for a, source in model.on[up].items():
            for b, sink in model.on[down].items():
                sent = _sent(problem, through, float(arrays.size_bytes[edge] * rate[edge]), a, b)
                if max(sent.values(), default=0.0) > cap * (1 + 1e-9):
                    cp.add_bool_or([source.negated(), sink.negated()])
                    continue
                shares = {key: share for key, seconds in sent.items() if (share := parts(seconds))}
                if shares:
                    crosses = cp.new_bool_var("")
                    cp.add_bool_or([source.negated(), sink.negated(), crosses])
                    for key, share in shares.items():
                        sums.setdefault(key, []).append(crosses * share)
    for each in sums.values():
        cp.add(sum(each) <= WHOLE)
    for node, taken in holders.items():
        if some := [(use, held) for use, held in taken if held]:
            _beside_models(model, node, some)


def _beside_models(model: Model, node: int, taken: list[tuple[Any, int]]) -> None:
    """Has working sets fit a node beside all models of what stands there, if any does that has one: by literals, the parts of memory that each takes."""
    arrays, cp = model.ticks.problem.arrays, model.cp
    weights = np.minimum(np.floor(arrays.weight_bytes / arrays.memory_bytes[node] * WHOLE), WHOLE + 1).astype(np.int64)
    held, left = sum(use * parts for use, parts in taken), WHOLE
    for what, weight in enumerate(weights.tolist()):
        users = [model.on[stage][node] for stage in np.flatnonzero(arrays.model == what) if node in model.on[stage]]
        if arrays.resident[what, node]:
            left -= weight
        elif users:
            kept = cp.new_bool_var("")
            cp.add_bool_and([user.negated() for user in users]).only_enforce_if(kept.negated())
            held += kept * weight
    holds = cp.new_bool_var("")
    cp.add_bool_and([use.negated() for use, _ in taken]).only_enforce_if(holds.negated())
    cp.add(held <= left).only_enforce_if(holds)


def _sent(problem: Problem, through: Between, size: float, a: int, b: int) -> dict[tuple[str, int, int], float]:
    """Seconds that so many bytes from one node to another keep busy: their link, and the ways of up-links that they pass."""
    if not size or a == b:
        return {}
    found = {("link", a, b): size * float(problem.arrays.seconds_per_byte[a, b])}
    return found | {("uplink", way, 0): size * per_byte for way, per_byte in through(a, b)}


def taking(problem: Problem, of: Collection[int]) -> Problem:
    """The problem in which no other stage takes anything: no time, and no value to or from it."""
    arrays, kept = problem.arrays, np.isin(np.arange(len(problem.stages)), list(of))
    seconds = np.where(kept[:, None] | ~np.isfinite(arrays.seconds), arrays.seconds, 0.0)
    between = kept[arrays.upstream] & kept[arrays.downstream]
    return problem._replace(
        arrays=arrays._replace(seconds=seconds, size_bytes=np.where(between, arrays.size_bytes, 0.0))
    )
