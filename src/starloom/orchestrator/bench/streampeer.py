"""A raw bidirectional gRPC stream between two processes: what one message between two agents costs at the least."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from starloom.agents.status import channel_options, server_options
from starloom.orchestrator.bench.shapes import Shape

_METHOD = "/starloom.bench.Stream/Pass"
_SERVICE, _NAME = "starloom.bench.Stream", "Pass"
_MESSAGE = b"x" * 100


class StreamRunner:
    """One open stream. A chain over two agents is a message for each stage: to the other process, and back."""

    def __init__(self, runner: asyncio.Runner, stream: Any) -> None:
        self._runner = runner
        self._stream = stream

    def run(self, graph: Shape) -> None:
        """See `peerhost.Runner`."""
        self._runner.run(self._pass(len(graph.upstreams)))

    async def _pass(self, messages: int) -> None:
        for _ in range(max(1, messages // 2)):
            await self._stream.write(_MESSAGE)
            await self._stream.read()


@contextmanager
def open_peers() -> Iterator[dict[str, StreamRunner]]:
    """Starts the other process, and the stream to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        with asyncio.Runner() as runner:
            channel, stream = runner.run(_connect(here.recv()))
            yield {"grpc-stream": StreamRunner(runner, stream)}
            runner.run(channel.close())
    finally:
        here.close()
        process.join()


async def _connect(port: int) -> tuple[Any, Any]:
    channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options())
    await channel.channel_ready()
    return channel, channel.stream_stream(_METHOD)()


def _serve(pipe: Any) -> None:
    asyncio.run(_serve_until_closed(pipe))


async def _serve_until_closed(pipe: Any) -> None:
    server = grpc.aio.server(options=server_options())
    handler = grpc.stream_stream_rpc_method_handler(_pass_back)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_NAME: handler}),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    # The pipe ends with the process that started this one.
    await asyncio.to_thread(pipe.poll, None)
    await server.stop(None)


async def _pass_back(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message
