"""Video without a cluster: a real clip's frames, and the face in them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, Models, StageCall, StreamStage
from starloom.agents.stages.image import Image
from starloom.agents.stages.video import VideoFrames, WatchFaces
from starloom.dag.errors import StageError

CLIP = Path(__file__).parent.parent.parent / "examples" / "video" / "signing.mkv"
"""89 frames of 640 x 480 at 30 a second: one woman, who signs."""


class Seen(NamedTuple):
    value: Image
    offset: int
    at: float


class Camera:
    """Frames whose reader found some of them dropped."""

    dropped = 7

    def __init__(self, images: list[Image]) -> None:
        self._images = images

    async def __aiter__(self) -> AsyncIterator[Seen]:
        for number, image in enumerate(self._images):
            yield Seen(image, 10 * number, number / 3)


def call(kind: type[StreamStage], inputs: dict[str, Any], models: Models | None = None, **params: Any) -> StageCall:
    defaults = {name: param.default for name, param in kind.spec.params.items()}
    return StageCall(inputs, {**defaults, **params}, cast(Models, models), figure=FIGURES.__setitem__)


FIGURES: dict[str, float] = {}


async def played(**params: Any) -> list[tuple[float | None, Image]]:
    stage = VideoFrames().stream(call(VideoFrames, {"data": CLIP.read_bytes()}, **{"pace": 0, **params}))
    return [(chunk.at, chunk.value) async for chunk in stage]


async def test_a_clip_is_played_frame_by_frame() -> None:
    frames = await played()
    assert len(frames) == 89
    assert [at for at, _ in frames] == [number / 30 for number in range(89)]
    assert {image.shape for _, image in frames} == {(480, 640, 3)}
    # The jumper is yellow, and the partition blue: red, green and blue are where they belong.
    jumper, partition = frames[20][1][420, 330], frames[20][1][150, 550]
    assert jumper[0] > jumper[2] + 50
    assert partition[2] > partition[0] + 50


async def test_a_clip_is_scaled_and_played_again() -> None:
    frames = await played(max_side=160, repeat=2)
    assert len(frames) == 178
    assert frames[-1][0] == 177 / 30
    assert {image.shape for _, image in frames} == {(120, 160, 3)}
    np.testing.assert_array_equal(frames[0][1], frames[89][1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has 0 bytes"),
        (b"no video" * 1_000, "no video file that can be read"),
        (CLIP.read_bytes()[:600], "no frames that can be read|no video file"),
    ],
)
async def test_what_is_no_video_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        async for _ in VideoFrames().stream(call(VideoFrames, {"data": data})):
            pass


@pytest.mark.parametrize("params", [{"pace": -1}, {"pace": 1001}, {"max_side": -1}, {"repeat": 0}])
async def test_parameters_that_mean_nothing_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(StageError, match=r"video\.frames: pace .* is 0 to 1000, max_side .* repeat"):
        await played(**params)


@pytest.mark.models
@pytest.mark.parametrize("target", ["cpu", "npu"])
async def test_the_face_is_found_in_each_frame_that_is_seen(target: str) -> None:
    models = SessionPool(ModelStore(None), 8, 1).for_call(CancelToken(), target)
    images = [image for _, image in (await played())[::30]]
    made = call(WatchFaces, {"frames": Camera(images)}, models)
    given = StageCall(made.inputs, made.params, models, target=target, figure=made.figure)
    chunks = [chunk async for chunk in WatchFaces().stream(given)]
    found = [chunk.value for chunk in chunks if chunk.port == "faces"]
    assert [one["frame"] for one in found] == [0, 10, 20]
    for one in found:
        (face,) = one["faces"]
        left, top, right, bottom = face["box"]
        assert 250 < left < right < 360
        assert 80 < top < bottom < 210
    assert [chunk.at for chunk in chunks[:3]] == [0, 1 / 3, 2 / 3]
    summary = chunks[-1].value
    assert (summary["seen"], summary["dropped"]) == (3, 7)
    assert 0 < summary["frame_seconds_median"] <= summary["frame_seconds_p95"] <= summary["frame_seconds_most"]
    assert FIGURES["frames"] == 3


async def test_nothing_to_see_gives_a_summary_all_the_same() -> None:
    chunks = [chunk async for chunk in WatchFaces().stream(call(WatchFaces, {"frames": Camera([])}))]
    assert [chunk.value for chunk in chunks] == [{"seen": 0, "dropped": 7}]
