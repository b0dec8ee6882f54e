"""Streams across the network: reading one that another agent or the orchestrator has, and writing one to its store.

Calls are made on the agent's event loop, and chunks handed to the loop of its stream stages. Where a call breaks off,
the next goes on from the first chunk that has not come, or that is not stored.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from grpc import aio

from starloom.agents import status, streamframes, wirestreams
from starloom.agents.streams.flow import Reading
from starloom.agents.streams.hub import Hub
from starloom.agents.streams.loops import Loops
from starloom.agents.streams.records import Bound, Credit, ReadOpen, StreamBatch, WriteOpen
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import Cancelled, InputUnavailable, StarloomError, Unavailable
from starloom.v1 import data_pb2

_log = logging.getLogger(__name__)

_EOF = aio.EOF  # type: ignore[attr-defined]


class RemoteSource:
    """A stream that is read from a data service: `inlet.Source`, made and used on the loop of stream stages.

    It breaks where that cannot be reached for `patience` seconds.
    """

    def __init__(self, loops: Loops, transfer: Transfer, address: str, wish: ReadOpen, patience: float) -> None:
        self._loops = loops
        self._came: asyncio.Queue[StreamBatch | InputUnavailable] = asyncio.Queue()
        self._call = _ReadCalls(transfer, address, wish, patience, self._come)
        self._running = loops.on_agent(self._call.run())
        self._generation = 0
        self._overtaken: list[asyncio.Future[None]] = []

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def starved(self) -> bool:
        return False

    async def overtaken(self, generation: int) -> int:
        while self._generation <= generation:
            waiter = asyncio.get_running_loop().create_future()
            self._overtaken.append(waiter)
            await waiter
        return self._generation

    async def next(self) -> StreamBatch:
        found = await self._came.get()
        if isinstance(found, InputUnavailable):
            raise found
        return found

    def acknowledge(self, offset: int) -> None:
        self._loops.to_agent(self._call.acknowledge, offset)

    def close(self) -> None:
        self._loops.to_agent(self._call.close)

    def stop(self) -> None:
        self._running.cancel()

    def _come(self, found: StreamBatch | InputUnavailable) -> None:
        self._loops.to_streams(self._take, found)

    def _take(self, found: StreamBatch | InputUnavailable) -> None:
        if isinstance(found, StreamBatch):
            self._hear(found.generation)
        self._came.put_nowait(found)

    def _hear(self, generation: int) -> None:
        if generation <= self._generation:
            return
        self._generation = generation
        waiters, self._overtaken = self._overtaken, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _ReadCalls:
    """Calls of Read, one after another, until the end has come. On the agent's loop."""

    def __init__(
        self,
        transfer: Transfer,
        address: str,
        wish: ReadOpen,
        patience: float,
        come: Callable[[StreamBatch | InputUnavailable], None],
    ) -> None:
        self._patience = patience
        self._transfer = transfer
        self._address = address
        self._wish = wish
        self._come = come
        #: the first chunk that has not come
        self._next = wish.credit.acknowledged
        #: from where the present call goes on
        self._base = self._next
        self._acknowledged = self._next
        #: offset and size of what has come and is not acknowledged
        self._waiting: deque[tuple[int, int]] = deque()
        self._closed = False
        self._news = asyncio.Event()
        self._connected = False
        self._moved = False

    def acknowledge(self, offset: int) -> None:
        self._acknowledged = max(self._acknowledged, offset)
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()

    async def run(self) -> None:
        """Reads until the end; what makes going on impossible is handed on in its place."""
        wait = limits.RECONNECT_FIRST_SECONDS
        broken_at: float | None = None
        while True:
            self._connected = self._moved = False
            began = time.monotonic()
            try:
                await self._read()
                return
            except Unavailable as error:
                now = time.monotonic()
                lasted = self._connected and now - began > limits.INPUT_PATIENCE_SECONDS
                if self._moved or lasted or broken_at is None:
                    broken_at, wait = now, limits.RECONNECT_FIRST_SECONDS
                if now - broken_at > self._patience:
                    self._come(InputUnavailable(f"{self._address} cannot be reached: {error}"))
                    return
            except InputUnavailable as error:
                self._come(error)
                return
            except StarloomError as error:
                self._come(InputUnavailable(f"{self._address} does not give the stream: {error}"))
                return
            # Whoever reads would wait for ever.
            except Exception as error:
                _log.exception("reading a stream of %s failed unexpectedly", self._address)
                self._come(InputUnavailable(f"the stream of {self._address} cannot be read: {type(error).__name__}"))
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, limits.RECONNECT_LAST_SECONDS)

    async def _read(self) -> None:
        """One call. Raises Unavailable where it ends without the end of the stream, and what the holder says."""
        self._base = self._next
        closed = self._closed
        made = self._transfer.reading(self._address)
        end = status.CallEnd(made)
        call = self._transfer.disturbed(made, self._address)
        writing: asyncio.Task[None] | None = None
        try:
            with suppress(*status.CALL_OVER):
                await call.write(wirestreams.open_to_wire(self._wish._replace(credit=self._credit(), closed=closed)))
            await call.initial_metadata()
            self._connected = True
            writing = asyncio.create_task(self._write(call, closed))
            while (message := await call.read()) is not _EOF:
                if self._hand_on(streamframes.unframe(message)):
                    return
            raise Unavailable("the call ended before the stream did")
        except aio.AioRpcError as error:
            raise await _why(end) from error
        finally:
            if writing is not None:
                writing.cancel()
            call.cancel()

    async def _write(self, call: Any, told_closed: bool) -> None:
        """Tells the holder how far the reader is, whenever that is further, and that it wants no more, if it was not told."""
        with suppress(*status.CALL_OVER):
            while True:
                if self._closed and not told_closed:
                    told_closed = True
                    await call.write(data_pb2.ReadRequest(close=data_pb2.ReadClose()))
                await self._news.wait()
                self._news.clear()
                await call.write(data_pb2.ReadRequest(credit=wirestreams.credit_to_wire(self._credit())))

    def _hand_on(self, batch: StreamBatch) -> bool:
        """Hands a batch on; whether it was the last one."""
        self._moved = True
        for chunk in batch.chunks:
            self._next = chunk.offset + 1
            self._waiting.append((chunk.offset, len(chunk.data)))
        self._come(batch)
        return batch.end is not None

    def _credit(self) -> Credit:
        """Of the window, what came by earlier calls and is not acknowledged is used up: this call's holder thinks it is."""
        while self._waiting and self._waiting[0][0] < self._acknowledged:
            self._waiting.popleft()
        earlier = [size for offset, size in self._waiting if offset < self._base]
        window = self._wish.credit.window
        left = Bound(max(0, window.chunks - len(earlier)), max(0, window.bytes - sum(earlier)))
        return Credit(max(self._acknowledged, self._base), left)


