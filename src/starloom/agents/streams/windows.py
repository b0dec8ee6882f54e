"""Windows over a stream: so many chunks, or so many seconds of their events' time. Pure.

A greater generation ends every open window without a result: what is in it is stale.
"""

from typing import NamedTuple

from starloom.agents.stage import Received
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem, StageError

_NANOS = 1_000_000_000


class Window(NamedTuple):
    """What came together. `start` and `end` are seconds of event time, `end` exclusive; None in windows by count."""

    items: tuple[Received, ...]
    start: float | None = None
    end: float | None = None


class CountWindows:
    """A window for every `step` chunks, of the last `size`. Without a step, windows do not overlap."""

    def __init__(self, size: int, step: int = 0) -> None:
        step = step or size
        if not 1 <= size <= limits.STREAM_WINDOW_ITEMS_MAX or not 1 <= step <= limits.STREAM_WINDOW_ITEMS_MAX:
            most = f"1 to STREAM_WINDOW_ITEMS_MAX = {limits.STREAM_WINDOW_ITEMS_MAX}"
            raise InvalidInput([Problem("count", f"is {size} by {step}; both are from {most}")])
        self.stale = 0
        self._size = size
        self._step = step
        self._generation = 0
        self._open: list[Received] = []
        #: chunks to pass over before the next window begins, where the step is larger than the window
        self._skip = 0
        #: how many of the open ones no window has had
        self._fresh = 0

    def add(self, item: Received) -> list[Window]:
        """The window that a chunk completes, if it does."""
        if item.generation < self._generation:
            self.stale += 1
            return []
        if item.generation > self._generation:
            self._generation = item.generation
            self.stale += self._fresh
            self._open, self._skip, self._fresh = [], 0, 0
        if self._skip:
            self._skip -= 1
            return []
        self._open.append(item)
        self._fresh += 1
        if len(self._open) < self._size:
            return []
        window = Window(tuple(self._open))
        self._skip = max(0, self._step - self._size)
        del self._open[: self._step]
        self._fresh = 0
        return [window]

    def close(self) -> list[Window]:
        """The stream has ended: the window that was not full, if it has a chunk that none had before."""
        left, fresh = tuple(self._open), self._fresh
        self._open, self._fresh = [], 0
        return [Window(left)] if fresh else []


class TimeWindows:
    """Windows of `seconds` of event time, one beginning every `step`; without a step they do not overlap.

    They begin at whole multiples of the step. A window is given once an event has come that lies `lateness` seconds
    beyond its end; what comes for it later is counted in `late`, if no window that is still open takes it.
    """

    def __init__(self, seconds: float, step: float = 0.0, lateness: float = 0.0) -> None:
        step = step or seconds
        self._size, self._step, self._lateness = (_nanos(value) for value in (seconds, step, lateness))
        overlap = -(-self._size // self._step) if self._step > 0 else 0
        if self._size <= 0 or self._step <= 0 or self._lateness < 0 or overlap > limits.STREAM_WINDOWS_OPEN_MAX:
            most = f"at most STREAM_WINDOWS_OPEN_MAX = {limits.STREAM_WINDOWS_OPEN_MAX} windows open at once"
            raise InvalidInput([Problem("seconds", f"are {seconds:g} by {step:g}; give both above 0, for {most}")])
        self.late = 0
        self.stale = 0
        self._generation = 0
        self._open: dict[int, list[Received]] = {}
        self._items = 0
        #: windows that end at it or before are over
        self._watermark: int | None = None

    def add(self, item: Received) -> list[Window]:
        """The windows that are over now, in their order. Raises StageError for a chunk that does not say its time."""
        if item.at is None:
            raise StageError(
                f"chunk {item.offset} does not say its time; let its producer give `at`, or window by count"
            )
        if item.generation < self._generation:
            self.stale += 1
            return []
        if item.generation > self._generation:
            self._generation = item.generation
            self.stale += len({received.offset for items in self._open.values() for received in items})
            self._open, self._items = {}, 0
        at = _nanos(item.at)
        self._put(at, item)
        self._watermark = max(at - self._lateness, at - self._lateness if self._watermark is None else self._watermark)
        over = sorted(index for index in self._open if index * self._step + self._size <= self._watermark)
        return [self._take(index) for index in over]

    def close(self) -> list[Window]:
        """The stream has ended: all windows that are open."""
        return [self._take(index) for index in sorted(self._open)]

    def _put(self, at: int, item: Received) -> None:
        taken = False
        first, last = (at - self._size) // self._step + 1, at // self._step
        for index in range(first, last + 1):
            if self._watermark is None or index * self._step + self._size > self._watermark:
                self._open.setdefault(index, []).append(item)
                self._items += 1
                taken = True
        # Between windows that leave gaps a chunk belongs to none, and is not late.
        self.late += not taken and first <= last
        if self._items > limits.STREAM_WINDOW_ITEMS_MAX:
            most = f"STREAM_WINDOW_ITEMS_MAX = {limits.STREAM_WINDOW_ITEMS_MAX}"
            raise StageError(f"the open windows have {self._items} chunks, over {most}; make them shorter")

    def _take(self, index: int) -> Window:
        items = self._open.pop(index)
        self._items -= len(items)
        items.sort(key=lambda received: (received.at, received.offset))
        start = index * self._step
        return Window(tuple(items), start / _NANOS, (start + self._size) / _NANOS)


def _nanos(seconds: float) -> int:
    return round(seconds * _NANOS)
