"""How long a plan takes where nodes share one machine's cores: played through, as a fluid. Pure.

    expected = replay(problem, plan, cores=2.0, processor=seconds)
    expected.makespan

A plan takes each node for a machine of its own. On the embedded cluster all nodes are processes of one machine, and
stages that want more cores than there are get an equal share each (processor sharing, Kleinrock 1967), so that they
take longer than the plan has them.
"""

import heapq
from typing import Final

import numpy as np

from starloom.orchestrator.planner.check import transfer_seconds
from starloom.orchestrator.planner.problem import Floats, Plan, Problem, successors

_SLACK: Final = 1e-9
"""Seconds by which rounding may put the end of a share off."""


def replay(problem: Problem, plan: Plan, cores: float, processor: Floats) -> Plan:
    """The plan with the starts, finishes and makespan that its places give where `cores` are shared by all of them.

    `processor` [n]: of the seconds that a stage takes at its place, those that want a core; they come first. Loading
    wants one as well. A place begins what is ready in the order of the plan. Models that other stages load are not
    waited for: meant for plans whose models are resident.
    """
    return _Replay(problem, plan, cores, processor).run()


class _Replay:
    """Arrivals, stages at a core and stages that only wait, by the second at which they come or end."""

    def __init__(self, problem: Problem, plan: Plan, cores: float, processor: Floats) -> None:
        arrays, n = problem.arrays, len(plan.place)
        self._problem, self._plan, self._cores = problem, plan, cores
        self._length = plan.finish - plan.start
        load = np.where(plan.loads, self._length - arrays.seconds[np.arange(n), plan.place], 0.0)
        self._processor = np.minimum(processor + load, self._length)
        self._waits = np.bincount(arrays.downstream, minlength=n)
        self._there = arrays.release.copy()
        self._heads, self._follows = successors(arrays)
        self._free = [place.slots for place in problem.places]
        self._queues: list[list[tuple[float, int]]] = [[] for _ in problem.places]
        self._arrivals = [(float(self._there[i]), i) for i in range(n) if not self._waits[i]]
        self._busy: dict[int, float] = {}
        self._resting: list[tuple[float, int]] = []
        self._start, self._finish = np.zeros(n), np.zeros(n)

    def run(self) -> Plan:
        heapq.heapify(self._arrivals)
        now = 0.0
        while self._arrivals or self._busy or self._resting:
            then = self._next(now)
            share = (then - now) * self._rate()
            now = then
            for stage in list(self._busy):
                self._busy[stage] -= share
                if self._busy[stage] <= _SLACK:
                    del self._busy[stage]
                    rest = float(self._length[stage] - self._processor[stage])
                    heapq.heappush(self._resting, (now + rest, stage))
            while self._resting and self._resting[0][0] <= now + _SLACK:
                self._end(heapq.heappop(self._resting)[1], now)
            while self._arrivals and self._arrivals[0][0] <= now + _SLACK:
                self._arrive(heapq.heappop(self._arrivals)[1], now)
        return self._plan._replace(
            start=self._start, finish=self._finish, makespan=float(self._finish.max(initial=0.0)), method="replayed"
        )

    def _rate(self) -> float:
        return min(1.0, self._cores / len(self._busy)) if self._busy else 0.0

    def _next(self, now: float) -> float:
        moments = [heap[0][0] for heap in (self._arrivals, self._resting) if heap]
        if self._busy:
            moments.append(now + min(self._busy.values()) / self._rate())
        return max(now, min(moments))

    def _arrive(self, stage: int, now: float) -> None:
        if self._length[stage] <= 0.0:
            self._start[stage] = now
            self._end(stage, now)
            return
        heapq.heappush(self._queues[self._plan.place[stage]], (float(self._plan.start[stage]), stage))
        self._fill(int(self._plan.place[stage]), now)

    def _fill(self, place: int, now: float) -> None:
        while self._free[place] and self._queues[place]:
            _, stage = heapq.heappop(self._queues[place])
            self._free[place] -= 1
            self._start[stage] = now
            self._busy[stage] = float(self._processor[stage])

    def _end(self, stage: int, now: float) -> None:
        self._finish[stage] = now
        place = int(self._plan.place[stage])
        for edge in self._follows[self._heads[stage] : self._heads[stage + 1]]:
            down = int(self._problem.arrays.downstream[edge])
            came = now + transfer_seconds(self._problem, int(edge), place, int(self._plan.place[down]))
            self._there[down] = max(self._there[down], came)
            self._waits[down] -= 1
            if not self._waits[down]:
                heapq.heappush(self._arrivals, (float(self._there[down]), down))
        if self._length[stage] > 0.0:
            self._free[place] += 1
            self._fill(place, now)
