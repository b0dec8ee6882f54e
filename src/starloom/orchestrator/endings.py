"""How jobs begin and end: the first ready stages, success, failure, cancellation, and the release of what agents keep."""

from starloom.agents.messages import Cancel, Release
from starloom.dag.facts import JobCancelRequested, JobEnded, JobStatus, StageCancelled
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
from starloom.dag.job import ACTIVE, ENDED, JobState, StageStatus
from starloom.orchestrator.effects import Stopped
from starloom.orchestrator.fleet import AgentState
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.runs import Run
from starloom.orchestrator.state import Ledger, State

NANOS = 1_000_000_000


class Endings:
    """The open jobs' runs, and what happens when one ends."""

    def __init__(self, state: State, ledger: Ledger, lanes: ReadyLanes) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self.runs: dict[JobId, Run] = {}
        self._seq = 0

    def begin(self, job: JobState) -> Run:
        """Starts to keep what is needed beside an open job's state."""
        self._seq += 1
        run = self.runs[job.id] = Run(job, self._state.fleet.kinds, self._seq)
        return run

    def check(self, run: Run) -> None:
        """Ends the job if no stage is open any more."""
        job = run.job
        if job.ended or job.open_stages:
            return
        if job.status is JobStatus.CANCELLING:
            self._end(run, JobEnded(job=job.id, status=JobStatus.CANCELLED, error=job.error))
        else:
            self._end(run, JobEnded(job=job.id, status=JobStatus.SUCCEEDED, outputs=job.declared()))

    def fail(self, run: Run) -> None:
        """Ends the job because a stage failed for good: everything else is stopped."""
        job = run.job
        errors = [
            f"stage {name} failed{f' on {stage.error.node}' if stage.error.node else ''}: {stage.error.message}"
            for name, stage in job.stages.items()
            if stage.status is StageStatus.FAILED and stage.error is not None
        ]
        for name, stage in job.stages.items():
            if stage.status in ENDED:
                continue
            self._stop(job, name)
            self._ledger.record(StageCancelled(job=job.id, stage=name))
        self._end(run, JobEnded(job=job.id, status=JobStatus.FAILED, outputs=job.declared(), error="\n".join(errors)))

    def cancel(self, run: Run, principal: str, reason: str) -> None:
        """Stops a job: what waits is cancelled at once, what is with an agent once that says so."""
        job = run.job
        self._ledger.record(JobCancelRequested(job=job.id, principal=principal, reason=reason))
        for name, stage in job.stages.items():
            if stage.status in ACTIVE:
                self._stop(job, name)
            elif stage.status is StageStatus.PENDING:
                self._ledger.record(StageCancelled(job=job.id, stage=name))
        self._lanes.drop(run)
        run.waits.clear()
        self.check(run)

    def _stop(self, job: JobState, stage: StageId) -> None:
        for token, agent in job.stages[stage].live.items():
            # The commands for a process that is lost would reach the one that takes its place.
            if self._is_there(agent):
                self._ledger.send(agent, Cancel(task=TaskToken(job.id, stage, token)))

    def _end(self, run: Run, fact: JobEnded) -> None:
        self._ledger.record(fact)
        run.closed = True
        self._lanes.drop(run)
        run.waits.clear()
        del self.runs[run.job.id]
        for agent in sorted(run.job.agents):
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
