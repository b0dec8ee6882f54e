"""Streams between agents and the orchestrator, in order each way until they break; and who reaches whom."""

from collections.abc import Callable
from functools import partial

from starloom.dag.ids import AgentId
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.loop import Call, Chance, Loop, Process

Fires = Callable[[FaultKind], bool]

LATENCY_SECONDS = (0.0002, 0.003)


class Way:
    """One direction of a stream."""

    __slots__ = ("held", "last", "open", "receiver")

    def __init__(self, receiver: Process | None) -> None:
        self.receiver = receiver
        self.open = True
        #: when the last message arrives: none overtakes another
        self.last = 0
        #: messages that a partition keeps back
        self.held: list[Call] = []


class Stream:
    """One connection of an agent's process: what is in flight when it breaks is lost."""

    def __init__(self, network: "Network", agent: AgentId, process: Process) -> None:
        self._network = network
        self.agent = agent
        self.up = Way(None)
        self.down = Way(process)

    def send_up(self, message: Call, frame: bool = False) -> None:
        """To the orchestrator. A frame may arrive twice."""
        self._network.send(self.up, message, self._network.blocked_up, self.agent, frame)

    def send_down(self, message: Call, frame: bool = False) -> None:
        """To the agent. A frame may arrive twice."""
        self._network.send(self.down, message, self._network.blocked_down, self.agent, frame)

    def cut(self) -> None:
        """Nothing arrives any more, either way."""
        self.up.open = self.down.open = False
        self._network.forget(self)


class Network:
    """Delays, partitions and slow links, by agent."""

    def __init__(self, loop: Loop, chance: Chance, fires: Fires) -> None:
        self._loop = loop
        self._chance = chance
        self._fires = fires
        #: how many partitions keep messages back, one way each, and values from or to an agent
        self.blocked_up: dict[AgentId, int] = {}
        self.blocked_down: dict[AgentId, int] = {}
        self.blocked_data: dict[AgentId, int] = {}
        #: seconds that each message to or from an agent takes longer
        self.slow: dict[AgentId, float] = {}
        self.streams: dict[AgentId, list[Stream]] = {}

    def stream(self, agent: AgentId, process: Process) -> Stream:
        """A new connection."""
        stream = Stream(self, agent, process)
        self.streams.setdefault(agent, []).append(stream)
        return stream

    def forget(self, stream: Stream) -> None:
        """A stream that is closed."""
        streams = self.streams.get(stream.agent, [])
        if stream in streams:
            streams.remove(stream)

    def latency(self, agent: AgentId) -> float:
        """Seconds that a message takes now."""
        return self._chance.between(*LATENCY_SECONDS) + self.slow.get(agent, 0.0) * self._chance.between(0, 1)

    def send(self, way: Way, message: Call, blocked: dict[AgentId, int], agent: AgentId, frame: bool) -> None:
        """Puts a message on its way."""
        if not way.open:
            return
        if blocked.get(agent):
            way.held.append(message)
            return
        self._post(way, message, agent)
        if frame and self._fires(FaultKind.FRAME_TWICE):
            self._post(way, message, agent)

    def reaches(self, one: AgentId, other: AgentId | None) -> bool:
        """Whether values get from one agent to another, or to the orchestrator's store."""
        if self.blocked_data.get(one) or (other is not None and self.blocked_data.get(other)):
            return False
        # The store is at the end of the same path as the sessions.
        return other is not None or not (self.blocked_up.get(one) or self.blocked_down.get(one))

    def block(self, blocked: dict[AgentId, int], agent: AgentId) -> None:
        """A partition begins."""
        blocked[agent] = blocked.get(agent, 0) + 1

    def heal(self, blocked: dict[AgentId, int], agent: AgentId) -> None:
        """A partition ends: what it kept back arrives, on streams that nobody has given up."""
        blocked[agent] -= 1
        if blocked[agent]:
            return
        del blocked[agent]
        for stream in tuple(self.streams.get(agent, ())):
            for way, its in ((stream.up, self.blocked_up), (stream.down, self.blocked_down)):
                if its is blocked:
                    held, way.held = way.held, []
                    for message in held:
                        self._post(way, message, agent)

    def _post(self, way: Way, message: Call, agent: AgentId) -> None:
        way.last = max(way.last + 1, self._loop.now + round(self.latency(agent) * 1e9))
        self._loop.at(way.last, partial(_arrive, way, message), way.receiver)


def _arrive(way: Way, message: Call) -> None:
    if way.open:
        message()
