"""The chunks of one stream between its producer and its readers: what is kept, for whom, and what is dropped. Pure.

A chunk is kept until every reader that blocks has acknowledged it, and as long as there is room. A reader is declared
before it comes, so that nothing it needs is let go; each has its own credit and its own policy (`values.Full`).
A chunk of a greater generation makes all of lesser ones stale: whoever has not been sent them does not get them.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from starloom.agents.streams.records import Bound, Credit, How, RunningDigest, StreamBatch, StreamChunk, StreamEnd
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Overloaded, Problem, StreamGone
from starloom.dag.values import Full


class ReaderCounts(NamedTuple):
    """What became of the chunks that a reader was meant to get; those resent after a break count once more."""

    sent: int
    dropped: int
    stale: int


class _Kept(NamedTuple):
    chunk: StreamChunk
    #: bytes of all chunks that were kept before it
    before: int


class _Reader:
    __slots__ = (
        "acknowledged",
        "counted",
        "dropped",
        "flight",
        "flight_bytes",
        "full",
        "next",
        "sent",
        "stale",
        "told",
        "window",
    )

    def __init__(self, full: Full) -> None:
        self.full = full
        self.window = Bound()
        #: the lowest offset that it is not done with
        self.acknowledged = 0
        #: the lowest offset that it may still be sent
        self.next = 0
        #: below it every chunk is counted as sent, dropped or stale
        self.counted = 0
        #: the generation that it was told of
        self.told = 0
        #: offset and size of what it was sent and has not acknowledged
        self.flight: deque[tuple[int, int]] = deque()
        self.flight_bytes = 0
        self.sent = 0
        self.dropped = 0
        self.stale = 0

    def takes(self, size: int) -> bool:
        """Whether its credit lets it have another chunk. One on its way is enough for whoever wants the newest."""
        if not self.flight:
            return self.window.chunks > 0
        return (
            self.full is not Full.LATEST
            and len(self.flight) < self.window.chunks
            and self.flight_bytes + size <= self.window.bytes
        )


class StreamBuffer:
    """One stream's chunks, at most `bound` of them, or one. `readers` are declared, each with its policy.

    It begins at the offset `first`: what came before is not kept here, and never was.
    """

    def __init__(self, bound: Bound | None = None, readers: Iterable[tuple[str, Full]] = (), first: int = 0) -> None:
        self.bound = bound or Bound()
        self.generation = 0
        #: the offset of the next chunk
        self.next = first
        self.end: StreamEnd | None = None
        self._kept: list[_Kept] = []
        self._kept_in_all = 0
        self._digest = RunningDigest()
        self._closed = 0
        self._readers = {name: _Reader(full) for name, full in readers}
        #: below it every chunk is stale
        self._fresh = 0
        #: below it chunks are not kept any more
        self._gone = first

    @property
    def kept(self) -> Bound:
        """How much is kept now."""
        return Bound(len(self._kept), self._kept_in_all - self._kept[0].before if self._kept else 0)

    @property
    def readers(self) -> tuple[str, ...]:
        """Those that are declared or have come, and did not say that they want no more."""
        return tuple(self._readers)

    @property
    def abandoned(self) -> bool:
        """Whether there were readers, and all have said that they want no more."""
        return bool(self._closed) and not self._readers

    def counts(self, name: str) -> ReaderCounts:
        """What a reader got and did not get."""
        reader = self._readers[name]
        return ReaderCounts(reader.sent, reader.dropped, reader.stale)

    def fits(self, size: int, generation: int = 0) -> bool:
        """Whether a chunk of that size and generation may be appended now, dropping what may be dropped."""
        needed = self._needed(self.next if generation > self.generation else self._floor())
        return not needed.chunks or (needed.chunks < self.bound.chunks and needed.bytes + size <= self.bound.bytes)

    def blockers(self) -> tuple[str, ...]:
        """The readers whose acknowledgement would make room."""
        floor = self._floor()
        return tuple(name for name, reader in self._blocking() if reader.acknowledged <= floor)

    def append(self, data: bytes, meta: dict[str, Any], generation: int = 0) -> int:
        """Adds the producer's next chunk; returns its offset. Raises as `put` does."""
        self.put(StreamChunk(self.next, generation, data, meta))
        return self.next - 1

    def put(self, chunk: StreamChunk) -> bool:
        """Adds a chunk with the offset that it has; whether it is new: one that was added before is passed over.

        Raises Overloaded where it does not fit, and InvalidInput for one that is too large or comes after the end.
        """
        size = len(chunk.data)
        if chunk.offset < self.next:
            return False
        if self.end is not None:
            raise InvalidInput([Problem(f"chunk {chunk.offset}", f"comes after the end, {self.end.how}")])
        if size > limits.STREAM_CHUNK_BYTES_MAX:
            over = f"over STREAM_CHUNK_BYTES_MAX = {limits.STREAM_CHUNK_BYTES_MAX}"
            raise InvalidInput([Problem(f"chunk {chunk.offset}", f"has {size} bytes, {over}; yield it in parts")])
        if not self.fits(size, chunk.generation):
            raise Overloaded(f"the stream keeps {self.kept}, as much as it may; wait for {', '.join(self.blockers())}")
        self._digest.add(chunk.offset, chunk.generation, chunk.data)
        self.next = chunk.offset + 1
        if chunk.generation < self.generation:
            for reader in self._readers.values():
                reader.stale += 1
            return True
        if chunk.generation > self.generation:
            self._renew(chunk)
        self._make_room(size)
        for reader in self._readers.values():
            if reader.full is Full.LATEST:
                self._skip(reader, chunk.offset)
        self._kept.append(_Kept(chunk, self._kept_in_all))
        self._kept_in_all += size
        return True

    def finish(self, how: How = How.FINISHED, message: str = "") -> StreamEnd:
        """Ends the stream; the first end counts."""
        if self.end is None:
            self.end = StreamEnd(how, self._digest.chunks, self._digest.bytes, self._digest.hex(), message)
            if self._withdrawn:
                self._kept.clear()
                self._gone = self.next
                for reader in self._readers.values():
                    reader.counted = self.next
        return self.end

    def enlarge(self, bound: Bound) -> None:
        """Lets the buffer keep more."""
        self.bound = bound

    def open(self, name: str, credit: Credit, full: Full | None = None) -> None:
        """A reader comes, or comes back, and wants all from `credit.acknowledged` on.

        A policy that is given is in place of the declared one. Raises StreamGone where chunks that it may not miss
        are not kept any more.
        """
        reader = self._readers.get(name)
        policy = full or (reader.full if reader else Full.BLOCK)
        offset = credit.acknowledged
        if offset > self.next:
            raise InvalidInput([Problem("acknowledged", f"is {offset}, but the stream has {self.next} chunks so far")])
        if offset < self._gone and self._gone > self._fresh and policy is Full.BLOCK and not self._withdrawn:
            raise StreamGone(f"chunk {offset} is not kept any more; the first that is kept is {self._gone}")
        if reader is None:
            reader = self._readers[name] = _Reader(policy)
        if not self._withdrawn:
            reader.dropped += max(0, self._gone - max(offset, self._fresh, reader.counted))
        reader.counted = max(reader.counted, self._gone)
        reader.full = policy
        flight, reader.flight, reader.flight_bytes = reader.flight, deque(), 0
        reader.acknowledged = offset
        reader.next = max(offset, self._fresh, self._gone)
        reader.window = credit.window
        if policy is Full.LATEST and self._kept:
            self._skip(reader, self._kept[-1].chunk.offset)
        if self._withdrawn:
            return
        # What was on its way, and is not sent again, did not arrive.
        lost = [sent for sent, _ in flight if offset <= sent < reader.next]
        reader.dropped += sum(sent >= self._fresh for sent in lost)
        reader.stale += sum(sent < self._fresh for sent in lost)

    def credit(self, name: str, credit: Credit) -> None:
        """A reader is further. Raises InvalidInput where it acknowledges what it was not sent."""
        reader = self._readers[name]
        if credit.acknowledged > max(reader.next, reader.acknowledged):
            what = f"is {credit.acknowledged}, but {reader.next - 1} is the last chunk that was sent"
            raise InvalidInput([Problem("acknowledged", what)])
        reader.window = credit.window
        reader.acknowledged = max(reader.acknowledged, credit.acknowledged)
        while reader.flight and reader.flight[0][0] < credit.acknowledged:
            reader.flight_bytes -= reader.flight.popleft()[1]

    def close(self, name: str) -> None:
        """A reader wants no more; nothing waits for it any longer."""
        if self._readers.pop(name, None) is not None:
            self._closed += 1

    def take(self, name: str, most: Bound | None = None) -> StreamBatch:
        """What a reader is to be sent next, within its credit: at most `most`, or one chunk; and the end after the last."""
        most = most or Bound(limits.STREAM_MESSAGE_CHUNKS, limits.STREAM_MESSAGE_BYTES)
        reader = self._readers[name]
        found: list[StreamChunk] = []
        size = 0
        if not self._withdrawn:
            for kept in self._kept[self._index(reader.next) :]:
                length = len(kept.chunk.data)
                if not reader.takes(length) or len(found) == most.chunks or (found and size + length > most.bytes):
                    break
                found.append(kept.chunk)
                size += length
                reader.flight.append((kept.chunk.offset, length))
                reader.flight_bytes += length
                reader.next = kept.chunk.offset + 1
                reader.counted = max(reader.counted, reader.next)
        reader.sent += len(found)
        reader.told = self.generation
        end = self.end if self._over(reader) else None
        return StreamBatch(tuple(found), reader.dropped, reader.stale, self.generation, end)

    def has_something(self, name: str) -> bool:
        """Whether `take` would give a chunk, word of a greater generation, or the end."""
        reader = self._readers[name]
        if self._over(reader) or reader.told < self.generation:
            return True
        index = self._index(reader.next)
        return index < len(self._kept) and reader.takes(len(self._kept[index].chunk.data))

    @property
    def _withdrawn(self) -> bool:
        """Whether it was cancelled or replaced: nobody wants the rest, which is neither sent nor counted."""
        return self.end is not None and self.end.how in (How.CANCELLED, How.SUPERSEDED)

    def _over(self, reader: _Reader) -> bool:
        return self.end is not None and (self._withdrawn or self._index(reader.next) == len(self._kept))

    def _blocking(self) -> Iterable[tuple[str, _Reader]]:
        return ((name, reader) for name, reader in self._readers.items() if reader.full is Full.BLOCK)

    def _floor(self) -> int:
        """The lowest offset that somebody still needs."""
        lowest = min((reader.acknowledged for _, reader in self._blocking()), default=self.next)
        return max(self._fresh, lowest)

    def _index(self, offset: int) -> int:
        return bisect_left(self._kept, offset, key=lambda kept: kept.chunk.offset)

    def _needed(self, floor: int) -> Bound:
        index = self._index(floor)
        if index == len(self._kept):
            return Bound(0, 0)
        return Bound(len(self._kept) - index, self._kept_in_all - self._kept[index].before)

    def _renew(self, chunk: StreamChunk) -> None:
        """A new generation: what was not sent before it is not sent any more."""
        self.generation = chunk.generation
        self._fresh = chunk.offset
        for reader in self._readers.values():
            reader.stale += self._pass(reader, chunk.offset)

    def _skip(self, reader: _Reader, offset: int) -> None:
        """A reader does not get what it was not sent below an offset."""
        reader.dropped += self._pass(reader, offset)

    def _pass(self, reader: _Reader, offset: int) -> int:
        """Moves a reader on to an offset, if that is beyond where it is; how many chunks were not counted before."""
        passed = max(0, self._index(offset) - self._index(max(reader.next, reader.counted)))
        reader.next = max(reader.next, offset)
        reader.counted = max(reader.counted, offset)
        return passed

    def _make_room(self, size: int) -> None:
        while self._kept:
            kept = self.kept
            if kept.chunks < self.bound.chunks and kept.bytes + size <= self.bound.bytes:
                return
            offset = self._kept[0].chunk.offset
            for reader in self._readers.values():
                self._skip(reader, offset + 1)
            self._gone = offset + 1
            del self._kept[0]
