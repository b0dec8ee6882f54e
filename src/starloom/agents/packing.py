"""Chunks of values packed by zstd and unpacked, where this machine has it; every chunk is a frame of its own.

`agents.compression` decides which. Where the package is missing, nothing is offered, and everything comes as it is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starloom.agents.chunkwire import Packed
from starloom.agents.compression import ZSTD, Trial
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch

try:
    import zstandard
except ImportError:
    CODINGS: tuple[str, ...] = ()
else:
    CODINGS = (ZSTD,)
"""What can be packed and unpacked here."""


async def packed(
    chunks: AsyncIterator[Data], codings: Iterable[str], bytes_per_second: float
) -> AsyncIterator[Data | Packed]:
    """The chunks of a value, those of them packed that come sooner so, for a reader that takes `codings` on such a link."""
    if bytes_per_second <= 0 or ZSTD not in CODINGS or ZSTD not in codings:
        async for chunk in chunks:
            yield chunk
        return
    trial = Trial(bytes_per_second)
    compressor = zstandard.ZstdCompressor(level=trial.level, write_content_size=True)
    async for chunk in chunks:
        if not len(chunk) or not trial.tries():
            yield chunk
            continue
        # In a thread: half a chunk takes longer than an event loop may be held up.
        packed_chunk, seconds = await asyncio.to_thread(_pack, compressor, chunk)
        yield Packed(packed_chunk) if trial.tried(len(chunk), len(packed_chunk), seconds) else chunk


def unpack(chunk: Packed, most_bytes: int) -> memoryview:
    """What is in a packed chunk: no more than `most_bytes` and CHUNK_BYTES, of which nothing is unpacked to find out.

    Raises DigestMismatch where it would be more, does not say how much, or is no zstd frame.
    """
    if not CODINGS:
        raise DigestMismatch("a chunk came packed, which was not asked for: zstandard is not installed here")
    most_bytes = min(most_bytes, limits.CHUNK_BYTES)
    try:
        size = zstandard.get_frame_parameters(chunk.data).content_size
        if not 0 < size <= most_bytes:
            raise DigestMismatch(f"a packed chunk says that it has {size} bytes, not 1 to {most_bytes}")
        # It allocates what the frame says, which is within bounds, and fails where there is more.
        found = zstandard.ZstdDecompressor().decompress(chunk.data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DigestMismatch(f"a packed chunk cannot be unpacked: {error}") from error
    return memoryview(found)


def _pack(compressor: Any, chunk: Data) -> tuple[bytes, float]:
    began = time.perf_counter()
    found: bytes = compressor.compress(chunk)
    return found, time.perf_counter() - began
