"""The spoken question from its document, stage by stage in this process; and the sound files that people really have."""

import io
import re
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from starloom.agents.catalog import Catalog
from starloom.agents.language import family
from starloom.agents.values import Audio, decode, encode
from starloom.dag.constellation import Constellation, Tier
from starloom.dag.document import load
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindCatalog
from starloom.dag.validate import problems, warnings
from starloom.dag.values import Port

pytestmark = pytest.mark.models

Run = Callable[..., dict[str, Any]]

ANSWER = (
    "The picture says: These markers are pixels that we can label unambiguously as either object or background. "
    "Pixel means the smallest resolvable rectangular area of an image, either on a screen or stored in memory."
)


@pytest.fixture(scope="module")
def constellation(example_folder: Path) -> Constellation:
    return load((example_folder / "constellation.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def kinds() -> KindCatalog:
    return Catalog(points=()).kinds


@pytest.fixture(scope="module")
def question(example_folder: Path) -> NDArray[np.float64]:
    """The question's samples, float64 [samples], at 16 kHz."""
    samples, rate = soundfile.read(example_folder / "question.wav")
    assert rate == 16_000
    return np.asarray(samples, np.float64)


def carried(port: Port, value: Any) -> Any:
    """A value as another agent would get it."""
    data, meta = encode(port.type, value)
    return decode(port.type, data, meta)


def run_all(constellation: Constellation, kinds: KindCatalog, run_stage: Run, given: dict[str, Any]) -> dict[str, Any]:
    """The job's outputs by name."""
    upstreams: dict[StageId, list[StageId]] = {name: [] for name in constellation.stages}
    for dependency in constellation.dependencies:
        upstreams[dependency.downstream].append(dependency.upstream)
    made: dict[tuple[str, str], Any] = {}
    for name in TopologicalSorter(upstreams).static_order():
        stage = constellation.stages[name]
        inputs = {one.input: given[one.source] for one in constellation.bindings if one.downstream == name}
        inputs |= {
            one.input: made[one.upstream, one.output] for one in constellation.dependencies if one.downstream == name
        }
        outputs = run_stage(stage.kind, stage.requires.target or "cpu", stage.params, **inputs)
        made |= {(name, port): carried(kinds[stage.kind].outputs[port], value) for port, value in outputs.items()}
    return {name: made[one.upstream, one.output] for name, one in constellation.outputs.items()}


def hear(run_stage: Run, data: bytes) -> str:
    audio = run_stage("speech.detect", audio=run_stage("audio.decode", data=data)["audio"])["audio"]
    return " ".join(re.findall(r"[a-z]+", run_stage("speech.transcribe", audio=audio)["text"].lower()))


def sound_file(samples: NDArray[np.float64], rate: int, **options: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, **{"format": "WAV", "subtype": "PCM_16", **options})
    return out.getvalue()


def test_the_document_fits_the_catalogue_and_spans_the_tiers(constellation: Constellation, kinds: KindCatalog) -> None:
    assert problems(constellation, kinds) == []
    assert warnings(constellation, kinds) == []
    assert {tier for stage in constellation.stages.values() for tier in stage.requires.tiers} == set(Tier)
    assert {stage.requires.target for stage in constellation.stages.values()} == {"", "npu"}


def test_the_inputs_are_small(example_folder: Path) -> None:
    assert (example_folder / "photo.jpg").stat().st_size <= 250_000
    assert (example_folder / "question.wav").stat().st_size <= 250_000


def test_the_question_is_answered_from_the_picture(
    constellation: Constellation, kinds: KindCatalog, run_stage: Run, example_folder: Path
) -> None:
    given = {
        "audio": (example_folder / "question.wav").read_bytes(),
        "image": (example_folder / "photo.jpg").read_bytes(),
    }
    outputs = run_all(constellation, kinds, run_stage, given)
    assert outputs["transcript"].lower().strip(" .?") == "which pixels does this page call markers"
    assert "Region-based segmentation" in outputs["text"]
    assert ">>> markers = np.zeros_like(coins)" in outputs["text"]
    assert len(outputs["faces"]) == 1
    assert outputs["passages"][0]["title"] == "pixel"
    assert "unambiguously" in outputs["answer"]
    assert outputs["details"]["model"] == family.sizes()[-1]
    heard = {"question": outputs["transcript"], "read": outputs["text"], "passages": outputs["passages"]}
    assert run_stage("text.answer", **heard)["answer"] == ANSWER
    speech = outputs["speech"]
    assert isinstance(speech, Audio)
    assert 6 < speech.seconds < 30
    assert np.sqrt(np.mean(speech.samples**2)) > 0.01
    assert np.abs(speech.samples).max() <= 1.0


def test_the_answer_can_be_understood(run_stage: Run) -> None:
    spoken = run_stage("speech.synthesise", text=ANSWER)["audio"]
    heard = re.findall(r"[a-z]+", run_stage("speech.transcribe", audio=spoken)["text"].lower())
    expected = re.findall(r"[a-z]+", ANSWER.lower())
    assert len(set(expected) & set(heard)) >= 0.8 * len(set(expected))


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100, 48_000])
def test_a_question_at_another_rate_is_heard(run_stage: Run, question: NDArray[np.float64], rate: int) -> None:
    data = sound_file(soxr.resample(question, 16_000, rate), rate)
    assert hear(run_stage, data) == "which pixels does this page call markers"


def test_a_question_over_the_telephone_is_heard_but_for_its_hisses(
    run_stage: Run, question: NDArray[np.float64]
) -> None:
    data = sound_file(soxr.resample(question, 16_000, 8_000), 8_000)
    # Above 4 kHz, where an s is, nothing is left.
    assert re.fullmatch("which pixels? does this page call markers?", hear(run_stage, data))


@pytest.mark.parametrize(
    "options",
    [
        {"subtype": "PCM_24"},
        {"subtype": "PCM_32"},
        {"subtype": "FLOAT"},
        {"subtype": "ULAW"},
        {"format": "FLAC", "subtype": "PCM_24"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "AIFF"},
    ],
)
def test_a_question_in_another_coding_is_heard(
    run_stage: Run, question: NDArray[np.float64], options: dict[str, str]
) -> None:
    assert hear(run_stage, sound_file(question, 16_000, **options)) == "which pixels does this page call markers"


def test_two_channels_are_averaged(run_stage: Run, question: NDArray[np.float64]) -> None:
    one_sided = np.stack([question, np.zeros_like(question)], axis=1)
    data = sound_file(soxr.resample(one_sided, 16_000, 48_000), 48_000, subtype="PCM_24")
    audio = run_stage("audio.decode", data=data)["audio"]
    assert audio.sample_rate_hz == 16_000
    assert np.abs(audio.samples).max() == pytest.approx(np.abs(question).max() / 2, rel=0.05)
    assert hear(run_stage, data) == "which pixels does this page call markers"
