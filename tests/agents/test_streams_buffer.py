"""The chunks of a stream: who gets which, what waits, what is dropped, and what a reader finds that comes back."""

import struct
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Bound, Credit, How, StreamChunk
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Overloaded, StreamGone
from starloom.dag.values import Full

WIDE = Bound(1_000, 1_000_000)


def offsets(buffer: StreamBuffer, name: str) -> list[int]:
    return [chunk.offset for chunk in buffer.take(name, WIDE).chunks]


def filled(count: int, *, bound: Bound = WIDE, full: Full = Full.BLOCK, generation: int = 0) -> StreamBuffer:
    """A buffer with one reader, `r`, that has come, and `count` chunks of one byte."""
    buffer = StreamBuffer(bound, [("r", full)])
    buffer.open("r", Credit(0, WIDE))
    for number in range(count):
        buffer.append(bytes([number % 256]), {}, generation)
    return buffer


def test_producer_waits_for_the_slowest_reader_that_blocks() -> None:
    buffer = StreamBuffer(Bound(2, 100), [("fast", Full.BLOCK), ("slow", Full.BLOCK)])
    buffer.append(b"a", {})
    buffer.append(b"b", {})
    assert not buffer.fits(1)
    for name in ("fast", "slow"):
        buffer.open(name, Credit(0, WIDE))
        assert offsets(buffer, name) == [0, 1]
    buffer.credit("fast", Credit(2, WIDE))
    assert not buffer.fits(1)
    assert buffer.blockers() == ("slow",)
    with pytest.raises(Overloaded, match="slow"):
        buffer.append(b"c", {})
    buffer.credit("slow", Credit(1, WIDE))
    assert buffer.append(b"c", {}) == 2
    assert buffer.kept == (2, 2)


def test_bytes_bound_as_well_and_one_large_chunk_always_goes() -> None:
    buffer = StreamBuffer(Bound(10, 4), [("r", Full.BLOCK)])
    buffer.append(b"12345", {})
    assert not buffer.fits(1)
    buffer.open("r", Credit(0, Bound(10, 2)))
    assert offsets(buffer, "r") == [0]
    buffer.credit("r", Credit(1, Bound(10, 2)))
    buffer.append(b"1", {})
    buffer.append(b"22", {})
    assert not buffer.fits(2)
    assert offsets(buffer, "r") == [1]


def test_credit_bounds_what_is_on_its_way() -> None:
    buffer = filled(5)
    buffer.open("r", Credit(0, Bound(2, 100)))
    assert offsets(buffer, "r") == [0, 1]
    assert not buffer.has_something("r")
    buffer.credit("r", Credit(1, Bound(2, 100)))
    assert offsets(buffer, "r") == [2]
    buffer.credit("r", Credit(3, Bound(0, 0)))
    assert offsets(buffer, "r") == []


def test_reader_that_comes_back_gets_no_gap_and_no_repeat() -> None:
    buffer = filled(6)
    assert offsets(buffer, "r") == [0, 1, 2, 3, 4, 5]
    buffer.credit("r", Credit(2, WIDE))
    buffer.open("r", Credit(4, WIDE))
    assert offsets(buffer, "r") == [4, 5]


def test_what_all_have_acknowledged_stays_while_there_is_room() -> None:
    buffer = filled(3, bound=Bound(4, 100))
    offsets(buffer, "r")
    buffer.credit("r", Credit(3, WIDE))
    buffer.open("r", Credit(0, WIDE))
    assert offsets(buffer, "r") == [0, 1, 2]
    buffer.credit("r", Credit(3, WIDE))
    buffer.append(b"d", {})
    buffer.append(b"e", {})
    with pytest.raises(StreamGone, match="chunk 0 is not kept any more; the first that is kept is 1"):
        buffer.open("r", Credit(0, WIDE))
    with pytest.raises(StreamGone):
        buffer.open("another", Credit(0, WIDE))


def test_oldest_are_dropped_and_counted() -> None:
    buffer = filled(10, bound=Bound(3, 100), full=Full.OLDEST)
    assert buffer.fits(1)
    assert offsets(buffer, "r") == [7, 8, 9]
    assert buffer.counts("r") == (3, 7, 0)


