"""What a fetch costs over a link between two network namespaces: packed beside plain, and plain beside a raw gRPC stream.

Needs root, ip and tc. Makes two namespaces of its own, joined by a veth pair, and removes them. Prints medians of ratios,
taken in turns in one run: over 1 means that packed is sooner than plain, or a fetch than the raw stream.

    python tools/links.py packed [repetitions] [Mbit/s,...]
    python tools/links.py raw [repetitions] [bytes,...]
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import grpc.aio
import msgspec
import numpy as np
import soundfile

from starloom.agents import values
from starloom.agents.compression import LinkSpeeds
from starloom.agents.dataservice import DataServer
from starloom.agents.holder import Holder
from starloom.agents.sharedmemory import open_arena
from starloom.agents.status import channel_options, server_options
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.dag.values import PortType, ValueRef

ROOT = Path(__file__).parents[1]
JOB = JobId("links")
TOKEN = "links"
HOSTS = ("10.77.0.1", "10.77.0.2")
RAW_CHUNKS_BYTES = (256 * 1024, 512 * 1024, 1024 * 1024)
Way = Callable[[], Awaitable[Any]]
GIVE = "/starloom.links/Give"
BURST = "128kb"
"""More than the largest packet that the kernel hands on in one piece."""


@contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """Two joined network namespaces."""
    names = (f"links-{os.getpid()}-a", f"links-{os.getpid()}-b")
    ends = (f"lk{os.getpid()}a", f"lk{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for name, end, host in zip(names, ends, HOSTS, strict=True):
            ip("-n", name, "addr", "add", f"{host}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def shape(namespace: str, mbit: str) -> None:
    """What leaves the holder's namespace goes at that rate."""
    end = f"lk{namespace.split('-')[1]}a"
    rate = ["root", "tbf", "rate", f"{mbit}mbit", "burst", BURST, "latency", "100ms"]
    subprocess.run(["ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", end, *rate], check=True)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(what: str = "packed", repeat: str = "7", over: str = "") -> None:
    sys.stderr.write(f"load average {os.getloadavg()[0]:.1f}\n")
    with namespaces() as (a, b):
        here = [sys.executable, __file__]
        with subprocess.Popen(["ip", "netns", "exec", a, *here, "serve"], stdin=-1, stdout=-1, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            told = server.stdout.readline().strip()
            try:
                for each in over.split(",") if over else (["20", "50", "100"] if what == "packed" else ["1000000"]):
                    if what == "packed":
                        shape(a, each)
                    subprocess.run(["ip", "netns", "exec", b, *here, f"measure-{what}", told, repeat, each], check=True)
            finally:
                server.stdin.close()
    sys.stderr.write(f"load average {os.getloadavg()[0]:.1f}\n")


def real_values() -> dict[str, tuple[PortType, Any]]:
    """Two seconds to half a minute of read speech as it is recognised, a photograph, and embeddings."""
    speech = [soundfile.read(path, dtype="float32")[0] for path in sorted((ROOT / "tests/data/speech").glob("*.flac"))]
    photograph = cv2.imread(str(ROOT / "src/starloom/agents/data/calibration/astronaut.jpg"))
    assert photograph is not None
    noise = np.random.default_rng(0).standard_normal((1_000, 384)).astype(np.float32)
    return {
        "speech": (PortType.AUDIO, values.Audio(np.concatenate(speech), 16_000)),
        "photograph": (PortType.IMAGE, photograph),
        "embeddings": (PortType.TENSOR, noise),
    }


async def serve() -> None:
    """Holds values, and gives as many bytes as one asks for by a raw stream, until standard input ends."""
    arena = open_arena(limits.AGENT_ARENA_BYTES_MAX)
    holder = Holder(arena=arena)
    refs = {}
    sizes = {str(size): (PortType.BYTES, np.random.default_rng(1).bytes(size)) for size in (10**6, 10**7, 10**8)}
    for name, (port_type, value) in {**real_values(), **sizes}.items():
        data, meta = values.encode_into(arena, port_type, value, name)
        refs[name] = values.refer(port_type, data, meta, "holder")
        holder.keep(JOB, refs[name].digest, data)

    async def give(wish: bytes, context: Any) -> AsyncIterator[bytes]:
        size, chunk = map(int, wish.split())
        data = holder.get(JOB, refs[str(size)].digest)
        for start in range(0, size, chunk):
            yield bytes(data[start : start + chunk])

    data_server = DataServer(holder, TOKEN, host=HOSTS[0])
    raw = grpc.aio.server(options=server_options())
    handlers = {"Give": grpc.unary_stream_rpc_method_handler(give)}
    raw.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("starloom.links", handlers),))
    port = raw.add_insecure_port(f"{HOSTS[0]}:0")
    await raw.start()
    addresses = (await data_server.start(), f"{HOSTS[0]}:{port}")
    say(msgspec.json.encode((addresses, refs)).decode())
    await asyncio.to_thread(sys.stdin.read)
    await raw.stop(None)
    await data_server.stop()
    if arena is not None:
        arena.close()


