"""Sound in and out, and the parts of the speech stages that need no ear: files, frames, cuts, repeats and bounds."""

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from starloom.agents.stage import CancelToken, Models, StageCall
from starloom.agents.stages import audio, synthesise, transcribe, voice
from starloom.agents.stages.audio import DecodeAudio, EncodeAudio, at_rate, read_sound, write_wav
from starloom.agents.values import Audio
from starloom.dag import limits
from starloom.dag.errors import Cancelled, StageError

Run = Callable[..., dict[str, Any]]
RATE_HZ = 16_000


def tone(seconds: float, rate: int = RATE_HZ, hertz: float = 440.0) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_file(samples: Any, rate: int = RATE_HZ, **options: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, **{"format": "WAV", "subtype": "PCM_16", **options})
    return out.getvalue()


def decoded(data: bytes, sample_rate_hz: int = RATE_HZ) -> Audio:
    call = StageCall({"data": data}, {"sample_rate_hz": sample_rate_hz}, cast(Models, None))
    return cast(Audio, DecodeAudio().run(call)["audio"])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_depth_is_read(subtype: str) -> None:
    found = decoded(sound_file(tone(0.1), subtype=subtype))
    assert found.samples.dtype == np.float32
    np.testing.assert_allclose(found.samples, tone(0.1), atol=0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 44_100, 48_000, 192_000])
def test_every_rate_becomes_the_one_asked_for(rate: int) -> None:
    found = decoded(sound_file(tone(0.5, rate), rate))
    assert found.sample_rate_hz == RATE_HZ
    assert len(found.samples) == pytest.approx(8_000, abs=2)
    middle = slice(1_000, -1_000)
    np.testing.assert_allclose(
        found.samples[: len(tone(0.5))][middle], tone(0.5)[: len(found.samples)][middle], atol=0.02
    )


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(channels: int) -> None:
    sound = np.zeros((1_600, channels), np.float32)
    sound[:, 0] = tone(0.1)
    np.testing.assert_allclose(decoded(sound_file(sound)).samples, tone(0.1) / channels, atol=1e-3)


def test_louder_than_full_scale_is_clipped() -> None:
    found = decoded(sound_file(4 * tone(0.1), subtype="FLOAT"))
    assert np.abs(found.samples).max() == 1.0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has 0 bytes"),
        (b"RIFF", "are no sound file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "are no sound file"),
        (b"hello" * 100, "such as WAV, FLAC or OGG: Format not recognised."),
        (sound_file(np.zeros(0)), "a header but no samples"),
        (sound_file(np.array([0.0, np.nan]), subtype="FLOAT"), "sample 1 of 2 is not a finite number"),
        (sound_file(tone(0.1), 1_000), "is 1000 Hz, not from SAMPLE_RATE_HZ_MIN"),
        (sound_file(tone(0.1), 400_000), "is 400000 Hz, not from"),
    ],
)
def test_what_is_no_usable_sound_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(StageError) as raised:
        decoded(data)
    assert reason in str(raised.value)
    assert not raised.value.transient


