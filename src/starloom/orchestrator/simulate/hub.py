"""The orchestrator's end of the sessions, as `orchestrator.hub` has it, on simulated streams."""

from collections.abc import Callable, Sequence
from functools import partial

from starloom.agents.channel import Channel, Frame, SequenceGap
from starloom.agents.messages import Command, Hello, Load, Report, Welcome
from starloom.dag import limits
from starloom.dag.ids import AgentId, Epoch
from starloom.orchestrator.inputs import AgentGoodbye, AgentHeartbeat, AgentHello, AgentReports, Input
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.loop import Loop, Process
from starloom.orchestrator.simulate.network import Stream

Post = Callable[[Input, Callable[[], None] | None], None]
MakeChannel = Callable[[], Channel[Command, Report]]


class Connection:
    """One stream as the orchestrator has it: to which process of an agent, and what that was told."""

    def __init__(self, stream: Stream, process: AgentProcess) -> None:
        self.stream = stream
        self.process = process
        self.over = False
        self.acknowledged = 0
        self.beat = False
        self.waiting = False


class Session:
    """What is kept of one agent's process between its streams."""

    def __init__(self, name: str, agent: AgentId, incarnation: str, channel: Channel[Command, Report]) -> None:
        self.id = name
        self.agent = agent
        self.incarnation = incarnation
        self.channel = channel
        self.connection: Connection | None = None
        self.begun = False

    def begin(self) -> None:
        self.begun = True


