"""Properties of time: nothing is given up before its deadline, and nothing is copied before it runs too long."""

from typing import Final

from starloom.agents.messages import Assign
from starloom.dag import facts as f
from starloom.dag.constellation import Join
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.orchestrator.deadlines import CAUSE
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.judge import JobView, Judge, StageView
from starloom.orchestrator.simulate.loop import SECOND
from starloom.orchestrator.simulate.model import STREAM, gives
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
        #: jobs in which something ran again, or that a restart met, or a patch: when deadlines began is not simple then
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
            since = self._since(name, job, stage)
            passed = (now - since) / SECOND
            if over and (not limit or passed < limit):
                self.broken(f"it was given up after {passed:.3f} s, and its deadline is {limit:g} s", name, id_)
            elif limit and passed > limit + LATE_SECONDS and stage.spec.join is Join.ALL and self._held(name, job, id_):
                self._late(f"it ends after {passed:.3f} s, and its deadline is {limit:g} s", name, id_)

    def _held(self, name: JobId, job: JobView, id_: StageId) -> bool:
        """Whether its upstreams have ended: the time of a stage that is stopped with its job may never have begun."""
        return all((name, arc.upstream) in self._ended for arc in job.upstreams[id_])

    def _since(self, name: JobId, job: JobView, stage: StageView) -> int:
        """Not before this did its dependencies hold, unless something ran again."""
        accepted = self._accepted[name]
        ended = []
        for arc in job.upstreams[stage.spec.id]:
            upstream = job.stages[arc.upstream]
            # A stream is read from its first chunk on: its reader begins with its producer.
            streams = gives(upstream.spec.kind) is STREAM
            ended.append(
                self._since(name, job, upstream) if streams else self._ended.get((name, arc.upstream), accepted)
            )
        if not ended:
            return accepted
        return max(ended) if stage.spec.join is Join.ALL else min(ended)

    def _late(self, what: str, job: JobId, stage: str) -> None:
        if job not in self._unclear:
            self.broken(what, job, stage)
