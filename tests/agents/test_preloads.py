"""Models loaded ahead: what is loaded when, what stops it, and that it is no attempt's failure."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.agents.fakes import (
    TOKEN,
    WAIT_SECONDS,
    MemoryStore,
    NoModels,
    Stages,
    Told,
    assign,
    given,
    task,
)
from tests.agents.test_core import Driven, starts
from tests.agents.test_runtime import AGENT, Gate, Rig, serving

from starloom.agents.core import AgentCore, Instruction, Preload, StopPreload
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.faultstages import DisturbedStages
from starloom.agents.holder import Holder
from starloom.agents.messages import Await, Cancel, Failed, Finished, Outcome, Release
from starloom.agents.runtime import Runtime
from starloom.agents.stage import CancelToken, Models, Outputs, Stage, StageCall
from starloom.agents.transfer import Transfer
from starloom.dag.errors import ModelMissing
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.values import Port, PortType

ONE, TWO = "t.one", "t.two"
UPSTREAM = Await(
    upstream=StageId("up"), token=FencingToken(Epoch(1), Attempt(1)), agent=AgentId("b"), address="127.0.0.1:1"
)


def driven(slots: int = 1) -> Driven:
    found = Driven(slots)
    found.core = AgentCore(AGENT, slots, loading=frozenset({ONE, TWO}))
    return found


def loads(instructions: list[Instruction]) -> list[str]:
    return [found.kind for found in instructions if isinstance(found, Preload)]


def waiting(stage: str, kind: str = ONE, **fields: Any) -> Any:
    """An assignment that awaits another agent's attempt."""
    return assign(stage, kind, awaits=(UPSTREAM,), **fields)


class TestWhat:
    def test_an_attempt_that_starts_at_once_loads_by_itself(self) -> None:
        w = driven()
        found = w.tell(assign("s", ONE))
        assert starts(found) == ["s"]
        assert loads(found) == []

    def test_an_attempt_that_awaits_another_has_its_models_loaded_beside_what_runs(self) -> None:
        w = driven()
        w.tell(assign("long"))
        found = w.tell(waiting("s", target="npu"))
        assert [each for each in found if isinstance(each, Preload)] == [Preload(ONE, "npu")]

    def test_an_attempt_that_waits_for_the_slot_has_its_models_loaded(self) -> None:
        w = driven()
        w.tell(assign("long"))
        assert loads(w.tell(assign("s", ONE))) == [ONE]

    def test_one_kind_is_loaded_at_a_time_and_once_for_all_that_wait(self) -> None:
        w = driven()
        assert loads(w.tell(waiting("a"), waiting("b"), waiting("c", TWO))) == [ONE]
        assert loads(w.core.preloaded(w.now)) == [TWO]
        assert loads(w.core.preloaded(w.now)) == []
        assert loads(w.tell(waiting("d"))) == [], "a and b wait still, and have it"

    def test_nothing_is_loaded_for_one_kind_while_another_waits_for_the_slot(self) -> None:
        w = driven()
        w.tell(assign("long"), assign("next"))
        assert loads(w.tell(waiting("s"))) == []
        found = w.finish(task("long"))
        assert starts(found) == ["next"]
        assert loads(found) == [ONE]

    def test_kinds_without_models_are_not_loaded(self) -> None:
        w = driven()
        w.tell(assign("long"))
        assert loads(w.tell(waiting("s", "basic.noop"))) == []

    def test_what_was_loaded_for_attempts_that_are_gone_is_asked_for_again(self) -> None:
        w = driven()
        w.tell(waiting("a"))
        w.core.preloaded(w.now)
        w.tell(Cancel(task=task("a")))
        assert loads(w.tell(waiting("b"))) == [ONE], "it may have gone meanwhile; who has it says so at once"


class TestStop:
    def test_a_cancel_stops_what_nobody_wants_any_more(self) -> None:
        w = driven()
        w.tell(waiting("a"), waiting("b"))
        assert StopPreload() not in w.tell(Cancel(task=task("a")))
        assert StopPreload() in w.tell(Cancel(task=task("b")))
        assert loads(w.tell(waiting("c"))) == [], "the one that is being stopped is not over yet"
        assert loads(w.core.preloaded(w.now)) == [ONE]

    def test_a_release_stops_what_nobody_wants_any_more(self) -> None:
        w = driven()
        w.tell(waiting("a"))
        assert StopPreload() in w.tell(Release(job=JobId("j")))

    def test_an_attempt_that_has_started_waits_for_what_is_being_loaded(self) -> None:
        w = driven()
        w.tell(waiting("a"), waiting("b"))
        up = task("up")
        found = w.core.answered(Outcome(task=up, outputs={}), w.now)
        assert starts(found) == ["a"]
        assert StopPreload() not in w.tell(Cancel(task=task("b")))


