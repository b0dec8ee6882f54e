"""Text to speech: hibari's acoustic model, with its own text front end and signal processing (Apache-2.0).

The front end writes text as phonemes from lexicons, and asks a small network for words that it does
not know; the acoustic model gives a spectrum for every 12.5 ms; the signal processing makes sound of it.
"""

import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from hibari import SAMPLE_RATE, Hibari, dsp
from hibari.g2p import G2P
from hibari.g2p.oov import OOV
from numpy.typing import NDArray

from starloom.agents.stage import Model, Models, Outputs, Stage, StageCall
from starloom.agents.values import Audio
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

MODEL = "hibari-en"
ACOUSTIC_FILE = "hibari.onnx"
SPELLING_FILE = "oov.onnx"
PHONEMES_AT_ONCE_MAX = 400
SPEED_MIN, SPEED_MAX = 0.5, 2.0
_CLAUSE_END = re.compile(r"(?<=[,;:—])\s+")

# The front end is shared by calls, the network for unknown words belongs to one of them.
_speller: ContextVar[OOV] = ContextVar("_speller")


class Synthesise(Stage):
    """Reads English text aloud: 24 kHz, one American voice. Text without a word gives no samples."""

    spec = KindSpec(
        name="speech.synthesise",
        about="Reads English text aloud",
        inputs={"text": Port(PortType.TEXT)},
        outputs={"audio": Port(PortType.AUDIO)},
        params={
            "speed": Param(type="number", default=1.0, about=f"{SPEED_MIN} (slow) to {SPEED_MAX} (fast)"),
            "seed": Param(type="integer", default=0, about="of the noise in the voice, at least 0"),
        },
        models=(MODEL,),
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=0.1, load_seconds=0.6, memory_bytes=160 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, ACOUSTIC_FILE, target=target)
        models.session(MODEL, SPELLING_FILE, target=target)
        _front_end(models)

    def run(self, call: StageCall) -> Outputs:
        text, speed, seed = call.inputs["text"], float(call.params["speed"]), call.params["seed"]
        _check(text, speed, seed)
        acoustic = call.models.session(MODEL, ACOUSTIC_FILE)
        front_end, vocabulary = _front_end(call.models), _vocabulary(call.models)
        spelling = _speller.set(_unknown_words(call.models))
        generator = np.random.default_rng(seed)
        parts: list[NDArray[np.float32]] = []
        try:
            # The voice breathes at a lone punctuation mark.
            sentences = [each for each in Hibari.split_sentences(text) if _has_word(each)]
            for n, sentence in enumerate(sentences):
                call.cancel.raise_if_cancelled()
                for phonemes in chunks(front_end(sentence)):
                    ids = [vocabulary[one] for one in phonemes if one in vocabulary]
                    if ids:
                        parts.append(speak(acoustic, ids, speed, generator))
                call.progress((n + 1) / len(sentences))
        finally:
            _speller.reset(spelling)
        if not parts and _has_word(text):
            raise StageError(f"no word of {text[:60]!r} can be spoken; the voice reads English in Latin letters")
        return {"audio": Audio(np.concatenate([np.zeros(0, np.float32), *parts]), SAMPLE_RATE)}


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _check(text: str, speed: float, seed: int) -> None:
    wrong = []
    if len(text) > limits.SPEECH_CHARACTERS_MAX:
        wrong.append(
            f"the text has {len(text)} characters, over SPEECH_CHARACTERS_MAX = {limits.SPEECH_CHARACTERS_MAX}; cut it into parts"
        )
    if not SPEED_MIN <= speed <= SPEED_MAX:
        wrong.append(f"speed is {speed}, not from {SPEED_MIN} to {SPEED_MAX}")
    if seed < 0:
        wrong.append(f"seed is {seed}, below 0")
    if wrong:
        raise StageError("speech.synthesise cannot start: " + "; ".join(wrong))


def chunks(phonemes: str) -> Iterator[str]:
    """Phonemes of one sentence in parts of at most 400, cut after clauses, else between words, else anywhere."""
    part = ""
    for piece in _pieces(phonemes):
        if part and len(part) + 1 + len(piece) > PHONEMES_AT_ONCE_MAX:
            yield part
            part = ""
        part = f"{part} {piece}" if part else piece
    if part:
        yield part


def _pieces(phonemes: str) -> Iterator[str]:
    for clause in _CLAUSE_END.split(phonemes):
        if len(clause) <= PHONEMES_AT_ONCE_MAX:
            yield clause
            continue
        for word in clause.split():
            for start in range(0, len(word), PHONEMES_AT_ONCE_MAX):
                yield word[start : start + PHONEMES_AT_ONCE_MAX]


def speak(acoustic: Model, ids: list[int], speed: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Sound of phoneme ids: float32 [samples] at 24 kHz, in [-1, 1]."""
    feeds: dict[str, NDArray[Any]] = {"ids": np.array([[0, *ids, 0]], np.int64), "speed": np.array([speed], np.float32)}
    spectrum = [output[0] for output in acoustic.run(feeds)]
    samples: NDArray[np.float32] = np.clip(dsp.synth(*spectrum, generator), -1.0, 1.0).astype(np.float32)
    return samples


def _front_end(models: Models) -> Any:
    return models.cached(MODEL, "front end", lambda: G2P(oov=lambda word: _speller.get()(word)))


def _vocabulary(models: Models) -> dict[str, int]:
    def read() -> dict[str, int]:
        found: dict[str, int] = json.loads(Path(models.path(MODEL, "vocab.json")).read_text("utf-8"))
        return found

    found: dict[str, int] = models.cached(MODEL, "vocabulary", read)
    return found


class _AsSession:
    """A model in the shape of an ONNX Runtime session, as far as hibari calls it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, _: None, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self._model.run(feeds)


def _unknown_words(models: Models) -> OOV:
    # hibari reads the alphabet from a file of the same name beside the network's.
    models.path(MODEL, "oov.json")
    return OOV(models.path(MODEL, SPELLING_FILE), _AsSession(models.session(MODEL, SPELLING_FILE)))
