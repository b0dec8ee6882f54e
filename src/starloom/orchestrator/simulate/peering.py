"""Streams between agents' processes, on which each learns what the other's attempts gave: as `agents.peers` has it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from starloom.agents.core import Ask
from starloom.agents.messages import Outcome
from starloom.agents.peerasks import PeerAsks
from starloom.dag import limits
from starloom.dag.ids import JobId, TaskToken
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.loop import Call

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

NOTICED_SECONDS = (0.0, 0.5)
"""How long an end of a stream takes to notice that it broke."""

HASH_SECONDS = (0.0001, 3.0)
"""How long it takes to hash what is told of early, here or by who has read it: long enough for anything to come between."""


class PeerStream:
    """One connection of a process that awaits to one that is asked. What is in flight when it breaks is lost."""

    def __init__(self, asking: "AgentProcess", asked: "AgentProcess", address: str, number: int) -> None:
        self.asking = asking
        self.asked = asked
        self.address = address
        self.number = number
        self.open = True
        #: when the last message to each end arrives: none overtakes another
        self._last: dict[str, int] = {}

    def send(self, to: "AgentProcess", message: Call) -> None:
        """Puts a message on its way; it may arrive twice. Where nothing gets through, the stream breaks."""
        if not self.open:
            return
        if not self.reaches:
            self.cut()
            return
        for _ in range(self._times()):
            due = to.loop.now + round(self._seconds(to) * 1e9)
            self._last[to.incarnation] = due = max(self._last.get(to.incarnation, 0) + 1, due)
            to.loop.at(due, partial(self._arrive, message), to)

    def cut(self) -> None:
        """Nothing arrives any more; each end that lives learns of it in its own time."""
        if not self.open:
            return
        self.open = False
        chance, loop = self.asking.chance, self.asking.loop
        loop.after(chance.between(*NOTICED_SECONDS), self._broke, self.asking)
        loop.after(chance.between(*NOTICED_SECONDS), self._left, self.asked)

    @property
    def reaches(self) -> bool:
        """Whether something gets through."""
        return self.asking.world.network.reaches(self.asking.name, self.asked.name)

    def _times(self) -> int:
        return 1 + self.asking.world.trouble.fires(FaultKind.FRAME_TWICE)

    def _seconds(self, to: "AgentProcess") -> float:
        return to.world.network.latency(to.name)

    def _broke(self) -> None:
        self.asking.peering.broke(self)

    def _left(self) -> None:
        self.asked.peering.left(self)

    def _arrive(self, message: Call) -> None:
        if self.open:
            message()


class _Peer:
    """What a process asks for at one address."""

    def __init__(self) -> None:
        self.asks = PeerAsks()
        self.stream: PeerStream | None = None
        self.dialing = False
        self.wait = limits.RECONNECT_FIRST_SECONDS
        #: what the stream told early of
        self.early: dict[TaskToken, None] = {}


class Peering:
    """One process's streams: those on which it asks, and those on which it is asked."""

    def __init__(self, process: "AgentProcess") -> None:
        self._process = process
        self._world = process.world
        self._loop = process.loop
        self._chance = process.chance
        self._peers: dict[str, _Peer] = {}
        self._addresses: dict[TaskToken, str] = {}
        self._serving: dict[int, PeerStream] = {}
        self._numbers = 0

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that others are asked for."""
        return tuple(dict.fromkeys(task.job for task in self._addresses))

    @property
    def streams(self) -> Sequence[PeerStream]:
        """Those that are there, of either kind."""
        asking = [peer.stream for peer in self._peers.values() if peer.stream is not None]
        return [*asking, *self._serving.values()]

    # -- the end that asks

    def ask(self, ask: Ask) -> None:
        """An attempt of another agent is awaited."""
        self._addresses[ask.task] = ask.address
        peer = self._peers.setdefault(ask.address, _Peer())
        peer.asks.ask(ask.task)
        if peer.stream is not None:
            self._subscribe(peer.stream, ask.task)
        elif not peer.dialing:
            self._dial(ask.address, peer)

    def unask(self, task: TaskToken) -> None:
        """It is awaited no more."""
        peer = self._peers[self._addresses.pop(task)]
        peer.asks.close(task)
        peer.early.pop(task, None)
        stream = peer.stream
        if stream is not None:
            stream.send(stream.asked, partial(stream.asked.core.unsubscribed, stream.number, task))

    def broke(self, stream: PeerStream) -> None:
        """Dials again, while something is awaited there."""
        peer = self._peers[stream.address]
        if peer.stream is stream:
            peer.stream = None
            early, peer.early = peer.early, {}
            for task in early:
                hashed = partial(self._hashed_here, task)
                self._loop.after(self._chance.between(*HASH_SECONDS), hashed, self._process)
            self._failed(stream.address, peer)

    def _dial(self, address: str, peer: _Peer) -> None:
        if not peer.asks.open:
            return
        peer.dialing = True
        seconds = 2 * self._world.network.latency(self._process.name)
        self._loop.after(seconds, partial(self._dialed, address, peer), self._process)

    def _dialed(self, address: str, peer: _Peer) -> None:
        peer.dialing = False
        asked = self._world.answers(self._process, address)
        if asked is None:
            self._failed(address, peer)
            return
        peer.asks.connected()
        peer.wait = limits.RECONNECT_FIRST_SECONDS
        stream = peer.stream = asked.peering.serve(self._process, address)
        for task in peer.asks.open:
            self._subscribe(stream, task)

    def _failed(self, address: str, peer: _Peer) -> None:
        for task in peer.asks.failed(self._loop.now):
            self._process.runner.carry_out(self._process.core.unreachable(task, f"{address} does not answer"))
        if not peer.dialing and peer.asks.open:
            peer.dialing = True
            wait = peer.wait * self._chance.between(0.5, 1.0)
            self._loop.after(wait, partial(self._dial_again, address, peer), self._process)
            peer.wait = min(2 * peer.wait, limits.RECONNECT_LAST_SECONDS)

    def _dial_again(self, address: str, peer: _Peer) -> None:
        peer.dialing = False
        self._dial(address, peer)

    def _subscribe(self, stream: PeerStream, task: TaskToken) -> None:
        stream.send(stream.asked, partial(stream.asked.peering.asked, stream, task))

    def _hashed_here(self, task: TaskToken) -> None:
        """Who told early of an attempt may never tell the rest, which is found out here then."""
        outcome = self._process.runner.early.get(task)
        if outcome is not None:
            instructions = self._process.core.hashed(self._world.hashed(outcome), self._loop.now)
            self._process.runner.early.pop(task, None)
            self._process.runner.carry_out(instructions)

    def _told_early(self, outcome: Outcome) -> None:
        address = self._addresses.get(outcome.task, "")
        holder = self._world.answers(self._process, address)
        held = holder.holder.held.get(outcome.task.job, {}) if holder is not None else {}
        if address and all(outcome.outputs[port].digest in held for port in outcome.late):
            self._peers[address].early[outcome.task] = None
            self._process.runner.early[outcome.task] = outcome
            self._process.runner.carry_out(self._process.core.answered(outcome, self._loop.now))

    def _answered(self, outcome: Outcome) -> None:
        if outcome.late:
            self._told_early(outcome)
            return
        address = self._addresses.pop(outcome.task, None)
        if address is not None:
            self._peers[address].asks.close(outcome.task)
            self._peers[address].early.pop(outcome.task, None)
        self._process.runner.early.pop(outcome.task, None)
        self._process.runner.carry_out(self._process.core.answered(outcome, self._loop.now))

    # -- the end that is asked

    def serve(self, asking: "AgentProcess", address: str) -> PeerStream:
        """Another process has dialed."""
        self._numbers += 1
        stream = self._serving[self._numbers] = PeerStream(asking, self._process, address, self._numbers)
        return stream

    def asked(self, stream: PeerStream, task: TaskToken) -> None:
        """Another process awaits an attempt."""
        self._process.runner.carry_out(self._process.core.subscribed(stream.number, task))

    def answer(self, subscriber: int, outcome: Outcome) -> None:
        """An attempt that was asked for has ended."""
        stream = self._serving.get(subscriber)
        # What is early is only told on one host, and agents are not on one host as others come to be.
        if stream is not None and not (outcome.late and self._chance.happens(0.2)):
            stream.send(stream.asking, partial(stream.asking.peering._answered, outcome))

    def left(self, stream: PeerStream) -> None:
        """Nobody asks on a stream any more."""
        if self._serving.pop(stream.number, None) is not None:
            self._process.core.unsubscribed(stream.number)
