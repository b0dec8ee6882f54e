"""Patches end to end: a real orchestrator and real agents, over the wire, while stages wait at gates."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.orchestrator.live import KINDS, TOKEN, Cluster, Stages, gated, gates

from starloom import Client, Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.catalog import Catalog
from starloom.dag.constellation import Constellation, Join, On, Policy, Requirements, Retry, Tier
from starloom.dag.document import load
from starloom.dag.draft import apply
from starloom.dag.edit import Edit
from starloom.dag.errors import Conflict, InvalidInput, NotFound, PatchRefused
from starloom.dag.facts import JobPatched, StageStarted, StageSuperseded
from starloom.dag.patch import Patch, Rewire
from starloom.dag.patchdoc import load_patch
from starloom.dag.values import PortType
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address, TOKEN) as made:
        yield made


def gate(*names: str) -> None:
    for name in names:
        gates[name] = threading.Event()


def spoken() -> Constellation:
    """Hears and recognises, each behind a gate of its name, then speaks."""
    gate("hear", "words")
    graph = Graph("spoken")
    hear = graph.stage("hear", "test.gate", text=graph.input("text", PortType.TEXT), params={"gate": "hear"})
    words = graph.stage("words", "test.gate", text=hear["text"], params={"gate": "words"})
    speak = graph.stage("speak", "test.text", value=words["text"], require=Requirements(tiers=(Tier.EDGE,)))
    graph.output("answer", speak["value"])
    return graph.build(KINDS)


async def until_started(job: AsyncJob, *stages: str) -> None:
    missing = set(stages)
    async for event in job.events():
        if isinstance(event.fact, StageStarted):
            missing.discard(event.fact.stage)
        if not missing:
            return


async def test_a_running_job_gets_a_recogniser_a_stage_and_another_place(cluster: Cluster, client: AsyncClient) -> None:
    config = AgentConfig(name="far", tier="cloud", orchestrator=cluster.address, token=TOKEN, slots=2, measures=False)
    far = Agent(config, Stages())
    await far.start()
    await far.connected.wait()
    job = await client.submit(spoken(), {"text": "hello"})
    await until_started(job, "hear")
    gate("better")
    async with job.edit(if_revision=1, why="a better recogniser") as edit:
        edit.replace("words", params={"gate": "better"})
        edit.add("short", "test.text", value="words.text")
        edit.output("short", "short.value")
        edit.move("speak", tier="cloud")
    assert edit.patched is not None
    assert edit.patched.revision == job.revision == 2
    for name in ("hear", "better"):
        gates[name].set()
    assert await job.result(timeout=60) == {"answer": "hello", "short": "hello"}
    info = await job.status()
    assert {str(stage.name): stage.node for stage in info.stages}["speak"] == "far"
    [patch] = info.patches
    assert (patch.revision, patch.why, patch.principal) == (2, "a better recogniser", "local")
    assert '~ words: gate "words" -> "better"' in patch.changes
    assert "+ output short: short.value" in patch.changes
    facts = [event.fact async for event in job.events(follow=False) if isinstance(event.fact, JobPatched)]
    assert [fact.operations for fact in facts] == [("replace words", "add short", "outputs short", "move speak")]
    await far.stop()


async def test_what_was_given_to_an_agent_and_waits_there_is_taken_back(client: AsyncClient) -> None:
    job = await client.submit(gated("a", "b", "c", "d", "e"), {"text": "x"})
    await until_started(job, "a", "b", "c", "d")
    gate("other")
    async with job.edit() as edit:
        edit.replace("e", params={"gate": "other"})
    for name in ("a", "b", "c", "d", "other"):
        gates[name].set()
    assert len(await job.result(timeout=60)) == 5
    given = [event.fact async for event in job.events(follow=False) if isinstance(event.fact, StageSuperseded)]
    assert [(fact.stage, fact.token.attempt, fact.death) for fact in given] == [("e", 1, False)]


async def test_what_started_runs_again_only_if_that_is_said(client: AsyncClient) -> None:
    job = await client.submit(spoken(), {"text": "hello"})
    await until_started(job, "hear")
    gate("again")
    with pytest.raises(PatchRefused, match="hear: runs on node, and the patch changes it; say restart"):
        async with job.edit() as edit:
            edit.replace("hear", params={"gate": "again"})
    async with job.edit(restart=True) as edit:
        edit.replace("hear", params={"gate": "again"})
    for name in ("again", "words"):
        gates[name].set()
    assert await job.result(timeout=60) == {"answer": "hello"}
    with pytest.raises(Conflict, match="is succeeded; only a job that runs can be changed"):
        async with job.edit() as edit:
            edit.remove("hear")


async def test_a_refusal_tells_all_and_an_error_in_the_block_changes_nothing(client: AsyncClient) -> None:
    job = await client.submit(spoken(), {"text": "hello"})
    edit = job.edit(if_revision=3)
    edit.rewire("words", wait=["speak"])
    edit.replace("speak", kind="test.none")
    with pytest.raises(PatchRefused) as error:
        await job.patch(edit.patch())
    places = {problem.place for problem in error.value.problems}
    assert {"if_revision", "stages.speak.kind"} <= places
    assert "would wait for itself" in str(error.value)
    with suppress(ZeroDivisionError):
        async with job.edit() as edit:
            edit.cancel_stage("speak" * (1 // 0))
    assert edit.patched is None
    with pytest.raises(InvalidInput, match="is no patch"):
        async with job.edit():
            pass
    assert (await job.status()).revision == 1


async def test_a_patch_is_taken_once_kept_over_a_restart_and_undone(cluster: Cluster, client: AsyncClient) -> None:
    original = spoken()
    job = await client.submit(original, {"text": "hello"})
    patch = Patch(operations=load_patch("patch: [cancel_stage: speak]").operations, id="once")
    first = await job.patch(patch)
    await cluster.down()
    await cluster.up()
    again = await job.patch(patch)
    assert (first.revision, again.revision, first.existing, again.existing) == (2, 2, False, True)
    assert (await client.info(job.id, 1)).constellation == original
    assert (await client.info(job.id, 2)).constellation != original
    with pytest.raises(NotFound, match="has no revision 3"):
        await client.info(job.id, 3)
    assert (await job.undo(2, restart=True)).revision == 3
    assert (await client.info(job.id)).constellation == original
    for name in ("hear", "words"):
        gates[name].set()
    assert await job.result(timeout=60) == {"answer": "hello"}


async def test_the_plain_client_edits_and_undoes(cluster: Cluster) -> None:
    def work() -> None:
        with Client(cluster.address, TOKEN) as client:
            original = spoken()
            job = client.submit(original, {"text": "hello"})
            with job.edit(why="so") as edit:
                edit.cancel_stage("speak")
            assert edit.patched is not None
            assert edit.patched.revision == 2
            with pytest.raises(PatchRefused), job.edit() as edit:
                edit.remove("nobody")
            assert job.undo(2, restart=True).revision == 3
            assert job.patch(load_patch("patch: [cancel_stage: speak]")).revision == 4
            assert client.info(job.id, 1).constellation == original
            for name in ("hear", "words"):
                gates[name].set()
            assert job.result(timeout=60) == {}

    await asyncio.to_thread(work)


def test_the_example_fits_the_constellation_beside_it(example_folder: Path) -> None:
    constellation = load((example_folder / "constellation.yaml").read_bytes())
    patch = load_patch((example_folder / "patch.yaml").read_bytes())
    patched, difference = apply(constellation, patch, Catalog().kinds)
    assert patched.stages.keys() - constellation.stages.keys() == {"repeat"}
    assert difference.outputs.keys() == {"question"}


def test_every_edit_has_its_operation() -> None:
    inner = load("{api_version: starloom/v1, name: n, inputs: {t: text}, stages: {s: {kind: k, in: {x: $t}}}}")
    edit = Edit(if_revision=2, restart=True, why="w", id="i")
    edit.add(
        "a", "k", require=Requirements(node="n"), policy=Policy(retry=Retry(times=0)), after="b", x="$in", join=Join.ANY
    )
    edit.rewire("a", inputs={"x": None}, y={"from": "b.c", "on": "completion"}, after=[], join=Join.ALL)
    edit.rewire("a", wait=["b"], free=[{"stage": "c", "on": "completion"}])
    edit.replace("a", "k2", {"p": 1}, "m")
    edit.move("a", Requirements(target="npu"), tier="cloud")
    edit.set_policy("a", Policy(timeout_seconds=2.0))
    edit.cancel_stage("a")
    edit.resume_stage("a")
    edit.splice("p", inner, {"t": "a.b"}, {"o": ["a.x"]})
    edit.output("o", None)
    edit.remove("a")
    patch = edit.patch()
    assert (patch.if_revision, patch.restart, patch.why, patch.id) == (2, True, "w", "i")
    names = [str(operation.__struct_config__.tag) for operation in patch.operations]
    assert names == [
        "add", "rewire", "rewire", "replace", "move", "set_policy",
        "cancel_stage", "resume_stage", "splice", "outputs", "remove",
    ]  # fmt: skip
    rewire = patch.operations[1]
    assert isinstance(rewire, Rewire)
    assert rewire.unfed == ("x",)
    assert rewire.dependencies[0].on is On.COMPLETION
    assert repr(edit) == "<Edit of 11 operations>"
