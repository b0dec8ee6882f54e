"""The loop: nothing is told before it is journaled, and what cannot be journaled ends it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.orchestrator.rig import SECONDS, Rig, constellation, request

from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import Fenced, Unavailable
from starloom.dag.facts import Fact, JobEnded, JobSubmitted, StageCommitted
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.journal import Journal, JournalUnwritableError
from starloom.orchestrator.records import Record
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


async def test_who_waits_for_a_disk_in_vain_is_told_so_and_finds_why_in_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "JOURNAL_SLOW_SECONDS", 0.0)
    client = await rig.client()
    disk = SlowDisk(monkeypatch)
    with pytest.raises(
        Unavailable, match=r"did not answer within 0\.3 s \(Submit\), but .*waits for its journal's disk"
    ):
        await client._link.call("Submit", request(NOOP, key="k"), seconds=0.3)
    rig.orchestrator.engine._check(asyncio.get_running_loop().time())
    assert "the journal has been committing" in caplog.text
    disk.let(1000)
    # It was taken nevertheless, and asking again changes nothing.
    assert (await rig.call("Submit", request(NOOP, key="k"))).existing
    assert "the journal took" in caplog.text


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


async def test_a_job_ends_though_its_orchestrator_dies_again_and_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life may append a little more than the one before; every second dies after the write, the others before."""
    append = Journal.append
    left, lives = 1, 0

    def dying(journal: Journal, facts: Sequence[Fact], unix_nanos: int) -> list[Record]:
        nonlocal left
        left -= 1
        if left < 0:
            raise JournalUnwritableError("dead already")
        if left == 0:
            if lives % 2:
                append(journal, facts, unix_nanos)
            raise JournalUnwritableError("died")
        return append(journal, facts, unix_nanos)

    await rig.agent("n1")
    client = await rig.client()
    monkeypatch.setattr(Journal, "append", dying)
    chain = ", ".join(f"s{n}: {{kind: basic.add, in: {{x: s{n - 1}.value, y: $n}}}}" for n in range(1, 12))
    document = constellation(
        f"inputs: {{n: json}}\nstages: {{s0: {{kind: basic.add, in: {{x: $n}}}}, {chain}}}\noutputs: {{sum: s11.value}}"
    )
    outcome = asyncio.create_task(run_job(client, document))
    while not outcome.done():
        died = asyncio.ensure_future(rig.orchestrator.failed())
        await asyncio.wait((died, outcome), return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS)
        if died.done():
            assert isinstance(died.exception(), JournalUnwritableError)
            lives += 1
            left = 2 + lives // 2
            await rig.restart()
        died.cancel()
    left = 1_000_000
    assert await outcome == 12
    assert lives > 3
    job = await client.job("k")
    committed = [event.fact for event in [e async for e in job.events()] if isinstance(event.fact, StageCommitted)]
    assert sorted(fact.stage for fact in committed) == sorted(f"s{n}" for n in range(12))


async def test_one_that_was_replaced_and_has_nothing_to_write_ends_within_a_lease(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is gone, as when somebody deletes its file, and another orchestrator starts on the folder."""
    (rig.folder / "journal" / "lock").unlink()
    replaced = rig.orchestrator

    def nothing_to_write(*_: Any) -> list[Record]:
        raise AssertionError("the older one is to learn of it without an append")

    monkeypatch.setattr(replaced.engine._journal, "append", nothing_to_write)
    async with Rig(rig.folder) as other:
        assert other.orchestrator.epoch == replaced.epoch + 1
        with pytest.raises(Fenced, match=r"epoch 1, and the journal in .* has 2: another one took over"):
            async with asyncio.timeout(SECONDS):
                await replaced.failed()
        with pytest.raises(Unavailable):
            await rig.call("ListJobs", pb.ListJobsRequest())
        client = await other.client()
        await other.agent("n1")
        async with asyncio.timeout(SECONDS):
            assert await (await client.submit(constellation(NOOP))).result() == {"v": None}
        assert not other.orchestrator.engine.failed.done()


async def test_the_epoch_is_looked_at_once_a_lease(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    check = Journal.check_epoch

    def checked(journal: Journal) -> None:
        check(journal)
        loop.call_soon_threadsafe(asked.put_nowait, threading.current_thread().name)

    monkeypatch.setattr(Journal, "check_epoch", checked)
    monkeypatch.setattr(limits, "LEASE_SECONDS", 0.01)
    await rig.restart()
    for _ in range(3):
        async with asyncio.timeout(SECONDS):
            assert await asked.get() == "journal"
    assert not rig.orchestrator.engine.failed.done()


async def run_job(client: AsyncClient, document: Constellation) -> Any:
    job = await client.submit(document, {"n": 1}, key="k")
    return (await job.result(timeout=2 * SECONDS))["sum"]
