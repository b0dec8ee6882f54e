"""A whole agent against a scripted orchestrator: its work, its session, and that it leaves nothing behind."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.agents.fakes import TOKEN, WAIT_SECONDS, FakeOrchestrator, Stages, assign, given, task
from tests.agents.streamkit import OF_THE_JOB, StreamStore

from starloom.agents import samples, selfprofile
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.messages import Await, Cancel, Finished, InputLost, Reader, Release, Started, WasCancelled
from starloom.agents.stages.basic import Noop
from starloom.agents.streams.records import StreamName
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, NotFound, Unauthenticated
from starloom.dag.ids import JobId, StageId
from starloom.dag.values import PortType
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import SharedUplink

_LONG = {"seconds": 3600}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_FIRST_SECONDS", 0.005)
    monkeypatch.setattr(limits, "RECONNECT_LAST_SECONDS", 0.05)


def config(orchestrator: FakeOrchestrator, **fields: Any) -> AgentConfig:
    chosen: dict[str, Any] = {"name": "a", "tier": "edge", "token": TOKEN, "slots": 2, "measures": False} | fields
    return AgentConfig(orchestrator=orchestrator.address, **chosen)


@asynccontextmanager
async def running(orchestrator: FakeOrchestrator, **fields: Any) -> AsyncIterator[Agent]:
    agent = Agent(config(orchestrator, **fields))
    await agent.start()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await agent.connected.wait()
        yield agent
    finally:
        await agent.stop()


async def test_what_it_measures_of_its_node_is_told_by_one_heartbeat_and_by_the_next_starts_hello(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def measured(provider: str, names: Sequence[str], threads: int, **_: Any) -> tuple[float, ...]:
        assert let_go.wait(WAIT_SECONDS)
        return tuple(1.0 for _ in names)

    monkeypatch.setattr(selfprofile, "measure", measured)
    places = {"profiles_root": str(tmp_path / "profiles"), "models_root": str(tmp_path / "models"), "measures": True}
    async with FakeOrchestrator() as orchestrator:
        async with running(orchestrator, **places) as agent:
            await orchestrator.until(lambda: len(orchestrator.loads) > 1)
            assert all(load.measured is None for load in orchestrator.loads)
            let_go.set()
            await orchestrator.until(lambda: any(load.measured for load in orchestrator.loads))
            told = len(orchestrator.loads)
            await orchestrator.until(lambda: len(orchestrator.loads) > told + 2)
            [found] = [load.measured for load in orchestrator.loads if load.measured is not None]
            assert found is not None
            assert found.seconds == {"cpu": (1.0,) * len(samples.load().names)}
            assert agent.profile.measured == found
            orchestrator.drop()
            await orchestrator.until(lambda: len(orchestrator.hellos) == 2)
        async with running(orchestrator, **places):
            pass
        assert [hello.profile.measured for hello in orchestrator.hellos] == [None, found, found]
        assert not [load for load in orchestrator.loads[told:] if load.measured is not None]


async def test_links_are_told_when_they_change_and_all_of_them_after_a_hello() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator) as agent:

        async def next_beats(count: int) -> list[dict[str, MeasuredLink] | None]:
            before = len(orchestrator.loads)
            await orchestrator.until(lambda: len(orchestrator.loads) >= before + count)
            return [load.links for load in orchestrator.loads[before : before + count]]

        await orchestrator.until(lambda: orchestrator.loads)
        assert orchestrator.loads[0].links == {}
        assert await next_beats(2) == [None, None]
        for _ in range(2):
            agent.runtime.links.fetched("cam", 1, 0.5, time.monotonic())
        beats = await next_beats(3)
        cam = MeasuredLink(latency_seconds=0.5)
        assert [beat for beat in beats if beat is not None] == [{"cam": cam}]
        orchestrator.drop()
        await orchestrator.until(lambda: len(orchestrator.hellos) == 2)
        assert {"cam": cam} in await next_beats(3)


async def test_one_whose_user_has_no_home_joins_without_a_profile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    for name in ("STARLOOM_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    async with FakeOrchestrator() as orchestrator:
        agent = Agent(config(orchestrator, measures=True), Stages(Noop()))
        await agent.start()
        orchestrator.send(assign())
        assert isinstance(await orchestrator.last(task()), Finished)
        await agent.stop()
        assert orchestrator.hellos[0].profile.measured is None
    assert "its profile cannot be kept: Could not determine home directory." in caplog.text


async def test_agents_stream_to_each_other_and_to_the_orchestrator() -> None:
    store = StreamStore()
    numbers = store.input("numbers", "cut.values")
    async with (
        FakeOrchestrator(streams=store) as first,
        FakeOrchestrator(streams=store) as second,
        running(first) as a,
        running(second, name="b") as b,
    ):
        feed = Await(upstream=StageId(""), token=OF_THE_JOB, streams={"values": "numbers"})
        window = {"count": 5}
        first.send(
            assign(
                "cut",
                "stream.window",
                params=window,
                awaits=(feed,),
                readers=(Reader(port="windows", reader="again.values"),),
            )
        )
        cut = Await(
            upstream=StageId("cut"),
            token=task("cut").token,
            agent=a.profile.name,
            address=a.profile.address,
            streams={"values": "windows"},
        )
        second.send(assign("again", "stream.window", params={"count": 2}, awaits=(cut,), publish=("windows",)))
        for number in range(20):
            await numbers.append(str(number).encode(), {})
        numbers.finish()
        report = await second.last(task("again"))
        assert isinstance(report, Finished), report
        assert report.published == ("windows",)
        written = store.written[StreamName(JobId("j"), StageId("again"), task("again").token, "windows")]
        pairs = [msgspec.json.decode(chunk.data)["values"] for chunk in written]
        assert [[window["values"] for window in pair] for pair in pairs] == [
            [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
            [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]],
        ]
        assert b.runtime.core.idle


async def test_streams_of_a_job_go_on_after_a_restart_of_the_orchestrator() -> None:
    store = StreamStore()
    numbers = store.input("numbers", "cut.values")
    written = store.written
    name = StreamName(JobId("j"), StageId("cut"), task("cut").token, "windows")
    async with FakeOrchestrator(streams=store) as orchestrator, running(orchestrator):
        feed = Await(upstream=StageId(""), token=OF_THE_JOB, streams={"values": "numbers"})
        orchestrator.send(assign("cut", "stream.window", params={"count": 1}, awaits=(feed,), publish=("windows",)))
        for number in range(40):
            await numbers.append(str(number).encode(), {})
        await store.until(lambda: len(written.get(name, ())) == 40)
        await orchestrator.stop()
        for number in range(40, 80):
            await numbers.append(str(number).encode(), {})
        numbers.finish()
        orchestrator.forget()
        await orchestrator.start()
        report = await orchestrator.last(task("cut"))
        assert isinstance(report, Finished), report
        found = [msgspec.json.decode(chunk.data)["values"] for chunk in written[name]]
        assert found == [[number] for number in range(80)]


async def test_agent_says_who_it_is_and_what_it_can() -> None:
    async with FakeOrchestrator() as orchestrator:
        uplinks = (SharedUplink(name="hall", up=1e6, down=1e6, half=True),)
        chosen = {"targets": ("cpu", "npu"), "labels": {"sensor": "camera"}, "uplinks": uplinks}
        async with running(orchestrator, **chosen) as agent:
            (hello,) = orchestrator.hellos
            assert hello.profile == agent.profile
            profile = agent.profile
            assert (profile.name, profile.tier, profile.labels) == ("a", "edge", {"sensor": "camera"})
            assert [(target.name, target.emulated) for target in profile.targets] == [("cpu", False), ("npu", True)]
            assert profile.slots == 2
            assert profile.uplinks == uplinks
            assert profile.cores > 0
            assert profile.memory_bytes > 0
            assert profile.pid == os.getpid()
            assert "CPUExecutionProvider" in profile.providers
            assert profile.details["onnxruntime"]
            assert profile.kinds == tuple(kind.name for kind in hello.kinds)
            assert {"basic.noop", "speech.transcribe"} <= set(profile.kinds)
            assert profile.address.startswith("127.0.0.1:")
        assert orchestrator.goodbyes == ["the agent was stopped"]


async def test_agent_offers_only_what_it_is_configured_to() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator, kinds=("basic.noop", "basic.add")):
        assert [kind.name for kind in orchestrator.hellos[0].kinds] == ["basic.noop", "basic.add"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"kinds": ("basic.none",)}, "'basic.none' cannot run here"),
        ({"tier": "moon"}, "choose one of device, edge, cloud"),
        ({"targets": ("cpu", "abacus")}, "'abacus' cannot be computed on here"),
        ({"targets": ()}, "are empty"),
    ],
)
async def test_agent_that_cannot_be_does_not_start(fields: dict[str, Any], what: str) -> None:
    async with FakeOrchestrator() as orchestrator:
        agent = Agent(config(orchestrator, **fields))
        with pytest.raises(InvalidInput, match=what):
            await agent.start()
        await agent.stop()


async def test_stages_run_and_pass_large_values_by_reference() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator) as agent:
        make = assign("make", "basic.make_bytes", params={"size": 300_000})
        orchestrator.send(make)
        report = await orchestrator.last(make.task)
        assert isinstance(report, Finished)
        ref = report.outputs["data"]
        assert (ref.holder, ref.inline) == ("a", None)
        async with Transfer(TOKEN) as transfer:
            assert len(await transfer.fetch(agent.profile.address, JobId("j"), ref)) == 300_000
            orchestrator.send(Release(job=JobId("j")), assign("after", job="k"))
            await orchestrator.last(task("after", job="k"))
            with pytest.raises(NotFound):
                await transfer.fetch(agent.profile.address, JobId("j"), ref)


async def test_two_agents_hand_a_value_over() -> None:
    async with (
        FakeOrchestrator() as first,
        FakeOrchestrator() as second,
        running(first) as maker,
        running(second, name="b"),
    ):
        make = assign("make", "basic.make_bytes", params={"size": 2_000_000})
        first.send(make)
        made = await first.last(make.task)
        assert isinstance(made, Finished)
        item = given("data", PortType.BYTES, b"", inline=False, address=maker.profile.address)
        fields = {name: getattr(item, name) for name in item.__struct_fields__} | {"ref": made.outputs["data"]}
        echo = assign("echo", "basic.echo", inputs=(type(item)(**fields),), publish=("data",))
        second.send(echo)
        report = await second.last(echo.task)
        assert isinstance(report, Finished)
        assert report.outputs["data"].digest == made.outputs["data"].digest
        assert report.published == ("data",)
        assert list(second.store.values) == [made.outputs["data"].digest]


async def test_work_goes_on_through_a_break_and_its_end_is_told_once() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator) as agent:
        orchestrator.send(assign("long", "basic.sleep", params=_LONG))
        await orchestrator.until(lambda: orchestrator.started(task("long")))
        orchestrator.drop()
        await orchestrator.until(lambda: len(orchestrator.hellos) == 2)
        assert orchestrator.hellos[1].held == (task("long"),)
        assert orchestrator.hellos[1].jobs == ("j",)
        orchestrator.send(Cancel(task=task("long")))
        assert await orchestrator.last(task("long")) == WasCancelled(task=task("long"))
        assert len(orchestrator.finals(task("long"))) == 1
        assert agent.runtime.core.active == ()


async def test_restarted_orchestrator_hears_what_is_held_and_what_has_ended() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator):
        orchestrator.acknowledge = False
        orchestrator.send(assign("long", "basic.sleep", params=_LONG), assign("short"))
        await orchestrator.until(lambda: orchestrator.started(task("long")) and orchestrator.finals(task("short")))
        orchestrator.reports.clear()
        await orchestrator.restart()
        assert isinstance(await orchestrator.last(task("short")), Finished)
        hello = orchestrator.hellos[-1]
        assert set(hello.held) == {task("long"), task("short")}
        assert (hello.session != "", hello.epoch_seen) == (True, 1)
        # A repeated assignment of what runs already is no second run.
        orchestrator.send(assign("long", "basic.sleep", params=_LONG), assign("short"), Cancel(task=task("long")))
        assert isinstance(await orchestrator.last(task("long")), WasCancelled)
        assert len(orchestrator.finals(task("short"))) == 1


async def test_frames_sent_twice_run_once() -> None:
    async with FakeOrchestrator() as orchestrator:
        orchestrator.twice = True
        async with running(orchestrator):
            orders = [assign(f"s{number}") for number in range(20)]
            orchestrator.send(*orders)
            for order in orders:
                await orchestrator.last(order.task)
            assert all(len(orchestrator.finals(order.task)) == 1 for order in orders)


async def test_input_that_is_lost_is_told() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator):
        order = assign("s", "basic.echo", inputs=(given("data", PortType.BYTES, b"x", inline=False),))
        orchestrator.send(order)
        report = await orchestrator.last(order.task)
        assert isinstance(report, InputLost)
        assert report.gone


async def test_heartbeats_tell_the_load() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator):
        orchestrator.send(*(assign(f"s{number}", "basic.sleep", params=_LONG) for number in range(5)))
        await orchestrator.until(lambda: orchestrator.loads and orchestrator.loads[-1].running == 2)
        load = orchestrator.loads[-1]
        assert load.queued == 3
        assert load.memory_bytes > 1_000_000
        assert load.file_handles > 3


async def test_agent_with_a_wrong_token_ends_with_the_reason() -> None:
    async with FakeOrchestrator() as orchestrator:
        agent = Agent(config(orchestrator, token="wrong"))
        await agent.start()
        with pytest.raises(Unauthenticated):
            await agent.run()


async def test_run_lasts_until_stop() -> None:
    async with FakeOrchestrator() as orchestrator, running(orchestrator) as agent:
        lasting = asyncio.create_task(agent.run())
        orchestrator.send(assign("long", "basic.sleep", params=_LONG))
        await orchestrator.until(lambda: Started(task=task("long")) in orchestrator.reports)
        assert not lasting.done()
        await agent.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            await lasting
        assert orchestrator.finals(task("long")) == []
        assert orchestrator.goodbyes == ["the agent was stopped"]


async def test_agent_stops_where_nobody_listens() -> None:
    async with FakeOrchestrator() as orchestrator:
        agent = Agent(config(orchestrator))
    await agent.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await agent.stop()
        await agent.stop()


async def test_twenty_starts_and_stops_leave_nothing_behind() -> None:
    process = psutil.Process()
    async with FakeOrchestrator() as orchestrator:

        async def once(number: int) -> None:
            async with running(orchestrator):
                order = assign(f"s{number}", "basic.make_bytes", params={"size": 100_000}, publish=("data",))
                orchestrator.send(order)
                await orchestrator.last(order.task)
                orchestrator.send(assign(f"t{number}", "basic.sleep", params=_LONG))
                await orchestrator.until(lambda: orchestrator.started(task(f"t{number}")))
            orchestrator.forget()

        def left() -> tuple[int, int, int]:
            gc.collect()
            threads = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
            return process.num_fds(), len(threads), len(asyncio.all_tasks())

        # The first ones open what a process keeps: the resolver's and the poller's handles.
        for number in range(5):
            await once(number)
        settled = left()
        for number in range(5, 25):
            await once(number)
        # A server notices a little later that its client has gone.
        found, end = left(), asyncio.get_running_loop().time() + WAIT_SECONDS
        while (found[0] > settled[0] + 2 or found[1:] != settled[1:]) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
            found = left()
        assert found[1:] == settled[1:]
        assert found[0] <= settled[0] + 2


def test_importing_the_agent_is_light() -> None:
    code = (
        "import sys, starloom.agents.agent; "
        "print([name for name in ('cv2', 'soundfile', 'tokenizers', 'onnxruntime', 'onnx', 'ray') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_moving_values_needs_neither_onnx_runtime_nor_psutil() -> None:
    code = (
        "import sys, starloom.agents.transfer, starloom.agents.dataservice; "
        "print([name for name in ('onnxruntime', 'psutil', 'ray') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_profile_is_there_only_after_the_start() -> None:
    async with FakeOrchestrator() as orchestrator:
        agent = Agent(config(orchestrator))
        assert repr(agent).startswith("<Agent a ")
        with pytest.raises(AssertionError, match="not started"):
            _ = agent.profile
        with pytest.raises(AssertionError, match="not started"):
            _ = agent.runtime
