"""The whole orchestrator, with agents: jobs run, restarts and kills lose nothing, clients go on."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.orchestrator.rig import SECONDS, TOKEN, Gate, Rig, Stages, constellation

from starloom.agents import crashpoints
from starloom.agents.agent import Agent, AgentConfig
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import Conflict
from starloom.dag.facts import JobEnded, JobSubmitted, StageCommitted, StageStarted
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.infos import Event
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.process import announce
from starloom.orchestrator.server import Orchestrator, PortTaken
from starloom.orchestrator.supervisor import FENCED, ORCHESTRATOR_NAME, Serving

CHAIN = constellation(
    """
inputs: {n: json, data: bytes}
stages:
  first: {kind: basic.add, in: {x: $n, y: $n}}
  gate: {kind: test.gate, in: {value: first.value}}
  last: {kind: basic.add, in: {x: gate.value, y: first.value}}
  large: {kind: basic.echo, in: {data: $data}, after: [gate]}
outputs: {sum: last.value, large: large.data}
"""
)
DATA = bytes(range(256)) * 8192


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as found:
        yield found


async def test_a_job_runs_across_agents_and_its_values_come_back(rig: Rig) -> None:
    for name in ("n0", "n1"):
        await rig.agent(name)
    rig.gate.open()
    client = await rig.client()
    job = await client.submit(CHAIN, {"n": 3, "data": DATA})
    async with asyncio.timeout(SECONDS):
        assert await job.result() == {"sum": 12, "large": DATA}
    info = await job.status()
    assert {stage.node for stage in info.stages} <= {"n0", "n1"}
    assert info.ended_unix_nanos


async def test_many_stages_on_two_agents(rig: Rig) -> None:
    for name in ("n0", "n1"):
        await rig.agent(name)
    stages = ", ".join(f"s{n}: {{kind: basic.noop}}" for n in range(300))
    sums = ", ".join(f"i{n}: s{n}.value" for n in range(300))
    client = await rig.client()
    job = await client.submit(constellation(f"stages: {{{stages}, all: {{kind: basic.noop, in: {{{sums}}}}}}}"))
    async with asyncio.timeout(SECONDS):
        await job.result()
    info = await job.status()
    assert {stage.status for stage in info.stages} == {"succeeded"}
    assert {stage.attempts for stage in info.stages} == {1}


async def test_a_restart_in_the_middle_of_a_job_loses_nothing(rig: Rig) -> None:
    agents = [await rig.agent(name) for name in ("n0", "n1")]
    client = await rig.client()
    job = await client.submit(CHAIN, {"n": 3, "data": DATA}, key="k")
    waiting = asyncio.create_task(job.result(timeout=SECONDS))
    await rig.gate.until_arrived(1)
    await rig.restart()
    assert rig.orchestrator.epoch == 2
    rig.gate.open()
    assert await waiting == {"sum": 12, "large": DATA}
    info = await (await client.job("k")).status()
    # What ran through the restart counted: nothing was done twice.
    assert {stage.attempts for stage in info.stages} == {1}
    assert [agent.runtime.core.epoch_seen for agent in agents] == [2, 2]


async def test_work_that_ends_while_the_orchestrator_is_away_counts(rig: Rig) -> None:
    await rig.agent("n0")
    client = await rig.client()
    job = await client.submit(CHAIN, {"n": 1, "data": b"x"})
    await rig.gate.until_arrived(1)
    await rig.orchestrator.stop()
    rig.gate.open()
    await rig.restart()
    assert await job.result(timeout=SECONDS) == {"sum": 4, "large": b"x"}
    assert rig.gate.arrived == 1


async def test_a_client_follows_events_over_a_restart_without_a_gap(rig: Rig) -> None:
    await rig.agent("n0")
    client = await rig.client()
    job = await client.submit(CHAIN, {"n": 1, "data": b"x"})
    seen: list[Event] = []
    at_gate = asyncio.Event()

    async def follow() -> None:
        async for event in job.events():
            seen.append(event)
            if isinstance(event.fact, StageStarted) and event.fact.stage == "gate":
                at_gate.set()

    following = asyncio.create_task(follow())
    async with asyncio.timeout(SECONDS):
        await at_gate.wait()
        await rig.restart()
        rig.gate.open()
        await following
    facts = [event.fact for event in seen]
    assert isinstance(facts[0], JobSubmitted)
    assert isinstance(facts[-1], JobEnded)
    assert sum(isinstance(fact, StageCommitted) for fact in facts) == 4
    offsets = [event.offset for event in seen]
    assert offsets == sorted(set(offsets))
    assert [event async for event in job.events()] == seen
    assert [event async for event in job.events(after=offsets[3])] == seen[4:]


async def test_jobs_that_have_ended_are_there_after_a_restart(rig: Rig) -> None:
    await rig.agent("n0")
    rig.gate.open()
    client = await rig.client()
    job = await client.submit(CHAIN, {"n": 2, "data": DATA}, key="k")
    assert await job.result(timeout=SECONDS) == {"sum": 8, "large": DATA}
    before = await job.status()
    await rig.restart()
    again = await client.job("k")
    assert await again.status() == before
    assert await again.result(timeout=SECONDS) == {"sum": 8, "large": DATA}


async def test_values_and_facts_go_with_the_jobs_that_are_not_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FINISHED_JOBS_KEPT", 2)
    monkeypatch.setattr(limits, "JOBS_DROPPED_TOGETHER", 2)
    await rig.agent("n0")
    rig.gate.open()
    client = await rig.client()
    folder = rig.folder / "values"

    def stored() -> set[bytes]:
        return {path.read_bytes() for path in folder.glob("??/*")}

    jobs = []
    for n in range(5):
        job = await client.submit(CHAIN, {"n": n, "data": DATA + bytes([n])})
        await job.result(timeout=SECONDS)
        jobs.append(job.id)
    # What was dropped last goes with the restart.
    await rig.restart()
    await rig.restart()
    assert {event.fact.job async for event in client.events(follow=False) if hasattr(event.fact, "job")} == set(
        jobs[3:]
    )
    assert [info.id for info in await client.jobs()] == jobs[:2:-1]
    assert stored() == {DATA + bytes([n]) for n in (3, 4)}


async def test_an_orchestrator_that_may_be_made_to_die_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert crashpoints.VARIABLE not in caplog.text
    monkeypatch.setattr(crashpoints, "ON", True)
    await rig.restart()
    assert f"{crashpoints.VARIABLE} is set, for trials" in caplog.text


async def test_where_it_serves_is_written_into_the_head_room_of_a_full_disk(rig: Rig) -> None:
    path = rig.folder / ORCHESTRATOR_NAME
    made = path.with_name(f".{path.name}.{os.getpid()}")
    serving = Serving(address=rig.address, pid=os.getpid(), epoch=rig.orchestrator.epoch)
    made.symlink_to("/dev/full")
    announce(rig.folder, serving, rig.orchestrator.make_room)
    assert msgspec.json.decode(path.read_bytes(), type=Serving) == serving
    assert not (rig.folder / "journal" / "headroom").exists()
    made.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        announce(rig.folder, serving, rig.orchestrator.make_room)
    assert not made.exists()


async def test_a_folder_serves_one_orchestrator_and_a_port_as_well(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        await Orchestrator(rig.folder, token=TOKEN).start()
    port = int(rig.address.rpartition(":")[2])
    other = Orchestrator(tmp_path / "other", port=port, token=TOKEN)
    with pytest.raises(PortTaken, match=f"cannot listen on {rig.address}"):
        await other.start()
    # The folder is free again.
    third = Orchestrator(tmp_path / "other", token=TOKEN)
    await third.start()
    await third.stop()
    await third.stop()


class Process:
    """The orchestrator as a child of the test, which kills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.log = folder / "log"
        (folder / "token").write_text(TOKEN)
        self.child: subprocess.Popen[bytes] | None = None

    async def start(self) -> Serving:
        await asyncio.to_thread(self._start)
        assert self.child is not None
        serving = msgspec.json.decode((self.folder / ORCHESTRATOR_NAME).read_bytes(), type=Serving)
        assert serving.pid == self.child.pid
        self.port = int(serving.address.rpartition(":")[2])
        return serving

    def _start(self) -> None:
        ready, given = os.pipe()
        options = ["--folder", str(self.folder), "--token-file", str(self.folder / "token")]
        options += ["--port", str(self.port), "--ready-fd", str(given)]
        command = [sys.executable, "-m", "starloom.orchestrator.process", *options]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(command, pass_fds=(given,), stderr=log)
        os.close(given)
        came_up = os.read(ready, 1)
        os.close(ready)
        assert came_up, "the orchestrator did not come up"

    async def end(self, number: signal.Signals) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return await asyncio.to_thread(self.child.wait)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    found = Process(tmp_path)
    yield found
    if found.child is not None:
        found.child.kill()
        found.child.wait()


