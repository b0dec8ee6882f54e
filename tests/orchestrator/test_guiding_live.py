"""Plans of real jobs: the planner's own process makes them, stages go where they say, and a loss makes another."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.orchestrator.rig import SECONDS, TOKEN, until

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.catalog import Catalog
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.facts import StagePlaced
from starloom.dag.ids import StageId
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.clientjob import AsyncJob
from starloom.orchestrator.planningservice import PlanningService
from starloom.orchestrator.server import Orchestrator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Cluster:
    """An orchestrator and agents in this process, and a client of it."""

    def __init__(self, orchestrator: Orchestrator, client: AsyncClient, agents: dict[str, Agent]) -> None:
        self.orchestrator, self.client, self.agents = orchestrator, client, agents

    async def plan_of(self, job: AsyncJob, part: str) -> None:
        """Once what is told of a job's plan has this in it."""

        async def told() -> bool:
            await asyncio.sleep(0.02)
            return part in (await job.status()).plan

        await until(told)

    async def warm(self) -> None:
        """Once the planner is there; the first time in a checkout it has to be compiled."""
        planning = self.orchestrator.engine._planning
        assert planning is not None
        await asyncio.to_thread(_ready, planning)
        # And it is known how long stages run, on each of the nodes.
        await (await self.client.submit(work({f"warm-{n}": ([], 0.3) for n in range(9)}))).result(timeout=SECONDS)


def _ready(planning: PlanningService) -> None:
    while planning._refusal:
        planning._thread.join(0.05)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    orchestrator = Orchestrator(tmp_path, token=TOKEN, plans_live=True)
    address = await orchestrator.start()
    agents = {}
    for name in ("one", "two", "three"):
        config = AgentConfig(name=name, tier="edge", orchestrator=address, token=TOKEN, slots=1)
        agents[name] = Agent(config, Catalog(points=()))
        await agents[name].start()
        await agents[name].connected.wait()
    async with AsyncClient(address, TOKEN) as client:
        yield Cluster(orchestrator, client, agents)
    for agent in agents.values():
        await agent.stop()
    await orchestrator.stop()


def work(stages: dict[str, tuple[list[str], float]]) -> Constellation:
    """Stages that sleep, each with its upstreams and seconds."""
    graph = Graph("work")
    made: dict[str, Any] = {}
    for name, (upstreams, seconds) in stages.items():
        params = {"seconds": seconds, "work": "sleep", "outputs": {"data": 100}}
        inputs = {upstream: made[upstream]["data"] for upstream in upstreams}
        made[name] = graph.stage(name, "synthetic.work", params=params, inputs=inputs)
    return graph.build()


def layers() -> Constellation:
    """A first stage that gives a plan time to come, six stages after it, and six that each await one of those."""
    stages: dict[str, tuple[list[str], float]] = {"first": ([], 3.0)}
    for n in range(6):
        stages[f"near-{n}"] = (["first"], 0.6 + 0.2 * (n % 3))
        stages[f"far-{n}"] = ([f"near-{n}"], 0.3 + 0.3 * (n % 2))
    return work(stages)


async def test_stages_go_where_the_plan_has_them(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    await cluster.warm()
    # However busy this machine is: nothing goes ahead of the plan, or aside of it.
    for name in ("PLAN_FIRST_WAITS_SECONDS", "PLAN_ASIDE_SECONDS", "PLAN_DRIFT_SECONDS"):
        monkeypatch.setattr(limits, name, 100.0)
    job = await cluster.client.submit(layers())
    await cluster.plan_of(job, "all ends in")
    planned = {stage.name: stage.planned.partition(",")[0] for stage in (await job.status()).stages}
    assert planned.pop(StageId("first")) == ""
    await job.result(timeout=SECONDS)
    info = await job.status()
    assert "12 of 12 stages with a plan went where it said" in info.plan
    assert {stage.name: f"{stage.node} (cpu)" for stage in info.stages if stage.name != "first"} == planned
    told = [stage.planned for stage in info.stages if stage.name != "first"]
    assert all("where it went by a plan of" in each for each in told), told


async def test_the_loss_of_the_busiest_node_makes_another_plan(cluster: Cluster) -> None:
    await cluster.warm()
    job = await cluster.client.submit(layers())
    await cluster.plan_of(job, "all ends in")
    counts: dict[str, int] = dict.fromkeys(cluster.agents, 0)
    for stage in (await job.status()).stages:
        for name in counts:
            counts[name] += stage.planned.startswith(f"{name} ")
    busiest = max(counts, key=lambda name: counts[name])
    async for event in job.events():
        if isinstance(event.fact, StagePlaced) and event.fact.stage.startswith("near"):
            break
    await cluster.agents[busiest].stop()
    await cluster.plan_of(job, f"last because {busiest} was lost")
    late = [stage for stage in (await job.status()).stages if stage.status == "pending"]
    assert late
    assert not [stage.name for stage in late if stage.planned.startswith(f"{busiest} ")]
    await job.result(timeout=SECONDS)
