"""Fetches between simulated agents, as `agents.fetching` has them: one holder after another, with patience."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starloom.agents.messages import Source
from starloom.dag import limits
from starloom.dag.ids import AgentId, JobId
from starloom.dag.values import ValueRef
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.loop import SECOND

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess


class FetchOne:
    """One value on its way. `done` is called once it is here, or cannot be had, unless the fetch was stopped.

    `gone`: None if it is here; else whether all who were asked answered that they do not have it.
    """

    def __init__(
        self,
        process: "AgentProcess",
        job: JobId,
        ref: ValueRef,
        sources: Sequence[Source],
        done: Callable[["FetchOne"], None],
    ) -> None:
        self._process = process
        self._world = process.world
        self._loop = process.loop
        self.job = job
        self.ref = ref
        self.missing: list[AgentId] = []
        self.gone: bool | None = None
        self._left = deque(sources)
        self._done = done
        self._damaged: set[str] = set()
        self._asked = 0
        self._wait = limits.RECONNECT_FIRST_SECONDS
        self._give_up = self._loop.now + round(limits.INPUT_PATIENCE_SECONDS * SECOND)
        self._stopped = False
        self._ask()

    def stop(self) -> None:
        """Nobody waits for it any more."""
        self._stopped = True

    def _ask(self) -> None:
        if self._stopped:
            return
        seconds = self._world.transfer_seconds(self._process, self._left[0].address, self.ref)
        self._loop.after(seconds, self._answered, self._process)

    def _answered(self) -> None:
        if self._stopped:
            return
        source = self._left[0]
        there = self._world.has(self._process, source.address, self.ref.digest, self.job)
        damaged = bool(there) and self._world.trouble.fires(FaultKind.FETCH_DAMAGED)
        if there and not damaged:
            self._done(self)
            return
        if damaged and source.address not in self._damaged:
            self._damaged.add(source.address)
            self._asked += 1
            self._left.rotate(-1)
        elif there is None:
            self._asked += 1
            if self._asked >= len(self._left) and source.address and self._loop.now > self._give_up:
                self._end(gone=False)
                return
            self._left.rotate(-1)
        else:
            self.missing += [source.agent] if source.agent else []
            self._left.popleft()
            if not self._left:
                self._end(gone=bool(source.address) or not damaged)
                return
        self._next()

    def _next(self) -> None:
        if self._asked < len(self._left):
            self._ask()
            return
        self._asked = 0
        self._loop.after(self._wait, self._ask, self._process)
        self._wait = min(2 * self._wait, limits.RECONNECT_LAST_SECONDS)

    def _end(self, gone: bool) -> None:
        self.gone = gone
        self._done(self)