async def run_over_kills(process: Process, document: Constellation, kills: int) -> None:
    gate = Gate()
    serving = await process.start()
    config = AgentConfig(name="n0", tier="edge", orchestrator=serving.address, token=TOKEN, slots=2, measures=False)
    agent = Agent(config, Stages(gate))
    await agent.start()
    try:
        async with AsyncClient(serving.address, TOKEN) as client:
            async with asyncio.timeout(SECONDS):
                await agent.connected.wait()
            job = await client.submit(document, {"n": 5, "data": DATA})
            events: list[Event] = []

            async def follow() -> None:
                events.extend([event async for event in job.events()])

            following = asyncio.create_task(follow())
            await gate.until_arrived(1)
            for kill in range(kills):
                assert await process.end(signal.SIGKILL) == -signal.SIGKILL
                again = await process.start()
                assert (again.address, again.epoch) == (serving.address, kill + 2)
            gate.open()
            assert await job.result(timeout=SECONDS) == {"sum": 20, "large": DATA}
            async with asyncio.timeout(SECONDS):
                await following
            offsets = [event.offset for event in events]
            assert offsets == sorted(set(offsets))
            assert sum(isinstance(event.fact, StageCommitted) for event in events) == 4
    finally:
        gate.open()
        await agent.stop()


