"""Attempts that run on the agent's event loop itself: handing them to a thread, and back, would cost more than they do."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from starloom.agents.messages import Assign
from starloom.dag import limits
from starloom.dag.kinds import KindSpec

_LATE_COUNTS: Final = 8
_LATE_MAX: Final = 8 * _LATE_COUNTS
_LASTS: Final = 10

Run = TypeVar("Run")


class BriefKinds:
    """The kinds that say of themselves that they are brief, until they show that they are not. Pure.

    A run is late that computes for AGENT_CHEAP_NANOS or lasts ten times as long: on a busy machine others have the core
    meanwhile. One that is late counts for eight that are not: a kind is for the workers from then on where more than one in
    nine is late, or eight in a row, or where one lasts AGENT_BRIEF_NANOS_MAX.
    """

    def __init__(self, kinds: Iterable[KindSpec]) -> None:
        self._late = {kind.name: 0 for kind in kinds if kind.brief}

    def takes(self, assign: Assign) -> bool:
        """Whether an attempt may run on the event loop: its kind is brief, and its inputs are few, small and at hand."""
        return (
            assign.kind in self._late
            and len(assign.inputs) <= limits.AGENT_BRIEF_INPUTS_MAX
            and all(item.ref.inline is not None for item in assign.inputs)
        )

    def ran(self, kind: str, computed: int, lasted: int) -> bool:
        """A run on the event loop took so many nanoseconds; whether the kind is none for it any more."""
        is_late = computed >= limits.AGENT_CHEAP_NANOS or lasted >= _LASTS * limits.AGENT_CHEAP_NANOS
        late = self._late[kind] + _LATE_COUNTS if is_late else max(0, self._late[kind] - 1)
        self._late[kind] = late
        if late < _LATE_MAX and lasted < limits.AGENT_BRIEF_NANOS_MAX:
            return False
        del self._late[kind]
        return True


class BriefRuns(Generic[Run]):
    """What is due to run on the event loop, in order: at most AGENT_BRIEF_RUNS before the loop gets its next turn.

    `resume` is called in a later turn where something is left. All methods are for the event loop's thread.
    """

    def __init__(self, resume: Callable[[], None]) -> None:
        self._resume = resume
        self._due: deque[Run] = deque()
        self._left = limits.AGENT_BRIEF_RUNS
        self._waiting = False

    def add(self, run: Run) -> None:
        """Something more is due."""
        self._due.append(run)

    def next(self) -> Run | None:
        """What is to run now; None if nothing is due, or if the loop is to have a turn first."""
        if not self._due:
            return None
        if self._left:
            self._left -= 1
            return self._due.popleft()
        if not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_soon(self._turn)
        return None

    def pause(self) -> None:
        """The loop has something to do that others wait for: it gets its turn before what is due."""
        self._left = 0

    def _turn(self) -> None:
        self._waiting = False
        self._left = limits.AGENT_BRIEF_RUNS
        self._resume()
