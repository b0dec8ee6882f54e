"""The streams that the orchestrator has: what clients feed to a job, and what they read of its declared outputs.

    input     clients write, agents read. In memory, bounded, unless the job asks to spool it: then on disk, and a chunk
              is durable before it is acknowledged.
    output    the agent that has the stage writes, clients read, and agents where the one that wrote is gone. On disk.

One at a time feeds an input: a call that opens it takes over from the one before. Of an output only an attempt with a
live token is believed. Clients that read see one stream, whichever attempts wrote it: see `spool`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final, Protocol

from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import (
    Bound,
    Credit,
    How,
    ReadOpen,
    RunningDigest,
    StreamBatch,
    StreamChunk,
    StreamEnd,
    WriteOpen,
)
from starloom.dag import limits
from starloom.dag.errors import Conflict, StreamGone
from starloom.dag.ids import FencingToken
from starloom.dag.values import Full
from starloom.orchestrator.spool import Cursor, Spool

Requests = AsyncIterator[Credit | None]
"""What a reader says after its opening: how far it is, and None where it wants no more."""
Parts = AsyncIterator[StreamBatch]
"""What a writer says after its opening."""

_MESSAGE: Final = Bound(limits.STREAM_MESSAGE_CHUNKS, limits.STREAM_MESSAGE_BYTES)
_WRITER: Final = ""
_INPUT_BOUND: Final = Bound(limits.STREAM_BUFFER_CHUNKS, limits.STREAM_INPUT_BYTES)


ENOUGH: Final = StreamEnd(How.FINISHED, 0, 0, RunningDigest().hex(), "its reader wants no more")
"""The end of an input for a stage that has enough of it: that must not wait for the client that feeds it."""


class JobStream(Protocol):
    """One stream of a job."""

    def read(self, wish: ReadOpen, requests: Requests) -> AsyncIterator[StreamBatch]:
        """The chunks that a reader wants, within its credit, and the end."""
        ...

    def write(self, wish: WriteOpen, parts: Parts) -> AsyncIterator[Credit]:
        """Takes chunks in; says where to begin, and how far it is."""
        ...

    def ring(self) -> None:
        """Something happened to the job: everybody looks again."""
        ...


class _Call:
    """A call that waits for something: it looks again when its bell rings."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        #: another call has taken its place, or the other end has gone or wants no more
        self.over = False
        #: the other end said that it wants no more
        self.closed = False

    def end(self) -> None:
        self.over = True
        self.rung.set()

    async def wait(self) -> None:
        await self.rung.wait()
        self.rung.clear()


class _Calls:
    """The calls on one stream, and the last one of each name."""

    def __init__(self) -> None:
        self._calls: set[_Call] = set()
        self._named: dict[str, _Call] = {}

    def ring(self) -> None:
        for call in self._calls:
            call.rung.set()

    @contextmanager
    def enter(self, name: str, *, closed: bool = False) -> Iterator[_Call]:
        """A call that takes over from the one before of its name."""
        call = _Call()
        call.closed = closed
        if (before := self._named.get(name)) is not None:
            before.end()
        self._named[name] = call
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)
            if self._named.get(name) is call:
                del self._named[name]

    @contextmanager
    def reading(self, wish: ReadOpen, requests: Requests, credit: Callable[[Credit], None]) -> Iterator[_Call]:
        """A reader's call; its credits are taken in beside."""
        with self.enter(wish.reader, closed=wish.closed) as call:
            listening = asyncio.create_task(_listen(call, requests, credit))
            try:
                yield call
                if listening.done() and not listening.cancelled() and (error := listening.exception()) is not None:
                    raise error
            finally:
                listening.cancel()


async def _listen(call: _Call, requests: Requests, credit: Callable[[Credit], None]) -> None:
    try:
        async for item in requests:
            if call.over:
                break
            if item is None:
                call.closed = True
            elif not call.closed:
                credit(item)
            call.rung.set()
    finally:
        call.end()


class _Window:
    """What a reader of a spool was sent and has not acknowledged."""

    def __init__(self, credit: Credit) -> None:
        self._window = credit.window
        self._flight: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def credit(self, credit: Credit) -> None:
        """The reader is further."""
        self._window = credit.window
        while self._flight and self._flight[0][0] < credit.acknowledged:
            self._bytes -= self._flight.popleft()[1]

    def room(self) -> Bound:
        """How much it may be sent now."""
        chunks = min(self._window.chunks - len(self._flight), _MESSAGE.chunks)
        return Bound(chunks, min(self._window.bytes - self._bytes, _MESSAGE.bytes))

    def take(self, waiting: deque[StreamChunk]) -> tuple[StreamChunk, ...]:
        """What of the chunks that wait goes out now: within the window, or one."""
        found: list[StreamChunk] = []
        while waiting:
            size = len(waiting[0].data)
            if self._flight and (len(self._flight) >= self._window.chunks or self._bytes + size > self._window.bytes):
                break
            chunk = waiting.popleft()
            found.append(chunk)
            self._flight.append((chunk.offset, size))
            self._bytes += size
        return tuple(found)


