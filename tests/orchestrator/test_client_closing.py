"""A client that is closed while others wait for what it does: they are told so, by an error of ours."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc import aio

from starloom.agents import status
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import ClientClosed
from starloom.dag.ids import JobId, Revision
from starloom.dag.values import Port, PortType, ValueRef
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob
from starloom.orchestrator.clientsync import Client

TOKEN = "secret"
JOB = JobId("job-1")
FED = Constellation(name="fed", stages={}, inputs={"lines": Port(PortType.TEXT, stream=True)})
LARGE = ValueRef(type=PortType.BYTES, bytes=limits.INLINE_VALUE_BYTES_MAX + 1, digest="0" * 64)
STREAMED = ValueRef(type=PortType.BYTES, bytes=1, digest="0" * 64, meta={"stream": True, "chunks": 1})

Waits = Callable[[AsyncClient, AsyncJob], Awaitable[Any]]


async def offsets(job: AsyncJob) -> list[int]:
    return [item.offset async for item in job.events()]


WAITS: dict[str, Waits] = {
    "call": lambda client, _: client.nodes(),
    "result": lambda _, job: job.result(),
    "result-in-time": lambda _, job: job.result(timeout=60),
    "events": lambda _, job: offsets(job),
    "fetch": lambda client, _: client.fetch(JOB, "data", LARGE),
    "chunks": lambda client, _: client.fetch(JOB, "data", STREAMED),
    "send": lambda _, job: job.send("lines", "first"),
}


class Deaf(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Lets every call in, and answers none."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.address = ""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._wait)

    async def _wait(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        self.asked.set()
        await asyncio.Event().wait()
        yield b""


@pytest.fixture
async def deaf() -> AsyncIterator[Deaf]:
    handler = Deaf()
    server = aio.server(options=status.server_options())
    server.add_generic_rpc_handlers((handler,))
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield handler
    await server.stop(None)


@pytest.mark.parametrize("name", WAITS)
async def test_whoever_waits_is_told_that_the_client_was_closed(deaf: Deaf, name: str) -> None:
    client = AsyncClient(deaf.address, TOKEN)
    waiting = asyncio.ensure_future(WAITS[name](client, AsyncJob(client, JOB, FED, Revision(1))))
    await asyncio.wait_for(deaf.asked.wait(), 20)
    await client.close()
    with pytest.raises(ClientClosed, match="closed"):
        await asyncio.wait_for(waiting, 20)


@pytest.mark.parametrize("name", WAITS)
async def test_whoever_waits_for_a_connection_is_told_that_the_client_was_closed(name: str) -> None:
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        client = AsyncClient("{}:{}".format(*server.sockets[0].getsockname()), TOKEN)
        waiting = asyncio.ensure_future(WAITS[name](client, AsyncJob(client, JOB, FED, Revision(1))))
        await asyncio.wait_for(connected.wait(), 20)
        await client.close()
        with pytest.raises(ClientClosed, match="closed"):
            await asyncio.wait_for(waiting, 20)


@pytest.mark.parametrize("name", WAITS)
async def test_a_closed_client_asks_nothing_more(deaf: Deaf, name: str) -> None:
    client = AsyncClient(deaf.address, TOKEN)
    await client.close()
    with pytest.raises(ClientClosed, match="closed"):
        await asyncio.wait_for(WAITS[name](client, AsyncJob(client, JOB, FED, Revision(1))), 20)
    assert not deaf.asked.is_set()


async def test_whoever_is_cancelled_is_cancelled_where_the_client_is_closed_as_well(deaf: Deaf) -> None:
    client = AsyncClient(deaf.address, TOKEN)
    waiting = asyncio.ensure_future(client.nodes())
    await asyncio.wait_for(deaf.asked.wait(), 20)
    waiting.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_thread_that_waits_is_told_that_another_closed_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as threads:
        client = Client("{}:{}".format(*listener.getsockname()), TOKEN)
        waiting = threads.submit(client.nodes)
        listener.settimeout(20)
        with listener.accept()[0]:
            client.close()
            with pytest.raises(ClientClosed, match="closed"):
                waiting.result(20)
