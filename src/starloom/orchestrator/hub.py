"""The orchestrator's end of the sessions: one channel per agent, over whatever stream the agent has now.

A stream that breaks is no loss: the session waits for the agent's next one, and only the lease, which the
coordinator keeps, tells when an agent is gone.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from grpc import aio

from starloom.agents import wire
from starloom.agents.channel import Channel
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.messages import Command, Hello, Report, Welcome
from starloom.agents.status import reporting
from starloom.dag import limits
from starloom.dag.errors import Conflict, Fenced, InvalidInput, Problem, StarloomError, Unavailable
from starloom.dag.ids import AgentId, Epoch
from starloom.orchestrator.inputs import AgentGoodbye, AgentHeartbeat, AgentHello, AgentReports, Input
from starloom.v1 import session_pb2 as pb
from starloom.v1 import session_pb2_grpc

_log = logging.getLogger(__name__)

Post = Callable[[Input, Callable[[], None] | None], None]
"""Takes an input, and calls back once what follows from it is journaled."""


class _Session:
    """What is kept of one agent's process between its streams."""

    def __init__(self, agent: AgentId, incarnation: str) -> None:
        self.id = secrets.token_hex(8)
        self.agent = agent
        self.incarnation = incarnation
        self.channel: Channel[Command, Report] = Channel()
        self.stream: _Stream | None = None
        #: whether the coordinator has taken in the session's beginning
        self.begun = False

    def __repr__(self) -> str:
        return f"<Session {self.agent} {self.incarnation} {self.channel!r}>"

    def begin(self) -> None:
        self.begun = True

    def wake(self) -> None:
        if self.stream is not None:
            self.stream.woken.set()

    def done(self, number: int) -> None:
        """Reports up to `number` are journaled."""
        self.channel.done(number)
        self.wake()


