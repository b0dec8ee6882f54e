"""Choosing the next token from logits. Pure: chance is a number that is passed in."""

from collections.abc import Collection
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starloom.dag.errors import InvalidInput, Problem

Row = NDArray[np.float32]


class Sampling(NamedTuple):
    """How tokens are chosen. `temperature` 0 takes the likeliest one; `top_p` 1 leaves none out.

    `seed` fixes the choice for a model and a prompt.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY: Final = Sampling()


class Choice(NamedTuple):
    """A token, and the logarithm of the probability that the model gave it, before temperature and top-p."""

    token: int
    log_probability: float


def check(sampling: Sampling) -> list[Problem]:
    """All that is out of range."""
    problems = []
    if not 0 <= sampling.temperature <= 100:
        problems.append(Problem("temperature", f"{sampling.temperature} is not from 0 to 100"))
    if not 0 < sampling.top_p <= 1:
        problems.append(Problem("top_p", f"{sampling.top_p} is not above 0 and at most 1"))
    if not 0 <= sampling.seed < 2**64:
        problems.append(Problem("seed", f"{sampling.seed} is not from 0 to 2**64 - 1"))
    return problems


def draw(seed: int, index: int) -> float:
    """The number in [0, 1) that chooses the token at `index`.

    It depends on nothing else: a text that another node goes on with goes on the same way.
    """
    return float(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index])).random())


def log_softmax(logits: Row) -> NDArray[np.float64]:
    """Logarithms of the probabilities of logits [..., vocabulary], in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def probabilities(logits: Row, sampling: Sampling) -> NDArray[np.float64]:
    """What is drawn from, float64 [vocabulary]: tempered, then only the likeliest tokens that make up `top_p`.

    Raises InvalidInput for a temperature of 0, at which nothing is drawn.
    """
    if sampling.temperature <= 0:
        raise InvalidInput([Problem("temperature", "is 0; the likeliest token is taken, not drawn")])
    spread = np.exp(log_softmax(logits / np.float32(sampling.temperature)))
    if sampling.top_p < 1:
        order = np.argsort(spread, kind="stable")
        spread[order[np.cumsum(spread[order]) <= 1 - sampling.top_p][: len(order) - 1]] = 0.0
    result: NDArray[np.float64] = spread / spread.sum()
    return result


def choose(logits: Row, sampling: Sampling, chance: float, allowed: Collection[int] | None = None) -> Choice:
    """The next token after logits [vocabulary]. `chance`, from [0, 1), decides where something is drawn.

    `allowed` are the only tokens that may come, at least one, unless it is None.
    """
    among = logits
    if allowed is not None:
        among = np.full_like(logits, -np.inf)
        chosen = list(allowed)
        among[chosen] = logits[chosen]
    if sampling.temperature <= 0:
        token = int(np.argmax(among))
    else:
        total = np.cumsum(probabilities(among, sampling))
        token = min(int(np.searchsorted(total, chance * total[-1], side="right")), len(total) - 1)
    return Choice(token, float(log_softmax(logits)[token]))
