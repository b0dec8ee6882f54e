"""A question asked of a reading model: the prompt, the words it may copy, and how sure it was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starloom.agents.language import prompt
from starloom.agents.language.budget import Budget
from starloom.agents.language.engine import Generation, Request, collected, generate
from starloom.agents.language.model import LanguageModel
from starloom.agents.language.prompt import Copying, Reply, Snippet
from starloom.agents.stage import CancelToken

ANSWER_TOKENS_MAX: Final = 72


@dataclass(frozen=True, slots=True)
class Read:
    """What a model replied, and how sure it was: mean log-probability of its tokens."""

    model: str
    reply: Reply
    made: Generation
    prompt_tokens: int

    @property
    def certainty(self) -> float:
        return self.made.mean_log_probability if self.made.tokens else float("-inf")


def asked(
    model: LanguageModel,
    question: str,
    shown: Sequence[Snippet],
    cancel: CancelToken,
    seconds: float,
    *,
    copied: bool = True,
) -> Read:
    """The model's reply to a question about the passages, its words held to the passage that it names, and checked.

    Not so without `copied`. Raises InvalidInput for a prompt over the model's context, and Cancelled.
    """
    vocabulary = model.vocabulary
    request = Request(
        prompt=tuple(vocabulary.encode(prompt.prompt(shown, question), marked=False)),
        budget=Budget(ANSWER_TOKENS_MAX, seconds),
        ends=model.texts.ends,
        context=model.texts.config.context,
        allowed=Copying(vocabulary.tokenizer, shown).allowed if copied else lambda _: None,
    )
    made = collected(generate(model.decoder, vocabulary, request, cancel))
    cancel.raise_if_cancelled()
    reply = prompt.parse(vocabulary.spelled(made.tokens))
    return Read(model.name, prompt.checked(reply, shown) if copied else reply, made, len(request.prompt))
