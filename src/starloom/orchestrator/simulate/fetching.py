"""Fetches between simulated agents, as `agents.fetching` has them: one holder after another, with patience."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from starloom.agents.messages import Assign, Input, InputLost, Source
from starloom.dag import limits
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
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


Lost = tuple[Input, bool, tuple[AgentId, ...]]
"""An input that cannot be had, whether it is gone, and the holders that do not have it."""


class InputFetches:
    """The inputs of one attempt that others hold. `done` is called once with what of them cannot be had, unless stopped."""

    def __init__(self, process: "AgentProcess", assign: Assign, done: Callable[[list[Lost]], None]) -> None:
        self._process = process
        self._job = assign.task.job
        self._items = [item for item in assign.inputs if item.ref.inline is None and item.ref.holder != process.name]
        self._left = len(self._items)
        self._fetches: list[FetchOne] = []
        self._lost: list[Lost] = []
        self._done = done
        self._stopped = False

    def begin(self) -> None:
        """Asks for each, but for what is here already, or is to come with an outcome."""
        for item in self._items:
            if item.late or self._process.holder.has_copy(self._job, item.ref.digest):
                self._one_less()
                continue
            first = Source(agent=AgentId(item.ref.holder), address=item.address)
            done = partial(self._fetched, item)
            self._fetches.append(FetchOne(self._process, self._job, item.ref, (first, *item.others), done))

    def stop(self) -> None:
        """Nobody waits for them any more."""
        self._stopped = True
        for fetch in self._fetches:
            fetch.stop()

    def _fetched(self, item: Input, fetch: FetchOne) -> None:
        if fetch.gone is None:
            self._process.holder.copy(self._job, item.ref.digest)
        else:
            self._lost.append((item, bool(fetch.gone), tuple(fetch.missing)))
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left and not self._stopped:
            self._done(self._lost)


def input_lost(task: TaskToken, lost: list[Lost]) -> InputLost:
    """The report on inputs that cannot be had: what is gone is told first."""
    gone = [item for item, is_gone, _ in lost if is_gone]
    told = gone or [item for item, _, _ in lost]
    upstreams: tuple[StageId, ...] = tuple(dict.fromkeys(item.consumed.upstream for item in told))
    missing: dict[StageId, tuple[AgentId, ...]] = {}
    for item, _, agents in lost:
        if agents:
            known = missing.get(item.consumed.upstream, ())
            missing[item.consumed.upstream] = tuple(dict.fromkeys([*known, *agents]))
    return InputLost(task=task, upstreams=upstreams, reason="it is not there", gone=bool(gone), missing=missing)