class _Stream:
    """One connection. `over` says that it should end, with `error` if there is one."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.over = False
        #: said goodbye: ends once that is journaled
        self.leaving = False
        self.error: StarloomError | None = None
        self.beat: int | None = None
        self.acknowledged = 0
        #: runs while an acknowledgement waits for a command to travel with
        self.waiting: asyncio.TimerHandle | None = None
        self.waited = False

    def acknowledge_soon(self) -> bool:
        """Whether an acknowledgement that has nothing to travel with has waited long enough."""
        if self.waited:
            return True
        if self.waiting is None:
            loop = asyncio.get_running_loop()
            self.waiting = loop.call_later(limits.ACKNOWLEDGEMENT_WAITS_SECONDS, self._let_go)
        return False

    def acknowledge(self, number: int) -> None:
        """The agent is being told that all up to `number` is journaled."""
        self.acknowledged, self.waited = number, False
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def _let_go(self) -> None:
        self.waited = True
        self.woken.set()

    def end(self, error: StarloomError | None = None) -> None:
        if not self.over:
            self.over, self.error = True, error
            self.woken.set()


class Hub(session_pb2_grpc.SessionServiceServicer):
    """The Session service. Hands what agents say to `post`, in order, and sends them their commands."""

    def __init__(self, epoch: Epoch, post: Post) -> None:
        self._epoch = epoch
        self._post = post
        self._sessions: dict[AgentId, _Session] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Hub {list(self._sessions.values())!r}>"

    def send(self, agent: AgentId, commands: Sequence[Command]) -> None:
        """Queues commands in the agent's session, connected or not.

        Commands from before the session's beginning was taken in are dropped, for they were meant for an
        earlier one: what the agent holds then, its hello has told, and is answered.
        """
        session = self._sessions.get(agent)
        if session is None or not session.begun:
            _log.info("%s has no session: %d commands dropped", agent, len(commands))
            return
        session.channel.send(commands)
        session.wake()

    def forget(self, agent: AgentId, incarnation: str) -> None:
        """The agent was given up: if it is there after all, it has to begin a new session."""
        _log.info("%s was taken for lost", agent)
        session = self._sessions.get(agent)
        if session is not None and session.incarnation == incarnation:
            del self._sessions[agent]
            if session.stream is not None:
                session.stream.end(Unavailable(f"{agent} was taken for lost; say hello again"))

    def close(self) -> None:
        """Ends all streams, and refuses new ones; the agents dial again."""
        self._closed = True
        for session in self._sessions.values():
            if session.stream is not None:
                session.stream.end(_stopping())

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ConnectRequest], context: aio.ServicerContext[Any, Any]
    ) -> None:
        async with reporting(context):
            messages = aiter(request_iterator)
            first = await anext(messages, None)
            if first is None or not first.HasField("hello"):
                raise InvalidInput([Problem("hello", "is missing: it is a stream's first message")])
            hello = wire.hello_from_wire(first.hello)
            stream = _Stream()
            session, welcome = self._attach(hello, stream)
            await context.write(pb.ConnectResponse(welcome=wire.welcome_to_wire(welcome)))
            reader = asyncio.create_task(self._read(session, stream, messages))
            try:
                await self._write(session, stream, context)
            finally:
                reader.cancel()
                if session.stream is stream:
                    session.stream = None
            if stream.error is not None:
                raise stream.error

    def _attach(self, hello: Hello, stream: _Stream) -> tuple[_Session, Welcome]:
        if self._closed:
            raise _stopping()
        if hello.epoch_seen > self._epoch:
            raise Fenced(
                f"{hello.agent} has obeyed epoch {hello.epoch_seen}, and this orchestrator is of epoch {self._epoch}"
            )
        old = self._sessions.get(hello.agent)
        resumed = old is not None and _fits(old, hello)
        if old is not None and old.stream is not None:
            if old.incarnation != hello.incarnation:
                # Two processes of one name would oust each other for ever; the lease tells if the first one is gone.
                raise Conflict(f"a node called {hello.agent} is connected already; give this one another name")
            old.stream.end(Conflict(f"{hello.agent} has opened another stream"))
        if old is None or not resumed:
            session = self._sessions[hello.agent] = _Session(hello.agent, hello.incarnation)
        else:
            session = old
            session.channel.resume(hello.received)
        session.stream = stream
        stream.woken.set()
        _log.info("%s %s session %s", hello.agent, "goes on with" if resumed else "begins", session.id)
        self._post(
            AgentHello(
                agent=hello.agent,
                incarnation=hello.incarnation,
                profile=hello.profile,
                kinds=hello.kinds,
                resumed=resumed,
                held=hello.held,
                jobs=hello.jobs,
            ),
            session.begin,
        )
        welcome = Welcome(
            session=session.id,
            epoch=self._epoch,
            resumed=resumed,
            received=session.channel.received,
            lease_seconds=limits.LEASE_SECONDS,
            heartbeat_seconds=limits.HEARTBEAT_SECONDS,
        )
        return session, welcome

    async def _read(self, session: _Session, stream: _Stream, messages: AsyncIterator[pb.ConnectRequest]) -> None:
        try:
            async for message in messages:
                if stream.over:
                    return
                self._take(session, stream, message)
        except StarloomError as error:
            stream.end(error)
        except aio.AioRpcError:
            stream.end()
        finally:
            if not stream.leaving:
                stream.end()

    def _take(self, session: _Session, stream: _Stream, message: pb.ConnectRequest) -> None:
        agent, incarnation = session.agent, session.incarnation
        match message.WhichOneof("message"):
            case "reports":
                fresh = session.channel.receive(wire.reports_from_wire(message.reports, agent))
                if fresh:
                    self._post(
                        AgentReports(agent=agent, incarnation=incarnation, reports=fresh),
                        partial(session.done, session.channel.received),
                    )
                # An acknowledgement may have made room for more commands.
                if session.channel.waiting:
                    session.wake()
            case "heartbeat":
                load = wire.load_from_wire(message.heartbeat.load_json)
                session.channel.acknowledge(message.heartbeat.acknowledged)
                self._post(AgentHeartbeat(agent=agent, incarnation=incarnation, load=load), None)
                stream.beat = message.heartbeat.sent_nanos
                session.wake()
            case "goodbye":
                goodbye = AgentGoodbye(agent=agent, incarnation=incarnation, reason=message.goodbye.reason)
                stream.leaving = True
                self._post(goodbye, partial(self._gone, session, stream))
            case _:
                raise InvalidInput([Problem("message", "is none that may follow a hello")])

    def _gone(self, session: _Session, stream: _Stream) -> None:
        if self._sessions.get(session.agent) is session:
            del self._sessions[session.agent]
        stream.end()

    async def _write(self, session: _Session, stream: _Stream, context: aio.ServicerContext[Any, Any]) -> None:
        while not stream.over:
            await stream.woken.wait()
            stream.woken.clear()
            for message in self._outgoing(session, stream):
                if stream.over:
                    return
                await context.write(message)
                if message.HasField("commands"):
                    reach(CrashPoint.COMMANDED)

    def _outgoing(self, session: _Session, stream: _Stream) -> list[pb.ConnectResponse]:
        """What the stream has not been told yet: commands, acknowledgements, the answer to a heartbeat."""
        if stream.over:
            return []
        channel = session.channel
        parts = [part for frame in channel.frames() for part in wire.commands_to_wire(frame, self._epoch)]
        if not parts and channel.acknowledged > stream.acknowledged and stream.acknowledge_soon():
            parts = [pb.Commands(acknowledged=channel.acknowledged, sender_epoch=self._epoch)]
        if parts or stream.beat is not None:
            stream.acknowledge(channel.acknowledged)
        outgoing = [pb.ConnectResponse(commands=part) for part in parts]
        if stream.beat is not None:
            beat = pb.HeartbeatReply(
                sent_nanos=stream.beat, unix_nanos=time.time_ns(), acknowledged=channel.acknowledged
            )
            outgoing.append(pb.ConnectResponse(heartbeat=beat))
            stream.beat = None
        return outgoing


def _stopping() -> Unavailable:
    return Unavailable("the orchestrator is stopping; dial again")


def _fits(session: _Session, hello: Hello) -> bool:
    return (
        hello.session == session.id
        and hello.incarnation == session.incarnation
        and session.channel.can_resume(hello.received)
    )
