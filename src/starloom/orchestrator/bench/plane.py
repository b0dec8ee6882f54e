"""The data plane without jobs: a process that makes tensors and holds them, as an agent would, and this one, which reads.

Beside it, between the same two processes: a raw gRPC stream of the same bytes; and what copying them once takes.
"""

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc.aio
import msgspec
import numpy as np

from starloom.agents import sharedmemory, values
from starloom.agents.dataservice import DataServer
from starloom.agents.holder import Holder
from starloom.agents.neighbours import Neighbours
from starloom.agents.stages.tensors import next_tensor
from starloom.agents.status import channel_options, server_options
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.dag.values import PortType, ValueRef
from starloom.orchestrator.bench.shapes import Form, Work

PLANE: Final = "starloom-plane"
NETWORK: Final = "starloom-network"
STREAM: Final = "grpc-stream"
MEMCPY: Final = "memcpy"
RAW_CHUNK_BYTES: Final = 512 * 1024
"""The fastest of 64 KiB to 8 MiB, on average."""

_SERVICE: Final = "starloom.bench.Plane"
_JOB: Final = JobId("bench")
_TOKEN: Final = "bench"
_PAGE: Final = 4096
_MOVES_MIN: Final = 3
_MOVES_MAX: Final = 30
_MOVED_BYTES: Final = 100_000_000


class PlaneContender:
    """One way to have a value here that the other process makes: `move` takes its size, and gives the seconds."""

    def __init__(self, name: str, runner: asyncio.Runner, move: Callable[[int], Coroutine[Any, Any, float]]) -> None:
        self.name = name
        self._runner = runner
        self._move = move

    def does(self, work: Work) -> bool:
        """One value from one worker to the other."""
        return work.form is Form.CHAIN and work.size == 1 and work.value_bytes > 0

    def seconds(self, work: Work) -> float:
        """The mean of as many moves as make up some MB, after one that does not count, since the others had their turns."""
        return self._runner.run(self._mean(work.value_bytes))

    async def _mean(self, size: int) -> float:
        await self._move(size)
        times = max(_MOVES_MIN, min(_MOVES_MAX, _MOVED_BYTES // size))
        return sum([await self._move(size) for _ in range(times)]) / times


class _Reader:
    """This process's end."""

    def __init__(self, channel: Any, address: str) -> None:
        self._address = address
        self._maker = channel.stream_stream(f"/{_SERVICE}/Make")()
        self._give = channel.unary_stream(f"/{_SERVICE}/Give")
        self._transfer = Transfer(_TOKEN)
        self._neighbours = Neighbours(self._transfer)
        self._arena = sharedmemory.open_arena(limits.AGENT_ARENA_BYTES_MAX)
        self._source = np.zeros(0, np.uint8)
        self._target = np.zeros(0, np.uint8)

    async def plane(self, size: int) -> float:
        """From asking for a tensor until every page of it was read: made, written, hashed, found, read."""
        began = time.perf_counter()
        ref = await self._made(size)
        data = await self._neighbours.read(self._address, _JOB, ref) if ref.inline is None else ref.inline
        _read(data if data is not None else await self._transfer.fetch(self._address, _JOB, ref, self._arena))
        return time.perf_counter() - began

    async def network(self, size: int) -> float:
        """A tensor that is there, fetched over gRPC as from another host, verified."""
        ref = await self._made(size)
        # Small values travel in the message that tells of them; here all of them are fetched.
        ref = msgspec.structs.replace(ref, inline=None)
        began = time.perf_counter()
        _read(await self._transfer.fetch(self._address, _JOB, ref, self._arena))
        return time.perf_counter() - began

    async def stream(self, size: int) -> float:
        """As many bytes by a raw stream, joined to one value, as a reader needs it; not verified."""
        began = time.perf_counter()
        chunks = []
        call = self._give(str(size).encode())
        while (chunk := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            chunks.append(chunk)
        _read(b"".join(chunks))
        return time.perf_counter() - began

    async def memcpy(self, size: int) -> float:
        """One copy, both ends warm."""
        if len(self._source) != size:
            self._source, self._target = (np.ones(size, np.uint8) for _ in range(2))
        began = time.perf_counter()
        np.copyto(self._target, self._source)
        return time.perf_counter() - began

    async def close(self) -> None:
        await self._transfer.close()
        if self._arena is not None:
            self._arena.close()

    async def _made(self, size: int) -> ValueRef:
        await self._maker.write(str(size).encode())
        return msgspec.json.decode(await self._maker.read(), type=ValueRef)


@contextmanager
def open_plane() -> Iterator[list[PlaneContender]]:
    """Starts the other process; leaving the context ends it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        with asyncio.Runner() as runner:
            port, address = here.recv()
            channel = runner.run(_connect(port))
            reader = runner.run(_reader(channel, address))
            ways = {PLANE: reader.plane, NETWORK: reader.network, STREAM: reader.stream, MEMCPY: reader.memcpy}
            try:
                yield [PlaneContender(name, runner, move) for name, move in ways.items()]
            finally:
                runner.run(reader.close())
                runner.run(channel.close())
    finally:
        here.close()
        process.join()


def _read(data: bytes | memoryview) -> None:
    np.frombuffer(data, np.uint8)[::_PAGE].sum(dtype=np.uint64)


async def _connect(port: int) -> Any:
    address = f"127.0.0.1:{port}"
    channel: Any = grpc.aio.insecure_channel(address, options=channel_options(address))
    await channel.channel_ready()
    return channel


async def _reader(channel: Any, address: str) -> _Reader:
    return _Reader(channel, address)


def _serve(pipe: Any) -> None:
    asyncio.run(_serve_until_closed(pipe))


async def _serve_until_closed(pipe: Any) -> None:
    arena = sharedmemory.open_arena(limits.AGENT_ARENA_BYTES_MAX)
    holder = Holder(arena=arena)
    data = DataServer(holder, _TOKEN, arena=arena)
    given = b""

    async def make(sizes: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        last: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        async for size in sizes:
            last = next_tensor(int(size), last)
            found, meta = values.encode_into(arena, PortType.TENSOR, last, "value")
            ref = values.refer(PortType.TENSOR, found, meta, "maker")
            holder.release(_JOB)
            holder.keep(_JOB, ref.digest, found)
            yield msgspec.json.encode(ref)

    async def give(size: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal given
        if len(given) != int(size):
            given = next_tensor(int(size), None).tobytes()
        for start in range(0, len(given), RAW_CHUNK_BYTES):
            yield given[start : start + RAW_CHUNK_BYTES]

    server = grpc.aio.server(options=server_options())
    handlers = {
        "Make": grpc.stream_stream_rpc_method_handler(make),
        "Give": grpc.unary_stream_rpc_method_handler(give),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send((port, await data.start()))
    # The pipe ends with the process that started this one.
    await asyncio.to_thread(pipe.poll, None)
    await server.stop(None)
    await data.stop()
    if arena is not None:
        arena.close()
