"""Attempts of one kind that wait to run in one call: who goes with whom, and when they must go. Pure.

Attempts gather by kind and target. They are due when there are as many as one call takes, or when the first of them has
waited as long as the kind allows; one for which there is nobody to wait is due at once. Those that find no free slot then
go on gathering.
"""

from collections.abc import Mapping

from starloom.agents.attempts import Attempt
from starloom.dag.ids import TaskToken
from starloom.dag.kinds import Batch

_NANOS = 1_000_000_000

_Place = tuple[str, str]


class Batches:
    """What gathers on one agent; `kinds` are those that take several attempts in one call."""

    def __init__(self, kinds: Mapping[str, Batch]) -> None:
        self._kinds = kinds
        self._gathered: dict[_Place, dict[TaskToken, Attempt]] = {}
        #: when those of a place must go: when its first has waited long enough
        self._due: dict[_Place, int] = {}

    def takes(self, kind: str) -> bool:
        """Whether attempts of that kind gather."""
        return kind in self._kinds

    def add(self, attempt: Attempt, now: int, others: bool) -> int | None:
        """One more is ready to run; the first of its place waits if there are `others`. Returns when to look again, if so."""
        place = attempt.assign.kind, attempt.assign.target
        self._gathered.setdefault(place, {})[attempt.assign.task] = attempt
        if place in self._due:
            return None
        self._due[place] = now + others * round(self._kinds[attempt.assign.kind].wait_seconds * _NANOS)
        return self._due[place] if others else None

    def remove(self, attempt: Attempt) -> None:
        """One was taken back; the others gather on."""
        place = attempt.assign.kind, attempt.assign.target
        gathered = self._gathered.get(place, {})
        if gathered.pop(attempt.assign.task, None) is not None and not gathered:
            del self._gathered[place], self._due[place]

    def first(self, now: int) -> Attempt | None:
        """The most urgent of all that are due; None if none are."""
        if not self._gathered:
            return None
        due = [
            attempt
            for place, gathered in self._gathered.items()
            if now >= self._due[place] or len(gathered) >= self._kinds[place[0]].max
            for attempt in gathered.values()
        ]
        return min(due, key=lambda attempt: attempt.rank, default=None)

    def take(self, first: Attempt) -> list[Attempt]:
        """Those that run together with the first, itself at the front: the most urgent ones. The rest stay due."""
        place = first.assign.kind, first.assign.target
        gathered = self._gathered[place]
        taken = sorted(gathered.values(), key=lambda attempt: attempt.rank)[: self._kinds[place[0]].max]
        for attempt in taken:
            self.remove(attempt)
        return taken
