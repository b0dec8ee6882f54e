"""The answer to a question, by a language model that was trained to read passages and copy the answer from them.

Where the model is sure it answers, or says that the passages do not hold the answer; where it is not,
the best sentences answer, as `text.answer` finds them. What it says stands in a passage, word for word:
its words are held to the passage that it names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starloom.agents.language import prompt
from starloom.agents.language.budget import Budget, Finish
from starloom.agents.language.engine import Generation, Request, collected, generate
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.language.prompt import Copying, Reply, Snippet
from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages import answer
from starloom.agents.stages.answer import Answer, Candidate
from starloom.agents.stages.language import details
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.kinds import Cost, KindSpec, Param

PICTURE: Final = "picture"
"""The title of what was read in a picture, as the family was trained on it."""

PASSAGES_MAX: Final = 3
"""Passages of the corpus in a prompt, beside what was read: the family was trained on four at most."""

ANSWER_TOKENS_MAX: Final = 72
NOT_IN_THEM: Final = "What I have read does not say."


@dataclass(frozen=True, slots=True)
class Read:
    """What the model replied, checked against the passages, and how sure it was: mean log-probability of its tokens."""

    reply: Reply
    made: Generation
    prompt_tokens: int

    @property
    def certainty(self) -> float:
        return self.made.mean_log_probability if self.made.tokens else float("-inf")


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


def asked(model: LanguageModel, question: str, shown: Sequence[Snippet], call: StageCall, seconds: float) -> Read:
    """The model's reply to a question about the passages. Raises InvalidInput for a prompt over its context."""
    vocabulary = model.vocabulary
    request = Request(
        prompt=tuple(vocabulary.encode(prompt.prompt(shown, question), marked=False)),
        budget=Budget(ANSWER_TOKENS_MAX, seconds),
        ends=model.texts.ends,
        context=model.texts.config.context,
        allowed=Copying(vocabulary.tokenizer, shown).allowed,
    )
    made = collected(generate(model.decoder, vocabulary, request, call.cancel))
    call.cancel.raise_if_cancelled()
    replied = prompt.parse(vocabulary.spelled(made.tokens))
    return Read(prompt.checked(replied, shown), made, len(request.prompt))


def fitting(model: LanguageModel, question: str, shown: Sequence[Snippet]) -> list[Snippet]:
    """As many of the passages, from the first on, as leave room for an answer in the model's context."""
    kept = list(shown)
    room = model.texts.config.context - ANSWER_TOKENS_MAX
    while kept and len(model.vocabulary.encode(prompt.prompt(kept, question), marked=False)) > room > 0:
        kept.pop()
    return kept


class ReadAndAnswer(Stage):
    """`question`, `read`, `passages` (as text.retrieve gives them) -> `answer`, as `text.answer` has its ports.

    `details`: those of `text.answer`, with `by` (model | sentences), `certainty`, and of the model's run
    finish, prompt_tokens, tokens, first_token_seconds, tokens_per_second, mean_log_probability, seconds;
    null where it was not asked. A refusal has the source `none`. Where the model's mean log-probability is
    below `certainty_min`, or its time was over, `by` is `sentences`.
    """

    spec = KindSpec(
        name="language.answer",
        about="Answers a question from what was read and retrieved, with a small language model.",
        inputs=dict(Answer.spec.inputs),
        outputs=dict(Answer.spec.outputs),
        params={
            "model": Param(type="string", required=True, about="a model's name in the store"),
            "certainty_min": Param(
                type="number", default=-0.5, about="the mean log-probability from which the model is believed"
            ),
            "seconds_max": Param(type="number", default=10.0, about="for the model; then the best sentences answer"),
            **Answer.spec.params,
        },
        models=Answer.spec.models,
        tier=Tier.CLOUD,
        deterministic=False,
        cost=Cost(run_seconds=0.3, load_seconds=0.5, memory_bytes=160 * 1024 * 1024),
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
            return self._by_sentences(call, None)
        model = load(call.models, call.params["model"])
        shown = fitting(
            model, question, snippets(question, call.inputs.get("read", ""), call.inputs.get("passages", []))
        )
        if not shown:
            return self._by_sentences(call, None)
        found = asked(model, question, shown, call, seconds)
        if found.made.finish != Finish.STOP or found.certainty < call.params["certainty_min"]:
            return self._by_sentences(call, found)
        return _by_model(found, shown)

    def _by_sentences(self, call: StageCall, found: Read | None) -> Outputs:
        outputs = self._sentences.run(call)
        assert isinstance(outputs, dict)
        return {"answer": outputs["answer"], "details": {**outputs["details"], **_account("sentences", found)}}


def _by_model(found: Read, shown: Sequence[Snippet]) -> Outputs:
    reply = prompt.restored(found.reply, shown)
    said, candidate = NOT_IN_THEM, Candidate("none", "")
    if not reply.refused:
        is_read = prompt.normalised(reply.title) == PICTURE
        candidate = Candidate("read" if is_read else "corpus", reply.span, "" if is_read else reply.title)
        said = spoken(reply.span)
    account = {**candidate.details(), "also": None, "considered": len(shown), **_account("model", found)}
    return {"answer": answer.shortened(said), "details": account}


def _account(by: str, found: Read | None) -> dict[str, Any]:
    """Who answered, and the model's run. Its `certainty` and the sentence's score are different scales."""
    made = found.made if found else Generation()
    run = details(made, found.prompt_tokens if found else 0)
    certainty = found.certainty if found and found.made.tokens else None
    return {"by": by, "certainty": certainty, **(run if found else dict.fromkeys(run))}


def spoken(span: str) -> str:
    """A span as a sentence to be said aloud."""
    text = span.strip().rstrip(":;,").rstrip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
