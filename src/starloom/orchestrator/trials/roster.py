"""Where the processes of a cluster are, as it and its events tell: agents come back with other ids and addresses. Pure."""

from collections.abc import Iterable

import msgspec

from starloom.dag import facts
from starloom.devices.faults import ORCHESTRATOR
from starloom.devices.node import NodeProfile
from starloom.orchestrator.infos import ClusterInfo, Event
from starloom.orchestrator.trials.injector import Place, place_of


class Roster:
    """Everybody of one cluster whose orchestrator is at `address`."""

    def __init__(self, address: str) -> None:
        self._orchestrator = Place(name=ORCHESTRATOR, address=address, pid=0)
        self._profiles: dict[str, tuple[NodeProfile, str]] = {}

    def take(self, info: ClusterInfo) -> None:
        """What the orchestrator says of all, and of itself."""
        self._orchestrator = msgspec.structs.replace(self._orchestrator, pid=info.pid)
        for node in info.nodes:
            self._profiles[node.name] = (node.profile, node.incarnation)

    def hear(self, events: Iterable[Event]) -> None:
        """Agents that have joined since."""
        for event in events:
            fact = event.fact
            if isinstance(fact, facts.AgentJoined) and fact.profile:
                self._profiles[fact.agent] = (msgspec.convert(fact.profile, NodeProfile), fact.incarnation)

    @property
    def places(self) -> list[Place]:
        """The orchestrator and all agents."""
        return [self._orchestrator, *(place_of(profile) for profile, _ in self._profiles.values())]

    def incarnation(self, node: str) -> str:
        """Of the agent of a node; empty for what is none."""
        return self._profiles[node][1] if node in self._profiles else ""
