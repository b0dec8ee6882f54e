"""Live captions: sound as a stream of frames, its speech cut into utterances, each written down while it is spoken."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import numpy as np
import soxr
from numpy.typing import NDArray

from starloom.agents.stage import Chunk, Compute, Model, Models, StageCall, StreamStage
from starloom.agents.stages import transcribe, voice
from starloom.agents.stages.figures import tell_times
from starloom.agents.stages.utterances import Piece, Utterances, frames_of
from starloom.agents.stages.voice import FRAME_SAMPLES, RATE_HZ, FrameScorer
from starloom.agents.values import Audio
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

_WINDOW_SAMPLES: Final = transcribe.WINDOW_SECONDS * RATE_HZ
_STREAM_OF_AUDIO: Final = Port(PortType.AUDIO, stream=True)


class Frames(StreamStage):
    """A recording as a microphone would give it: short frames, each at its time."""

    spec = KindSpec(
        name="audio.frames",
        about="Plays audio as a stream of short frames, at the pace of a microphone",
        inputs={"audio": Port(PortType.AUDIO)},
        outputs={"frames": _STREAM_OF_AUDIO},
        params={
            "frame_seconds": Param(type="number", default=0.032, about="sound in a frame, 0.001 to 10"),
            "pace": Param(type="number", default=1.0, about="times real time, up to 1000; 0 waits for nothing"),
        },
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=1.0),
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        seconds, pace = call.params["frame_seconds"], call.params["pace"]
        if not 0.001 <= seconds <= 10 or not 0 <= pace <= 1000:
            raise StageError(f"audio.frames: frame_seconds {seconds} must be 0.001 to 10, pace {pace} 0 to 1000")
        audio: Audio = call.inputs["audio"]
        rate = audio.sample_rate_hz
        size = max(1, round(seconds * rate))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for start in range(0, len(audio.samples), size):
            frame = Audio(audio.samples[start : start + size], rate)
            if pace:
                # A frame is there once its last sample is.
                due = began + (start + len(frame.samples)) / rate / pace
                await asyncio.sleep(max(0.0, due - loop.time()))
            yield Chunk("frames", frame, at=start / rate)


class Listen(StreamStage):
    """Passes on what is said, by Silero VAD: the sound of each utterance piece by piece, and a frame without samples at its end.

    Everything is 16 kHz on the way out; `at` counts from the stream's beginning.
    """

    spec = KindSpec(
        name="speech.listen",
        about="Cuts a stream of sound into utterances, and leaves silence out",
        inputs={"audio": _STREAM_OF_AUDIO},
        outputs={"speech": _STREAM_OF_AUDIO},
        params={
            "threshold": Param(
                type="number", default=0.5, about="probability from which a frame is speech, above 0 and below 1"
            ),
            "padding_seconds": Param(type="number", default=0.2, about="sound kept before and after an utterance"),
            "speech_seconds_min": Param(type="number", default=0.2, about="shorter bursts are no speech"),
            "pause_seconds": Param(type="number", default=0.8, about="a pause that ends an utterance"),
        },
        models=(voice.MODEL,),
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=0.1, load_seconds=0.1, memory_bytes=32 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        """Loads the model."""
        models.session(voice.MODEL, target=target)

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        utterances = _utterances(call.params)
        scorer = FrameScorer(await call.compute(call.models.session, voice.MODEL))
        frames = _Frames()
        seconds: list[float] = []
        async for frame in _cut(call.inputs["audio"], frames):
            began = time.monotonic()
            probability = await call.compute(scorer.score, frame)
            seconds.append(time.monotonic() - began)
            for piece in utterances.push(frame, probability):
                yield _chunk(piece)
        for piece in utterances.flush(frames.samples):
            yield _chunk(piece)
        tell_times(call, "frame", seconds)


async def _cut(chunks: AsyncIterator[Any], frames: "_Frames") -> AsyncGenerator[NDArray[np.float32], None]:
    async for received in chunks:
        for frame in frames.push(received.value):
            yield frame
    for frame in frames.flush():
        yield frame


def _chunk(piece: Piece) -> Chunk:
    return Chunk("speech", Audio(piece.samples, RATE_HZ), at=piece.start / RATE_HZ)


def _utterances(params: Any) -> Utterances:
    names = ("padding_seconds", "speech_seconds_min", "pause_seconds")
    wrong = [f"{name} is {params[name]}, not from 0 to 60 s" for name in names if not 0 <= params[name] <= 60]
    if not 0 < params["threshold"] < 1:
        wrong.append(f"threshold is {params['threshold']}, not above 0 and below 1")
    if wrong:
        raise StageError("speech.listen has unusable parameters: " + "; ".join(wrong))
    return Utterances(
        float(params["threshold"]),
        speech_frames=frames_of(params["speech_seconds_min"]),
        merge_frames=frames_of(voice.PAUSE_SECONDS_MIN),
        pause_frames=frames_of(params["pause_seconds"]),
        padding=round(params["padding_seconds"] * RATE_HZ),
    )


class _Frames:
    """Sound of any rate, in parts of any size, as frames of 512 samples at 16 kHz. Raises StageError."""

    def __init__(self) -> None:
        self.samples = 0
        self._rest: NDArray[np.float32] = np.zeros(0, np.float32)
        self._rate = 0
        self._resampler: Any = None

    def push(self, audio: Audio) -> list[NDArray[np.float32]]:
        """The frames that are whole with this."""
        if not np.isfinite(audio.samples).all():
            raise StageError("the sound holds samples that are no finite numbers")
        if self._rate and audio.sample_rate_hz != self._rate:
            raise StageError(
                f"the sound's rate changes from {self._rate} Hz to {audio.sample_rate_hz}; start another stream"
            )
        if not self._rate:
            self._rate = audio.sample_rate_hz
            if not limits.SAMPLE_RATE_HZ_MIN <= self._rate <= limits.SAMPLE_RATE_HZ_MAX:
                low, high = limits.SAMPLE_RATE_HZ_MIN, limits.SAMPLE_RATE_HZ_MAX
                raise StageError(f"the sound has {self._rate} Hz, not from {low} to {high}")
            if self._rate != RATE_HZ:
                self._resampler = soxr.ResampleStream(self._rate, RATE_HZ, 1, dtype="float32", quality="HQ")
        return self._cut(audio.samples if self._resampler is None else self._resampler.resample_chunk(audio.samples))

    def flush(self) -> list[NDArray[np.float32]]:
        """What is left, filled up with silence to whole frames."""
        if self._resampler is not None:
            last = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            frames = self._cut(last)
        else:
            frames = []
        if len(self._rest):
            frames.append(np.pad(self._rest, (0, FRAME_SAMPLES - len(self._rest))))
        return frames

    def _cut(self, samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        self.samples += len(samples)
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) // FRAME_SAMPLES * FRAME_SAMPLES
        self._rest = joined[whole:]
        return [joined[start : start + FRAME_SAMPLES] for start in range(0, whole, FRAME_SAMPLES)]


class Caption(StreamStage):
    """Writes down utterances as they are spoken: first what was said so far, again and again, and at the end what stays.

    A caption is `{text, final, utterance, start_seconds, end_seconds}`. One is made at a time, of all that the utterance
    has by then, so a slow machine gives fewer of them and none late. `text` is all that stays.
    """

    spec = KindSpec(
        name="speech.caption",
        about="Writes down English speech while it is spoken, with partial results",
        inputs={"speech": _STREAM_OF_AUDIO},
        outputs={"captions": Port(PortType.JSON, stream=True), "text": Port(PortType.TEXT)},
        params={
            "partial_seconds": Param(
                type="number", default=0.4, about="new speech from one partial caption to the next; 0 for none"
            )
        },
        models=(transcribe.MODEL,),
        tier=Tier.EDGE,
        cost=Cost(run_seconds=2.0, load_seconds=0.3, memory_bytes=350 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        """Loads encoder, decoder and tokenizer."""
        _Writer(models, lambda: None)

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        between = float(call.params["partial_seconds"])
        if not 0 <= between <= 60:
            raise StageError(f"speech.caption: partial_seconds is {between}, not from 0 to 60")
        writer = await call.compute(_Writer, call.models, call.cancel.raise_if_cancelled)
        said: list[str] = []
        async for caption in _captions(call.inputs["speech"], writer, call.compute, round(between * RATE_HZ)):
            if caption["final"] and caption["text"]:
                said.append(caption["text"])
            yield Chunk("captions", caption, at=caption["start_seconds"])
        yield Chunk("text", " ".join(said))


class _Writer:
    """Whisper, over the sound of one utterance or of a part of it."""

    def __init__(self, models: Models, check: Callable[[], None]) -> None:
        self._encoder: Model = models.session(transcribe.MODEL, "encoder.onnx")
        self._decoder: Model = models.session(transcribe.MODEL, "decoder.onnx")
        self._tokenizer = transcribe.tokenizer_of(models)
        self._check = check

    def __call__(self, samples: NDArray[np.float32], hasty: bool) -> str:
        return transcribe.text_of(self._encoder, self._decoder, self._tokenizer, samples, self._check, hasty=hasty)


class _Utterance:
    """What was heard of an utterance that goes on."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.samples: NDArray[np.float32] = np.zeros(0, np.float32)
        #: samples that the last partial caption had
        self.written = 0

    def caption(self, number: int, text: str, heard: int, *, final: bool) -> dict[str, Any]:
        end = self.start + heard / RATE_HZ
        return {"text": text, "final": final, "utterance": number, "start_seconds": self.start, "end_seconds": end}


