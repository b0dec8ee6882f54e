"""The server's side of the Data service: an agent's held values, or the orchestrator's job store."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from starloom.agents import chunkwire, faultservice, packing, status, streamframes, wire, wirestreams
from starloom.agents.faultlayer import FaultLayer, HeldBack
from starloom.agents.sharedmemory import Arena, boot_id
from starloom.agents.streams.records import Credit, ReadOpen, StreamBatch, WriteOpen
from starloom.agents.values import Data
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


class StreamSource(Protocol):
    """Where streams are read from."""

    def read(self, wish: ReadOpen, told: AsyncIterator[Credit | None]) -> AsyncIterator[StreamBatch]:
        """Batches within the reader's credit, the last one with the end. The stream is waited for, if need be.

        `told` are the credits that the reader sends, and None when it wants no more chunks, but the end. Raises
        StreamGone, and InvalidInput.
        """
        ...


class StreamSink(Protocol):
    """Where streams are written to."""

    def write(self, wish: WriteOpen, parts: AsyncIterator[StreamBatch]) -> AsyncIterator[Credit]:
        """Takes a stream in: a credit at once, that says where to begin, and then as chunks are stored.

        Ends once the end is stored. Only `chunks` and `end` of the parts count. Raises InvalidInput.
        """
        ...


class AwaitSource(Protocol):
    """Where outcomes of attempts come from; as `agents.peers.Peers` has it."""

    async def serve(
        self, requests: AsyncIterator[data_pb2.AwaitRequest], context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Answers one call of Await, until its client ends it."""
        ...


class DataService(data_pb2_grpc.DataServiceServicer):
    """Serves a source, and takes values into a sink where there is one; streams likewise. Every request is checked."""

    def __init__(
        self,
        source: ValueSource,
        sink: ValueSink | None = None,
        arena: Arena | None = None,
        streams: StreamSource | None = None,
        stream_sink: StreamSink | None = None,
        awaits: AwaitSource | None = None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._arena = arena
        self._streams = streams
        self._stream_sink = stream_sink
        self._awaits = awaits

    async def Fetch(  # noqa: N802
        self, request: data_pb2.FetchRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Data | chunkwire.Packed]:
        """Yields chunks; to be served by `add_data_service`, which frames them."""
        async with status.reporting(context):
            if not request.job_id:
                raise InvalidInput([Problem("job_id", "is empty; name the job that the value belongs to")])
            digest = wire.digest_from_wire(request.digest)
            chunks = self._source.read(JobId(request.job_id), digest, request.offset)
            async for chunk in packing.packed(chunks, request.codings, request.bytes_per_second):
                yield chunk

    async def Arena(  # noqa: N802
        self, request: data_pb2.ArenaRequest, context: aio.ServicerContext[Any, Any]
    ) -> data_pb2.ArenaResponse:
        if self._arena is None:
            return data_pb2.ArenaResponse()
        return data_pb2.ArenaResponse(boot_id=boot_id(), name=self._arena.name, nonce=self._arena.nonce)

    async def Await(  # noqa: N802
        self, request_iterator: AsyncIterator[data_pb2.AwaitRequest], context: aio.ServicerContext[Any, Any]
    ) -> None:
        async with status.reporting(context):
            if self._awaits is None:
                raise StarloomError("this data service has no attempts; ask that of the agent which has them")
            await self._awaits.serve(request_iterator, context)

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

    async def Read(  # noqa: N802
        self, request_iterator: AsyncIterator[data_pb2.ReadRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[StreamBatch]:
        """Yields batches; to be served by `add_data_service`, which frames them."""
        async with status.reporting(context):
            if self._streams is None:
                raise StarloomError("this data service has no streams")
            messages = aiter(request_iterator)
            first = await anext(messages, None)
            if first is None or not first.HasField("open"):
                raise InvalidInput([Problem("open", "is missing in the first message; say what is to be read")])
            wish = wirestreams.open_from_wire(first.open)
            # Says that there is somebody: the first chunk may be a while.
            await context.send_initial_metadata(())
            async for batch in self._streams.read(wish, _told(messages)):
                yield batch
                if batch.end is not None:
                    # A reader that says how far it is in a call that is over loses what it has not read. So it ends the call.
                    await asyncio.sleep(limits.STREAM_END_SECONDS)

    async def Write(  # noqa: N802
        self, request_iterator: AsyncIterator[data_pb2.WriteRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[data_pb2.WriteResponse]:
        async with status.reporting(context):
            if self._stream_sink is None:
                raise StarloomError("this data service takes no streams in; write them to the orchestrator's")
            messages = aiter(request_iterator)
            first = await anext(messages, None)
            if first is None or not first.HasField("open"):
                raise InvalidInput([Problem("open", "is missing in the first message; say what follows")])
            wish = wirestreams.write_from_wire(first.open)
            async for credit in self._stream_sink.write(wish, _parts(messages)):
                yield data_pb2.WriteResponse(credit=wirestreams.credit_to_wire(credit))


async def _told(messages: AsyncIterator[data_pb2.ReadRequest]) -> AsyncIterator[Credit | None]:
    async for message in messages:
        match message.WhichOneof("message"):
            case "credit":
                yield wirestreams.credit_from_wire(message.credit)
            case "close":
                yield None
            case _:
                raise InvalidInput([Problem("open", "came twice; only the first message has it")])


async def _parts(messages: AsyncIterator[data_pb2.WriteRequest]) -> AsyncIterator[StreamBatch]:
    async for message in messages:
        if message.HasField("open"):
            raise InvalidInput([Problem("open", "came twice; only the first message has it")])
        yield wirestreams.part_from_wire(message)


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


def add_data_service(server: aio.Server, service: DataService) -> None:
    """Adds the Data service to a server that has not started; chunks of values and streams are serialised without protobuf."""
    data_pb2_grpc.add_DataServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    name = data_pb2.DESCRIPTOR.services_by_name["DataService"].full_name
    fetch = grpc.unary_stream_rpc_method_handler(
        service.Fetch, request_deserializer=data_pb2.FetchRequest.FromString, response_serializer=chunkwire.frame
    )
    read = grpc.stream_stream_rpc_method_handler(
        service.Read, request_deserializer=data_pb2.ReadRequest.FromString, response_serializer=streamframes.frame
    )
    # They take the place of those that were just registered.
    server.add_registered_method_handlers(  # type: ignore[attr-defined]
        name, {"Fetch": fetch, "Read": read}
    )


class DataServer:
    """A gRPC server with the Data service of one agent, and the health service. Only loopback unless told otherwise.

    With `faults` it serves what may be done to them as well.
    """

    def __init__(
        self,
        source: ValueSource,
        token: str,
        host: str = "127.0.0.1",
        sink: ValueSink | None = None,
        arena: Arena | None = None,
        streams: StreamSource | None = None,
        awaits: AwaitSource | None = None,
        faults: FaultLayer | None = None,
    ) -> None:
        self._host = host
        interceptors: list[aio.ServerInterceptor] = [status.TokenCheck(token)]  # type: ignore[type-arg]
        if faults is not None:
            interceptors.append(HeldBack(faults))
        self._server = aio.server(interceptors=interceptors, options=status.server_options())
        if faults is not None:
            faultservice.add_to(self._server, faults)
        add_data_service(self._server, DataService(source, sink, arena, streams, awaits=awaits))
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
