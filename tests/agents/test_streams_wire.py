"""What goes through a stream, to the wire and back, through bytes; and what is malformed is refused with its place."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from starloom.agents import streamframes, values, wirestreams
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
from starloom.dag import limits
from starloom.dag.errors import InvalidInput
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.values import Full, PortType
from starloom.v1 import data_pb2 as pb

DIGEST = values.digest(b"")
OUTPUT = StreamName(JobId("j"), StageId("stage ü"), FencingToken(Epoch(3), Attempt(2**40)), "frames")
OF_THE_JOB = StreamName(JobId("j"), StageId(""), FencingToken(Epoch(0), Attempt(0)), "microphone")

CHUNKS = st.builds(
    StreamChunk,
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.binary(max_size=20),
    st.dictionaries(st.text(), st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)),
)
ENDS = st.builds(StreamEnd, st.sampled_from(How), st.integers(0, 9), st.integers(0, 9), st.just(DIGEST), st.text())


@pytest.mark.parametrize("name", [OUTPUT, OF_THE_JOB])
@pytest.mark.parametrize("full", [None, *Full])
def test_wishes_come_back_as_they_were(name: StreamName, full: Full | None) -> None:
    wish = ReadOpen(name, "detect.image", Credit(7, Bound(0, 5)), full, 2**40, "the process", closed=full is None)
    sent = pb.ReadRequest.FromString(wirestreams.open_to_wire(wish).SerializeToString())
    assert wirestreams.open_from_wire(sent.open) == wish
    write = WriteOpen(name, PortType.IMAGE)
    written = pb.WriteRequest.FromString(wirestreams.write_to_wire(write).SerializeToString())
    assert wirestreams.write_from_wire(written.open) == write


@for_all(st.lists(CHUNKS, max_size=3), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.none() | ENDS)
def test_batches_come_back_as_they_were(
    chunks: list[StreamChunk], dropped: int, stale: int, generation: int, end: StreamEnd | None
) -> None:
    batch = StreamBatch(tuple(chunks), dropped, stale, generation, end)
    sent = pb.ReadResponse.FromString(wirestreams.batch_to_wire(batch).SerializeToString())
    assert wirestreams.batch_from_wire(sent) == batch
    part = pb.WriteRequest.FromString(wirestreams.part_to_wire(batch).SerializeToString())
    assert wirestreams.part_from_wire(part) == StreamBatch(tuple(chunks), end=end)


@for_all(st.lists(CHUNKS, max_size=3), st.integers(0, 2**63), st.none() | ENDS)
def test_frames_are_what_protobuf_makes_and_reads(chunks: list[StreamChunk], stale: int, end: StreamEnd | None) -> None:
    batch = StreamBatch(tuple(chunks), 1, stale, 2**40, end)
    framed = streamframes.frame(batch)
    assert wirestreams.batch_from_wire(pb.ReadResponse.FromString(framed)) == batch
    assert streamframes.unframe(framed) == batch
    assert streamframes.unframe(wirestreams.batch_to_wire(batch).SerializeToString()) == batch


def test_data_of_a_framed_chunk_is_a_view_of_the_message() -> None:
    framed = streamframes.frame(StreamBatch((StreamChunk(300, 0, b"x" * 1_000, {"at": 1.5}),)))
    (chunk,) = streamframes.unframe(framed).chunks
    assert isinstance(chunk.data, memoryview)
    assert chunk.data.obj is framed


@for_all(st.lists(CHUNKS, min_size=1, max_size=2), st.data())
def test_damaged_frame_is_refused_or_read_but_never_crashes(chunks: list[StreamChunk], data: st.DataObject) -> None:
    framed = bytearray(streamframes.frame(StreamBatch(tuple(chunks), end=None)))
    place = data.draw(st.integers(0, len(framed) - 1))
    framed[place] ^= data.draw(st.integers(1, 255))
    with suppress(InvalidInput):
        streamframes.unframe(bytes(framed[: data.draw(st.integers(0, len(framed)))]))


def test_fields_that_are_not_known_here_are_passed_over() -> None:
    batch = StreamBatch((StreamChunk(1, 2, b"abc", {}),), 3)
    unknown = b"\xa2\x06\x03new" + b"\xa8\x06\x07" + b"\xb1\x06" + bytes(8) + b"\xbd\x06" + bytes(4)
    assert streamframes.unframe(unknown + streamframes.frame(batch) + unknown) == batch


@pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x80", b"\x0b", b"\xff" * 12])
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidInput):
        streamframes.unframe(message)


def test_window_is_cut_to_what_may_be_on_its_way() -> None:
    sent = wirestreams.credit_to_wire(Credit(1, Bound(2**31, 2**60)))
    most = Bound(limits.STREAM_BUFFER_CHUNKS_MAX, limits.STREAM_BUFFER_BYTES_MAX)
    assert wirestreams.credit_from_wire(sent) == Credit(1, most)


@pytest.mark.parametrize(
    ("read", "message", "place"),
    [
        (wirestreams.open_from_wire, pb.ReadOpen(), "open.reader"),
        (wirestreams.open_from_wire, pb.ReadOpen(reader="r", full="all"), "open.full"),
        (wirestreams.open_from_wire, pb.ReadOpen(reader="r"), "open.stream"),
        (wirestreams.name_from_wire, pb.StreamName(job_id="j", port="p", stage="s"), "stream"),
        (wirestreams.write_from_wire, pb.WriteOpen(type="x"), "open.type"),
        (wirestreams.chunk_from_wire, pb.StreamChunk(offset=3, meta_json=b"[]"), "chunk 3"),
        (wirestreams.chunk_from_wire, pb.StreamChunk(data=bytes(limits.STREAM_CHUNK_BYTES_MAX + 1)), "chunk 0"),
        (wirestreams.end_from_wire, pb.StreamEnd(how="over", digest=DIGEST), "end.how"),
        (wirestreams.end_from_wire, pb.StreamEnd(how="failed", digest="x"), "end.digest"),
    ],
)
def test_malformed_is_refused_with_its_place(read: Any, message: Any, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(message)
    assert [problem.place for problem in caught.value.problems] == [place]
