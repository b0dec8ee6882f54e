"""Values of rounds that overlap, on links behind up-links: one after the other on each link, and each up-link's rate shared fairly. Pure.

Who waits on a link counts where that link shares, as all of them would have connections of their own: so rates are those of
max-min fair sharing by values, under which nothing piles up where no up-link is busy all the time (Bonald, Massoulié 2001).
"""

from collections import deque

import numpy as np

from starloom.orchestrator.planner.flowing import shares
from starloom.orchestrator.planner.problem import Indices, Problem
from starloom.orchestrator.planner.uplinks import passed, still, ways

Pair = tuple[int, int]
"""A link: from one node to another, by their numbers."""
Value = tuple[int, int]
"""What passes, as whoever puts it calls it: a round, and which of the dependencies."""


class Passing:
    """The links that pass up-links with stages on these places [n], what waits on each, and what is on its way."""

    def __init__(self, problem: Problem, place: Indices) -> None:
        arrays, over = problem.arrays, passed(problem, place)
        nodes = arrays.node[place]
        a, b = nodes[arrays.upstream[over]].tolist(), nodes[arrays.downstream[over]].tolist()
        self._pairs = sorted(set(zip(a, b, strict=True)))
        self._number = {pair: number for number, pair in enumerate(self._pairs)}
        source, sink = np.array(self._pairs, dtype=np.int32).reshape(-1, 2).T
        self._ways = ways(problem, source, sink, np.ones(len(source), dtype=np.bool_))
        self._flows = still(len(source), len(self._ways.rate))
        self._flows.end[:] = np.inf
        self._queues: list[deque[tuple[Value, float]]] = [deque() for _ in self._pairs]
        self._going = 0

    def has(self, pair: Pair) -> bool:
        """Whether what goes over this link passes an up-link."""
        return pair in self._number

    def put(self, now: float, pair: Pair, value: Value, size: float) -> None:
        """A value of so many bytes is to go over a link; `shared` has to be asked before time goes on."""
        link = self._number[pair]
        self._queues[link].append((value, size))
        if len(self._queues[link]) == 1:
            self._flows.active[self._going] = link
            self._going += 1
            self._begin(now, link)
        self._flows.many[link] = len(self._queues[link])

    def ended(self, now: float) -> list[Value]:
        """What has passed by now; if that is anything, `shared` has to be asked before time goes on."""
        active = self._flows.active[: self._going]
        found = []
        for link in active[self._flows.end[active] <= now].tolist():
            found.append(self._queues[link].popleft()[0])
            self._flows.many[link] = len(self._queues[link])
            if self._queues[link]:
                self._begin(now, link)
        left = [link for link in active.tolist() if self._queues[link]]
        self._going = len(left)
        self._flows.active[: self._going] = left
        return found

    def shared(self, now: float) -> float:
        """Has all that is on its way share up-links anew; when the first of it will have passed, infinite where nothing is."""
        return shares(self._ways, self._flows, self._going, now)

    def _begin(self, now: float, link: int) -> None:
        flows = self._flows
        flows.left[link], flows.since[link], flows.speed[link] = self._queues[link][0][1], now, 0.0
        flows.end[link] = np.inf
