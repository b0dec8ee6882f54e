"""Speech to text: Whisper tiny.en with a key-value cache, decoded greedily.

The features and the decoding rules are those of Radford et al., "Robust Speech Recognition via
Large-Scale Weak Supervision" (2022), and of its reference code (MIT licence): 80 log-mel bands of
16 kHz sound, frames of 25 ms every 10 ms, windows of at most 30 s, special tokens suppressed.
Unlike it, a window is only as long as the sound in it needs, which is several times faster on
questions of a few seconds; where such a window makes the decoder repeat itself or doubt its text, it
is done again with the full 30 s that the model was trained on, and the better text is taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from starloom.agents.stage import Model, Models, Outputs, Stage, StageCall
from starloom.agents.stages.audio import at_rate
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, GraphUse, KindSpec
from starloom.dag.values import Port, PortType

MODEL = "whisper-tiny-en"
RATE_HZ = 16_000
FFT_SAMPLES = 400
HOP_SAMPLES = 160
MEL_BANDS = 80
WINDOW_SECONDS = 30
WINDOW_SECONDS_MIN = 10
WINDOW_MARGIN_SECONDS = 1.0
CUT_SEARCH_SECONDS = 10
PAUSE_SAMPLES = RATE_HZ // 5
SILENT_PEAK = 1e-4

END_OF_TEXT = 50256
START_OF_TRANSCRIPT = 50257
NO_SPEECH = 50361
NO_TIMESTAMPS = 50362
# Whisper's list for its English models: marks that are no speech, such as brackets, musical notes and
# speaker labels. All special tokens but the end of text come on top, and at the beginning a lone space.
SUPPRESSED = np.array(
    [
        *(
            1,
            2,
            7,
            8,
            9,
            10,
            14,
            25,
            26,
            27,
            28,
            29,
            31,
            58,
            59,
            60,
            61,
            62,
            63,
            90,
            91,
            92,
            93,
            357,
            366,
            438,
            532,
            685,
        ),
        *(
            705,
            796,
            930,
            1058,
            1220,
            1267,
            1279,
            1303,
            1343,
            1377,
            1391,
            1635,
            1782,
            1875,
            2162,
            2361,
            2488,
            3467,
            4008,
        ),
        *(4211, 4600, 4808, 5299, 5855, 6329, 7203, 9609, 9959, 10563, 10786, 11420, 11709, 11907, 13163, 13697, 13700),
        *(
            14808,
            15306,
            16410,
            16791,
            17992,
            19203,
            19510,
            20724,
            22305,
            22935,
            27007,
            30109,
            30420,
            33409,
            34949,
            40283,
        ),
        *(40493, 40549, 47282, 49146),
    ]
)
SPACE = 220
# Measured: at most 0.35 on speech, even on half a second of it; at least 0.63 on noise, hum and a tone.
NO_SPEECH_PROBABILITY = 0.6
# Above this the text is believed all the same; Whisper's -1.0 lets a hum pass as "you".
MEAN_LOG_PROBABILITY = -0.4
# Right transcripts of the five LibriVox clips lie above -0.11 in windows of 10 s, wrong ones below -0.34.
DOUBTFUL_LOG_PROBABILITY = -0.25
REPEATED_TOKENS_MAX = 24
REPEATS_MIN = 3
REPETITION_TOKENS_MIN = 12


class Transcribe(Stage):
    """English speech to text. Silence and noise give an empty text."""

    spec = KindSpec(
        name="speech.transcribe",
        about="Writes down English speech",
        inputs={"audio": Port(PortType.AUDIO)},
        outputs={"text": Port(PortType.TEXT), "segments": Port(PortType.JSON)},
        models=(MODEL,),
        tier=Tier.EDGE,
        cost=Cost(
            run_seconds=0.25,
            load_seconds=0.3,
            memory_bytes=350 * 1024 * 1024,
            # ten seconds of speech, and as many tokens as a short question has
            graphs=(
                GraphUse(model=MODEL, file="encoder.onnx", sizes={"frames": 1000}),
                GraphUse(model=MODEL, file="decoder.onnx", sizes={"steps": 1, "past": 5, "context": 500}, times=11),
            ),
        ),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, "encoder.onnx", target=target)
        models.session(MODEL, "decoder.onnx", target=target)
        tokenizer_of(models)

    def run(self, call: StageCall) -> Outputs:
        samples = at_rate(call.inputs["audio"], RATE_HZ)
        encoder, decoder = (call.models.session(MODEL, f"{part}.onnx") for part in ("encoder", "decoder"))
        tokenizer = tokenizer_of(call.models)
        segments = []
        for start, end in cut(samples):
            text = text_of(encoder, decoder, tokenizer, samples[start:end], call.cancel.raise_if_cancelled)
            if text:
                segments.append({"start_seconds": start / RATE_HZ, "end_seconds": end / RATE_HZ, "text": text})
            call.progress(end / len(samples))
        return {"text": " ".join(str(segment["text"]) for segment in segments), "segments": segments}


def tokenizer_of(models: Models) -> Any:
    """The model's tokenizer, made once per agent."""
    return models.cached(MODEL, "tokenizer", lambda: Tokenizer.from_file(models.path(MODEL, "tokenizer.json")))


