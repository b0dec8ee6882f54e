"""Video as a stream of frames, and faces in each frame that there is time for."""

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

import cv2

from starloom.agents.stage import Chunk, Models, StageCall, StreamStage
from starloom.agents.stages.faces import FILES, MODEL, PARAMS, find_faces
from starloom.agents.stages.figures import tell_times
from starloom.agents.stages.image import Image, shrink
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Full, Port, PortType

_FRAMES_PER_SECOND: Final = 25.0
"""For a file that does not say how fast it plays."""


class VideoFrames(StreamStage):
    """A video file as a camera would give it: a frame at a time, each when it is due."""

    spec = KindSpec(
        name="video.frames",
        about="Plays a video file as a stream of frames, at the pace of a camera",
        inputs={"data": Port(PortType.BYTES)},
        outputs={"frames": Port(PortType.IMAGE, stream=True)},
        params={
            "pace": Param(type="number", default=1.0, about="times real time, up to 1000; 0 waits for nothing"),
            "max_side": Param(
                type="integer", default=640, about="pixels; frames with a longer side are scaled down to it; 0 keeps it"
            ),
            "repeat": Param(type="integer", default=1, about="how often the file is played, 1 to 1000"),
        },
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=3.0, chunk_seconds=0.005, memory_bytes=64 * 1024 * 1024),
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        pace, max_side, repeat = (call.params[name] for name in ("pace", "max_side", "repeat"))
        if not 0 <= pace <= 1000 or max_side < 0 or not 1 <= repeat <= 1000:
            raise StageError(
                f"video.frames: pace {pace} is 0 to 1000, max_side {max_side} 0 or more, repeat {repeat} 1 to 1000"
            )
        loop = asyncio.get_running_loop()
        began = loop.time()
        number, rate = 0, _FRAMES_PER_SECOND
        with tempfile.NamedTemporaryFile(prefix="starloom-video-") as file:
            # OpenCV reads video from files only.
            await call.compute(_write, file, call.inputs["data"])
            for _ in range(repeat):
                reader = await call.compute(_open, file.name)
                rate = reader.get(cv2.CAP_PROP_FPS) or _FRAMES_PER_SECOND
                try:
                    while (image := await call.compute(_frame, reader, max_side)) is not None:
                        if pace:
                            await asyncio.sleep(max(0.0, began + number / rate / pace - loop.time()))
                        yield Chunk("frames", image, at=number / rate)
                        number += 1
                finally:
                    reader.release()
        if not number:
            raise StageError("the video has no frames that can be read; record it again")


def _write(file: Any, data: bytes) -> None:
    if not data:
        raise StageError("the video has 0 bytes; give an MP4, MKV, WebM or AVI file")
    file.write(data)
    file.flush()


def _open(path: str) -> Any:
    reader = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    if not reader.isOpened():
        raise StageError("the bytes are no video file that can be read, such as MP4, MKV, WebM or AVI")
    pixels = int(reader.get(cv2.CAP_PROP_FRAME_WIDTH)) * int(reader.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if pixels > limits.IMAGE_PIXELS_MAX:
        raise StageError(
            f"a frame has {pixels} pixels, over IMAGE_PIXELS_MAX = {limits.IMAGE_PIXELS_MAX}; scale the video down"
        )
    return reader


def _frame(reader: Any, max_side: int) -> Image | None:
    there, image = reader.read()
    return shrink(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), max_side) if there else None


class WatchFaces(StreamStage):
    """Finds faces in the newest frame there is, and then in the newest there is by then: what came between is dropped.

    `faces` has `{frame, faces}` for each frame that was looked at, `frame` counting from 0 in what the camera gave.
    `summary` counts the frames seen and dropped, and says how long one took: median, 95th percentile and most.
    """

    spec = KindSpec(
        name="vision.watch",
        about="Finds faces in a stream of frames, the newest first; frames that come too fast are dropped and counted",
        inputs={"frames": Port(PortType.IMAGE, stream=True, full=Full.LATEST)},
        outputs={"faces": Port(PortType.JSON, stream=True), "summary": Port(PortType.JSON)},
        params=PARAMS,
        targets=("cpu", "npu"),
        models=(MODEL,),
        tier=Tier.EDGE,
        deterministic=False,
        # a frame is what `vision.faces` takes for a picture
        cost=Cost(run_seconds=3.0, chunk_seconds=0.08, load_seconds=0.2, memory_bytes=150 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        """Loads the detector."""
        models.session(MODEL, FILES[target], target=target)

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        frames = call.inputs["frames"]
        seconds: list[float] = []
        async for received in frames:
            began = time.monotonic()
            found = await call.compute(find_faces, call, received.value)
            seconds.append(time.monotonic() - began)
            yield Chunk("faces", {"frame": received.offset, "faces": found}, at=received.at)
        times = tell_times(call, "frame", seconds)
        yield Chunk("summary", {"seen": len(seconds), "dropped": frames.dropped, **times})
