"""Faults on a real orchestrator and agents over gRPC: each kind that a process has in itself, armed, met and healed."""

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.agents.fakes import no_models
from tests.orchestrator.rig import SECONDS, TOKEN, Gate, Rig, Stages, until

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.faultrules import Armed
from starloom.agents.faultservice import FaultClient
from starloom.agents.stage import CancelToken, StageCall
from starloom.agents.stages.basic import MakeBytes
from starloom.dag.constellation import Constellation, Policy, Requirements, Retry
from starloom.dag.errors import Conflict, InvalidInput, JobFailed, NotFound, Overloaded, Unauthenticated, Unavailable
from starloom.dag.facts import JobStatus
from starloom.devices.faultdoc import read_plan
from starloom.devices.faults import AT_ONCE, LIVE, OF_ORCHESTRATOR, ORCHESTRATOR, FaultKind
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob
from starloom.orchestrator.server import Orchestrator
from starloom.orchestrator.trials.injector import Injector, Place, hangs, wake
from starloom.orchestrator.trials.planning import Planned
from starloom.orchestrator.trials.survival import Survival
from starloom.orchestrator.trials.underplan import UnderPlan

SIZE = 200_000
MADE = MakeBytes().run(StageCall({}, {"size": SIZE, "seed": 1}, no_models(CancelToken(), "cpu")))["data"]
KINDS = Stages(Gate()).kinds


