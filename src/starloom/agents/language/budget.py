"""When a text ends: at an end token, a stop string, or a budget. Pure: the time is passed in."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from starloom.dag import limits
from starloom.dag.errors import Problem


class Finish(StrEnum):
    """Why a text ended. LENGTH: the tokens, or the model's context, were used up. TIME: the seconds were."""

    STOP = "stop"
    LENGTH = "length"
    TIME = "time"
    CANCELLED = "cancelled"


class Budget(NamedTuple):
    """What a request may use, prompt not counted in `tokens`, but reading it in `seconds`."""

    tokens: int
    seconds: float

    def over(self, tokens: int, seconds: float) -> Finish | None:
        """What ends a text of so many tokens after so many seconds, if anything does."""
        if seconds >= self.seconds:
            return Finish.TIME
        return Finish.LENGTH if tokens >= self.tokens else None


def check(budget: Budget, stops: Iterable[object]) -> list[Problem]:
    """All that is out of range."""
    problems = []
    if not 1 <= budget.tokens <= limits.LANGUAGE_TOKENS_MAX:
        what = f"{budget.tokens} is not from 1 to LANGUAGE_TOKENS_MAX = {limits.LANGUAGE_TOKENS_MAX}"
        problems.append(Problem("max_tokens", what))
    if not 0 < budget.seconds <= limits.LANGUAGE_SECONDS_MAX:
        what = f"{budget.seconds} is not above 0 and up to LANGUAGE_SECONDS_MAX = {limits.LANGUAGE_SECONDS_MAX:g}"
        problems.append(Problem("seconds_max", what))
    listed = list(stops)
    if len(listed) > limits.LANGUAGE_STOPS_MAX:
        what = f"{len(listed)} stop strings are over LANGUAGE_STOPS_MAX = {limits.LANGUAGE_STOPS_MAX}"
        problems.append(Problem("stop", what))
    longest = limits.LANGUAGE_STOP_CHARACTERS_MAX
    problems += [
        Problem(f"stop[{n}]", f"is no text of 1 to LANGUAGE_STOP_CHARACTERS_MAX = {longest} characters")
        for n, stop in enumerate(listed)
        if not isinstance(stop, str) or not 1 <= len(stop) <= longest
    ]
    return problems


class StopText:
    """Finds stop strings in text that comes in pieces, and lets nothing through that may be the start of one."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What is sure to be before any stop string. Once `stopped`, always empty."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._let_go(min(found), drop=True)
        return self._let_go(len(self._held) - self._begun(), drop=False)

    def flush(self) -> str:
        """What is still held, at the end of the text."""
        return self._let_go(len(self._held), drop=True)

    def _let_go(self, count: int, *, drop: bool) -> str:
        said, self._held = self._held[:count], "" if drop else self._held[count:]
        return said

    def _begun(self) -> int:
        """The characters at the end of the held text that a stop string may begin with."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        for count in range(longest, 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
