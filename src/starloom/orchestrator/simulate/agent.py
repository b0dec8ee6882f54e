"""An agent's process: its end of the session, as `agents.link` has it, around the real core and channel."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from starloom.agents.channel import Channel, Frame, SequenceGap
from starloom.agents.core import AgentCore
from starloom.agents.messages import NOT_ENDS, Command, Hello, Load, Report, Started, Welcome
from starloom.dag import limits
from starloom.dag.ids import AgentId, Epoch
from starloom.devices.node import NodeProfile
from starloom.orchestrator.simulate.holder import Holder
from starloom.orchestrator.simulate.loop import SECOND, Process, Timer
from starloom.orchestrator.simulate.model import STREAMING
from starloom.orchestrator.simulate.peering import Peering
from starloom.orchestrator.simulate.replicator import Replicator
from starloom.orchestrator.simulate.running import Runner
from starloom.orchestrator.simulate.streams import Streams

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.network import Stream
    from starloom.orchestrator.simulate.world import World

WRITE_SECONDS = 0.0001
_LEASE_NANOS = round(limits.LEASE_SECONDS * SECOND)


class AgentProcess(Process):
    """One start of an agent, from its first dial until it dies."""

    def __init__(self, world: "World", profile: NodeProfile, incarnation: str) -> None:
        self.world = world
        self.loop = world.loop
        self.chance = world.chances.of("agents")
        self.profile = profile
        self.name: AgentId = profile.name
        self.incarnation = incarnation
        self.core: AgentCore = world.parts.core(profile.name, profile.slots, STREAMING)
        self.streams = Streams(self)
        self.holder = Holder()
        self.replicator = Replicator(self)
        self.runner = Runner(self)
        self.peering = Peering(self)
        self.channel: Channel[Report, Command] = world.parts.channel()
        self._outbox: list[Report] = []
        self._session = ""
        self._stream: Stream | None = None
        self._connected = False
        self._heard = 0
        self._wait = limits.RECONNECT_FIRST_SECONDS
        self._began = 0
        self._patience: Timer | None = None
        self._writing = False

    def __repr__(self) -> str:
        return f"<AgentProcess {self.name} {self.incarnation} alive={self.alive}>"

    # -- the session

    def dial(self) -> None:
        """Opens a stream, and says hello."""
        self._flush()
        self._began = self.loop.now
        stream = self._stream = self.world.network.stream(self.name, self)
        hello = Hello(
            agent=self.name,
            incarnation=self.incarnation,
            profile=self.profile,
            kinds=self.world.kinds,
            session=self._session,
            received=self.channel.received,
            held=self.core.held(self.channel.kept),
            jobs=tuple(dict.fromkeys([*self.core.jobs, *self.holder.jobs])),
            epoch_seen=self.core.epoch_seen,
        )
        stream.send_up(partial(self.world.answer, stream, self, hello))
        self._patience = self.loop.after(limits.CONNECT_SECONDS, partial(self._hang_up, stream), self)

    def welcomed(self, stream: "Stream", welcome: Welcome) -> None:
        """The session began or goes on."""
        if stream is not self._stream:
            return
        if not self.core.admit(welcome.epoch):
            self._hang_up(stream)
            return
        if self._patience is not None:
            self._patience.cancel()
        if welcome.resumed:
            self.channel.resume(welcome.received)
        else:
            self.channel.restart()
        self._session = welcome.session
        self._connected = True
        self._heard = self.loop.now
        self._write()
        self._beat(stream)

    def commands(self, stream: "Stream", frame: Frame[Command], epoch: Epoch) -> None:
        """What the orchestrator wants."""
        if stream is not self._stream:
            return
        try:
            fresh = self.channel.receive(frame)
        except SequenceGap:
            self._hang_up(stream)
            return
        if fresh:
            instructions = self.core.commands(fresh, epoch, self.loop.now)
            self.world.judge.commanded(self, epoch, instructions)
            self.runner.carry_out(instructions)
        self.channel.done()
        self._soon()

    def beaten(self, stream: "Stream", acknowledged: int) -> None:
        """A heartbeat was answered."""
        if stream is self._stream:
            self._heard = self.loop.now
            self.channel.acknowledge(acknowledged)
            if self.channel.waiting:
                self._soon()

    def over(self, stream: "Stream") -> None:
        """The stream has ended: dials again, later with each time that it did not hold."""
        if stream is not self._stream:
            return
        stream.cut()
        self._redial()

    def tell(self, report: Report) -> None:
        """Queues a report."""
        self.world.judge.told(self, report)
        self._outbox.append(report)
        self._soon()

    def leave(self) -> None:
        """Stops everything, and says goodbye."""
        self._write()
        stream = self._stream
        if stream is not None and self._connected:
            stream.send_up(partial(self.world.goodbye, stream, self.name))

    def _hang_up(self, stream: "Stream") -> None:
        """Gives a stream up; the other end learns of it behind what was sent before."""
        if stream is not self._stream:
            return
        stream.send_up(partial(self.world.stream_over, stream, self.name))
        stream.down.open = False
        self._redial()

    def _redial(self) -> None:
        self._stream = None
        if self._patience is not None:
            self._patience.cancel()
        if self._connected and self.loop.now - self._began > limits.RECONNECT_LAST_SECONDS * SECOND:
            self._wait = limits.RECONNECT_FIRST_SECONDS
        self._connected = False
        self.loop.after(self._wait * self.chance.between(0.5, 1.0), self.dial, self)
        self._wait = min(2 * self._wait, limits.RECONNECT_LAST_SECONDS)

    def _soon(self) -> None:
        if not self._writing:
            self._writing = True
            self.loop.after(WRITE_SECONDS, self._write, self)

    def _write(self) -> None:
        self._writing = False
        self._flush()
        stream = self._stream
        if stream is None or not self._connected:
            return
        for frame in self.channel.frames():
            stream.send_up(partial(self.world.reports, stream, self.name, frame), frame=True)

    def _beat(self, stream: "Stream") -> None:
        if stream is not self._stream:
            return
        if self.loop.now - self._heard > _LEASE_NANOS:
            self._hang_up(stream)
            return
        load = Load(queued=self.core.queued, running=self.core.running, held_bytes=self.holder.held_bytes)
        stream.send_up(partial(self.world.heartbeat, stream, self.name, load, self.channel.acknowledged), frame=True)
        self.loop.after(limits.HEARTBEAT_SECONDS, partial(self._beat, stream), self)

    def _flush(self) -> None:
        """Reports enter the channel. A start that has ended since is not told."""
        reports: Sequence[Report] = self._outbox
        if reports:
            ended = {report.task for report in reports if not isinstance(report, NOT_ENDS)}
            self.channel.send(r for r in reports if not isinstance(r, Started) or r.task not in ended)
            self._outbox = []
