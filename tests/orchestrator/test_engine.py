"""The loop: nothing is told before it is journaled, and what cannot be journaled ends it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.orchestrator.rig import SECONDS, Rig, request

from starloom.dag.errors import Unavailable
from starloom.dag.facts import Fact, JobEnded, JobSubmitted, StageCommitted
from starloom.orchestrator.journal import Journal, JournalUnwritableError, Record
from starloom.v1 import control_pb2 as pb

NOOP = "stages: {a: {kind: basic.noop}, b: {kind: basic.noop, in: {value: a.value}}}\noutputs: {v: b.value}"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as found:
        await found.agent("n0")
        yield found


class SlowDisk:
    """Holds each append until it is let through; counts what was written together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[Fact]] = []
        self.waiting = threading.Semaphore(0)
        self._let = threading.Semaphore(0)
        append = Journal.append

        def held(journal: Journal, facts: Sequence[Fact], unix_nanos: int) -> list[Record]:
            self.batches.append(list(facts))
            self.waiting.release()
            assert self._let.acquire(timeout=SECONDS)
            return append(journal, facts, unix_nanos)

        monkeypatch.setattr(Journal, "append", held)

    async def until_waiting(self) -> None:
        assert await asyncio.to_thread(self.waiting.acquire, timeout=SECONDS)

    def let(self, count: int = 1) -> None:
        self._let.release(count)


async def test_nothing_is_told_before_it_is_journaled(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    submission = asyncio.create_task(rig.submit(NOOP, key="k"))
    await disk.until_waiting()
    # The job is decided, and not journaled: it is neither answered, nor shown, nor given to an agent.
    looking = asyncio.create_task(rig.call("GetJob", pb.GetJobRequest(job_id="k")))
    listing = asyncio.create_task(rig.call("ListJobs", pb.ListJobsRequest()))
    events = await rig.call("StreamEvents", pb.StreamEventsRequest())
    assert not any(b"job-submitted" in event.fact_json for response in events for event in response.events)
    assert not submission.done()
    assert not looking.done()
    assert not listing.done()
    assert len(disk.batches) == 1
    disk.let(1000)
    job = await submission
    assert (await looking).job.job_id == job
    assert [each.job_id for each in (await listing).jobs] == [job]
    assert (await rig.ended(job)).status == "succeeded"


async def test_what_comes_while_the_disk_writes_is_written_together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    first = asyncio.create_task(rig.submit(NOOP))
    await disk.until_waiting()
    others = [asyncio.create_task(rig.submit(NOOP)) for _ in range(20)]
    # Once all of them are decided, one append serves them.
    await rig.until_jobs(21)
    disk.let()
    await disk.until_waiting()
    assert sum(isinstance(fact, JobSubmitted) for fact in disk.batches[1]) == 20
    disk.let(1000)
    for job in await asyncio.gather(first, *others):
        assert (await rig.ended(job)).status == "succeeded"


async def test_an_append_that_fails_ends_the_loop_and_tells_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritable(*_: Any) -> list[Record]:
        raise JournalUnwritableError("the disk is gone")

    monkeypatch.setattr(Journal, "append", unwritable)
    with pytest.raises(Unavailable, match="stopping"):
        await rig.submit(NOOP)
    with pytest.raises(JournalUnwritableError, match="the disk is gone"):
        await rig.orchestrator.failed()
    with pytest.raises(Unavailable):
        await rig.call("ListJobs", pb.ListJobsRequest())
    with pytest.raises(Unavailable):
        await rig.submit(NOOP)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("fatal", [JobSubmitted, StageCommitted, JobEnded])
async def test_a_death_at_any_append_loses_nothing_that_was_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fatal: type[Fact], written: bool
) -> None:
    append = Journal.append
    dead = False

    def dying(journal: Journal, facts: Sequence[Fact], unix_nanos: int) -> list[Record]:
        nonlocal dead
        if not dead and any(isinstance(fact, fatal) for fact in facts):
            dead = True
            if written:
                append(journal, facts, unix_nanos)
            raise JournalUnwritableError("died")
        return append(journal, facts, unix_nanos)

    monkeypatch.setattr(Journal, "append", dying)
    client = await rig.client()
    submission = asyncio.create_task(rig.submit(NOOP, key="k"))
    with pytest.raises(JournalUnwritableError):
        await rig.orchestrator.failed()
    await rig.restart()
    try:
        await submission
    except Unavailable:
        again = await rig.call("Submit", request(NOOP, key="k"))
        assert again.existing == written
    job = await client.job("k")
    async with asyncio.timeout(SECONDS):
        assert await job.result() == {"v": None}
    facts = [event.fact async for event in job.events()]
    assert sum(isinstance(fact, StageCommitted) for fact in facts) == 2
    assert isinstance(facts[-1], JobEnded)
