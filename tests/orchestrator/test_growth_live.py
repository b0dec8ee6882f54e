"""Growth end to end: real agents and stages, over the wire; what is shown of it, and restarts and cancels in the midst."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.orchestrator.live import KINDS, TOKEN, Cluster, gates

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.catalog import Catalog
from starloom.agents.modelstore import ModelStore
from starloom.dag.constellation import Bounds, Constellation, Policy
from starloom.dag.document import load
from starloom.dag.errors import JobFailed
from starloom.dag.facts import StageCommitted, StageStarted
from starloom.dag.validate import problems
from starloom.dag.values import PortType
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob
from starloom.orchestrator.clientlink import ADDRESS_VARIABLE, TOKEN_VARIABLE

PAGE = Path(__file__).parents[2] / "examples" / "read-a-page" / "constellation.yaml"


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address, TOKEN) as made:
        yield made


@pytest.fixture
async def shipped(cluster: Cluster) -> AsyncIterator[Agent]:
    """An agent with the kinds that ship."""
    config = AgentConfig(
        name="shipped", tier="edge", orchestrator=cluster.address, token=TOKEN, slots=2, measures=False
    )
    agent = Agent(config, Catalog(points=()))
    await agent.start()
    await agent.connected.wait()
    yield agent
    await agent.stop()


def sprouting(*adds: str) -> Constellation:
    """A stage behind the gate `grow`, which adds others behind gates of these names; then one that reads the last."""
    for name in ("grow", *adds):
        gates[name] = threading.Event()
    graph = Graph("sprouting")
    text = graph.input("text", PortType.TEXT)
    grow = graph.stage("grow", "test.sprout", text=text, params={"gate": "grow", "adds": list(adds)})
    graph.output("told", graph.stage("tell", "test.text", value=grow["text"])["value"])
    graph.output("grown", grow["text"])
    return graph.build(KINDS)


def counting(until: int, bounds: Bounds) -> Constellation:
    graph = Graph("counting")
    count = graph.stage("count", "basic.count", params={"until": until}, policy=Policy(grow=bounds))
    graph.output("value", graph.stage("total", "basic.add", value=count["value"])["value"])
    return graph.build(Catalog(points=()).kinds)


async def until_started(job: AsyncJob, stage: str) -> None:
    async for event in job.events():
        if isinstance(event.fact, StageStarted) and event.fact.stage == stage:
            return


async def test_a_loop_of_a_shipped_kind_ends_by_itself_or_at_its_bound(shipped: Agent, client: AsyncClient) -> None:
    job = await client.submit(counting(30, Bounds(generations=29)))
    assert await job.result(timeout=60) == {"value": 30}
    info = await job.status()
    assert (info.revision, len(info.stages)) == (30, 31)
    assert {str(stage.name): stage.grown_by for stage in info.stages}["count-r30"] == "count-r29"
    job = await client.submit(counting(30, Bounds(generations=28)))
    with pytest.raises(JobFailed, match="it is generation 28 of count, whose bound is 28"):
        await job.result(timeout=60)


@pytest.mark.models
async def test_a_page_is_read_by_as_many_stages_as_it_has_regions(
    shipped: Agent, client: AsyncClient, model_store: ModelStore, example_folder: Path
) -> None:
    from tests.agents.test_vision_reading import PAGE as LINES

    constellation = load(PAGE.read_bytes())
    assert problems(constellation, Catalog(points=()).kinds) == []
    job = await client.submit(constellation, {"image": (example_folder / "photo.jpg").read_bytes()})
    found: Any = await job.result(timeout=100)
    assert tuple(found["text"].split("\n")) == LINES
    assert (len(found["regions"]), found["meaning"].shape) == (7, (384,))
    stages = {str(stage.name): stage for stage in (await job.status()).stages if stage.grown_by}
    assert [stage.kind for stage in stages.values()] == [*["text.recognise"] * 3, "text.merge"]
    assert {stage.grown_by for stage in stages.values()} == {"read"}


async def test_it_is_shown_before_and_after(
    cluster: Cluster,
    client: AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, cluster.address)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)

    async def starloom(*argv: object) -> Any:
        capfd.readouterr()
        assert await asyncio.to_thread(main, [*map(str, argv), "--json"]) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    original = sprouting("one", "two")
    job = await client.submit(original, {"text": "hello"})
    gates["grow"].set()
    await until_started(job, "grow-0")
    [explained] = await starloom("explain", job.id)
    assert [(row["stage"], row["waits_for"], row["grown_by"]) for row in explained["stages"]] == [
        ("tell", "its upstreams: grow-1; it was sent ahead to node", ""),
        ("grow-0", "node to end it", "grow"),
        ("grow-1", "its upstreams: grow-0; it was sent ahead to node", "grow"),
    ]
    [before] = await starloom("get", job.id, "--revision", 1)
    [after] = await starloom("get", job.id, "--revision", 2)
    assert (list(before["constellation"]["stages"]), before["patch"]) == (["grow", "tell"], None)
    assert after["constellation"]["stages"]["tell"]["in"] == {"value": "grow-1.text"}
    assert after["patch"]["principal"] == "stage grow"
    assert "+ grow-0 (test.gate)" in after["patch"]["changes"]
    for name in ("one", "two"):
        gates[name].set()
    assert await job.result(timeout=60) == {"told": "hello", "grown": "hello"}
    watched = await starloom("watch", job.id)
    assert [line["growth"]["revision"] for line in watched if line.get("growth")] == [2]
    capfd.readouterr()
    assert await asyncio.to_thread(main, ["watch", job.id]) == 0
    assert "grew to revision 2: add grow-0, add grow-1, redirect grow" in capfd.readouterr().out


async def test_growth_that_ends_while_the_orchestrator_is_away_counts(cluster: Cluster, client: AsyncClient) -> None:
    job = await client.submit(sprouting("one"), {"text": "hello"})
    await until_started(job, "grow")
    await cluster.down()
    gates["grow"].set()
    await cluster.up()
    await until_started(job, "grow-0")
    await cluster.down()
    await cluster.up()
    assert (await client.info(job.id)).revision == 2
    gates["one"].set()
    assert await job.result(timeout=60) == {"told": "hello", "grown": "hello"}
    facts = [event.fact async for event in job.events(follow=False) if isinstance(event.fact, StageCommitted)]
    assert [str(fact.stage) for fact in facts if fact.growth is not None] == ["grow"]


async def test_a_job_is_cancelled_while_it_grows(client: AsyncClient) -> None:
    job = await client.submit(sprouting("one"), {"text": "hello"})
    await until_started(job, "grow")
    assert (await job.cancel()).status == "cancelled"
    info = await job.status()
    assert (info.revision, [str(stage.status) for stage in info.stages]) == (1, ["cancelled", "cancelled"])
    job = await client.submit(sprouting("one"), {"text": "hello"})
    gates["grow"].set()
    await until_started(job, "grow-0")
    assert (await job.cancel()).status == "cancelled"


async def test_a_job_is_edited_while_and_after_it_grows(client: AsyncClient) -> None:
    job = await client.submit(sprouting("one"), {"text": "hello"})
    await until_started(job, "grow")
    async with job.edit() as edit:
        edit.add("also", "test.text", value="grow.text")
        edit.output("also", "also.value")
    gates["grow"].set()
    await until_started(job, "grow-0")
    gates["more"] = threading.Event()
    gates["more"].set()
    async with job.edit() as edit:
        edit.add("more", "test.gate", params={"gate": "more"}, text="grow-0.text")
        edit.redirect("grow-0.text", "more.text")
    gates["one"].set()
    assert await job.result(timeout=60) == {"told": "hello", "grown": "hello", "also": "hello"}
    now = (await client.info(job.id)).constellation
    assert now is not None
    feeds = {arc.downstream: arc.upstream for arc in now.dependencies}
    assert feeds == {"tell": "more", "also": "more", "more": "grow-0", "grow-0": "grow"}
