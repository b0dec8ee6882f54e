"""The extractive answer: its parts, without models, and its answers, with them."""

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, Models, StageCall
from starloom.agents.stages import answer
from starloom.agents.stages.answer import Answer, Candidate
from starloom.agents.stages.embed import Embed
from starloom.agents.stages.retrieve import Retrieve, corpus
from starloom.dag import limits

PAGE = """Region-based segmentation
Let us first determine markers of the coins and the
background. These markers are pixels that we can label
unambiguously as either object or background. Here,
the markers are found at the two extreme parts of the
histogram of grey values:
>>> markers = np.zeros_like(coins)"""

UNANSWERABLE = (
    "Who won the world cup in 1998?",
    "What's the weather like today?",
    "How old is the astronaut?",
    "Do you like cheese?",
    "What is the capital of France?",
    "How tall is Mount Everest?",
    "Who painted the Mona Lisa?",
    "What time does the train leave?",
    "How do I bake bread?",
    "Where is my dog?",
    "What colour is the sky?",
    "Who is the president?",
    "Can you sing a song?",
    "How many legs does a spider have?",
    "When was the war of 1812?",
    "What is the price of eggs?",
    "Is it going to rain tomorrow?",
    "Who wrote Hamlet?",
    "What is the best restaurant in Rome?",
    "How far is the moon?",
)


def call(models: Models, stage: type[Embed] | type[Retrieve] | type[Answer], **inputs: Any) -> dict[str, Any]:
    params = {name: param.default for name, param in stage.spec.params.items()}
    outputs = stage().run(StageCall(inputs, params, models))
    assert isinstance(outputs, dict)
    return outputs


def ask(models: Models, question: str, read: str = PAGE) -> dict[str, Any]:
    embedding = call(models, Embed, text=question)["embedding"]
    passages = call(models, Retrieve, embedding=embedding)["passages"]
    return call(models, Answer, question=question, read=read, passages=passages)


@pytest.fixture(scope="module")
def models(model_store: ModelStore) -> Models:
    return SessionPool(model_store, limit=2).for_call(CancelToken())


def test_lines_of_a_paragraph_are_joined_and_headings_and_code_stand_alone() -> None:
    assert answer.read_sentences(PAGE) == [
        "Region-based segmentation",
        "Let us first determine markers of the coins and the background.",
        "These markers are pixels that we can label unambiguously as either object or background.",
        "Here, the markers are found at the two extreme parts of the histogram of grey values:",
        ">>> markers = np.zeros_like(coins)",
    ]


def test_a_hyphen_at_the_end_of_a_line_is_healed() -> None:
    assert answer.read_sentences("The tele-\nvision is on.") == ["The television is on."]


@given(st.lists(st.text(st.characters(categories=("L", "N", "P")), min_size=1), max_size=12))
def test_no_character_that_was_read_is_lost(lines: list[str]) -> None:
    text = "\n".join(lines)
    kept = "".join("".join(answer.read_sentences(text)).split())
    assert kept.replace("-", "") == "".join(text.split()).replace("-", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One thing. Another thing.", ["One thing.", "Another thing."]),
        ("It ends here.There is no space.", ["It ends here.", "There is no space."]),
        ("Version 2.5 costs 3.50 e.g. here.", ["Version 2.5 costs 3.50 e.g. here."]),
        ('He said "Stop." Then he left.', ['He said "Stop.', "Then he left."]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert answer.sentences(text) == expected


def test_code_and_single_words_are_no_prose() -> None:
    assert not answer.is_prose(">>> markers = np.zeros_like(coins)")
    assert not answer.is_prose("Exit")
    assert answer.is_prose("This way to the exit")


@pytest.mark.parametrize(
    ("title", "sentence", "expected"),
    [
        ("robot", "A device for tasks.", "A robot is a device for tasks."),
        ("image", "An array of pixels.", "An image is an array of pixels."),
        ("pixel", "The smallest area of an image", "Pixel means the smallest area of an image."),
        ("mouse trails", "A ghost of the pointer.", "Mouse trails means a ghost of the pointer."),
        ("Linux", "An implementation of Unix.", "Linux is an implementation of Unix."),
        ("Thumb", "Thumb is an extension.", "Thumb is an extension."),
        ("slop", "To waste time.", "Of slop, the dictionary says: To waste time."),
    ],
)
def test_a_definition_is_spoken_as_a_sentence(title: str, sentence: str, expected: str) -> None:
    assert answer.spoken(Candidate("corpus", sentence, title, leads=True)) == expected


def test_a_later_sentence_of_a_passage_is_spoken_as_it_stands() -> None:
    assert answer.spoken(Candidate("corpus", "A second one.", "pixel")) == "A second one."


def test_what_was_read_is_spoken_as_the_pictures() -> None:
    assert answer.spoken(Candidate("read", "The values are grey:")) == "The picture says: The values are grey."


def test_a_companion_shares_its_title_with_question_and_reading() -> None:
    reading = Candidate("read", "Markers are pixels.", score=0.9)
    pixel = Candidate("corpus", "The smallest area.", "pixel", leads=True, score=0.7)
    marker = Candidate("corpus", "A felt pen.", "felt pen", leads=True, score=0.8)
    ranked = [reading, marker, pixel]
    assert answer.companion("Which pixels are markers?", reading, ranked, 0.5) == pixel
    assert answer.companion("What is a pixel?", pixel, ranked, 0.5) == reading
    assert answer.companion("Which pixels are markers?", reading, ranked, 0.75) is None
    assert answer.companion("What are markers?", reading, ranked, 0.5) is None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does the page say?", True),
        ("What is written on the sign?", True),
        ("Read the text to me, please.", True),
        ("What does the page say about coins?", False),
        ("What is a page?", False),
        ("Who are you?", False),
    ],
)
def test_asking_for_the_text_itself(question: str, expected: bool) -> None:
    assert answer.asks_for_text(question) is expected


