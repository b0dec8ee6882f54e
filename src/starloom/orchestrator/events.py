"""Facts as events: followers read on from an offset, over restarts and at their own pace.

The newest records are in memory, once for all followers and by job; older ones come from the journal.
A follower holds nothing but its offset, so a slow one costs no memory.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence

from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.orchestrator.records import Record

_RECORD_BYTES = 256
"""About what a record takes beside its line."""

ReadJournal = Callable[[int, JobId | None], Awaitable[list[Record]]]


class _Follower:
    """One reader: it has been given everything up to `after`, of the kinds that it wants."""

    __slots__ = ("after", "kinds", "waiting", "woken")

    def __init__(self, after: int, kinds: Collection[str]) -> None:
        self.after = after
        self.kinds = kinds
        self.woken = asyncio.Event()
        #: has been given all that is published, and nothing that it wants since
        self.waiting = False

    def wants(self, record: Record) -> bool:
        return not self.kinds or record.kind in self.kinds

    def tell(self, records: Iterable[Record]) -> None:
        """Wakes it if any of these is for it; otherwise it has, in effect, read them."""
        if not self.waiting:
            return
        for record in records:
            if self.wants(record):
                self.waiting = False
                self.woken.set()
                return
            self.after = record.offset

    async def more(self) -> None:
        self.woken.clear()
        self.waiting = True
        try:
            await self.woken.wait()
        finally:
            self.waiting = False


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
        self._followers: dict[JobId | None, set[_Follower]] = {}

    def __repr__(self) -> str:
        return f"<EventLog last={self._last} in_memory={len(self._recent)} jobs={len(self._recent_of)}>"

    def publish(self, records: Sequence[Record]) -> None:
        """Makes journaled records visible, and wakes those who follow."""
        of_jobs: dict[JobId, list[Record]] = {}
        for record in records:
            self._recent.append(record)
            self._bytes += len(record.line) + _RECORD_BYTES
            self._last = record.offset
            if record.job:
                self._recent_of.setdefault(record.job, deque()).append(record)
                of_jobs.setdefault(record.job, []).append(record)
        while self._bytes > limits.EVENTS_IN_MEMORY_BYTES_MAX:
            self._forget_oldest()
        for follower in self._followers.get(None, ()):
            follower.tell(records)
        for job, of_job in of_jobs.items():
            for follower in self._followers.get(job, ()):
                follower.tell(of_job)

    async def follow(
        self, job: JobId | None, after: int, more: Callable[[], bool], kinds: Collection[str] = ()
    ) -> AsyncGenerator[list[Record], None]:
        """Records behind `after`, of one job or of all, in batches of at most EVENTS_PER_READ_MAX.

        Where `kinds` are given, only facts of these. Ends at the first time that everything published was
        given and `more()` is false.
        """
        follower = _Follower(after, kinds)
        followers = self._followers.setdefault(job, set())
        followers.add(follower)
        try:
            while True:
                going_on, last = more(), self._last
                if records := await self._next(job, follower.after):
                    follower.after = records[-1].offset
                    if wanted := list(filter(follower.wants, records)):
                        yield wanted
                    continue
                if not going_on:
                    return
                # What was published while the journal was read is in memory, and comes next.
                follower.after = max(follower.after, last)
                if last == self._last:
                    await follower.more()
        finally:
            followers.discard(follower)
            if not followers and self._followers.get(job) is followers:
                del self._followers[job]

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
