"""Group commit: what is decided while the journal writes waits for it, and is then written together, with one fsync."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from starloom.agents import crashpoints
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.dag.facts import Fact, JobEnded
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.onethread import OneThread
from starloom.orchestrator.records import Record
from starloom.orchestrator.requests import gone
from starloom.orchestrator.stalls import Stalls

Done = Callable[[], None]
Undone = Sequence[tuple[Decision, list[Done]]]
"""Decisions with what is to be called back once they are journaled."""


class GroupCommit:
    """Writes decisions to one journal, in their order, in the thread `writing`. For one event loop.

    `committed` is called with those that are journaled, their records and the Unix time in nanoseconds; `fail` with the error
    that ends it all, which `failed` then has.
    """

    def __init__(
        self,
        journal: Journal,
        writing: OneThread,
        stalls: Stalls,
        committed: Callable[[Undone, Sequence[Record], int], None],
        fail: Callable[[Exception], None],
        failed: asyncio.Future[None],
    ) -> None:
        self._journal = journal
        self._writing = writing
        self._stalls = stalls
        self._committed = committed
        self._fail = fail
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        #: what came since the journal was last given something
        self.undone: deque[tuple[Decision, list[Done]]] = deque()
        self._carrying = False

    def put(self, decision: Decision, done: list[Done]) -> None:
        """Has a decision journaled; each of `done` is called once it is."""
        self.undone.append((decision, done))
        if not self._carrying:
            self._carry_out()

    async def settled(self) -> None:
        """Returns once everything decided so far is journaled: what was seen of the state cannot be lost any more."""
        if self._failed.done():
            raise gone()
        if self.undone or self._carrying:
            written = asyncio.Event()
            self.put(Decision(), [written.set])
            waiting = asyncio.ensure_future(written.wait())
            await asyncio.wait((waiting, self._failed), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not written.is_set():
                raise gone()

    def _carry_out(self) -> None:
        """Hands all that is undone to the journal; what is written in the meantime waits, to be written together."""
        undone = tuple(self.undone)
        self.undone.clear()
        facts = [fact for decision, _ in undone for fact in decision.facts]
        self._carrying = True
        if facts:
            self._writing.call(self._append, undone, facts, time.time_ns(), self._stalls.handed(len(facts)))
        else:
            self._written(undone, [], 0)

    def _append(self, undone: Undone, facts: Sequence[Fact], unix_nanos: int, handed: float) -> None:
        """In the journal's thread."""
        begun = time.monotonic()
        ends = crashpoints.ON and any(isinstance(fact, JobEnded) for fact in facts)
        try:
            reach(CrashPoint.BEFORE_APPEND)
            if ends:
                reach(CrashPoint.JOB_ENDING)
            records = self._journal.append(facts, unix_nanos)
            self._stalls.wrote(handed, begun, len(facts))
            reach(CrashPoint.AFTER_FSYNC)
            if ends:
                reach(CrashPoint.JOB_ENDED)
        except Exception as error:
            self._loop.call_soon_threadsafe(self._fail, error)
        else:
            self._loop.call_soon_threadsafe(self._written, undone, records, unix_nanos)

    def _written(self, undone: Undone, records: Sequence[Record], unix_nanos: int) -> None:
        began = time.monotonic()
        try:
            self._committed(undone, records, unix_nanos)
        except Exception as error:
            self._fail(error)
            return
        self._stalls.took("telling of facts:", len(records), began)
        self._carrying = False
        if self.undone:
            self._carry_out()
