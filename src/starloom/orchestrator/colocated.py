"""Stages that share a node: where the first of a group is placed the others follow, as long as that node is there.

The first is only placed where all of its group may run. Once the node of a group is lost, those that are still to run
share another. A patch that leaves a group no such node is refused; one that moves it elsewhere leads what is still to run.
"""

from collections.abc import Callable, Collection, Sequence

from starloom.dag.ids import AgentId, StageId
from starloom.dag.job import JobState
from starloom.dag.stagestate import ACTIVE, StageStatus
from starloom.orchestrator.fleet import Fleet
from starloom.orchestrator.placement import Candidate

Nodes = Callable[[StageId], Collection[AgentId]]
"""The nodes that are not lost and that may run a stage, whatever else its group needs."""


class Group:
    """The stages of a job that share a node."""

    __slots__ = ("_common", "_version", "members", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[StageId] = []
        self._common: frozenset[AgentId] = frozenset()
        self._version = -1

    def common(self, fleet: Fleet, nodes: Nodes) -> frozenset[AgentId]:
        """The nodes that may run all of them."""
        if self._version != fleet.version:
            self._version = fleet.version
            first, *others = map(nodes, self.members)
            self._common = frozenset(first).intersection(*others)
        return self._common

    def stands(self, job: JobState, common: Collection[AgentId]) -> AgentId | None:
        """The node that members are on, or were when they succeeded; None if the next one may choose of the common ones."""
        ended: AgentId | None = None
        for name in self.members:
            stage = job.stages[name]
            if stage.status in ACTIVE:
                here = next((agent for agent in stage.live.values() if agent in common), None)
                if here is not None:
                    return here
            elif ended is None and stage.status is StageStatus.SUCCEEDED and stage.agent in common:
                ended = stage.agent
        return ended

    def narrowed(
        self, job: JobState, candidates: Sequence[Candidate], fleet: Fleet, nodes: Nodes
    ) -> Sequence[Candidate]:
        """Those of a member's candidates that its group leaves it."""
        common = self.common(fleet, nodes)
        node = self.stands(job, common)
        return [each for each in candidates if (each.member.name == node if node else each.member.name in common)]


def groups_in(job: JobState) -> dict[StageId, Group]:
    """The groups of a job, by their stages; those that are cancelled need no node."""
    groups: dict[str, Group] = {}
    found: dict[StageId, Group] = {}
    for name, stage in job.stages.items():
        if stage.spec.colocate and not stage.spec.cancelled:
            group = found[name] = groups.setdefault(stage.spec.colocate, Group(stage.spec.colocate))
            group.members.append(name)
    return found