def test_only_the_latest_is_kept_for_a_reader_that_wants_it() -> None:
    buffer = filled(10, full=Full.LATEST)
    assert offsets(buffer, "r") == [9]
    assert buffer.counts("r") == (1, 9, 0)


def test_policy_is_each_readers_own() -> None:
    buffer = StreamBuffer(Bound(4, 100), [("all", Full.BLOCK), ("live", Full.LATEST)])
    for _ in range(4):
        buffer.append(b"x", {})
    assert not buffer.fits(1)
    buffer.open("all", Credit(0, WIDE))
    buffer.open("live", Credit(0, WIDE))
    assert offsets(buffer, "all") == [0, 1, 2, 3]
    assert offsets(buffer, "live") == [3]
    assert buffer.counts("live").dropped == 3


def test_what_a_dropping_reader_lost_in_a_break_is_counted_once() -> None:
    buffer = filled(3, bound=Bound(3, 100), full=Full.OLDEST)
    assert offsets(buffer, "r") == [0, 1, 2]
    for _ in range(3):
        buffer.append(b"x", {})
    buffer.open("r", Credit(1, WIDE))
    assert offsets(buffer, "r") == [3, 4, 5]
    assert buffer.counts("r").dropped == 2


def test_greater_generation_makes_older_chunks_stale_and_makes_room() -> None:
    buffer = filled(4, bound=Bound(4, 100))
    buffer.open("r", Credit(0, Bound(1, 100)))
    assert offsets(buffer, "r") == [0]
    assert not buffer.fits(1)
    assert buffer.fits(1, 1)
    buffer.append(b"n", {}, 1)
    buffer.credit("r", Credit(1, WIDE))
    batch = buffer.take("r", WIDE)
    assert [(chunk.offset, chunk.generation) for chunk in batch.chunks] == [(4, 1)]
    assert (batch.stale, batch.generation) == (3, 1)


def test_stale_chunks_on_their_way_hold_nobody_up() -> None:
    buffer = filled(3, bound=Bound(3, 100))
    assert offsets(buffer, "r") == [0, 1, 2]
    buffer.append(b"n", {}, 1)
    buffer.append(b"n", {}, 1)
    assert buffer.fits(1, 1)
    buffer.append(b"n", {}, 1)
    assert not buffer.fits(1, 1)


def test_late_chunk_of_a_lesser_generation_is_counted_and_not_given() -> None:
    buffer = filled(1, generation=2)
    assert buffer.append(b"late", {}, 1) == 1
    buffer.append(b"new", {}, 2)
    assert offsets(buffer, "r") == [0, 2]
    assert buffer.counts("r").stale == 1


def test_stale_chunks_are_not_missed_by_a_reader_that_starts_at_the_beginning() -> None:
    buffer = filled(4, bound=Bound(2, 100), full=Full.OLDEST)
    buffer.append(b"n", {}, 1)
    buffer.open("new", Credit(0, WIDE))
    assert offsets(buffer, "new") == [4]


def test_reader_that_wants_no_more_holds_nothing_up() -> None:
    buffer = filled(2, bound=Bound(2, 100))
    assert not buffer.fits(1)
    assert not buffer.abandoned
    buffer.close("r")
    assert buffer.fits(1)
    assert buffer.abandoned
    buffer.close("r")


def test_who_wants_the_newest_has_one_chunk_on_its_way_whatever_its_credit() -> None:
    buffer = filled(3, full=Full.LATEST)
    assert offsets(buffer, "r") == [2]
    buffer.append(b"x", {})
    buffer.append(b"x", {})
    assert offsets(buffer, "r") == []
    buffer.credit("r", Credit(3, WIDE))
    assert offsets(buffer, "r") == [4]


def test_reader_without_credit_hears_of_a_greater_generation() -> None:
    buffer = filled(1)
    buffer.open("r", Credit(0, Bound(1, 100)))
    assert offsets(buffer, "r") == [0]
    buffer.append(b"n", {}, 5)
    assert buffer.has_something("r")
    batch = buffer.take("r")
    assert (batch.chunks, batch.generation) == ((), 5)
    assert not buffer.has_something("r")


def test_stream_that_nobody_reads_goes_on() -> None:
    buffer = StreamBuffer(Bound(2, 100))
    for _ in range(5):
        buffer.append(b"x", {})
    assert buffer.kept == (2, 2)
    assert buffer.finish().chunks == 5


