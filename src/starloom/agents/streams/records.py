"""What goes through a stream, as values: its name, chunks, credits and end, and the running digest. Pure."""

import struct
from enum import StrEnum
from typing import Any, NamedTuple

from blake3 import blake3

from starloom.dag import limits
from starloom.dag.ids import FencingToken, JobId, StageId
from starloom.dag.values import Full, PortType

_HEAD = struct.Struct("<QQQ")


class StreamName(NamedTuple):
    """The output port of an attempt; with an empty stage, and a token of zeros, a stream of the job itself."""

    job: JobId
    stage: StageId
    token: FencingToken
    port: str


class StreamChunk(NamedTuple):
    """One chunk. `data`, which may be a view of the message it came in, and `meta` are those of `agents.values`; `meta` may have `at`, the event's time in seconds."""

    offset: int
    generation: int
    data: bytes | memoryview
    meta: dict[str, Any]


class Bound(NamedTuple):
    """How much may be kept, or be on its way; one chunk always may."""

    chunks: int = limits.STREAM_BUFFER_CHUNKS
    bytes: int = limits.STREAM_BUFFER_BYTES


WINDOW = Bound(limits.STREAM_WINDOW_CHUNKS, limits.STREAM_WINDOW_BYTES)
"""What a reader has on its way to it unless it says otherwise."""


class Credit(NamedTuple):
    """How far a reader is: done with all below `acknowledged`, and ready for `window` beyond what it was sent."""

    acknowledged: int = 0
    window: Bound = WINDOW


class How(StrEnum):
    """How a stream ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


class StreamEnd(NamedTuple):
    """The end: what the producer gave in all, dropped or not, and, where it did not finish, why."""

    how: How
    chunks: int
    bytes: int
    digest: str
    message: str = ""


class ReadOpen(NamedTuple):
    """A reader's wish. `reader` is `stage.port`, the same in every call that goes on with one reading.

    `full` is its policy, None for what was declared for it. What a later `attempt` of it reads, an earlier one does
    not take back. `incarnation` is the process that has the stream, empty for whichever is there. `closed`: it wants no
    more chunks, as it said in a call before, only the end.
    """

    stream: StreamName
    reader: str
    credit: Credit = Credit()
    full: Full | None = None
    attempt: int = 0
    incarnation: str = ""
    closed: bool = False


class WriteOpen(NamedTuple):
    """What a writer is about to send."""

    stream: StreamName
    type: PortType


class StreamBatch(NamedTuple):
    """Some chunks, and what the reader did not get since it was first heard of. `generation` is the greatest so far."""

    chunks: tuple[StreamChunk, ...] = ()
    dropped: int = 0
    stale: int = 0
    generation: int = 0
    end: StreamEnd | None = None


def generation_fault(generation: Any) -> str:
    """Why this cannot be the generation of a chunk; empty if it can."""
    if isinstance(generation, int) and 0 <= generation < 1 << 64:
        return ""
    return f"has the generation {generation!r}; use a whole number from 0 on, below 2**64"


class RunningDigest:
    """BLAKE3 over each chunk's offset, generation and size, as little-endian 64 bits, and its data; and the totals."""

    def __init__(self) -> None:
        self._hash = blake3()
        self.chunks = 0
        self.bytes = 0

    def add(self, offset: int, generation: int, data: bytes | memoryview) -> None:
        """Takes a chunk in, in order."""
        self._hash.update(_HEAD.pack(offset, generation, len(data)))
        self._hash.update(data)
        self.chunks += 1
        self.bytes += len(data)

    def hex(self) -> str:
        """The digest of what was added so far."""
        return self._hash.hexdigest()