async def _captions(
    pieces: AsyncIterator[Any], write: Callable[[NDArray[np.float32], bool], str], compute: Compute, between: int
) -> AsyncGenerator[dict[str, Any], None]:
    """Captions of a stream of pieces of utterances; partial ones after each `between` samples, 0 for none."""
    number, utterance = 0, None
    waiting: asyncio.Future[Any] | None = None
    writing: asyncio.Future[str] | None = None
    heard = 0
    over = False
    try:
        while not over:
            waiting = waiting or asyncio.ensure_future(_next(pieces))
            await asyncio.wait({waiting, *([writing] if writing else [])}, return_when=asyncio.FIRST_COMPLETED)
            if writing is not None and writing.done():
                assert utterance is not None
                text, writing = writing.result(), None
                if text:
                    yield utterance.caption(number, text, heard, final=False)
            if waiting.done():
                piece, waiting = waiting.result(), None
                over = piece is None
                if not over and len(piece.value.samples):
                    utterance = utterance or _Utterance(piece.at or 0.0)
                    utterance.samples = np.concatenate([utterance.samples, piece.value.samples])
                if utterance is None:
                    continue
                ends = over or not len(piece.value.samples)
                if ends or len(utterance.samples) > _WINDOW_SAMPLES:
                    if writing is not None:
                        # Of an utterance that is over, what was said so far interests nobody.
                        await writing
                        writing = None
                    part = (
                        utterance.samples if ends else utterance.samples[: next(transcribe.cut(utterance.samples))[1]]
                    )
                    yield utterance.caption(number, await compute(write, part, False), len(part), final=True)
                    number += 1
                    utterance = None if ends else _rest(utterance, len(part))
            if utterance is not None and writing is None and between:
                heard = len(utterance.samples)
                if heard - utterance.written >= between:
                    utterance.written = heard
                    writing = asyncio.ensure_future(_text(compute(write, utterance.samples, True)))
    finally:
        for task in (waiting, writing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task


async def _next(pieces: AsyncIterator[Any]) -> Any:
    """The next piece; None at the end."""
    return await anext(pieces, None)


async def _text(making: Awaitable[str]) -> str:
    return await making


def _rest(utterance: _Utterance, begin: int) -> _Utterance:
    rest = _Utterance(utterance.start + begin / RATE_HZ)
    rest.samples = utterance.samples[begin:]
    return rest