def test_end_comes_after_the_last_chunk_with_count_and_digest() -> None:
    buffer = StreamBuffer(WIDE, [("r", Full.BLOCK)])
    buffer.append(b"ab", {}, 7)
    buffer.append(b"c", {}, 7)
    end = buffer.finish()
    buffer.open("r", Credit(0, Bound(1, 100)))
    assert buffer.take("r").end is None
    buffer.credit("r", Credit(1, WIDE))
    assert buffer.take("r").end == end
    heads = struct.pack("<QQQ", 0, 7, 2) + b"ab" + struct.pack("<QQQ", 1, 7, 1) + b"c"
    assert end == (How.FINISHED, 2, 3, blake3(heads).hexdigest(), "")
    assert buffer.finish(How.FAILED, "no") == end
    with pytest.raises(InvalidInput, match="after the end"):
        buffer.append(b"d", {})


@pytest.mark.parametrize(("how", "given"), [(How.FAILED, [0, 1]), (How.CANCELLED, []), (How.SUPERSEDED, [])])
def test_end_of_what_nobody_wants_any_more_comes_at_once(how: How, given: list[int]) -> None:
    buffer = filled(2)
    buffer.finish(how, "why")
    batch = buffer.take("r", WIDE)
    assert [chunk.offset for chunk in batch.chunks] == given
    assert batch.end is not None
    assert batch.end.message == "why"


def test_chunk_that_was_added_before_is_passed_over_and_offsets_may_be_left_out() -> None:
    buffer = filled(2)
    assert not buffer.put(StreamChunk(1, 0, b"again", {}))
    assert buffer.put(StreamChunk(5, 0, b"f", {}))
    assert offsets(buffer, "r") == [0, 1, 5]
    assert buffer.next == 6


def test_too_large_a_chunk_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidInput, match="STREAM_CHUNK_BYTES_MAX"):
        filled(0).append(bytes(limits.STREAM_CHUNK_BYTES_MAX + 1), {})


def test_credit_for_what_was_not_sent_is_refused() -> None:
    buffer = filled(2)
    with pytest.raises(InvalidInput, match="acknowledged"):
        buffer.credit("r", Credit(1, WIDE))
    with pytest.raises(InvalidInput, match="has 2 chunks so far"):
        buffer.open("r", Credit(3, WIDE))


@pytest.mark.parametrize("how", [How.CANCELLED, How.SUPERSEDED])
def test_reader_that_comes_back_to_what_was_withdrawn_is_told_so_and_counts_nothing_twice(how: How) -> None:
    buffer = StreamBuffer(WIDE, [("all", Full.BLOCK), ("newest", Full.LATEST)])
    for name in ("all", "newest"):
        buffer.open(name, Credit(0, WIDE))
    for generation in (1, 0, 1):
        buffer.append(b"x", {}, generation)
    assert offsets(buffer, "all") == [0, 2]
    buffer.finish(how)
    before = {name: buffer.counts(name) for name in buffer.readers}
    for name in buffer.readers:
        buffer.open(name, Credit(0, WIDE))
        batch = buffer.take(name)
        assert not batch.chunks
        assert batch.end is not None
        assert batch.end.how is how
    assert {name: buffer.counts(name) for name in buffer.readers} == before
    assert before["newest"] == (0, 1, 1)


