"""Rounds that overlap on the same slots and links, one event after the other: how long they take in the steady state. Pure.

Seconds of runs are drawn from what is known of them, the same for the same seed. A slot takes the oldest round's work first: in
that order nothing piles up where no resource is busy all the time (Bramson, "Stability of Queueing Networks", 2008).
"""

import heapq
from collections import defaultdict
from typing import Final, NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.orchestrator.planner.passing import Passing
from starloom.orchestrator.planner.problem import Floats, Indices, Plan, Problem, predecessors, successors, working
from starloom.orchestrator.planner.steady import Pace, room, sending

_WARM: Final = 0.2
"""The share of rounds that come first and do not count: in them queues are still to fill."""
_PASSED, _READY, _DONE, _FREE, _SHARE = range(5)


class Rounds(NamedTuple):
    """What was simulated. `job` [r]: whose round it was. `seconds` [r]: from when it was due until all of it was done.

    `start`, `finish` [r, n]: of each stage after its round was due, infinite for stages of other jobs. `growth`: by how much of its period
    a round of the last quarter took longer than one of the quarter before it, of the job of which that is most: above 0 where work piles up.
    """

    job: Indices
    seconds: Floats
    start: Floats
    finish: Floats
    growth: float

    def quantile(self, share: float, job: int | None = None) -> float:
        """The seconds within which so many rounds end, of one job or of all."""
        return quantile(self.seconds if job is None else self.seconds[self.job == job], share)

    def within(self, seconds: float, job: int | None = None) -> float:
        """The share of rounds that end within so many seconds."""
        mine = self.seconds if job is None else self.seconds[self.job == job]
        return float((mine <= seconds * (1 + 1e-9)).mean()) if len(mine) else 1.0


def quantile(values: Floats, share: float) -> float:
    """The least of the values that at most `1 - share` of them are above; 0 of none."""
    ordered = np.sort(values)
    return float(ordered[max(0, int(np.ceil(share * len(ordered) - 1e-9)) - 1)]) if len(ordered) else 0.0


def simulate(problem: Problem, plan: Plan, pace: Pace, *, rounds: int = limits.PLAN_ROUNDS, seed: int = 0) -> Rounds:
    """Rounds of the plan's placement at a period above 0; of jobs that come less often there are fewer. Models are loaded.

    `rounds`: of the job that comes most often. Times beside runs are as the problem has them. A value keeps its link
    busy for as long as its bytes take, and is there after the link's latency too. Links that pass up-links share these
    fairly, and what waits on a link counts there.
    """
    run = _Run(problem, plan, pace, rounds, seed)
    run.go()
    return run.told()


