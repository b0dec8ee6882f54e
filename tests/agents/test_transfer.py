"""Values over real gRPC: whole, in chunks, after a break, and every way in which bytes are not what was named."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.fakes import TOKEN, WAIT_SECONDS, MemoryStore, reference

from starloom.agents import chunkwire, status, values, wire
from starloom.agents.dataservice import DataServer, DataService, add_data_service
from starloom.agents.holder import Holder
from starloom.agents.transfer import Transfer, off_loop
from starloom.dag import limits
from starloom.dag.errors import (
    DigestMismatch,
    InvalidInput,
    NotFound,
    Overloaded,
    StarloomError,
    Unauthenticated,
    Unavailable,
)
from starloom.dag.ids import JobId
from starloom.dag.values import PortType, ValueRef
from starloom.v1 import data_pb2

JOB = JobId("j")
BIG = np.random.default_rng(1).bytes(3 * limits.CHUNK_BYTES + 17)


class Served:
    """A store in memory behind a real data service, and a client of it."""

    def __init__(self, store: MemoryStore, address: str, transfer: Transfer) -> None:
        self.store = store
        self.address = address
        self.transfer = transfer

    async def fetch(self, ref: ValueRef) -> bytes | memoryview:
        return await self.transfer.fetch(self.address, JOB, ref)

    async def put(self, ref: ValueRef, data: bytes) -> ValueRef:
        return await self.transfer.put(self.address, ref, data)

    def stub(self) -> Any:
        return self.transfer.stub(self.address)


@asynccontextmanager
async def holding(source: Any) -> AsyncIterator[str]:
    """The address of an agent's data service over the source."""
    server = DataServer(source, TOKEN)
    try:
        yield await server.start()
    finally:
        await server.stop()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    store = MemoryStore()
    server = aio.server(interceptors=[status.TokenCheck(TOKEN)], options=status.server_options())
    add_data_service(server, DataService(store, store))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Transfer(TOKEN) as transfer:
        yield Served(store, f"127.0.0.1:{port}", transfer)
    await server.stop(None)


def named(data: bytes) -> ValueRef:
    return reference(PortType.BYTES, data, inline=False)


@pytest.mark.parametrize("data", [b"", b"x", BIG])
async def test_value_is_put_and_fetched(served: Served, data: bytes) -> None:
    stored = await served.put(named(data), data)
    assert stored == named(data)
    assert await served.fetch(stored) == data


async def test_put_twice_is_put_once(served: Served) -> None:
    first, second = [await served.put(named(BIG), BIG) for _ in range(2)]
    assert first == second
    assert list(served.store.values.values()) == [BIG]


async def test_meta_travels_with_a_put(served: Served) -> None:
    ref = reference(PortType.TENSOR, np.zeros((2, 3), np.float32), inline=False)
    assert await served.put(ref, bytes(24)) == ref


async def test_inline_value_needs_no_service(served: Served) -> None:
    ref = reference(PortType.TEXT, "hi")
    assert await served.transfer.fetch("127.0.0.1:1", JOB, ref) == b"hi"
    with pytest.raises(DigestMismatch):
        await served.transfer.fetch("", JOB, ValueRef(type=ref.type, bytes=2, digest=ref.digest, inline=b"ho"))


async def test_fetch_goes_on_from_the_last_byte_after_breaks(served: Served) -> None:
    digest = served.store.add(BIG)
    served.store.breaks = [3, 1, 2]
    assert await served.fetch(named(BIG)) == BIG
    part = served.store.part_bytes
    assert served.store.reads == [(digest, 0), (digest, 3 * part), (digest, 4 * part), (digest, 6 * part)]


async def test_fetch_that_gets_nowhere_is_unavailable(served: Served) -> None:
    served.store.add(BIG)
    served.store.breaks = [2, 0]
    with pytest.raises(Unavailable, match=served.address):
        await served.fetch(named(BIG))


async def test_absent_value_is_not_found(served: Served) -> None:
    with pytest.raises(NotFound, match="no value"):
        await served.fetch(named(BIG))


