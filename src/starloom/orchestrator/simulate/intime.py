"""The property of deadlines: nothing is given up before its time, and nothing goes on long after it."""

from typing import Final

from starloom.dag import facts as f
from starloom.dag.constellation import Join
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import JobId, StageId
from starloom.orchestrator.deadlines import CAUSE
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.judge import JobView, Judge, StageView
from starloom.orchestrator.simulate.loop import SECOND
from starloom.orchestrator.simulate.property import Property

LATE_SECONDS: Final = 15.0
"""How much later than its deadline something may end: an orchestrator stands still, or its disk does."""

_ENDS = (f.StageCommitted, f.StageDefaulted, f.StageSkipped, f.StageCancelled)


def out_of_time(fact: f.StageFailed) -> bool:
    """Whether the stage's deadline was over, rather than an attempt's timeout."""
    return fact.error.cause == CAUSE and fact.retry_seconds is None and not fact.error.transient


class DeadlinesAreKept(Property):
    name = "deadlines are kept"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: when it was decided that a job is accepted, and that a stage has ended for the first time
        self._accepted: dict[JobId, int] = {}
        self._ended: dict[tuple[JobId, StageId], int] = {}
        #: jobs in which something ran again, or that a restart met: when deadlines began is not simple then
        self._unclear: set[JobId] = set()

    def decided(self, orchestrator: Orchestrator, decision: Decision) -> None:
        now = self.world.loop.now
        for fact in decision.facts:
            if isinstance(fact, f.JobSubmitted):
                self._accepted[fact.job] = now
            elif isinstance(fact, _ENDS):
                self._ended.setdefault((fact.job, fact.stage), now)

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        now = self.world.loop.now
        if isinstance(fact, f.EpochStarted):
            self._unclear.update(self._accepted)
        if job is None:
            return
        name = job.submitted.job
        if isinstance(fact, f.JobCancelRequested) and fact.cause == CAUSE:
            self._job_over(name, job, now)
        elif isinstance(fact, f.JobEnded):
            limit = job.submitted.options.deadline_seconds
            passed = (now - self._accepted[name]) / SECOND
            if limit and job.status is JobStatus.RUNNING and passed > limit + LATE_SECONDS:
                self._late(f"it ends after {passed:.3f} s, and its deadline is {limit:g} s", name, "")
        elif stage is not None:
            self._of_stage(fact, name, job, stage, now)

    def _job_over(self, name: JobId, job: JobView, now: int) -> None:
        limit, passed = job.submitted.options.deadline_seconds, (now - self._accepted[name]) / SECOND
        if not limit or passed < limit:
            self.broken(f"it was stopped after {passed:.3f} s, and its deadline is {limit:g} s", name)
        elif passed > limit + LATE_SECONDS:
            self._late(f"it was stopped after {passed:.3f} s, and its deadline is {limit:g} s", name, "")

    def _of_stage(self, fact: AnyFact, name: JobId, job: JobView, stage: StageView, now: int) -> None:
        id_ = stage.spec.id
        if isinstance(fact, f.StageReopened):
            self._unclear.add(name)
            # Its time begins anew, when its dependencies hold again.
            self._ended.pop((name, id_), None)
            return
        limit = stage.spec.policy.deadline_seconds
        over = isinstance(fact, f.StageFailed) and out_of_time(fact)
        if over or (limit and isinstance(fact, _ENDS) and job.status is JobStatus.RUNNING):
            since = self._since(name, job, stage)
            passed = (now - since) / SECOND
            if over and (not limit or passed < limit):
                self.broken(f"it was given up after {passed:.3f} s, and its deadline is {limit:g} s", name, id_)
            elif limit and passed > limit + LATE_SECONDS and stage.spec.join is Join.ALL:
                self._late(f"it ends after {passed:.3f} s, and its deadline is {limit:g} s", name, id_)

    def _since(self, name: JobId, job: JobView, stage: StageView) -> int:
        """Not before this did its dependencies hold, unless something ran again."""
        accepted = self._accepted[name]
        ended = [self._ended.get((name, arc.upstream), accepted) for arc in job.upstreams[stage.spec.id]]
        if not ended:
            return accepted
        return max(ended) if stage.spec.join is Join.ALL else min(ended)

    def _late(self, what: str, job: JobId, stage: str) -> None:
        if job not in self._unclear:
            self.broken(what, job, stage)