async def test_a_killed_process_is_followed_by_another_and_the_job_goes_on(process: Process) -> None:
    await run_over_kills(process, CHAIN, kills=2)
    assert await process.end(signal.SIGTERM) == 0


async def test_a_process_that_was_replaced_ends_and_says_so(process: Process) -> None:
    serving = await process.start()
    (process.folder / "journal" / "lock").unlink()
    journal = await asyncio.to_thread(Journal.open, process.folder / "journal")
    assert process.child is not None
    assert await asyncio.to_thread(process.child.wait, SECONDS) == FENCED
    journal.close()
    said = process.log.read_text()
    assert (
        f"epoch {serving.epoch}, and the journal in {process.folder / 'journal'} has 2: another one took over" in said
    )


async def test_a_process_says_why_it_cannot_start(process: Process, tmp_path: Path) -> None:
    serving = await process.start()

    def other(folder: Path, port: int, token: Path) -> subprocess.CompletedProcess[str]:
        options = ["--folder", str(folder), "--port", str(port), "--token-file", str(token)]
        command = [sys.executable, "-m", "starloom.orchestrator.process", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)

    token = tmp_path / "token"
    taken = await asyncio.to_thread(other, tmp_path / "other", process.port, token)
    assert taken.returncode == 3
    assert f"cannot listen on {serving.address}" in taken.stderr
    used = await asyncio.to_thread(other, tmp_path, 0, token)
    assert used.returncode == 3
    assert f"in use by process {serving.pid}" in used.stderr
    missing = await asyncio.to_thread(other, tmp_path / "third", 0, tmp_path / "none")
    assert missing.returncode == 2
    assert "token" in missing.stderr
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert (await asyncio.to_thread(other, tmp_path / "third", 0, empty)).returncode == 2
