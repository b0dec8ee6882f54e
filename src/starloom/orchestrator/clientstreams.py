"""A client's streams: reading a job's declared output as it grows, and feeding its inputs. Both go on over breaks.

What is read and not yet asked for is within the window, on this side and on the way: a client that stops reading keeps
no more. What is fed and not yet acknowledged is kept here, within the window as well, and sent again after a break.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

from grpc import aio

from starloom.agents import status, wirestreams
from starloom.agents.streams.records import (
    WINDOW,
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
from starloom.agents.values import decode
from starloom.dag.errors import Conflict, DigestMismatch, StarloomError
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.values import Full, PortType
from starloom.orchestrator.clientlink import Link
from starloom.orchestrator.infos import StreamItem
from starloom.v1 import data_pb2

_NO_TOKEN: Final = FencingToken(Epoch(0), Attempt(0))


def _of_job(job: JobId, port: str) -> StreamName:
    return StreamName(job, StageId(""), _NO_TOKEN, port)


class Reading:
    """One reading of a declared output, from an offset on. `end` is there once it is over."""

    def __init__(self, link: Link, job: JobId, port: str, first: int = 0) -> None:
        self._link = link
        self._stream = _of_job(job, port)
        self._reader = f"client.{uuid4().hex}"
        self._first = self._next = first
        self._digest = RunningDigest()
        self.end: StreamEnd | None = None

    async def chunks(self) -> AsyncGenerator[StreamChunk, None]:
        """The chunks, each once and in order, until the end.

        Raises StreamGone or DigestMismatch where the stream was produced again and came out differently from what was
        read; NotFound, and Unavailable as `Link.patiently` does.
        """
        patience = self._link.patience()
        while self.end is None:
            call = self._link.data().Read(metadata=self._link.metadata)
            ending = status.CallEnd(call)
            try:
                opening = ReadOpen(self._stream, self._reader, Credit(self._next), Full.BLOCK)
                request = wirestreams.open_to_wire(opening)
                while self.end is None and (batch := await self._ask(call, request)) is not None:
                    patience = self._link.reached()
                    for chunk in batch.chunks:
                        if chunk.offset >= self._next:
                            self._next = chunk.offset + 1
                            self._digest.add(chunk.offset, chunk.generation, chunk.data)
                            yield chunk
                    self.end = batch.end
                    request = data_pb2.ReadRequest(credit=wirestreams.credit_to_wire(Credit(self._next)))
            except status.CALL_OVER:
                pass
            finally:
                call.cancel()
            if self.end is None:
                await patience.wait(self._link.broken(await ending.error()))
        self._check(self.end)

    async def _ask(self, call: Any, request: data_pb2.ReadRequest) -> StreamBatch | None:
        """What comes next, once a request is on its way; None at the end of the call."""
        async with self._link.until_closed():
            await call.write(request)
            message = await call.read()
        return None if message is aio.EOF else wirestreams.batch_from_wire(message)  # type: ignore[attr-defined]

    def _check(self, end: StreamEnd) -> None:
        whole = end.how is How.FINISHED and self._first == 0 and self._digest.chunks == end.chunks
        if whole and self._digest.hex() != end.digest:
            raise DigestMismatch(
                f"stream {self._stream.port} of job {self._stream.job} was produced again while it was read, and came out "
                "differently; read it again from its beginning"
            )


def value_of(port_type: PortType, chunk: StreamChunk, place: str) -> StreamItem:
    """A chunk as its reader gets it. Raises InvalidInput for one that cannot be read."""
    value = decode(port_type, chunk.data, chunk.meta, f"{place}[{chunk.offset}]")
    return StreamItem(chunk.offset, value, chunk.generation, chunk.meta.get("at"))


class Feed:
    """Feeds one input stream of a job. Its calls wait for each other."""

    def __init__(self, link: Link, job: JobId, port: str, port_type: PortType) -> None:
        self._link = link
        self._open = WriteOpen(_of_job(job, port), port_type)
        self.type = port_type
        self._lock = asyncio.Lock()
        self._call: Any = None
        self._ending: status.CallEnd | None = None
        #: the offset of the next chunk; None before the orchestrator said where the stream is
        self._next: int | None = None
        self._window = WINDOW
        #: what is not acknowledged, and how many of these went out by this call
        self._pending: deque[StreamChunk] = deque()
        self._out = Bound(0, 0)
        self._digest = RunningDigest()
        self._closing = self._closed = False

    @property
    def next(self) -> int:
        """The offset of the next chunk, as far as it is known."""
        return self._next or 0

    async def send(self, data: bytes, meta: dict[str, Any], generation: int) -> int:
        """Hands a chunk over, once the window has room for it; returns its offset."""
        async with self._lock:
            self._refuse_closed()
            await self._patiently(self._begin)
            assert self._next is not None
            offset, self._next = self._next, self._next + 1
            self._pending.append(StreamChunk(offset, generation, data, meta))
            self._digest.add(offset, generation, data)
            await self._patiently(self._push)
            return offset

    async def flush(self) -> int:
        """Returns once all that was sent is taken in, with the offset of the next chunk."""
        async with self._lock:
            await self._patiently(self._drain)
            assert self._next is not None
            return self._next

    async def close(self) -> int:
        """Ends the stream; returns how many chunks it had, once that is taken in."""
        async with self._lock:
            if not self._closed:
                try:
                    await self._patiently(self._finish)
                except Conflict:
                    # The stages may have read the end and ended the job before its answer came.
                    if not self._closing:
                        raise
                self._closed = True
            assert self._next is not None
            return self._next

    def _refuse_closed(self) -> None:
        if self._closing:
            raise Conflict(f"input {self._open.stream.port} of job {self._open.stream.job} was closed")

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does `work` on a call, and again on another one where that broke."""
        patience = self._link.patience()
        async with self._link.until_closed():
            while True:
                try:
                    await self._begin()
                    await work()
                    return
                except status.CALL_OVER:
                    patience = self._link.reached() if self._out.chunks else patience
                    await patience.wait(self._link.broken(await self._over()))
                except BaseException:
                    self._drop()
                    raise

    async def _over(self) -> StarloomError:
        ending = self._ending
        assert ending is not None
        error = await ending.error()
        self._drop()
        return error

    def _drop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    async def _begin(self) -> None:
        """There is a call, and what it takes in is known."""
        if self._call is not None:
            return
        self._call = self._link.data().Write(metadata=self._link.metadata)
        self._ending = status.CallEnd(self._call)
        self._out = Bound(0, 0)
        await self._call.write(wirestreams.write_to_wire(self._open))
        wanted = await self._credit()
        if self._next is None:
            self._next = wanted
        if wanted > self._next:
            where = f"input {self._open.stream.port} of job {self._open.stream.job}"
            raise Conflict(
                f"{where} was fed by another client as well, up to chunk {wanted}; this one is at {self._next}"
            )

    async def _credit(self) -> int:
        """Takes the next acknowledgement in."""
        message = await self._call.read()
        if message is aio.EOF:  # type: ignore[attr-defined]
            raise asyncio.InvalidStateError("the call is over")
        credit = wirestreams.credit_from_wire(message.credit)
        self._window = credit.window
        while self._pending and self._pending[0].offset < credit.acknowledged:
            chunk = self._pending.popleft()
            if self._out.chunks:
                self._out = Bound(self._out.chunks - 1, self._out.bytes - len(chunk.data))
        return credit.acknowledged

    async def _push(self) -> None:
        """Sends all that was not sent by this call."""
        while self._out.chunks < len(self._pending):
            size = len(self._pending[self._out.chunks].data)
            full = self._out.chunks >= self._window.chunks or self._out.bytes + size > self._window.bytes
            if self._out.chunks and full:
                await self._credit()
                continue
            chunk = self._pending[self._out.chunks]
            self._out = Bound(self._out.chunks + 1, self._out.bytes + size)
            await self._call.write(wirestreams.part_to_wire(StreamBatch((chunk,))))

    async def _drain(self) -> None:
        await self._push()
        while self._pending:
            await self._credit()

    async def _finish(self) -> None:
        await self._drain()
        self._closing = True
        assert self._next is not None
        end = StreamEnd(How.FINISHED, self._next, self._digest.bytes, self._digest.hex())
        await self._call.write(wirestreams.part_to_wire(StreamBatch(end=end)))
        await self._credit()
        self._drop()
