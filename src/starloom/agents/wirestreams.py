"""What goes through a stream, as protobuf and back. Used by the data services and by those who call them."""

from starloom.agents.streams.records import (
    Bound,
    Credit,
    How,
    ReadOpen,
    StreamBatch,
    StreamChunk,
    StreamEnd,
    StreamName,
    WriteOpen,
)
from starloom.agents.wirevalues import digest_from_wire, encode, object_from_wire, refusal, token_from_wire
from starloom.dag import limits
from starloom.dag.ids import JobId, StageId
from starloom.dag.values import Full, PortType
from starloom.v1 import data_pb2 as pb


def name_to_wire(name: StreamName) -> pb.StreamName:
    """A stream's name."""
    token = name.token
    return pb.StreamName(job_id=name.job, stage=name.stage, epoch=token.epoch, attempt=token.attempt, port=name.port)


def name_from_wire(message: pb.StreamName, place: str = "stream") -> StreamName:
    """A stream's name; raises InvalidInput where it names none."""
    if not message.job_id or not message.port:
        raise refusal(place, "lacks a job or a port")
    if message.stage and not (message.epoch and message.attempt):
        raise refusal(place, "lacks the epoch or the attempt of its stage")
    token = token_from_wire(message.epoch, message.attempt)
    return StreamName(JobId(message.job_id), StageId(message.stage), token, message.port)


def credit_to_wire(credit: Credit) -> pb.StreamCredit:
    """How far a reader is."""
    window = credit.window
    return pb.StreamCredit(window_chunks=window.chunks, window_bytes=window.bytes, acknowledged=credit.acknowledged)


def credit_from_wire(message: pb.StreamCredit) -> Credit:
    """How far a reader is; its window is cut to what anyone may have on the way."""
    chunks = min(message.window_chunks, limits.STREAM_BUFFER_CHUNKS_MAX)
    return Credit(message.acknowledged, Bound(chunks, min(message.window_bytes, limits.STREAM_BUFFER_BYTES_MAX)))


def open_to_wire(wish: ReadOpen) -> pb.ReadRequest:
    """A reader's wish."""
    credit = credit_to_wire(wish.credit)
    message = pb.ReadOpen(
        stream=name_to_wire(wish.stream),
        reader=wish.reader,
        credit=credit,
        full=wish.full or "",
        attempt=wish.attempt,
        incarnation=wish.incarnation,
        closed=wish.closed,
    )
    return pb.ReadRequest(open=message)


def open_from_wire(message: pb.ReadOpen) -> ReadOpen:
    """A reader's wish; raises InvalidInput."""
    if not message.reader:
        raise refusal("open.reader", "is empty; say who reads, as stage.port")
    try:
        full = Full(message.full) if message.full else None
    except ValueError:
        raise refusal("open.full", f"is {message.full!r}; use {', '.join(Full)}") from None
    name = name_from_wire(message.stream, "open.stream")
    credit = credit_from_wire(message.credit)
    return ReadOpen(name, message.reader, credit, full, message.attempt, message.incarnation, message.closed)


def write_to_wire(wish: WriteOpen) -> pb.WriteRequest:
    """What a writer is about to send."""
    return pb.WriteRequest(open=pb.WriteOpen(stream=name_to_wire(wish.stream), type=wish.type.value))


def write_from_wire(message: pb.WriteOpen) -> WriteOpen:
    """What a writer is about to send; raises InvalidInput."""
    try:
        port_type = PortType(message.type)
    except ValueError:
        raise refusal("open.type", f"is {message.type!r}; known types are {', '.join(PortType)}") from None
    return WriteOpen(name_from_wire(message.stream, "open.stream"), port_type)


def part_to_wire(batch: StreamBatch) -> pb.WriteRequest:
    """What a writer sends after its opening."""
    return pb.WriteRequest(chunks=map(chunk_to_wire, batch.chunks), end=batch.end and end_to_wire(batch.end))


def part_from_wire(message: pb.WriteRequest) -> StreamBatch:
    """What a writer sends after its opening; raises InvalidInput."""
    return StreamBatch(
        chunks=tuple(map(chunk_from_wire, message.chunks)),
        end=end_from_wire(message.end) if message.HasField("end") else None,
    )


def batch_to_wire(batch: StreamBatch) -> pb.ReadResponse:
    """What a reader is sent."""
    return pb.ReadResponse(
        chunks=map(chunk_to_wire, batch.chunks),
        dropped=batch.dropped,
        stale=batch.stale,
        generation=batch.generation,
        end=batch.end and end_to_wire(batch.end),
    )


def batch_from_wire(message: pb.ReadResponse) -> StreamBatch:
    """What a reader is sent; raises InvalidInput."""
    return StreamBatch(
        chunks=tuple(map(chunk_from_wire, message.chunks)),
        dropped=message.dropped,
        stale=message.stale,
        generation=message.generation,
        end=end_from_wire(message.end) if message.HasField("end") else None,
    )


def chunk_to_wire(chunk: StreamChunk) -> pb.StreamChunk:
    """One chunk."""
    return pb.StreamChunk(
        offset=chunk.offset,
        generation=chunk.generation,
        meta_json=encode(chunk.meta) if chunk.meta else b"",
        data=bytes(chunk.data),
    )


def chunk_from_wire(message: pb.StreamChunk) -> StreamChunk:
    """One chunk; raises InvalidInput where it is too large, or its meta is no object."""
    place = f"chunk {message.offset}"
    data = message.data
    if len(data) > limits.STREAM_CHUNK_BYTES_MAX:
        over = f"over STREAM_CHUNK_BYTES_MAX = {limits.STREAM_CHUNK_BYTES_MAX}"
        raise refusal(place, f"has {len(data)} bytes, {over}; send it in parts")
    return StreamChunk(message.offset, message.generation, data, object_from_wire(message.meta_json, place))


def end_to_wire(end: StreamEnd) -> pb.StreamEnd:
    """How a stream ended."""
    return pb.StreamEnd(how=end.how.value, chunks=end.chunks, bytes=end.bytes, digest=end.digest, message=end.message)


def end_from_wire(message: pb.StreamEnd) -> StreamEnd:
    """How a stream ended; raises InvalidInput."""
    try:
        how = How(message.how)
    except ValueError:
        raise refusal("end.how", f"is {message.how!r}; use {', '.join(How)}") from None
    digest = digest_from_wire(message.digest, "end.digest")
    return StreamEnd(how, message.chunks, message.bytes, digest, message.message)
