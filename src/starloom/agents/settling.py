"""Results that wait for digests, of what their attempts gave or of what they read, until they may be told. Pure.

A result is told once its outputs are hashed and the digests of all that it read are known. Results of one agent are so
told in the order in which data flows. Methods append the instructions that follow to `found`.
"""

from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from starloom.agents.attempts import Attempt, Phase
from starloom.agents.awaiting import Awaiting
from starloom.agents.instructions import Instruction, Named
from starloom.agents.late import named, outcome_of, read
from starloom.agents.messages import Assign, Finished, Outcome, Report
from starloom.dag.ids import TaskToken

_Complete = Callable[[list[Assign], list[Instruction], int], None]
_End = Callable[[Attempt, Report, list[Instruction]], None]
_WITH_WORKERS = (Phase.HANDED, Phase.RUNNING, Phase.SETTLING)


class Settling:
    """The results of one agent's `attempts`. `complete` takes in what awaits nothing any more, `end` what is told."""

    def __init__(
        self, attempts: Mapping[TaskToken, Attempt], awaiting: Awaiting, complete: _Complete, end: _End
    ) -> None:
        self._attempts = attempts
        self._awaiting = awaiting
        self._complete = complete
        self._end = end

    def finished(self, attempt: Attempt, report: Finished, found: list[Instruction], now: int) -> None:
        """A result, with its outputs hashed: it is told, or kept until what it read is hashed as well."""
        if self._awaiting.owes(report.task):
            attempt.report = report
        else:
            self._tell([(attempt, read(report, attempt.assign) if attempt.named else report)], found, now)

    def hashed(self, outcome: Outcome, found: list[Instruction], now: int) -> None:
        """The digests of another attempt's outputs are known: those that have read them get them."""
        self._tell(self._settle(outcome, found), found, now)

    def pass_on(self, attempt: Attempt, report: Finished, found: list[Instruction], now: int) -> None:
        """One that others have read before its digests were known is cancelled: they need these all the same."""
        if attempt.early and not attempt.released:
            self.hashed(self._remember(attempt, report, found, now), found, now)

    def _tell(self, results: list[tuple[Attempt, Finished]], found: list[Instruction], now: int) -> None:
        """Tells results, here and elsewhere, and then those that only waited for their digests."""
        left = deque(results)
        while left:
            attempt, report = left.popleft()
            outcome = self._remember(attempt, report, found, now)
            self._end(attempt, report, found)
            left += self._settle(outcome, found)

    def _remember(self, attempt: Attempt, report: Finished, found: list[Instruction], now: int) -> Outcome:
        outcome = outcome_of(attempt.assign, report.outputs, report.holds)
        self._complete(self._awaiting.remember(outcome, found), found, now)
        return outcome

    def _settle(self, outcome: Outcome, found: list[Instruction]) -> list[tuple[Attempt, Finished]]:
        """Gives digests to those that have read the values; returns the results that wait for no other."""
        results = []
        for task in self._awaiting.settled(outcome, found):
            attempt = self._attempts[task]
            attempt.assign = msgspec.structs.replace(attempt.assign, inputs=named(attempt.assign.inputs, outcome))
            attempt.named = True
            if self._awaiting.owes(task):
                continue
            if attempt.report is not None:
                results.append((attempt, read(attempt.report, attempt.assign)))
            elif attempt.phase in _WITH_WORKERS:
                found.append(Named(attempt.assign))
        return results
