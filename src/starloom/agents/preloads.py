"""What an agent loads ahead of its attempts' start: one kind's models at a time. Pure.

An attempt that is accepted and cannot start yet, since it awaits others, its inputs or a slot, wants its kind's models loaded
meanwhile. Once it has started it loads by itself, and waits for what is being loaded.
"""

from collections.abc import Container
from typing import NamedTuple

from starloom.agents.messages import Assign
from starloom.dag.ids import TaskToken


class Wish(NamedTuple):
    """The models of a kind on a target."""

    kind: str
    target: str


class Preloads:
    """What is wanted, what is being loaded, and what was, while attempts of it have yet to start.

    `kinds` are those with something to load.
    """

    def __init__(self, kinds: Container[str]) -> None:
        self._kinds = kinds
        #: attempts that have not started, by what they want; what was wanted first at the front
        self._wanted: dict[Wish, dict[TaskToken, None]] = {}
        self._loaded: set[Wish] = set()
        self._current: Wish | None = None
        #: an attempt has started that waits for what is being loaded
        self._needed = False
        self._stopped = False

    def want(self, assign: Assign) -> None:
        """An attempt was accepted."""
        if assign.kind in self._kinds:
            self._wanted.setdefault(Wish(assign.kind, assign.target), {})[assign.task] = None

    def started(self, assign: Assign) -> None:
        """An attempt loads what it needs by itself from now on."""
        if (wish := self._leave(assign)) is not None and wish == self._current:
            self._needed = True

    def dropped(self, assign: Assign) -> bool:
        """An attempt has ended; whether what is being loaded is to stop, since nobody wants it any more."""
        wish = self._leave(assign)
        if wish is None or wish != self._current or wish in self._wanted or self._needed or self._stopped:
            return False
        self._stopped = True
        return True

    def begin(self, waiting: Assign | None) -> Wish | None:
        """What to load now, if anything; then `ended`. While `waiting` has no slot, only what it needs itself."""
        if self._current is not None:
            return None
        for wish in self._wanted:
            if wish not in self._loaded and (waiting is None or wish == (waiting.kind, waiting.target)):
                self._current, self._needed, self._stopped = wish, False, False
                return wish
        return None

    def ended(self) -> None:
        """Nothing is being loaded any more. What went wrong will go wrong again, visibly, when an attempt runs."""
        wish, self._current = self._current, None
        if wish in self._wanted and not self._stopped:
            self._loaded.add(wish)

    def _leave(self, assign: Assign) -> Wish | None:
        """What an attempt wanted until now."""
        if assign.kind not in self._kinds:
            return None
        wish = Wish(assign.kind, assign.target)
        wanted = self._wanted.get(wish, {})
        if assign.task not in wanted:
            return None
        del wanted[assign.task]
        if not wanted:
            del self._wanted[wish]
            self._loaded.discard(wish)
        return wish
