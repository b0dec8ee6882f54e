"""The orchestrator's end of a session, over real streams: order, acknowledgement, resumption, replacement."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from grpc import aio

from starloom.agents import wire
from starloom.agents.channel import Channel, Frame
from starloom.agents.messages import Command, Hello, Load, Release, Report, Started, Welcome
from starloom.agents.status import CALL_OVER, CallEnd, TokenCheck, auth_metadata, channel_options, server_options
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import Conflict, Fenced, InvalidInput, StarloomError, Unauthenticated, Unavailable
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.devices.node import NodeProfile
from starloom.orchestrator.hub import Hub
from starloom.orchestrator.inputs import AgentGoodbye, AgentHeartbeat, AgentHello, AgentReports, Input
from starloom.v1 import session_pb2 as pb
from starloom.v1 import session_pb2_grpc

TOKEN = "a token"
EPOCH = Epoch(7)
CAM = AgentId("cam")
SECONDS = 10


def _other_options(address: str) -> list[tuple[str, Any]]:
    """A client's that does not mind how much it sends."""
    return [option for option in channel_options(address) if option[0] != "grpc.max_send_message_length"]


class Loop:
    """Stands for the engine: keeps what it was told, and journals when the test says so."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.unjournaled: list[Callable[[], None]] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, item: Input, done: Callable[[], None] | None = None) -> None:
        self.inputs.append(item)
        if done is not None:
            self.unjournaled.append(done)
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(true)

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.inputs if isinstance(item, kind)]

    def reports(self) -> list[Report]:
        return [report for item in self.of(AgentReports) for report in item.reports]

    def journal(self) -> None:
        done, self.unjournaled = self.unjournaled, []
        for each in done:
            each()


class Served:
    def __init__(self) -> None:
        self.loop = Loop()
        self.hub = Hub(EPOCH, self.loop.post)
        self._server = aio.server(interceptors=[TokenCheck(TOKEN)], options=server_options())
        session_pb2_grpc.add_SessionServiceServicer_to_server(self.hub, self._server)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hub.close()
        await self._server.stop(None)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Served() as found:
        yield found


class Agent:
    """An agent's end as a test drives it: one stream at a time over one Channel."""

    def __init__(self, served: Served, name: AgentId = CAM, incarnation: str = "i1") -> None:
        self._served = served
        self.name = name
        self.incarnation = incarnation
        self.channel: Channel[Report, Command] = Channel()
        self.session = ""
        self.commands: list[Command] = []
        self.beats: list[int] = []
        self.epochs: set[int] = set()
        self._wire = aio.insecure_channel(
            served.address, options=[("grpc.max_send_message_length", -1), *_other_options(served.address)]
        )
        self._call: Any = None
        self._end: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.close(None)

    async def dial(self, token: str = TOKEN, **changes: Any) -> Welcome:
        fields: dict[str, Any] = {
            "agent": self.name,
            "incarnation": self.incarnation,
            "profile": NodeProfile(name=self.name, tier=Tier.EDGE),
            "session": self.session,
            "received": self.channel.received,
        }
        hello = wire.hello_to_wire(Hello(**{**fields, **changes}))
        self.open(token)
        await self.say(pb.ConnectRequest(hello=hello))
        welcome = wire.welcome_from_wire((await self.hear()).welcome)
        self.session = welcome.session
        if welcome.resumed:
            self.channel.resume(welcome.received)
        else:
            self.channel.restart()
        return welcome

    async def begin(self, **changes: Any) -> Welcome:
        """Dials, and the hello is journaled."""
        welcome = await self.dial(**changes)
        self._served.loop.journal()
        return welcome

    def open(self, token: str = TOKEN) -> None:
        self._call = session_pb2_grpc.SessionServiceStub(self._wire).Connect(metadata=auth_metadata(token))  # type: ignore[no-untyped-call]
        self._end = CallEnd(self._call)

    async def say(self, message: pb.ConnectRequest) -> None:
        # What ended the call is for `hear` to say.
        with suppress(*CALL_OVER):
            await self._call.write(message)

    async def hear(self) -> pb.ConnectResponse:
        try:
            async with asyncio.timeout(SECONDS):
                message = await self._call.read()
        except aio.AioRpcError as error:
            raise await self._end.error() from error
        assert isinstance(message, pb.ConnectResponse)
        return message

    async def report(self, *reports: Report) -> None:
        self.channel.send(reports)
        await self.flush()

    async def flush(self) -> None:
        for frame in self.channel.frames():
            for part in wire.reports_to_wire(frame):
                await self.say(pb.ConnectRequest(reports=part))

    async def beat(self, sent_nanos: int, load: Load | None = None) -> None:
        beat = pb.Heartbeat(
            sent_nanos=sent_nanos,
            load_json=wire.load_to_wire(load or Load()),
            acknowledged=self.channel.acknowledged,
        )
        await self.say(pb.ConnectRequest(heartbeat=beat))

    async def take(self, true: Callable[[], bool]) -> None:
        """Reads on until something is true."""
        while not true():
            message = await self.hear()
            if message.HasField("commands"):
                frame, epoch = wire.commands_from_wire(message.commands)
                self.epochs.add(epoch)
                self.commands += self.channel.receive(frame)
                self.channel.done()
            else:
                self.channel.acknowledge(message.heartbeat.acknowledged)
                self.beats.append(message.heartbeat.sent_nanos)

    async def hang_up(self) -> None:
        """Ends the stream, and returns when the other end has noticed."""
        self._call.cancel()
        session = self._served.hub._sessions[self.name]
        async with asyncio.timeout(SECONDS):
            while session.stream is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
