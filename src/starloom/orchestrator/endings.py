"""How jobs begin and end: the first ready stages, success, failure, cancellation, and the release of what agents keep."""

from starloom.agents.messages import Cancel, Release
from starloom.dag.facts import JobCancelRequested, JobEnded, JobStatus, StageCancelled
from starloom.dag.ids import AgentId, FencingToken, JobId, StageId, TaskToken
from starloom.dag.job import ACTIVE, ENDED, JobState, StageStatus
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
        for name, stage in job.stages.items():
            if stage.status in ENDED:
                continue
            self.cancel_attempts(job, name)
            self._ledger.record(StageCancelled(job=job.id, stage=name))
        self._end(
            run,
            JobEnded(job=job.id, status=JobStatus.FAILED, outputs=job.declared(), error=errors, cause=cause),
        )

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
            if stage.status in ACTIVE:
                self.cancel_attempts(job, name)
            elif stage.status is StageStatus.PENDING:
                self._ledger.record(StageCancelled(job=job.id, stage=name))
        self._lanes.drop(run)
        run.waits.clear()
        run.clocks.clear()
        self.check(run)

    def cancel_attempts(self, job: JobState, stage: StageId, but: FencingToken | None = None) -> None:
        """Tells the agents that have attempts of a stage to stop them, all or all but one."""
        for token, agent in job.stages[stage].live.items():
            # The commands for a process that is lost would reach the one that takes its place.
            if token != but and self._is_there(agent):
                self._ledger.send(agent, Cancel(task=TaskToken(job.id, stage, token)))

    def _end(self, run: Run, fact: JobEnded) -> None:
        self._ledger.record(fact)
        run.closed = True
        self._lanes.drop(run)
        run.waits.clear()
        run.clocks.clear()
        del self.runs[run.job.id]
        for agent in sorted({*run.job.agents, *run.keepers}):
            self.release(agent, run.job.id)
        for request, since in run.askers:
            seconds = (self._ledger.now - since) / NANOS
            self._ledger.answer(request, Stopped(job=run.job.id, status=fact.status, seconds=seconds))

    def release(self, agent: AgentId, job: JobId) -> None:
        """Tells an agent to forget a job; one that is lost is told when it says hello."""
        if self._is_there(agent):
            self._ledger.send(agent, Release(job=job))

    def _is_there(self, agent: AgentId) -> bool:
        member = self._state.fleet.members.get(agent)
        return member is not None and member.state is not AgentState.LOST
