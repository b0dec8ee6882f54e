"""A planner for fleets of thousands: a stage's place is the best of some nodes, not of all."""

from collections.abc import Sequence
from typing import Final

from starloom.orchestrator.placement import Candidate, Choice, EarliestFinish, Want

LOOKED_AT: Final = 32


class SomeOfMany(EarliestFinish):
    """Looks at LOOKED_AT candidates for each stage, in turns; at the next ones only if none of these is open."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def choose(self, want: Want, candidates: Sequence[Candidate]) -> Choice | None:
        """The best of those whose turn it is; None if no candidate at all is open."""
        count = len(candidates)
        for _ in range(0, count, LOOKED_AT):
            start = self._turn % count
            self._turn = start + LOOKED_AT
            looked_at = candidates[start : start + LOOKED_AT]
            if (choice := super().choose(want, looked_at)) is not None:
                return choice
        return None