async def agent(served: Served) -> AsyncIterator[Agent]:
    async with Agent(served) as found:
        yield found


def started(number: int) -> Started:
    return Started(task=TaskToken(JobId("j1"), StageId(f"s{number}"), FencingToken(EPOCH, Attempt(1))))


def release(number: int) -> Release:
    return Release(job=JobId(f"j{number}"))


async def test_hello_is_welcomed_and_told(served: Served, agent: Agent) -> None:
    held = (started(1).task,)
    welcome = await agent.dial(held=held, jobs=(JobId("j1"),))
    assert welcome.session
    assert (welcome.epoch, welcome.resumed, welcome.received) == (EPOCH, False, 0)
    assert (welcome.lease_seconds, welcome.heartbeat_seconds) == (limits.LEASE_SECONDS, limits.HEARTBEAT_SECONDS)
    assert served.loop.inputs == [
        AgentHello(
            agent=CAM,
            incarnation="i1",
            profile=NodeProfile(name=CAM, tier=Tier.EDGE),
            held=held,
            jobs=(JobId("j1"),),
        )
    ]


async def test_reports_are_acknowledged_only_once_they_are_journaled(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.report(started(1), started(2))
    await served.loop.until(lambda: len(served.loop.reports()) == 2)
    await agent.beat(5)
    await agent.take(lambda: agent.beats == [5])
    assert agent.channel.kept == (started(1), started(2))
    served.loop.journal()
    await agent.take(lambda: not agent.channel.kept)
    assert served.loop.reports() == [started(1), started(2)]


async def test_reports_that_come_later_wait_for_a_journaling_of_their_own(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.report(started(1))
    await served.loop.until(lambda: len(served.loop.reports()) == 1)
    first = served.loop.unjournaled.pop()
    await agent.report(started(2))
    await served.loop.until(lambda: len(served.loop.reports()) == 2)
    first()
    await agent.take(lambda: len(agent.channel.kept) == 1)
    assert agent.channel.kept == (started(2),)


async def test_an_acknowledgement_travels_with_what_comes_soon(
    served: Served, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACKNOWLEDGEMENT_WAITS_SECONDS", 3600.0)
    await agent.begin()
    await agent.report(started(1))
    await served.loop.until(lambda: len(served.loop.reports()) == 1)
    served.loop.journal()
    await agent.beat(7)
    answer = await agent.hear()
    assert (answer.heartbeat.sent_nanos, answer.heartbeat.acknowledged) == (7, 1)
    await agent.report(started(2))
    await served.loop.until(lambda: len(served.loop.reports()) == 2)
    served.loop.journal()
    served.hub.send(CAM, [release(1)])
    command = await agent.hear()
    assert (command.commands.acknowledged, len(command.commands.commands)) == (2, 1)


async def test_heartbeats_are_told_and_answered(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.beat(123, Load(running=3))
    await agent.take(lambda: agent.beats == [123])
    assert served.loop.of(AgentHeartbeat) == [AgentHeartbeat(agent=CAM, incarnation="i1", load=Load(running=3))]


async def test_commands_arrive_in_order_with_the_senders_epoch(served: Served, agent: Agent) -> None:
    await agent.begin()
    count = 2 * limits.SESSION_FRAME_MESSAGES_MAX + 1
    served.hub.send(CAM, [release(number) for number in range(count)])
    await agent.take(lambda: len(agent.commands) == count)
    assert agent.commands == [release(number) for number in range(count)]
    assert agent.epochs == {EPOCH}


async def test_commands_beyond_the_credit_wait_for_acknowledgements(
    served: Served, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSION_CREDITS", 3)
    await agent.begin()
    served.hub.send(CAM, [release(number) for number in range(5)])
    await agent.take(lambda: len(agent.commands) == 3)
    await agent.beat(1)
    await agent.take(lambda: len(agent.commands) == 5)


async def test_commands_wait_for_the_agents_next_stream(served: Served, agent: Agent) -> None:
    await agent.begin()
    served.hub.send(CAM, [release(1)])
    await agent.take(lambda: len(agent.commands) == 1)
    await agent.hang_up()
    served.hub.send(CAM, [release(2), release(3)])
    welcome = await agent.begin()
    assert welcome.resumed
    await agent.take(lambda: len(agent.commands) == 3)
    assert agent.commands == [release(1), release(2), release(3)]
    assert [item.resumed for item in served.loop.of(AgentHello)] == [False, True]


async def test_a_resumed_session_repeats_nothing_and_loses_nothing(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.report(started(1), started(2))
    await served.loop.until(lambda: len(served.loop.reports()) == 2)
    await agent.hang_up()
    agent.channel.send([started(3)])
    welcome = await agent.begin()
    assert (welcome.resumed, welcome.received) == (True, 2)
    await agent.flush()
    await served.loop.until(lambda: len(served.loop.reports()) == 3)
    served.loop.journal()
    await agent.take(lambda: not agent.channel.kept)
    assert served.loop.reports() == [started(1), started(2), started(3)]


@pytest.mark.parametrize("changes", [{"session": "unknown"}, {"incarnation": "i2"}, {"received": 99}])
async def test_what_does_not_fit_begins_a_new_session(served: Served, agent: Agent, changes: dict[str, Any]) -> None:
    first = await agent.begin()
    await agent.report(started(1))
    await served.loop.until(lambda: len(served.loop.reports()) == 1)
    await agent.hang_up()
    served.hub.send(CAM, [release(1)])
    second = await agent.begin(**changes)
    assert not second.resumed
    assert second.session != first.session
    # What was not acknowledged in the old session is told again; its commands are not.
    await agent.flush()
    await served.loop.until(lambda: len(served.loop.reports()) == 2)
    served.loop.journal()
    await agent.take(lambda: not agent.channel.kept)
    assert agent.commands == []


async def test_a_second_stream_takes_the_place_of_the_first(served: Served, agent: Agent) -> None:
    await agent.begin()
    first = agent._call, agent._end
    await agent.begin()
    second = agent._call, agent._end
    agent._call, agent._end = first
    with pytest.raises(Conflict, match="another stream"):
        await agent.take(lambda: False)
    agent._call, agent._end = second
    served.hub.send(CAM, [release(1)])
    await agent.take(lambda: agent.commands == [release(1)])


async def test_another_process_of_that_name_is_refused_while_the_first_is_connected(
    served: Served, agent: Agent
) -> None:
    await agent.begin()
    async with Agent(served, incarnation="i2") as other:
        with pytest.raises(Conflict, match="a node called cam is connected already"):
            await other.dial()
        served.hub.send(CAM, [release(1)])
        await agent.take(lambda: agent.commands == [release(1)])
        assert len(served.loop.of(AgentHello)) == 1
        # Its lease is over: it is gone, whatever its stream says.
        served.hub.forget(CAM, "i1")
        assert not (await other.begin()).resumed


async def test_a_gap_ends_the_stream_and_the_session_resumes(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.report(started(1))
    lost = wire.reports_to_wire(Frame(5, 0, (started(5),)))[0]
    await agent.say(pb.ConnectRequest(reports=lost))
    with pytest.raises(StarloomError, match="frame 5 after 1"):
        await agent.take(lambda: False)
    agent.channel.send([started(2)])
    welcome = await agent.begin()
    assert (welcome.resumed, welcome.received) == (True, 1)
    await agent.flush()
    await served.loop.until(lambda: served.loop.reports() == [started(1), started(2)])


async def test_goodbye_ends_the_stream_once_it_is_journaled(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.say(pb.ConnectRequest(goodbye=pb.Goodbye(reason="night")))
    await served.loop.until(lambda: bool(served.loop.of(AgentGoodbye)))
    assert served.loop.of(AgentGoodbye) == [AgentGoodbye(agent=CAM, incarnation="i1", reason="night")]
    served.loop.journal()
    async with asyncio.timeout(SECONDS):
        assert await agent._call.code() is grpc.StatusCode.OK
    # Nobody is there to be sent anything.
    served.hub.send(CAM, [release(1)])
    assert not (await agent.begin()).resumed


async def test_an_agent_that_was_given_up_has_to_say_hello_again(served: Served, agent: Agent) -> None:
    await agent.begin()
    served.hub.forget(CAM, "another incarnation")
    served.hub.send(CAM, [release(1)])
    await agent.take(lambda: agent.commands == [release(1)])
    served.hub.forget(CAM, "i1")
    with pytest.raises(Unavailable, match="taken for lost"):
        await agent.take(lambda: False)
    assert not (await agent.begin()).resumed


async def test_an_orchestrator_of_an_earlier_epoch_is_told_so(served: Served, agent: Agent) -> None:
    with pytest.raises(Fenced, match="obeyed epoch 8, and this orchestrator is of epoch 7"):
        await agent.dial(epoch_seen=Epoch(EPOCH + 1))
    assert served.loop.inputs == []


async def test_a_call_without_the_token_is_refused(served: Served, agent: Agent) -> None:
    with pytest.raises(Unauthenticated):
        await agent.dial(token="guessed")
    assert served.loop.inputs == []


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (pb.ConnectRequest(), "hello"),
        (pb.ConnectRequest(heartbeat=pb.Heartbeat()), "hello"),
        (pb.ConnectRequest(hello=pb.Hello(agent="cam")), "incarnation"),
        (pb.ConnectRequest(hello=pb.Hello(agent="my cam", incarnation="i")), "hello.agent: the name 'my cam'"),
        (pb.ConnectRequest(hello=pb.Hello(agent="cam", incarnation="i", profile_json=b"{")), "profile_json"),
        (
            pb.ConnectRequest(hello=pb.Hello(agent="x", incarnation="i", profile_json=b'{"name":"cam","tier":"edge"}')),
            "x",
        ),
    ],
)
async def test_a_first_message_that_is_no_hello_is_refused(
    served: Served, agent: Agent, message: pb.ConnectRequest, place: str
) -> None:
    agent.open()
    await agent.say(message)
    with pytest.raises(InvalidInput, match=place):
        await agent.hear()
    assert served.loop.inputs == []


@pytest.mark.parametrize(
    "message",
    [
        pb.ConnectRequest(),
        pb.ConnectRequest(hello=pb.Hello(agent="cam", incarnation="i1")),
        pb.ConnectRequest(heartbeat=pb.Heartbeat(load_json=b"[]")),
        pb.ConnectRequest(reports=pb.Reports(sequence=1, reports=[pb.Report()])),
        pb.ConnectRequest(reports=pb.Reports(sequence=1, reports=[pb.Report(started=pb.Started())])),
        pb.ConnectRequest(reports=pb.Reports(reports=[wire.report_to_wire(started(1))])),
    ],
)
async def test_a_malformed_message_ends_its_stream_and_no_other(
    served: Served, agent: Agent, message: pb.ConnectRequest
) -> None:
    async with Agent(served, AgentId("other")) as other:
        await other.begin()
        await agent.begin()
        await agent.say(message)
        with pytest.raises(InvalidInput):
            await agent.take(lambda: False)
        await other.beat(1)
        await other.take(lambda: other.beats == [1])
    assert served.loop.reports() == []


async def test_an_oversized_message_ends_its_stream(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.say(pb.ConnectRequest(goodbye=pb.Goodbye(reason="x" * (limits.MESSAGE_BYTES_MAX + 1))))
    with pytest.raises(InvalidInput, match="larger than max"):
        await agent.take(lambda: False)
    assert served.loop.of(AgentGoodbye) == []


async def test_stopping_ends_every_stream(served: Served, agent: Agent) -> None:
    await agent.begin()
    served.hub.close()
    with pytest.raises(Unavailable, match="stopping"):
        await agent.take(lambda: False)


async def test_what_was_meant_for_an_earlier_process_does_not_reach_the_next(served: Served, agent: Agent) -> None:
    await agent.begin()
    await agent.hang_up()
    await agent.dial(incarnation="i2")
    # Decided before the new hello was taken in.
    served.hub.send(CAM, [release(1)])
    served.loop.journal()
    served.hub.send(CAM, [release(2)])
    await agent.take(lambda: bool(agent.commands))
    assert agent.commands == [release(2)]
