"""What kinds say of themselves, end to end: models that are loaded while upstreams run, and calls that attempts share."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.orchestrator.live import TOKEN, Cluster, Gate, gates

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.dag.constellation import Constellation
from starloom.dag.kinds import Batch, KindCatalog, KindSpec
from starloom.dag.values import Port, PortType
from starloom.orchestrator.client import AsyncClient

WAIT_SECONDS = 20.0
TEXT = {"text": Port(PortType.TEXT)}


class Loads(Stage):
    """Passes text on; tells when it is loaded."""

    spec = KindSpec(name="test.loads", inputs=TEXT, outputs=TEXT, models=("m",))

    def __init__(self) -> None:
        self.loaded = threading.Event()

    def load(self, models: Models, target: str) -> None:
        self.loaded.set()

    def run(self, call: StageCall) -> Outputs:
        return dict(call.inputs)


class Shares(Stage):
    """Passes texts on, three in a call; tells which ones shared one."""

    spec = KindSpec(name="test.shares", inputs=TEXT, outputs=TEXT, batch=Batch(max=3, wait_seconds=1.0))

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def run(self, call: StageCall) -> Outputs:
        self.calls.append([call.inputs["text"]])
        return dict(call.inputs)

    def run_batch(self, calls: Sequence[StageCall]) -> Sequence[Outputs | Exception]:
        self.calls.append([call.inputs["text"] for call in calls])
        return [dict(call.inputs) for call in calls]


class Stages:
    """The kinds above and a gate, as an agent looks them up."""

    def __init__(self) -> None:
        self.loads = Loads()
        self.shares = Shares()
        self._stages: dict[str, Stage] = {each.spec.name: each for each in (self.loads, self.shares, Gate())}
        self.kinds = KindCatalog(each.spec for each in self._stages.values())

    def stage(self, name: str) -> Stage:
        return self._stages[name]


@pytest.fixture
async def stages(cluster: Cluster) -> AsyncIterator[Stages]:
    """Those of an agent with one slot, the only one there is for them."""
    found = Stages()
    agent = Agent(
        AgentConfig(name="one", tier="edge", orchestrator=cluster.address, token=TOKEN, slots=1, measures=False), found
    )
    await agent.start()
    await agent.connected.wait()
    yield found
    await agent.stop()


def side_by_side(stages: Stages, *names: str) -> Constellation:
    """A stage that shares calls for each name, with an input and an output of that name; all are ready at once."""
    graph = Graph("side-by-side")
    for name in names:
        graph.output(name, graph.stage(name, "test.shares", text=graph.input(name, PortType.TEXT))["text"])
    return graph.build(stages.kinds)


def behind_a_gate(stages: Stages) -> Constellation:
    gates["slow"] = threading.Event()
    graph = Graph("behind-a-gate")
    slow = graph.stage("slow", "test.gate", text=graph.input("text", PortType.TEXT), params={"gate": "slow"})
    graph.output("text", graph.stage("next", "test.loads", text=slow["text"])["text"])
    return graph.build(stages.kinds)


async def test_models_are_loaded_while_the_upstream_runs(cluster: Cluster, stages: Stages) -> None:
    async with AsyncClient(cluster.address, TOKEN) as client:
        job = await client.submit(behind_a_gate(stages), {"text": "hello"})
        assert await asyncio.to_thread(stages.loads.loaded.wait, WAIT_SECONDS)
        assert not gates["slow"].is_set(), "its upstream runs still, in the only slot"
        gates["slow"].set()
        assert await job.result() == {"text": "hello"}


async def test_attempts_share_a_call_and_each_has_its_own_output(cluster: Cluster, stages: Stages) -> None:
    async with AsyncClient(cluster.address, TOKEN) as client:
        texts = {name: f"text of {name}" for name in "abc"}
        job = await client.submit(side_by_side(stages, *texts), texts)
        assert await job.result() == texts
        assert [sorted(call) for call in stages.shares.calls] == [sorted(texts.values())]
