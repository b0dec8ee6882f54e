"""Tokens and references to values as protobuf and back, and how a malformed message is refused. Used through `agents.wire`."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.facts import Consumed
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.values import PortType, ValueRef
from starloom.v1 import session_pb2, value_pb2

Parsed = TypeVar("Parsed")

_DIGEST = re.compile("[0-9a-f]{64}")

encode = msgspec.json.Encoder().encode
_objects: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def refusal(place: str, what: str) -> InvalidInput:
    """The error for a malformed message."""
    return InvalidInput([Problem(place, what)], "a message is malformed")


def parse(decoder: msgspec.json.Decoder[Parsed], data: bytes, place: str) -> Parsed:
    """What a field of JSON says; raises InvalidInput."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refusal(place, f"is no readable JSON of its type: {error}") from error


def object_from_wire(data: bytes, place: str) -> dict[str, Any]:
    """A field of JSON that is an object, or empty; raises InvalidInput."""
    return parse(_objects, data, place) if data else {}


def task_to_wire(task: TaskToken) -> session_pb2.Task:
    """A token."""
    return session_pb2.Task(job_id=task.job, stage=task.stage, epoch=task.token.epoch, attempt=task.token.attempt)


def task_from_wire(message: session_pb2.Task, place: str = "task") -> TaskToken:
    """A token; raises InvalidInput where it names no attempt."""
    if not message.job_id or not message.stage or not message.epoch or not message.attempt:
        raise refusal(place, "lacks a job, a stage, an epoch or an attempt")
    return TaskToken(JobId(message.job_id), StageId(message.stage), token_from_wire(message.epoch, message.attempt))


def token_from_wire(epoch: int, attempt: int) -> FencingToken:
    """A fencing token, by its parts."""
    return FencingToken(Epoch(epoch), Attempt(attempt))


def consumed_from_wire(upstream: str, epoch: int, attempt: int, digest: str) -> Consumed:
    """What an input port was fed with, by its parts; epoch 0 is a job input's."""
    return Consumed(StageId(upstream), token_from_wire(epoch, attempt) if epoch else None, digest)


def ref_to_wire(ref: ValueRef) -> value_pb2.ValueRef:
    """A reference, its inline bytes with it."""
    return value_pb2.ValueRef(
        type=ref.type.value,
        bytes=ref.bytes,
        digest=ref.digest,
        meta_json=encode(ref.meta) if ref.meta else b"",
        inline=ref.inline,
        holder=ref.holder,
    )


def ref_from_wire(message: value_pb2.ValueRef, place: str = "value") -> ValueRef:
    """A reference; raises InvalidInput for an unknown type, a digest that is none, or a wrong size."""
    try:
        port_type = PortType(message.type)
    except ValueError:
        raise refusal(f"{place}.type", f"is {message.type!r}; known types are {', '.join(PortType)}") from None
    digest_from_wire(message.digest, f"{place}.digest")
    meta = object_from_wire(message.meta_json, f"{place}.meta_json")
    # Of a stream these are the bytes of all chunks, which are nowhere in one piece.
    if message.bytes > limits.VALUE_BYTES_MAX and not meta.get("stream"):
        raise refusal(f"{place}.bytes", f"is {message.bytes}, over VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}")
    inline = message.inline if message.HasField("inline") else None
    if inline is not None and len(inline) != message.bytes:
        raise refusal(f"{place}.inline", f"has {len(inline)} bytes, but the value has {message.bytes}")
    return ValueRef(
        type=port_type,
        bytes=message.bytes,
        digest=message.digest,
        meta=meta,
        inline=inline,
        holder=message.holder,
    )


def digest_from_wire(digest: str, place: str = "digest") -> str:
    """`digest`, if it is one; raises InvalidInput otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise refusal(place, f"is {digest[:80]!r}, not the 64 lower-case hex digits of a BLAKE3 digest")
    return digest


def split(sequence: int, packed: Iterable[Parsed]) -> Iterator[tuple[int, list[Parsed]]]:
    """The messages in parts, each with its first one's number; an empty frame is one empty part."""
    part: list[Parsed] = []
    room = limits.SESSION_FRAME_BYTES_MAX
    for message in packed:
        size = message.ByteSize()  # type: ignore[attr-defined]
        if part and size > room:
            yield sequence, part
            sequence += len(part)
            part, room = [], limits.SESSION_FRAME_BYTES_MAX
        part.append(message)
        room -= size
    yield sequence, part
