"""A problem as a CP-SAT model: the mode that each stage runs in, when, and what holds between stages.

Dependencies hold by a literal per pair of nodes (a transport problem): measured, pairs of implications and both
together prove far fewer problems in the same time.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from ortools.sat.python import cp_model

from starloom.orchestrator.planner.problem import Indices
from starloom.orchestrator.planner.ticks import NEVER, Mode, Modes, Ticks, Whole

Key = tuple[str, int]
"""A requirement: what it is, and of which node, place, group or dependency."""


class Model:
    """Stages, dependencies and slots of a problem; `holding` adds what nodes hold and which are shared.

    By stage: `start`, `end`, in ticks, `uses`: a literal by mode, `intervals`: by mode, none for what takes no time,
    `on`: a literal by node. A requirement that is `droppable` holds where its literal in `given` is true, any other
    always; `capacities` has what those of memory and slots give.
    """

    def __init__(
        self,
        ticks: Ticks,
        modes: Modes,
        bounds: tuple[list[Whole], list[Whole]],
        horizon: int,
        droppable: Iterable[Key] = (),
    ) -> None:
        self.ticks, self.modes, self.horizon = ticks, modes, horizon
        self.heads, self.tails = bounds
        self.cp: Any = cp_model.CpModel()
        self.given = {key: self.cp.new_bool_var(f"{key[0]}{key[1]}") for key in droppable}
        self.makespan = self.cp.new_int_var(0, horizon, "makespan")
        self.start: list[Any] = []
        self.end: list[Any] = []
        self.uses: list[list[Any]] = []
        self.intervals: list[list[Any]] = []
        self.on: list[dict[int, Any]] = []
        self.costs: list[Any] = []
        self.capacities: dict[Key, Any] = {}
        for stage in range(len(modes)):
            self._stage(stage)
        arrays = ticks.problem.arrays
        for edge, (source, sink) in enumerate(zip(arrays.upstream.tolist(), arrays.downstream.tolist(), strict=True)):
            self._dependency(edge, source, sink)
        for place in np.unique(arrays.shares).tolist():
            self._slots(place)
        for stage in sorted(set(range(len(modes))) - set(arrays.upstream.tolist())):
            self.cp.add(self.makespan >= self.end[stage])

    def when(self, key: Key) -> list[Any]:
        """The literals that must be true for a requirement to hold; none where it always does."""
        return [self.given[key]] if key in self.given else []

    def unless(self, key: Key) -> list[Any]:
        """The literals of which one is true where it need not hold."""
        return [literal.negated() for literal in self.when(key)]

    def capacity(self, key: Key, most: int, all_of_it: int) -> Any:
        """`most` where the requirement holds, and as much as there is to hold where not."""
        if key not in self.given:
            return most
        found = self.cp.new_int_var(0, max(most, all_of_it), "")
        self.cp.add(found <= most).only_enforce_if(self.given[key])
        self.capacities[key] = found
        return found

    def _stage(self, stage: int) -> None:
        cp, modes = self.cp, self.modes[stage]
        last = self.horizon - self.tails[stage] - np.array([mode.ticks for mode in modes], dtype=np.int64)
        first, latest = int(self.heads[stage].min(initial=self.horizon)), int(last.max(initial=0))
        started = bool(self.ticks.problem.arrays.started[stage])
        start = cp.new_int_var(0 if started else min(first, latest), 0 if started else max(first, latest), f"s{stage}")
        uses = [cp.new_bool_var(f"u{stage}.{index}") for index in range(len(modes))]
        cp.add_exactly_one(uses)
        end = start + sum(use * mode.ticks for use, mode in zip(uses, modes, strict=True))
        cp.add(start >= sum(use * int(head) for use, head in zip(uses, self.heads[stage], strict=True)))
        cp.add(start <= sum(use * int(at) for use, at in zip(uses, last, strict=True)))
        if len(modes) > 1:
            # An expression of many terms in every dependency and bound would slow propagation.
            found = cp.new_int_var(0, self.horizon, f"e{stage}")
            cp.add(found == end)
            end = found
        # What comes after it at the least is no news to dependencies; to what follows on a place it is.
        rest = sum(use * int(tail) for use, tail in zip(uses, self.tails[stage], strict=True))
        cp.add(self.makespan >= end + rest)
        self.start.append(start)
        self.end.append(end)
        self.uses.append(uses)
        self.intervals.append([self._interval(start, mode, use) for mode, use in zip(modes, uses, strict=True)])
        self.on.append(self._nodes(stage))
        self.costs += [use * mode.penalty for use, mode in zip(uses, modes, strict=True) if mode.penalty]

    def _interval(self, start: Any, mode: Mode, use: Any) -> Any:
        return self.cp.new_optional_fixed_size_interval_var(start, mode.ticks, use, "") if mode.ticks else None

    def _nodes(self, stage: int) -> dict[int, Any]:
        nodes: dict[int, list[Any]] = {}
        for use, node in zip(self.uses[stage], self.ticks.nodes(self.modes[stage]).tolist(), strict=True):
            nodes.setdefault(node, []).append(use)
        found = {}
        for node, uses in nodes.items():
            found[node] = uses[0] if len(uses) == 1 else self.cp.new_bool_var(f"n{stage}.{node}")
            if len(uses) > 1:
                self.cp.add(sum(uses) == found[node])
        return found

    def _dependency(self, edge: int, source: int, sink: int) -> None:
        cp = self.cp
        ups, downs = list(self.on[source]), list(self.on[sink])
        links = _indices(ups), _indices(downs)
        takes, costs = self.ticks.transfer(edge, *links), self.ticks.moved(edge, *links)
        if not costs.any() and takes.min() == takes.max() != NEVER:
            cp.add(self.start[sink] >= self.end[source] + int(takes.max()))
            return
        pairs: dict[tuple[int, int], Any] = {}
        for a, b in np.ndindex(takes.shape):
            one = self.on[sink][downs[b]] if len(ups) == 1 else self.on[source][ups[a]]
            pairs[a, b] = one if 1 in takes.shape else cp.new_bool_var(f"z{edge}.{a}.{b}")
            if takes[a, b] == NEVER or costs[a, b] == NEVER:
                cp.add(pairs[a, b] == 0)
        if 1 not in takes.shape:
            for a, node in enumerate(ups):
                cp.add(sum(pairs[a, b] for b in range(len(downs))) == self.on[source][node])
            for b, node in enumerate(downs):
                cp.add(sum(pairs[a, b] for a in range(len(ups))) == self.on[sink][node])
        waits = sum(literal * int(takes[pair]) for pair, literal in pairs.items() if takes[pair] > 0)
        cp.add(self.start[sink] >= self.end[source] + waits)
        self.costs += [literal * int(costs[pair]) for pair, literal in pairs.items() if costs[pair] > 0]

    def at(self, places: Iterable[int]) -> list[tuple[int, int]]:
        """Stage and index of every mode that takes time on one of these places."""
        wanted = set(places)
        return [
            (stage, index)
            for stage, modes in enumerate(self.modes)
            for index, mode in enumerate(modes)
            if mode.place in wanted and mode.ticks
        ]

    def _slots(self, place: int) -> None:
        arrays = self.ticks.problem.arrays
        here = self.at(np.flatnonzero(arrays.shares == place).tolist())
        cp, key, slots, stages = self.cp, ("slots", place), int(arrays.slots[place]), len({stage for stage, _ in here})
        if stages <= slots:
            return
        intervals = [self.intervals[stage][index] for stage, index in here]
        if slots == 1 and key not in self.given:
            cp.add_no_overlap(intervals)
        else:
            cp.add_cumulative(intervals, [1] * len(here), self.capacity(key, slots, stages))
        if key not in self.given:
            self._work(place, here, slots)

    def _work(self, place: int, here: list[tuple[int, int]], slots: int) -> None:
        """What a place works fits between the first moment it can begin and the last at which it must be done."""
        used = self.cp.new_bool_var(f"p{place}")
        for stage, index in here:
            self.cp.add_implication(self.uses[stage][index], used)
        work = sum(self.uses[stage][index] * self.modes[stage][index].ticks for stage, index in here)
        idle = min(int(self.heads[stage][index]) for stage, index in here)
        idle += min(int(self.tails[stage][index]) for stage, index in here)
        self.cp.add(work <= slots * (self.makespan - idle * used))

    def minimise(self, most: int) -> None:
        """Make makespan and penalties as small as can be, and no greater than `most` ticks."""
        objective = self.makespan + sum(self.costs)
        self.cp.add(objective <= most)
        self.cp.minimize(objective)


def _indices(values: list[int]) -> Indices:
    return np.array(values, dtype=np.int32)
