"""Shared memory end to end: between agents of one host, after their ends, and after they are killed."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.agents.fakes import made
from tests.orchestrator.live import TOKEN, Cluster
from tests.orchestrator.live import Stages as LiveStages
from tests.orchestrator.test_replicas_live import maker

from starloom import Graph
from starloom.agents import sharedmemory
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.dataservice import DataServer
from starloom.agents.sharedmemory import FOLDER
from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.agents.transfer import Transfer
from starloom.agents.values import Room
from starloom.dag import limits
from starloom.dag.constellation import Requirements, Tier
from starloom.dag.facts import StageCommitted, StageReopened
from starloom.dag.ids import JobId
from starloom.dag.kinds import KindCatalog, KindSpec
from starloom.dag.values import Port, PortType, ValueRef
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import ClusterSpec, NodeSpec

ELEMENTS = 500_000


def make(call: StageCall) -> Outputs:
    return {"value": np.arange(ELEMENTS, dtype=np.float32)}


def read(call: StageCall) -> Outputs:
    array = call.inputs["value"]
    return {"total": {"sum": float(array.sum(dtype=np.float64)), "writeable": bool(array.flags.writeable)}}


class Stages:
    """A kind that makes a tensor, and one that reads one."""

    def __init__(self) -> None:
        tensor, total = {"value": Port(PortType.TENSOR)}, {"total": Port(PortType.JSON)}
        self._stages: dict[str, Stage] = {
            "test.make": made(KindSpec(name="test.make", outputs=tensor), make),
            "test.double": made(
                KindSpec(name="test.double", inputs=tensor, outputs=tensor),
                lambda call: {"value": 2 * call.inputs["value"]},
            ),
            "test.read": made(KindSpec(name="test.read", inputs=tensor, outputs=total), read),
        }
        self.kinds = KindCatalog(stage.spec for stage in self._stages.values())

    def stage(self, name: str) -> Stage:
        return self._stages[name]


async def joined(stack: AsyncExitStack, cluster: Cluster, name: str, arena_bytes: int) -> Agent:
    agent = Agent(
        AgentConfig(
            name=name,
            tier="edge",
            orchestrator=cluster.address,
            token=TOKEN,
            slots=1,
            arena_bytes=arena_bytes,
            measures=False,
        ),
        Stages(),
    )
    await agent.start()
    stack.push_async_callback(agent.stop)
    await agent.connected.wait()
    return agent


@pytest.mark.parametrize("arena_bytes", [0, 64 * 1024 * 1024])
async def test_tensors_go_from_agent_to_agent_by_shared_memory_where_there_is_any(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, arena_bytes: int
) -> None:
    fetched: list[str] = []
    fetch = Transfer.fetch

    async def counted(
        self: Transfer, address: str, job: JobId, ref: ValueRef, room: Room | None = None
    ) -> bytes | memoryview:
        if ref.inline is None:
            fetched.append(ref.digest)
        return await fetch(self, address, job, ref, room)

    monkeypatch.setattr(Transfer, "fetch", counted)
    graph = Graph("made-and-read")
    value = graph.stage("make", "test.make", require=Requirements(node="a-one"))
    total = graph.stage("read", "test.read", value=value["value"], require=Requirements(node="a-two"))
    graph.output("total", total["total"])
    async with AsyncExitStack() as stack:
        one = await joined(stack, cluster, "a-one", arena_bytes=arena_bytes)
        await joined(stack, cluster, "a-two", arena_bytes=arena_bytes)
        client = await stack.enter_async_context(AsyncClient(cluster.address, TOKEN))
        job = await client.submit(graph.build({**LiveStages().kinds, **Stages().kinds}))
        result = await job.result(timeout=60)
        arena = one._holder.arena
        assert (arena is None) == (arena_bytes == 0)
        if arena is not None:
            assert arena.path.exists()
    assert result["total"] == {"sum": float(np.arange(ELEMENTS, dtype=np.float64).sum()), "writeable": False}
    assert len(fetched) == (0 if arena_bytes else 1)
    assert arena is None or not arena.path.exists()


async def test_agents_that_cannot_reach_each_other_pass_values_on_through_the_job_store(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = DataServer.start

    async def out_of_reach(self: DataServer) -> str:
        await start(self)
        return "127.0.0.1:1"

    monkeypatch.setattr(DataServer, "start", out_of_reach)
    monkeypatch.setattr(limits, "INPUT_PATIENCE_SECONDS", 0.1)
    graph = Graph("to-and-fro")
    there = graph.stage("there", "test.make", require=Requirements(node="a-one"))
    back = graph.stage("back", "test.double", value=there["value"], require=Requirements(node="a-two"))
    total = graph.stage("read", "test.read", value=back["value"], require=Requirements(node="a-one"))
    graph.output("total", total["total"])
    async with AsyncExitStack() as stack:
        for name in ("a-one", "a-two"):
            await joined(stack, cluster, name, arena_bytes=64 * 1024 * 1024)
        client = await stack.enter_async_context(AsyncClient(cluster.address, TOKEN))
        job = await client.submit(graph.build({**LiveStages().kinds, **Stages().kinds}))
        result = await job.result(timeout=60)
        facts = [event.fact async for event in job.events()]
    assert result["total"]["sum"] == 2 * float(np.arange(ELEMENTS, dtype=np.float64).sum())
    assert not [fact for fact in facts if isinstance(fact, StageReopened)]
    assert [fact.stage for fact in facts if isinstance(fact, StageCommitted)] == ["there", "back", "read"]


def arenas_of(pid: int) -> set[Path]:
    """The arenas that a process has mapped: others on this machine may have some as well."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {Path(line.split()[-1]) for line in maps.splitlines() if "/starloom-arena-" in line}


async def test_down_removes_what_a_killed_agent_left(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with maker(cluster, "a-maker") as process:
        [left] = arenas_of(process.pid)
        sharedmemory.sweep()
        assert left.exists()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert left.parent == FOLDER
    monkeypatch.setenv("STARLOOM_HOME", str(tmp_path / "home"))
    assert await asyncio.to_thread(main, ["down"]) == 0
    assert not left.exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_cluster_leaves_no_shared_memory_behind_though_its_agent_was_killed(tmp_path: Path) -> None:
    spec = ClusterSpec(nodes=(NodeSpec(name="node", tier=Tier.EDGE, slots=1),))
    with EmbeddedCluster(spec, tmp_path / "cluster") as running:
        assert running.info is not None
        pid = running.info.nodes[0].profile.pid
        left = arenas_of(pid)
        assert left
        os.kill(pid, signal.SIGKILL)
    assert not [path for path in left if path.exists()]
