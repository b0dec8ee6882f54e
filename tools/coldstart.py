"""What loading ahead spares a stage: kinds with models, each in a process where nothing is loaded, with and without it.

Core, runtime and models of one agent with two slots, nobody takes its reports over a network. The stage awaits another one, which
sleeps UPSTREAM_SECONDS in the other slot: as long as an upstream elsewhere would take. Prints medians: what the report calls
`load`, and seconds from the upstream's end to the stage's, cold; and the same again at once, warm.

    python tools/coldstart.py [repetitions]
"""

import asyncio
import multiprocessing
import statistics
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from starloom.agents import values
from starloom.agents.agent import ModelPool
from starloom.agents.catalog import Catalog
from starloom.agents.core import AgentCore
from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Await, Finished, Input, Report
from starloom.agents.runtime import Runtime
from starloom.agents.transfer import Transfer
from starloom.agents.values import Audio
from starloom.dag.facts import Consumed
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.values import PortType, ValueRef

UPSTREAM_SECONDS = 2.0
FIRST = FencingToken(Epoch(1), Attempt(1))
AGENT = AgentId("a")
WAYS = ("alone", "ahead")

IMAGE = np.full((480, 640, 3), 200, np.uint8)
BOXES = [{"score": 1.0, "box": [[10, 10], [200, 10], [200, 40], [10, 40]]}]
INPUTS: dict[str, dict[str, tuple[PortType, Any]]] = {
    "text.embed": {"text": (PortType.TEXT, "Where is the nearest harbour?")},
    "text.recognise": {"image": (PortType.IMAGE, IMAGE), "boxes": (PortType.JSON, BOXES)},
    "vision.faces": {"image": (PortType.IMAGE, IMAGE)},
    "speech.transcribe": {"audio": (PortType.AUDIO, Audio(np.zeros(16_000, np.float32), 16_000))},
    "speech.synthesise": {"text": (PortType.TEXT, "Yes.")},
}


class Seconds(NamedTuple):
    """Of a stage: what it spent on loading, and from the end of what it awaited to its own."""

    load: float
    since: float


class _Told:
    """Takes the reports of one agent."""

    def __init__(self) -> None:
        self._ended: dict[StageId, asyncio.Future[tuple[Finished, float]]] = {}

    def of(self, stage: str) -> asyncio.Future[tuple[Finished, float]]:
        return self._ended.setdefault(StageId(stage), asyncio.get_running_loop().create_future())

    def __call__(self, report: Report) -> None:
        if isinstance(report, Finished):
            self.of(report.task.stage).set_result((report, time.perf_counter()))


def run(kind: str, way: str, pipe: Any) -> None:
    """In a process of its own: sends the cold stage's seconds, and the warm one's."""
    catalog = Catalog(points=())
    # As an agent does before it serves.
    catalog.usable()
    pipe.send(asyncio.run(_run(catalog, kind, way)))


async def _run(catalog: Catalog, kind: str, way: str) -> tuple[Seconds, Seconds]:
    told, transfer = _Told(), Transfer("token")
    core = AgentCore(AGENT, 2, loading=frozenset({kind}) if way == "ahead" else ())
    runtime = Runtime(core, catalog, ModelPool("", 1), Holder(), transfer, "", told)
    found = []
    for name, seconds in (("cold", UPSTREAM_SECONDS), ("warm", 0.1)):
        up, down = f"up-{name}", name
        awaits = (Await(upstream=StageId(up), token=FIRST, agent=AGENT, address=""),)
        orders = [
            Assign(task=_task(up), kind="basic.sleep", params={"seconds": seconds}),
            Assign(task=_task(down), kind=kind, inputs=tuple(_inputs(kind)), awaits=awaits),
        ]
        runtime.commands(orders, Epoch(1))
        (_, before), (report, after) = await told.of(up), await told.of(down)
        found.append(Seconds(report.timing.load, after - before))
    await runtime.stop()
    await transfer.close()
    return found[0], found[1]


def _task(stage: str) -> TaskToken:
    return TaskToken(JobId("j"), StageId(stage), FIRST)


def _inputs(kind: str) -> list[Input]:
    found = []
    for port, (port_type, value) in INPUTS[kind].items():
        data, meta = values.encode(port_type, value)
        digest = values.digest(data)
        ref = ValueRef(type=port_type, bytes=len(data), digest=digest, meta=meta, inline=bytes(data))
        found.append(Input(port=port, ref=ref, consumed=Consumed(StageId("given"), FIRST, digest)))
    return found


def in_process(kind: str, way: str) -> tuple[Seconds, Seconds]:
    """Cold and warm seconds, measured in a process that has loaded nothing."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=run, args=(kind, way, there))
    process.start()
    there.close()
    measured: tuple[Seconds, Seconds] = here.recv()
    process.join()
    return measured


def main(repetitions: int) -> None:
    """Both ways in turns, for each kind."""
    for kind in INPUTS:
        found: dict[str, list[tuple[Seconds, Seconds]]] = {way: [] for way in WAYS}
        for number in range(repetitions):
            for way in WAYS if number % 2 else reversed(WAYS):
                found[way].append(in_process(kind, way))
        cells = []
        for way in WAYS:
            load, since = (statistics.median(cold[n] for cold, _ in found[way]) for n in (0, 1))
            cells.append(f"{way} load {load:.3f} s, done after {since:.3f}")
        warm = [warm for _, warm in found["alone"] + found["ahead"]]
        cells.append(f"warm load {statistics.median(each.load for each in warm):.3f}")
        cells.append(f"done after {statistics.median(each.since for each in warm):.3f}")
        sys.stdout.write(f"{kind:<20}" + "; ".join(cells) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
