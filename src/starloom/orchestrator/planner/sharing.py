"""Plans where nodes share one machine's cores: how long one takes, played through as a fluid, and a better one. Pure.

    shared = Shared(problem, cores=2.0, processor=seconds)
    shared.replay(plan).makespan
    shared.better(plan)

A plan takes each node for a machine of its own. On the embedded cluster all nodes are processes of one machine, and
stages that want more cores than there are get an equal share each (processor sharing, Kleinrock 1967), so that they
take longer than the plan has them. There, slots are worth leaving empty: what waits for one takes no share from others.
"""

import heapq
from typing import Final

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner.check import penalty, transfer_seconds
from starloom.orchestrator.planner.planning import Budget
from starloom.orchestrator.planner.planning import plan as find
from starloom.orchestrator.planner.problem import NO_MODEL, Flags, Floats, Indices, Plan, Problem, successors

ROUNDS_MAX: Final = 4
LEAST_GAIN_SECONDS: Final = 1e-4
"""Less is no gain: a hop takes more than that."""

_SLACK: Final = 1e-9
"""Seconds by which rounding may put the end of a share off."""


class Shared:
    """A problem whose places share `cores`. `processor` [n, m]: of a stage's seconds at a place, those that want a core.

    They come first; loading wants one as well. A place begins what is ready in the order of the plan. Models that other
    stages load are not waited for: meant for plans whose models are resident.
    """

    def __init__(self, problem: Problem, cores: float, processor: Floats) -> None:
        self.problem, self._cores, self._processor = problem, cores, processor

    def replay(self, plan: Plan) -> Plan:
        """The plan with the starts, finishes and makespan that its places give where the cores are shared."""
        return _Replay(self.problem, plan, self._cores, self._processor).run()

    def better(self, plan: Plan) -> Plan:
        """A plan with a smaller objective where the cores are shared, or the same; without sharing it may be a worse one.

        All on one node as far as that may be is tried, for each node, and then each stage on each other place, again and
        again until none gains, or at most ROUNDS_MAX times. Stages are moved only to where their models are resident.
        """
        places, value = plan.place, self._value(plan, plan.place)
        for node in range(len(self.problem.nodes)):
            tried = self._gathered(plan.place, node)
            if (found := self._value(plan, tried)) < value - LEAST_GAIN_SECONDS:
                places, value = tried, found
        for _ in range(ROUNDS_MAX):
            before = value
            for stage in range(len(places)):
                for place in np.flatnonzero(self._open(stage)):
                    tried = places.copy()
                    tried[stage] = place
                    if (found := self._value(plan, tried)) < value - LEAST_GAIN_SECONDS:
                        places, value = tried, found
            if value == before:
                break
        return self._held(plan, places)

    def _value(self, plan: Plan, places: Indices) -> float:
        tried = plan._replace(place=places, loads=np.zeros_like(plan.loads))
        return self.replay(tried).makespan + penalty(self.problem, tried)

    def _gathered(self, places: Indices, node: int) -> Indices:
        """Every stage that may stand on the node moved to its first place there that the stage may have."""
        found = places.copy()
        for stage in range(len(places)):
            here = np.flatnonzero(self._open(stage) & (self.problem.arrays.node == node))
            if len(here):
                found[stage] = here[0]
        return found

    def _open(self, stage: int) -> Flags:
        arrays = self.problem.arrays
        may: Flags = np.isfinite(arrays.seconds[stage])
        model = arrays.model[stage]
        return may if model == NO_MODEL else may & arrays.resident[model][arrays.node]

    def _held(self, plan: Plan, places: Indices) -> Plan:
        """The plan on these places that keeps what the problem asks for; the one given if there is none."""
        if (places == plan.place).all():
            return plan
        seconds = np.full_like(self.problem.arrays.seconds, np.inf)
        at = np.arange(len(places))
        seconds[at, places] = self.problem.arrays.seconds[at, places]
        bound = self.problem._replace(arrays=self.problem.arrays._replace(seconds=seconds))
        try:
            return find(bound, Budget(0))
        except Infeasible:
            return plan


class _Replay:
    """Arrivals, stages at a core and stages that only wait, by the second at which they come or end."""

    def __init__(self, problem: Problem, plan: Plan, cores: float, processor: Floats) -> None:
        arrays, n = problem.arrays, len(plan.place)
        self._problem, self._plan, self._cores = problem, plan, cores
        at, load = np.arange(n), np.zeros(n)
        load[plan.loads] = arrays.load_seconds[arrays.model[plan.loads], plan.place[plan.loads]]
        self._length = arrays.seconds[at, plan.place] + load
        self._processor = np.minimum(processor[at, plan.place] + load, self._length)
        self._waits = np.bincount(arrays.downstream, minlength=n)
        self._there = arrays.release.copy()
        self._heads, self._follows = successors(arrays)
        self._shares = arrays.shares
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
        slots = int(self._shares[self._plan.place[stage]])
        heapq.heappush(self._queues[slots], (float(self._plan.start[stage]), stage))
        self._fill(slots, now)

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
            slots = int(self._shares[place])
            self._free[slots] += 1
            self._fill(slots, now)
