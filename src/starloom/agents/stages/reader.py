"""The answer to a question, by a language model that was trained to read passages and copy the answer from them.

Where the model is sure it answers, or says that the passages do not hold the answer; where it is not,
the best sentences answer, as `text.answer` finds them, and the answer begins with a warning. What the model
says stands in a passage, word for word: its words are held to the passage that it names.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from starloom.agents.language import prompt
from starloom.agents.language.budget import Finish
from starloom.agents.language.family import LARGEST, chosen
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.language.prompt import Reply, Snippet
from starloom.agents.language.reading import ANSWER_TOKENS_MAX, Read, asked
from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages import answer
from starloom.agents.stages.answer import Answer, Candidate
from starloom.agents.stages.language import details, tell
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.kinds import Cost, GraphUse, KindSpec, Param

PICTURE: Final = "picture"
"""The title of what was read in a picture, as the family was trained on it."""

PASSAGES_MAX: Final = 3
"""Passages of the corpus in a prompt, beside what was read: the family was trained on four at most."""

SENTENCE_FITS: Final = 0.8
"""The score of a sentence from which a refusal is not believed. Of the held-out questions that the size `1m` refuses,
20 of 36 with such a sentence could be answered."""

NOT_IN_THEM: Final = "What I have read, in the picture and in the dictionary, does not hold the answer."
UNSURE: Final = "I am not sure of the answer."
"""Begins what the best sentences say where the model did not know."""


class Doubt(StrEnum):
    """Why the model was not believed."""

    UNSURE = "unsure"
    LATE = "late"
    REPEATS = "repeats the question"
    FITS = "a sentence fits"


def snippets(question: str, read: str, passages: Sequence[Mapping[str, Any]]) -> list[Snippet]:
    """What the prompt holds: of what was read, the part that has most of the question's words; then passages."""
    found = []
    sentences = [one for one in answer.read_sentences(read) if answer.is_prose(one)]
    if sentences:
        asked = answer.stems(question)
        best = max(range(len(sentences)), key=lambda n: len(asked & answer.stems(sentences[n])))
        found.append(prompt.snippet(PICTURE, " ".join(sentences[best:])))
    found += [prompt.snippet(str(one["title"]), str(one["text"])) for one in passages[:PASSAGES_MAX]]
    return found


def fitting(model: LanguageModel, question: str, shown: Sequence[Snippet]) -> list[Snippet]:
    """As many of the passages, from the first on, as leave room for an answer in the model's context."""
    kept = list(shown)
    room = model.texts.config.context - ANSWER_TOKENS_MAX
    while kept and len(model.vocabulary.encode(prompt.prompt(kept, question), marked=False)) > room > 0:
        kept.pop()
    return kept


def _sizes(tokens: int, before: int) -> dict[str, int]:
    """Of a language model's inputs, for so many tokens behind so many."""
    return {
        "batch_size": 1,
        "sequence_length": tokens,
        "past_sequence_length": before,
        "total_sequence_length": tokens + before,
    }


class ReadAndAnswer(Stage):
    """`question`, `read`, `passages` (as text.retrieve gives them) -> `answer`, as `text.answer` has its ports.

    `details`: those of `text.answer`, with `by` (model | sentences), `span`, which is what of the sentence
    answers the question, `model`, `certainty`, `doubt`, and of the model's run finish, prompt_tokens, tokens;
    null where there is none. How fast it ran is in the trace. A refusal has the source `none`. With a `doubt` the sentences answer: the model's mean log-probability is below
    `certainty_min`, its time was over, it only repeats the question's words, or it refuses although a
    sentence fits very well.
    """

    spec = KindSpec(
        name="language.answer",
        about="Answers a question from what was read and retrieved, with a small language model.",
        inputs=dict(Answer.spec.inputs),
        outputs=dict(Answer.spec.outputs),
        params={
            "model": Param(
                type="string",
                default=LARGEST,
                about="a model's name in the store; unless given, the largest that ships",
            ),
            "certainty_min": Param(
                type="number", default=-0.1, about="the mean log-probability from which the model is believed"
            ),
            "seconds_max": Param(type="number", default=10.0, about="for the model; then the best sentences answer"),
            **Answer.spec.params,
        },
        models=Answer.spec.models,
        tier=Tier.CLOUD,
        deterministic=False,
        cost=Cost(
            run_seconds=0.3,
            # 45 ms for a prompt of 96 tokens, as it is told in reports, and 8 ms for each token of the answer
            first_token_seconds=0.1,
            token_seconds=0.008,
            load_seconds=0.5,
            memory_bytes=160 * 1024 * 1024,
            # a prompt of a few passages, a short answer, and the sentences that are compared with the question
            graphs=(
                GraphUse(model=chosen(LARGEST), sizes=_sizes(214, 0)),
                GraphUse(model=chosen(LARGEST), sizes=_sizes(1, 218), times=7),
                GraphUse(model=Answer.spec.models[0], sizes={"batch": 1, "steps": 20}, times=20),
            ),
        ),
    )

    def __init__(self) -> None:
        self._sentences = Answer()

    def load(self, models: Models, target: str) -> None:
        self._sentences.load(models, target)

    def run(self, call: StageCall) -> Outputs:
        seconds = call.params["seconds_max"]
        if not 0 < seconds <= limits.LANGUAGE_SECONDS_MAX:
            what = f"{seconds} is not above 0 and up to LANGUAGE_SECONDS_MAX = {limits.LANGUAGE_SECONDS_MAX:g}"
            raise InvalidInput([Problem("seconds_max", what)])
        question = " ".join(call.inputs["question"].split())
        # Silence, and a picture that is only to be read out, are no work for a model.
        if not answer.stems(question) or answer.asks_for_text(question):
            return self._by_sentences(call)
        model = load(call.models, call.params["model"])
        read, passages = call.inputs.get("read", ""), call.inputs.get("passages", [])
        shown = fitting(model, question, snippets(question, read, passages))
        if not shown:
            return self._by_sentences(call)
        found = asked(model, question, shown, call.cancel, seconds)
        tell(call, details(found.made, found.prompt_tokens))
        if doubt := _doubt(found, question, call.params["certainty_min"]):
            return self._by_sentences(call, found, doubt)
        if found.reply.refused:
            best = self._by_sentences(call, found, Doubt.FITS)
            return best if best["details"]["score"] >= SENTENCE_FITS else _refusal(found, len(shown))
        return _by_model(found, shown, answer.candidates(read, passages))

    def _by_sentences(self, call: StageCall, found: Read | None = None, doubt: Doubt | None = None) -> dict[str, Any]:
        outputs = self._sentences.run(call)
        assert isinstance(outputs, dict)
        said, chosen = outputs["answer"], outputs["details"]
        if doubt and chosen["source"] != "none":
            said = answer.shortened(f"{UNSURE} {said}")
        return {"answer": said, "details": {**chosen, **_account("sentences", found, doubt=doubt)}}


