"""Live captions of a sound file, played as a microphone would give it, on a cluster of its own.

    python examples/captions/live.py [SOUND]

Prints each caption with its delay: from the end of the sound that it covers until it is here. At the end the words
are compared with those that the whole recording gives.
"""

import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from starloom import AsyncClient, Graph
from starloom.agents.stages.audio import read_sound
from starloom.agents.values import Audio
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.document import load
from starloom.dag.values import PortType
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT

HERE = Path(__file__).parent
FRAME_SECONDS = 0.032


class Arrival(NamedTuple):
    """A caption, and when it came: seconds of the sound's own time."""

    caption: dict[str, Any]
    seconds: float

    @property
    def delay(self) -> float:
        return self.seconds - float(self.caption["end_seconds"])


class Captions(NamedTuple):
    """All captions of a sound, and the text at the end."""

    arrivals: list[Arrival]
    text: str

    @property
    def first_seconds(self) -> float:
        """From the first spoken word to the first text, in seconds; infinite if nobody spoke."""
        first = next((one for one in self.arrivals if one.caption["text"]), None)
        return first.seconds - first.caption["start_seconds"] if first else float("inf")

    @property
    def delays(self) -> list[float]:
        """Of the partial captions, in seconds."""
        return [one.delay for one in self.arrivals if not one.caption["final"]]


async def caption(
    client: AsyncClient, audio: Audio, pace: float = 1.0, show: Callable[[Arrival], None] = lambda _: None
) -> Captions:
    """Feeds a sound frame by frame, `pace` times as fast as real time, and takes its captions as they come."""
    job = await client.submit(load((HERE / "constellation.yaml").read_text("utf-8")))
    began = time.monotonic()
    feeding = asyncio.create_task(_feed(job, audio, pace, began))
    arrivals = []
    async with aclosing(job.stream("captions")) as captions:
        async for value in captions:
            arrivals.append(Arrival(value, (time.monotonic() - began) * pace))
            show(arrivals[-1])
    await feeding
    return Captions(arrivals, (await job.result())["text"])


async def _feed(job: Any, audio: Audio, pace: float, began: float) -> None:
    size = round(FRAME_SECONDS * audio.sample_rate_hz)
    for start in range(0, len(audio.samples), size):
        frame = audio.samples[start : start + size]
        due = began + (start + len(frame)) / audio.sample_rate_hz / pace
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await job.send("microphone", Audio(frame, audio.sample_rate_hz), at=start / audio.sample_rate_hz)
    await job.close("microphone")


def offline() -> Constellation:
    """The whole recording at once, as the other examples hear it."""
    graph = Graph("offline")
    sound = graph.input("audio", PortType.AUDIO)
    speech = graph.stage("speech", "speech.detect", audio=sound)
    text = graph.stage(
        "transcribe", "speech.transcribe", audio=speech["audio"], require=Requirements(tiers=(Tier.EDGE,))
    )
    graph.output("text", text["text"])
    return graph.build()


def words(text: str) -> list[str]:
    """A text's words, without case and marks."""
    return re.sub("[^a-z' ]", "", text.lower().replace("-", " ")).split()


def summary(captions: Captions, whole: str) -> list[str]:
    """What there is to say of a run, a line each; `whole` is the text of the whole recording."""
    delays = captions.delays
    lines = [f"first text {captions.first_seconds:.2f} s after the first word was begun"]
    if delays:
        median, p95 = np.percentile(delays, (50, 95))
        lines.append(
            f"{len(delays)} partial captions, {median:.2f} s behind in the median, {p95:.2f} s at the 95th percentile"
        )
    same = words(captions.text) == words(whole)
    lines.append("the words are those of the whole recording" if same else f"the whole recording gives: {whole}")
    return lines


def _show(one: Arrival) -> None:
    mark = "=" if one.caption["final"] else "~"
    print(f"{one.seconds:6.2f} s {mark} {one.caption['text']}   ({one.delay:.2f} s behind)")


async def _run(name: str, audio: Audio, address: str, token: str) -> None:
    async with AsyncClient(address, token) as client:
        whole = (await (await client.submit(offline(), {"audio": audio})).result())["text"]
        for run in ("models are loaded in it", "models are there"):
            print(f"\n{name}, {audio.seconds:.1f} s of sound; {run}")
            print(*summary(await caption(client, audio, show=_show), whole), sep="\n")


def main() -> None:
    """Starts a cluster, and captions a file on it twice."""
    sound = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "spoken-question" / "question.wav"
    audio = Audio(*read_sound(sound.read_bytes()))
    with tempfile.TemporaryDirectory() as folder, EmbeddedCluster(DEFAULT, Path(folder) / "cluster") as cluster:
        asyncio.run(_run(sound.name, audio, cluster.address, cluster.token))


if __name__ == "__main__":
    main()
