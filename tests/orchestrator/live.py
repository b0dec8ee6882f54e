"""An orchestrator and an agent in one process, with stages that tests can hold at a gate, and constellations of them."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from starloom import Graph
from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.growing import Growing
from starloom.agents.stage import Grown, Outputs, Stage, StageCall
from starloom.dag.constellation import Constellation, Policy, Retry
from starloom.dag.errors import StageError
from starloom.dag.kinds import KindCatalog, KindSpec, Param
from starloom.dag.values import Port, PortType
from starloom.orchestrator.server import Orchestrator

TOKEN = "secret"

gates: dict[str, threading.Event] = {}


class Copy(Stage):
    """Gives what it is given, and counts it; there is such a kind for every type."""

    def run(self, call: StageCall) -> Outputs:
        call.figure("inputs", len(call.inputs))
        return dict(call.inputs)


def copy_of(port_type: PortType) -> Stage:
    ports = {"value": Port(port_type)}
    spec = KindSpec(name=f"test.{port_type}", inputs=ports, outputs=ports)
    made: Stage = type("Copy", (Copy,), {"spec": spec})()
    return made


class Gate(Stage):
    """Passes text on, once the test opens its gate."""

    spec: ClassVar = KindSpec(
        name="test.gate",
        inputs={"text": Port(PortType.TEXT)},
        outputs={"text": Port(PortType.TEXT)},
        params={"gate": Param(type="string", required=True)},
    )

    def run(self, call: StageCall) -> Outputs:
        gate = gates[call.params["gate"]]
        forget = call.cancel.on_cancel(gate.set)
        gate.wait()
        forget()
        call.cancel.raise_if_cancelled()
        return {"text": call.inputs["text"]}


class Sprout(Stage):
    """Passes text on, once the test opens its gate, and adds gates for it to go through one after another."""

    spec: ClassVar = KindSpec(
        name="test.sprout",
        inputs={"text": Port(PortType.TEXT)},
        outputs={"text": Port(PortType.TEXT)},
        params={"gate": Param(type="string", required=True), "adds": Param(type="array", default=[])},
        grows=True,
    )

    def run(self, call: StageCall) -> Outputs | Grown:
        outputs = Gate().run(call)
        grow = Growing(call)
        text = grow.own("text")
        for name in call.params["adds"]:
            text = grow.stage("test.gate", {"gate": name}, text=text)["text"]
        if call.params["adds"]:
            grow.redirect("text", text)
        return grow.result(outputs)


class Fail(Stage):
    """Fails with the text that it is given."""

    spec: ClassVar = KindSpec(
        name="test.fail", inputs={"text": Port(PortType.TEXT)}, outputs={"text": Port(PortType.TEXT)}
    )

    def run(self, call: StageCall) -> Outputs:
        raise StageError(call.inputs["text"])


class Stages:
    """The kinds above, as an agent looks them up."""

    def __init__(self) -> None:
        stages = [*map(copy_of, PortType), Gate(), Sprout(), Fail()]
        self._stages = {stage.spec.name: stage for stage in stages}
        self.kinds = KindCatalog(stage.spec for stage in stages)

    def stage(self, name: str) -> Stage:
        return self._stages[name]


KINDS = Stages().kinds


class Cluster:
    """One orchestrator, which can be started again on its address, and one agent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0
        self.address = ""
        self.orchestrator: Orchestrator | None = None

    async def up(self) -> None:
        self.orchestrator = Orchestrator(self._folder, port=self._port, token=TOKEN)
        self.address = await self.orchestrator.start()
        self._port = int(self.address.rpartition(":")[2])

    async def down(self) -> None:
        assert self.orchestrator is not None
        await self.orchestrator.stop()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        config = AgentConfig(name="node", tier="edge", orchestrator=self.address, token=TOKEN, slots=4, measures=False)
        agent = Agent(config, Stages())
        await agent.start()
        await agent.connected.wait()
        try:
            yield agent
        finally:
            await agent.stop()


def copying(*types: PortType) -> Constellation:
    """A stage for each type that copies an input to an output, all by the type's name."""
    graph = Graph("copying")
    for port_type in types:
        name = str(port_type)
        graph.output(name, graph.stage(name, f"test.{name}", value=graph.input(name, port_type))["value"])
    return graph.build(KINDS)


def gated(*names: str) -> Constellation:
    """A stage behind a gate for each name, with an output of that name; all are fed with the input `text`."""
    graph = Graph("gated")
    text = graph.input("text", PortType.TEXT)
    for name in names:
        gates[name] = threading.Event()
        stage = graph.stage(name, "test.gate", text=text, params={"gate": name})
        graph.output(name, stage["text"])
    return graph.build(KINDS)


def failing(*names: str, **policy: Any) -> Constellation:
    graph = Graph("failing")
    text = graph.input("text", PortType.TEXT)
    for name in names:
        stage = graph.stage(name, "test.fail", text=text, policy=Policy(retry=Retry(times=0), **policy))
        graph.output(name, stage["text"])
    return graph.build(KINDS)
