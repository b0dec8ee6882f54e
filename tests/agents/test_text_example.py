"""The spoken question: its document, and its stages on its own inputs, one after another."""

from pathlib import Path
from typing import Any

import pytest

from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, Stage, StageCall
from starloom.agents.stages.answer import Answer
from starloom.agents.stages.audio import DecodeAudio
from starloom.agents.stages.embed import Embed
from starloom.agents.stages.faces import DetectFaces
from starloom.agents.stages.image import DecodeImage
from starloom.agents.stages.reading import DetectText, RecogniseText
from starloom.agents.stages.retrieve import Retrieve
from starloom.agents.stages.transcribe import Transcribe
from starloom.agents.stages.voice import DetectSpeech
from starloom.dag.constellation import Tier
from starloom.dag.document import load
from starloom.dag.kinds import KindSpec
from starloom.dag.validate import problems, warnings
from starloom.dag.values import Port, PortType

FOLDER = Path(__file__).parents[2] / "examples" / "spoken-question"
STAGES: tuple[type[Stage], ...] = (
    *(DecodeAudio, DetectSpeech, Transcribe, DecodeImage, DetectFaces, DetectText, RecogniseText),
    *(Embed, Retrieve, Answer),
)
SPEAK = KindSpec(
    name="speech.synthesise", inputs={"text": Port(PortType.TEXT)}, outputs={"audio": Port(PortType.AUDIO)}
)
KINDS = {stage.spec.name: stage for stage in STAGES}


def test_the_document_is_valid_and_spans_the_tiers() -> None:
    constellation = load((FOLDER / "constellation.yaml").read_text("utf-8"))
    kinds = {name: stage.spec for name, stage in KINDS.items()} | {SPEAK.name: SPEAK}
    assert problems(constellation, kinds) == []
    assert warnings(constellation, kinds) == []
    assert {tier for stage in constellation.stages.values() for tier in stage.requires.tiers} == set(Tier)
    assert {stage.requires.target for stage in constellation.stages.values()} == {"", "npu"}


def test_the_inputs_are_small() -> None:
    assert (FOLDER / "photo.jpg").stat().st_size <= 250_000
    assert (FOLDER / "question.wav").stat().st_size <= 250_000


@pytest.mark.models
@pytest.mark.slow
def test_the_question_is_heard_read_looked_up_and_answered() -> None:
    pool = SessionPool(ModelStore(), limit=8)

    def run(kind: str, **inputs: Any) -> dict[str, Any]:
        stage = KINDS[kind]
        params = {name: param.default for name, param in stage.spec.params.items()}
        outputs = stage().run(StageCall(inputs, params, pool.for_call(CancelToken())))
        assert isinstance(outputs, dict)
        return outputs

    audio = run("audio.decode", data=(FOLDER / "question.wav").read_bytes())["audio"]
    question = run("speech.transcribe", audio=run("speech.detect", audio=audio)["audio"])["text"]
    assert question.lower().strip(" .?") == "which pixels does this page call markers"

    image = run("image.decode", data=(FOLDER / "photo.jpg").read_bytes())["image"]
    assert len(run("vision.faces", image=image)["faces"]) == 1
    read = run("text.recognise", image=image, boxes=run("text.detect", image=image)["boxes"])["text"]

    embedding = run("text.embed", text=question)["embedding"]
    passages = run("text.retrieve", embedding=embedding)["passages"]
    assert passages[0]["title"] == "pixel"
    assert run("text.answer", question=question, read=read, passages=passages)["answer"] == (
        "The picture says: These markers are pixels that we can label unambiguously as either object or background. "
        "Pixel means the smallest resolvable rectangular area of an image, either on a screen or stored in memory."
    )