class Hub:
    """The sessions of one orchestrator's process, which `owner` is."""

    def __init__(self, loop: Loop, owner: Process, epoch: Epoch, post: Post, make_channel: MakeChannel) -> None:
        self._loop = loop
        self._owner = owner
        self._epoch = epoch
        self._post = post
        self._make_channel = make_channel
        self._count = 0
        self.sessions: dict[AgentId, Session] = {}
        #: sessions whose agents were not told yet what is journaled
        self.dirty: dict[AgentId, Session] = {}

    def send(self, agent: AgentId, commands: Sequence[Command]) -> None:
        """Queues commands; those from before a session's beginning was taken in are dropped."""
        session = self.sessions.get(agent)
        if session is not None and session.begun:
            session.channel.send(commands)

    def forget(self, agent: AgentId, incarnation: str) -> None:
        """The agent was given up: it has to begin a new session."""
        session = self.sessions.get(agent)
        if session is not None and session.incarnation == incarnation:
            del self.sessions[agent]
            self._end(session.connection)

    def hello(self, stream: Stream, process: AgentProcess, hello: Hello) -> None:
        """A stream's first message."""
        connection = Connection(stream, process)
        if hello.epoch_seen > self._epoch:
            self._end(connection)
            return
        old = self.sessions.get(hello.agent)
        resumed = old is not None and _fits(old, hello)
        if old is not None and old.connection is not None:
            if old.incarnation != hello.incarnation:
                self._end(connection)
                return
            self._end(old.connection)
        if old is None or not resumed:
            self._count += 1
            name = f"s{self._epoch}-{self._count}"
            session = self.sessions[hello.agent] = Session(name, hello.agent, hello.incarnation, self._make_channel())
        else:
            session = old
            session.channel.resume(hello.received)
        session.connection = connection
        given = AgentHello(
            agent=hello.agent,
            incarnation=hello.incarnation,
            profile=hello.profile,
            kinds=hello.kinds,
            resumed=resumed,
            held=hello.held,
            jobs=hello.jobs,
        )
        self._post(given, session.begin)
        welcome = Welcome(
            session=session.id,
            epoch=self._epoch,
            resumed=resumed,
            received=session.channel.received,
            lease_seconds=limits.LEASE_SECONDS,
            heartbeat_seconds=limits.HEARTBEAT_SECONDS,
        )
        stream.send_down(partial(process.welcomed, stream, welcome))
        self.flush(session)

    def reports(self, stream: Stream, agent: AgentId, frame: Frame[Report]) -> None:
        """Reports of an agent, on its present stream; those on an older one are too late."""
        session = self._current(stream, agent)
        if session is None:
            return
        try:
            fresh = session.channel.receive(frame)
        except SequenceGap:
            self._end(session.connection)
            return
        if fresh:
            given = AgentReports(agent=agent, incarnation=session.incarnation, reports=fresh)
            self._post(given, partial(self._done, session, session.channel.received))
        if session.channel.waiting:
            self.flush(session)

    def heartbeat(self, stream: Stream, agent: AgentId, load: Load, acknowledged: int) -> None:
        """A sign of life, answered."""
        session = self._current(stream, agent)
        if session is None or session.connection is None:
            return
        session.channel.acknowledge(acknowledged)
        self._post(AgentHeartbeat(agent=agent, incarnation=session.incarnation, load=load), None)
        session.connection.beat = True
        self.flush(session)

    def goodbye(self, stream: Stream, agent: AgentId, reason: str) -> None:
        """An agent leaves in order."""
        session = self._current(stream, agent)
        if session is not None:
            given = AgentGoodbye(agent=agent, incarnation=session.incarnation, reason=reason)
            self._post(given, partial(self._gone, session))

    def over(self, stream: Stream, agent: AgentId) -> None:
        """The stream has ended."""
        session = self._current(stream, agent)
        if session is not None and session.connection is not None:
            session.connection.over = True
            session.connection = None
        stream.cut()

    def flush(self, session: Session) -> None:
        """What the stream has not been told yet: commands, acknowledgements, the answer to a heartbeat."""
        connection = session.connection
        if connection is None or connection.over:
            return
        channel, stream, process = session.channel, connection.stream, connection.process
        frames = channel.frames()
        if not frames and channel.acknowledged > connection.acknowledged and not connection.beat:
            self._acknowledge_soon(session, connection)
        for frame in frames:
            stream.send_down(partial(process.commands, stream, frame, self._epoch), frame=True)
        if connection.beat:
            stream.send_down(partial(process.beaten, stream, channel.acknowledged))
        if frames or connection.beat:
            connection.acknowledged = channel.acknowledged
        connection.beat = False

    def _acknowledge_soon(self, session: Session, connection: Connection) -> None:
        if not connection.waiting:
            connection.waiting = True
            wait = limits.ACKNOWLEDGEMENT_WAITS_SECONDS
            self._loop.after(wait, partial(self.acknowledge, session, connection), self._owner)

    def acknowledge(self, session: Session, connection: Connection) -> None:
        """An acknowledgement that found nothing to travel with goes alone."""
        connection.waiting = False
        channel = session.channel
        if not connection.over and channel.acknowledged > connection.acknowledged:
            frame: Frame[Command] = Frame(0, channel.acknowledged, ())
            connection.acknowledged = channel.acknowledged
            stream = connection.stream
            stream.send_down(partial(connection.process.commands, stream, frame, self._epoch), frame=True)

    def acknowledge_dirty(self) -> None:
        """Tells agents what is journaled, with the next commands or soon."""
        for session in self.dirty.values():
            self.flush(session)
        self.dirty.clear()

    def _done(self, session: Session, number: int) -> None:
        session.channel.done(number)
        self.dirty[session.agent] = session

    def _current(self, stream: Stream, agent: AgentId) -> Session | None:
        session = self.sessions.get(agent)
        if session is None or session.connection is None or session.connection.stream is not stream:
            return None
        return session

    def _gone(self, session: Session) -> None:
        if self.sessions.get(session.agent) is session:
            del self.sessions[session.agent]
        self._end(session.connection)

    def _end(self, connection: Connection | None) -> None:
        """Hangs up: the agent learns of it after what was sent before."""
        if connection is not None and not connection.over:
            connection.over = True
            stream = connection.stream
            stream.up.open = False
            stream.send_down(partial(connection.process.over, stream))


def _fits(session: Session, hello: Hello) -> bool:
    return (
        hello.session == session.id
        and hello.incarnation == session.incarnation
        and session.channel.can_resume(hello.received)
    )
