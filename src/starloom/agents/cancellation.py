"""Attempts that are not wanted any more: cancelled, revoked for a patch, or of a job that is released. Pure.

A cancel or a revocation that overtakes its assignment leaves a tombstone, by which that is refused when it comes.
Methods append the instructions that follow to `found`.
"""

from collections.abc import Callable, Mapping

from starloom.agents.attempts import Attempt, Phase
from starloom.agents.instructions import Drop, Instruction, Stop, Tell
from starloom.agents.messages import Report, Revoked, Started, WasCancelled
from starloom.agents.settling import Settling
from starloom.dag.ids import JobId, TaskToken


class Cancellation:
    """Stops one agent's `attempts`. `end` takes those of which nothing runs."""

    def __init__(
        self,
        attempts: Mapping[TaskToken, Attempt],
        settling: Settling,
        end: Callable[[Attempt, Report, list[Instruction]], None],
    ) -> None:
        self._attempts = attempts
        self._settling = settling
        self._end = end
        #: every token accepted, and every tombstone, until the job is released, in the order in which they came:
        #: the hash of a token differs from process to process
        self.known: dict[JobId, dict[TaskToken, None]] = {}

    def cancel(self, task: TaskToken, found: list[Instruction], now: int) -> None:
        """An attempt is to stop, or not to begin should its assignment come."""
        attempt = self._attempts.get(task)
        if attempt is None:
            if self._bury(task):
                found.append(Tell(WasCancelled(task=task)))
        elif not attempt.cancelled:
            self._stop(attempt, found, now)

    def revoke(self, task: TaskToken, found: list[Instruction]) -> None:
        """An attempt is to be given back, unless it has started.

        One that is with a worker has started, though it may be behind another there. Of one that ended, the report says all.
        """
        attempt = self._attempts.get(task)
        if attempt is None:
            if self._bury(task):
                found.append(Tell(Revoked(task=task)))
        elif attempt.phase in (Phase.HANDED, Phase.RUNNING, Phase.PUBLISHING, Phase.SETTLING):
            if not attempt.cancelled:
                found.append(Tell(Started(task=task)))
        elif not attempt.cancelled:
            attempt.revoked = True
            # It has no result that others wait for.
            self._stop(attempt, found, 0)

    def release(self, job: JobId, found: list[Instruction], now: int) -> None:
        """Nobody wants to know of a job any more: what is left of it stops, in the order in which it came, and tells nothing."""
        for task in self.known.pop(job, ()):
            if attempt := self._attempts.get(task):
                attempt.released = True
                self.cancel(task, found, now)

    def _bury(self, task: TaskToken) -> bool:
        """Leaves a tombstone for an attempt that is not here; whether it was neither accepted nor buried before."""
        known = self.known.setdefault(task.job, {})
        if task in known:
            return False
        known[task] = None
        return True

    def _stop(self, attempt: Attempt, found: list[Instruction], now: int) -> None:
        task = attempt.assign.task
        attempt.cancelled = True
        if attempt.phase in (Phase.WAITING, Phase.QUEUED, Phase.READY) or attempt.report is not None:
            if attempt.report is not None:
                self._settling.pass_on(attempt, attempt.report, found, now)
            found.append(Drop(task))
            self._end(attempt, attempt.stopped, found)
        elif not attempt.early or attempt.released:
            found.append(Stop(task))
