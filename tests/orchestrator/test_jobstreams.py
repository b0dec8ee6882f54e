"""The orchestrator's streams by themselves: who waits for whom, what is kept, and what is said when it is gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from starloom.agents.streams.records import (
    Bound,
    Credit,
    How,
    ReadOpen,
    RunningDigest,
    StreamBatch,
    StreamChunk,
    StreamEnd,
    StreamName,
    WriteOpen,
)
from starloom.dag.errors import Conflict, Fenced, StreamGone
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.values import Full, PortType
from starloom.orchestrator import jobstreams
from starloom.orchestrator.jobstreams import FedStream, JobStream, SpooledStream
from starloom.orchestrator.spool import NOBODY, Spool

SECONDS = 30
MIC = StreamName(JobId("job-1"), StageId(""), NOBODY, "mic")
WRITING = WriteOpen(MIC, PortType.TEXT)
WIDE = Bound(1000, 1 << 30)


class Told:
    """What the other end of a call says, when a test says it; it ends with `end`."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def say(self, item: Any) -> None:
        self._items.put_nowait((item,))

    def end(self) -> None:
        self._items.put_nowait(())

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if found := await self._items.get():
            return found[0]
        raise StopAsyncIteration


def chunk(offset: int, size: int = 3) -> StreamChunk:
    return StreamChunk(offset, 0, f"{offset}".encode().rjust(size), {})


def reading(
    stream: JobStream, offset: int = 0, reader: str = "s.p", window: Bound = WIDE, *, closed: bool = False
) -> tuple[Any, Told]:
    told = Told()
    return stream.read(ReadOpen(MIC, reader, Credit(offset, window), closed=closed), told), told


def writing(stream: JobStream, wish: WriteOpen = WRITING) -> tuple[Any, Told]:
    told = Told()
    return stream.write(wish, told), told


async def soon(step: Any) -> Any:
    async with asyncio.timeout(SECONDS):
        return await step


async def write(stream: JobStream, *parts: StreamBatch, wish: WriteOpen = WRITING) -> list[int]:
    """What a writer is told that says all this and goes."""
    answers, told = writing(stream, wish)
    for part in parts:
        told.say(part)
    told.end()
    async with asyncio.timeout(SECONDS):
        return [credit.acknowledged async for credit in answers]


def batch(*offsets: int, end: bool = False, size: int = 3) -> StreamBatch:
    last = StreamEnd(How.FINISHED, len(offsets), 0, RunningDigest().hex()) if end else None
    return StreamBatch(tuple(chunk(offset, size) for offset in offsets), end=last)


async def read(stream: JobStream, offset: int = 0, reader: str = "s.p") -> tuple[list[int], StreamEnd | None]:
    """All that a reader gets that acknowledges at once, up to the end."""
    batches, told = reading(stream, offset, reader)
    got: list[int] = []
    async with asyncio.timeout(SECONDS), aclosing(batches):
        async for found in batches:
            got += [each.offset for each in found.chunks]
            told.say(Credit(got[-1] + 1 if got else offset, WIDE))
            if found.end is not None:
                return got, found.end
    return got, None


def opened(folder: Path) -> int:
    """How many files below a folder this process has open."""
    return sum(Path(each.path).is_relative_to(folder) for each in psutil.Process().open_files())


class Job:
    """What a stream knows of its job."""

    def __init__(self) -> None:
        self.end: StreamEnd | None = None

    def over(self) -> StreamEnd | None:
        return self.end

    def stop(self) -> None:
        self.end = StreamEnd(How.CANCELLED, 0, 0, RunningDigest().hex(), "job job-1 has failed")


@pytest.fixture
def job() -> Job:
    return Job()


def fed(
    job: Job, tmp_path: Path, full: Full = Full.BLOCK, *, fresh: bool = True, readers: tuple[str, ...] = ("s.p",)
) -> FedStream:
    folder = tmp_path / "mic"
    closed = Spool(folder).end if folder.exists() else None
    return FedStream("mic", full, readers, job.over, lambda: Spool(folder), fresh=fresh, closed=closed)


def spooled(job: Job, tmp_path: Path, *, durable: bool = True, live: Any = None) -> SpooledStream:
    def check(wish: WriteOpen) -> None:
        if live is not None and wish.stream.token not in live:
            raise Fenced("not live")

    return SpooledStream(Spool(tmp_path / "mic"), check, job.over, durable=durable)


@pytest.fixture(params=["memory", "disk"])
def stream(request: pytest.FixtureRequest, job: Job, tmp_path: Path) -> JobStream:
    return fed(job, tmp_path) if request.param == "memory" else spooled(job, tmp_path)


