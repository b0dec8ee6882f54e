"""How much of its deadline a job or a stage has used, and when to look at it next. Made anew after a restart."""

from collections.abc import Iterator
from typing import Final

from starloom.dag import limits
from starloom.dag.facts import JobStatus
from starloom.dag.ids import StageId
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.agenda import Agenda
from starloom.orchestrator.runs import Run

NANOS: Final = 1_000_000_000
JOB: Final = StageId("")
"""The name of the job's own clock among those of its stages."""

_NOTE_NANOS: Final = round(limits.DEADLINE_NOTE_SECONDS * NANOS)


class Clock:
    """One deadline. All in monotonic nanoseconds; `begun` lies so far back that what passed before a restart counts."""

    __slots__ = ("begun", "limit", "look", "ran", "since")

    def __init__(self, limit_seconds: float, now: int, spent_seconds: float = 0.0, ran_seconds: float = 0.0) -> None:
        self.limit = round(limit_seconds * NANOS)
        self.begun = now - round(spent_seconds * NANOS)
        self.look = now
        #: how long attempts ran that have ended, and since when one runs
        self.ran = round(ran_seconds * NANOS)
        self.since: int | None = None

    @property
    def ends(self) -> int:
        """When the deadline is over."""
        return self.begun + self.limit

    def started(self, now: int) -> None:
        """An attempt runs."""
        if self.since is None:
            self.since = now

    def stopped(self, now: int) -> None:
        """None runs any more."""
        self.ran = self.running(now)
        self.since = None

    def running(self, now: int) -> int:
        """How long attempts have run."""
        return self.ran + (0 if self.since is None else now - self.since)


class Clocks:
    """The clocks of all open jobs, in the order in which they are to be looked at."""

    def __init__(self) -> None:
        self._looks: Agenda[tuple[Run, StageId, Clock]] = Agenda(_counts)

    @property
    def next_time(self) -> int | None:
        """When to look next; a little early if that clock does not count any more."""
        return self._looks.next_time

    def job(self, run: Run, now: int) -> None:
        """A job was accepted, or goes on after a restart."""
        seconds = run.job.deadline_seconds
        if seconds:
            self._begin(run, JOB, Clock(seconds, now, run.job.deadline_spent))

    def stage(self, run: Run, name: StageId, now: int) -> None:
        """A stage's dependencies hold; again is fine."""
        stage = run.job.stages[name]
        seconds = stage.spec.policy.deadline_seconds
        if not seconds or name in run.clocks or run.job.status is not JobStatus.RUNNING:
            return
        clock = Clock(seconds, now, stage.deadline_spent, stage.deadline_ran)
        if stage.status is StageStatus.RUNNING:
            clock.started(now)
        self._begin(run, name, clock)

    def _begin(self, run: Run, name: StageId, clock: Clock) -> None:
        run.clocks[name] = clock
        self.watch(run, name, clock)

    def watch(self, run: Run, name: StageId, clock: Clock) -> None:
        """Looks at the clock again when a part of its time has passed, that is worth a note, or all of it."""
        part = max(clock.limit // limits.DEADLINE_NOTES, _NOTE_NANOS)
        passed = clock.look - clock.begun
        clock.look = min(clock.begun + (passed // part + 1) * part, max(clock.ends, clock.look))
        self._looks.put(clock.look, (run, name, clock))

    def due(self, now: int) -> Iterator[tuple[Run, StageId, Clock]]:
        """The clocks to look at."""
        for run, name, clock in self._looks.due(now):
            clock.look = now
            yield run, name, clock


def _counts(entry: tuple[Run, StageId, Clock], _: int) -> bool:
    run, name, clock = entry
    return run.clocks.get(name) is clock and not run.closed