def read_told(told: str) -> tuple[tuple[str, str], dict[str, ValueRef]]:
    return msgspec.json.decode(told, type=tuple[tuple[str, str], dict[str, ValueRef]])


async def measure_packed(told: str, repeat: int, mbit: str) -> None:
    (address, _), refs = read_told(told)
    # What never knows a link takes everything plain.
    async with Transfer(TOKEN) as packed, Transfer(TOKEN, speeds=LinkSpeeds(lambda _: True)) as plain:
        for name in real_values():
            ref = refs[name]
            # The first one measures the link.
            await packed.fetch(address, JOB, ref)
            ways = [partial(each.fetch, address, JOB, ref) for each in (plain, packed)]
            plains, packeds = await in_turns(ways, repeat)
            tell(f"{mbit} Mbit/s, {name}, {ref.bytes} bytes", "packed", packeds, "plain", plains)


async def measure_raw(told: str, repeat: int, size: str) -> None:
    (address, raw_address), refs = read_told(told)
    ref = msgspec.structs.replace(refs[size], inline=None)
    arena = open_arena(limits.AGENT_ARENA_BYTES_MAX)
    channel: Any = grpc.aio.insecure_channel(raw_address, options=channel_options(raw_address))
    give: Any = channel.unary_stream(GIVE)

    async def raw(chunk: int) -> None:
        parts = []
        call = give(f"{size} {chunk}".encode())
        while (part := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            parts.append(part)
        assert len(b"".join(parts)) == int(size)

    async with Transfer(TOKEN) as transfer:
        ways: list[Way] = [partial(transfer.fetch, address, JOB, ref, arena)]
        ways += [partial(raw, chunk) for chunk in RAW_CHUNKS_BYTES]
        fetched, *raws = await in_turns(ways, repeat)
    for chunk, taken in zip(RAW_CHUNKS_BYTES, raws, strict=True):
        tell(f"{size} bytes", "fetched", fetched, f"raw in {chunk // 1024} KiB", taken)
    await channel.close(None)
    if arena is not None:
        arena.close()


async def in_turns(ways: Sequence[Way], repeat: int) -> list[list[float]]:
    """Seconds of each way, the first turn left out, each turn beginning with another one."""
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(repeat + 1):
        for place in range(len(ways)):
            way = (turn + place) % len(ways)
            began = time.perf_counter()
            await ways[way]()
            if turn:
                taken[way].append(time.perf_counter() - began)
    return taken


def tell(what: str, name: str, ours: list[float], other_name: str, other: list[float]) -> None:
    ratio = statistics.median(other) / statistics.median(ours)
    low, _, high = statistics.quantiles([1e3 * each for each in ours])
    times = f"{name} {1e3 * statistics.median(ours):.2f} ms [{low:.2f} to {high:.2f}], least {1e3 * min(ours):.2f}"
    others = f"{other_name} {1e3 * statistics.median(other):.2f} ms, least {1e3 * min(other):.2f}"
    say(f"{what}: {ratio:.2f}x; {times}; {others}; n = {len(ours)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(serve())
        case ["measure-packed", told, repeat, mbit]:
            asyncio.run(measure_packed(told, int(repeat), mbit))
        case ["measure-raw", told, repeat, size]:
            asyncio.run(measure_raw(told, int(repeat), size))
        case arguments:
            main(*arguments)
