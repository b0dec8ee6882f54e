"""Which node the next copy of a result goes to."""

from collections.abc import Iterable, Sequence
from typing import Final

from starloom.dag import limits
from starloom.dag.constellation import PRIVATE_TIERS, Tier
from starloom.dag.ids import AgentId, StageId
from starloom.dag.stagestate import StageState
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.paths import fetch_seconds
from starloom.orchestrator.runs import Copying, Run

ZONE_LABEL: Final = "zone"
"""The node label that names a failure domain: what shares power, a rack or a vehicle may go at once."""


class ReplicaPlacement:
    """Chooses nodes by what they hold, and by what they were asked to hold."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        #: bytes that each agent was asked to hold and does not yet
        self._coming: dict[AgentId, int] = {}
        self._members: list[Member] = []
        self._version = -1
        self._first = 0

    def choose(self, run: Run, stage: StageState, copying: Copying, living: list[Member]) -> Member | None:
        """Where the next copy goes: as far as may be from what could take the others along, then the nearest, then the emptiest.

        Only to tiers where all that the stage gives may stand. `living` are those who have it; None if there is no place.
        """
        allowed = allowed_tiers(run, stage.spec.id)
        taken = [*living, *(self._fleet.members[agent] for agent in copying.agents)]
        zones = {member.profile.labels.get(ZONE_LABEL) for member in taken} - {None}
        tiers = {member.profile.tier for member in taken}
        sources = [member for member in living if member.state is AgentState.ONLINE]
        best: tuple[tuple[bool, bool, bool, float, int, str], Member] | None = None
        for member in self._some() if sources else ():
            holds = member.load.held_bytes + self._coming.get(member.name, 0)
            if (
                member.state is not AgentState.ONLINE
                or member.rests_until
                or member.profile.tier not in allowed
                or member in taken
                or member.name in copying.unable
                or holds + copying.size_bytes > limits.AGENT_REPLICA_BYTES_MAX
            ):
                continue
            profile = member.profile
            key = (
                profile.labels.get(ZONE_LABEL) in zones,
                profile.tier is Tier.DEVICE,
                profile.tier in tiers,
                min(fetch_seconds(copying.size_bytes, source, member) for source in sources),
                holds,
                member.name,
            )
            if best is None or key < best[0]:
                best = key, member
        return best[1] if best else None

    def asked(self, agent: AgentId, copying: Copying) -> None:
        """An agent was asked for a copy, for which it needs room."""
        self._coming[agent] = self._coming.get(agent, 0) + copying.size_bytes

    def answered(self, agent: AgentId, copying: Copying) -> None:
        """It holds the copy, as it says itself, or will not."""
        self._coming[agent] -= copying.size_bytes

    def lost(self, agent: AgentId) -> None:
        """It holds nothing any more."""
        self._coming.pop(agent, None)

    def _some(self) -> Iterable[Member]:
        """All nodes; of very many the next few, so that a copy costs the same however many there are."""
        if self._version != self._fleet.version:
            self._version = self._fleet.version
            self._members = [member for member in self._fleet.members.values() if member.state is not AgentState.LOST]
        count = len(self._members)
        if count <= limits.REPLICA_NODES_COMPARED_MAX:
            return self._members
        self._first = (self._first + limits.REPLICA_NODES_COMPARED_MAX) % count
        indices = range(self._first, self._first + limits.REPLICA_NODES_COMPARED_MAX)
        return [self._members[index % count] for index in indices]


def allowed_tiers(run: Run, name: StageId) -> Sequence[Tier]:
    """The tiers where all that a stage gives may stand."""
    label = run.labels.given(name)
    return tuple(Tier) if label is None else PRIVATE_TIERS[label.level]
