"""Starloom itself as a contender: a cluster on this machine, asked through the client, its journal on disk."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from starloom.dag.builder import Graph, StageRef
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.orchestrator.bench.shapes import Form, Pace, Shape, Work, shape
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import ClusterSpec, NodeSpec

OURS: Final = "starloom"
AGENTS: Final = 4
JOB_SECONDS_MAX: Final = 600.0
_NOOP = "basic.noop"
_MAKE = "basic.make_tensor"
_AGENT_PROCESS = "ray::HostActor"
_MB = 1e6


class OursContender:
    """A cluster of AGENTS agents of one slot each.

    The time begins before the constellation is built, as peers build their graphs while they hand them in,
    and ends when the client has been told that the job has ended.
    """

    name = OURS
    paced = True

    def __init__(self, client: AsyncClient, runner: asyncio.Runner, nodes: Sequence[str], orchestrator: int) -> None:
        self._client = client
        self._orchestrator = orchestrator
        #: resident memory before the last pace, at half of it, and after it, in MB: the orchestrator's, and an agent's on average
        self.memory: list[tuple[float, float]] = []
        self._runner = runner
        self._nodes = nodes

    def does(self, work: Work) -> bool:
        """Every work."""
        return True

    def seconds(self, work: Work) -> float:
        """Does the work once. Raises JobFailed, DeadlineExceeded."""
        graph = shape(work)
        began = time.perf_counter()
        self._runner.run(self._work(work, graph))
        return time.perf_counter() - began

    async def _work(self, work: Work, graph: Shape) -> None:
        if work.form is Form.JOBS:
            one = shape(Work(form=Form.CHAIN, size=len(graph.upstreams) // work.size))
            await asyncio.gather(*(self._job(one) for _ in range(work.size)))
        else:
            await asyncio.gather(*(self._job(graph) for _ in range(work.jobs)))

    def latencies(self, pace: Pace) -> Sequence[float]:
        """The seconds from when each job was due until the client knew that it had ended; `memory` tells of then."""
        return self._runner.run(self._at_pace(pace))

    async def _at_pace(self, pace: Pace) -> list[float]:
        graph = pace.graph
        self.memory = [self._resident()]
        began = time.perf_counter()

        async def job(due: float) -> float:
            await self._job(graph)
            return time.perf_counter() - due

        jobs: list[asyncio.Task[float]] = []
        for number in range(pace.jobs):
            due = began + pace.due(number)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            jobs.append(asyncio.create_task(job(due)))
            if number == pace.jobs // 2:
                self.memory.append(self._resident())
        latencies = await asyncio.gather(*jobs)
        self.memory.append(self._resident())
        return latencies

    def _resident(self) -> tuple[float, float]:
        agents = [process for process in psutil.Process().children(True) if _is_agent(process)]
        orchestrator = psutil.Process(self._orchestrator)
        return _megabytes([orchestrator]), _megabytes(agents) / max(1, len(agents))

    async def _job(self, graph: Shape) -> None:
        job = await self._client.submit(constellation(graph, self._nodes))
        await job.result(JOB_SECONDS_MAX)


def _is_agent(process: psutil.Process) -> bool:
    # Ray's own processes come and go while they are looked at.
    with suppress(psutil.NoSuchProcess):
        return str(process.name()).startswith(_AGENT_PROCESS)
    return False


def _megabytes(processes: Sequence[psutil.Process]) -> float:
    resident: int = sum(process.memory_info().rss for process in processes)
    return resident / _MB


def constellation(graph: Shape, nodes: Sequence[str]) -> Constellation:
    """A graph of stages that do nothing but make values, if any, pinned to nodes where the graph says so."""
    made = Graph(f"bench-{graph.form}")
    pins = [Requirements(node=node) for node in nodes]
    refs: list[StageRef] = []
    for index, (upstreams, pin) in enumerate(zip(graph.upstreams, graph.workers, strict=True)):
        feeds = {f"value{place or ''}": refs[upstream]["value"] for place, upstream in enumerate(upstreams)}
        require = None if pin is None else pins[pin]
        kind, params = (_MAKE, {"size": graph.value_bytes}) if graph.value_bytes else (_NOOP, {})
        refs.append(made.stage(f"s{index}", kind, params=params, require=require, inputs=feeds))
    return made.build()


@contextmanager
def open_ours(folder: Path) -> Iterator[OursContender]:
    """Starts the cluster with its state in `folder`; leaving the context ends it."""
    nodes = [f"bench-{number}" for number in range(AGENTS)]
    spec = ClusterSpec(nodes=tuple(NodeSpec(name=node, tier=Tier.EDGE, slots=1) for node in nodes))
    with EmbeddedCluster(spec, folder) as cluster, asyncio.Runner() as runner:
        client = AsyncClient(cluster.address, cluster.token)
        try:
            assert cluster.info is not None, "it has started"
            yield OursContender(client, runner, nodes, cluster.info.pid)
        finally:
            runner.run(client.close())