def test_a_file_cut_off_gives_what_is_there() -> None:
    data = sound_file(tone(1.0))
    assert 0.4 < decoded(data[: len(data) // 2]).seconds < 0.6


def test_too_long_a_sound_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AUDIO_SECONDS_MAX", 2.0)
    assert decoded(sound_file(tone(2.0))).seconds == 2.0
    with pytest.raises(StageError, match="lasts 3 s, over AUDIO_SECONDS_MAX = 2 s"):
        decoded(sound_file(tone(3.0)))
    with pytest.raises(StageError, match="AUDIO_SECONDS_MAX"):
        at_rate(Audio(tone(3.0), RATE_HZ), RATE_HZ)


def test_the_rate_asked_for_is_bounded() -> None:
    with pytest.raises(StageError, match="parameter sample_rate_hz is 10 Hz"):
        decoded(sound_file(tone(0.1)), sample_rate_hz=10)


def test_what_is_written_is_read_back() -> None:
    data = EncodeAudio().run(StageCall({"audio": Audio(2 * tone(0.1, 24_000), 24_000)}, {}, cast(Models, None)))["data"]
    samples, rate = read_sound(data)
    assert rate == 24_000
    np.testing.assert_allclose(samples, np.clip(2 * tone(0.1, 24_000), -1, 1), atol=1e-4)
    with pytest.raises(StageError, match="no finite numbers"):
        write_wav(Audio(np.array([np.inf], np.float32), RATE_HZ))


def test_at_rate_leaves_what_fits_and_refuses_what_cannot_be_computed() -> None:
    samples = tone(0.1)
    assert at_rate(Audio(samples, RATE_HZ), RATE_HZ) is samples
    assert len(at_rate(Audio(samples, RATE_HZ), 8_000)) == 800
    assert len(at_rate(Audio(samples[:0], 48_000), RATE_HZ)) == 0
    with pytest.raises(StageError, match="not finite"):
        at_rate(Audio(np.array([np.nan], np.float32), RATE_HZ), RATE_HZ)
    assert audio.at_rate is at_rate


def runs(probabilities: list[float], frames_min: int = 1, pause_min: int = 1) -> list[tuple[int, int]]:
    return voice.speech_runs(np.array(probabilities, np.float32), 0.5, frames_min, pause_min)


def test_runs_of_speech_have_hysteresis_pauses_and_a_least_length() -> None:
    assert runs([]) == []
    assert runs([0.1, 0.9, 0.9, 0.1]) == [(1, 3)]
    assert runs([0.9, 0.4, 0.9, 0.3]) == [(0, 3)], "0.4 is within the margin"
    assert runs([0.9, 0.1, 0.9, 0.9]) == [(0, 1), (2, 4)]
    assert runs([0.9, 0.1, 0.9, 0.9], pause_min=2) == [(0, 4)]
    assert runs([0.9, 0.1, 0.9, 0.9], frames_min=2) == [(2, 4)]
    assert runs([0.4, 0.4]) == []


class FakeVad:
    """A model that calls each frame speech whose middle is loud, and counts frames in its state."""

    input_names = ("input", "state", "sr")
    output_names = ("output", "stateN")

    def run(self, feeds: Any) -> list[NDArray[Any]]:
        assert feeds["input"].shape == (1, 576)
        loud = np.abs(feeds["input"][0, 64:]).mean() > 0.01
        return [np.array([[float(loud)]], np.float32), feeds["state"] + 1]


def test_frames_come_with_their_context_and_the_last_is_filled_up() -> None:
    samples = np.concatenate([np.zeros(1_024, np.float32), tone(0.05)])
    assert voice.speech_probabilities(FakeVad(), samples).tolist() == [0, 0, 1, 1]
    assert len(voice.speech_probabilities(FakeVad(), samples[:0])) == 0


def test_a_cancel_is_noticed_between_frames() -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        voice.speech_probabilities(FakeVad(), tone(1.0), token.raise_if_cancelled)


@pytest.mark.models
@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"threshold": 0}, "threshold is 0"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"padding_seconds": -1, "pause_seconds_min": 61}, "padding_seconds is -1, .*pause_seconds_min is 61"),
    ],
)
def test_detection_names_its_unusable_parameters(run_stage: Run, params: dict[str, Any], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        run_stage("speech.detect", params=params, audio=Audio(tone(0.1), RATE_HZ))


@pytest.mark.models
def test_no_samples_are_no_speech_and_no_text(run_stage: Run) -> None:
    nothing = Audio(np.zeros(0, np.float32), RATE_HZ)
    assert run_stage("speech.detect", audio=nothing)["segments"] == []
    assert run_stage("speech.transcribe", audio=nothing) == {"text": "", "segments": []}


@pytest.mark.models
def test_silence_can_be_kept(run_stage: Run) -> None:
    silence = Audio(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    outputs = run_stage("speech.detect", params={"keep_silence": True}, audio=silence)
    assert len(outputs["audio"].samples) == RATE_HZ
    assert outputs["segments"] == []


def test_long_sound_is_cut_in_its_pauses_without_a_gap() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 70 * RATE_HZ).astype(np.float32)
    samples[25 * RATE_HZ : 25 * RATE_HZ + RATE_HZ // 2] = 0
    spans = list(transcribe.cut(samples))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(samples)
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert all(end - start <= transcribe.WINDOW_SECONDS * RATE_HZ for start, end in spans)
    assert 25 * RATE_HZ <= spans[0][1] <= 25.5 * RATE_HZ
    assert list(transcribe.cut(samples[:0])) == []


def test_repetitions_count_from_three_times_and_twelve_tokens() -> None:
    assert transcribe.repetition([1, 2, 3, 4] * 3) == 8
    assert transcribe.repetition([9, *[1, 2, 3, 4] * 3]) == 8
    assert transcribe.repetition([1, 2, 3, 4] * 2) == 0
    assert transcribe.repetition([7] * 3) == 0, "no, no, no is a thing to say"
    assert transcribe.repetition([7] * 12) == 11
    assert transcribe.repetition([]) == 0


def test_features_have_whispers_form() -> None:
    features = transcribe.log_mel(tone(1.0), 300)
    assert features.shape == (80, 300)
    assert features.dtype == np.float32
    assert features.max() - features.min() <= 2.0 + 1e-6
    filters = transcribe.mel_filters()
    assert filters.shape == (80, 201)
    # A tone of 440 Hz is loudest in the band around it.
    band = int(features[:, 50].argmax())
    assert abs(float(filters[band].argmax()) * 40 - 440) <= 60


@pytest.mark.models
def test_text_without_a_word_gives_no_sound_and_foreign_letters_are_refused(run_stage: Run) -> None:
    for text in ("", "  ", "...", "?!"):
        assert len(run_stage("speech.synthesise", text=text)["audio"].samples) == 0
    with pytest.raises(StageError, match="English in Latin letters"):
        run_stage("speech.synthesise", text="これ")


@pytest.mark.models
def test_the_same_seed_gives_the_same_sound_and_speed_its_length(run_stage: Run) -> None:
    first, again, other, slow = (
        run_stage("speech.synthesise", text="Good morning.", params=params)["audio"].samples
        for params in ({}, {}, {"seed": 1}, {"speed": 0.5})
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert len(slow) > 1.5 * len(first)
    assert np.abs(first).max() <= 1.0


@pytest.mark.models
@pytest.mark.parametrize(
    ("text", "params", "reason"),
    [
        ("a" * (limits.SPEECH_CHARACTERS_MAX + 1), {}, "SPEECH_CHARACTERS_MAX"),
        ("a", {"speed": 3}, "speed is 3.0, not from 0.5 to 2.0"),
        ("a", {"seed": -1}, "seed is -1, below 0"),
    ],
)
def test_speaking_refuses_what_is_out_of_bounds(run_stage: Run, text: str, params: dict[str, Any], reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        run_stage("speech.synthesise", text=text, params=params)


@pytest.mark.parametrize("phonemes", ["", "a", "ab, cd; ef", "a" * 1_000, "ab " * 500, ("word " * 50 + ", ") * 20])
def test_phonemes_are_cut_into_parts_without_loss(phonemes: str) -> None:
    parts = list(synthesise.chunks(phonemes))
    assert all(0 < len(part) <= synthesise.PHONEMES_AT_ONCE_MAX for part in parts)
    assert "".join("".join(parts).split()) == "".join(phonemes.split())
