"""Faces in a video, played as a camera would give it, on a cluster of its own; the newest frame first.

    python examples/video/watch.py [VIDEO]

Prints what is found, and when. A machine that cannot keep up drops frames, and counts them; no
queue builds up, so what is shown stays as fresh.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from starloom import AsyncClient
from starloom.dag.document import load
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT

HERE = Path(__file__).parent


class Seen(NamedTuple):
    """What was found in a frame. `seconds`: when it came, and `at`: when the camera gave it, both from the first result on."""

    frame: int
    faces: list[dict[str, Any]]
    seconds: float
    at: float


class Watched(NamedTuple):
    """All that was found, when the first of it was there after the submission, and the summary of the stage."""

    seen: list[Seen]
    first_seconds: float
    summary: dict[str, Any]

    @property
    def lags(self) -> list[float]:
        """How old each result's frame was when it came, in seconds beyond the freshest of them."""
        ages = [one.seconds - one.at for one in self.seen]
        return [age - min(ages) for age in ages]


async def watch(client: AsyncClient, video: bytes) -> Watched:
    """Plays a video and takes what is found as it comes."""
    began = time.monotonic()
    job = await client.submit(load((HERE / "constellation.yaml").read_text("utf-8")), {"video": video})
    seen: list[Seen] = []
    first = first_at = 0.0
    async with aclosing(job.chunks("faces")) as chunks:
        async for chunk in chunks:
            now, at = time.monotonic(), chunk.at or 0.0
            if not seen:
                first, first_at = now, at
            seen.append(Seen(chunk.value["frame"], chunk.value["faces"], now - first, at - first_at))
    return Watched(seen, first - began if seen else float("inf"), (await job.result())["summary"])


def summary(watched: Watched) -> list[str]:
    """What there is to say of a run, a line each."""
    lines = [f"first result {watched.first_seconds:.2f} s after the submission"]
    told = watched.summary
    lines.append(f"{told['seen']} frames seen, {told['dropped']} dropped")
    if watched.seen:
        times = [told[f"frame_seconds_{name}"] for name in ("median", "p95", "most")]
        lines.append(
            "a frame took {:.3f} s in the median, {:.3f} s at the 95th percentile, {:.3f} s at most".format(*times)
        )
        late = np.percentile(watched.lags, (50, 95)).tolist()
        lines.append("older than the freshest by {:.3f} s in the median, {:.3f} s at the 95th percentile".format(*late))
    return lines


async def _run(video: bytes, address: str, token: str) -> None:
    async with AsyncClient(address, token) as client:
        for run in ("models are loaded in it", "models are there"):
            watched = await watch(client, video)
            print(f"\n{run}")
            for one in watched.seen:
                boxes = ", ".join(
                    f"{face['score']:.2f} at {[round(edge) for edge in face['box']]}" for face in one.faces
                )
                print(f"{one.seconds:6.2f} s  frame {one.frame:3}  {boxes or 'nobody'}")
            print(*summary(watched), sep="\n")


def main() -> None:
    """Starts a cluster, and plays a file on it twice."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "signing.mkv"
    with tempfile.TemporaryDirectory() as folder, EmbeddedCluster(DEFAULT, Path(folder) / "cluster") as cluster:
        asyncio.run(_run(path.read_bytes(), cluster.address, cluster.token))


if __name__ == "__main__":
    main()