class SpooledStream:
    """A stream on disk. `check` raises where a writer may not write; `over` gives the end where none comes any more."""

    def __init__(
        self, spool: Spool, check: Callable[[WriteOpen], None], over: Callable[[], StreamEnd | None], *, durable: bool
    ) -> None:
        self.spool = spool
        self._check = check
        self._over = over
        self._durable = durable
        self._calls = _Calls()

    def ring(self) -> None:
        """Everybody looks again."""
        self._calls.ring()

    async def read(self, wish: ReadOpen, requests: Requests) -> AsyncIterator[StreamBatch]:
        """From any offset on; one beyond what is there is waited for. Raises StreamGone, see `spool`."""
        window = _Window(wish.credit)
        cursor = Cursor(self.spool, wish.credit.acknowledged)
        waiting: deque[StreamChunk] = deque()
        with self._calls.reading(wish, requests, window.credit) as call:
            while not call.over:
                room = window.room()
                if not waiting and room.chunks > 0 and not call.closed:
                    waiting.extend(await asyncio.to_thread(self.spool.read, cursor, room))
                if not call.closed and (chunks := window.take(waiting)):
                    yield StreamBatch(chunks, generation=self.spool.generation)
                    continue
                if (end := self._end(call, cursor)) is not None and (call.closed or not waiting):
                    yield StreamBatch(generation=self.spool.generation, end=end)
                    return
                await call.wait()

    def _end(self, call: _Call, cursor: Cursor) -> StreamEnd | None:
        """What a reader that has read up to its cursor, or wants no more, is told as the end. Raises StreamGone."""
        if call.closed:
            return (ENOUGH if self._durable else None) or self.spool.end or self._over()
        return self.spool.end_for(cursor) or (self._over() if cursor.offset >= self.spool.next else None)

    async def write(self, wish: WriteOpen, parts: Parts) -> AsyncIterator[Credit]:
        """From the offset on that is wanted of the writer. Only an end that is finished is one: another attempt may follow."""
        with self._calls.enter(_WRITER) as call:
            self._check(wish)
            try:
                async with aclosing(self._written(call, wish.stream.token, wish, parts)) as answers:
                    async for credit in answers:
                        yield credit
            finally:
                # Its job may have ended, and is kept for long; whoever goes on writing opens the file again.
                await asyncio.to_thread(self.spool.close)

    async def _written(
        self, call: _Call, writer: FencingToken, wish: WriteOpen, parts: Parts
    ) -> AsyncGenerator[Credit, None]:
        yield Credit(await asyncio.to_thread(self.spool.adopt, writer))
        async for part in parts:
            if call.over:
                raise Conflict("another one writes the stream now")
            self._check(wish)
            wanted = await asyncio.to_thread(self.spool.write, part.chunks, writer=writer, sync=self._durable)
            if part.end is not None and part.end.how is How.FINISHED:
                # Clients do not know what other clients fed.
                end = self.spool.totals() if self._durable else part.end
                await asyncio.to_thread(self.spool.finish, end, writer=writer)
            self.ring()
            yield Credit(wanted)
            if part.end is not None:
                return


