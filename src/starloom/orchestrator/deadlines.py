"""Deadlines of jobs and stages: time in queues, back-offs and retries counts as well as time that attempts run."""

from typing import Final

from starloom.dag.facts import DeadlineSpent, ErrorInfo, JobStatus
from starloom.dag.ids import StageId
from starloom.dag.stagestate import ENDED
from starloom.orchestrator.clocks import JOB, NANOS, Clock, Clocks
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.runs import Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.views import waits_for

CAUSE: Final = "DeadlineExceeded"
_STAGES_SHOWN: Final = 5


class Deadlines:
    """Ends what has had its time, and notes from time to time how much has passed, so that it counts after a restart."""

    def __init__(
        self, state: State, ledger: Ledger, lanes: ReadyLanes, clocks: Clocks, endings: Endings, settler: Settler
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._clocks = clocks
        self._endings = endings
        self._settler = settler

    @property
    def next_time(self) -> int | None:
        """When a deadline is over next, or a part of one."""
        return self._clocks.next_time

    def check(self) -> None:
        """Looks at the deadlines whose time has come."""
        now = self._ledger.now
        for run, name, clock in self._clocks.due(now):
            try:
                if clock.ends > now:
                    self._note(run, name, clock)
                else:
                    self._over(run, name, clock)
            except Exception as error:
                self._endings.contain(run.job.id, f"the deadline of {name or 'the job'}", error)

    def _note(self, run: Run, name: StageId, clock: Clock) -> None:
        now = self._ledger.now
        ran = clock.running(now) / NANOS
        self._ledger.record(DeadlineSpent(job=run.job.id, stage=name, seconds=(now - clock.begun) / NANOS, ran=ran))
        self._clocks.watch(run, name, clock)

    def _over(self, run: Run, name: StageId, clock: Clock) -> None:
        if name == JOB:
            self._endings.stop(run, self._of_job(run, clock), JobStatus.FAILED, CAUSE)
        else:
            self._settler.expire(run, name, ErrorInfo(message=self._of_stage(run, name, clock), cause=CAUSE))

    def _of_job(self, run: Run, clock: Clock) -> str:
        waiting = [name for name, stage in run.job.stages.items() if stage.status not in ENDED]
        shown = "; ".join(f"{name} waited for {self._waits_for(run, name)}" for name in waiting[:_STAGES_SHOWN])
        more = f"; and {len(waiting) - _STAGES_SHOWN} more" if len(waiting) > _STAGES_SHOWN else ""
        many = f"{len(waiting)} of {len(run.job.stages)} stages had not ended"
        return f"deadline exceeded: {clock.limit / NANOS:g} s from its acceptance; {many}: {shown}{more}"

    def _of_stage(self, run: Run, name: StageId, clock: Clock) -> str:
        passed = self._ledger.now - clock.begun
        ran = clock.running(self._ledger.now)
        parts = f"it waited {(passed - ran) / NANOS:.1f} s and ran {ran / NANOS:.1f} s"
        what = f"deadline exceeded: {clock.limit / NANOS:g} s from when its dependencies held; {parts}"
        return f"{what}; last it waited for {self._waits_for(run, name)}"

    def _waits_for(self, run: Run, name: StageId) -> str:
        return waits_for(run.job, run, name, self._lanes, self._state.fleet, self._ledger.now)