class Carrier:
    """Writes one of this agent's streams to a data service until its end is stored there. On the agent's loop."""

    def __init__(self, loops: Loops, hub: Hub, transfer: Transfer, address: str, wish: WriteOpen, reader: str) -> None:
        self._loops = loops
        self._hub = hub
        self._transfer = transfer
        self._address = address
        self._wish = wish
        self._reader = reader

    async def run(self) -> None:
        """Writes until the end is stored: an orchestrator that is away comes back. Raises what no repetition mends."""
        wait = limits.BACKOFF_FIRST_SECONDS
        while True:
            try:
                await self._write()
                return
            except StarloomError as error:
                if not error.retryable:
                    raise
                _log.warning("%s: writing %s waits %g s: %s", self._wish.stream.stage, self._reader, wait, error)
            await asyncio.sleep(wait)
            wait = min(wait * limits.BACKOFF_FACTOR, limits.RECONNECT_LAST_SECONDS)

    async def _write(self) -> None:
        made = self._transfer.stub(self._address).Write(metadata=self._transfer.metadata)
        end = status.CallEnd(made)
        call = self._transfer.disturbed(made, self._address)
        tasks: tuple[asyncio.Task[None], ...] = ()
        try:
            with suppress(*status.CALL_OVER):
                await call.write(wirestreams.write_to_wire(self._wish))
            first = await call.read()
            if first is _EOF:
                raise Unavailable("the store took nothing in")
            credit = wirestreams.credit_from_wire(first.credit)
            reading = await self._loops.on_streams(self._hub.open(ReadOpen(self._wish.stream, self._reader, credit)))
            tasks = (asyncio.create_task(self._listen(call, reading)), asyncio.create_task(self._send(call, reading)))
            await _both(*tasks)
        except aio.AioRpcError as error:
            raise await _why(end) from error
        finally:
            for task in tasks:
                task.cancel()
            call.cancel()

    async def _listen(self, call: Any, reading: Reading) -> None:
        while (message := await call.read()) is not _EOF:
            self._loops.to_streams(reading.credit, wirestreams.credit_from_wire(message.credit))

    async def _send(self, call: Any, reading: Reading) -> None:
        while True:
            batch = await self._loops.on_streams(reading.next())
            await call.write(wirestreams.part_to_wire(batch))
            if batch.end is not None:
                await call.done_writing()
                return


async def _both(listening: asyncio.Task[None], sending: asyncio.Task[None]) -> None:
    """Lasts until the other end has said that all is stored. Raises what ended either before that."""
    done, _ = await asyncio.wait((listening, sending), return_when=asyncio.FIRST_COMPLETED)
    error = sending.exception() if sending in done else None
    if error is not None and not isinstance(error, status.CALL_OVER):
        raise error
    # Where a write failed, the call is over, and this tells why.
    await listening
    if not sending.done() or sending.exception() is not None:
        raise Unavailable("the call ended before the stream did")


async def _why(end: status.CallEnd) -> StarloomError:
    """What ended a call; a server that stops may say that the call was cancelled."""
    error = await end.error()
    return Unavailable(str(error)) if isinstance(error, Cancelled) else error