def _doubt(found: Read, question: str, certainty_min: float) -> Doubt | None:
    """Why not to believe the model, as far as its reply alone tells."""
    if found.made.finish != Finish.STOP:
        return Doubt.LATE
    if found.certainty < certainty_min:
        return Doubt.UNSURE
    repeats = not found.reply.refused and answer.stems(found.reply.span) <= answer.stems(question)
    return Doubt.REPEATS if repeats else None


def _refusal(found: Read, shown: int) -> Outputs:
    nothing = {**Candidate("none", "").details(), "also": None, "considered": shown}
    return {"answer": NOT_IN_THEM, "details": {**nothing, **_account("model", found)}}


def _by_model(found: Read, shown: Sequence[Snippet], sentences: Sequence[Candidate]) -> Outputs:
    reply = prompt.restored(found.reply, shown)
    candidate = _sentence(reply, sentences)
    chosen = {**candidate.details(), "also": None, "considered": len(shown)}
    said = answer.shortened(spoken(reply.span, candidate))
    return {"answer": said, "details": {**chosen, **_account("model", found, reply.span)}}


def _sentence(reply: Reply, sentences: Sequence[Candidate]) -> Candidate:
    """The sentence of the named passage in which the span stands; the span itself where it stands in none of them."""
    is_read, span = prompt.normalised(reply.title) == PICTURE, prompt.normalised(reply.span)
    for one in sentences:
        named = one.source == "read" if is_read else prompt.normalised(one.title) == prompt.normalised(reply.title)
        if named and f" {span} " in f" {prompt.normalised(one.sentence)} ":
            return one
    return Candidate("read" if is_read else "corpus", reply.span, "" if is_read else reply.title)


def _account(by: str, found: Read | None, span: str | None = None, doubt: Doubt | None = None) -> dict[str, Any]:
    """Who answered, and the model's run. Its `certainty` and the sentence's score are different scales.

    Times are told to the trace alone: equal inputs are to give equal outputs.
    """
    if found is None:
        unasked = ("span", "model", "certainty", "doubt", "finish", "prompt_tokens", "tokens")
        return {"by": by, **dict.fromkeys(unasked)}
    made = found.made
    return {
        "by": by,
        "span": span,
        "model": found.model,
        "certainty": round(found.certainty, 6) if made.tokens else None,
        "doubt": None if doubt is None else str(doubt),
        "finish": str(made.finish),
        "prompt_tokens": found.prompt_tokens,
        "tokens": len(made.tokens),
    }


def spoken(span: str, candidate: Candidate) -> str:
    """A span to be said aloud, and behind it the sentence that bears it out, unless that begins with it."""
    text = span.strip().rstrip(":;,").rstrip()
    text = text[:1].upper() + text[1:]
    text = text if text.endswith((".", "!", "?")) else f"{text}."
    whole, begun = prompt.normalised(candidate.sentence), prompt.normalised(span)
    if f"{whole} ".startswith(f"{begun} "):
        alone = whole == begun and candidate.source == "corpus" and not candidate.leads
        return text if alone else answer.spoken(candidate)
    return f"{text} {answer.spoken(candidate)}"
