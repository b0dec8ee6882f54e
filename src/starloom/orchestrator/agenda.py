"""What is to be looked at when its time comes, in the order of these times; much of it comes to count no more before that."""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

_FEW: Final = 1_024
"""So many entries are kept whether they count or not."""

Entry = TypeVar("Entry")


class Agenda(Generic[Entry]):
    """Entries with their times, in monotonic nanoseconds. `counts` says whether an entry still does, by its time.

    Those that do not are thrown out whenever there are twice as many as after the last time: a job that has
    ended is not kept for a deadline that lies days ahead.
    """

    def __init__(self, counts: Callable[[Entry, int], bool]) -> None:
        self._counts = counts
        self._entries: list[tuple[int, int, Entry]] = []
        self._seq = 0
        self._bound = _FEW

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def next_time(self) -> int | None:
        """When something is due next; a little early if that counts no more."""
        return self._entries[0][0] if self._entries else None

    def put(self, time: int, entry: Entry) -> None:
        """The entry is due at a time; of several at the same time the first that was put in goes first."""
        if len(self._entries) >= self._bound:
            self._entries = [each for each in self._entries if self._counts(each[2], each[0])]
            heapify(self._entries)
            self._bound = max(_FEW, 2 * len(self._entries))
        self._seq += 1
        heappush(self._entries, (time, self._seq, entry))

    def due(self, now: int) -> Iterator[Entry]:
        """The entries whose time has come and that count, taken out one by one."""
        while self._entries and self._entries[0][0] <= now:
            time, _, entry = heappop(self._entries)
            if self._counts(entry, time):
                yield entry
