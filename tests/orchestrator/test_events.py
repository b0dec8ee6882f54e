"""Followers of events: no gap, no repeat, nothing before it is published, and memory only for the newest."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.orchestrator.events import EventLog
from starloom.orchestrator.records import Record

J1, J2, NOBODY = JobId("j1"), JobId("j2"), JobId("")


def record(offset: int, job: JobId = J1, kind: str = "stage-placed") -> Record:
    return Record(offset, offset * 1000, job, b'{"fact":"%s","n":%d}' % (kind.encode(), offset))


class Journaled:
    """A journal that counts how often it is read."""

    def __init__(self, *records: Record) -> None:
        self.records = list(records)
        self.reads = 0

    async def read(self, after: int, job: JobId | None) -> list[Record]:
        self.reads += 1
        await asyncio.sleep(0)
        found = [each for each in self.records if each.offset > after and job in (None, each.job)]
        return found[: limits.EVENTS_PER_READ_MAX]

    def add(self, log: EventLog, *records: Record) -> None:
        self.records += records
        log.publish(records)


def never() -> bool:
    return False


async def offsets(follow: AsyncGenerator[list[Record]], count: int | None = None) -> list[int]:
    """The offsets that a follower is given, up to `count` of them or its end."""
    found: list[int] = []
    async with asyncio.timeout(10):
        async with aclosing(follow):
            async for records in follow:
                assert 0 < len(records) <= limits.EVENTS_PER_READ_MAX
                found += [each.offset for each in records]
                if count is not None and len(found) >= count:
                    break
    return found


async def test_old_records_come_from_the_journal_and_new_ones_from_memory() -> None:
    journaled = Journaled(record(1), record(2, J2), record(3))
    log = EventLog(journaled.read, 3)
    journaled.add(log, record(4), record(5, J2))
    assert await offsets(log.follow(None, 0, never)) == [1, 2, 3, 4, 5]
    assert await offsets(log.follow(J1, 0, never)) == [1, 3, 4]
    reads = journaled.reads
    assert await offsets(log.follow(J2, 3, never)) == [5]
    assert await offsets(log.follow(None, 4, never)) == [5]
    assert await offsets(log.follow(J1, 5, never)) == []
    assert journaled.reads == reads


async def test_what_is_journaled_but_not_published_is_not_seen() -> None:
    journaled = Journaled(record(1), record(2))
    log = EventLog(journaled.read, 1)
    assert await offsets(log.follow(None, 0, never)) == [1]
    log.publish([record(2)])
    assert await offsets(log.follow(None, 0, never)) == [1, 2]


async def test_a_follower_is_woken_by_its_own_job_only() -> None:
    journaled = Journaled()
    log = EventLog(journaled.read, 0)
    of_first = asyncio.create_task(offsets(log.follow(J1, 0, lambda: True), 2))
    of_all = asyncio.create_task(offsets(log.follow(None, 0, lambda: True), 3))
    await asyncio.sleep(0)
    for each in (record(1), record(2, J2), record(3)):
        journaled.add(log, each)
        await asyncio.sleep(0)
    assert await of_first == [1, 3]
    assert await of_all == [1, 2, 3]
    assert log._followers == {}


async def test_a_stream_ends_with_the_jobs_last_record() -> None:
    journaled = Journaled()
    log = EventLog(journaled.read, 0)
    ended = False
    follower = asyncio.create_task(offsets(log.follow(J1, 0, lambda: not ended)))
    await asyncio.sleep(0)
    journaled.add(log, record(1))
    await asyncio.sleep(0)
    ended = True
    journaled.add(log, record(2, kind="job-ended"))
    assert await follower == [1, 2]


async def test_only_the_kinds_that_were_asked_for() -> None:
    journaled = Journaled(record(1), record(2, kind="job-ended"))
    log = EventLog(journaled.read, 2)
    journaled.add(log, record(3), record(4, kind="job-ended"))
    assert await offsets(log.follow(None, 0, never, ("job-ended",))) == [2, 4]


async def test_a_slow_follower_falls_back_to_the_journal_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_IN_MEMORY_BYTES_MAX", 3_000)
    monkeypatch.setattr(limits, "EVENTS_PER_READ_MAX", 4)
    journaled = Journaled()
    log = EventLog(journaled.read, 0)
    follow = log.follow(J1, 0, never)
    journaled.add(log, record(1))
    first = await anext(follow)
    journaled.add(log, *(record(offset, (J1, J2, NOBODY)[offset % 3]) for offset in range(2, 100)))
    assert len(log._recent) < 12
    assert journaled.reads == 0
    rest = await offsets(follow)
    assert [first[0].offset, *rest] == [1, *range(3, 100, 3)]
    assert journaled.reads > 0


async def test_memory_is_bounded_by_bytes_and_follows_jobs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_IN_MEMORY_BYTES_MAX", 3_000)
    log = EventLog(Journaled().read, 0)
    for offset in range(1, 50):
        log.publish([record(offset, JobId(f"j{offset}"))])
    assert log._bytes <= 3_000
    assert len(log._recent_of) == len(log._recent)


async def test_many_followers_of_a_busy_log_get_everything_once() -> None:
    journaled = Journaled(*(record(offset) for offset in range(1, 1500)))
    log = EventLog(journaled.read, 1499)

    def ended(at: int) -> Callable[[], bool]:
        return lambda: log._last < at

    followers = [asyncio.create_task(offsets(log.follow(None, start, ended(3000)))) for start in range(0, 2000, 100)]
    for offset in range(1500, 3001):
        journaled.add(log, record(offset))
        if not offset % 7:
            await asyncio.sleep(0)
    for start, follower in zip(range(0, 2000, 100), followers, strict=True):
        assert await follower == list(range(start + 1, 3001))


async def test_a_follower_of_one_kind_sleeps_through_all_others() -> None:
    journaled = Journaled()
    log = EventLog(journaled.read, 0)
    follow = log.follow(J1, 0, lambda: True, ("job-ended",))
    waiting = asyncio.ensure_future(anext(follow))
    await asyncio.sleep(0)
    for offset in range(1, 50):
        journaled.add(log, record(offset))
    (follower,) = log._followers[J1]
    assert (follower.waiting, follower.after) == (True, 49)
    journaled.add(log, record(50), record(51, kind="job-ended"), record(52))
    async with asyncio.timeout(10):
        assert [each.offset for each in await waiting] == [51]
    await follow.aclose()
    assert journaled.reads == 0
