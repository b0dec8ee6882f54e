"""Stages that take longer, fail or hang on purpose, as the faults that are armed in their process say."""

import threading
import time
from typing import Final

import msgspec

from starloom.agents.execution import StageLookup
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.stage import Grown, Models, Outputs, Stage, StageCall, StreamStage
from starloom.dag.errors import StageError
from starloom.dag.kinds import KindCatalog
from starloom.devices.faults import FaultKind

_LOOK_SECONDS: Final = 0.05


class DisturbedStages:
    """A lookup whose stages are those of another one, with the faults of a layer. Streams pass undisturbed.

    None of its kinds is brief: a stage that a fault holds up must not hold up the agent.
    """

    def __init__(self, stages: StageLookup, layer: FaultLayer) -> None:
        self._stages = stages
        self._kinds = KindCatalog(msgspec.structs.replace(kind, brief=False) for kind in stages.kinds.values())
        self._layer = layer
        self._made: dict[str, Stage | StreamStage] = {}

    @property
    def kinds(self) -> KindCatalog:
        return self._kinds

    def stage(self, name: str) -> Stage | StreamStage:
        found = self._made.get(name)
        if found is None:
            found = self._stages.stage(name)
            if isinstance(found, Stage):
                found = _Disturbed(found, self._layer)
            self._made[name] = found
        return found


class _Disturbed(Stage):
    def __init__(self, stage: Stage, layer: FaultLayer) -> None:
        self.spec = stage.spec  # type: ignore[misc]
        self._stage = stage
        self._layer = layer

    def load(self, models: Models, target: str) -> None:
        self._stage.load(models, target)

    def run(self, call: StageCall) -> Outputs | Grown:
        kind = self.spec.name
        if self._layer.fires(FaultKind.STAGE_FAILS, kind):
            raise StageError(f"{kind} fails in passing: a fault has it so", transient=True)
        if fault := self._layer.fires(FaultKind.STAGE_HANGS, kind):
            while self._layer.is_armed(fault.id):
                _wait(call, _LOOK_SECONDS)
        began = time.monotonic()
        outputs = self._stage.run(call)
        factor, added = self._layer.slowness(kind)
        _wait(call, (factor - 1) * (time.monotonic() - began) + added)
        return outputs


def _wait(call: StageCall, seconds: float) -> None:
    """Returns after so long. Raises Cancelled as soon as the call is to stop."""
    if seconds <= 0:
        return
    woken = threading.Event()
    forget = call.cancel.on_cancel(woken.set)
    try:
        woken.wait(seconds)
    finally:
        forget()
    call.cancel.raise_if_cancelled()
