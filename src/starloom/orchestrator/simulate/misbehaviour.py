"""How attempts go wrong by a fault: they fail, give other results than before, and report what is not so."""

from typing import TYPE_CHECKING

import msgspec

from starloom.agents.messages import Assign, Finished
from starloom.dag.facts import Consumed, ErrorInfo
from starloom.dag.ids import JobId, StageId
from starloom.dag.patch import Patch
from starloom.dag.values import PortType
from starloom.devices.faults import FaultKind
from starloom.orchestrator.simulate.asking import Lie, asks, lied
from starloom.orchestrator.simulate.model import KINDS, Made

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.world import World

LIES_AGAIN = 4
"""A stage that had grown may lie so many times as likely when it runs again."""


class Misbehaviour:
    """What attempts of one run do wrong, and which stages have."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._chance = world.chances.of("world")
        #: stages with transient failures, with their number; that gave different outputs; whose reports were wrong
        self._injected: dict[tuple[JobId, StageId], int] = {}
        self.fickle: dict[JobId, set[StageId]] = {}
        self.liars: dict[JobId, set[StageId]] = {}
        #: jobs in which a stage grew what it should not
        self.overgrown: set[JobId] = set()

    def failure(self, assign: Assign) -> ErrorInfo | None:
        """How a run fails, if it does: always, or for now and no more often than its policy forgives."""
        if assign.params["fails"]:
            return ErrorInfo(message="it always fails")
        key = assign.task.job, assign.task.stage
        times = self._injected.get(key, 0)
        # An attempt that a patch has superseded may be of a stage that is gone; nobody counts how it ends.
        stage = self._world.judge.jobs[assign.task.job].stages.get(assign.task.stage)
        if (
            stage is not None
            and times < stage.spec.policy.retry.times
            and self._world.trouble.fires(FaultKind.STAGE_FAILS)
        ):
            self._injected[key] = times + 1
            return ErrorInfo(message="it fails for now", transient=True)
        return None

    def salt(self, assign: Assign) -> str:
        """What makes a result differ from the attempts before."""
        if not self._world.trouble.fires(FaultKind.LIE_DIGEST):
            return ""
        self.fickle.setdefault(assign.task.job, set()).add(assign.task.stage)
        return str(assign.task.token)

    def growth(self, assign: Assign, made: Made) -> Patch | None:
        """What a run asks to be added, or what a liar does in its place."""
        truth = asks(assign.kind, assign.params, {name: ref.digest for name, ref in made.outputs.items()})
        if not KINDS[assign.kind].grows:
            return truth
        task, chance = assign.task, self._world.chances.of("growth")
        job = self._world.judge.jobs[task.job]
        again = task.stage in job.growths
        if not any(self._world.trouble.fires(FaultKind.LIE_GROWTH) for _ in range(LIES_AGAIN if again else 1)):
            return truth
        self.overgrown.add(task.job)
        bound = job.stages[task.stage].spec.policy.grow.stages if task.stage in job.stages else 0
        return lied(chance, truth, Lie(task.token.attempt, bound, chance.pick(list(job.stages))))

    def lie(self, report: Finished) -> Finished:
        """The report, or one that is wrong."""
        if report.consumed and self._world.trouble.fires(FaultKind.LIE_LINEAGE):
            return _misread(report, self._chance.pick(sorted(report.consumed)))
        if not self._world.trouble.fires(FaultKind.LIE_OUTPUTS):
            return report
        self.liars.setdefault(report.task.job, set()).add(report.task.stage)
        outputs = {
            name: msgspec.structs.replace(ref, type=PortType.TENSOR) if self._chance.happens(0.5) else ref
            for name, ref in report.outputs.items()
        }
        return msgspec.structs.replace(report, outputs=outputs, holds=(*report.holds, True))


def _misread(report: Finished, port: str) -> Finished:
    """The report with another digest read at a port than was."""
    known = report.consumed[port]
    wrong = Consumed(known.upstream, known.token, "0" * 64)
    return msgspec.structs.replace(report, consumed={**report.consumed, port: wrong})
