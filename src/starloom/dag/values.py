"""Port types, and references to values. A reference travels; the bytes stay where they were made."""

import builtins
from enum import StrEnum
from typing import Any

import msgspec


class PortType(StrEnum):
    """What a port carries. `agents.values` gives the Python object and the bytes of each."""

    TENSOR = "tensor"
    TEXT = "text"
    BYTES = "bytes"
    IMAGE = "image"
    AUDIO = "audio"
    JSON = "json"


class Full(StrEnum):
    """What becomes of a stream's chunks when as many as may be kept wait for a reader.

    BLOCK: the producer waits. OLDEST: the reader loses the oldest. LATEST: it gets the newest and loses the others,
    whether there is room or not. What is lost is counted.
    """

    BLOCK = "block"
    OLDEST = "oldest"
    LATEST = "latest"


class Port(msgspec.Struct, frozen=True, omit_defaults=True):
    """A typed input or output; `stream` means a sequence of that type, `optional` may stay unbound.

    Of a stream, `chunks` is how many are kept for its readers, 0 for STREAM_BUFFER_CHUNKS, and `full` what becomes of
    more: as the reader's port says; if that says nothing, as the port it reads from; else the producer waits.
    """

    type: PortType
    stream: bool = False
    optional: bool = False
    chunks: int = 0
    full: Full | None = None

    def __str__(self) -> str:
        return f"stream of {self.type}" if self.stream else str(self.type)


JOB_STORE = ""
"""The holder of values that lie in the orchestrator's job store."""


class ValueRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names one value: its type, size, content digest, and where its bytes are.

    `digest` is BLAKE3 of the bytes, in hex. `meta` is what is needed to read them: dtype and shape
    of a tensor or image, sample_rate_hz of audio. `inline` holds the bytes of a small value;
    otherwise they are with the agent named `holder`, or in the job store where that is empty.

    Of a stream, `bytes` are those of all chunks, `digest` is the running one over them (`agents.streams.records`), and
    `meta` says under `stream` that it is one, and under `chunks` how many there were.
    """

    type: PortType
    bytes: int
    digest: str
    meta: dict[str, Any] = {}
    inline: builtins.bytes | None = None
    holder: str = JOB_STORE

    @property
    def stream(self) -> bool:
        """Whether it names a stream that has ended, and no value."""
        return self.meta.get("stream") is True