class TestBoth:
    async def test_chunks_and_the_end_come_through(self, stream: JobStream) -> None:
        assert await write(stream, batch(0, 1), batch(2), batch(3, end=True)) == [0, 2, 3, 4]
        got, end = await read(stream)
        assert got == [0, 1, 2, 3]
        assert end is not None
        assert end.how is How.FINISHED

    async def test_a_reader_waits_for_what_is_yet_to_come(self, stream: JobStream) -> None:
        batches, _ = reading(stream)
        first = asyncio.ensure_future(anext(batches))
        await write(stream, batch(0))
        assert [each.offset for each in (await soon(first)).chunks] == [0]
        await batches.aclose()

    async def test_nothing_is_sent_beyond_the_readers_window(self, stream: JobStream) -> None:
        await write(stream, batch(*range(9)))
        batches, told = reading(stream, window=Bound(2, 1 << 20))
        assert [each.offset for each in (await soon(anext(batches))).chunks] == [0, 1]
        more = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        assert not more.done()
        told.say(Credit(1, Bound(2, 1 << 20)))
        assert [each.offset for each in (await soon(more)).chunks] == [2]
        told.say(Credit(3, Bound(4, 5)))
        assert [each.offset for each in (await soon(anext(batches))).chunks] == [3], "two have more bytes than that"
        await batches.aclose()

    async def test_a_repeat_is_answered_with_the_next_offset_that_is_wanted(self, stream: JobStream) -> None:
        assert await write(stream, batch(0, 1, 2)) == [0, 3]
        assert await write(stream, batch(1, 2), batch(3)) == [3, 3, 4]
        batches, _ = reading(stream)
        assert [each.offset for each in (await soon(anext(batches))).chunks] == [0, 1, 2, 3]
        await batches.aclose()

    async def test_one_who_opens_it_takes_over_from_the_one_before(self, stream: JobStream) -> None:
        answers, told = writing(stream)
        assert (await soon(anext(answers))).acknowledged == 0
        assert await write(stream, batch(0)) == [0, 1]
        told.say(batch(1))
        with pytest.raises(Conflict):
            await soon(anext(answers))

    async def test_the_end_of_one_before_is_not_the_end_of_who_took_over(self, stream: JobStream) -> None:
        first, told = writing(stream)
        await soon(anext(first))
        second, more = writing(stream)
        await soon(anext(second))
        told.say(batch(end=True))
        with pytest.raises(Conflict):
            await soon(anext(first))
        more.say(batch(0))
        assert (await soon(anext(second))).acknowledged == 1
        more.say(batch(1, end=True))
        assert (await soon(anext(second))).acknowledged == 2
        assert (await read(stream))[0] == [0, 1]

    async def test_a_job_that_has_ended_ends_its_readers(self, stream: JobStream, job: Job) -> None:
        await write(stream, batch(0))
        found = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        job.stop()
        stream.ring()
        got, end = await soon(found)
        assert (got, end) == ([0], job.end)

    async def test_a_reader_that_has_enough_is_let_go_at_once(self, stream: JobStream) -> None:
        await write(stream, batch(0, 1))
        batches, told = reading(stream)
        await soon(anext(batches))
        told.say(None)
        assert (await soon(anext(batches))).end == jobstreams.ENOUGH
        # It may still say how far it is: that it wanted no more, and how far it was, crossed.
        told.say(Credit(2, WIDE))
        await asyncio.sleep(0)
        assert [each async for each in batches] == []

    async def test_a_reader_that_has_enough_and_comes_again_is_let_go_whatever_is_still_there(
        self, stream: JobStream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobstreams, "_INPUT_BOUND", Bound(2, 1 << 20))
        batches, told = reading(stream)
        told.say(None)
        assert (await soon(anext(batches))).end == jobstreams.ENOUGH
        await batches.aclose()
        await write(stream, batch(*range(9)))
        batches, _ = reading(stream, closed=True)
        assert await soon(anext(batches)) == StreamBatch(end=jobstreams.ENOUGH)
        await batches.aclose()


