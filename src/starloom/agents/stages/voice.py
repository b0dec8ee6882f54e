"""Voice activity: Silero VAD over frames of 32 ms."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Model, Models, Outputs, Stage, StageCall
from starloom.agents.stages.audio import at_rate
from starloom.agents.values import Audio
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, GraphUse, KindSpec, Param
from starloom.dag.values import Port, PortType

MODEL = "silero-vad"
RATE_HZ = 16_000
FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64
FRAMES_PER_CANCEL_CHECK = 32
FRAME_SECONDS = FRAME_SAMPLES / RATE_HZ
# Speech that has begun goes on until the probability falls this far below the threshold (Silero's own margin).
HYSTERESIS = 0.15
PAUSE_SECONDS_MIN = 0.3


class DetectSpeech(Stage):
    """Finds speech, and cuts off the silence before and after it.

    `audio` is 16 kHz. Where nobody speaks, it has no samples and `segments` is empty, so that what
    follows has nothing to hear; with `keep_silence` the sound passes whole, and `segments` says the rest.
    """

    spec = KindSpec(
        name="speech.detect",
        about="Finds speech, and cuts off the silence around it",
        inputs={"audio": Port(PortType.AUDIO)},
        outputs={"audio": Port(PortType.AUDIO), "segments": Port(PortType.JSON)},
        params={
            "threshold": Param(
                type="number", default=0.5, about="probability from which a frame is speech, above 0 and below 1"
            ),
            "padding_seconds": Param(type="number", default=0.2, about="sound kept before and after speech"),
            "speech_seconds_min": Param(type="number", default=0.2, about="shorter bursts are no speech"),
            "pause_seconds_min": Param(
                type="number", default=PAUSE_SECONDS_MIN, about="shorter pauses do not end a segment"
            ),
            "keep_silence": Param(type="boolean", default=False, about="pass the sound on whole"),
        },
        models=(MODEL,),
        tier=Tier.DEVICE,
        cost=Cost(
            run_seconds=0.03,
            load_seconds=0.1,
            memory_bytes=32 * 1024 * 1024,
            # three seconds of sound
            graphs=(GraphUse(model=MODEL, sizes={"input.0": 1, "input.1": 576, "state.1": 1}, times=90),),
        ),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, target=target)

    def run(self, call: StageCall) -> Outputs:
        params = call.params
        _check(params)
        samples = at_rate(call.inputs["audio"], RATE_HZ)
        probabilities = speech_probabilities(call.models.session(MODEL), samples, call.cancel.raise_if_cancelled)
        runs = speech_runs(
            probabilities,
            float(params["threshold"]),
            frames_min=round(params["speech_seconds_min"] / FRAME_SECONDS),
            pause_min=round(params["pause_seconds_min"] / FRAME_SECONDS),
        )
        length = len(samples)
        segments = [
            {"start_seconds": first * FRAME_SECONDS, "end_seconds": min(last * FRAME_SECONDS, length / RATE_HZ)}
            for first, last in runs
        ]
        if not params["keep_silence"]:
            samples = _trimmed(samples, runs, round(params["padding_seconds"] * RATE_HZ))
        return {"audio": Audio(samples, RATE_HZ), "segments": segments}


def _check(params: Mapping[str, Any]) -> None:
    wrong = []
    if not 0 < params["threshold"] < 1:
        wrong.append(f"threshold is {params['threshold']}, not above 0 and below 1")
    wrong += [
        f"{name} is {params[name]}, not a number of seconds from 0 to 60"
        for name in ("padding_seconds", "speech_seconds_min", "pause_seconds_min")
        if not 0 <= params[name] <= 60
    ]
    if wrong:
        raise StageError("speech.detect has unusable parameters: " + "; ".join(wrong))


def _trimmed(samples: NDArray[np.float32], runs: list[tuple[int, int]], padding: int) -> NDArray[np.float32]:
    if not runs:
        return samples[:0]
    start = max(runs[0][0] * FRAME_SAMPLES - padding, 0)
    return samples[start : runs[-1][1] * FRAME_SAMPLES + padding]


class FrameScorer:
    """The probability of speech, frame after frame: a frame is seen after the 64 samples before it, with the state so far."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._state: NDArray[Any] = np.zeros((2, 1, 128), np.float32)
        self._fixed = {"sr": np.array(RATE_HZ, np.int64)} if "sr" in model.input_names else {}
        self._seen = np.zeros((1, CONTEXT_SAMPLES + FRAME_SAMPLES), np.float32)

    def score(self, frame: NDArray[np.float32]) -> float:
        """Of the next frame, float32 [512] at 16 kHz."""
        self._seen[0, :CONTEXT_SAMPLES] = self._seen[0, -CONTEXT_SAMPLES:]
        self._seen[0, CONTEXT_SAMPLES:] = frame
        probability, self._state = self._model.run({"input": self._seen, "state": self._state, **self._fixed})
        return float(probability.item())


def speech_probabilities(
    model: Model, samples: NDArray[np.float32], check: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """The probability of speech in each frame of 512 samples at 16 kHz: float32 [ceil(samples / 512)]."""
    frames = -(-len(samples) // FRAME_SAMPLES)
    padded = np.zeros(frames * FRAME_SAMPLES, np.float32)
    padded[: len(samples)] = samples
    scorer = FrameScorer(model)
    probabilities = np.zeros(frames, np.float32)
    for n in range(frames):
        if n % FRAMES_PER_CANCEL_CHECK == 0:
            check()
        probabilities[n] = scorer.score(padded[n * FRAME_SAMPLES : (n + 1) * FRAME_SAMPLES])
    return probabilities


def speech_runs(
    probabilities: NDArray[np.float32], threshold: float, frames_min: int, pause_min: int
) -> list[tuple[int, int]]:
    """Runs of speech as (first frame, frame after the last), in order, at least `pause_min` frames apart.

    A run begins at `threshold`, ends below `threshold` - 0.15, and is dropped if shorter than `frames_min`.
    """
    runs: list[tuple[int, int]] = []
    start = -1
    for n, probability in enumerate([*probabilities.tolist(), -1.0]):
        if start < 0 and probability >= threshold:
            start = n
        elif start >= 0 and probability < max(threshold - HYSTERESIS, 0.0):
            if runs and start - runs[-1][1] < pause_min:
                runs[-1] = runs[-1][0], n
            else:
                runs.append((start, n))
            start = -1
    return [run for run in runs if run[1] - run[0] >= frames_min]
