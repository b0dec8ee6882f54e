"""The agents as facts tell of them: their processes, what each offers, and what each was given."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from starloom.agents.messages import Load
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.facts import AgentJoined, AgentLost
from starloom.dag.ids import AgentId, FencingToken, StageId, TaskToken
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.node import NodeProfile

if TYPE_CHECKING:
    from starloom.orchestrator.lanes import Lane


class AgentState(StrEnum):
    """online: heard of within its lease. suspect: not; gets nothing new. lost: given up, with all that it held."""

    ONLINE = "online"
    SUSPECT = "suspect"
    LOST = "lost"


class Work(NamedTuple):
    """One attempt that an agent was given: the seconds it is expected to take, and whose values it has to fetch.

    `ends` is when it is expected to end, in monotonic nanoseconds.
    """

    seconds: float = 0.0
    fetches: Mapping[StageId, FencingToken] = {}
    ends: int = 0


class Member:
    """One agent of the fleet.

    The profile, the incarnation, what was assigned and what ran come from facts. The rest is what is
    known since this orchestrator started, and what it knows of the time.
    """

    __slots__ = (
        "assigned",
        "blocked",
        "capacity",
        "deadline",
        "delegated",
        "delegated_seconds",
        "heard",
        "incarnation",
        "kinds",
        "links",
        "load",
        "loaded",
        "losses",
        "lost_at",
        "name",
        "offers",
        "profile",
        "resident",
        "rests_until",
        "seconds",
        "slots",
        "state",
    )

    def __init__(self, name: AgentId) -> None:
        self.name = name
        self.incarnation = ""
        self.state = AgentState.LOST
        #: the signatures that it told of, and those of them that the fleet goes by
        self.kinds: tuple[KindSpec, ...] = ()
        self.offers: dict[str, KindSpec] = {}
        self.assigned: dict[TaskToken, Work] = {}
        #: those of them that await upstreams: they take no room from what could run now
        self.delegated: dict[TaskToken, None] = {}
        #: kinds that ran in this process, by the facts
        self.resident: set[str] = set()
        #: kinds whose models are loaded: by its last heartbeat, and those that ran since; None where it did not say
        self.loaded: set[str] | None = None
        #: expected seconds of all that is assigned, of what could run now and of what is delegated
        self.seconds = self.delegated_seconds = 0.0
        self.load = Load()
        #: to it from others, as it last told
        self.links: dict[str, MeasuredLink] = {}
        #: when it was last heard of, when its state changes for the worse, when it was lost, and until when it
        #: gets nothing: monotonic nanoseconds
        self.heard = self.deadline = self.lost_at = self.rests_until = 0
        #: when it was lost lately
        self.losses: list[int] = []
        #: lanes of ready stages that wait for room on it, by their number
        self.blocked: dict[int, Lane] = {}
        self.describe(NodeProfile(name=name, tier=Tier.CLOUD))

    def __repr__(self) -> str:
        return f"<Member {self.name} {self.state} {self.incarnation} assigned={len(self.assigned)}>"

    def describe(self, profile: NodeProfile) -> None:
        """Takes over a profile."""
        self.profile = profile
        self.slots = max(1, profile.slots)
        self.capacity = self.slots + limits.AGENT_BACKLOG_STAGES

    def beat(self, load: Load) -> None:
        """Takes over what a heartbeat told."""
        self.load = load
        if load.links is not None:
            self.links = load.links
        self.loaded = None if load.resident is None else set(load.resident)

    def ran(self, kind: str) -> None:
        """A run of the kind succeeded in this process."""
        self.resident.add(kind)
        if self.loaded is not None:
            self.loaded.add(kind)

    def is_resident(self, kind: KindSpec) -> bool:
        """Whether what the kind needs is loaded there; of kinds that name no models, agents cannot tell."""
        known = self.loaded if self.loaded is not None and kind.models else self.resident
        return kind.name in known

    @property
    def there(self) -> bool:
        """Whether it may be given anything at all."""
        return self.state is AgentState.ONLINE and not self.rests_until

    @property
    def open(self) -> bool:
        """Whether it may be given one more attempt that could run now: of short ones it has more in hand."""
        # Asked of every candidate for every stage, so it asks no other property.
        if self.state is not AgentState.ONLINE or self.rests_until:
            return False
        in_hand = len(self.assigned) - len(self.delegated)
        return in_hand < self.capacity or (
            in_hand < limits.AGENT_BACKLOG_FACTOR * limits.AGENT_BACKLOG_STAGES
            and self.seconds < limits.AGENT_BACKLOG_SECONDS * self.slots
        )

    @property
    def open_ahead(self) -> bool:
        """Whether it may be given one more attempt that awaits upstreams."""
        return self.there and len(self.delegated) < limits.DELEGATED_STAGES_PER_AGENT_MAX

    @property
    def in_hand(self) -> int:
        """How many attempts it has that could run now, or do."""
        return len(self.assigned) - len(self.delegated)

    def holds(self, incarnation: str) -> bool:
        """Whether what that incarnation made may still be there."""
        return self.state is not AgentState.LOST and self.incarnation == incarnation


class Fleet:
    """All agents that ever joined, by name, and the kinds that they offer."""

    def __init__(self) -> None:
        self.members: dict[AgentId, Member] = {}
        self.kinds = KindCatalog()
        #: changes with each agent that joins or is lost
        self.version = 0
        #: agents that may have room again since the ready stages were last looked at
        self.opened: dict[AgentId, Member] = {}
        #: whether some agent may have room again for what awaits upstreams
        self.opened_ahead = False
        self._offering: dict[str, int] = {}
        #: lost agents, the one that was lost first at the front
        self._lost: dict[AgentId, None] = {}

    def joined(self, fact: AgentJoined) -> None:
        """A process is there; if it is not the one that was, what that one held is gone."""
        member = self.members.get(fact.agent) or self.members.setdefault(fact.agent, Member(fact.agent))
        self._withdraw(member)
        if member.incarnation != fact.incarnation:
            member.resident.clear()
            member.loaded = None
        member.incarnation = fact.incarnation
        self._lost.pop(fact.agent, None)
        member.describe(msgspec.convert(fact.profile, NodeProfile))
        member.kinds, member.offers = fact.kinds, {}
        member.state = AgentState.ONLINE
        self._offer(member, fact.kinds)
        self.opened[member.name] = member
        self.opened_ahead = True
        self.version += 1

    def lost(self, fact: AgentLost) -> None:
        """A process is given up; its attempts are superseded by facts of their own."""
        member = self.members.get(fact.agent)
        if member is None or member.state is AgentState.LOST:
            # Long forgotten, and its joining was trimmed from the journal.
            return
        self._withdraw(member)
        member.state = AgentState.LOST
        self._lost[fact.agent] = None
        if len(self._lost) > limits.LOST_NODES_KEPT:
            self._forget_one()
        self.version += 1

    def having(self, holders: Mapping[AgentId, str]) -> list[Member]:
        """Those of the holders, each given with its process, whose process may still be there."""
        found = []
        for agent, incarnation in holders.items():
            member = self.members.get(agent)
            if member is not None and member.holds(incarnation):
                found.append(member)
        return found

    def _forget_one(self) -> None:
        """Nodes that come under ever new names are not kept for ever; one whose attempts are not yet superseded is."""
        idle = next((name for name in self._lost if not self.members[name].assigned), None)
        if idle is not None:
            del self._lost[idle], self.members[idle]

    def place(self, agent: AgentId, task: TaskToken, *, delegated: bool = False) -> None:
        """An attempt was given to an agent; `delegated`: it awaits upstreams.

        An agent whose joining was trimmed from the journal counts as lost until it joins again.
        """
        member = self.members.get(agent) or self.members.setdefault(agent, Member(agent))
        member.assigned[task] = Work()
        if delegated:
            member.delegated[task] = None

    def expect(self, agent: AgentId, task: TaskToken, work: Work) -> None:
        """What placement expects of an attempt that was just given."""
        member = self.members[agent]
        member.assigned[task] = work
        if task in member.delegated:
            member.delegated_seconds += work.seconds
        else:
            member.seconds += work.seconds

    def due(self, agent: AgentId, task: TaskToken) -> None:
        """An attempt awaits nothing any more."""
        member = self.members[agent]
        work = member.assigned[task]
        self._undelegate(member, task, work)
        member.seconds += work.seconds

    def free(self, agent: AgentId, task: TaskToken) -> None:
        """An attempt is over, or no longer wanted."""
        member = self.members[agent]
        work = member.assigned.pop(task)
        if task in member.delegated:
            self._undelegate(member, task, work)
        else:
            member.seconds -= work.seconds
        if not member.in_hand:
            # sums of floats drift
            member.seconds = 0.0
        if not member.assigned and not member.incarnation:
            del self.members[agent]
        if member.blocked:
            self.opened[agent] = member

    def _undelegate(self, member: Member, task: TaskToken, work: Work) -> None:
        del member.delegated[task]
        member.delegated_seconds = member.delegated_seconds - work.seconds if member.delegated else 0.0
        self.opened_ahead = True

    def _offer(self, member: Member, kinds: tuple[KindSpec, ...]) -> None:
        """Two signatures under one name cannot serve side by side: the one that is there stays until nobody offers it."""
        names = frozenset(member.profile.kinds) or frozenset(kind.name for kind in kinds)
        changed = False
        for kind in kinds:
            known = self.kinds.get(kind.name)
            if kind.name not in names or (known is not None and known != kind and self._offering.get(kind.name)):
                continue
            member.offers[kind.name] = kind
            self._offering[kind.name] = self._offering.get(kind.name, 0) + 1
            changed = changed or known != kind
        if changed:
            self.kinds = KindCatalog({**self.kinds, **member.offers}.values())

    def _withdraw(self, member: Member) -> None:
        if member.state is not AgentState.LOST:
            for kind in member.offers:
                self._offering[kind] -= 1