class FaultyRig(Rig):
    """A rig on which faults are allowed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.orchestrator = Orchestrator(folder, token=TOKEN, faults_allowed=True)
        self.faults = FaultClient(TOKEN)
        self.agents: dict[str, Agent] = {}

    async def faulty(self, name: str) -> Agent:
        """One more agent, once it is online."""
        config = AgentConfig(
            name=name,
            tier="edge",
            orchestrator=self.address,
            token=TOKEN,
            slots=4,
            faults_allowed=True,
            measures=False,
        )
        agent = self.agents[name] = Agent(config, Stages(self.gate))
        await agent.start()
        self._stack.push_async_callback(agent.stop)
        await until(self.online(name))
        return agent

    def place(self, node: str) -> str:
        return self.address if node == ORCHESTRATOR else self.agents[node].profile.address

    async def arm(self, node: str, what: FaultKind, seconds: float | None = None, **how: Any) -> None:
        await self.faults.arm(self.place(node), Armed(id=what, what=what, **how), seconds)

    async def heal(self, node: str) -> int:
        """Ends everything there; returns how often it has changed something."""
        return sum(info.met for info in await self.faults.heal(self.place(node), []))

    async def until_met(self, node: str, more: int = 1) -> None:
        """Once what is armed in an agent has changed something."""
        layer = self.agents[node]._faults
        assert layer is not None

        async def met() -> bool:
            await asyncio.sleep(0)
            return sum(times for _, _, times in layer.armed()) >= more

        await until(met)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[FaultyRig]:
    async with FaultyRig(tmp_path) as made:
        await made.faulty("a")
        await made.faulty("b")
        yield made


@pytest.fixture
async def client(rig: FaultyRig) -> AsyncClient:
    return await rig.client()


def handed_on() -> Constellation:
    """Bytes from the node `a`, read on `b`."""
    graph = Graph("handed-on")
    made = graph.stage("make", "basic.make_bytes", params={"size": SIZE, "seed": 1}, require=Requirements(node="a"))
    read = graph.stage("read", "basic.echo", data=made["data"], require=Requirements(node="b"))
    graph.output("read", read["data"])
    return graph.build(KINDS)


def one(kind: str = "basic.noop", node: str = "a", **policy: Any) -> Constellation:
    graph = Graph("one")
    stage = graph.stage("only", kind, require=Requirements(node=node), policy=Policy(**policy))
    graph.output("value", stage["value"])
    return graph.build(KINDS)


async def open_still(job: AsyncJob) -> bool:
    return (await job.status()).status is JobStatus.RUNNING


async def result(job: AsyncJob) -> dict[str, Any]:
    return await job.result(SECONDS)


@pytest.mark.parametrize("way", [FaultKind.PARTITION_UP, FaultKind.PARTITION])
async def test_nobody_hears_of_a_cut_off_node_until_it_is_healed(
    rig: FaultyRig, client: AsyncClient, way: FaultKind
) -> None:
    job = await client.submit(one("test.gate"))
    await rig.gate.until_arrived(1)
    await rig.arm("a", way)
    rig.gate.open()
    await rig.until_met("a", 2)
    assert await open_still(job)
    await rig.heal("a")
    assert await result(job) == {"value": None}


async def test_a_node_that_hears_nothing_begins_when_it_is_healed(rig: FaultyRig, client: AsyncClient) -> None:
    await rig.arm("a", FaultKind.PARTITION_DOWN)
    job = await client.submit(one("test.gate"))
    await rig.until_met("a")
    assert rig.gate.arrived == 0
    assert await open_still(job)
    await rig.heal("a")
    rig.gate.open()
    assert await result(job) == {"value": None}


async def test_a_fault_with_a_time_ends_by_itself(rig: FaultyRig, client: AsyncClient) -> None:
    await rig.arm("a", FaultKind.PARTITION, seconds=0.3)
    assert await result(await client.submit(one())) == {"value": None}

    async def over() -> bool:
        return not await rig.faults.armed(rig.place("a"))

    await until(over)


@pytest.mark.parametrize(
    ("what", "how"),
    [
        (FaultKind.PARTITION_DATA, {"seconds": 0.3}),
        (FaultKind.LINK_SLOW, {"delay_seconds": 0.05}),
        (FaultKind.FETCH_FAILS, {"chance": 1.0, "most": 2}),
        (FaultKind.FETCH_DAMAGED, {"chance": 1.0, "most": 1}),
    ],
)
async def test_a_value_gets_through_whatever_is_done_to_it_on_its_way(
    rig: FaultyRig, client: AsyncClient, what: FaultKind, how: dict[str, Any]
) -> None:
    seconds = how.pop("seconds", None)
    await rig.arm("b", what, seconds, **how)
    assert await result(await client.submit(handed_on())) == {"read": MADE}
    if seconds is None:
        assert await rig.heal("b") >= how.get("most", 1)


async def test_a_holder_that_is_cut_off_from_its_peers_is_waited_for(rig: FaultyRig, client: AsyncClient) -> None:
    """Values are asked for, so who asks is kept from it as well; the peers of a partition are named to each other."""
    await rig.arm("b", FaultKind.PARTITION, peer="a", address=rig.place("a"))
    job = await client.submit(handed_on())
    await rig.until_met("b")
    assert await open_still(job)
    await rig.heal("b")
    assert await result(job) == {"read": MADE}


async def test_a_stage_that_fails_in_passing_is_tried_again(rig: FaultyRig, client: AsyncClient) -> None:
    await rig.arm("a", FaultKind.STAGE_FAILS, kind="basic.noop", most=2)
    job = await client.submit(one())
    assert await result(job) == {"value": None}
    assert (await job.status()).stages[0].attempts == 3
    assert await rig.heal("a") == 2


async def test_a_stage_that_fails_more_often_than_its_policy_forgives_fails_the_job(
    rig: FaultyRig, client: AsyncClient
) -> None:
    """The control of the test before: what is not healed is not survived."""
    await rig.arm("a", FaultKind.STAGE_FAILS)
    with pytest.raises(JobFailed, match="a fault has it so"):
        await result(await client.submit(one(retry=Retry(times=1))))


async def test_a_stage_hangs_until_it_is_healed_or_cancelled(rig: FaultyRig, client: AsyncClient) -> None:
    await rig.arm("a", FaultKind.STAGE_HANGS, kind="basic.noop")
    first, second = await client.submit(one()), await client.submit(one())
    await rig.until_met("a", 2)
    assert (await second.cancel()).status is JobStatus.CANCELLED
    assert await open_still(first)
    await rig.heal("a")
    assert await result(first) == {"value": None}


async def test_a_slow_node_takes_longer_for_the_stages_of_a_kind(rig: FaultyRig, client: AsyncClient) -> None:
    await rig.arm("a", FaultKind.AGENT_SLOW, kind="basic.noop", add_seconds=0.2)
    slow, quick = await client.submit(one()), await client.submit(one("basic.add"))
    await result(slow)
    await result(quick)
    seconds = [(await job.status()).stages[0].seconds.run for job in (slow, quick)]
    # What it says of itself; the machine may only add to it.
    assert seconds[0] >= 0.2
    assert await rig.heal("a") == 1


async def test_a_connection_that_breaks_is_dialled_again_and_its_session_goes_on(
    rig: FaultyRig, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    job = await client.submit(one("test.gate"))
    await rig.gate.until_arrived(1)
    with caplog.at_level(logging.INFO):
        await rig.arm("a", FaultKind.LINK_BREAK)

        async def again() -> bool:
            await asyncio.sleep(0)
            return "a goes on with session" in caplog.text

        await until(again)
    rig.gate.open()
    assert await result(job) == {"value": None}
    assert (await job.status()).stages[0].attempts == 1
    assert await rig.faults.armed(rig.place("a")) == []


async def test_on_a_full_disk_new_work_is_refused_and_what_was_accepted_goes_on(
    rig: FaultyRig, client: AsyncClient
) -> None:
    job = await client.submit(one("test.gate"))
    await rig.gate.until_arrived(1)
    await rig.arm(ORCHESTRATOR, FaultKind.DISK_FULL)
    with pytest.raises(Overloaded, match="disk is full"):
        await client.submit(one())
    rig.gate.open()
    assert await result(job) == {"value": None}
    assert await rig.heal(ORCHESTRATOR) >= 2
    assert await result(await client.submit(one())) == {"value": None}


async def test_a_submission_whose_answer_was_lost_makes_one_job(rig: FaultyRig, client: AsyncClient) -> None:
    await rig.arm(ORCHESTRATOR, FaultKind.REPLY_LOST, most=2)
    assert await result(await client.submit(one())) == {"value": None}
    assert len(await client.jobs()) == 1
    assert await rig.heal(ORCHESTRATOR) == 2


class Forgets(Injector):
    """Ends nothing."""

    async def end(self, fault: Planned, places: Sequence[Place]) -> int:
        return 0


async def under(rig: FaultyRig, client: AsyncClient, plan: str, injector: type[Injector] = Injector) -> Survival:
    """A job of two nodes under a plan."""
    rig.gate.open()
    read = read_plan(plan)
    within = UnderPlan(client, injector(TOKEN), lambda _: None, within=3.0)
    planned = await within.prepare(read, 1, handed_on())
    expected, _ = await within.undisturbed(handed_on(), {})
    return await within.disturbed(handed_on(), {}, planned, expected)


PLAN = """
faults:
  - {what: partition, node: b, at_seconds: 0, lasts_seconds: 0.5}
  - {what: fetch-fails, chance: 1, most: 1}
  - {what: reply-lost, at_seconds: 0, chance: 1, most: 1}
  - {what: agent-slow, tier: cloud, at_seconds: 5, add_seconds: 1}
