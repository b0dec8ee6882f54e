"""Values that come packed over real gRPC, and the decision when they do."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc
import numpy as np
import pytest
import zstandard
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.fakes import TOKEN, MemoryStore, reference

from starloom.agents import chunkwire, compression, packing, status
from starloom.agents.chunkwire import Packed
from starloom.agents.compression import ZSTD, LinkSpeeds, Trial, is_loopback, pays
from starloom.agents.dataservice import DataServer
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch
from starloom.dag.ids import JobId
from starloom.dag.values import PortType, ValueRef
from starloom.v1 import data_pb2

JOB = JobId("j")
SECOND = 1_000_000_000
SLOW = 1_000
"""Bytes a second of a link on which whatever shrinks is worth packing, however busy the machine is."""
MEASURED = 1_000_000
TEXT = b"every word of it, again and again; " * 60_000
NOISE = np.random.default_rng(1).bytes(2_000_000)
speeds_of_links = st.floats(1.0, 1e12)


def named(data: bytes, port_type: PortType = PortType.TEXT) -> ValueRef:
    return ValueRef(type=port_type, bytes=len(data), digest=reference(PortType.BYTES, data).digest)


def slow(address: str) -> LinkSpeeds:
    """What a reader knows that has measured a slow link to this address, which does not count as this host's."""
    speeds = LinkSpeeds(is_local=lambda _: False)
    speeds.came(address, MEASURED, MEASURED // SLOW * SECOND, time.monotonic_ns())
    return speeds


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[memoryview | Packed]]:
    """The chunks as they come off the wire."""
    seen: list[memoryview | Packed] = []
    unframe = chunkwire.unframe

    def seeing(message: bytes) -> memoryview | Packed:
        seen.append(unframe(message))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(chunkwire, "unframe", seeing)
        yield seen


@asynccontextmanager
async def serving(store: MemoryStore) -> AsyncIterator[str]:
    server = DataServer(store, TOKEN)
    try:
        yield await server.start()
    finally:
        await server.stop()