class _Run:
    """One simulation: an agenda of events, a queue for each place, and when each link is free."""

    def __init__(self, problem: Problem, plan: Plan, pace: Pace, rounds: int, seed: int) -> None:
        arrays = problem.arrays
        n, each = len(problem.stages), np.arange(len(problem.stages))
        self.problem, self.pace, self.place = problem, pace, arrays.shares[plan.place].tolist()
        self.node = arrays.node[plan.place].tolist()
        self.came = sorted(
            (number * pace.period(job), job)
            for job in range(pace.jobs)
            for number in range(int(np.ceil(rounds * pace.every / pace.period(job) - 1e-9)))
        )
        spread = np.sqrt(np.log1p(pace.deviation**2))
        drawn = np.random.default_rng(seed).standard_normal((len(self.came), n))
        # Lognormal, with the seconds that were predicted as its mean.
        factors = np.exp(drawn * spread - spread**2 / 2)
        self.seconds = (arrays.seconds[each, plan.place] * factors).tolist()
        self.sends = sending(problem, plan.place).tolist()
        a, b = arrays.node[plan.place[arrays.upstream]], arrays.node[plan.place[arrays.downstream]]
        self.latency = arrays.latency[a, b].tolist()
        self.heads, self.follows = (column.tolist() for column in successors(arrays))
        self.waits = np.diff(predecessors(arrays)[0])
        self.sink = arrays.downstream.tolist()
        # Of one round what the plan has first goes first.
        self.turn = np.argsort(np.argsort(plan.start, kind="stable")).tolist()
        self.alone, self.working = pace.alone.tolist(), working(arrays, plan.place).tolist()
        self.left = room(problem, plan.place).tolist()
        self.slots = arrays.slots.tolist()
        self.running = [0] * len(problem.nodes)
        self.busy: set[int] = set()
        self.queues: list[list[tuple[int, int, int]]] = [[] for _ in problem.places]
        self.links: defaultdict[tuple[int, int], float] = defaultdict(float)
        self.passing, self.size, self.shares_at = Passing(problem, plan.place), arrays.size_bytes.tolist(), np.nan
        self.missing = [self.waits.tolist() for _ in self.came]
        self.start, self.finish = np.full((2, len(self.came), n), np.inf)
        self.agenda: list[tuple[float, int, int, int, int]] = []
        self.seq = 0

    def go(self) -> None:
        for number, (at, job) in enumerate(self.came):
            for stage in np.flatnonzero((self.pace.job == job) & (self.waits == 0)).tolist():
                self._put(at, _READY, number, stage)
        while self.agenda:
            now, what, _, number, stage = heapq.heappop(self.agenda)
            if what == _READY:
                self._ready(now, number, stage)
            elif what == _DONE:
                self._done(now, number, stage)
            elif what == _FREE:
                self._serve(now, stage)
            elif what == _PASSED:
                self._passed(now)
            else:
                self._share(now)

    def told(self) -> Rounds:
        due, job = np.array([at for at, _ in self.came]), np.array([job for _, job in self.came], dtype=np.int32)
        ends = np.where(np.isfinite(self.finish), self.finish, 0.0).max(axis=1, initial=0.0) - due
        growth = max(
            (_growth(ends[job == each], self.pace.period(each)) for each in range(self.pace.jobs)), default=0.0
        )
        counts = np.zeros(len(due), dtype=np.bool_)
        for each in range(self.pace.jobs):
            mine = np.flatnonzero(job == each)
            counts[mine[int(len(mine) * _WARM) :]] = True
        start, finish = self.start - due[:, None], self.finish - due[:, None]
        return Rounds(job[counts], ends[counts], start[counts], finish[counts], growth)

    def _put(self, at: float, what: int, number: int, stage: int) -> None:
        self.seq += 1
        heapq.heappush(self.agenda, (at, what, self.seq, number, stage))

    def _ready(self, now: float, number: int, stage: int) -> None:
        if self.seconds[number][stage] <= 0:
            self.start[number, stage] = now
            self._after(now, number, stage)
            return
        heapq.heappush(self.queues[self.place[stage]], (number, self.turn[stage], stage))
        # What becomes ready at the same moment is looked at together, so that the oldest goes first.
        self._put(now, _FREE, number, self.place[stage])

    def _serve(self, now: float, place: int) -> None:
        queue, passed = self.queues[place], []
        while queue and self.slots[place]:
            number, turn, stage = heapq.heappop(queue)
            node = self.node[stage]
            if self.alone[stage] and stage in self.busy:
                passed.append((number, turn, stage))
                continue
            # Nobody passes one that waits for memory: those that need little would keep it waiting for ever.
            if self.running[node] and self.working[stage] > self.left[node] * (1 + 1e-6):
                passed.append((number, turn, stage))
                break
            self._begin(now, number, stage)
        for each in passed:
            heapq.heappush(queue, each)

    def _begin(self, now: float, number: int, stage: int) -> None:
        node = self.node[stage]
        self.slots[self.place[stage]] -= 1
        self.running[node] += 1
        self.left[node] -= self.working[stage]
        if self.alone[stage]:
            self.busy.add(stage)
        self.start[number, stage] = now
        self._put(now + self.seconds[number][stage], _DONE, number, stage)

    def _done(self, now: float, number: int, stage: int) -> None:
        node = self.node[stage]
        self.slots[self.place[stage]] += 1
        self.running[node] -= 1
        self.left[node] += self.working[stage]
        self.busy.discard(stage)
        self._after(now, number, stage)
        # Memory is of the node: who waits for it may stand on another of its places.
        for place, queue in enumerate(self.queues):
            if queue and self.problem.arrays.node[place] == node:
                self._put(now, _FREE, number, place)

    def _after(self, now: float, number: int, stage: int) -> None:
        self.finish[number, stage] = now
        for edge in self.follows[self.heads[stage] : self.heads[stage + 1]]:
            there, key = now, (self.node[stage], self.node[self.sink[edge]])
            if key[0] != key[1]:
                if self.sends[edge] and self.passing.has(key):
                    self.passing.put(now, key, (number, edge), self.size[edge])
                    self._share_later(now)
                    continue
                if self.sends[edge]:
                    there = self.links[key] = max(now, self.links[key]) + self.sends[edge]
                there += self.latency[edge]
            self._there(there, number, edge)

    def _there(self, at: float, number: int, edge: int) -> None:
        sink = self.sink[edge]
        self.missing[number][sink] -= 1
        # Inputs come in any order; who waits for several is ready with the last.
        self.start[number, sink] = max(at, _known(self.start[number, sink]))
        if not self.missing[number][sink]:
            self._put(float(self.start[number, sink]), _READY, number, sink)

    def _passed(self, now: float) -> None:
        for number, edge in self.passing.ended(now):
            self._there(now + self.latency[edge], number, edge)
            self._share_later(now)

    def _share_later(self, now: float) -> None:
        """Once all of this moment is known: rates matter when time goes on."""
        if self.shares_at != now:
            self.shares_at = now
            self._put(now, _SHARE, 0, 0)

    def _share(self, now: float) -> None:
        self.shares_at = np.nan
        if (first := self.passing.shared(now)) < np.inf:
            self._put(first, _PASSED, 0, 0)


def _known(value: float) -> float:
    return value if np.isfinite(value) else 0.0


def _growth(seconds: Floats, period: float) -> float:
    quarter = len(seconds) // 4
    if not quarter:
        return 0.0
    return float(seconds[-quarter:].mean() - seconds[-2 * quarter : -quarter].mean()) / (quarter * period)
