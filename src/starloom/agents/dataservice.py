"""The server's side of the Data service: an agent's held values, or the orchestrator's job store."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from starloom.agents import status, wire
from starloom.agents.sharedmemory import Arena, boot_id
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Problem, StarloomError, Unavailable
from starloom.dag.ids import JobId
from starloom.dag.values import ValueRef
from starloom.v1 import data_pb2, data_pb2_grpc


class ValueSource(Protocol):
    """Where values are read from."""

    def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes | memoryview]:
        """The value's bytes from `offset` on, in parts of any size up to CHUNK_BYTES.

        Raises NotFound where the job has no such value here, and InvalidInput for an offset beyond its end.
        """
        ...


class ValueSink(Protocol):
    """Where values are stored."""

    async def put(self, ref: ValueRef, chunks: AsyncIterator[bytes]) -> ValueRef:
        """Stores the chunks, which are no more than `ref.bytes`, durably, and returns the reference to them.

        Raises DigestMismatch where they are fewer, or others, than `ref` names; nothing is kept then.
        """
        ...


class DataService(data_pb2_grpc.DataServiceServicer):
    """Serves a source, and takes values into a sink where there is one. Every request is checked."""

    def __init__(self, source: ValueSource, sink: ValueSink | None = None, arena: Arena | None = None) -> None:
        self._source = source
        self._sink = sink
        self._arena = arena

    async def Fetch(  # noqa: N802
        self, request: data_pb2.FetchRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[data_pb2.FetchResponse]:
        async with status.reporting(context):
            if not request.job_id:
                raise InvalidInput([Problem("job_id", "is empty; name the job that the value belongs to")])
            digest = wire.digest_from_wire(request.digest)
            async for chunk in self._source.read(JobId(request.job_id), digest, request.offset):
                yield data_pb2.FetchResponse(chunk=bytes(chunk))

    async def Arena(  # noqa: N802
        self, request: data_pb2.ArenaRequest, context: aio.ServicerContext[Any, Any]
    ) -> data_pb2.ArenaResponse:
        if self._arena is None:
            return data_pb2.ArenaResponse()
        return data_pb2.ArenaResponse(boot_id=boot_id(), name=self._arena.name, nonce=self._arena.nonce)

    async def Put(  # noqa: N802
        self, request_iterator: AsyncIterator[data_pb2.PutRequest], context: aio.ServicerContext[Any, Any]
    ) -> data_pb2.PutResponse:
        async with status.reporting(context):
            if self._sink is None:
                raise StarloomError("this data service only gives values out; put them to the orchestrator's")
            first = await anext(aiter(request_iterator), None)
            if first is None or not first.HasField("ref"):
                raise InvalidInput([Problem("ref", "is missing in the first message; say what follows")])
            ref = wire.ref_from_wire(first.ref, "ref")
            stored = await self._sink.put(ref, _announced(ref, first, request_iterator))
            return data_pb2.PutResponse(ref=wire.ref_to_wire(stored))
        raise AssertionError("reporting ends the call")


async def _announced(
    ref: ValueRef, first: data_pb2.PutRequest, more: AsyncIterator[data_pb2.PutRequest]
) -> AsyncIterator[bytes]:
    """The chunks of a Put; raises DigestMismatch as soon as they are more than was announced."""
    got = len(first.chunk)
    if got:
        yield _within(ref, got, first.chunk)
    async for message in more:
        if message.HasField("ref"):
            raise InvalidInput([Problem("ref", "came twice; only the first message has it")])
        got += len(message.chunk)
        yield _within(ref, got, message.chunk)


def _within(ref: ValueRef, got: int, chunk: bytes) -> bytes:
    if len(chunk) > limits.CHUNK_BYTES:
        what = f"has {len(chunk)} bytes, over CHUNK_BYTES = {limits.CHUNK_BYTES}"
        raise InvalidInput([Problem("chunk", what)])
    if got > ref.bytes:
        raise DigestMismatch(f"value {ref.digest[:12]} was announced with {ref.bytes} bytes, but {got} came")
    return chunk


class DataServer:
    """A gRPC server with the Data service of one agent, and the health service. Only loopback unless told otherwise."""

    def __init__(
        self,
        source: ValueSource,
        token: str,
        host: str = "127.0.0.1",
        sink: ValueSink | None = None,
        arena: Arena | None = None,
    ) -> None:
        self._host = host
        self._server = aio.server(interceptors=[status.TokenCheck(token)], options=status.server_options())
        data_pb2_grpc.add_DataServiceServicer_to_server(DataService(source, sink, arena), self._server)  # type: ignore[no-untyped-call]
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> str:
        """Listens on a free port; returns `host:port`. Raises Unavailable if the host has no such address."""
        try:
            port = self._server.add_insecure_port(f"{self._host}:0")
        except RuntimeError as error:
            raise Unavailable(f"the data service cannot listen on {self._host}: {error}") from error
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        return f"{self._host}:{port}"

    async def stop(self) -> None:
        """Ends at once what is still being fetched."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(None)
