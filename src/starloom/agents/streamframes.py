"""ReadResponse without protobuf's copies of chunks: the same bytes on the wire, as `chunkwire` has it for values.

A chunk is copied once on its way out, and not at all on its way in, where its data is a view of the message.
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from starloom.agents import wirestreams
from starloom.agents.streams.records import StreamBatch, StreamChunk
from starloom.agents.wirevalues import object_from_wire, refusal
from starloom.dag import limits
from starloom.v1 import data_pb2 as pb

_CHUNKS: Final = pb.ReadResponse.CHUNKS_FIELD_NUMBER
_OFFSET: Final = pb.StreamChunk.OFFSET_FIELD_NUMBER
_GENERATION: Final = pb.StreamChunk.GENERATION_FIELD_NUMBER
_META: Final = pb.StreamChunk.META_JSON_FIELD_NUMBER
_DATA: Final = pb.StreamChunk.DATA_FIELD_NUMBER

_NUMBER, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Protobuf's wire types."""
_SEVEN_BITS: Final = 0x7F
_MORE: Final = 0x80
_NUMBER_BITS_MAX: Final = 63


def frame(batch: StreamBatch) -> bytes:
    """A ReadResponse that says this, serialised."""
    parts: list[bytes | memoryview] = []
    for chunk in batch.chunks:
        head = wirestreams.chunk_to_wire(chunk._replace(data=b"")).SerializeToString()
        tail = bytes([_DATA << 3 | _BYTES]) + _number(len(chunk.data))
        size = len(head) + len(tail) + len(chunk.data)
        parts += (bytes([_CHUNKS << 3 | _BYTES]) + _number(size) + head + tail, chunk.data)
    parts.append(wirestreams.batch_to_wire(batch._replace(chunks=())).SerializeToString())
    return b"".join(parts)


def unframe(message: bytes) -> StreamBatch:
    """What a serialised ReadResponse says; the chunks' data are views of it. Raises InvalidInput."""
    whole = memoryview(message)
    chunks: list[StreamChunk] = []
    rest = bytearray()
    for number, kind, start, end, content in _fields(whole):
        if number == _CHUNKS and kind == _BYTES:
            chunks.append(_chunk(content))
        else:
            rest += whole[start:end]
    try:
        found = pb.ReadResponse.FromString(bytes(rest))
    except DecodeError as error:
        raise refusal("message", f"is no ReadResponse: {error}") from error
    return wirestreams.batch_from_wire(found)._replace(chunks=tuple(chunks))


def _chunk(message: memoryview) -> StreamChunk:
    numbers = {_OFFSET: 0, _GENERATION: 0}
    meta = data = message[:0]
    for number, kind, _, _, content in _fields(message):
        if kind == _NUMBER and number in numbers:
            numbers[number], _ = _read_number(content, 0)
        elif kind == _BYTES and number == _META:
            meta = content
        elif kind == _BYTES and number == _DATA:
            data = content
    place = f"chunk {numbers[_OFFSET]}"
    if len(data) > limits.STREAM_CHUNK_BYTES_MAX:
        over = f"over STREAM_CHUNK_BYTES_MAX = {limits.STREAM_CHUNK_BYTES_MAX}"
        raise refusal(place, f"has {len(data)} bytes, {over}; send it in parts")
    return StreamChunk(numbers[_OFFSET], numbers[_GENERATION], data, object_from_wire(bytes(meta), place))


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int, memoryview]]:
    """Each field's number and wire type, where it begins and ends, and its content. Raises InvalidInput."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_number(message, at)
        kind = tag & 7
        if kind == _NUMBER:
            _, end = _read_number(message, at)
        elif kind == _BYTES:
            size, at = _read_number(message, at)
            end = at + size
        elif kind in (_EIGHT, _FOUR):
            end = at + (8 if kind == _EIGHT else 4)
        else:
            raise refusal("message", f"has a field of wire type {kind}, which there is none of")
        if end > len(message):
            raise refusal("message", "ends amid a field")
        yield tag >> 3, kind, start, end, message[at:end]
        at = end


def _number(value: int) -> bytes:
    found = bytearray()
    while value > _SEVEN_BITS:
        found.append(value & _SEVEN_BITS | _MORE)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_number(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where the next field begins."""
    value = shift = 0
    while at < len(message) and shift <= _NUMBER_BITS_MAX:
        byte = message[at]
        at += 1
        value |= (byte & _SEVEN_BITS) << shift
        if not byte & _MORE:
            return value, at
        shift += 7
    raise refusal("message", "has a number that does not end")
