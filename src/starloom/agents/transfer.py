"""The client's side of the Data service: fetching values from whoever holds them, and putting them into the job store."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

import numpy as np
from blake3 import blake3
from grpc import aio

from starloom.agents import chunkwire, packing, status, wire
from starloom.agents.chunkwire import Packed
from starloom.agents.compression import LinkSpeeds
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.values import Data, Room, check, verify
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Problem, StarloomError, Unavailable
from starloom.dag.ids import JobId
from starloom.dag.values import ValueRef
from starloom.v1 import data_pb2, data_pb2_grpc

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_CHUNKS_TOGETHER: Final = 4
_CHUNKS_WAITING_MAX: Final = 16
_SERVICE: Final = data_pb2.DESCRIPTOR.services_by_name["DataService"].full_name
_FETCH: Final = f"/{_SERVICE}/Fetch"
_READ: Final = f"/{_SERVICE}/Read"


async def off_loop(
    size: int, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """`function(...)`, whose time grows with `size` bytes: in a thread where that would hold up the event loop."""
    if size < limits.OFF_LOOP_BYTES_MIN:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


class Transfer:
    """Fetches and puts values by one channel for each address, made when first needed. Close it in the end.

    `speeds` says what may come packed.
    """

    def __init__(self, token: str, faults: FaultLayer | None = None, speeds: LinkSpeeds | None = None) -> None:
        self._faults = faults
        self._speeds = LinkSpeeds() if speeds is None else speeds
        #: what every call carries, to be let in
        self.metadata = status.auth_metadata(token)
        self._channels: dict[str, aio.Channel] = {}
        self._fetches: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all transfers and channels."""
        channels, self._channels = list(self._channels.values()), {}
        self._fetches.clear()
        for channel in channels:
            await channel.close(None)

    async def fetch(self, address: str, job: JobId, ref: ValueRef, room: Room | None = None) -> Data:
        """The bytes that `ref` names, verified. After a break it goes on from the last byte, as often as that helps.

        Large ones are written to `room`, if it has room, and are hashed while they come.

        Raises NotFound where they are not any more, Unavailable, and DigestMismatch for other bytes.
        """
        if ref.inline is not None:
            return verify(ref, ref.inline)
        if ref.bytes > limits.VALUE_BYTES_MAX:
            what = f"has {ref.bytes} bytes, over VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}"
            raise InvalidInput([Problem(f"value {ref.digest[:12]}", what)], "a value is too large")
        receiving = _Receiving(ref, room)
        while True:
            before = receiving.got
            try:
                chunks = self._chunks(address, job, ref, before)
                if self._faults is not None:
                    chunks = self._faults.fetched(address, chunks)
                async for chunk in chunks:
                    await receiving.add(chunk)
                break
            except Unavailable:
                if receiving.got == before:
                    raise
        return await receiving.end()

    async def put(self, address: str, ref: ValueRef, data: Data) -> ValueRef:
        """Stores bytes in the job store at `address`; returns once they are durable, with the reference to them.

        Raises Unavailable, Overloaded, and DigestMismatch where `data` is not what `ref` names.
        """
        if self._faults is not None:
            await self._faults.reaches(address)
        call = self.stub(address).Put(metadata=self.metadata)
        end = status.CallEnd(call)
        try:
            # Not by an iterator of requests: grpc.aio would tell a call that fails under one as cancelled.
            with suppress(*status.CALL_OVER):
                for part in _parts(ref, data):
                    await call.write(part)
                await call.done_writing()
            response = await call
        except aio.AioRpcError as error:
            raise _at(address, await end.error()) from error
        finally:
            call.cancel()
        return wire.ref_from_wire(response.ref, "ref")

    async def arena(self, address: str) -> data_pb2.ArenaResponse:
        """What the agent at `address` says of its shared memory. Raises Unavailable, StarloomError."""
        try:
            request = data_pb2.ArenaRequest()
            found: data_pb2.ArenaResponse = await self.stub(address).Arena(
                request, metadata=self.metadata, timeout=limits.TRANSFER_STALL_SECONDS
            )
            return found
        except aio.AioRpcError as error:
            raise _at(address, status.from_rpc(error)) from error

    async def _chunks(self, address: str, job: JobId, ref: ValueRef, offset: int) -> AsyncIterator[memoryview]:
        speed = self._speeds.wish(address, ref.type, time.monotonic_ns())
        request = data_pb2.FetchRequest(job_id=job, digest=ref.digest, offset=offset)
        if speed and packing.CODINGS:
            request.codings.extend(packing.CODINGS)
            request.bytes_per_second = speed
        coming = _Coming(address, self._speeds)
        call = self._fetch(address)(request, metadata=self.metadata)
        try:
            # One read beyond the last byte: the holder may send more than it should, or end with an error.
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(None) as stall:
                while True:
                    stall.reschedule(loop.time() + limits.TRANSFER_STALL_SECONDS)
                    message = await call.read()
                    if message is aio.EOF:  # type: ignore[attr-defined]
                        coming.ended()
                        break
                    chunk = chunkwire.unframe(message)
                    coming.came(chunk)
                    if isinstance(chunk, Packed):
                        chunk = packing.unpack(chunk, ref.bytes - offset)
                    offset += len(chunk)
                    if offset > ref.bytes:
                        what = f"value {ref.digest[:12]} at {address} has more than its {ref.bytes} bytes"
                        raise DigestMismatch(what)
                    stall.reschedule(None)
                    yield chunk
        except TimeoutError as error:
            stalled = f"{address} sent nothing for TRANSFER_STALL_SECONDS = {limits.TRANSFER_STALL_SECONDS:g}"
            raise Unavailable(stalled) from error
        except aio.AioRpcError as error:
            raise _at(address, status.from_rpc(error)) from error
        finally:
            call.cancel()

    def _fetch(self, address: str) -> Any:
        """The call that fetches, whose messages come as they are."""
        call = self._fetches.get(address)
        if call is None:
            call = self._fetches[address] = self._channel(address).unary_stream(
                _FETCH, request_serializer=data_pb2.FetchRequest.SerializeToString, response_deserializer=None
            )
        return call

    def reading(self, address: str) -> Any:
        """A call of Read to the Data service at an address, whose messages come as they are: see `streamframes`."""
        make: Any = self._channel(address).stream_stream(
            _READ, request_serializer=data_pb2.ReadRequest.SerializeToString, response_deserializer=None
        )
        return make(metadata=self.metadata)

    def stub(self, address: str) -> Any:
        """The Data service at an address, for a call with `metadata`."""
        return data_pb2_grpc.DataServiceStub(self._channel(address))  # type: ignore[no-untyped-call]

    def disturbed(self, call: Any, address: str) -> Any:
        """A bidirectional call to the Data service at an address, with what faults do to that path, if any are allowed."""
        return call if self._faults is None else self._faults.peer(call, address)

    def _channel(self, address: str) -> aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = aio.insecure_channel(address, options=status.channel_options(address))
        return channel


