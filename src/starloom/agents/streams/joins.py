"""Streams side by side: for each chunk of one, what lies nearest in time in each of the others. Pure.

The stream that sets the pace is the leader. In each stream time does not run backwards; a chunk that does is late,
counted, and passed over. A chunk of another stream may go with several of the leader's.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from starloom.agents.stage import Received
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem, StageError
from starloom.dag.values import Full

_NANOS = 1_000_000_000


class Joined(NamedTuple):
    """What goes together, by stream; `at` is the leader's time in seconds."""

    at: float
    items: dict[str, Received]


class _Side:
    """One of the other streams."""

    __slots__ = ("at", "ended", "items", "latest")

    def __init__(self) -> None:
        self.items: list[Received] = []
        #: nanoseconds of each item
        self.at: list[int] = []
        self.latest: int | None = None
        self.ended = False

    def nearest(self, at: int, tolerance: int) -> Received | None:
        """What is nearest within the tolerance; of two as near, the earlier."""
        index = bisect_left(self.at, at)
        best = min(
            (position for position in (index - 1, index) if 0 <= position < len(self.at)),
            key=lambda position: (abs(self.at[position] - at), position),
            default=None,
        )
        return self.items[best] if best is not None and abs(self.at[best] - at) <= tolerance else None

    def forget(self, before: int) -> None:
        """Lets go of what is earlier."""
        index = bisect_left(self.at, before)
        del self.at[:index], self.items[:index]


class Join:
    """Joins the first of `streams`, the leader, with the others, within `tolerance` seconds.

    `most` chunks wait in each stream at most. `full` says what becomes of more of the leader's: BLOCK: whoever feeds
    this reads the stream that `lagging` names, and no other; OLDEST and LATEST: they are dropped, and counted.
    """

    def __init__(self, streams: Sequence[str], tolerance: float, full: Full = Full.BLOCK, most: int = 0) -> None:
        if len(streams) < 2 or tolerance < 0:
            what = f"{', '.join(streams)} within {tolerance:g} s; it takes at least two streams, and a tolerance of 0 or more"
            raise InvalidInput([Problem("join", f"is of {what}")])
        self.leader = streams[0]
        #: chunks of the leader that have no partner in some stream
        self.unmatched = 0
        self.dropped = 0
        self.late = 0
        self.stale = 0
        self._tolerance = round(tolerance * _NANOS)
        self._full = full
        self._most = most or limits.STREAM_BUFFER_CHUNKS
        self._others = {name: _Side() for name in streams[1:]}
        self._waiting: deque[Received] = deque()
        self._latest: int | None = None
        self._ended = False
        self._generation = 0

    def lagging(self) -> str | None:
        """The stream that is to be read next, so that none gets ahead of the others; None once all have ended."""
        open_ = [(name, side.latest) for name, side in self._others.items() if not side.ended]
        if not self._ended:
            open_.insert(0, (self.leader, self._latest))
        # One that has given nothing yet is behind all that have.
        return min(open_, key=lambda found: (found[1] is not None, found[1] or 0), default=(None, None))[0]

    def add(self, stream: str, item: Received) -> list[Joined]:
        """What goes together now that this has come. Raises StageError for a chunk that does not say its time."""
        if item.at is None:
            raise StageError(f"chunk {item.offset} of {stream} does not say its time; let its producer give `at`")
        if item.generation < self._generation:
            self.stale += 1
            return []
        if item.generation > self._generation:
            self._renew(item.generation)
        at = round(item.at * _NANOS)
        latest = self._latest if stream == self.leader else self._others[stream].latest
        if latest is not None and at < latest:
            self.late += 1
            return []
        if stream == self.leader:
            self._latest = at
            self._waiting.append(item)
            return self._drop(self._give())
        side = self._others[stream]
        side.latest = at
        side.items.append(item)
        side.at.append(at)
        found = self._give()
        if len(side.items) > self._most and self._full is not Full.BLOCK:
            side.forget(side.at[-self._most])
        return found

    def end(self, stream: str) -> list[Joined]:
        """What goes together now that a stream has ended."""
        if stream == self.leader:
            self._ended = True
        else:
            self._others[stream].ended = True
        return self._give()

    def _renew(self, generation: int) -> None:
        self._generation = generation
        self.stale += len(self._waiting)
        self._waiting.clear()
        self._latest = None
        for side in self._others.values():
            side.items.clear()
            side.at.clear()
            side.latest = None

    def _drop(self, found: list[Joined]) -> list[Joined]:
        """The leader's chunks that are too many to wait go, by the policy."""
        while len(self._waiting) > (1 if self._full is Full.LATEST else self._most) and self._full is not Full.BLOCK:
            self._waiting.popleft()
            self.dropped += 1
        return found

    def _give(self) -> list[Joined]:
        found: list[Joined] = []
        while self._waiting:
            item = self._waiting[0]
            at = round((item.at or 0.0) * _NANOS)
            # Later chunks can be no nearer than the first that is not earlier.
            if not all(side.ended or (side.latest is not None and side.latest >= at) for side in self._others.values()):
                break
            self._waiting.popleft()
            partners = {name: side.nearest(at, self._tolerance) for name, side in self._others.items()}
            if any(partner is None for partner in partners.values()):
                self.unmatched += 1
                continue
            items = {name: partner for name, partner in partners.items() if partner is not None}
            found.append(Joined(item.at or 0.0, {self.leader: item, **items}))
        oldest = self._waiting[0].at if self._waiting else None
        needed = round(oldest * _NANOS) if oldest is not None else self._latest
        if needed is not None:
            for side in self._others.values():
                side.forget(needed - self._tolerance)
        return found
