"""The examples with streams on a whole cluster, by the programs that their README shows."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from starloom.agents.stages.audio import read_sound
from starloom.agents.values import Audio
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
