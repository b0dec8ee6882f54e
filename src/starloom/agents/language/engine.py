"""Generation: a request becomes steps, one a token, each with the text that it makes certain.

`generate` is an iterator and does nothing between steps, so that whoever drives it may stream, count,
stop, or take turns with other requests.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from starloom.agents.language.budget import Budget, Finish, StopText
from starloom.agents.language.cache import KVCache
from starloom.agents.language.decoder import Decoder
from starloom.agents.language.sampling import GREEDY, Sampling, choose, draw
from starloom.agents.language.tokens import Detokeniser, Vocabulary
from starloom.agents.stage import CancelToken
from starloom.dag.errors import Cancelled, InvalidInput, Problem


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate from. `ends` are tokens that end the text; they and `stops` are no part of it.

    `context` bounds prompt and answer together, in tokens; 0 where the model names no bound. `allowed`
    says of the tokens chosen so far which ones may follow, or None for any.
    """

    prompt: tuple[int, ...]
    budget: Budget
    sampling: Sampling = GREEDY
    ends: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    context: int = 0
    allowed: Callable[[Sequence[int]], Collection[int] | None] = lambda _: None


class Step(NamedTuple):
    """One token, or the end. `text` is final, and often empty; `seconds` count from the first call.

    The last step has `finish`, and the rest of the text. Its token is the end token, the one that
    completed a stop string, the last one of the budget, or None where time or a cancel ended it.
    """

    token: int | None
    text: str
    log_probability: float
    seconds: float
    finish: Finish | None = None


@dataclass(slots=True)
class Generation:
    """A whole text and how it came about. `tokens` are all that were chosen, an end token among them."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: Finish = Finish.STOP
    first_token_seconds: float | None = None
    seconds: float = 0.0
    log_probability: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first one, which alone waits for the prompt to be read."""
        if len(self.tokens) < 2 or self.first_token_seconds is None or self.seconds <= self.first_token_seconds:
            return None
        return (len(self.tokens) - 1) / (self.seconds - self.first_token_seconds)

    @property
    def mean_log_probability(self) -> float:
        """Of all tokens: how sure the model was."""
        return self.log_probability / max(1, len(self.tokens))


def generate(
    decoder: Decoder,
    vocabulary: Vocabulary,
    request: Request,
    cancel: CancelToken,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Step]:
    """The steps of one request; the last one, and only that, has a `finish`.

    A cancel is noticed between steps and within a run, and ends the steps as the budget does. Raises
    InvalidInput for a prompt that the context has no room for, and what a run raises.
    """
    budget = fitted(request)
    began = clock()
    text, stop = Detokeniser(vocabulary, request.prompt), StopText(request.stops)
    made: list[int] = []
    cache: KVCache | None = None

    def last(finish: Finish, at: int | None = None, probability: float = 0.0) -> Step:
        rest = "" if stop.stopped else stop.push(text.flush()) + stop.flush()
        return Step(at, rest, probability, clock() - began, Finish.STOP if stop.stopped else finish)

    while True:
        try:
            for read in _runs(decoder, request.prompt, made, cache, cancel):
                logits, cache = read
                if clock() - began >= budget.seconds:
                    yield last(Finish.TIME)
                    return
        except Cancelled:
            yield last(Finish.CANCELLED)
            return
        chance = draw(request.sampling.seed, len(made))
        choice = choose(_known(logits, vocabulary), request.sampling, chance, request.allowed(made))
        made.append(choice.token)
        if choice.token in request.ends:
            yield last(Finish.STOP, *choice)
            return
        said = stop.push(text.push(choice.token))
        over = Finish.STOP if stop.stopped else budget.over(len(made), clock() - began)
        if over:
            ending = last(over, *choice)
            yield ending._replace(text=said + ending.text)
            return
        yield Step(choice.token, said, choice.log_probability, clock() - began)


def _runs(
    decoder: Decoder, prompt: Sequence[int], made: Sequence[int], cache: KVCache | None, cancel: CancelToken
) -> Iterator[tuple[NDArray[np.float32], KVCache]]:
    """The runs up to the next token's logits: of the prompt in pieces, later of the token before."""
    cancel.raise_if_cancelled()
    if not made or cache is None:
        yield from decoder.pieces([prompt])
    else:
        yield decoder.step([made[-1]], cache)


def _known(logits: NDArray[np.float32], vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The logits of the one row, without those that no token of the vocabulary has."""
    if fault := vocabulary.mismatch(logits.shape[-1]):
        raise InvalidInput([Problem("tokenizer.json", fault)], "the tokenizer does not match")
    return logits[0, : vocabulary.size]


def fitted(request: Request) -> Budget:
    """The budget that the context has room for; raises InvalidInput for a prompt that fills it."""
    if not request.prompt:
        raise InvalidInput([Problem("prompt", "is empty, and the tokenizer sets no mark to begin with")])
    if not request.context:
        return request.budget
    room = request.context - len(request.prompt)
    if room < 1:
        what = f"has {len(request.prompt)} tokens; the model's context of {request.context} has room for "
        what += f"{request.context - 1} and one to answer: shorten it"
        raise InvalidInput([Problem("prompt", what)], "the prompt is over the model's context")
    return request.budget._replace(tokens=min(request.budget.tokens, room))


def collected(steps: Iterable[Step], seen: Callable[[Step], None] = lambda _: None) -> Generation:
    """Drives steps to their end; `seen` is called with each."""
    made, pieces = Generation(), []
    for step in steps:
        if step.token is not None:
            made.log_probability += step.log_probability
            if made.first_token_seconds is None:
                made.first_token_seconds = step.seconds
            made.tokens.append(step.token)
        pieces.append(step.text)
        made.seconds = step.seconds
        made.finish = step.finish or made.finish
        seen(step)
    made.text = "".join(pieces)
    return made