@pytest.mark.parametrize("wrong", [b"y" + BIG[1:], BIG[:-1], BIG + b"z", b""])
async def test_other_bytes_than_named_are_refused(served: Served, wrong: bytes) -> None:
    served.store.values[named(BIG).digest] = wrong
    with pytest.raises(DigestMismatch):
        await served.fetch(named(BIG))
    with pytest.raises(DigestMismatch):
        await served.put(named(BIG), wrong)


async def test_value_over_the_limit_is_not_fetched(served: Served) -> None:
    ref = ValueRef(type=PortType.BYTES, bytes=limits.VALUE_BYTES_MAX + 1, digest=named(BIG).digest)
    with pytest.raises(InvalidInput, match="VALUE_BYTES_MAX"):
        await served.fetch(ref)
    with pytest.raises(InvalidInput, match="VALUE_BYTES_MAX"):
        await served.put(ref, b"")


async def test_errors_of_the_store_arrive_as_they_are(served: Served) -> None:
    served.store.closed = Overloaded("no room", 3.0)
    with pytest.raises(Overloaded, match="no room"):
        await served.put(named(BIG), BIG)


async def test_nobody_there_is_unavailable_and_not_cancelled() -> None:
    async with Transfer(TOKEN) as transfer:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await transfer.fetch("127.0.0.1:1", JOB, named(BIG))
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await transfer.put("127.0.0.1:1", named(BIG), BIG)


async def test_wrong_token_is_refused(served: Served) -> None:
    async with Transfer("wrong") as transfer:
        with pytest.raises(Unauthenticated):
            await transfer.fetch(served.address, JOB, named(BIG))
        with pytest.raises(Unauthenticated):
            await transfer.put(served.address, named(BIG), BIG)


async def test_cancelled_fetch_ends_at_the_holder() -> None:
    class Endless:
        """Gives one byte, and waits until it is stopped."""

        def __init__(self) -> None:
            self.began = asyncio.Event()
            self.ended = asyncio.Event()

        async def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes]:
            try:
                yield b"x"
                self.began.set()
                await asyncio.Event().wait()
            finally:
                self.ended.set()

    source = Endless()
    async with asyncio.timeout(WAIT_SECONDS), holding(source) as address, Transfer(TOKEN) as transfer:
        fetching = asyncio.create_task(transfer.fetch(address, JOB, named(BIG)))
        await source.began.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await source.ended.wait()


async def test_silent_holder_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        async def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    monkeypatch.setattr(limits, "TRANSFER_STALL_SECONDS", 0.01)
    async with holding(Silent()) as address, Transfer(TOKEN) as transfer:
        with pytest.raises(Unavailable, match="TRANSFER_STALL_SECONDS"):
            await transfer.fetch(address, JOB, named(BIG))


def put_request(ref: ValueRef | None = None, chunk: bytes = b"") -> data_pb2.PutRequest:
    return data_pb2.PutRequest(ref=wire.ref_to_wire(ref) if ref else None, chunk=chunk)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "is missing in the first message"),
        ([put_request(chunk=b"x")], "is missing in the first message"),
        ([put_request(named(b"ab"), b"a"), put_request(named(b"ab"), b"b")], "came twice"),
        ([put_request(named(BIG), BIG[: limits.CHUNK_BYTES + 1])], "CHUNK_BYTES"),
        ([data_pb2.PutRequest(ref=wire.ref_to_wire(named(b"")), chunk=b"x")], "but 1 came"),
    ],
)
async def test_malformed_puts_are_refused(served: Served, requests: list[data_pb2.PutRequest], message: str) -> None:
    call = served.stub().Put(metadata=status.auth_metadata(TOKEN))
    end = status.CallEnd(call)
    with suppress(*status.CALL_OVER):
        for request in requests:
            await call.write(request)
        await call.done_writing()
    with pytest.raises(aio.AioRpcError):
        await call
    assert message in str(await end.error())
    assert served.store.values == {}


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        (data_pb2.FetchRequest(digest="f" * 64), "job_id"),
        (data_pb2.FetchRequest(job_id="j", digest="../../etc/passwd"), "digest"),
        (data_pb2.FetchRequest(job_id="j"), "digest"),
    ],
)
async def test_malformed_fetches_are_refused(served: Served, request_: data_pb2.FetchRequest, place: str) -> None:
    with pytest.raises(aio.AioRpcError) as raised:
        await served.stub().Fetch(request_, metadata=status.auth_metadata(TOKEN)).read()
    error = status.from_rpc(raised.value)
    assert isinstance(error, InvalidInput)
    assert error.problems[0].place == place
    assert served.store.reads == []


