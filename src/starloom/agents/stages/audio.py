"""Sound in files to samples, and back: WAV, FLAC, OGG and what else libsndfile reads."""

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.agents.values import Audio
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType


class DecodeAudio(Stage):
    """A sound file's bytes to mono float32 at one rate; channels are averaged."""

    spec = KindSpec(
        name="audio.decode",
        about="Decodes a sound file (WAV, FLAC, OGG) and resamples it to one mono channel",
        inputs={"data": Port(PortType.BYTES)},
        outputs={"audio": Port(PortType.AUDIO)},
        params={
            "sample_rate_hz": Param(
                type="integer",
                default=16_000,
                about=f"{limits.SAMPLE_RATE_HZ_MIN} to {limits.SAMPLE_RATE_HZ_MAX} Hz",
            )
        },
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=0.005, memory_bytes=16 * 1024 * 1024),
    )

    def run(self, call: StageCall) -> Outputs:
        rate = call.params["sample_rate_hz"]
        _check_rate(rate, "parameter sample_rate_hz")
        samples, found_rate = read_sound(call.inputs["data"])
        if found_rate != rate:
            samples = soxr.resample(samples, found_rate, rate, quality="HQ")
        return {"audio": Audio(np.clip(samples, -1.0, 1.0).astype(np.float32), rate)}


class EncodeAudio(Stage):
    """Samples to a WAV file of 16-bit PCM; samples beyond full scale are clipped."""

    spec = KindSpec(
        name="audio.encode",
        about="Writes audio as a WAV file, 16-bit PCM, mono",
        inputs={"audio": Port(PortType.AUDIO)},
        outputs={"data": Port(PortType.BYTES)},
        tier=Tier.DEVICE,
        cost=Cost(run_seconds=0.002, memory_bytes=16 * 1024 * 1024),
    )

    def run(self, call: StageCall) -> Outputs:
        audio = call.inputs["audio"]
        return {"data": write_wav(audio)}


def read_sound(data: bytes) -> tuple[NDArray[np.float32], int]:
    """A sound file's samples, averaged to mono, float32 [samples], and its rate in Hz.

    Raises StageError, not transient, if the bytes are no sound file, hold no samples, hold one that is
    no finite number, or last longer than AUDIO_SECONDS_MAX.
    """
    if not data:
        raise StageError("the audio has 0 bytes; give a WAV, FLAC or OGG file with sound in it")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            _check_rate(rate, "the audio's sample rate")
            most = int(limits.AUDIO_SECONDS_MAX * rate)
            if file.frames > most:
                raise _too_long(file.frames / rate)
            # By blocks, so that many channels never lie in memory together.
            blocks = [block.mean(axis=1) for block in file.blocks(rate, dtype="float32", always_2d=True)]
    except soundfile.SoundFileError as error:
        # The rest of its text names the object that was read from, by its address.
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        raise StageError(
            f"{len(data)} bytes are no sound file that can be read, such as WAV, FLAC or OGG: {reason}"
        ) from error
    samples: NDArray[np.float32] = np.concatenate([np.zeros(0, np.float32), *blocks])
    if not len(samples):
        raise StageError("the audio file has a header but no samples; record it again")
    if not np.isfinite(samples).all():
        bad = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise StageError(f"audio sample {bad} of {len(samples)} is not a finite number; the file is damaged")
    return samples, rate


def write_wav(audio: Audio) -> bytes:
    """A WAV file, 16-bit PCM, mono. Raises StageError if a sample is not a finite number."""
    if not np.isfinite(audio.samples).all():
        raise StageError("the audio holds samples that are no finite numbers, and cannot be written as PCM")
    out = io.BytesIO()
    soundfile.write(out, np.clip(audio.samples, -1.0, 1.0), audio.sample_rate_hz, format="WAV", subtype="PCM_16")
    return out.getvalue()


def at_rate(audio: Audio, sample_rate_hz: int) -> NDArray[np.float32]:
    """The samples at another rate, float32 [samples], for a model that knows only one. Raises StageError.

    Refuses what a stage cannot compute on: samples that are not finite, and more than AUDIO_SECONDS_MAX.
    """
    if audio.seconds > limits.AUDIO_SECONDS_MAX:
        raise _too_long(audio.seconds)
    if not np.isfinite(audio.samples).all():
        raise StageError("the audio holds samples that are not finite numbers")
    if audio.sample_rate_hz == sample_rate_hz or not len(audio.samples):
        return audio.samples
    _check_rate(audio.sample_rate_hz, "the audio's sample rate")
    samples: NDArray[np.float32] = soxr.resample(audio.samples, audio.sample_rate_hz, sample_rate_hz, quality="HQ")
    return samples


def _too_long(seconds: float) -> StageError:
    most = limits.AUDIO_SECONDS_MAX
    return StageError(f"the audio lasts {seconds:.0f} s, over AUDIO_SECONDS_MAX = {most:.0f} s; cut it into parts")


def _check_rate(rate: int, what: str) -> None:
    if not limits.SAMPLE_RATE_HZ_MIN <= rate <= limits.SAMPLE_RATE_HZ_MAX:
        raise StageError(
            f"{what} is {rate} Hz, not from SAMPLE_RATE_HZ_MIN = {limits.SAMPLE_RATE_HZ_MIN} "
            f"to SAMPLE_RATE_HZ_MAX = {limits.SAMPLE_RATE_HZ_MAX}"
        )