class FedStream:
    """A job's input in memory. `readers` are the ports that it feeds, as `stage.port`.

    What was fed before this orchestrator started is not known to a stream that is not `fresh`: it begins at the first
    chunk that comes, and a reader that still needs older ones is told that they are gone, unless its policy lets them be
    dropped. That it was closed lasts: `marker` opens the spool that says so, and how many chunks there were.
    """

    def __init__(
        self,
        name: str,
        full: Full,
        readers: Iterable[str],
        over: Callable[[], StreamEnd | None],
        marker: Callable[[], Spool],
        *,
        fresh: bool,
        closed: StreamEnd | None = None,
    ) -> None:
        self._name = name
        self._full = full
        self._readers = tuple((reader, full) for reader in readers)
        self._over = over
        self._marker = marker
        self._calls = _Calls()
        #: the readers that want no more
        self._left: set[str] = set()
        self._buffer = self._begin(0) if fresh else None
        #: the offsets that readers came with before the first chunk
        self._wanted = 0
        #: the last attempt of each reader that came
        self._attempts: dict[str, int] = {}
        if closed is not None:
            self._buffer = self._begin(closed.chunks)
            self._buffer.end = closed

    def ring(self) -> None:
        """Everybody looks again."""
        self._calls.ring()

    async def read(self, wish: ReadOpen, requests: Requests) -> AsyncIterator[StreamBatch]:
        """Raises StreamGone where chunks that may not be missed are not kept any more, and Conflict for a reader that is over."""
        name = wish.reader
        if wish.attempt < self._attempts.get(name, 0):
            raise Conflict(
                f"attempt {wish.attempt} of {name} is over: attempt {self._attempts[name]} reads {self._name}"
            )
        self._attempts[name] = wish.attempt
        credit = wish.credit

        def more(found: Credit) -> None:
            nonlocal credit
            credit = found
            if opened and self._buffer is not None:
                self._buffer.credit(name, found)
                self.ring()

        opened = False
        with self._calls.reading(wish, requests, more) as call:
            self._wanted = max(self._wanted, credit.acknowledged)
            self._left.discard(name)
            while not call.over:
                if call.closed:
                    self._leave(name)
                    yield StreamBatch(end=ENOUGH)
                    return
                if self._buffer is not None and not opened:
                    self._open(name, credit)
                    opened = True
                    self.ring()
                if self._buffer is not None and self._buffer.has_something(name):
                    batch = self._buffer.take(name)
                    yield batch
                    if batch.end is not None:
                        return
                elif (end := self._over()) is not None:
                    yield StreamBatch(end=end)
                    return
                else:
                    await call.wait()

    async def write(self, wish: WriteOpen, parts: Parts) -> AsyncIterator[Credit]:
        """Waits where the readers are slow and nothing may be dropped. Raises Conflict where another client took over."""
        with self._calls.enter(_WRITER) as call:
            self._refuse_over()
            yield Credit(self._buffer.next if self._buffer is not None else self._wanted)
            async for part in parts:
                self._refuse_former(call)
                for chunk in part.chunks:
                    await self._put(call, chunk)
                if part.end is not None:
                    await self._finish(part.end)
                if self._buffer is not None:
                    yield Credit(self._buffer.next)
                if part.end is not None:
                    return

    async def _put(self, call: _Call, chunk: StreamChunk) -> None:
        if self._buffer is None:
            self._buffer = self._begin(chunk.offset)
        buffer = self._buffer
        while chunk.offset >= buffer.next and buffer.end is None and not buffer.fits(len(chunk.data), chunk.generation):
            await call.wait()
            self._refuse_over()
            self._refuse_former(call)
        self._refuse_former(call)
        self._refuse_over()
        if buffer.put(chunk):
            self.ring()

    async def _finish(self, end: StreamEnd) -> None:
        if self._buffer is None:
            self._buffer = self._begin(self._wanted)
        buffer = self._buffer
        found = buffer.finish(How.FINISHED)._replace(chunks=buffer.next)
        await asyncio.to_thread(self._mark, found)
        self.ring()

    def _mark(self, end: StreamEnd) -> None:
        spool = self._marker()
        spool.finish(end)
        spool.close()

    def _refuse_former(self, call: _Call) -> None:
        if call.over:
            raise Conflict(f"another client feeds {self._name} now")

    def _refuse_over(self) -> None:
        end = self._over()
        if end is not None:
            raise Conflict(f"input {self._name} takes no more: {end.message}")

    def _begin(self, first: int) -> StreamBuffer:
        return StreamBuffer(_INPUT_BOUND, [each for each in self._readers if each[0] not in self._left], first)

    def _leave(self, name: str) -> None:
        """A reader wants no more, whether or not anything was fed since this orchestrator started."""
        self._left.add(name)
        if self._buffer is not None:
            self._buffer.close(name)
            self.ring()

    def _open(self, name: str, credit: Credit) -> None:
        assert self._buffer is not None
        try:
            if credit.acknowledged > self._buffer.next:
                raise StreamGone(
                    f"chunk {credit.acknowledged} is wanted, and it was begun again at {self._buffer.next}"
                )
            self._buffer.open(name, credit, self._full)
        except StreamGone as error:
            raise StreamGone(
                f"input {self._name}: {error}; it is kept in memory only until it is read: submit the job with this input "
                "spooled if its stages are to run again, or if it is to outlive a restart of the orchestrator"
            ) from error