class TestInMemory:
    async def test_who_feeds_it_waits_for_a_slow_reader_and_memory_is_bounded(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobstreams, "_INPUT_BOUND", Bound(4, 1 << 20))
        stream = fed(job, tmp_path)
        answers, told = writing(stream)
        assert (await soon(anext(answers))).acknowledged == 0
        told.say(batch(*range(6)))
        waits = asyncio.ensure_future(anext(answers))
        batches, said = reading(stream)
        got = [each.offset for each in (await soon(anext(batches))).chunks]
        assert got == [0, 1, 2, 3]
        assert not waits.done()
        said.say(Credit(2, WIDE))
        assert [each.offset for each in (await soon(anext(batches))).chunks] == [4, 5]
        assert (await soon(waits)).acknowledged == 6
        await batches.aclose()

    async def test_it_waits_for_each_of_its_readers_before_they_come(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobstreams, "_INPUT_BOUND", Bound(4, 1 << 20))
        stream = fed(job, tmp_path, readers=("a.p", "b.p"))
        writer = asyncio.ensure_future(write(stream, batch(*range(8)), batch(end=True)))
        one, two = await soon(asyncio.gather(read(stream, reader="a.p"), read(stream, reader="b.p")))
        assert one[0] == two[0] == list(range(8))
        await soon(writer)

    async def test_an_attempt_that_comes_back_late_takes_nothing_from_a_later_one(
        self, job: Job, tmp_path: Path
    ) -> None:
        stream = fed(job, tmp_path)
        wishes = [ReadOpen(MIC, "s.p", Credit(0, WIDE), attempt=attempt) for attempt in (1, 2, 1, 2)]
        readings: list[Any] = [stream.read(wish, Told()) for wish in wishes]
        old, new, late, again = readings
        waits = [asyncio.ensure_future(anext(reading, None)) for reading in (old, new)]
        await asyncio.sleep(0)
        assert await soon(waits[0]) is None
        with pytest.raises(Conflict, match=r"attempt 1 of s\.p is over: attempt 2 reads mic"):
            await soon(anext(late))
        await write(stream, batch(0))
        assert [each.offset for each in (await soon(waits[1])).chunks] == [0]
        assert [each.offset for each in (await soon(anext(again))).chunks] == [0]
        for reading in (new, again):
            await reading.aclose()

    async def test_policies_that_drop_never_wait(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobstreams, "_INPUT_BOUND", Bound(4, 1 << 20))
        for full, left in ((Full.OLDEST, [6, 7, 8, 9]), (Full.LATEST, [9])):
            stream = fed(job, tmp_path / full, full)
            assert await write(stream, batch(*range(10)), batch(end=True)) == [0, 10, 10]
            assert (await read(stream))[0] == left

    async def test_a_reader_that_begins_again_gets_what_is_still_there_or_is_told(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobstreams, "_INPUT_BOUND", Bound(4, 1 << 20))
        stream = fed(job, tmp_path)
        await write(stream, batch(0, 1, 2))
        for _ in range(2):
            batches, said = reading(stream)
            assert len((await soon(anext(batches))).chunks) == 3
            said.say(Credit(3, WIDE))
            await asyncio.sleep(0)
            await batches.aclose()
        batches, said = reading(stream, 3)
        waits = asyncio.ensure_future(anext(batches))
        await write(stream, batch(3, 4, 5))
        await soon(waits)
        await batches.aclose()
        with pytest.raises(StreamGone, match="submit the job with this input spooled"):
            await read(stream)

    async def test_after_a_restart_it_goes_on_where_all_was_read(self, job: Job, tmp_path: Path) -> None:
        stream = fed(job, tmp_path, fresh=False)
        batches, _ = reading(stream, 5)
        first = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        assert await write(stream, batch(5, 6)) == [5, 7]
        assert [each.offset for each in (await soon(first)).chunks] == [5, 6]
        await batches.aclose()

    async def test_after_a_restart_what_was_lost_is_said(self, job: Job, tmp_path: Path) -> None:
        stream = fed(job, tmp_path, fresh=False)
        found = asyncio.ensure_future(read(stream, 3))
        await asyncio.sleep(0)
        await write(stream, batch(5, 6))
        with pytest.raises(StreamGone, match="chunk 3 is not kept any more"):
            await soon(found)
        with pytest.raises(StreamGone, match="chunk 9 is wanted"):
            await soon(read(stream, 9))

    async def test_after_a_restart_what_may_be_dropped_was_dropped(self, job: Job, tmp_path: Path) -> None:
        stream = fed(job, tmp_path, Full.OLDEST, fresh=False)
        await write(stream, batch(5, 6), batch(end=True))
        batches, _ = reading(stream, 3)
        first = await soon(anext(batches))
        assert ([each.offset for each in first.chunks], first.dropped) == ([5, 6], 2)
        await batches.aclose()

    async def test_after_a_restart_a_reader_that_has_enough_waits_for_nobody_to_feed_it(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobstreams, "_INPUT_BOUND", Bound(2, 1 << 20))
        stream = fed(job, tmp_path, fresh=False)
        batches, _ = reading(stream, 5, closed=True)
        assert (await soon(anext(batches))).end == jobstreams.ENOUGH
        await batches.aclose()
        assert await write(stream, batch(*range(5, 10))) == [5, 10]

    async def test_that_it_was_closed_outlives_a_restart(self, job: Job, tmp_path: Path) -> None:
        await write(fed(job, tmp_path), batch(0, 1), batch(end=True))
        again = fed(job, tmp_path, fresh=False)
        assert (await read(again, 2))[0] == []
        with pytest.raises(StreamGone):
            await read(again, 1)
        assert await write(again, batch(end=True)) == [2, 2]

    async def test_a_job_that_has_ended_takes_no_more(self, job: Job, tmp_path: Path) -> None:
        stream = fed(job, tmp_path)
        job.stop()
        with pytest.raises(Conflict, match="input mic takes no more: job job-1 has failed"):
            await write(stream, batch(0))