def text_of(
    encoder: Model,
    decoder: Model,
    tokenizer: Any,
    samples: NDArray[np.float32],
    check: Callable[[], None],
    *,
    hasty: bool = False,
) -> str:
    """What is said in at most 30 s of 16 kHz sound, float32 [samples]; empty where there is no speech.

    `hasty`: in the shortest window that holds the sound, and not again where that makes the text doubtful.
    """
    decoded = transcribe_window(encoder, decoder, samples, check, hasty=hasty)
    text = str(tokenizer.decode(decoded.tokens, skip_special_tokens=True)).strip()
    return text if decoded.is_speech else ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tokens of one window, their mean log probability, how likely the window holds no speech, and if it ran in circles."""

    tokens: list[int]
    mean_log_probability: float
    no_speech_probability: float
    repeats: bool

    @property
    def is_doubtful(self) -> bool:
        """Whether the text is likely to have errors."""
        return self.repeats or self.mean_log_probability < DOUBTFUL_LOG_PROBABILITY

    @property
    def is_speech(self) -> bool:
        """False where the model doubts both that there is speech and what it says."""
        return self.no_speech_probability <= NO_SPEECH_PROBABILITY or self.mean_log_probability >= MEAN_LOG_PROBABILITY


def cut(samples: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Spans of at most 30 s, cut in the quietest 0.2 s of the last ten seconds where the sound is longer."""
    start, longest = 0, WINDOW_SECONDS * RATE_HZ
    while len(samples) - start > longest:
        first = start + longest - CUT_SEARCH_SECONDS * RATE_HZ
        energy = np.concatenate([[0.0], np.cumsum(samples[first : start + longest].astype(np.float64) ** 2)])
        end = first + int(np.argmin(energy[PAUSE_SAMPLES:] - energy[:-PAUSE_SAMPLES])) + PAUSE_SAMPLES // 2
        yield start, end
        start = end
    if len(samples) > start:
        yield start, len(samples)


def transcribe_window(
    encoder: Model,
    decoder: Model,
    samples: NDArray[np.float32],
    check: Callable[[], None] = lambda: None,
    *,
    hasty: bool = False,
) -> Decoded:
    """Decodes at most 30 s of 16 kHz sound, float32 [samples]; `check` is called between steps and may raise."""
    if np.abs(samples).max() < SILENT_PEAK:
        return Decoded([], 0.0, 1.0, False)
    seconds = max(int(np.ceil(len(samples) / RATE_HZ + WINDOW_MARGIN_SECONDS)), WINDOW_SECONDS_MIN)
    decoded = decode(decoder, _encode(encoder, samples, min(seconds, WINDOW_SECONDS)), check)
    if seconds < WINDOW_SECONDS and decoded.is_doubtful and not hasty:
        again = decode(decoder, _encode(encoder, samples, WINDOW_SECONDS), check)
        decoded = max(again, decoded, key=lambda one: (not one.repeats, one.mean_log_probability))
    return decoded


