"""Properties of what is given out ahead of its upstreams: it starts, ends and dies as if it had waited at the orchestrator."""

from starloom.agents.messages import Assign
from starloom.dag import facts as f
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.property import Property


class StartsInTurn(Property):
    name = "nothing starts before what it awaits has succeeded"

    def began(self, process: AgentProcess, assign: Assign) -> None:
        task = assign.task
        placed = self.judge.ahead.get(task, {})
        streams = {awaited.upstream for awaited in assign.awaits if awaited.streams and not awaited.feeds}
        for upstream, token in placed.items():
            awaited = TaskToken(task.job, upstream, token)
            if upstream not in streams and awaited not in self.judge.made and awaited not in self.judge.early:
                what = f"{process.name} runs {task.token}, and {upstream}'s attempt {token} has not succeeded"
                self.broken(what, task.job, task.stage)


class CommitsInTurn(Property):
    name = "nothing commits before what it awaits has a result"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.StageCommitted) and stage is not None and stage.awaits:
            self.broken(f"{fact.token} commits, and awaits {stage.awaits}", fact.job, fact.stage)


class DiesWithWhatItAwaits(Property):
    name = "an attempt lives no longer than those that it awaits"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._waiting: dict[tuple[JobId, StageId], None] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.StagePlaced) and fact.awaits:
            self._waiting[fact.job, fact.stage] = None

    def written(self) -> None:
        for name, id_ in tuple(self._waiting):
            job = self.judge.jobs[name]
            stage = job.stages.get(id_)
            if stage is None or not stage.awaits or job.status is not JobStatus.RUNNING:
                del self._waiting[name, id_]
                continue
            for upstream, token in stage.awaits.items():
                if upstream not in job.stages or token not in job.stages[upstream].live:
                    self.broken(f"{list(stage.live)} awaits {upstream}'s attempt {token}, which is over", name, id_)
