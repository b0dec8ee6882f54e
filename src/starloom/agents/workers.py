"""Threads that run stages one after another, and hand what became of them to the event loop in batches."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Began(NamedTuple, Generic[Key]):
    """A worker took work up, at this monotonic nanosecond."""

    key: Key
    at: int


class Ended(NamedTuple, Generic[Key]):
    """A worker is done with work; `result` is what the work returned."""

    key: Key
    at: int
    result: Any


class Workers(Generic[Key]):
    """`count` threads over one queue. Events are delivered on the loop, in order for each work, many at a wake-up.

    Work is a callable that must not raise. A no-op costs two locks and, only if the loop has nothing to
    deliver yet, one wake-up of it.
    """

    def __init__(self, count: int, deliver: Callable[[list[Began[Key] | Ended[Key]]], None], name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._queue: SimpleQueue[tuple[Key | None, Callable[[], Any]] | None] = SimpleQueue()
        self._events: deque[Began[Key] | Ended[Key]] = deque()
        self._woken = False
        # Daemons: a stage that cannot be stopped must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, key: Key, work: Callable[[], Any]) -> None:
        """Queues work."""
        self._queue.put((key, work))

    def submit_together(self, keys: Sequence[Key], work: Callable[[], Sequence[Any]]) -> None:
        """Queues work that returns a result for each key, in their order."""
        self.compute(partial(self._work_together, keys, work))

    def compute(self, work: Callable[[], Any]) -> None:
        """Queues work that tells of itself what became of it. From any thread."""
        self._queue.put((None, work))

    async def stop(self, seconds: float) -> bool:
        """Ends the threads after what is queued; whether they ended within `seconds`."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + seconds
        await asyncio.to_thread(self._join, deadline)
        return not any(thread.is_alive() for thread in self._threads)

    def _join(self, deadline: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            key, work = item
            if key is not None:
                self._emit(Began(key, time.monotonic_ns()))
            result = work()
            if key is not None:
                self._emit(Ended(key, time.monotonic_ns(), result))
            # An idle worker keeps nothing of the last run alive.
            del item, key, work, result

    def _work_together(self, keys: Sequence[Key], work: Callable[[], Sequence[Any]]) -> None:
        for key in keys:
            self._emit(Began(key, time.monotonic_ns()))
        for key, result in zip(keys, work(), strict=True):
            self._emit(Ended(key, time.monotonic_ns(), result))

    def _emit(self, event: Began[Key] | Ended[Key]) -> None:
        self._events.append(event)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                # The loop is closed: nobody waits for what this thread still does.
                return

    def _drain(self) -> None:
        self._woken = False
        events = []
        while self._events:
            events.append(self._events.popleft())
        if events:
            self._deliver(events)
