"""Attempts that wait at their agent for their inputs or for a slot, in the order in which they go on. Pure."""

import heapq
from collections.abc import Container, Mapping

from starloom.agents.attempts import Attempt, Phase
from starloom.agents.batching import Batches
from starloom.agents.instructions import Fetch, Instruction, Preload, Start, StartTogether, Wake
from starloom.agents.messages import Assign
from starloom.agents.preloads import Preloads
from starloom.dag import limits
from starloom.dag.ids import TaskToken
from starloom.dag.kinds import Batch

_Queue = list[tuple[tuple[int, int, int], TaskToken]]


class Lines:
    """The lines of one agent, some of whose `attempts` stand in them. Methods append the instructions that follow to `found`.

    A kind whose last run was shorter than AGENT_CHEAP_NANOS is handed to the workers up to AGENT_AHEAD_STAGES
    beyond the slots, so that a worker finds its next run without the event loop's help.
    """

    def __init__(
        self,
        attempts: Mapping[TaskToken, Attempt],
        slots: int,
        streaming: Container[str],
        batching: Mapping[str, Batch],
        preloads: Preloads,
    ) -> None:
        self._attempts = attempts
        self._slots = slots
        self._streaming = streaming
        self._batches = Batches(batching)
        self._preloads = preloads
        self._to_fetch: _Queue = []
        self._ready: _Queue = []
        #: streaming ones that are ready
        self._flowing: list[Attempt] = []
        self._fetched_ahead = 0
        #: slots that are taken, and what was handed out beyond them
        self.handed = 0
        self._cheap: set[str] = set()

    def fetch(self, attempt: Attempt) -> None:
        """Its inputs are elsewhere."""
        heapq.heappush(self._to_fetch, (attempt.rank, attempt.assign.task))

    def make_ready(self, attempt: Attempt, found: list[Instruction], now: int) -> None:
        """Its inputs are here: it starts when it has a slot."""
        attempt.phase = Phase.READY
        if attempt.assign.kind in self._streaming:
            self._flowing.append(attempt)
        elif self._batches.takes(attempt.assign.kind):
            if (at := self._batches.add(attempt, now, self._has_others(attempt.assign))) is not None:
                found.append(Wake(at))
        else:
            heapq.heappush(self._ready, (attempt.rank, attempt.assign.task))

    def advance(self, found: list[Instruction], now: int) -> None:
        """Starts what has a slot, and fetches for what comes next."""
        if self._flowing:
            flowing, self._flowing = self._flowing, []
            there = (attempt for attempt in flowing if self._attempts.get(attempt.assign.task) is attempt)
            found += [self._hand(attempt) for attempt in there if attempt.phase is Phase.READY]
        waiting = self._start_ready(found, now)
        while self._fetched_ahead < self._slots + limits.AGENT_FETCHES_AHEAD:
            queued = self._head(self._to_fetch, Phase.QUEUED)
            if queued is None:
                break
            heapq.heappop(self._to_fetch)
            self._ahead(queued, True)
            queued.phase, queued.since = Phase.FETCHING, now
            found.append(Fetch(queued.assign))
        if wish := self._preloads.begin(waiting.assign if waiting else None):
            found.append(Preload(*wish))

    def free_slot(self, attempt: Attempt) -> None:
        """It computes no more; of those that share a slot, the last one frees it."""
        if attempt.together is not None:
            attempt.together.discard(attempt.assign.task)
        self.handed -= not attempt.together and attempt.assign.kind not in self._streaming

    def leave(self, attempt: Attempt) -> None:
        """It has ended, wherever it stood."""
        self._ahead(attempt, False)
        if attempt.phase in (Phase.HANDED, Phase.RUNNING):
            self.free_slot(attempt)
        if attempt.phase is Phase.READY:
            self._batches.remove(attempt)

    def learn(self, attempt: Attempt, now: int) -> None:
        """How long it ran tells whether its kind is cheap."""
        if now - attempt.since < limits.AGENT_CHEAP_NANOS:
            self._cheap.add(attempt.assign.kind)
        else:
            self._cheap.discard(attempt.assign.kind)

    def _has_others(self, assign: Assign) -> bool:
        """Whether more of the same may come to be ready, now or when what runs has ended."""
        found = (attempt.assign for attempt in self._attempts.values() if attempt.assign.task != assign.task)
        return any((other.kind, other.target) == (assign.kind, assign.target) for other in found)

    def _start_ready(self, found: list[Instruction], now: int) -> Attempt | None:
        """Starts what has a slot, the most urgent first; the first that is left without one."""
        while True:
            ready, due = self._head(self._ready, Phase.READY), self._batches.first(now)
            if due is not None and (ready is None or due.rank < ready.rank):
                if self.handed >= self._slots:
                    return due
                taken = self._batches.take(due)
                together = {attempt.assign.task for attempt in taken}
                for attempt in taken:
                    attempt.together = together
                found.append(StartTogether(tuple(map(self._hand, taken))))
            elif ready is not None:
                if self.handed >= self._slots + limits.AGENT_AHEAD_STAGES * (ready.assign.kind in self._cheap):
                    return ready
                heapq.heappop(self._ready)
                found.append(self._hand(ready))
            else:
                return None
            self.handed += 1

    def _hand(self, attempt: Attempt) -> Start:
        self._ahead(attempt, False)
        attempt.phase = Phase.HANDED
        self._preloads.started(attempt.assign)
        return Start(attempt.assign, attempt.accepted, attempt.fetching)

    def _ahead(self, attempt: Attempt, ahead: bool) -> None:
        self._fetched_ahead += ahead - attempt.ahead
        attempt.ahead = ahead

    def _head(self, queue: _Queue, phase: Phase) -> Attempt | None:
        """The first attempt of a queue that still belongs there."""
        while queue:
            attempt = self._attempts.get(queue[0][1])
            if attempt is not None and attempt.phase is phase:
                return attempt
            heapq.heappop(queue)
        return None
