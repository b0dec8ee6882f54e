"""The parts of a stage's time that do not depend on a graph's operators, each a line: fixed + each * amount.

Loading a model grows with its bytes, a prompt's reading (prefill) with its tokens, and each token of an answer (decode)
with the tokens before it. Transfers are `devices.links.Link`, of the same form.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from starloom.dag.errors import InvalidInput
from starloom.orchestrator.planner.features import Floats


class Load(NamedTuple):
    """A cold start: seconds to open a session, and for each byte of the model's file."""

    fixed: float
    per_byte: float

    def seconds(self, size_bytes: float) -> float:
        """Until a model of that size can run."""
        return self.fixed + self.per_byte * size_bytes


class Prefill(NamedTuple):
    """Reading a prompt: seconds a call, and for each of its tokens."""

    fixed: float
    per_token: float

    def seconds(self, prompt: int) -> float:
        """Until the first token of the answer."""
        return self.fixed + self.per_token * prompt


class Decode(NamedTuple):
    """Writing an answer: seconds a token, and for each token that stands before it."""

    per_token: float
    per_token_before: float

    def seconds(self, prompt: int, answer: int) -> float:
        """For an answer of so many tokens after a prompt of so many."""
        return self.per_token * answer + self.per_token_before * _before(prompt, answer)


def load(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> Load:
    """From loads that were measured. Raises InvalidInput without any, or for one that is not above zero."""
    return Load(*_line(np.ones(len(sizes_bytes)), np.asarray(sizes_bytes, np.float64), seconds))


def prefill(prompts: Sequence[int], seconds: Sequence[float]) -> Prefill:
    """From prompts that were read. Raises InvalidInput as `load` does."""
    return Prefill(*_line(np.ones(len(prompts)), np.asarray(prompts, np.float64), seconds))


def decode(prompts: Sequence[int], answers: Sequence[int], seconds: Sequence[float]) -> Decode:
    """From answers that were written. Raises InvalidInput as `load` does."""
    before = [_before(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return Decode(*_line(np.asarray(answers, np.float64), np.asarray(before, np.float64), seconds))


def _before(prompt: int, answer: int) -> float:
    """Tokens before each of the answer's, summed up."""
    return answer * prompt + answer * (answer - 1) / 2


def _line(first: Floats, second: Floats, seconds: Sequence[float]) -> tuple[float, float]:
    """What an amount of each costs, neither below zero: least squares of relative errors.

    With two unknowns the best pair that is not negative is the free one, or lies where one of them is zero.
    """
    measured = np.asarray(seconds, np.float64)
    if measured.shape != first.shape or not len(measured):
        raise InvalidInput(f"{len(measured)} times stand beside {len(first)} amounts; give one for each, at least one")
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise InvalidInput("there are times that are not above zero; leave those runs out")
    one, two = first / measured, second / measured
    alone = (_along(one), 0.0), (0.0, _along(two))
    determinant = (one @ one) * (two @ two) - (one @ two) ** 2
    if determinant > 1e-12 * (one @ one) * (two @ two):
        both = (
            float(((two @ two) * one.sum() - (one @ two) * two.sum()) / determinant),
            float(((one @ one) * two.sum() - (one @ two) * one.sum()) / determinant),
        )
        if min(both) >= 0:
            return both
    return min(alone, key=lambda pair: float(((one * pair[0] + two * pair[1] - 1) ** 2).sum()))


def _along(column: Floats) -> float:
    square = float(column @ column)
    return float(column.sum()) / square if square else 0.0