"""


async def test_a_job_under_a_plan_is_counted_and_compared(rig: FaultyRig, client: AsyncClient) -> None:
    with pytest.raises(InvalidInput, match=r"faults.3: meets no node"):
        await under(rig, client, PLAN)
    found = await under(rig, client, PLAN.replace("cloud", "edge"))
    assert (found.verdict, found.status, found.equal, found.what) == ("held", "succeeded", True, ())
    assert (found.planned, found.injected, found.recovered, found.lost, found.duplicated) == (4, 3, 3, 0, 0)
    met = {row.what: row.met for row in found.faults}
    assert (met[FaultKind.REPLY_LOST], met[FaultKind.AGENT_SLOW]) == (1, None)
    for node in ("a", "b", ORCHESTRATOR):
        assert await rig.faults.armed(rig.place(node)) == []


async def test_a_kind_that_no_node_runs_is_refused_before_anything_happens(
    rig: FaultyRig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "no node runs stages of the kind 'basic.ehco'; did you mean 'basic.echo'?"
    with pytest.raises(InvalidInput, match=f"faults.0.kind: {re.escape(said)}"):
        await under(rig, client, "faults: [{what: stage-fails, kind: basic.ehco, chance: 1}]")
    monkeypatch.setenv("STARLOOM_ADDRESS", rig.address)
    monkeypatch.setenv("STARLOOM_TOKEN", TOKEN)
    inject = ["faults", "inject", "stage-fails", "--kind"]
    assert await asyncio.to_thread(main, [*inject, "basic.ehco"]) == 2
    assert f"--kind: {said}" in capsys.readouterr().err
    assert await rig.faults.armed(rig.place("a")) == []
    assert await asyncio.to_thread(main, [*inject, "basic.echo"]) == 0
    assert [info.fault.kind for info in await rig.faults.armed(rig.place("a"))] == ["basic.echo"]


@pytest.mark.parametrize(
    ("plan", "injector", "why"),
    [
        ("{what: stage-hangs, at_seconds: 0, chance: 1, heals: false}", Injector, "it was not healed"),
        ("{what: partition, node: b, at_seconds: 0, lasts_seconds: 1}", Forgets, "it was healed, and stands"),
    ],
)
async def test_a_fault_that_is_not_healed_breaks_the_verdict(
    rig: FaultyRig, client: AsyncClient, plan: str, injector: type[Injector], why: str
) -> None:
    found = await under(rig, client, f"faults: [{plan}]", injector)
    assert (found.verdict, found.injected, found.recovered, found.lost) == ("broken", 1, 0, 1)
    assert any(why in each for each in found.what)
    for node in ("a", "b"):
        assert await rig.faults.armed(rig.place(node)) == [], "what a run has begun it leaves to nobody"


async def test_faults_of_one_kind_meet_at_one_moment_of_a_stage(rig: FaultyRig, client: AsyncClient) -> None:
    slow = "{what: agent-slow, node: b, at_seconds: 0, add_seconds: 1, lasts_seconds: 9}"
    links = (f"{{what: link-slow, stage: make, node: {node}, delay_seconds: 0.01, lasts_seconds: 9}}" for node in "ab")
    found = await under(rig, client, f"faults: [{', '.join((slow, *links))}]")
    assert (found.verdict, found.planned, found.injected) == ("held", 3, 3)


@pytest.fixture
async def nobody() -> Place:
    """A node that does not answer any more."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
    return Place(name="gone", address=f"127.0.0.1:{port}", pid=0)