@asynccontextmanager
async def answering(answer: Callable[[bytes], list[bytes]]) -> AsyncIterator[str]:
    """A peer whose Fetch gives these messages for a serialised request."""

    async def fetch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for message in answer(request):
            yield message

    server = aio.server(options=status.server_options())
    handlers = {"Fetch": grpc.unary_stream_rpc_method_handler(fetch)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("starloom.v1.DataService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def frame_of(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize("part_bytes", [limits.CHUNK_BYTES, 7_001])
async def test_values_come_packed_and_are_what_was_named(monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    store = MemoryStore()
    store.part_bytes = part_bytes
    store.add(TEXT)
    async with serving(store) as address, Transfer(TOKEN, speeds=slow(address)) as transfer:
        with watched(monkeypatch) as seen:
            assert await transfer.fetch(address, JOB, named(TEXT)) == TEXT
    assert all(isinstance(chunk, Packed) for chunk in seen)
    assert sum(len(chunk.data) for chunk in seen if isinstance(chunk, Packed)) < len(TEXT) / 10


async def test_fetch_of_packed_chunks_goes_on_from_the_last_plain_byte_after_breaks() -> None:
    store = MemoryStore()
    digest = store.add(TEXT)
    store.breaks = [3, 1]
    async with serving(store) as address, Transfer(TOKEN, speeds=slow(address)) as transfer:
        assert await transfer.fetch(address, JOB, named(TEXT)) == TEXT
    assert store.reads == [(digest, 0), (digest, 3 * store.part_bytes), (digest, 4 * store.part_bytes)]


async def test_what_does_not_shrink_comes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    store.add(NOISE)
    async with serving(store) as address, Transfer(TOKEN, speeds=slow(address)) as transfer:
        with watched(monkeypatch) as seen:
            assert await transfer.fetch(address, JOB, named(NOISE)) == NOISE
    assert not any(isinstance(chunk, Packed) for chunk in seen)


async def test_link_is_measured_by_plain_fetches_and_told_to_the_holder() -> None:
    requests: list[data_pb2.FetchRequest] = []
    told: list[tuple[str, int, int]] = []
    part = limits.LINK_MEASURE_BYTES_MIN

    class Speeds(LinkSpeeds):
        def came(self, address: str, plain_bytes: int, nanos: int, now: int) -> None:
            told.append((address, plain_bytes, nanos))
            super().came(address, MEASURED, MEASURED // SLOW * SECOND, now)

    def answer(request: bytes) -> list[bytes]:
        requests.append(data_pb2.FetchRequest.FromString(request))
        parts = [TEXT[start : start + part] for start in range(0, len(TEXT), part)]
        return [chunkwire.frame(Packed(frame_of(each)) if requests[-1].codings else each) for each in parts]

    async with answering(answer) as address, Transfer(TOKEN, speeds=Speeds(is_local=lambda _: False)) as transfer:
        for _ in range(2):
            assert await transfer.fetch(address, JOB, named(TEXT)) == TEXT
    assert [(list(each.codings), each.bytes_per_second) for each in requests] == [([], 0), ([ZSTD], SLOW)]
    # Of the first part it is not known how long it was on its way, and packed ones do not tell of the link.
    assert [each[:2] for each in told] == [(address, len(TEXT) - part)]
    assert told[0][2] > 0


async def test_nothing_is_packed_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    store.add(TEXT)
    speeds = LinkSpeeds()
    async with serving(store) as address, Transfer(TOKEN, speeds=speeds) as transfer:
        speeds.came(address, MEASURED, MEASURED // SLOW * SECOND, time.monotonic_ns())
        with watched(monkeypatch) as seen:
            assert await transfer.fetch(address, JOB, named(TEXT)) == TEXT
    assert not any(isinstance(chunk, Packed) for chunk in seen)


async def test_peer_that_knows_no_packing_is_understood() -> None:
    """An old holder passes over what it does not know; an old reader says nothing of it."""
    store = MemoryStore()
    store.add(TEXT)
    async with (
        answering(lambda _: [data_pb2.FetchResponse(chunk=TEXT).SerializeToString()]) as old,
        serving(store) as address,
        Transfer(TOKEN, speeds=slow(old)) as transfer,
    ):
        assert await transfer.fetch(old, JOB, named(TEXT)) == TEXT
        request = data_pb2.FetchRequest(job_id=JOB, digest=named(TEXT).digest)
        parts = [part async for part in transfer.stub(address).Fetch(request, metadata=transfer.metadata)]
    assert b"".join(part.chunk for part in parts) == TEXT


async def test_without_the_package_everything_comes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    store.add(TEXT)
    async with serving(store) as address, Transfer(TOKEN, speeds=slow(address)) as transfer:
        monkeypatch.setattr(packing, "CODINGS", ())
        with watched(monkeypatch) as seen:
            assert await transfer.fetch(address, JOB, named(TEXT)) == TEXT
            request = data_pb2.FetchRequest(
                job_id=JOB, digest=named(TEXT).digest, codings=[ZSTD], bytes_per_second=SLOW
            )
            parts = [part async for part in transfer.stub(address).Fetch(request, metadata=transfer.metadata)]
    assert not any(isinstance(chunk, Packed) for chunk in seen)
    assert b"".join(part.chunk for part in parts) == TEXT


def test_package_may_be_missing() -> None:
    code = "import sys; sys.modules['zstandard'] = None; from starloom.agents import packing; print(packing.CODINGS)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "()\n"


BOMB = frame_of(bytes(limits.VALUE_BYTES_MAX // 4))


@pytest.mark.parametrize(
    "packed",
    [
        BOMB,
        frame_of(TEXT[: limits.CHUNK_BYTES + 1]),
        frame_of(TEXT[:200_000], write_content_size=False),
        frame_of(TEXT[:200_000])[:-1],
        frame_of(TEXT[:200_000]) + b"x",
        frame_of(b""),
        b"no frame",
    ],
    ids=["bomb", "over-a-chunk", "size-untold", "cut-off", "more-behind", "empty", "no-frame"],
)
async def test_packed_chunk_that_is_not_what_it_should_be_is_refused(packed: bytes) -> None:
    async with (
        answering(lambda _: [chunkwire.frame(Packed(packed))]) as address,
        Transfer(TOKEN, speeds=slow(address)) as transfer,
    ):
        with pytest.raises(DigestMismatch):
            await transfer.fetch(address, JOB, named(TEXT))


def test_bomb_is_refused_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BOMB) < 100_000
    monkeypatch.setattr(zstandard, "ZstdDecompressor", lambda **_: pytest.fail("it was unpacked"))
    with pytest.raises(DigestMismatch, match=f"{limits.VALUE_BYTES_MAX // 4} bytes"):
        packing.unpack(Packed(BOMB), limits.VALUE_BYTES_MAX)


def test_frame_with_more_than_it_says_is_refused() -> None:
    """The head of one frame before the blocks of a larger one."""
    small, large = (frame_of(bytes(size), write_checksum=False) for size in (300, 60_000))
    heads = [zstandard.frame_header_size(each) for each in (small, large)]
    with pytest.raises(DigestMismatch):
        packing.unpack(Packed(small[: heads[0]] + large[heads[1] :]), limits.CHUNK_BYTES)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_unpacked_within_bounds_or_refused(data: bytes, most_bytes: int) -> None:
    with suppress(DigestMismatch):
        assert len(packing.unpack(Packed(data), most_bytes)) <= most_bytes


@given(st.binary(min_size=1, max_size=2_000))
def test_what_is_packed_is_unpacked(data: bytes) -> None:
    assert packing.unpack(Packed(frame_of(data)), len(data)) == data
    with pytest.raises(DigestMismatch):
        packing.unpack(Packed(frame_of(data)), len(data) - 1)


@given(plain=st.integers(1, 2**30), share=st.floats(0, 2), seconds=st.floats(0, 10), speed=speeds_of_links)
def test_what_pays_is_sooner_and_pays_on_every_slower_link(
    plain: int, share: float, seconds: float, speed: float
) -> None:
    packed = round(plain * share)
    if not pays(plain, packed, seconds, speed):
        return
    assert packed / speed + seconds < plain / speed
    assert pays(plain, packed, seconds / 2, speed)
    assert packed * 1.0001 > 0.9 * plain or pays(plain, packed, seconds, speed / 2)


@given(speed=speeds_of_links, paying=st.lists(st.booleans(), max_size=300))
def test_trial_goes_on_while_it_pays_and_tries_again_now_and_then(speed: float, paying: list[bool]) -> None:
    trial = Trial(speed)
    passed_over = 0
    before = True
    for pay in paying:
        if not trial.tries():
            assert not before or passed_over
            passed_over += 1
            assert passed_over <= compression._PASSED_OVER_MAX
            continue
        passed_over = 0
        before = trial.tried(1_000, 0 if pay else 1_000, 0.0)
        assert before == pay
        if not before:
            passed_over = 0
            assert not trial.tries()
            passed_over = 1


def test_trial_needs_a_link_that_is_known() -> None:
    with pytest.raises(ValueError, match="bytes_per_second"):
        Trial(0)


@given(
    speeds=st.lists(speeds_of_links, min_size=1, max_size=5), age=st.integers(0, 200), kind=st.sampled_from(PortType)
)
def test_wish_tells_of_links_that_are_slow_for_the_type_and_freshly_measured(
    speeds: list[float], age: int, kind: PortType
) -> None:
    known = LinkSpeeds(is_local=lambda address: address == "here")
    now = 0
    for speed in speeds:
        now += SECOND
        for address in ("here", "there"):
            known.came(address, 2**40, max(1, round(2**40 / speed * SECOND)), now)
    wish = known.wish("there", kind, now + age * SECOND)
    assert wish == 0 or (
        age <= limits.LINK_MEASURED_SECONDS
        and min(speeds) * 0.9 - 2 <= wish <= max(speeds) * 1.1 + 2
        and wish <= compression.WORTH_TRYING_BELOW[kind]
    )
    if age <= limits.LINK_MEASURED_SECONDS and max(speeds) < 1e6:
        assert wish
    assert known.wish("here", kind, now) == 0
    assert known.wish("elsewhere", kind, now) == 0


def test_little_tells_nothing_of_a_link_and_links_are_bounded() -> None:
    known = LinkSpeeds(is_local=lambda _: False)
    known.came("a", limits.LINK_MEASURE_BYTES_MIN - 1, SECOND, 0)
    assert known.wish("a", PortType.TEXT, 0) == 0
    for number in range(limits.LINKS_KNOWN_MAX + 1):
        known.came(str(number), MEASURED, MEASURED // SLOW * SECOND, 0)
    assert (known.wish("0", PortType.TEXT, 0), known.wish("1", PortType.TEXT, 0)) == (0, SLOW)


def test_slow_links_get_the_level_that_packs_better() -> None:
    assert [compression.level_for(speed) for speed in (1e6, 9e6, 11e6, 1e9)] == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("203.0.113.1:1", False),
        ("[2001:db8::1]:1", False),
        ("edge.example:1", False),
        ("", False),
    ],
)
def test_loopback_is_known_by_its_address(address: str, local: bool) -> None:
    assert is_loopback(address) is local