class Loaded(Stage):
    """Says which thread loads, and waits there until the test lets it go on; its `run` says whether it was loaded."""

    spec = KindSpec(
        name=ONE, inputs={"value": Port(PortType.JSON, optional=True)}, outputs={"loaded": Port(PortType.JSON)}
    )

    def __init__(self, error: Exception | None = None) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.threads: list[str] = []
        self.loaded = False
        self._error = error

    def load(self, models: Models, target: str) -> None:
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.open.wait(WAIT_SECONDS)
        if self._error is not None:
            raise self._error
        models.path("m", "f")
        self.loaded = True

    def run(self, call: StageCall) -> Outputs:
        if self._error is not None:
            raise self._error
        return {"loaded": self.loaded}


class Asked(NoModels):
    """The models of a load that is told when they are closed, and asks its cancel as real ones do."""

    def __init__(self, cancel: CancelToken, closed: list[str], over: threading.Event) -> None:
        self._cancel = cancel
        self._closed = closed
        self._over = over

    def path(self, model: str, file: str) -> str:
        self._cancel.raise_if_cancelled()
        return file

    def close(self, kind: str = "") -> None:
        self._closed.append(kind)
        self._over.set()


class Agent:
    """A runtime with one slot, a gate to fill it, and a stage with something to load."""

    def __init__(self, rig: Rig, stage: Loaded, gate: Gate, closed: list[str], over: threading.Event) -> None:
        self.rig = rig
        self.stage = stage
        self.gate = gate
        #: what kinds loads and runs were said to be of at their end, and whether one has ended
        self.closed = closed
        self.over = over

    async def until(self, event: threading.Event) -> None:
        assert await asyncio.to_thread(event.wait, WAIT_SECONDS)


@asynccontextmanager
async def rigged(error: Exception | None = None) -> AsyncIterator[Agent]:
    stage, gate, told, holder, closed = Loaded(error), Gate(), Told(), Holder(), list[str]()
    over = threading.Event()
    core = AgentCore(AGENT, 1, loading=frozenset({ONE}))
    # As an agent has it on which things may go wrong on purpose.
    stages = DisturbedStages(Stages(stage, gate.stage), FaultLayer())
    async with serving(MemoryStore()) as address, Transfer(TOKEN) as transfer:
        runtime = Runtime(
            core, stages, lambda cancel, target: Asked(cancel, closed, over), holder, transfer, address, told
        )
        try:
            yield Agent(Rig(runtime, told, holder, MemoryStore()), stage, gate, closed, over)
        finally:
            stage.open.set()
            gate.open.set()
            await runtime.stop()


async def test_models_are_loaded_in_a_thread_of_their_own_while_the_slot_is_taken() -> None:
    async with rigged() as agent:
        agent.rig.send(assign("long", "t.gate"))
        await agent.gate.until_entered()
        agent.rig.send(assign("s", ONE))
        await agent.until(agent.stage.entered)
        agent.stage.open.set()
        await agent.until(agent.over)
        agent.gate.open.set()
        report = await agent.rig.told.final(task("s"))
        assert isinstance(report, Finished)
        assert report.outputs["loaded"].inline == b"true"
        assert [name.rpartition("-")[0] for name in agent.stage.threads] == ["a-loading"]
        assert agent.closed == [ONE]


async def test_a_load_that_fails_is_the_failure_of_the_run_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with rigged(ModelMissing("model m is not here")) as agent:
        agent.rig.send(assign("long", "t.gate"))
        await agent.gate.until_entered()
        agent.rig.send(assign("s", ONE, inputs=(given("value", PortType.JSON, 1),)))
        await agent.until(agent.stage.entered)
        agent.stage.open.set()
        await agent.until(agent.over)
        assert {told.task for told in agent.rig.told.reports} == {task("long")}, "nothing is told of it"
        agent.gate.open.set()
        report = await agent.rig.told.final(task("s"))
        assert isinstance(report, Failed)
        assert report.error.cause == "ModelMissing"
        assert agent.closed == [""], "it does not count as loaded"
    assert "could not be loaded ahead" in caplog.text


async def test_a_load_that_nobody_wants_any_more_stops_between_models() -> None:
    async with rigged() as agent:
        agent.rig.send(assign("long", "t.gate"))
        await agent.gate.until_entered()
        agent.rig.send(assign("s", ONE))
        await agent.until(agent.stage.entered)
        agent.rig.send(Cancel(task=task("s")))
        await agent.rig.told.final(task("s"))
        agent.stage.open.set()
        await agent.until(agent.over)
        assert not agent.stage.loaded
