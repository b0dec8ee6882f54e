"""The agent's session over real gRPC: it survives breaks, restarts, repeats and silence, and loses no report."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.agents.fakes import TOKEN, WAIT_SECONDS, FakeOrchestrator, task

from starloom.agents.link import Link
from starloom.agents.messages import Cancel, Command, Hello, Load, Release, Report, Started, WasCancelled, Welcome
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import Fenced, InvalidInput, Unauthenticated
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.devices.node import NodeProfile
from starloom.v1 import session_pb2 as pb

PROFILE = NodeProfile(name=AgentId("a"), tier=Tier.EDGE)


class Desk:
    """An agent that only notes what it is told: `link.Endpoint`."""

    def __init__(self) -> None:
        self.got: list[Command] = []
        self.welcomes: list[Welcome] = []
        self.epoch = Epoch(0)
        self._changed = asyncio.Event()

    def hello(self, session: str, received: int, kept: Sequence[Report]) -> Hello:
        held = tuple(report.task for report in kept)
        return Hello(
            agent=PROFILE.name, incarnation="i", profile=PROFILE, session=session, received=received, held=held
        )

    def welcomed(self, welcome: Welcome) -> None:
        if welcome.epoch < self.epoch:
            raise Fenced("old")
        self.epoch = welcome.epoch
        self.welcomes.append(welcome)
        self._changed.set()

    def commands(self, commands: Sequence[Command], sender_epoch: Epoch) -> None:
        self.got += commands
        self._changed.set()

    def load(self) -> Load:
        return Load(queued=3)

    async def until_welcomed(self, times: int) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.welcomes) < times:
                self._changed.clear()
                await self._changed.wait()

    async def until_got(self, count: int) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.got) < count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_FIRST_SECONDS", 0.005)
    monkeypatch.setattr(limits, "RECONNECT_LAST_SECONDS", 0.05)


@asynccontextmanager
async def linked(orchestrator: FakeOrchestrator, token: str = TOKEN) -> AsyncIterator[tuple[Link, Desk]]:
    desk = Desk()
    link = Link(orchestrator.address, token, desk)
    running = asyncio.create_task(link.run())
    try:
        yield link, desk
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def cancels(*names: str) -> list[Cancel]:
    return [Cancel(task=task(name)) for name in names]


def reports(first: int, end: int) -> list[WasCancelled]:
    return [WasCancelled(task=task(f"s{number}")) for number in range(first, end)]


async def test_commands_come_and_reports_go_in_order() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (link, desk):
        orchestrator.send(*cancels("a", "b"), Release(job=JobId("j")))
        await desk.until_got(3)
        assert desk.got == [*cancels("a", "b"), Release(job=JobId("j"))]
        for report in reports(0, 50):
            link.send(report)
        await orchestrator.until(lambda: len(orchestrator.reports) == 50)
        assert orchestrator.reports == reports(0, 50)
        # All that was there went in one frame.
        assert orchestrator.frames == [(1, 50)]


async def test_heartbeats_carry_load_and_acknowledgements() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (_, desk):
        await orchestrator.until(lambda: len(orchestrator.loads) >= 3)
        assert orchestrator.loads[0] == Load(queued=3)
        orchestrator.send(*cancels("a"))
        await desk.until_got(1)
        await orchestrator.until(lambda: not orchestrator.kept)


async def test_start_that_has_ended_before_it_was_told_is_not_told() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (link, _):
        link.send(Started(task=task("s0")))
        link.send(Started(task=task("s1")))
        link.send(WasCancelled(task=task("s0")))
        await orchestrator.until(lambda: len(orchestrator.reports) == 2)
        assert orchestrator.reports == [Started(task=task("s1")), WasCancelled(task=task("s0"))]


async def test_reports_wait_for_those_that_are_to_come_and_go_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPORTS_GATHER_SECONDS", WAIT_SECONDS * 2)
    async with FakeOrchestrator() as orchestrator:
        orchestrator.heartbeat_seconds, orchestrator.lease_seconds = WAIT_SECONDS * 2, WAIT_SECONDS * 4
        async with linked(orchestrator) as (link, desk):
            await desk.until_welcomed(1)
            orchestrator.send(*cancels("a"))
            await desk.until_got(1)
            for report in reports(0, 9):
                link.send(report, more=True)
                await asyncio.sleep(0)
            link.send(reports(9, 10)[0])
            await orchestrator.until(lambda: len(orchestrator.reports) == 10)
            assert orchestrator.frames == [(1, 10)]


async def test_a_report_with_which_nothing_comes_goes_by_itself() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.heartbeat_seconds, orchestrator.lease_seconds = WAIT_SECONDS * 2, WAIT_SECONDS * 4
        async with linked(orchestrator) as (link, desk):
            await desk.until_welcomed(1)
            link.send(Started(task=task("s1")))
            link.send(reports(0, 1)[0], more=True)
            await orchestrator.until(lambda: orchestrator.reports == [Started(task=task("s1")), *reports(0, 1)])


async def test_break_is_resumed_without_loss_or_repeat() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (link, desk):
        for round_ in range(5):
            for report in reports(round_ * 10, round_ * 10 + 10):
                link.send(report)
            orchestrator.send(*cancels(f"c{round_}"))
            await desk.until_welcomed(round_ + 1)
            orchestrator.drop()
        await orchestrator.until(lambda: len(orchestrator.reports) >= 50)
        await desk.until_got(5)
        assert orchestrator.reports == reports(0, 50)
        assert desk.got == cancels("c0", "c1", "c2", "c3", "c4")
        assert [hello.session for hello in orchestrator.hellos] == ["", *["1-1"] * (len(orchestrator.hellos) - 1)]
        assert {welcome.resumed for welcome in desk.welcomes[1:]} == {True}


async def test_frames_that_come_twice_count_once() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.twice = True
        async with linked(orchestrator) as (_, desk):
            # The welcome is not repeated, and a second one would be refused; all that follows is.
            orchestrator.send(*cancels("a"))
            await desk.until_got(1)
            orchestrator.send(*cancels("b"))
            await desk.until_got(2)
            assert desk.got == cancels("a", "b")


async def test_reports_are_kept_until_acknowledged_and_go_to_the_next_orchestrator() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.acknowledge = False
        async with linked(orchestrator) as (link, desk):
            for report in reports(0, 3):
                link.send(report)
            await orchestrator.until(lambda: len(orchestrator.reports) == 3)
            orchestrator.reports.clear()
            await orchestrator.restart()
            await orchestrator.until(lambda: len(orchestrator.reports) == 3)
            assert orchestrator.reports == reports(0, 3)
            await desk.until_welcomed(2)
            assert not desk.welcomes[1].resumed
            assert orchestrator.hellos[-1].held == tuple(report.task for report in reports(0, 3))
            assert desk.epoch == 2


async def test_reports_made_while_nobody_listens_arrive_later() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (link, desk):
        await desk.until_welcomed(1)
        await orchestrator.stop()
        for report in reports(0, 5):
            link.send(report)
        orchestrator.forget()
        await orchestrator.start()
        await orchestrator.until(lambda: len(orchestrator.reports) == 5)


async def test_silent_orchestrator_is_left_after_a_lease() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.answer_heartbeats = False
        orchestrator.lease_seconds = 0.05
        async with linked(orchestrator) as (_, desk):
            await desk.until_welcomed(3)


async def test_orchestrator_of_an_older_epoch_is_left() -> None:
    async with FakeOrchestrator(epoch=1) as orchestrator, linked(orchestrator) as (_, desk):
        desk.epoch = Epoch(2)
        await orchestrator.until(lambda: len(orchestrator.hellos) >= 2)
        assert desk.welcomes == []


async def test_unreadable_command_ends_the_session_and_the_next_is_new() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (_, desk):
        await desk.until_welcomed(1)
        orchestrator.send_raw(pb.ConnectResponse(commands=pb.Commands(sequence=1, commands=[pb.Command()])))
        await desk.until_welcomed(2)
        assert [hello.session for hello in orchestrator.hellos[:2]] == ["", ""]


async def test_missing_frame_is_asked_for_again() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (_, desk):
        await desk.until_welcomed(1)
        gap = pb.Commands(sequence=7, commands=[pb.Command(release=pb.Release(job_id="j"))], sender_epoch=1)
        orchestrator.send_raw(pb.ConnectResponse(commands=gap))
        orchestrator.send(*cancels("a"))
        await desk.until_welcomed(2)
        await desk.until_got(1)
        assert desk.got == cancels("a")


async def test_message_that_does_not_belong_here_ends_the_stream() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (_, desk):
        await desk.until_welcomed(1)
        orchestrator.send_raw(pb.ConnectResponse(welcome=pb.Welcome()))
        await desk.until_welcomed(2)


async def test_wrong_token_ends_the_first_dial() -> None:
    async with FakeOrchestrator() as orchestrator:
        with pytest.raises(Unauthenticated):
            await Link(orchestrator.address, "wrong", Desk()).run()


async def test_refusal_of_what_the_agent_is_ends_the_first_dial() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.refuse = InvalidInput("no such tier")
        with pytest.raises(InvalidInput, match="no such tier"):
            await Link(orchestrator.address, TOKEN, Desk()).run()


async def test_refusal_after_a_session_is_tried_again() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (_, desk):
        await desk.until_welcomed(1)
        orchestrator.refuse = Unauthenticated("not now")
        orchestrator.drop()
        await orchestrator.until(lambda: len(orchestrator.hellos) >= 3)
        orchestrator.refuse = None
        await desk.until_welcomed(2)


async def test_refusal_for_now_is_tried_again_from_the_start() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.refuse = Fenced("another agent of that name is there")
        async with linked(orchestrator) as (_, desk):
            await orchestrator.until(lambda: len(orchestrator.hellos) >= 2)
            orchestrator.refuse = None
            await desk.until_welcomed(1)


async def test_agent_that_leaves_says_so_after_its_reports() -> None:
    async with FakeOrchestrator() as orchestrator:
        desk = Desk()
        link = Link(orchestrator.address, TOKEN, desk)
        running = asyncio.create_task(link.run())
        await desk.until_welcomed(1)
        for report in reports(0, 3):
            link.send(report)
        link.leave("done for today")
        async with asyncio.timeout(WAIT_SECONDS):
            await running
        assert orchestrator.reports == reports(0, 3)
        assert orchestrator.goodbyes == ["done for today"]


async def test_agent_that_leaves_before_it_was_connected_just_ends() -> None:
    link = Link("127.0.0.1:1", TOKEN, Desk())
    running = asyncio.create_task(link.run())
    link.leave("never mind")
    async with asyncio.timeout(WAIT_SECONDS):
        await running


async def test_many_reports_flow_under_credit() -> None:
    async with FakeOrchestrator() as orchestrator, linked(orchestrator) as (link, _):
        count = limits.SESSION_CREDITS + 500
        orchestrator.acknowledge = False
        for report in reports(0, count):
            link.send(report)
        await orchestrator.until(lambda: len(orchestrator.reports) == limits.SESSION_CREDITS)
        loads = len(orchestrator.loads)
        await orchestrator.until(lambda: len(orchestrator.loads) >= loads + 2)
        assert len(orchestrator.reports) == limits.SESSION_CREDITS
        orchestrator.accept_all()
        await orchestrator.until(lambda: len(orchestrator.reports) == count)
        assert orchestrator.reports == reports(0, count)
