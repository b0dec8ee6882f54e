"""Local search from several starts, which can be gone on with: those that become best have more and more of it. Pure.

Each start is tried for a while, and those that have become best go on, fewer and fewer (successive halving).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from starloom.orchestrator.planner.prepared import Board, Prepared
from starloom.orchestrator.planner.search import Search

STEP_STAGES = 3_000
"""Stages times iterations between two looks at the time: about half a millisecond."""
TRIED_STAGES = 1_600
"""Stages times starts, beside the best one, that are tried: on large problems it needs its time for one."""
FIRST_ITERATIONS = 400
"""From the best start, before others are tried."""
TRIAL_ITERATIONS = 60
"""From each of the others. Then those that have become better go on, half of them each time."""
TRIAL_GROWTH = 1.6
"""How many times as long as the time before."""
WORTH = 1.5
"""A start that is so many times as bad as the best is not tried."""
ON_END = 1 << 62


class Start(NamedTuple):
    """A full board, its objective in seconds, and what set it out."""

    value: float
    board: Board
    method: str


class Halving:
    """Searches from starts, the best of them first, one at the least. To stop and to go on is the same as not to stop."""

    def __init__(self, prepared: Prepared, starts: Sequence[Start], seed: int) -> None:
        self.made = 0
        """Iterations, of all searches together."""
        self._prepared = prepared
        self._starts = starts
        self._seed = seed
        self._step = max(1, STEP_STAGES // max(1, len(prepared.seconds)))
        self._going: list[Search] = []
        self._stopped: list[Search] = []
        self._turns = self._all_turns()
        self._turn = 0

    def go_on(self, iterations: int, spent: Callable[[], bool], least: int = 0) -> bool:
        """Until there are so many iterations in all, or `spent` says so, but not before there are `least`; whether all were made."""
        while self.made < iterations and (self.made < least or not spent()):
            if self._turn <= 0:
                self._search, self._turn = next(self._turns)
            count = min(self._step, self._turn, iterations - self.made)
            self._search.step(count)
            self._turn -= count
            self.made += count
        return self.made >= iterations

    def found(self) -> list[Search]:
        """All searches that there were, the best first."""
        return sorted([*self._going, *self._stopped], key=lambda search: search.value)

    def _all_turns(self) -> Iterator[tuple[Search, int]]:
        """Which search is next, and for how many iterations."""
        starts, going = self._starts, self._going
        going.append(Search(self._prepared, starts[0].board, self._seed))
        yield going[0], FIRST_ITERATIONS
        for start in starts[1 : 1 + TRIED_STAGES // len(self._prepared.seconds)]:
            if start.value > WORTH * starts[0].value:
                break
            going.append(Search(self._prepared, start.board, self._seed))
            yield going[-1], TRIAL_ITERATIONS
        turn = TRIAL_ITERATIONS
        while len(going) > 1:
            going.sort(key=lambda search: search.value)
            half = (len(going) + 1) // 2
            self._stopped[:0] = going[half:]
            del going[half:]
            turn = int(turn * TRIAL_GROWTH)
            for search in list(going):
                yield search, turn
        yield going[0], ON_END
