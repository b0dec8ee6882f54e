"""The examples with streams on a whole cluster, by the programs that their README shows."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from starloom.agents.stages.audio import read_sound
from starloom.agents.values import Audio
from starloom.dag.document import load
from starloom.dag.errors import InvalidConstellation
from starloom.dag.facts import StageCommitted
from starloom.dag.ids import StageId
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import EmbeddedCluster

pytestmark = pytest.mark.models

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CLIP_FRAMES = 89


def program(path: str) -> ModuleType:
    """A program below `examples`, as a module."""
    name = "example_" + path.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


async def test_speech_is_written_down_while_it_is_spoken(embedded: EmbeddedCluster, model_store: object) -> None:
    live: Any = program("captions/live.py")
    audio = Audio(*read_sound((EXAMPLES / "spoken-question" / "question.wav").read_bytes()))
    async with AsyncClient(embedded.address, embedded.token) as client:
        whole = (await (await client.submit(live.offline(), {"audio": audio})).result())["text"]
        captions = await live.caption(client, audio)
    assert (
        live.words(captions.text) == live.words(whole) == ["which", "pixels", "does", "this", "page", "call", "markers"]
    )
    *partial, last = captions.arrivals
    assert partial, "nothing was written down before the end"
    assert [one.caption["final"] for one in captions.arrivals] == [*(False for _ in partial), True]
    assert partial[0].caption["end_seconds"] < last.caption["end_seconds"]
    assert live.summary(captions, whole)[-1] == "the words are those of the whole recording"


async def test_each_frame_of_a_video_is_seen_or_counted(embedded: EmbeddedCluster, model_store: object) -> None:
    watch: Any = program("video/watch.py")
    async with AsyncClient(embedded.address, embedded.token) as client:
        watched = await watch.watch(client, (EXAMPLES / "video" / "signing.mkv").read_bytes())
    frames = [one.frame for one in watched.seen]
    assert frames == sorted(set(frames))
    assert len(frames) == watched.summary["seen"] >= 1
    assert watched.summary["seen"] + watched.summary["dropped"] == CLIP_FRAMES
    assert frames[-1] == CLIP_FRAMES - 1, "the newest frame of all was not looked at"
    for one in watched.seen:
        assert [face["score"] > 0.8 for face in one.faces] == [True]
    assert len(watch.summary(watched)) == 4


async def test_a_private_photograph_stays_on_the_device_tier(embedded: EmbeddedCluster, model_store: object) -> None:
    page = load((EXAMPLES / "private-photo" / "constellation.yaml").read_text())
    photo = (EXAMPLES / "spoken-question" / "photo.jpg").read_bytes()
    async with AsyncClient(embedded.address, embedded.token) as client:
        job = await client.submit(page, {"image": photo})
        outputs = await job.result()
        info = await job.status()
        events = [event.fact async for event in job.events()]
    tiers = {stage.name: stage.tier for stage in info.stages}
    private = ("see", "faces", "find_text", "read", "page")
    assert tiers == {**dict.fromkeys(private, "device"), "embed": "cloud", "retrieve": "cloud"}
    assert "Region-based segmentation" in outputs["text"]
    assert len(outputs["passages"]) > 0
    results = {fact.stage: fact.outputs for fact in events if isinstance(fact, StageCommitted)}
    for name in ("see", "faces", "find_text", "read"):
        for ref in results[StageId(name)].values():
            assert ref.inline is None, f"{name} gave {ref.bytes} bytes along with its report"
            assert ref.holder in ("mic-speaker", "camera")
    why = {str(stage.name): stage.private for stage in info.stages}
    kept_off = "not on cloud (cloud), edge-1 (edge), edge-2 (edge)"
    assert why["see"] == f"data is private to device: image; {kept_off}"
    assert why["page"] == f"lines is private to device: image -> see -> read; {kept_off}"
    assert why["embed"] == ""


async def test_what_would_let_it_leave_is_refused(embedded: EmbeddedCluster) -> None:
    text = (EXAMPLES / "private-photo" / "constellation.yaml").read_text()
    shut = load(text.replace(", declassify: true", ""))
    async with AsyncClient(embedded.address, embedded.token) as client:
        with pytest.raises(InvalidConstellation) as raised:
            await client.submit(shut, {"image": b""})
    assert "stages.embed.in.text: is private to device (image -> see -> read -> page -> embed)" in str(raised.value)
    assert "stages.retrieve.in.embedding: is private to device" in str(raised.value)


async def test_a_question_is_answered_by_the_best_model_that_a_node_may_run(
    embedded: EmbeddedCluster, model_store: object
) -> None:
    asked = load((EXAMPLES / "model-sizes" / "constellation.yaml").read_text())
    page = "The lighthouse was built in 1897 by William Douglass. It is 54 metres high."
    async with AsyncClient(embedded.address, embedded.token) as client:
        # The deadline is for a board without anything else to do.
        job = await client.submit(
            msgspec.structs.replace(asked, deadline_seconds=0.0),
            {"question": "Who built the lighthouse?", "page": page},
        )
        outputs = await job.result()
        info = await client.info(job.id)
    (stage,) = info.stages
    assert (stage.variant, stage.tier, info.degraded) == ("middle", "device", ())
    assert "William Douglass" in outputs["answer"]
    assert outputs["details"]["model"] == "starloom-3m"