class TestOnDisk:
    async def test_only_a_live_token_writes_an_output(self, job: Job, tmp_path: Path) -> None:
        first, second = (FencingToken(Epoch(1), Attempt(number)) for number in (1, 2))
        live = {first}
        stream = spooled(job, tmp_path, durable=False, live=live)
        wishes = [WriteOpen(MIC._replace(token=token), PortType.TEXT) for token in (first, second)]
        answers, told = writing(stream, wishes[0])
        assert (await soon(anext(answers))).acknowledged == 0
        told.say(batch(0, 1))
        assert (await soon(anext(answers))).acknowledged == 2
        live.clear()
        told.say(batch(2))
        with pytest.raises(Fenced):
            await soon(anext(answers))
        with pytest.raises(Fenced):
            await write(stream, batch(0), wish=wishes[1])
        live.add(second)
        assert await write(stream, batch(0, 1), batch(2, end=True), wish=wishes[1]) == [0, 2, 3]
        assert (await read(stream))[0] == [0, 1, 2]

    async def test_a_reader_with_a_full_window_is_told_that_what_it_read_was_replaced(
        self, job: Job, tmp_path: Path
    ) -> None:
        first, second = (FencingToken(Epoch(1), Attempt(number)) for number in (1, 2))
        stream = spooled(job, tmp_path, durable=False, live={first, second})
        await write(stream, batch(0, 1), wish=WriteOpen(MIC._replace(token=first), PortType.TEXT))
        batches, _ = reading(stream, window=Bound(2, 1 << 20))
        assert [each.offset for each in (await soon(anext(batches))).chunks] == [0, 1]
        await write(stream, batch(0, end=True), wish=WriteOpen(MIC._replace(token=second), PortType.TEXT))
        with pytest.raises(StreamGone, match="differently from chunk 1 on"):
            await soon(anext(batches))

    @pytest.mark.parametrize("way", ["goes", "is cut off", "takes over"])
    async def test_a_writer_that_has_gone_leaves_no_file_open(self, job: Job, tmp_path: Path, way: str) -> None:
        stream = spooled(job, tmp_path)
        answers, told = writing(stream)
        await soon(anext(answers))
        told.say(batch(0, 1))
        await soon(anext(answers))
        assert opened(tmp_path) == 1
        if way == "goes":
            told.end()
            with pytest.raises(StopAsyncIteration):
                await soon(anext(answers))
        elif way == "is cut off":
            await soon(answers.aclose())
        else:
            assert await write(stream, batch(2)) == [2, 3]
            told.say(batch(2))
            with pytest.raises(Conflict):
                await soon(anext(answers))
        assert opened(tmp_path) == 0
        assert await write(stream, batch(3, end=True)) == [3 if way == "takes over" else 2, 4]
        assert opened(tmp_path) == 0

    async def test_an_attempt_that_fails_ends_no_output(self, job: Job, tmp_path: Path) -> None:
        token = FencingToken(Epoch(1), Attempt(1))
        stream = spooled(job, tmp_path, durable=False, live={token})
        failed = StreamBatch(end=StreamEnd(How.FAILED, 1, 3, RunningDigest().hex(), "broken"))
        await write(stream, batch(0), failed, wish=WriteOpen(MIC._replace(token=token), PortType.TEXT))
        assert stream.spool.end is None
        assert Spool(tmp_path / "mic").end is None

    async def test_an_input_begins_again_where_the_disk_has_it(self, job: Job, tmp_path: Path) -> None:
        await write(spooled(job, tmp_path), batch(0, 1, 2))
        again = spooled(job, tmp_path)
        assert await write(again, batch(2), batch(3, end=True)) == [3, 3, 4]
        got, end = await read(again)
        assert got == [0, 1, 2, 3]
        assert end is not None
        assert end.chunks == 4
