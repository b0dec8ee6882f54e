"""Files as streams: `starloom submit FILE --stream NAME=PATH` feeds a job's input stream, in real time.

| port | a chunk | its time |
|---|---|---|
| audio | FRAME_SECONDS of a WAV file (PCM) | where it begins |
| image | a frame of a video | as the video says |
| tensor | a part along the first axis of a NumPy file | none |
| text | a line | none |
| json | a line | none |
| bytes | at most BLOCK_BYTES | none |

`-` is standard input. What has a time is sent when its time has come, `rate` times as fast; the rest as fast as it is taken.
"""

import asyncio
import sys
import wave
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.values import Port, PortType

if TYPE_CHECKING:
    from starloom.orchestrator.clientjob import AsyncJob

FRAME_SECONDS: Final = 0.032
BLOCK_BYTES: Final = 64 * 1024
STANDARD_INPUT: Final = "-"


class Source(NamedTuple):
    """What an input stream is fed with: a path, or STANDARD_INPUT."""

    name: str
    port: Port
    path: str


class Timed(NamedTuple):
    """A chunk, and its time in seconds from the beginning, if it has one."""

    value: Any
    at: float | None = None


def read_sources(constellation: Constellation, given: Sequence[str]) -> list[Source]:
    """The sources of `NAME=PATH` arguments. Raises InvalidInput with all that is wrong, before anything is sent."""
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for argument in given:
        name, equals, path = argument.partition("=")
        port = constellation.inputs.get(name)
        if not equals or not name or not path:
            problems.append(Problem("--stream", f"{argument!r} is not NAME=PATH"))
        elif port is None or not port.stream:
            streams = ", ".join(each for each, found in constellation.inputs.items() if found.stream) or "none"
            problems.append(Problem(f"inputs.{name}", f"is no input stream; there are: {streams}"))
        elif name in sources:
            problems.append(Problem(f"inputs.{name}", "is given twice"))
        elif path != STANDARD_INPUT and not Path(path).is_file():
            problems.append(Problem(f"inputs.{name}", f"{path} is no file"))
        else:
            sources[name] = Source(name, port, path)
    if sum(source.path == STANDARD_INPUT for source in sources.values()) > 1:
        problems.append(Problem("--stream", "standard input can feed only one stream"))
    if problems:
        raise InvalidInput(problems, f"the streams of {constellation.name!r} are not right")
    return list(sources.values())


async def feed(job: "AsyncJob", source: Source, rate: float) -> int:
    """Feeds one input stream from its source, and closes it; returns the number of its chunks.

    Raises InvalidInput for what cannot be read, and what `AsyncJob.send` raises.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        with _file(source) as file:
            chunks = _chunks(source, file)
            while (found := await asyncio.to_thread(next, chunks, None)) is not None:
                if found.at is not None and rate > 0:
                    await asyncio.sleep(began + found.at / rate - loop.time())
                await job.send(source.name, found.value, found.at)
    except (OSError, EOFError, ValueError, wave.Error) as error:
        what = f"{source.path} cannot be read as {source.port}: {error}"
        raise InvalidInput([Problem(f"inputs.{source.name}", what)]) from error
    return await job.close(source.name)


def _file(source: Source) -> AbstractContextManager[IO[bytes]]:
    if source.path == STANDARD_INPUT:
        return nullcontext(sys.stdin.buffer)
    return Path(source.path).open("rb")


def _chunks(source: Source, file: IO[bytes]) -> Iterator[Timed]:
    match source.port.type:
        case PortType.AUDIO:
            return _sound(file)
        case PortType.IMAGE:
            return _frames(source.path)
        case PortType.TENSOR:
            return _parts(source.path)
        case PortType.TEXT:
            return (Timed(line.decode().rstrip("\r\n")) for line in _lines(file))
        case PortType.JSON:
            return (Timed(msgspec.json.decode(line)) for line in _lines(file) if line.strip())
        case _:
            return (Timed(block) for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(limits.STREAM_CHUNK_BYTES_MAX + 1):
        if len(line) > limits.STREAM_CHUNK_BYTES_MAX:
            limit = f"STREAM_CHUNK_BYTES_MAX = {limits.STREAM_CHUNK_BYTES_MAX}"
            raise ValueError(f"a line has more bytes than {limit}")
        yield line


def _sound(file: IO[bytes]) -> Iterator[Timed]:
    from starloom.agents.values import Audio
    from starloom.orchestrator.cli.files import samples_of

    with wave.open(file, "rb") as stream:
        width, channels, rate = stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
        size = max(1, round(FRAME_SECONDS * rate))
        sent = 0
        while data := stream.readframes(size):
            samples = samples_of(data, width, channels)
            yield Timed(Audio(samples, rate), sent / rate)
            sent += len(samples)


def _frames(path: str) -> Iterator[Timed]:
    try:
        import cv2
    except ImportError:
        raise ValueError("reading a video needs OpenCV; run `pip install starloom[agent]`") from None
    import numpy as np

    video = cv2.VideoCapture(path)
    try:
        rate = video.get(cv2.CAP_PROP_FPS)
        if not video.isOpened() or not rate > 0:
            raise ValueError("is no video")
        count = 0
        while (found := video.read())[0]:
            yield Timed(np.ascontiguousarray(found[1][:, :, ::-1]), count / rate)
            count += 1
    finally:
        video.release()


def _parts(path: str) -> Iterator[Timed]:
    import numpy as np

    array = np.load(path, allow_pickle=False, mmap_mode="r")
    if not array.ndim:
        raise ValueError("is one number, and has no first axis")
    return (Timed(np.array(part)) for part in array)
