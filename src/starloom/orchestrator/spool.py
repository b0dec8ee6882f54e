"""Streams on the orchestrator's disk: what clients read of a declared output, and job inputs that are to outlive a restart.

    <folder>/<job>/out/<stage>/<port>/00000001.seg, ...     the chunks of a declared output stream
    <folder>/<job>/in/<input>/00000001.seg, ...             those of a job input that is spooled

A segment is a row of records, each with its checksum: chunks, the end, and how far the present writer is. What a
crash left half written at the end is cut off when the stream is opened. Blocking: for worker threads.

A stage that runs again writes again, under another token. What it gives is compared with what is there: as long as
it is the same, nothing changes, and a reader sees neither a gap nor a repeat. From the first difference on its
chunks replace the old ones, and whoever has read further is told.
"""

import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Final

from starloom.agents.streams.records import Bound, How, RunningDigest, StreamChunk, StreamEnd
from starloom.dag import limits
from starloom.dag.errors import Conflict, InvalidInput, Problem, StreamGone
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId
from starloom.orchestrator.segmentlog import SegmentLog
from starloom.orchestrator.spoolrecords import CHUNK, END, WRITER, Record, Segment, packed, records_of

_ONE: Final = Bound(1, 0)
NOBODY: Final = FencingToken(Epoch(0), Attempt(0))
"""The writer of a job's input stream: its clients, which have no token."""


class Cursor:
    """A reader's place in a spool: the next offset that it wants."""

    __slots__ = ("_cuts", "_position", "_segment", "offset")

    def __init__(self, spool: "Spool", offset: int) -> None:
        self.offset = offset
        self._cuts = len(spool.cuts)
        self._segment: Segment | None = None
        self._position = 0

    def _follow(self, cuts: Sequence[int]) -> None:
        """Raises StreamGone where chunks that were read were replaced by others since."""
        fresh = cuts[self._cuts :]
        if not fresh:
            return
        self._cuts, self._segment = len(cuts), None
        if min(fresh) < self.offset:
            raise StreamGone(
                f"the stream was produced again and came out differently from chunk {min(fresh)} on; "
                f"{self.offset} were read of the former one: read it again from there"
            )