def _encode(encoder: Model, samples: NDArray[np.float32], seconds: int) -> dict[str, NDArray[Any]]:
    mel = log_mel(samples, seconds * RATE_HZ // HOP_SAMPLES)
    return dict(zip(encoder.output_names, encoder.run({"mel": mel[None]}), strict=True))


def decode(decoder: Model, cross: dict[str, NDArray[Any]], check: Callable[[], None] = lambda: None) -> Decoded:
    """Greedy decoding from the encoder's keys and values. The cache grows with `past.*`."""
    some = next(iter(cross.values()))
    empty = np.zeros((1, some.shape[1], 0, some.shape[3]), np.float32)
    past = {name.replace("cross", "past"): empty for name in cross}
    cached = [name.replace("present", "past") for name in decoder.output_names[1:]]

    def step(token: int) -> NDArray[np.float32]:
        check()
        logits, *present = decoder.run({"ids": np.array([[token]], np.int64), **past, **cross})
        past.update(zip(cached, present, strict=True))
        row: NDArray[np.float32] = logits[0]
        return row

    no_speech = float(np.exp(_log_softmax(step(START_OF_TRANSCRIPT))[NO_SPEECH]))
    logits = step(NO_TIMESTAMPS)
    tokens: list[int] = []
    total, repeats = 0.0, False
    while True:
        allowed = _suppress(logits, first=not tokens)
        token = int(np.argmax(allowed))
        total += float(_log_softmax(allowed)[token])
        if token == END_OF_TEXT:
            break
        tokens.append(token)
        if again := repetition(tokens):
            del tokens[-again:]
            repeats = True
            break
        if len(tokens) == limits.TRANSCRIPT_TOKENS_PER_WINDOW_MAX:
            break
        logits = step(token)
    return Decoded(tokens, total / (len(tokens) + 1), no_speech, repeats)


def _suppress(logits: NDArray[np.float32], first: bool) -> NDArray[np.float32]:
    if len(logits) <= NO_TIMESTAMPS:
        raise StageError(f"the decoder knows {len(logits)} tokens, which is no English Whisper; pull {MODEL} again")
    allowed = logits.copy()
    allowed[SUPPRESSED] = -np.inf
    allowed[START_OF_TRANSCRIPT:] = -np.inf
    if first:
        allowed[[SPACE, END_OF_TEXT]] = -np.inf
    return allowed


def repetition(tokens: list[int]) -> int:
    """How many tokens at the end only say a phrase again, so that it stands there once without them; or 0.

    A phrase of at most 24 tokens counts where it comes three times or more in a row, in 12 tokens or
    more: "no, no, no" is a thing to say.
    """
    for period in range(1, min(REPEATED_TOKENS_MAX, len(tokens) // REPEATS_MIN) + 1):
        times = max(REPEATS_MIN, -(-REPETITION_TOKENS_MIN // period))
        if tokens[-period * times :] == tokens[-period:] * times:
            return period * (times - 1)
    return 0


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max()
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return result


def log_mel(samples: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Whisper's features of 16 kHz sound, padded with silence: float32 [80, frames].

    log10 of mel-band power, cut off 8 below its peak, then (x + 4) / 4.
    """
    padded = np.zeros(frames * HOP_SAMPLES, np.float32)
    count = min(len(samples), len(padded))
    padded[:count] = samples[:count]
    padded = np.pad(padded, FFT_SAMPLES // 2, mode="reflect")
    hann = np.hanning(FFT_SAMPLES + 1)[:-1].astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[::HOP_SAMPLES][:frames]
    # Beyond the sound all frames are silent and alike: their transform is zero.
    sounding = min(frames, count // HOP_SAMPLES + FFT_SAMPLES // HOP_SAMPLES + 1)
    power = np.zeros((frames, FFT_SAMPLES // 2 + 1), np.float32)
    power[:sounding] = np.abs(np.fft.rfft(views[:sounding] * hann, axis=1)) ** 2
    log = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    log = np.maximum(log, log.max() - 8.0)
    features: NDArray[np.float32] = ((log + 4.0) / 4.0).astype(np.float32)
    return features


@lru_cache(maxsize=1)
def mel_filters() -> NDArray[np.float32]:
    """Triangular filters on Slaney's mel scale, each of area 1 over Hz: float32 [80, 201] for 16 kHz.

    The scale, of M. Slaney's Auditory Toolbox (1998): linear to 1 kHz at 200/3 Hz a mel, from there on
    logarithmic at 27 mels for a factor of 6.4.
    """
    linear, step = 1000.0, np.log(6.4) / 27.0
    top = linear / (200 / 3) + np.log(RATE_HZ / 2 / linear) / step
    mels = np.linspace(0.0, top, MEL_BANDS + 2)
    knee = linear / (200 / 3)
    edges = np.where(mels < knee, mels * (200 / 3), linear * np.exp(step * (np.maximum(mels, knee) - knee)))
    bins = np.linspace(0.0, RATE_HZ / 2, FFT_SAMPLES // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    filters: NDArray[np.float32] = (triangles * 2.0 / (high - low)).astype(np.float32)
    return filters
