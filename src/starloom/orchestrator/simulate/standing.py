"""The property that stages are given to nodes that are there and that they may be on, whoever advises what."""

from starloom.dag import facts as f
from starloom.dag.facts import AnyFact
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.variants import chosen
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.property import Property


class StandsWhereItMay(Property):
    """A stage's node has joined and is not lost, is the one or on a tier that it requires, and has no other of its group.

    A member of a group that stands apart takes its node as long as an attempt of it is with that, or its result came from
    there, and the node is not lost. What the node offers and has is the same for all simulated ones.
    """

    name = "stages stand where they may"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._ended_on: dict[tuple[JobId, StageId], AgentId] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if job is None or stage is None:
            return
        if isinstance(fact, f.StagePlaced):
            if wrong := self._wrong(fact, job, stage):
                self.broken(f"it is given to {fact.agent}, {wrong}", fact.job, fact.stage)
        elif isinstance(fact, f.StageCommitted) and fact.token in stage.live:
            self._ended_on[fact.job, fact.stage] = stage.live[fact.token]
        elif isinstance(fact, f.StageReopened):
            self._ended_on.pop((fact.job, fact.stage), None)

    def _wrong(self, fact: f.StagePlaced, job: JobView, stage: StageView) -> str:
        agent, spec, spread = fact.agent, stage.spec, stage.spec.spread
        way = next((each for each in spec.variants if each.name == fact.variant), None)
        requires = spec.requires if way is None else chosen(spec, way).requires
        if agent not in self.judge.there:
            return "which is not there"
        if requires.node and requires.node != agent:
            return f"and requires {requires.node}"
        if requires.tiers and self.world.tiers[agent] not in requires.tiers:
            return f"and requires the tier {' or '.join(requires.tiers)}"
        if spread is None or spread.seconds or spread.over:
            return ""
        for name, other in job.stages.items():
            if name == fact.stage or other.spec.spread != spread or other.spec.cancelled:
                continue
            if agent in other.live.values() or self._ended_on.get((fact.job, name)) == agent:
                return f"where {name} of its group is"
        return ""