async def test_agents_data_service_serves_held_values_of_the_job_alone() -> None:
    holder = Holder()
    ref = named(BIG)
    holder.keep(JOB, ref.digest, BIG)
    async with holding(holder) as address, Transfer(TOKEN) as transfer:
        assert await transfer.fetch(address, JOB, ref) == BIG
        with pytest.raises(NotFound, match="job k has no value"):
            await transfer.fetch(address, JobId("k"), ref)
        with pytest.raises(StarloomError, match="only gives values out"):
            await transfer.put(address, ref, BIG)
        request = data_pb2.FetchRequest(job_id="j", digest=ref.digest, offset=len(BIG) + 1)
        with pytest.raises(aio.AioRpcError) as raised:
            await transfer.stub(address).Fetch(request, metadata=status.auth_metadata(TOKEN)).read()
        assert isinstance(status.from_rpc(raised.value), InvalidInput)


async def test_data_service_says_where_it_cannot_listen() -> None:
    with pytest.raises(Unavailable, match=r"203\.0\.113\.1"):
        await DataServer(Holder(), TOKEN, "203.0.113.1").start()


def test_holder_is_bounded_and_forgets_with_the_job() -> None:
    holder = Holder(limit_bytes=10)
    holder.keep(JOB, "a", b"12345")
    holder.keep(JOB, "a", b"12345")
    holder.keep(JobId("k"), "a", b"12345")
    holder.keep(JOB, "b", b"54321")
    assert holder.held_bytes == 10
    with pytest.raises(Overloaded, match="AGENT_HELD_BYTES_MAX"):
        holder.keep(JOB, "c", b"1")
    holder.release(JOB)
    holder.release(JOB)
    assert (holder.held_bytes, holder.jobs) == (5, ("k",))
    assert (holder.get(JobId("k"), "a"), holder.any("a"), holder.any("b")) == (b"12345", b"12345", None)
    with pytest.raises(NotFound):
        holder.get(JOB, "a")
    holder.release(JobId("k"))
    assert (holder.held_bytes, holder.jobs, holder.any("a")) == (0, (), None)


async def test_long_work_leaves_the_loop() -> None:
    import threading

    here = threading.get_ident()
    assert await off_loop(1, threading.get_ident) == here
    assert await off_loop(limits.OFF_LOOP_BYTES_MIN, threading.get_ident) != here
    assert values.digest(b"") == named(b"").digest


@given(chunk=st.binary(max_size=300), times=st.sampled_from([1, 1_000]), packed=st.booleans())
def test_chunks_are_framed_as_protobuf_does_it(chunk: bytes, times: int, packed: bool) -> None:
    chunk *= times
    wanted = data_pb2.FetchResponse(packed=chunk) if packed else data_pb2.FetchResponse(chunk=chunk)
    message = chunkwire.frame(chunkwire.Packed(chunk) if packed else chunk)
    assert data_pb2.FetchResponse.FromString(message) == wanted
    assert unframed(message) == unframed(wanted.SerializeToString()) == (packed and bool(chunk), chunk)


@given(message=st.binary(max_size=40))
def test_any_message_is_read_as_protobuf_reads_it(message: bytes) -> None:
    try:
        wanted = data_pb2.FetchResponse.FromString(message)
    except DecodeError:
        wanted = None
    if wanted is None or (wanted.chunk and wanted.packed):
        with pytest.raises(InvalidInput):
            chunkwire.unframe(message)
    else:
        assert unframed(message) == (bool(wanted.packed), wanted.packed or wanted.chunk)


def test_message_has_one_chunk() -> None:
    with pytest.raises(InvalidInput, match="one of them"):
        chunkwire.unframe(data_pb2.FetchResponse(chunk=b"a", packed=b"b").SerializeToString())


def unframed(message: bytes) -> tuple[bool, bytes]:
    """Whether the chunk of a message is packed, and its bytes."""
    found = chunkwire.unframe(message)
    return (True, bytes(found.data)) if isinstance(found, chunkwire.Packed) else (False, bytes(found))
