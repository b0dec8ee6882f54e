"""The client's side of the Data service: fetching values from whoever holds them, and putting them into the job store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from grpc import aio

from starloom.agents import status, wire
from starloom.agents.values import Data, verify
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Problem, StarloomError, Unavailable
from starloom.dag.ids import JobId
from starloom.dag.values import ValueRef
from starloom.v1 import data_pb2, data_pb2_grpc

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


async def off_loop(
    size: int, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """`function(...)`, whose time grows with `size` bytes: in a thread where that would hold up the event loop."""
    if size < limits.OFF_LOOP_BYTES_MIN:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


class Transfer:
    """Fetches and puts values by one channel for each address, made when first needed. Close it in the end."""

    def __init__(self, token: str) -> None:
        self._metadata = status.auth_metadata(token)
        self._channels: dict[str, aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all transfers and channels."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close(None)

    async def fetch(self, address: str, job: JobId, ref: ValueRef) -> bytes:
        """The bytes that `ref` names, verified. After a break it goes on from the last byte, as often as that helps.

        Raises NotFound where they are not any more, Unavailable, and DigestMismatch for other bytes.
        """
        if ref.inline is not None:
            return verify(ref, ref.inline)
        if ref.bytes > limits.VALUE_BYTES_MAX:
            what = f"has {ref.bytes} bytes, over VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}"
            raise InvalidInput([Problem(f"value {ref.digest[:12]}", what)], "a value is too large")
        chunks: list[bytes] = []
        got = 0
        while True:
            before = got
            try:
                async for chunk in self._chunks(address, job, ref, got):
                    chunks.append(chunk)
                    got += len(chunk)
                break
            except Unavailable:
                if got == before:
                    raise
        return await off_loop(ref.bytes, _join, ref, chunks)

    async def put(self, address: str, ref: ValueRef, data: Data) -> ValueRef:
        """Stores bytes in the job store at `address`; returns once they are durable, with the reference to them.

        Raises Unavailable, Overloaded, and DigestMismatch where `data` is not what `ref` names.
        """
        call = self._stub(address).Put(metadata=self._metadata)
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
            found: data_pb2.ArenaResponse = await self._stub(address).Arena(
                request, metadata=self._metadata, timeout=limits.TRANSFER_STALL_SECONDS
            )
            return found
        except aio.AioRpcError as error:
            raise _at(address, status.from_rpc(error)) from error

    async def _chunks(self, address: str, job: JobId, ref: ValueRef, offset: int) -> AsyncIterator[bytes]:
        request = data_pb2.FetchRequest(job_id=job, digest=ref.digest, offset=offset)
        call = self._stub(address).Fetch(request, metadata=self._metadata)
        try:
            # One read beyond the last byte: the holder may send more than it should, or end with an error.
            while True:
                async with asyncio.timeout(limits.TRANSFER_STALL_SECONDS):
                    message = await call.read()
                if message is aio.EOF:  # type: ignore[attr-defined]
                    break
                offset += len(message.chunk)
                if offset > ref.bytes:
                    raise DigestMismatch(f"value {ref.digest[:12]} at {address} has more than its {ref.bytes} bytes")
                yield message.chunk
        except TimeoutError as error:
            stalled = f"{address} sent nothing for TRANSFER_STALL_SECONDS = {limits.TRANSFER_STALL_SECONDS:g}"
            raise Unavailable(stalled) from error
        except aio.AioRpcError as error:
            raise _at(address, status.from_rpc(error)) from error
        finally:
            call.cancel()

    def _stub(self, address: str) -> Any:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = aio.insecure_channel(address, options=status.channel_options(address))
        return data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]


def _join(ref: ValueRef, chunks: list[bytes]) -> bytes:
    return verify(ref, b"".join(chunks))


def _parts(ref: ValueRef, data: Data) -> Iterator[data_pb2.PutRequest]:
    announced = wire.ref_to_wire(ref)
    announced.ClearField("inline")
    yield data_pb2.PutRequest(ref=announced, chunk=bytes(data[: limits.CHUNK_BYTES]))
    for start in range(limits.CHUNK_BYTES, len(data), limits.CHUNK_BYTES):
        yield data_pb2.PutRequest(chunk=bytes(data[start : start + limits.CHUNK_BYTES]))


def _at(address: str, error: StarloomError) -> StarloomError:
    return Unavailable(f"data service {address}: {error}") if type(error) is Unavailable else error
