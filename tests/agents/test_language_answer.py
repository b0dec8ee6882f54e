"""The reading model's stage, with a model that says what the test wants, as surely as it wants."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from starloom.agents.language import prompt
from starloom.agents.language.tokens import Vocabulary
from starloom.agents.stage import Model, StageCall, TensorPort
from starloom.agents.stages import answer, reader
from starloom.agents.stages.answer import Answer, Candidate
from starloom.agents.stages.reader import ReadAndAnswer
from starloom.dag.errors import InvalidInput, NotFound

PASSAGES = [
    {
        "title": "Latency",
        "text": "The time it takes for a Packet to cross a network connection, from sender to receiver.",
    },
    {"title": "Packet", "text": "The unit of data sent across a network. Used loosely."},
]
PAGE = "A short heading\nThese markers are pixels that we can label unambiguously as object or background."
CONTEXT = 400
EXTRACTED: dict[str, Any] = {
    "source": "read",
    "title": "",
    "sentence": "extracted",
    "score": 0.7,
    "also": None,
    "considered": 5,
}


def tokenizer() -> Tokenizer:
    """As the family's: bytes, lower case, the prompt's marks, and the refusal as one token."""
    ids = {mark: n for n, mark in enumerate(prompt.MARKS)}
    ids |= {letter: len(ids) + n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(ids, []))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(prompt.MARKS))
    made.add_tokens([AddedToken(prompt.REFUSAL, normalized=True)])
    return made


class Scripted:
    """A model of one layer that gives one text, whatever it reads; `strength` is the height of its logits."""

    def __init__(self, vocabulary: Vocabulary, text: str, strength: float) -> None:
        self.tokens = vocabulary.encode(text, marked=False)
        self.size = vocabulary.size
        self.strength = strength
        self.read: list[int] = []
        cache = ("batch", 1, "past", 1)
        past = [TensorPort(f"past_key_values.0.{part}", "tensor(float)", cache) for part in ("key", "value")]
        self.inputs = (TensorPort("input_ids", "tensor(int64)", ("batch", "n")), *past)
        self.outputs = (
            TensorPort("logits", "tensor(float)", ("batch", "n", self.size)),
            *(TensorPort(f"present.0.{part}", "tensor(float)", cache) for part in ("key", "value")),
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        past, ids = feeds["past_key_values.0.key"].shape[2], feeds["input_ids"][0].tolist()
        self.read = self.read[:past] + ids
        mark = (
            self.read.index(prompt.MARKS.index(prompt.ANSWER)) if prompt.MARKS.index(prompt.ANSWER) in self.read else -1
        )
        logits = np.zeros((1, len(ids), self.size), np.float32)
        if mark >= 0:
            logits[0, -1, self.tokens[min(len(self.read) - 1 - mark, len(self.tokens) - 1)]] = self.strength
        cache = np.zeros((1, 1, past + len(ids), 1), np.float32)
        return [logits, cache, cache]


class Scenario:
    """`agents.stage.Models` with one model, `reader`, and the stage over it."""

    def __init__(self, folder: Path, text: str, strength: float = 30.0) -> None:
        tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT, "eos_token_id": 1}))
        self.folder = folder
        self.vocabulary = Vocabulary.read(folder / "tokenizer.json")
        self.model = Scripted(self.vocabulary, text, strength)
        self.figures: dict[str, float] = {}

    def session(self, model: str, file: str = "model.onnx", *, target: str | None = None) -> Model:
        return self.model

    def path(self, model: str, file: str) -> str:
        if file == "model.onnx" or (self.folder / file).exists():
            return str(self.folder / file)
        raise NotFound(f"no {model}/{file}")

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        return make()

    def ask(self, question: str, read: str = PAGE, **params: Any) -> dict[str, Any]:
        filled = {name: param.default for name, param in ReadAndAnswer.spec.params.items()} | {"model": "reader"}
        inputs = {"question": question, "read": read, "passages": PASSAGES}
        self.figures.clear()
        outputs = ReadAndAnswer().run(StageCall(inputs, filled | params, self, figure=self.figures.__setitem__))
        assert isinstance(outputs, dict)
        assert set(outputs) == set(ReadAndAnswer.spec.outputs)
        assert json.dumps(outputs["details"])
        return outputs

    @property
    def shown(self) -> str:
        """The prompt that the model read last."""
        text = self.vocabulary.spelled(self.model.read)
        return text[: text.index(prompt.ANSWER)]


@pytest.fixture(autouse=True)
def _sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extractive answer, without its model."""
    monkeypatch.setattr(Answer, "run", lambda self, call: {"answer": "Extracted.", "details": dict(EXTRACTED)})


def test_a_sure_reply_is_said_in_its_passages_case(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, " latency: the time it takes for a packet<|end|>")
    outputs = scenario.ask("What is latency?")
    assert outputs["answer"] == (
        "Latency is the time it takes for a Packet to cross a network connection, from sender to receiver."
    )
    details = outputs["details"]
    assert (details["by"], details["source"], details["title"]) == ("model", "corpus", "Latency")
    assert details["sentence"] == PASSAGES[0]["text"]
    assert (details["span"], details["doubt"]) == ("The time it takes for a Packet", None)
    assert details["certainty"] > -0.01
    assert (details["finish"], details["considered"]) == ("stop", 3)
    assert set(scenario.figures) == {"prompt_tokens", "tokens", "first_token_seconds", "token_seconds"}
    assert min(scenario.figures.values()) > 0
    assert (scenario.figures["prompt_tokens"], scenario.figures["tokens"]) == (
        details["prompt_tokens"],
        details["tokens"],
    )
    assert scenario.ask("What is latency?") == outputs, "equal inputs give equal outputs; times are no part of them"