class Spool:
    """One stream on disk. Safe for threads; one writer at a time. Opening reads it through."""

    def __init__(self, folder: Path, bytes_max: int = limits.STREAM_SPOOL_BYTES_MAX) -> None:
        self.folder = folder
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._log = SegmentLog(folder)
        self._digest = RunningDigest()
        #: where the writer is that repeats what another wrote
        self._repeating: Cursor | None = None
        #: the offset after the last chunk
        self.next = 0
        self.generation = 0
        self.end: StreamEnd | None = None
        #: whose end that is, as far as is known
        self._ended_by = NOBODY
        #: the offsets from which chunks were replaced, since it was opened
        self.cuts: list[int] = []
        #: who writes, and the next offset wanted of it: below `next` while it repeats what another wrote
        self.writer = NOBODY
        self.wanted = 0
        self._recover()

    def __repr__(self) -> str:
        return f"<Spool {str(self.folder)!r} next={self.next}>"

    def adopt(self, writer: FencingToken) -> int:
        """Another attempt writes, or the same again; returns the next offset that is wanted of it."""
        with self._lock:
            if writer != self.writer:
                self._note(writer, 0)
                self.writer, self.wanted = writer, 0
            return self.wanted

    def write(self, chunks: Iterable[StreamChunk], *, writer: FencingToken | None = None, sync: bool = False) -> int:
        """Takes the writer's next chunks in; returns the next offset that is wanted. `sync`: they are durable then.

        Raises Conflict where a `writer` is given and another one has taken over, InvalidInput for a chunk after the
        writer's own end, or where the stream gets larger than it may, and Overloaded where the disk has no room.
        """
        with self._lock:
            self._refuse_former(writer)
            repeated = False
            for chunk in chunks:
                if chunk.offset < self.wanted:
                    continue
                if self.wanted < self.next:
                    repeated = self._repeat(chunk)
                if self.wanted >= self.next and chunk.offset >= self.next:
                    self._append_chunk(chunk)
                    repeated = False
            if repeated:
                self._note(self.writer, self.wanted)
            if sync:
                self._log.sync()
            return self.wanted

    def finish(self, end: StreamEnd, *, writer: FencingToken | None = None) -> StreamEnd:
        """The writer has ended: durable when it returns. Chunks beyond its end were another's, and are cut off.

        Raises Conflict as `write` does, and Overloaded.
        """
        with self._lock:
            self._refuse_former(writer)
            if self.wanted < self.next:
                self._cut(self.wanted)
            if self.end is None:
                meta = {"how": end.how, "chunks": end.chunks, "bytes": end.bytes, "digest": end.digest}
                self._log.append(packed(END, self.next, 0, {**meta, "message": end.message}, b""), self.next)
                self.end = end
            self._ended_by = self.writer
            self._log.sync()
            return self.end

    def read(self, cursor: Cursor, most: Bound) -> tuple[StreamChunk, ...]:
        """The chunks at a cursor, which is moved on: at most `most` of them, or one. Raises StreamGone."""
        with self._lock:
            cursor._follow(self.cuts)
            return self._chunks_at(cursor, most)

    def end_for(self, cursor: Cursor) -> StreamEnd | None:
        """The end, for who has read all that comes before it. Raises StreamGone as `read` does; waits for nobody."""
        # An end that another attempt has given comes after the word of what it replaced.
        end = self.end if cursor.offset >= self.next else None
        cursor._follow(self.cuts)
        return end

    def totals(self, how: How = How.FINISHED, message: str = "") -> StreamEnd:
        """An end for what is there."""
        return StreamEnd(how, self._digest.chunks, self._digest.bytes, self._digest.hex(), message)

    def close(self) -> None:
        """Lets its file go; it may be written again."""
        with self._lock:
            self._log.let_go()

    def _refuse_former(self, writer: FencingToken | None) -> None:
        if writer is not None and writer != self.writer:
            raise Conflict(f"another one writes the stream now: {self.writer}")

    def _repeat(self, chunk: StreamChunk) -> bool:
        """A chunk that another attempt wrote before: the same, or the first of others. Whether it was the same."""
        place = self._repeating
        if place is None or place.offset != self.wanted:
            place = self._repeating = Cursor(self, self.wanted)
        there = self._chunks_at(place, _ONE)[0]
        if there == chunk:
            self.wanted = chunk.offset + 1
            return True
        self._cut(there.offset)
        return False

    def _chunks_at(self, cursor: Cursor, most: Bound) -> tuple[StreamChunk, ...]:
        found: list[StreamChunk] = []
        size = 0
        while cursor.offset < self.next and len(found) < most.chunks:
            for record in self._records_at(cursor):
                if record.kind == CHUNK and record.offset >= cursor.offset:
                    if found and size + len(record.data) > most.bytes:
                        return tuple(found)
                    found.append(StreamChunk(record.offset, record.generation, record.data, record.meta))
                    size += len(record.data)
                    cursor.offset = record.offset + 1
                cursor._position += record.size
                if len(found) == most.chunks:
                    break
        return tuple(found)

    def _append_chunk(self, chunk: StreamChunk) -> None:
        if self.end is not None and self._ended_by != self.writer:
            self._cut(self.next)
        if self.end is not None:
            raise InvalidInput([Problem(f"chunk {chunk.offset}", f"comes after the end, {self.end.how}")])
        if len(chunk.data) > limits.STREAM_CHUNK_BYTES_MAX:
            over = f"over STREAM_CHUNK_BYTES_MAX = {limits.STREAM_CHUNK_BYTES_MAX}"
            raise InvalidInput(
                [Problem(f"chunk {chunk.offset}", f"has {len(chunk.data)} bytes, {over}; send it in parts")]
            )
        if self._log.size + len(chunk.data) > self._bytes_max:
            over = f"is over STREAM_SPOOL_BYTES_MAX = {self._bytes_max} bytes"
            raise InvalidInput(
                [Problem(f"chunk {chunk.offset}", f"{over}: what is kept of a stream has to be shorter")]
            )
        self._log.append(packed(CHUNK, chunk.offset, chunk.generation, chunk.meta, bytes(chunk.data)), self.next)
        self._count(chunk.offset, chunk.generation, bytes(chunk.data))
        self.wanted = self.next

    def _count(self, offset: int, generation: int, data: bytes) -> None:
        self._digest.add(offset, generation, data)
        self.next = offset + 1
        self.generation = max(self.generation, generation)

    def _note(self, writer: FencingToken, wanted: int) -> None:
        self._log.append(packed(WRITER, wanted, 0, {"epoch": writer.epoch, "attempt": writer.attempt}, b""), self.next)

    def _cut(self, offset: int) -> None:
        """Takes away all chunks from an offset on, and the end."""
        self.cuts.append(offset)
        self.end = None
        self._digest = RunningDigest()
        self.next = self.generation = 0
        for number, segment in enumerate(self._log.segments):
            position = 0
            for record in records_of(segment, 0):
                if record.kind == END or (record.kind == CHUNK and record.offset >= offset):
                    self._log.truncate(number, position)
                    self._note(self.writer, self.wanted)
                    return
                if record.kind == CHUNK:
                    self._count(record.offset, record.generation, record.data)
                position += record.size

    def _records_at(self, cursor: Cursor) -> Iterator[Record]:
        """The records from a cursor on, of one segment."""
        if cursor._segment is None or cursor._position >= cursor._segment.size:
            cursor._segment, cursor._position = self._log.at(cursor.offset), 0
        return records_of(cursor._segment, cursor._position)

    def _recover(self) -> None:
        for number, segment in enumerate(self._log.segments):
            segment.first = self.next
            position = 0
            for record in records_of(segment, 0):
                self._take(record)
                position += record.size
            if position < segment.size:
                self._log.truncate(number, position)
                return

    def _take(self, record: Record) -> None:
        match record.kind:
            case 0:
                self._count(record.offset, record.generation, record.data)
                self.wanted = self.next
            case 1:
                meta = record.meta
                self.end = StreamEnd(How(meta["how"]), meta["chunks"], meta["bytes"], meta["digest"], meta["message"])
                self._ended_by = self.writer
            case _:
                self.writer = FencingToken(Epoch(record.meta["epoch"]), Attempt(record.meta["attempt"]))
                self.wanted = record.offset


class Spools:
    """All spooled streams, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, job: JobId, *names: str) -> Spool:
        """The spool of a job's stream: `in` and an input's name, or `out`, a stage and its port."""
        return Spool(self.folder.joinpath(job, *names))

    def there(self, job: JobId, *names: str) -> bool:
        """Whether something was ever written of it."""
        return self.folder.joinpath(job, *names).is_dir()

    def drop(self, jobs: Iterable[JobId]) -> None:
        """Deletes all streams of jobs."""
        for job in jobs:
            shutil.rmtree(self.folder / job, ignore_errors=True)

    def adopt(self, kept: Container[JobId]) -> None:
        """At the start: what belongs to no kept job is deleted."""
        self.drop([JobId(path.name) for path in self.folder.iterdir() if JobId(path.name) not in kept])
