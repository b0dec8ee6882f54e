"""A stream on an event loop: who waits for whom, and what becomes of a reader that comes again."""

import asyncio

import pytest
from tests.agents.fakes import WAIT_SECONDS, task

from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.flow import Flow
from starloom.agents.streams.hub import Hub
from starloom.agents.streams.records import Bound, Credit, How, ReadOpen, StreamName
from starloom.dag.errors import Conflict
from starloom.dag.ids import JobId, StageId
from starloom.dag.values import Full

NAME = StreamName(JobId("j"), StageId("s"), task().token, "out")


def wish(acknowledged: int = 0, *, attempt: int = 1) -> ReadOpen:
    return ReadOpen(NAME, "r.in", Credit(acknowledged), attempt=attempt)


def flow(chunks: int = 2) -> Flow:
    return Flow(StreamBuffer(Bound(chunks, 100), [("r.in", Full.BLOCK)]))


async def test_producer_waits_until_a_reader_acknowledges_and_says_since_when() -> None:
    waits: list[str] = []
    stream = Flow(StreamBuffer(Bound(1, 100), [("r.in", Full.BLOCK)]), lambda: waits.append("waits"))
    assert await stream.append(b"a", {}) == 0
    appending = asyncio.create_task(stream.append(b"b", {}))
    reading = stream.open(wish())
    assert [chunk.data for chunk in (await reading.next()).chunks] == [b"a"]
    # The one that appends has its turn.
    await asyncio.sleep(0)
    assert stream.waiting is not None
    assert waits == ["waits"]
    reading.credit(Credit(1))
    assert stream.waiting is None
    async with asyncio.timeout(WAIT_SECONDS):
        assert await appending == 1
        assert [chunk.data for chunk in (await reading.next()).chunks] == [b"b"]


async def test_reader_whose_word_was_lost_makes_room_for_its_producer_when_it_comes_again() -> None:
    stream = flow(1)
    await stream.append(b"a", {})
    reading = stream.open(wish())
    assert [chunk.data for chunk in (await reading.next()).chunks] == [b"a"]
    appending = asyncio.create_task(stream.append(b"b", {}))
    await asyncio.sleep(0)
    assert stream.waiting is not None
    stream.open(wish(1))
    async with asyncio.timeout(WAIT_SECONDS):
        assert await appending == 1


async def test_producer_that_is_cancelled_while_it_waits_waits_no_more() -> None:
    stream = flow(1)
    await stream.append(b"a", {})
    appending = asyncio.create_task(stream.append(b"b", {}))
    await asyncio.sleep(0)
    assert stream.waiting is not None
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    assert stream.waiting is None
    assert stream.finish().chunks == 1


async def test_reader_that_comes_again_ends_the_reading_before() -> None:
    stream = flow()
    await stream.append(b"a", {})
    first = stream.open(wish())
    second = stream.open(wish())
    with pytest.raises(Conflict, match="by another call now"):
        await first.next()
    # What the earlier call still says changes nothing.
    first.credit(Credit(1))
    first.close()
    assert [chunk.data for chunk in (await second.next()).chunks] == [b"a"]


async def test_earlier_attempt_does_not_take_back_what_a_later_one_reads() -> None:
    stream = flow()
    stream.open(wish(attempt=1))
    later = stream.open(wish(attempt=3))
    with pytest.raises(Conflict, match=r"attempt 2 of r\.in is over: attempt 3 reads"):
        stream.open(wish(attempt=2))
    await stream.append(b"a", {})
    assert len((await later.next()).chunks) == 1


async def test_reader_that_wants_no_more_is_told_the_end_without_the_chunks() -> None:
    stream = flow()
    reading = stream.open(wish())
    reading.close()
    for _ in range(5):
        await stream.append(b"a", {})
    ending = asyncio.create_task(reading.next())
    await asyncio.sleep(0)
    end = stream.finish()
    batch = await ending
    assert (batch.chunks, batch.end) == ((), end)


async def test_stream_that_is_asked_for_before_it_begins_is_waited_for_and_ends_with_its_job() -> None:
    hub = Hub()
    opening = [asyncio.create_task(hub.open(wish(attempt=attempt))) for attempt in (1, 2)]
    given_up = asyncio.create_task(hub.open(wish()))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    hub.add(NAME, flow())
    async with asyncio.timeout(WAIT_SECONDS):
        reading = (await asyncio.gather(*opening))[1]
    hub.release(JobId("other"))
    assert hub.get(NAME) is not None
    hub.release(JobId("j"))
    assert hub.get(NAME) is None
    end = (await reading.next()).end
    assert end is not None
    assert end.how is How.CANCELLED
