"""Tokens and references to values as protobuf and back, and how a malformed message is refused. Used through `agents.wire`."""

import re
from collections.abc import Callable, Iterable, Iterator
from operator import methodcaller
from typing import Any, TypeVar

import msgspec

from starloom.dag import limits
from starloom.dag.checks import plain_fault
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.values import PortType, ValueRef
from starloom.v1 import session_pb2, value_pb2

Parsed = TypeVar("Parsed")

_DIGEST = re.compile("[0-9a-f]{64}")
_BYTE_SIZE: Any = methodcaller("ByteSize")

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
    found = ValueRef(
        type=port_type,
        bytes=message.bytes,
        digest=message.digest,
        meta=object_from_wire(message.meta_json, f"{place}.meta_json"),
        inline=message.inline if message.HasField("inline") else None,
        holder=message.holder,
    )
    check_ref(found, place)
    return found


def check_ref(ref: ValueRef, place: str) -> None:
    """Raises InvalidInput for a digest that is none, a wrong size, or a meta that JSON cannot say."""
    digest_from_wire(ref.digest, f"{place}.digest")
    # Of a stream these are the bytes of all chunks, which are nowhere in one piece.
    if ref.bytes < 0 or (ref.bytes > limits.VALUE_BYTES_MAX and not ref.meta.get("stream")):
        raise refusal(f"{place}.bytes", f"is {ref.bytes}, not 0 to VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}")
    if ref.inline is not None and len(ref.inline) != ref.bytes:
        raise refusal(f"{place}.inline", f"has {len(ref.inline)} bytes, but the value has {ref.bytes}")
    # A journal is JSON: what that has no word for would be another value there, or none; and what is nested too deeply can
    # be written by one who cannot read it again.
    if ref.meta and (fault := plain_fault(ref.meta)):
        raise refusal(f"{place}.meta", fault)


def digest_from_wire(digest: str, place: str = "digest") -> str:
    """`digest`, if it is one; raises InvalidInput otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise refusal(place, f"is {digest[:80]!r}, not the 64 lower-case hex digits of a BLAKE3 digest")
    return digest


def split(
    sequence: int, packed: Iterable[Parsed], size_of: Callable[[Parsed], int] = _BYTE_SIZE
) -> Iterator[tuple[int, list[Parsed]]]:
    """The messages in parts, each with its first one's number; an empty frame is one empty part."""
    part: list[Parsed] = []
    room = limits.SESSION_FRAME_BYTES_MAX
    for message in packed:
        size = size_of(message)
        if part and size > room:
            yield sequence, part
            sequence += len(part)
            part, room = [], limits.SESSION_FRAME_BYTES_MAX
        part.append(message)
        room -= size
    yield sequence, part