@given(st.text(st.characters(categories=("L", "P", "Zs")), max_size=3 * limits.ANSWER_CHARACTERS_MAX))
def test_an_answer_is_never_too_long(text: str) -> None:
    short = answer.shortened(text)
    assert len(short) <= limits.ANSWER_CHARACTERS_MAX + len(" ...")
    assert short == text or len(text) > limits.ANSWER_CHARACTERS_MAX


def test_a_long_answer_ends_after_a_sentence() -> None:
    sentence = "This is a sentence of some length. "
    assert answer.shortened(sentence * 40).endswith("some length.")


class NoModels:
    """Fails whoever asks for a model."""

    def session(self, model: str, file: str = "", *, target: str | None = None) -> Any:
        raise AssertionError(f"{model} was asked for")

    def path(self, model: str, file: str) -> str:
        raise AssertionError(f"{model} was asked for")

    def cached(self, model: str, name: str, make: Any) -> Any:
        raise AssertionError(f"{model} was asked for")


@pytest.mark.parametrize("question", ["", "  \n", "...", "?!"])
def test_silence_gets_a_plain_answer_without_a_model(question: str) -> None:
    outputs = call(NoModels(), Answer, question=question, read=PAGE, passages=[])
    assert outputs["answer"] == answer.NOTHING_HEARD
    assert outputs["details"]["source"] == "none"


def test_reading_aloud_needs_no_model_and_leaves_code_out() -> None:
    outputs = call(NoModels(), Answer, question="What does it say?", read=PAGE, passages=[])
    assert outputs["answer"].startswith("The picture says: Let us first determine markers")
    assert "zeros" not in outputs["answer"]
    assert outputs["details"]["source"] == "read"
    assert call(NoModels(), Answer, question="Read the sign.", read="EXIT")["answer"] == "The picture says: EXIT."
    assert call(NoModels(), Answer, question="Read the sign.", read=" ")["answer"] == answer.NOTHING_READ


@pytest.mark.models
@pytest.mark.parametrize(
    "question",
    [
        "Which pixels does this page call markers?",
        "which pixels does this page call markers.",
        "Which pixel does this page call marker's?",
        "What are the pixels that the page calls markers?",
    ],
)
def test_the_demos_question_is_answered_from_both_sources(models: Models, question: str) -> None:
    outputs = ask(models, question)
    assert outputs["answer"].startswith(
        "The picture says: These markers are pixels that we can label unambiguously as either object or background. "
        "Pixel means the smallest resolvable rectangular area of an image"
    )
    details = outputs["details"]
    assert (details["source"], details["also"]["source"], details["also"]["title"]) == ("read", "corpus", "pixel")


@pytest.mark.models
def test_a_question_about_the_picture_is_answered_from_it(models: Models) -> None:
    assert "two extreme parts of the histogram" in ask(models, "Where are the markers found?")["answer"]


@pytest.mark.models
def test_a_question_without_a_picture_is_answered_from_the_corpus(models: Models) -> None:
    outputs = ask(models, "What is latency?", read="")
    assert outputs["answer"].startswith("Latency means the time it takes for a packet to cross a network connection")
    assert outputs["details"]["title"] == "latency"


@pytest.mark.models
def test_what_nothing_answers_is_refused(models: Models) -> None:
    refused = [question for question in UNANSWERABLE if ask(models, question)["details"]["source"] == "none"]
    sys.stdout.write(f"refused: {len(refused)} of {len(UNANSWERABLE)}\n")
    assert len(refused) >= 18
    assert ask(models, UNANSWERABLE[0])["answer"] == answer.NOTHING_FITS


@pytest.mark.models
@pytest.mark.slow
def test_what_the_corpus_defines_is_found(models: Models) -> None:
    asked = corpus().passages[::60]
    right = [p for p in asked if ask(models, f"What is {p['title']}?")["details"]["title"] == p["title"]]
    sys.stdout.write(f"answered from the right entry: {len(right)} of {len(asked)}\n")
    assert len(right) >= 0.9 * len(asked)
