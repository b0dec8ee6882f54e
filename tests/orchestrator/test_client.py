"""The client against a real orchestrator and a real agent, over the wire, in one process."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.orchestrator.live import KINDS, TOKEN, Cluster, copying, failing, gated, gates

from starloom import Client, Graph
from starloom.agents.values import Audio
from starloom.dag import facts, limits
from starloom.dag.constellation import OnFailure, Requirements, Tier
from starloom.dag.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Infeasible,
    InvalidConstellation,
    InvalidInput,
    JobFailed,
    NotFound,
)
from starloom.dag.facts import JobStatus
from starloom.dag.stagestate import StageStatus
from starloom.dag.values import PortType
from starloom.orchestrator.client import AsyncClient

LARGE = limits.INLINE_VALUE_BYTES_MAX + 1


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address, TOKEN) as made:
        yield made


async def test_values_of_every_type_come_back(client: AsyncClient) -> None:
    rng = np.random.default_rng(1)
    inputs: dict[str, Any] = {
        "text": "Grüße " * LARGE,
        "json": {"b": [1, None], "a": "x"},
        "bytes": b"\x00" * LARGE,
        "tensor": rng.normal(size=(3, LARGE)).astype(np.float32),
        "image": rng.integers(0, 255, (20, 30, 3), np.uint8),
        "audio": Audio(rng.normal(size=9).astype(np.float32), 16_000),
    }
    job = await client.submit(copying(*PortType), inputs)
    outputs = await job.result(timeout=60)
    assert set(outputs) == set(inputs)
    assert [outputs[name] for name in ("text", "json", "bytes")] == [inputs[name] for name in ("text", "json", "bytes")]
    np.testing.assert_array_equal(outputs["tensor"], inputs["tensor"])
    np.testing.assert_array_equal(outputs["image"], inputs["image"])
    np.testing.assert_array_equal(outputs["audio"].samples, inputs["audio"].samples)
    assert outputs["audio"].sample_rate_hz == 16_000


async def test_a_path_is_the_bytes_of_its_file(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"1234")
    job = await client.submit(copying(PortType.BYTES), {"bytes": tmp_path / "data"})
    assert await job.result(timeout=60) == {"bytes": b"1234"}


async def test_wrong_inputs_are_all_told_before_anything_is_sent(client: AsyncClient) -> None:
    what = copying(PortType.TEXT, PortType.JSON, PortType.BYTES)
    with pytest.raises(InvalidInput) as raised:
        await client.submit(what, {"text": 3, "bytes": Path("/does/not/exist"), "other": 1})
    assert {problem.place for problem in raised.value.problems} == {
        "inputs.text",
        "inputs.json",
        "inputs.bytes",
        "inputs.other",
    }
    assert await client.jobs() == []


async def test_a_wrong_constellation_comes_back_with_every_place(client: AsyncClient) -> None:
    graph = Graph("wrong")
    first = graph.stage("first", "test.nothing")
    graph.stage("second", "test.fail", after=[first])
    with pytest.raises(InvalidConstellation) as raised:
        await client.submit(graph.build())
    places = [problem.place for problem in raised.value.problems]
    assert places == ["stages.first.kind", "stages.second.in.text"]
    assert await client.jobs() == []


async def test_text_that_is_no_unicode_is_told_with_its_place(client: AsyncClient) -> None:
    graph = Graph("half", labels={"team": "\ud800"})
    graph.stage("a", "test.text", value=graph.input("text", PortType.TEXT))
    with pytest.raises(InvalidInput, match=r"labels\.team: the value holds"):
        await client.submit(graph.build(), {"text": "x"})
    with pytest.raises(InvalidInput, match=r"(?s)labels\.team: the value holds.*key: holds"):
        await client.submit(copying(PortType.TEXT), {"text": "x"}, key="\ud800", labels={"team": "\ud800"})
    assert await client.jobs() == []


async def test_what_no_node_can_run_is_infeasible(client: AsyncClient) -> None:
    graph = Graph("nowhere")
    text = graph.input("text", PortType.TEXT)
    graph.stage("high", "test.text", value=text, require=Requirements(tiers=(Tier.CLOUD,)))
    graph.stage("deaf", "test.text", value=text, require=Requirements(labels={"sensor": "microphone"}))
    with pytest.raises(Infeasible) as raised:
        await client.submit(graph.build(KINDS), {"text": "x"})
    places = [problem.place for problem in raised.value.problems]
    assert len(places) == 2
    assert places[0].startswith("stages.high")
    assert places[1].startswith("stages.deaf")
    assert await client.jobs() == []


async def test_outputs_stream_as_their_stages_end(client: AsyncClient) -> None:
    job = await client.submit(gated("a", "b"), {"text": "x"})
    stream = job.stream()
    gates["b"].set()
    assert await anext(stream) == ("b", "x")
    assert (await job.status()).status is JobStatus.RUNNING
    gates["a"].set()
    assert [item async for item in stream] == [("a", "x")]


async def test_a_streams_end_says_how_the_job_ended(client: AsyncClient) -> None:
    job = await client.submit(failing("a"), {"text": "no face"})
    with pytest.raises(JobFailed, match="no face"):
        [item async for item in job.stream()]


async def test_defaults_stand_in_for_a_failed_stage(client: AsyncClient) -> None:
    what = failing("a", on_failure=OnFailure.DEFAULT, defaults={"text": "nobody"})
    job = await client.submit(what, {"text": "no face"})
    assert [item async for item in job.stream()] == [("a", "nobody")]
    assert await job.result() == {"a": "nobody"}


async def test_a_failed_job_names_every_failed_stage(client: AsyncClient) -> None:
    job = await client.submit(failing("a"), {"text": "no face"})
    with pytest.raises(JobFailed) as raised:
        await job.result(timeout=60)
    [problem] = raised.value.problems
    assert problem.place == "stages.a"
    assert "no face" in problem.what
    assert "on node" in problem.what


async def test_a_job_past_its_deadline_fails_and_says_why(client: AsyncClient) -> None:
    job = await client.submit(gated("a"), {"text": "x"}, deadline_seconds=0.3)
    with pytest.raises(JobFailed, match=r"deadline exceeded: 0.3 s from its acceptance; 1 of 1") as raised:
        await job.result(timeout=60)
    assert raised.value.cause == "DeadlineExceeded"
    info = await job.status()
    assert (info.status, info.cause) == (JobStatus.FAILED, "DeadlineExceeded")


async def test_a_deadline_that_is_none_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidInput, match="deadline_seconds"):
        await client.submit(gated("a"), {"text": "x"}, deadline_seconds=-1.0)


async def test_a_result_in_time_or_the_job_goes_on(client: AsyncClient) -> None:
    job = await client.submit(gated("a"), {"text": "x"})
    with pytest.raises(DeadlineExceeded):
        await job.result(timeout=0.01)
    gates["a"].set()
    assert await job.result(timeout=60) == {"a": "x"}


async def test_cancel_returns_when_nothing_runs_any_more(client: AsyncClient) -> None:
    job = await client.submit(gated("a"), {"text": "x"})
    waiting = asyncio.create_task(job.result())
    async for event in job.events():
        if isinstance(event.fact, facts.StageStarted):
            break
    stopped = await job.cancel("enough")
    assert (stopped.job, stopped.status) == (job.id, JobStatus.CANCELLED)
    with pytest.raises(Cancelled):
        await waiting
    info = await job.status()
    assert [stage.status for stage in info.stages] == [StageStatus.CANCELLED]
    assert (await job.cancel()).status is JobStatus.CANCELLED


async def test_a_job_is_found_again_by_id_and_by_key(client: AsyncClient, cluster: Cluster) -> None:
    what = copying(PortType.TEXT)
    first = await client.submit(what, {"text": "x"}, key="mine", labels={"who": "me"})
    assert not first.existing
    again = await client.submit(what, {"text": "x"}, key="mine", labels={"who": "me"})
    assert (again.id, again.existing) == (first.id, True)
    with pytest.raises(Conflict):
        await client.submit(what, {"text": "y"}, key="mine")
    async with AsyncClient(cluster.address, TOKEN) as other:
        assert (await other.job("mine")).id == first.id
        assert await (await other.job(first.id)).result(timeout=60) == {"text": "x"}
        assert [item async for item in (await other.job("mine")).stream()] == [("text", "x")]
        with pytest.raises(NotFound):
            await other.job("nobody")


async def test_jobs_are_listed_with_the_newest_first(client: AsyncClient) -> None:
    ids = [(await client.submit(copying(PortType.TEXT), {"text": text})).id for text in "abc"]
    assert [info.id for info in await client.jobs()] == ids[::-1]
    assert [info.id for info in await client.jobs(limit=1)] == ids[-1:]


async def test_a_job_tells_of_its_stages(client: AsyncClient) -> None:
    job = await client.submit(copying(PortType.TEXT), {"text": "x"}, key="k", labels={"who": "me"})
    await job.result(timeout=60)
    info = await job.status()
    assert (info.key, info.name, info.labels, info.revision) == ("k", "copying", {"who": "me"}, 1)
    assert info.status is JobStatus.SUCCEEDED
    assert info.ended
    assert 0 < info.submitted_unix_nanos <= info.ended_unix_nanos
    assert info.constellation == copying(PortType.TEXT)
    [stage] = info.stages
    assert (stage.name, stage.kind, stage.status) == ("text", "test.text", StageStatus.SUCCEEDED)
    assert (stage.node, stage.tier, stage.target, stage.attempts) == ("node", "edge", "cpu", 1)


async def test_nodes_and_kinds_are_those_of_the_agents(client: AsyncClient) -> None:
    [node] = await client.nodes()
    assert (node.name, node.state, node.profile.tier) == ("node", "online", "edge")
    assert node.profile.kinds == tuple(KINDS)
    assert dict(await client.kinds()) == dict(KINDS)
    assert (await client.cluster()).epoch == 1


async def test_events_can_be_read_from_any_offset(client: AsyncClient) -> None:
    job = await client.submit(copying(PortType.TEXT), {"text": "x"})
    every = [event async for event in job.events()]
    assert isinstance(every[0].fact, facts.JobSubmitted)
    assert isinstance(every[-1].fact, facts.JobEnded)
    assert [event async for event in job.events(after=every[1].offset)] == every[2:]
    assert [event async for event in job.events(after=every[-1].offset)] == []
    of_all = [event async for event in client.events(follow=False)]
    assert [event for event in of_all if getattr(event.fact, "job", "") == job.id] == every


async def test_followers_live_through_a_restart(client: AsyncClient, cluster: Cluster) -> None:
    job = await client.submit(gated("a"), {"text": "x"})
    waiting = asyncio.create_task(job.result())
    seen: list[int] = []
    running = asyncio.Event()

    async def follow() -> None:
        async for event in job.events():
            seen.append(event.offset)
            if isinstance(event.fact, facts.StageStarted):
                running.set()

    following = asyncio.create_task(follow())
    await running.wait()
    await cluster.down()
    await cluster.up()
    gates["a"].set()
    assert await asyncio.wait_for(waiting, 60) == {"a": "x"}
    await asyncio.wait_for(following, 60)
    assert seen == [event.offset async for event in job.events()]
    assert (await client.cluster()).epoch == 2


async def test_a_submission_waits_for_an_orchestrator_that_is_being_restarted(
    client: AsyncClient, cluster: Cluster
) -> None:
    await cluster.down()
    submitting = asyncio.create_task(client.submit(copying(PortType.BYTES), {"bytes": b"x" * LARGE}))
    await cluster.up()
    job = await asyncio.wait_for(submitting, 60)
    assert await job.result(timeout=60) == {"bytes": b"x" * LARGE}
    assert [info.id for info in await client.jobs()] == [job.id]


async def test_a_proxy_for_the_web_is_passed_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    cluster = Cluster(tmp_path / "orchestrator")
    await cluster.up()
    async with cluster.agent(), AsyncClient(cluster.address, TOKEN) as client:
        job = await client.submit(copying(PortType.BYTES), {"bytes": b"x" * LARGE})
        assert await job.result(timeout=60) == {"bytes": b"x" * LARGE}
    await cluster.down()


async def test_problems_are_those_by_the_nodes_kinds(client: AsyncClient) -> None:
    assert await client.problems(copying(PortType.TEXT)) == []
    graph = Graph("wrong")
    graph.stage("first", "basic.noop")
    [problem] = await client.problems(graph.build())
    assert problem.place == "stages.first.kind"
    with pytest.raises(InvalidInput) as raised:
        await client.submit(graph.build(), {"other": 1})
    assert [problem.place for problem in raised.value.problems] == ["stages.first.kind", "inputs.other"]


async def in_thread(cluster: Cluster, work: Callable[[Client], Any]) -> Any:
    def run() -> Any:
        with Client(cluster.address, TOKEN) as client:
            return work(client)

    return await asyncio.to_thread(run)


async def test_the_synchronous_client_does_the_same(cluster: Cluster) -> None:
    def work(client: Client) -> None:
        job = client.submit(copying(PortType.TEXT), {"text": "x"}, key="k")
        assert job.result(timeout=60) == {"text": "x"}
        assert list(job.stream()) == [("text", "x")]
        again = client.job("k")
        assert (again.id, again.revision, again.existing) == (job.id, 1, False)
        assert again.status() == client.info(job.id)
        events = list(job.events())
        assert isinstance(events[-1].fact, facts.JobEnded)
        assert [event for event in client.events(follow=False) if event in events] == events
        assert [info.id for info in client.jobs()] == [job.id]
        assert [node.name for node in client.nodes()] == ["node"]
        assert client.cluster().epoch == 1
        assert "test.text" in client.kinds()
        assert client.problems(copying(PortType.TEXT)) == []
        assert client.fetch(job.id, "text", again.status().outputs["text"]) == "x"
        assert job.cancel().status is JobStatus.SUCCEEDED

    await in_thread(cluster, work)


async def test_the_synchronous_client_raises_the_same(cluster: Cluster) -> None:
    def work(client: Client) -> None:
        job = client.submit(gated("a"), {"text": "x"})
        with pytest.raises(DeadlineExceeded):
            job.result(timeout=0.01)
        for _ in job.events():
            break
        job.cancel()
        with pytest.raises(Cancelled):
            list(job.stream())
        with pytest.raises(NotFound):
            client.job("nobody")

    await in_thread(cluster, work)


async def test_many_clients_in_many_threads(cluster: Cluster) -> None:
    async def run(text: str) -> None:
        def work(client: Client) -> Any:
            return client.submit(copying(PortType.TEXT), {"text": text}).result(timeout=60)

        assert await in_thread(cluster, work) == {"text": text}

    await asyncio.gather(*(run(str(n)) for n in range(8)))


async def test_a_process_may_end_with_a_stream_half_read_and_a_client_open(cluster: Cluster) -> None:
    script = """
        import sys
        from starloom import Client
        client = Client(sys.argv[1], sys.argv[2])
        events = client.job(sys.argv[3]).events()
        print(next(events).offset, flush=True)
        kept = [events]
        kept.append(kept)
    """
    async with AsyncClient(cluster.address, TOKEN) as client:
        job = await client.submit(gated("a"), {"text": "x"})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            textwrap.dedent(script),
            cluster.address,
            TOKEN,
            job.id,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (0, b"")
    assert int(out) > 0
