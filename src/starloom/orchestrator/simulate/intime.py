"""Properties of time: nothing is given up before its deadline, and nothing is copied before it runs too long."""

from collections.abc import Sequence
from typing import Final

from starloom.agents.messages import Assign
from starloom.dag import facts as f
from starloom.dag.constellation import Dependency, Join
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.dag.streams import is_stream
from starloom.orchestrator.deadlines import CAUSE
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.loop import SECOND
from starloom.orchestrator.simulate.model import KINDS, STREAMING
from starloom.orchestrator.simulate.property import Property, difference_of

LATE_SECONDS: Final = 15.0
"""How much later than its deadline something may end: an orchestrator stands still, or its disk does."""

_ENDS = (f.StageCommitted, f.StageDefaulted, f.StageSkipped, f.StageCancelled)


def out_of_time(fact: f.StageFailed) -> bool:
    """Whether the stage's deadline was over, rather than an attempt's timeout."""
    return fact.error.cause == CAUSE and fact.retry_seconds is None and not fact.error.transient


class CopiesAreFew(Property):
    name = "copies are few"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: when an attempt is known to have begun
        self._began: dict[TaskToken, int] = {}

    def began(self, process: AgentProcess, assign: Assign) -> None:
        self._began[assign.task] = self.world.loop.now

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StagePlaced) or stage is None or not stage.live:
            return
        policy = stage.spec.policy.straggler
        if policy is None or not fact.copy or len(stage.live) > 1:
            self.broken(f"{fact.token} is placed beside {list(stage.live)}", fact.job, fact.stage)
            return
        ((token, agent),) = stage.live.items()
        if agent == fact.agent:
            self.broken(f"{fact.token} is a copy on the same node", fact.job, fact.stage)
        began = self._began.get(TaskToken(fact.job, fact.stage, token))
        ran = (self.world.loop.now - began) / SECOND if began is not None else 0.0
        if ran < policy.after_seconds:
            what = f"{token} had run {ran:.3f} s when it was copied, and the policy says {policy.after_seconds:g} s"
            self.broken(what, fact.job, fact.stage)


class DeadlinesAreKept(Property):
    name = "deadlines are kept"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: when it was decided that a job is accepted, and that a stage has ended for the first time
        self._accepted: dict[JobId, int] = {}
        self._ended: dict[tuple[JobId, StageId], int] = {}
        #: and that it is given out for the first time, or has ended without that
        self._begun: dict[tuple[JobId, StageId], int] = {}
        #: jobs in which something ran again, or that a restart met, or a patch: when deadlines began is not simple then
        self._unclear: set[JobId] = set()

    def decided(self, orchestrator: Orchestrator, decision: Decision) -> None:
        now = self.world.loop.now
        for fact in decision.facts:
            if isinstance(fact, f.JobSubmitted):
                self._accepted[fact.job] = now
            elif isinstance(fact, f.StagePlaced):
                self._begun.setdefault((fact.job, fact.stage), now)
            elif isinstance(fact, _ENDS):
                self._begun.setdefault((fact.job, fact.stage), now)
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
        elif isinstance(fact, f.JobPatched):
            self._unclear.add(name)
        elif stage is not None:
            self._of_stage(fact, name, job, stage, now)
            if difference_of(fact) is not None:
                self._unclear.add(name)

    def _job_over(self, name: JobId, job: JobView, now: int) -> None:
        limit, passed = job.submitted.options.deadline_seconds, (now - self._accepted[name]) / SECOND
        if not limit or passed < limit:
            self.broken(f"it was stopped after {passed:.3f} s, and its deadline is {limit:g} s", name)
        elif passed > limit + LATE_SECONDS:
            self._late(f"it was stopped after {passed:.3f} s, and its deadline is {limit:g} s", name, "")

    def _of_stage(self, fact: AnyFact, name: JobId, job: JobView, stage: StageView, now: int) -> None:
        id_ = stage.spec.id
        if isinstance(fact, f.StageReopened):
            # The time of what waits for it began when it had ended for the first time, and goes on while it is made again.
            self._unclear.add(name)
            return
        limit = stage.spec.policy.deadline_seconds
        over = isinstance(fact, f.StageFailed) and out_of_time(fact)
        if over or (limit and isinstance(fact, _ENDS) and job.status is JobStatus.RUNNING):
            since = self._since(name, job, id_)
            passed = (now - since) / SECOND if since is not None else 0.0
            if over and since is None:
                self.broken("it was given up by its deadline before its dependencies held", name, id_)
            elif over and (not limit or passed < limit):
                self.broken(f"it was given up after {passed:.3f} s, and its deadline is {limit:g} s", name, id_)
            elif limit and passed > limit + LATE_SECONDS and stage.spec.join is Join.ALL:
                self._late(f"it ends after {passed:.3f} s, and its deadline is {limit:g} s", name, id_)

    def _since(self, name: JobId, job: JobView, id_: StageId) -> int | None:
        """Not before this did its dependencies hold, and not after, unless something ran again; None if they never did."""
        ended = [self._ended.get((name, arc.upstream)) for arc in job.upstreams[id_] if not _streams(job, arc)]
        if job.stages[id_].spec.kind not in STREAMING:
            return self._when(name, ended, job.stages[id_].spec.join)
        # A stream is read from its first chunk on: its reader's time begins with its producer.
        begun = [self._begun.get((name, arc.upstream)) for arc in job.upstreams[id_] if _streams(job, arc)]
        return self._when(name, [*begun, *(self._outside(name, job, each) for each in _group(job, id_))])

    def _outside(self, name: JobId, job: JobView, id_: StageId) -> int | None:
        """When a stage of a group had what it needs from outside the group, or needed it no more: none starts before."""
        ended = [self._ended.get((name, arc.upstream)) for arc in job.upstreams[id_] if not _streams(job, arc)]
        return self._when(name, [self._when(name, ended), self._ended.get((name, id_))], Join.ANY)

    def _when(self, name: JobId, times: Sequence[int | None], join: Join = Join.ALL) -> int | None:
        """When all or any of these were: with the job if there are none, and None if that never was."""
        known = [time for time in times if time is not None]
        if not times:
            return self._accepted[name]
        if join is Join.ALL:
            return max(known) if len(known) == len(times) else None
        return min(known, default=None)

    def _late(self, what: str, job: JobId, stage: str) -> None:
        if job not in self._unclear:
            self.broken(what, job, stage)


def _streams(job: JobView, arc: Dependency) -> bool:
    return is_stream(arc, KINDS.get(job.stages[arc.upstream].spec.kind))


def _group(job: JobView, stage: StageId) -> list[StageId]:
    """The stages that streams connect to a stage, itself included: they start together."""
    found = [stage]
    for each in found:
        near = [arc.upstream for arc in job.upstreams[each] if _streams(job, arc)]
        near += [arc.downstream for arc in job.downstreams[each] if _streams(job, arc)]
        found += [other for other in dict.fromkeys(near) if other not in found]
    return found