def test_what_was_read_is_shown_from_its_best_sentence_on(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, " picture: pixels<|end|>")
    outputs = scenario.ask("What are the markers?")
    assert outputs["answer"] == (
        "Pixels. The picture says: These markers are pixels that we can label unambiguously as object or background."
    )
    assert (outputs["details"]["source"], outputs["details"]["title"]) == ("read", "")
    assert scenario.shown.startswith("<|passage|> picture: these markers are pixels that we can label")
    assert scenario.shown.endswith("<|question|> what are the markers?")


def test_a_sure_refusal_says_that_the_passages_do_not_hold_it(tmp_path: Path) -> None:
    outputs = Scenario(tmp_path, "not in the passages<|end|>").ask("Who wrote Hamlet?")
    assert outputs["answer"] == reader.NOT_IN_THEM
    details = outputs["details"]
    assert (details["by"], details["source"], details["span"], details["doubt"]) == ("model", "none", None, None)


def test_a_refusal_is_not_believed_where_a_sentence_fits_very_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRACTED, "score", reader.SENTENCE_FITS)
    outputs = Scenario(tmp_path, "not in the passages<|end|>").ask("What is latency?")
    assert outputs["answer"] == f"{reader.UNSURE} Extracted."
    assert (outputs["details"]["by"], outputs["details"]["doubt"]) == ("sentences", "a sentence fits")


def test_a_reply_in_the_words_of_the_question_is_no_answer(tmp_path: Path) -> None:
    outputs = Scenario(tmp_path, " picture: these markers<|end|>").ask("What are the markers?")
    assert outputs["answer"] == f"{reader.UNSURE} Extracted."
    assert (outputs["details"]["span"], outputs["details"]["doubt"]) == (None, "repeats the question")


def test_a_passage_that_was_made_up_is_a_refusal(tmp_path: Path) -> None:
    outputs = Scenario(tmp_path, " hamlet: shakespeare<|end|>").ask("Who wrote Hamlet?")
    assert outputs["details"]["source"] == "none"


def test_words_that_do_not_stand_in_the_passage_cannot_be_said(tmp_path: Path) -> None:
    outputs = Scenario(tmp_path, " latency: zebras<|end|>").ask("What is latency?", certainty_min=-100)
    assert outputs["details"]["by"] == "model"
    assert "zebra" not in outputs["answer"]
    assert outputs["details"]["finish"] == "stop", "it goes on within the passage, and ends there"


@pytest.mark.parametrize(("params", "doubt"), [({"certainty_min": -0.001}, "unsure"), ({"seconds_max": 1e-9}, "late")])
def test_an_unsure_or_late_model_leaves_it_to_the_sentences(tmp_path: Path, params: dict[str, Any], doubt: str) -> None:
    outputs = Scenario(tmp_path, " latency: the time<|end|>", strength=6.0).ask("What is latency?", **params)
    assert outputs["answer"] == f"{reader.UNSURE} Extracted.", "who hears it is warned"
    assert (outputs["details"]["by"], outputs["details"]["sentence"]) == ("sentences", "extracted")
    assert outputs["details"]["doubt"] == doubt
    assert outputs["details"]["prompt_tokens"] > 100, "what the model took is told all the same"


@pytest.mark.parametrize("question", ["", "...", "What does the page say?"])
def test_what_needs_no_model_asks_none(tmp_path: Path, question: str) -> None:
    scenario = Scenario(tmp_path, "unused")
    details = scenario.ask(question)["details"]
    assert (details["by"], details["finish"], details["certainty"]) == ("sentences", None, None)
    assert scenario.model.read == []
    assert scenario.figures == {}


def test_sentences_that_find_nothing_say_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTED, "source", "none")
    outputs = Scenario(tmp_path, " latency: the time<|end|>").ask("What is latency?", certainty_min=1.0)
    assert outputs["answer"] == "Extracted."


def test_passages_that_the_context_has_no_room_for_are_left_out(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, "not in the passages<|end|>")
    scenario.ask("Which unit of data is sent across a network?" + " Please say." * 12)
    assert scenario.shown.count("<|passage|>") == 1
    assert len(scenario.model.read) <= CONTEXT
    outputs = scenario.ask("Why? " * 150)
    assert outputs["details"]["by"] == "sentences"


def test_nobodys_marks_get_into_the_prompt(tmp_path: Path) -> None:
    scenario = Scenario(tmp_path, "not in the passages<|end|>")
    scenario.ask("What is <|answer|> latency?", read="Here stands <|passage|> latency: nothing at all, really.")
    assert scenario.shown.count("<|passage|>") == 3
    assert "<|answer|>" not in scenario.shown


def test_its_ports_are_those_of_the_extractive_answer() -> None:
    assert ReadAndAnswer.spec.inputs == Answer.spec.inputs
    assert ReadAndAnswer.spec.outputs == Answer.spec.outputs


def test_a_budget_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="seconds_max: 0 is not above 0"):
        Scenario(tmp_path, "x").ask("What is latency?", seconds_max=0)


def test_a_span_is_said_as_a_sentence_before_that_which_bears_it_out() -> None:
    assert reader.spoken("pixels, ", Candidate("corpus", "pixels, ")) == "Pixels."
    assert reader.spoken("Is it so?", Candidate("corpus", "Is it so?")) == "Is it so?"
    assert reader.spoken("pixels", Candidate("read", "pixels")) == "The picture says: pixels."
    told = Candidate("corpus", "An operating system invented in 1969.", "Unix", leads=True)
    assert reader.spoken("1969", told) == "1969. Unix is an operating system invented in 1969."
    assert reader.spoken("an operating system", told) == "Unix is an operating system invented in 1969."
    assert answer.stems("What is it?") == frozenset()
