"""What lies where in a shared-memory arena: room for values, and the index by which other processes find them. Pure.

    0        the head: a magic, and a nonce that proves to a reader that it opened the file it was told of
    4096     the index: AGENT_ARENA_VALUES_MAX entries of 64 bytes
    then     the values, each at a multiple of 64 bytes

An entry names a value by its key, the digest of (job, digest of the bytes): who does not know both does not find it.
A reader locks a byte of the value in the kernel, and then looks whether the entry is still the same; the owner takes the
entries away first, and then looks whether anybody has locked the value. So one of both sees the other, and the lock of
a reader that dies goes with it.
"""

import struct
from bisect import bisect_left
from typing import Final, NamedTuple

from blake3 import blake3

from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Problem
from starloom.dag.ids import JobId

MAGIC: Final = b"starloom arena 1"
NONCE_BYTES: Final = 32
HEAD_BYTES: Final = 4096
ENTRY_BYTES: Final = 64
ALIGNMENT_BYTES: Final = 64
KEY_BYTES: Final = 32
VALUES_AT: Final = HEAD_BYTES + limits.AGENT_ARENA_VALUES_MAX * ENTRY_BYTES

_PLACE: Final = struct.Struct("<32sQQQ")
_CHECK_BYTES = 8


class Allocator:
    """Gives out spans of [start, end), each at a multiple of ALIGNMENT_BYTES, always the lowest that is free and fits.

    So what was used before is used again, and spans that are free beside each other are one.
    """

    def __init__(self, start: int) -> None:
        if start % ALIGNMENT_BYTES:
            raise ValueError(f"start is {start}, no multiple of {ALIGNMENT_BYTES}")
        self._end = start
        #: free spans by their start, in order
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._given: dict[int, int] = {}

    @property
    def end(self) -> int:
        """The end of what can be given out."""
        return self._end

    @property
    def used_bytes(self) -> int:
        """What is given out, with what its alignment takes."""
        return sum(self._given.values())

    @property
    def holes(self) -> list[tuple[int, int]]:
        """The free spans, as (start, bytes), in order."""
        return [(start, self._sizes[start]) for start in self._starts]

    def missing(self, size: int) -> int:
        """By how much `end` must grow until `size` bytes would surely fit behind what is given out."""
        last = self._starts[-1] if self._starts else self._end
        at_end = self._sizes.get(last, 0) if last + self._sizes.get(last, 0) == self._end else 0
        return max(0, aligned(size) - at_end)

    def grow(self, size: int) -> None:
        """`size` more bytes are there behind the end."""
        if size < 0 or size % ALIGNMENT_BYTES:
            raise ValueError(f"grows by {size}, no multiple of {ALIGNMENT_BYTES}")
        if size:
            start, self._end = self._end, self._end + size
            self._open(start, size)

    def allocate(self, size: int) -> int | None:
        """The start of `size` bytes, or None if no free span has as many."""
        wanted = aligned(size)
        for place, start in enumerate(self._starts):
            free = self._sizes[start]
            if free >= wanted:
                del self._starts[place], self._sizes[start]
                if free > wanted:
                    self._starts.insert(place, start + wanted)
                    self._sizes[start + wanted] = free - wanted
                self._given[start] = wanted
                return start
        return None

    def free(self, start: int) -> None:
        """Takes a span back. Raises ValueError for one that was not given out."""
        size = self._given.pop(start, 0)
        if not size:
            raise ValueError(f"nothing was given out at {start}")
        self._open(start, size)

    def _open(self, start: int, size: int) -> None:
        place = bisect_left(self._starts, start)
        if place < len(self._starts) and start + size == self._starts[place]:
            size += self._sizes.pop(self._starts.pop(place))
        if place and (before := self._starts[place - 1]) + self._sizes[before] == start:
            self._sizes[before] += size
            return
        self._starts.insert(place, start)
        self._sizes[start] = size


class Entry(NamedTuple):
    """Where a value lies: `serial` is of this entry alone, so that one that was taken away and made anew is another."""

    key: bytes
    serial: int
    start: int
    size: int


def aligned(size: int) -> int:
    """`size`, at least 1, up to the next multiple of ALIGNMENT_BYTES."""
    return -(-max(1, size) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def key_of(job: JobId, digest: str) -> bytes:
    """The key of a job's value."""
    return blake3(f"{job}\0{digest}".encode()).digest()


def pack(entry: Entry) -> bytes:
    """An entry as it lies in the index, ENTRY_BYTES long."""
    place = _PLACE.pack(*entry)
    return place + blake3(place).digest(_CHECK_BYTES)


def unpack(data: bytes, size_bytes: int) -> Entry:
    """The entry in ENTRY_BYTES of the index of an arena of `size_bytes`.

    Raises DigestMismatch where it is half written or damaged, and InvalidInput where it does not lie among the values.
    """
    place, check = data[: _PLACE.size], data[_PLACE.size :]
    if blake3(place).digest(_CHECK_BYTES) != check:
        raise DigestMismatch("an entry of the arena's index is not what was written there")
    entry = Entry(*_PLACE.unpack(place))
    if entry.start < VALUES_AT or entry.start % ALIGNMENT_BYTES or entry.start + entry.size > size_bytes:
        what = f"has {entry.size} bytes at {entry.start}, outside of the values at {VALUES_AT} to {size_bytes}"
        raise InvalidInput([Problem("entry", what)], "an arena's index is malformed")
    return entry
