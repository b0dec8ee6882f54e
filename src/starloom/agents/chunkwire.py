"""FetchResponse without protobuf's copies: the same bytes on the wire, for messages that are one large field.

protobuf copies a chunk when a message is made, when it is serialised, when it is parsed, and whenever the field is read. Here
it is copied once on its way out, behind its tag and length, and not at all on its way in.
"""

from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from starloom.dag.errors import InvalidInput, Problem
from starloom.v1 import data_pb2

_PLAIN_TAG: Final = 0x0A
_PACKED_TAG: Final = 0x12
_SEVEN_BITS: Final = 0x7F
_MORE: Final = 0x80
_LENGTH_BYTES_MAX: Final = 5


class Packed(NamedTuple):
    """A chunk that is packed, as `FetchResponse.packed` has it."""

    data: bytes | memoryview


def frame(chunk: bytes | memoryview | Packed) -> bytes:
    """A FetchResponse with this chunk, serialised."""
    tag, data = (_PACKED_TAG, chunk.data) if isinstance(chunk, Packed) else (_PLAIN_TAG, chunk)
    head = bytearray([tag])
    size = len(data)
    while size > _SEVEN_BITS:
        head.append(size & _SEVEN_BITS | _MORE)
        size >>= 7
    head.append(size)
    return b"".join((head, data))


def unframe(message: bytes) -> memoryview | Packed:
    """The chunk of a serialised FetchResponse, as a view of it. Raises InvalidInput."""
    tag = message[0] if message else 0
    if tag in (_PLAIN_TAG, _PACKED_TAG):
        size, at = 0, 1
        for place, byte in enumerate(message[1 : 1 + _LENGTH_BYTES_MAX]):
            size |= (byte & _SEVEN_BITS) << 7 * place
            at += 1
            if not byte & _MORE:
                if at + size == len(message):
                    view = memoryview(message)[at:]
                    return view if tag == _PLAIN_TAG or not size else Packed(view)
                break
    # Another way to say the same, or fields that are not known here.
    try:
        found = data_pb2.FetchResponse.FromString(message)
    except DecodeError as error:
        raise InvalidInput([Problem("chunk", f"is in no FetchResponse: {error}")]) from error
    if found.chunk and found.packed:
        raise InvalidInput([Problem("packed", "came beside `chunk`; a message has one of them")])
    return Packed(found.packed) if found.packed else memoryview(found.chunk)
