"""FetchResponse without protobuf's copies: the same bytes on the wire, for messages that are one large field.

protobuf copies a chunk when a message is made, when it is serialised, when it is parsed, and whenever the field is read. Here
it is copied once on its way out, behind its tag and length, and not at all on its way in.
"""

from typing import Final

from google.protobuf.message import DecodeError

from starloom.dag.errors import InvalidInput, Problem
from starloom.v1 import data_pb2

_TAG: Final = 0x0A
_SEVEN_BITS: Final = 0x7F
_MORE: Final = 0x80
_LENGTH_BYTES_MAX: Final = 5


def frame(chunk: bytes | memoryview) -> bytes:
    """A FetchResponse with this chunk, serialised."""
    head = bytearray([_TAG])
    size = len(chunk)
    while size > _SEVEN_BITS:
        head.append(size & _SEVEN_BITS | _MORE)
        size >>= 7
    head.append(size)
    return b"".join((head, chunk))


def unframe(message: bytes) -> memoryview:
    """The chunk of a serialised FetchResponse, as a view of it. Raises InvalidInput."""
    if message[:1] == bytes([_TAG]):
        size, at = 0, 1
        for place, byte in enumerate(message[1 : 1 + _LENGTH_BYTES_MAX]):
            size |= (byte & _SEVEN_BITS) << 7 * place
            at += 1
            if not byte & _MORE:
                if at + size == len(message):
                    return memoryview(message)[at:]
                break
    # Another way to say the same, or fields that are not known here.
    try:
        return memoryview(data_pb2.FetchResponse.FromString(message).chunk)
    except DecodeError as error:
        raise InvalidInput([Problem("chunk", f"is in no FetchResponse: {error}")]) from error
