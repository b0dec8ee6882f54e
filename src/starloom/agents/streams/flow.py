"""A stream's buffer on an event loop: who appends waits for room, and who reads waits for chunks."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Bound, Credit, How, ReadOpen, StreamBatch, StreamEnd
from starloom.dag.errors import Conflict


class Waiting(NamedTuple):
    """A chunk that its producer waits with, since a monotonic nanosecond."""

    size: int
    generation: int
    since: int


class Flow:
    """One stream between its producer and its readers, all on one event loop. `on_wait`: its producer has to wait."""

    def __init__(self, buffer: StreamBuffer, on_wait: Callable[[], None] = lambda: None) -> None:
        self.buffer = buffer
        self._on_wait = on_wait
        self._waiting: Waiting | None = None
        self._readings: dict[str, Reading] = {}
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> Waiting | None:
        """What the producer waits with, if there is still no room for it."""
        waiting = self._waiting
        return waiting if waiting and not self.buffer.fits(waiting.size, waiting.generation) else None

    def enlarge(self, bound: Bound) -> None:
        """Lets more be kept."""
        self.buffer.enlarge(bound)
        self.wake()

    async def append(self, data: bytes, meta: dict[str, Any], generation: int = 0) -> int:
        """Adds the producer's next chunk once there is room; returns its offset. Raises InvalidInput."""
        if not self.buffer.fits(len(data), generation):
            self._waiting = Waiting(len(data), generation, time.monotonic_ns())
            self._on_wait()
            try:
                while not self.buffer.fits(len(data), generation):
                    await self.change()
            finally:
                self._waiting = None
        offset = self.buffer.append(data, meta, generation)
        self.wake()
        return offset

    def finish(self, how: How = How.FINISHED, message: str = "") -> StreamEnd:
        """Ends the stream; the first end counts."""
        end = self.buffer.finish(how, message)
        self.wake()
        return end

    def open(self, wish: ReadOpen) -> "Reading":
        """A reader's way through the stream; one that it had before ends.

        Raises StreamGone, InvalidInput, and Conflict where a later attempt of the reader has come.
        """
        present = self._readings.get(wish.reader)
        if present is not None and present.attempt > wish.attempt:
            what = f"attempt {wish.attempt} of {wish.reader} is over: attempt {present.attempt} reads this stream now"
            raise Conflict(what)
        # What is not kept any more was kept for others: whoever wants only the end does not miss it.
        if wish.closed:
            self.buffer.close(wish.reader)
        else:
            self.buffer.open(wish.reader, wish.credit, wish.full)
        reading = self._readings[wish.reader] = Reading(self, wish.reader, wish.attempt, closed=wish.closed)
        self.wake()
        return reading

    def is_current(self, reading: "Reading") -> bool:
        """Whether the reader has not come again since."""
        return self._readings.get(reading.name) is reading

    def wake(self) -> None:
        """Lets all that wait look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self) -> None:
        """Waits until something has changed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Reading:
    """One reader's way through a flow, until it comes again."""

    def __init__(self, flow: Flow, name: str, attempt: int, *, closed: bool = False) -> None:
        self.name = name
        self.attempt = attempt
        self._flow = flow
        self._closed = closed

    @property
    def generation(self) -> int:
        """The greatest generation so far."""
        return self._flow.buffer.generation

    @property
    def starved(self) -> bool:
        """Whether there is nothing to read."""
        return not self._flow.buffer.has_something(self.name) if not self._closed else self._flow.buffer.end is None

    async def overtaken(self, generation: int) -> int:
        """Waits for a greater generation than this."""
        while self.generation <= generation:
            await self._flow.change()
        return self.generation

    async def next(self) -> StreamBatch:
        """What comes next within the reader's credit. Raises Conflict where the reader has come again."""
        flow, buffer = self._flow, self._flow.buffer
        while True:
            if not flow.is_current(self):
                raise Conflict(f"{self.name} reads this stream by another call now")
            if self._closed:
                if buffer.end is not None:
                    return StreamBatch(generation=buffer.generation, end=buffer.end)
            elif buffer.has_something(self.name):
                return buffer.take(self.name)
            await flow.change()

    def credit(self, credit: Credit) -> None:
        """The reader is further. Raises InvalidInput where it acknowledges what it was not sent."""
        if not self._closed and self._flow.is_current(self):
            self._flow.buffer.credit(self.name, credit)
            self._flow.wake()

    def close(self) -> None:
        """The reader wants no more chunks, but the end."""
        if not self._closed and self._flow.is_current(self):
            self._closed = True
            self._flow.buffer.close(self.name)
            self._flow.wake()