class Readings(RuleBasedStateMachine):
    """Readers of every policy on one buffer, beside a plain model of what each is still to get."""

    @initialize(chunks=st.integers(1, 5), size=st.integers(1, 12))
    def begin(self, chunks: int, size: int) -> None:
        self.bound = Bound(chunks, size)
        self.buffer = StreamBuffer(self.bound, [(policy.value, policy) for policy in Full])
        self.appended: list[StreamChunk] = []
        self.generation = 0
        #: offsets that each reader is still to be sent; of the one that loses the oldest, more than that
        self.wanted: dict[str, list[int]] = {policy.value: [] for policy in Full}
        self.acknowledged = dict.fromkeys(self.wanted, 0)
        self.flight: dict[str, list[int]] = {name: [] for name in self.wanted}
        self.window = dict.fromkeys(self.wanted, Bound())
        self.opened: set[str] = set()
        self.reopened: set[str] = set()

    @rule(size=st.integers(0, 6), raises=st.integers(-1, 1))
    def append(self, size: int, raises: int) -> None:
        if self.buffer.end is not None:
            return
        generation = max(0, self.generation + raises)
        chunk = StreamChunk(len(self.appended), generation, bytes(size), {})
        if not self.buffer.fits(size, generation):
            with pytest.raises(Overloaded):
                self.buffer.put(chunk)
            # Only one that blocks holds the producer up, and only by chunks of this generation.
            assert self.buffer.blockers() == ("block",)
            assert generation <= self.generation
            return
        self.buffer.put(chunk)
        self.appended.append(chunk)
        if generation < self.generation:
            return
        for name, wanted in self.wanted.items():
            if generation > self.generation or name == Full.LATEST.value:
                wanted.clear()
            wanted.append(chunk.offset)
        self.generation = generation

    @rule(name=st.sampled_from(list(Full)), chunks=st.integers(0, 3), size=st.integers(0, 6))
    def open(self, name: Full, chunks: int, size: int) -> None:
        self.window[name.value] = Bound(chunks, size)
        self.buffer.open(name.value, Credit(self.acknowledged[name.value], Bound(chunks, size)))
        if name.value in self.opened and self.flight[name.value]:
            self.reopened.add(name.value)
        again = [o for o in self.flight[name.value] if self.appended[o].generation == self.generation]
        if name is not Full.LATEST or not self.wanted[name.value]:
            # Of what was on its way to the one that wants the latest, only the very latest is sent again.
            again = again[-1:] if name is Full.LATEST else again
            newest = [c.offset for c in self.appended if c.generation == self.generation][-1:]
            again = [o for o in again if name is not Full.LATEST or o in newest]
            self.wanted[name.value] = again + self.wanted[name.value]
        self.flight[name.value] = []
        self.opened.add(name.value)

    @rule(name=st.sampled_from(list(Full)), most=st.integers(1, 3))
    def take(self, name: Full, most: int) -> None:
        if name.value not in self.opened:
            return
        something = self.buffer.has_something(name.value)
        batch = self.buffer.take(name.value, Bound(most, 100))
        assert something or not (batch.chunks or batch.end)
        assert not self.buffer.has_something(name.value) or batch.chunks or batch.end
        found = [chunk.offset for chunk in batch.chunks]
        wanted = self.wanted[name.value]
        if found and name is Full.OLDEST:
            del wanted[: wanted.index(found[0])]
        assert found == wanted[: len(found)]
        del wanted[: len(found)]
        self.flight[name.value] += found
        assert all(self.appended[chunk.offset] == chunk for chunk in batch.chunks)
        assert batch.generation == self.generation
        if batch.end is not None and batch.end.how in (How.FINISHED, How.FAILED) and name is Full.BLOCK:
            assert not wanted

    @rule(name=st.sampled_from(list(Full)), data=st.data())
    def acknowledge(self, name: Full, data: Any) -> None:
        if not self.flight[name.value]:
            return
        upto = data.draw(st.sampled_from(self.flight[name.value])) + 1
        self.buffer.credit(name.value, Credit(upto, self.window[name.value]))
        self.acknowledged[name.value] = upto
        self.flight[name.value] = [offset for offset in self.flight[name.value] if offset >= upto]

    @precondition(lambda self: len(self.appended) > 2)
    @rule(how=st.sampled_from(list(How)))
    def finish(self, how: How) -> None:
        assert self.buffer.finish(how).chunks == len(self.appended)

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "buffer"):
            return
        kept = self.buffer.kept
        assert kept.chunks <= 1 or (kept.chunks <= self.bound.chunks and kept.bytes <= self.bound.bytes)
        for name, flight in self.flight.items():
            size = sum(len(self.appended[offset].data) for offset in flight)
            window = self.window[name]
            # A window may be made smaller by coming back, when nothing is on its way.
            assert len(flight) <= 1 or (len(flight) <= window.chunks and size <= window.bytes)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        if not hasattr(self, "buffer"):
            return
        for name in (Full.BLOCK.value, Full.LATEST.value):
            if name not in self.reopened:
                sent, dropped, stale = self.buffer.counts(name)
                assert sent + dropped + stale + len(self.wanted[name]) == len(self.appended)
        assert self.buffer.counts(Full.BLOCK.value).dropped == 0


TestReadings = Readings.TestCase
TestReadings.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
