"""Live captions without a cluster: utterances found frame by frame are those of the whole recording, and so are the words."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, Chunk, Models, StageCall, StreamStage
from starloom.agents.stages.audio import read_sound
from starloom.agents.stages.captions import Caption, Frames, Listen
from starloom.agents.stages.transcribe import Transcribe
from starloom.agents.stages.utterances import Piece, Utterances
from starloom.agents.stages.voice import FRAME_SAMPLES, RATE_HZ, DetectSpeech, speech_runs
from starloom.agents.values import Audio
from starloom.dag.errors import StageError

CLIPS = Path(__file__).parent.parent / "data" / "speech"
PADDING = 700


class Heard(NamedTuple):
    value: Any
    at: float | None = None


async def chunks(*values: Any) -> AsyncIterator[Heard]:
    for value in values:
        yield Heard(value)


async def port(stage: AsyncIterator[Chunk], name: str) -> AsyncIterator[Heard]:
    async for chunk in stage:
        if chunk.port == name:
            yield Heard(chunk.value, chunk.at)


def call(
    kind: type[StreamStage], models: Models | None = None, inputs: dict[str, Any] | None = None, **params: Any
) -> StageCall:
    defaults = {name: param.default for name, param in kind.spec.params.items()}
    return StageCall(inputs or {}, {**defaults, **params}, cast(Models, models))


def sound(frames: int) -> NDArray[np.float32]:
    """Each sample tells its place."""
    return np.arange(frames * FRAME_SAMPLES, dtype=np.float32)


def found(probabilities: list[float], samples: int | None = None, **options: int) -> list[Piece]:
    bounds = {"speech_frames": 3, "merge_frames": 4, "pause_frames": 8, "padding": PADDING} | options
    utterances = Utterances(0.5, **bounds)
    whole = sound(len(probabilities))
    pieces = []
    for number, probability in enumerate(probabilities):
        pieces += utterances.push(whole[number * FRAME_SAMPLES : (number + 1) * FRAME_SAMPLES], probability)
    return pieces + utterances.flush(len(whole) if samples is None else samples)


def joined(pieces: list[Piece]) -> list[tuple[int, int]]:
    """Each utterance as (first sample, sample after the last); its pieces follow on each other, in order."""
    spans: list[tuple[int, int]] = []
    going: list[Piece] = []
    for piece in pieces:
        if not piece.ends:
            going.append(piece)
            continue
        samples = np.concatenate([one.samples for one in going])
        first = going[0].start
        np.testing.assert_array_equal(samples, np.arange(first, first + len(samples), dtype=np.float32))
        spans.append((first, first + len(samples)))
        going = []
    assert not going, "an utterance has no end"
    return spans


@settings(deadline=None)
@for_all(spans=st.lists(st.tuples(st.integers(0, 20), st.integers(4, 12)), max_size=6), tail=st.integers(0, 20))
def test_utterances_are_the_runs_of_the_whole_recording(spans: list[tuple[int, int]], tail: int) -> None:
    probabilities = [p for quiet, loud in spans for p in [0.1] * quiet + [0.9] * loud] + [0.1] * tail
    end = len(probabilities) * FRAME_SAMPLES
    expected: list[list[int]] = []
    for first, last in speech_runs(np.array(probabilities, np.float32), 0.5, frames_min=3, pause_min=4):
        if expected and first * FRAME_SAMPLES - expected[-1][1] < 8 * FRAME_SAMPLES:
            expected[-1][1] = last * FRAME_SAMPLES
        else:
            expected.append([first * FRAME_SAMPLES, last * FRAME_SAMPLES])
    padded = [(max(first - PADDING, 0), min(last + PADDING, end)) for first, last in expected]
    assert joined(found(probabilities)) == padded


def test_a_burst_is_no_speech_and_a_pause_is_part_of_it() -> None:
    burst = [0.1] * 10 + [0.9] * 2 + [0.1] * 20
    assert found(burst) == []
    paused = [0.1] * 10 + [0.9] * 5 + [0.1] * 6 + [0.9] * 5 + [0.1] * 20
    assert joined(found(paused)) == [(10 * FRAME_SAMPLES - PADDING, 26 * FRAME_SAMPLES + PADDING)]


def test_speech_is_given_while_it_goes_on() -> None:
    utterances = Utterances(0.5, speech_frames=3, merge_frames=4, pause_frames=8, padding=0)
    given = [len(utterances.push(np.zeros(FRAME_SAMPLES, np.float32), p)) for p in [0.0, 0.9, 0.9, 0.9, 0.9, 0.4, 0.1]]
    assert given == [0, 0, 0, 1, 1, 1, 0]


def test_no_more_than_the_padding_is_kept_of_silence() -> None:
    utterances = Utterances(0.5, speech_frames=3, merge_frames=4, pause_frames=8, padding=PADDING)
    for _ in range(1_000):
        utterances.push(np.zeros(FRAME_SAMPLES, np.float32), 0.0)
    assert len(utterances._held) == 2


def test_the_last_frame_ends_where_the_sound_ends() -> None:
    probabilities = [0.1] * 5 + [0.9] * 5 + [0.1]
    assert joined(found(probabilities, samples=10 * FRAME_SAMPLES + 100)) == [
        (5 * FRAME_SAMPLES - PADDING, 10 * FRAME_SAMPLES + 100)
    ]


async def test_a_recording_is_played_in_frames() -> None:
    audio = Audio(np.linspace(0, 0.6, 1_200, dtype=np.float32), 8_000)
    stage = Frames().stream(call(Frames, inputs={"audio": audio}, pace=0))
    played = [(chunk.at, chunk.value) async for chunk in stage]
    assert [at for at, _ in played] == [0.0, 0.032, 0.064, 0.096, 0.128]
    np.testing.assert_array_equal(np.concatenate([frame.samples for _, frame in played]), audio.samples)
    assert {frame.sample_rate_hz for _, frame in played} == {8_000}


@pytest.mark.parametrize(
    ("kind", "params", "reason"),
    [
        (Frames, {"pace": -1}, "pace -1 0 to 1000"),
        (Frames, {"frame_seconds": 0}, "frame_seconds 0 must be 0.001 to 10"),
        (Listen, {"threshold": 1.0, "pause_seconds": 61}, "pause_seconds is 61.*threshold is 1.0"),
        (Caption, {"partial_seconds": -1}, "partial_seconds is -1"),
    ],
)
async def test_parameters_that_mean_nothing_are_refused(
    kind: type[StreamStage], params: dict[str, Any], reason: str
) -> None:
    inputs = {"audio": Audio(np.zeros(10, np.float32), RATE_HZ), "speech": chunks()}
    with pytest.raises(StageError, match=reason):
        async for _ in kind().stream(call(kind, inputs=inputs, **params)):
            pass


@pytest.fixture(scope="module")
def models() -> Models:
    from starloom.agents.modelstore import ModelStore

    return SessionPool(ModelStore(None), 8, 1).for_call(CancelToken(), "cpu")


def words(text: str) -> list[str]:
    return re.sub("[^a-z' ]", "", text.lower().replace("-", " ")).split()


@pytest.mark.parametrize("rate", [RATE_HZ, 8_000])
@pytest.mark.models
async def test_speech_is_found_in_frames_of_any_size_and_rate(models: Models, rate: int) -> None:
    samples, found_rate = read_sound((CLIPS / "austen-0880.flac").read_bytes())
    assert found_rate == RATE_HZ
    given = samples[:: RATE_HZ // rate]
    parts = [Audio(part, rate) for part in np.array_split(given, 37)]
    stage = Listen().stream(call(Listen, models, {"audio": chunks(*parts)}))
    pieces = [chunk.value.samples async for chunk in stage]
    whole = DetectSpeech()
    defaults = {name: param.default for name, param in whole.spec.params.items()}
    expected = whole.run(StageCall({"audio": Audio(given, rate)}, defaults, models))["audio"].samples
    assert len(pieces[-1]) == 0
    assert abs(sum(map(len, pieces)) - len(expected)) <= 2 * FRAME_SAMPLES


@pytest.mark.models
async def test_captions_end_with_the_words_of_the_whole_recording(models: Models) -> None:
    samples, rate = read_sound((CLIPS / "austen-0870.flac").read_bytes())

    async def heard() -> AsyncIterator[Heard]:
        whole = Frames().stream(call(Frames, inputs={"audio": Audio(samples, rate)}, pace=0))
        async for frame in port(whole, "frames"):
            # A microphone leaves time between its frames.
            await asyncio.sleep(0)
            yield frame

    speech = port(Listen().stream(call(Listen, models, {"audio": heard()})), "speech")
    stage = Caption().stream(call(Caption, models, {"speech": speech}))
    made = [chunk async for chunk in stage]
    captions = [chunk.value for chunk in made if chunk.port == "captions"]
    offline = Transcribe().run(StageCall({"audio": Audio(samples, rate)}, {}, models))["text"]
    assert made[-1].port == "text"
    assert words(made[-1].value) == words(offline)
    partial = [caption for caption in captions if not caption["final"]]
    assert partial, "nothing was written down before the end"
    assert partial[0]["end_seconds"] < captions[-1]["end_seconds"]
    assert [caption["utterance"] for caption in captions if caption["final"]] == list(
        range(len(captions) - len(partial))
    )


@pytest.mark.models
async def test_an_utterance_longer_than_the_models_window_is_cut(models: Models) -> None:
    samples, _ = read_sound((CLIPS / "austen-0890.flac").read_bytes())
    times = -(-31 * RATE_HZ // len(samples))
    long = np.tile(samples, times)
    pieces = [Audio(part, RATE_HZ) for part in np.array_split(long, 60)]
    stage = Caption().stream(call(Caption, models, {"speech": chunks(*pieces)}, partial_seconds=0))
    captions = [chunk.value async for chunk in stage if chunk.port == "captions"]
    assert len(captions) == 2
    assert captions[0]["end_seconds"] == pytest.approx(captions[1]["start_seconds"])
    assert captions[1]["end_seconds"] == pytest.approx(len(long) / RATE_HZ)


@pytest.mark.models
async def test_a_stream_that_breaks_leaves_no_task_behind(models: Models) -> None:
    async def breaks() -> AsyncIterator[Heard]:
        samples, rate = read_sound((CLIPS / "austen-0890.flac").read_bytes())
        yield Heard(Audio(samples, rate))
        raise StageError("the microphone was unplugged")

    before = asyncio.all_tasks()
    with pytest.raises(StageError, match="unplugged"):
        async for _ in Caption().stream(call(Caption, models, {"speech": breaks()})):
            pass
    assert asyncio.all_tasks() == before
