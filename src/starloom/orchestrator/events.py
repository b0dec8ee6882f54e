"""Facts as events: followers read on from an offset, over restarts and at their own pace.

The newest records are in memory, once for all followers and by job; older ones come from the journal.
A follower holds nothing but its offset, so a slow one costs no memory.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable

from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.orchestrator.journal import Record

_RECORD_BYTES = 256
"""About what a record takes beside its line."""

ReadJournal = Callable[[int, JobId | None], Awaitable[list[Record]]]


class EventLog:
    """What has been published, and who waits for more. For one event loop.

    `read` gives records from the journal: behind an offset, of one job or of all. `last_offset` is the
    last record that is published already.
    """

    def __init__(self, read: ReadJournal, last_offset: int) -> None:
        self._read = read
        self._last = last_offset
        #: everything behind this offset is in memory
        self._base = last_offset
        self._recent: deque[Record] = deque()
        self._bytes = 0
        self._recent_of: dict[JobId, deque[Record]] = {}
        self._waiting: dict[JobId | None, set[asyncio.Event]] = {}

    def __repr__(self) -> str:
        return f"<EventLog last={self._last} in_memory={len(self._recent)} jobs={len(self._recent_of)}>"

    def publish(self, records: Iterable[Record]) -> None:
        """Makes journaled records visible, and wakes those who follow."""
        touched: set[JobId | None] = set()
        for record in records:
            self._recent.append(record)
            self._bytes += len(record.line) + _RECORD_BYTES
            self._last = record.offset
            if record.job:
                self._recent_of.setdefault(record.job, deque()).append(record)
                touched.add(record.job)
        while self._bytes > limits.EVENTS_IN_MEMORY_BYTES_MAX:
            self._forget_oldest()
        for job in (None, *touched):
            for woken in self._waiting.get(job, ()):
                woken.set()

    async def follow(
        self, job: JobId | None, after: int, more: Callable[[], bool], kinds: Collection[str] = ()
    ) -> AsyncGenerator[list[Record], None]:
        """Records behind `after`, of one job or of all, in batches of at most EVENTS_PER_READ_MAX.

        Where `kinds` are given, only facts of these. Ends at the first time that everything published was
        given and `more()` is false.
        """
        woken = asyncio.Event()
        waiting = self._waiting.setdefault(job, set())
        waiting.add(woken)
        try:
            while True:
                woken.clear()
                going_on = more()
                records = await self._next(job, after)
                if records:
                    after = records[-1].offset
                    if wanted := [record for record in records if not kinds or record.kind in kinds]:
                        yield wanted
                elif going_on:
                    await woken.wait()
                else:
                    return
        finally:
            waiting.discard(woken)
            if not waiting and self._waiting.get(job) is waiting:
                del self._waiting[job]

    async def _next(self, job: JobId | None, after: int) -> list[Record]:
        if after < self._base:
            return [record for record in await self._read(after, job) if record.offset <= self._last]
        recent = self._recent if job is None else self._recent_of.get(job, ())
        fresh: list[Record] = []
        for record in reversed(recent):
            if record.offset <= after:
                break
            fresh.append(record)
        return fresh[: -limits.EVENTS_PER_READ_MAX - 1 : -1]

    def _forget_oldest(self) -> None:
        oldest = self._recent.popleft()
        self._base = oldest.offset
        self._bytes -= len(oldest.line) + _RECORD_BYTES
        if oldest.job:
            of_job = self._recent_of[oldest.job]
            of_job.popleft()
            if not of_job:
                del self._recent_of[oldest.job]