async def test_a_fault_that_cannot_begin_at_one_of_its_nodes_begins_at_none(rig: FaultyRig, nobody: Place) -> None:
    places = [Place(name="a", address=rig.place("a"), pid=0), nobody]
    for fault in (
        Planned(id="f", what=FaultKind.FETCH_FAILS, node="", nodes=("a", "gone"), lasts_seconds=None),
        Planned(id="f", what=FaultKind.PARTITION, node="a", peer="gone", lasts_seconds=None),
    ):
        with pytest.raises(Unavailable, match="gone: "):
            await Injector(TOKEN).begin(fault, places)
        assert await rig.faults.armed(rig.place("a")) == []


async def test_a_node_is_cut_off_whoever_of_the_others_is_gone(rig: FaultyRig, nobody: Place) -> None:
    injector = Injector(TOKEN)
    places = [*(Place(name=node, address=rig.place(node), pid=0) for node in "ab"), nobody]
    fault = Planned(id="f", what=FaultKind.PARTITION, node="a", lasts_seconds=None)
    await injector.begin(fault, places)
    assert [(each.node, each.peer) for each in await injector.standing(places)] == [("a", ""), ("b", "a")]
    await injector.end(fault, places)
    assert await injector.standing(places) == []


async def test_a_link_needs_two_ends(rig: FaultyRig) -> None:
    fault = Planned(id="f", what=FaultKind.PARTITION, node="a", peer="a")
    with pytest.raises(InvalidInput, match="the node itself"):
        await Injector(TOKEN).begin(fault, [Place(name="a", address=rig.place("a"), pid=0)])


async def test_only_the_process_that_listens_where_a_node_is_gets_signals(nobody: Place) -> None:
    """An agent of another machine tells an id that a process has here as well."""
    bystander = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    place = Place(name="gone", address=nobody.address, pid=bystander.pid)
    for what in (FaultKind.AGENT_CRASH, FaultKind.AGENT_HANG):
        with pytest.raises(NotFound, match="on another machine"):
            await Injector(TOKEN).begin(Planned(id="f", what=what, node="gone"), [place])
    bystander.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, bystander.pid, os.WSTOPPED | os.WNOWAIT)
    assert not hangs(place)
    wake(place)
    assert psutil.Process(bystander.pid).status() == psutil.STATUS_STOPPED
    bystander.send_signal(signal.SIGCONT)
    await bystander.communicate(b"\n")
    assert bystander.returncode == 0


async def test_each_process_has_the_faults_that_are_its_own(rig: FaultyRig) -> None:
    signals = {FaultKind.AGENT_CRASH, FaultKind.AGENT_HANG, FaultKind.ORCHESTRATOR_CRASH, FaultKind.ORCHESTRATOR_HANG}
    for what in set(LIVE) - signals:
        here, elsewhere = (ORCHESTRATOR, "a") if what in OF_ORCHESTRATOR else ("a", ORCHESTRATOR)
        await rig.arm(here, what, seconds=60)
        with pytest.raises(InvalidInput, match="does not happen here"):
            await rig.arm(elsewhere, what)
        if what not in AT_ONCE:
            with pytest.raises(Conflict, match="is armed already"):
                await rig.arm(here, what)
        await rig.heal(here)


async def test_what_is_no_fault_is_refused_with_everything_that_is_wrong(rig: FaultyRig) -> None:
    fault = Armed(id="", what=FaultKind.LINK_SLOW, delay_seconds=-1, chance=2.0)
    with pytest.raises(InvalidInput) as raised:
        await rig.faults.arm(rig.place("a"), fault, float("nan"))
    assert {problem.place for problem in raised.value.problems} == {
        "fault.id",
        "fault.delay_seconds",
        "fault.seconds",
        "fault.chance",
    }


async def test_who_has_no_token_arms_nothing(rig: FaultyRig) -> None:
    stranger = FaultClient("another token")
    for node in ("a", ORCHESTRATOR):
        with pytest.raises(Unauthenticated):
            await stranger.armed(rig.place(node))
        with pytest.raises(Unauthenticated):
            await stranger.arm(rig.place(node), Armed(id="x", what=FaultKind.DISK_FULL), None)


async def test_without_leave_there_is_nothing_to_arm(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        agent = await rig.agent("a")
        for address in (rig.address, agent.profile.address):
            with pytest.raises(Conflict, match="--faults-allowed"):
                await FaultClient(TOKEN).armed(address)
