"""The property that a stage keeps the variant that it had first, for as long as some node may run it."""

import msgspec

from starloom.dag import facts as f
from starloom.dag.facts import AnyFact
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.privacy import labels_of
from starloom.dag.variants import allowed, chosen
from starloom.devices.node import NodeProfile
from starloom.orchestrator.feasible import may
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.model import KINDS
from starloom.orchestrator.simulate.property import Property, difference_of


class VariantsAreKept(Property):
    """Each attempt runs in a variant that may be taken, and in that of the one before unless no node that is there may run that.

    A patch that changes a stage lets it begin anew. Of what has to stand apart it is not judged why a variant is another: nodes that
    may run it may be taken, or needed, by the others of its group. That a job tells of each change follows from facts, which are replayed.
    """

    name = "variants are kept"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._had: dict[tuple[JobId, StageId], str] = {}
        #: the nodes that are there, by what is journaled of them
        self._nodes: dict[AgentId, NodeProfile] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.AgentJoined):
            self._nodes[fact.agent] = msgspec.convert(fact.profile, NodeProfile)
        elif isinstance(fact, f.AgentLost):
            self._nodes.pop(fact.agent, None)
        difference = difference_of(fact)
        if difference is not None and job is not None:
            for change in difference.stages:
                self._had.pop((job.submitted.job, change.stage), None)
        if isinstance(fact, f.StagePlaced) and job is not None and stage is not None:
            self._placed(fact, job, stage)

    def _placed(self, fact: f.StagePlaced, job: JobView, stage: StageView) -> None:
        spec, key = stage.spec, (fact.job, fact.stage)
        ways = {each.name: each for each in allowed(spec, job.constellation.least_quality)}
        if fact.variant not in (ways or {""}):
            self.broken(f"{fact.token} runs as {fact.variant!r}, which it may not", *key)
        before = self._had.get(key, fact.variant)
        self._had[key] = fact.variant
        apart = spec.spread is not None and not spec.spread.seconds
        if before == fact.variant or before not in ways or apart:
            return
        requires = chosen(spec, ways[before]).requires
        level = labels_of(job.constellation, KINDS)[0].levels.get(fact.stage)
        able = [name for name, node in self._nodes.items() if may(node, True, KINDS[spec.kind], requires, level)]
        if able:
            self.broken(f"{fact.token} runs as {fact.variant}, and {able[0]} may run it as {before}, as before", *key)
