"""How jobs begin and end: the first ready stages, success, failure, cancellation, and the release of what agents keep."""

from traceback import extract_tb

from starloom.agents.messages import Cancel, Release
from starloom.dag.errors import InternalError
from starloom.dag.facts import JobCancelRequested, JobEnded, JobStatus, StageCancelled
from starloom.dag.ids import AgentId, FencingToken, JobId, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.stagestate import ACTIVE, ENDED, StageStatus
from starloom.orchestrator.clocks import NANOS, Clocks
from starloom.orchestrator.effects import Stopped
from starloom.orchestrator.fleet import AgentState
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.runs import Run
from starloom.orchestrator.state import Ledger, State


class Endings:
    """The open jobs' runs, and what happens when one ends."""

    def __init__(self, state: State, ledger: Ledger, lanes: ReadyLanes, clocks: Clocks) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._clocks = clocks
        self.runs: dict[JobId, Run] = {}
        self._seq = 0

    def begin(self, job: JobState) -> Run:
        """Starts to keep what is needed beside an open job's state."""
        self._seq += 1
        run = self.runs[job.id] = Run(job, self._state.fleet.kinds, self._seq)
        if job.status is JobStatus.RUNNING:
            self._clocks.job(run, self._ledger.now)
        return run

    def check(self, run: Run) -> None:
        """Ends the job if no stage is open any more."""
        job = run.job
        if job.ended or job.open_stages:
            return
        if job.status is JobStatus.CANCELLING:
            outputs = job.declared() if job.ends is JobStatus.FAILED else {}
            self._end(run, JobEnded(job=job.id, status=job.ends, outputs=outputs, error=job.error, cause=job.cause))
        else:
            self._end(run, JobEnded(job=job.id, status=JobStatus.SUCCEEDED, outputs=job.declared()))

    def fail(self, run: Run) -> None:
        """Ends the job because a stage failed for good: everything else is stopped."""
        job = run.job
        failed = [
            (name, stage.error)
            for name, stage in job.stages.items()
            if stage.status is StageStatus.FAILED and stage.error is not None
        ]
        errors = "\n".join(
            f"stage {name} failed{f' on {error.node}' if error.node else ''}: {error.message}" for name, error in failed
        )
        cause = failed[0][1].cause if failed else ""
        self._break_off(run, errors, cause)

    def contain(self, job: JobId, what: str, error: Exception) -> None:
        """A defect showed where something of one job was handled: that job fails, and all others go on.

        What had been decided by then stays, each fact being whole in itself. Raises the error again where it is no open job's,
        or where the state may be damaged, so that nothing is decided on that.
        """
        run = self.runs.get(job)
        if run is None or self._ledger.damaged:
            raise error
        run.job.validate()
        if run.job.ended:
            self._close(run)
            return
        what = f"internal error in handling {what}: {error!r}{_where(error)}; this is a defect of Starloom's, please report it"
        self._break_off(run, what, InternalError.__name__)

    def _break_off(self, run: Run, error: str, cause: str) -> None:
        """Ends a job as failed at once: what is with agents is told to stop."""
        job = run.job
        for name, stage in job.stages.items():
            if stage.status in ENDED:
                continue
            self.cancel_attempts(job, name)
            self._ledger.record(StageCancelled(job=job.id, stage=name))
        outputs = job.declared()
        self._end(run, JobEnded(job=job.id, status=JobStatus.FAILED, outputs=outputs, error=error, cause=cause))

    def cancel(self, run: Run, principal: str, reason: str) -> None:
        """Stops a job because a client asks."""
        self._stop(run, JobCancelRequested(job=run.job.id, principal=principal, reason=reason))

    def stop(self, run: Run, error: str, ends: JobStatus, cause: str) -> None:
        """Stops a job because it cannot or may not go on; it has ended once nothing of it runs any more."""
        self._stop(run, JobCancelRequested(job=run.job.id, reason=error, ends=ends, cause=cause))

    def _stop(self, run: Run, fact: JobCancelRequested) -> None:
        """What waits is cancelled at once, what is with an agent once that says so."""
        job = run.job
        self._ledger.record(fact)
        for name, stage in job.stages.items():
            if stage.status in ACTIVE and name not in run.early:
                self.cancel_attempts(job, name)
            elif stage.status is StageStatus.PENDING or name in run.early:
                # Of what was reported to have ended nothing runs any more.
                self._ledger.record(StageCancelled(job=job.id, stage=name))
        self._lanes.drop(run)
        run.waits.clear()
        run.clocks.clear()
        run.early.clear()
        self.check(run)

    def cancel_attempts(self, job: JobState, stage: StageId, but: FencingToken | None = None) -> None:
        """Tells the agents that have attempts of a stage to stop them, all or all but one."""
        for token, agent in job.stages[stage].live.items():
            # The commands for a process that is lost would reach the one that takes its place.
            if token != but and self._is_there(agent):
                self._ledger.send(agent, Cancel(task=TaskToken(job.id, stage, token)))

    def _end(self, run: Run, fact: JobEnded) -> None:
        self._ledger.record(fact)
        self._close(run)

    def _close(self, run: Run) -> None:
        """Forgets what was kept beside the state of a job that has ended, and tells whom it concerns."""
        run.closed = True
        self._lanes.drop(run)
        run.waits.clear()
        run.clocks.clear()
        del self.runs[run.job.id]
        for agent in sorted({*run.job.agents, *run.keepers}):
            self.release(agent, run.job.id)
        for request, since in run.askers:
            seconds = (self._ledger.now - since) / NANOS
            self._ledger.answer(request, Stopped(job=run.job.id, status=run.job.status, seconds=seconds))

    def release(self, agent: AgentId, job: JobId) -> None:
        """Tells an agent to forget a job; one that is lost is told when it says hello."""
        if self._is_there(agent):
            self._ledger.send(agent, Release(job=job))

    def _is_there(self, agent: AgentId) -> bool:
        member = self._state.fleet.members.get(agent)
        return member is not None and member.state is not AgentState.LOST


def _where(error: Exception) -> str:
    """Where an exception was raised, as a module's file and line."""
    trace = extract_tb(error.__traceback__)
    return f" at {trace[-1].filename.rpartition('/')[2]}:{trace[-1].lineno}" if trace else ""