class _Coming:
    """How fast the chunks of one call come, from the first to the last, if all of them come plain."""

    def __init__(self, address: str, speeds: LinkSpeeds) -> None:
        self._address = address
        self._speeds = speeds
        self._first: int | None = None
        self._last = 0
        self._bytes = 0
        self._plain = True

    def came(self, chunk: memoryview | Packed) -> None:
        """A chunk has come."""
        self._last = time.monotonic_ns()
        if isinstance(chunk, Packed):
            self._plain = False
        elif self._first is None:
            # How long the first took tells of the latency and the holder as much as of the link.
            self._first = self._last
        else:
            self._bytes += len(chunk)

    def ended(self) -> None:
        """All have come."""
        if self._plain and self._first is not None:
            self._speeds.came(self._address, self._bytes, self._last - self._first, self._last)


class _Receiving:
    """The bytes of a value as they come. A thread puts them in their place and hashes them, while more are read."""

    def __init__(self, ref: ValueRef, room: Room | None) -> None:
        found = room.room(ref.bytes) if room is not None and ref.bytes >= limits.AGENT_ARENA_VALUE_BYTES_MIN else None
        self._ref = ref
        self._data = np.empty(ref.bytes, np.uint8) if found is None else found
        self._hash = blake3()
        self._placed = 0
        self._waiting: deque[memoryview] = deque()
        self._working: asyncio.Future[None] | None = None
        self.got = 0

    async def add(self, chunk: memoryview) -> None:
        """Takes what came next, no more than the value has."""
        self.got += len(chunk)
        self._waiting.append(chunk)
        if self._ref.bytes < limits.OFF_LOOP_BYTES_MIN:
            self._work()
        elif self._working is not None and not self._working.done():
            if len(self._waiting) >= _CHUNKS_WAITING_MAX:
                await self._working
        elif len(self._waiting) >= _CHUNKS_TOGETHER:
            # A hop to a thread takes as long as a chunk does there.
            self._working = asyncio.ensure_future(asyncio.to_thread(self._work))

    async def end(self) -> memoryview:
        """All that came, read-only. Raises DigestMismatch if it is not what the reference names."""
        if self._working is not None:
            await self._working
        await off_loop(sum(map(len, self._waiting)), self._work)
        check(self._ref, self.got, self._hash.hexdigest())
        self._data.flags.writeable = False
        return self._data.data

    def _work(self) -> None:
        while self._waiting:
            chunk = self._waiting.popleft()
            start, self._placed = self._placed, self._placed + len(chunk)
            # Both at once, while the chunk is in the processor's cache.
            self._data[start : self._placed] = np.frombuffer(chunk, np.uint8)
            self._hash.update(chunk)


def _parts(ref: ValueRef, data: Data) -> Iterator[data_pb2.PutRequest]:
    announced = wire.ref_to_wire(ref)
    announced.ClearField("inline")
    yield data_pb2.PutRequest(ref=announced, chunk=bytes(data[: limits.CHUNK_BYTES]))
    for start in range(limits.CHUNK_BYTES, len(data), limits.CHUNK_BYTES):
        yield data_pb2.PutRequest(chunk=bytes(data[start : start + limits.CHUNK_BYTES]))


def _at(address: str, error: StarloomError) -> StarloomError:
    return Unavailable(f"data service {address}: {error}") if type(error) is Unavailable else error
