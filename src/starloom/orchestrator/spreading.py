"""Stages that stand apart: on different nodes, or where an attribute of the node differs.

A place counts as taken as long as one of the group is under way there, or has ended there and the node is not lost. Each
is placed so that those which are still to come find places as well; where that cannot be, first come, first served, and
the rest wait. Where standing together only counts as so many seconds, a taken place counts as so much later.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from starloom.dag import limits
from starloom.dag.constellation import Spread
from starloom.dag.ids import AgentId, StageId
from starloom.dag.job import JobState
from starloom.dag.stagestate import ACTIVE, ENDED, StageStatus
from starloom.devices.node import NodeProfile
from starloom.orchestrator.fleet import AgentState, Fleet
from starloom.orchestrator.matching import matching, spare
from starloom.orchestrator.placement import Candidate

Zones = Callable[[StageId], Collection[str]]
"""What a stage may take of what its group is spread over: nodes, or values of an attribute."""


class Apart:
    """The stages of a job that are spread together."""

    __slots__ = ("members", "spread")

    def __init__(self, spread: Spread) -> None:
        self.spread = spread
        self.members: list[StageId] = []

    def zone(self, profile: NodeProfile) -> str:
        """What a node is of all that the group is spread over: itself, or the value of an attribute, empty where it has none."""
        return profile.attribute_text(self.spread.over) if self.spread.over else profile.name

    def zones(self, profiles: Iterable[NodeProfile]) -> list[str]:
        """What some nodes are of it, each once."""
        return [zone for zone in dict.fromkeys(map(self.zone, profiles)) if zone]

    def taken(self, job: JobState, fleet: Fleet, but: StageId) -> dict[str, StageId]:
        """What the others stand on, each with one that does."""
        found: dict[str, StageId] = {}
        for name in self.members:
            stage = job.stages[name]
            agents: Sequence[AgentId] = ()
            if name == but:
                continue
            if stage.status in ACTIVE:
                agents = list(stage.live.values())
            elif stage.status is StageStatus.SUCCEEDED:
                agents = [stage.agent]
            for agent in agents:
                member = fleet.members.get(agent)
                if member is not None and member.state is not AgentState.LOST:
                    found.setdefault(self.zone(member.profile), name)
        return found

    def narrowed(
        self, job: JobState, stage: StageId, candidates: Sequence[Candidate], fleet: Fleet, zones: Zones
    ) -> Sequence[Candidate]:
        """Those of a member's candidates that the others leave it, and need not have themselves.

        Without the attribute over which they are spread, a node is for none of them.
        """
        shut = {*self.taken(job, fleet, stage), ""}
        free = [each for each in candidates if self.zone(each.member.profile) not in shut]
        to_come = [
            name
            for name in self.members
            if name != stage and job.stages[name].status not in ACTIVE and job.stages[name].status not in ENDED
        ]
        if not to_come:
            return free
        wanted = {name: [zone for zone in zones(name) if zone not in shut] for name in to_come}
        # Of all its variants: what none of this one's candidates can be spared, one of another's may be.
        left = spare(wanted, {zone for zone in zones(stage) if zone not in shut})
        return [each for each in free if self.zone(each.member.profile) in left] if left else free

    def words(self, job: JobState, fleet: Fleet, stage: StageId) -> str:
        """What a member needs of a node, in a few words, and who has what of it."""
        taken = self.taken(job, fleet, stage).items()
        shown = ", ".join(f"{name} on {zone}" for zone, name in list(taken)[: limits.NODES_EXPLAINED_MAX])
        group, over = self.spread.group, self.spread.over
        what = f"whose {over} no other of {group} has" if over else f"on which no other of {group} is"
        return f"{what}: {shown or 'none is there'}"


def apart_in(job: JobState) -> dict[StageId, Apart]:
    """The groups of a job that are spread, by their stages; those that are cancelled need no node."""
    groups: dict[str, Apart] = {}
    found: dict[StageId, Apart] = {}
    for name, stage in job.stages.items():
        spread = stage.spec.spread
        if spread is not None and not stage.spec.cancelled:
            group = found[name] = groups.setdefault(spread.group, Apart(spread))
            group.members.append(name)
    return found


def crowded(zones: Mapping[StageId, Collection[str]]) -> list[StageId]:
    """The stages of a group that are left without a zone of their own where as many as can be have one."""
    found = matching(zones)
    return [name for name in zones if name not in found.values()]
