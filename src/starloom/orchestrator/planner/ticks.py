"""A problem's seconds as whole ticks, rounded up, as CP-SAT takes them: what holds in ticks holds in seconds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.problem import NO_MODEL, Floats, Indices, Problem, order, predecessors, successors

Whole = npt.NDArray[np.int64]

NEVER = -1
"""In ticks: a run that may not be, a transfer that no link carries."""

EXACT = 1e-9
"""Ticks by which a number may exceed a whole one and still be it: what dividing leaves."""

FAR = 1 << 50
"""Ticks that no plan reaches."""


class Mode(NamedTuple):
    """One way for a stage to run: where, and how many ticks loading its model (0 for no load) and all of it take."""

    place: int
    loads: bool
    ticks: int
    load_ticks: int
    penalty: int


Modes = Sequence[Sequence[Mode]]
"""By stage."""


class Ticks(NamedTuple):
    """`modes` [n]: the ways each stage may run. `base` [n], `opens` [m]: earliest starts, by stage and by place."""

    problem: Problem
    tick: float
    modes: Modes
    base: Whole
    opens: Whole

    def transfer(self, edge: int, sources: Indices, sinks: Indices) -> Whole:
        """What a dependency's value takes from each node of `sources` to each of `sinks`; NEVER where it cannot."""
        arrays, links = self.problem.arrays, np.ix_(sources, sinks)
        size = float(arrays.size_bytes[edge])
        # Of nothing, a link without end carries nothing, too: infinity times zero is no number.
        return up(arrays.latency[links] + (size * arrays.seconds_per_byte[links] if size else 0.0), self.tick)

    def moved(self, edge: int, sources: Indices, sinks: Indices) -> Whole:
        """The penalty of a dependency's value, likewise."""
        arrays = self.problem.arrays
        return near(arrays.byte_penalty[np.ix_(sources, sinks)] * arrays.size_bytes[edge], self.tick)

    def nodes(self, modes: Sequence[Mode]) -> Indices:
        """The node of each mode."""
        return self.problem.arrays.node[[mode.place for mode in modes]]

    def soonest(self, stage: int, mode: Mode) -> int:
        """Before which the stage may not start in this mode, whatever else runs."""
        arrays = self.problem.arrays
        if arrays.started[stage]:
            return 0
        opens = int(self.opens[mode.place]) if arrays.seconds[stage, mode.place] > 0 else 0
        return max(int(self.base[stage]), opens)

    def rounding(self) -> int:
        """Ticks by which the objective of a plan in ticks may exceed that of the same plan in seconds.

        On a path each stage's start, load and run, and each transfer, are rounded up; penalties to the nearest.
        """
        arrays, n = self.problem.arrays, len(self.modes)
        costs = bool(arrays.penalty.any()) * n + bool(arrays.byte_penalty.any()) * len(arrays.upstream)
        costs += bool(np.isfinite(arrays.crowding).any()) * n
        return 3 * n + 1 + (costs + 1) // 2

    def within(self, seconds: float) -> int:
        """The most ticks that a plan in ticks can take which takes no more than so many seconds: rounding up rules out none."""
        return math.ceil(seconds / self.tick) + self.rounding()


def up(seconds: Floats, tick: float) -> Whole:
    """Rounded up; what takes any time takes a tick at least, and none more than FAR: whole numbers end before floats do."""
    found = np.minimum(np.ceil(np.where(np.isfinite(seconds), seconds, 0.0) / tick - EXACT), FAR).astype(np.int64)
    return np.where(np.isfinite(seconds), np.maximum(found, seconds > 0), NEVER)


def near(seconds: Floats, tick: float) -> Whole:
    """Rounded to the nearest, to FAR at the most."""
    found = np.minimum(np.rint(np.where(np.isfinite(seconds), seconds, 0.0) / tick), FAR).astype(np.int64)
    return np.where(np.isfinite(seconds), found, NEVER)


def ticked(problem: Problem, tick: float) -> Ticks:
    """A problem in ticks of so many seconds."""
    arrays = problem.arrays
    run, cost = up(arrays.seconds, tick), near(arrays.penalty, tick)
    load, opens, release = up(arrays.load_seconds, tick), up(arrays.available, tick), up(arrays.release, tick)
    modes: list[list[Mode]] = []
    for stage in range(len(problem.stages)):
        started, model = bool(arrays.started[stage]), int(arrays.model[stage])
        found: list[Mode] = []
        for place in np.flatnonzero(run[stage] != NEVER).tolist():
            takes, price = int(run[stage, place]), int(cost[stage, place])
            if price == NEVER or not (started or (release[stage] != NEVER and (opens[place] != NEVER or not takes))):
                continue
            needs = model != NO_MODEL and not started and takes > 0 and not arrays.resident[model, arrays.node[place]]
            loading = int(load[model, place]) if needs else 0
            # Loading that takes no time is never worse than to find the model loaded.
            if not needs or loading != 0:
                found.append(Mode(place, False, takes, 0, price))
            if needs and loading != NEVER:
                found.append(Mode(place, True, takes + loading, loading, price))
        modes.append(found)
    return Ticks(problem, tick, modes, release, opens)


def fitting_tick(scale: float) -> float:
    """A power of ten, some millionths of `scale` seconds: most numbers that people write are whole in it."""
    return 10.0 ** math.floor(math.log10(scale * 1e-6)) if scale > 0 else 1.0


def heads(ticks: Ticks, modes: Modes) -> list[Whole]:
    """By stage and mode: before which tick it cannot start, as its upstreams run and send at their best."""
    arrays = ticks.problem.arrays
    edges, leads = predecessors(arrays)
    found: list[Whole] = [np.zeros(0, dtype=np.int64)] * len(modes)
    for stage in order(arrays).tolist():
        head = np.array([ticks.soonest(stage, mode) for mode in modes[stage]], dtype=np.int64)
        for edge in leads[edges[stage] : edges[stage + 1]]:
            source = int(arrays.upstream[edge])
            ends = found[source] + np.array([mode.ticks for mode in modes[source]], dtype=np.int64)
            sends = ticks.transfer(edge, ticks.nodes(modes[source]), ticks.nodes(modes[stage]))
            there = np.where(sends == NEVER, FAR, ends[:, None] + sends)
            head = np.maximum(head, there.min(axis=0, initial=FAR))
        found[stage] = np.minimum(head, FAR)
    return found


def tails(ticks: Ticks, modes: Modes, after: Whole | None = None) -> list[Whole]:
    """By stage and mode: how many ticks the job takes after its end, at least; `after` [m] what it does by place."""
    arrays = ticks.problem.arrays
    edges, follows = successors(arrays)
    found: list[Whole] = [np.zeros(0, dtype=np.int64)] * len(modes)
    for stage in reversed(order(arrays).tolist()):
        tail = np.zeros(len(modes[stage]), dtype=np.int64)
        if after is not None:
            tail = np.array([after[mode.place] if mode.ticks else 0 for mode in modes[stage]], dtype=np.int64)
        for edge in follows[edges[stage] : edges[stage + 1]]:
            sink = int(arrays.downstream[edge])
            rest = found[sink] + np.array([mode.ticks for mode in modes[sink]], dtype=np.int64)
            sends = ticks.transfer(edge, ticks.nodes(modes[stage]), ticks.nodes(modes[sink]))
            last = np.where(sends == NEVER, FAR, rest[None, :] + sends)
            tail = np.maximum(tail, last.min(axis=1, initial=FAR))
        found[stage] = np.minimum(tail, FAR)
    return found
