"""What the files of a spooled stream are made of: records, each with its checksum."""

import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from starloom.dag.errors import StreamGone

CHUNK, END, WRITER = 0, 1, 2
_HEAD: Final = struct.Struct("<BIIQQ")
_SUM: Final = struct.Struct("<I")


class Record(NamedTuple):
    """One record. `kind`: a chunk, the end, or how far a writer is; `size` is its bytes in the file."""

    kind: int
    offset: int
    generation: int
    meta: dict[str, Any]
    data: bytes
    size: int


class Segment:
    """One file: its first chunk's offset, or that of the chunk that will be its first, and its size in bytes."""

    __slots__ = ("first", "path", "size")

    def __init__(self, path: Path, first: int, size: int = 0) -> None:
        self.path = path
        self.first = first
        self.size = size


def packed(kind: int, offset: int, generation: int, meta: dict[str, Any], data: bytes) -> bytes:
    """A record as it stands in a file."""
    about = msgspec.json.encode(meta) if meta else b""
    head = _HEAD.pack(kind, len(about), len(data), offset, generation)
    checked = zlib.crc32(data, zlib.crc32(about, zlib.crc32(head)))
    return b"".join((head, _SUM.pack(checked), about, data))


def records_of(segment: Segment, position: int) -> Iterator[Record]:
    """The records of a segment from a position on, up to the first that is not whole. Raises StreamGone."""
    with _opened(segment) as file:
        file.seek(position)
        while head := file.read(_HEAD.size + _SUM.size):
            if len(head) < _HEAD.size + _SUM.size:
                return
            kind, about_size, size, offset, generation = _HEAD.unpack_from(head)
            about, data = file.read(about_size), file.read(size)
            checked = zlib.crc32(data, zlib.crc32(about, zlib.crc32(head[: _HEAD.size])))
            if len(about) < about_size or len(data) < size or _SUM.unpack_from(head, _HEAD.size)[0] != checked:
                return
            meta = msgspec.json.decode(about) if about else {}
            yield Record(kind, offset, generation, meta, data, len(head) + about_size + size)


def _opened(segment: Segment) -> BufferedReader:
    try:
        return segment.path.open("rb")
    except FileNotFoundError as error:
        raise StreamGone("the stream is not kept any more: its job was forgotten") from error
