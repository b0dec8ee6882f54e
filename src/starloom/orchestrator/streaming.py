"""Places stages that stream into each other. The first of a group takes its turn among all that is ready; the others follow.

They go to nodes that are there, whatever those have: see `streams`.
"""

from collections.abc import Callable

from starloom.dag.ids import JobId, StageId
from starloom.dag.stagestate import ENDED, StageStatus
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import Fleet
from starloom.orchestrator.lanes import Lane, ReadyLanes
from starloom.orchestrator.lineage import Verdict
from starloom.orchestrator.runs import Run

Follow = Callable[[Lane, Run, StageId], bool]
"""Places a stage whose group has begun, or finds what else it waits for; False if no node that may have it is there."""


class Streaming:
    """The stages of groups that may start: what waits for its group to begin, and what follows."""

    def __init__(self, fleet: Fleet, lanes: ReadyLanes, endings: Endings) -> None:
        self._fleet = fleet
        self._lanes = lanes
        self._endings = endings
        self._following: dict[tuple[JobId, StageId], Run] = {}
        #: groups that have a stage for which there is no node at all, by the stage that would begin
        self._aside: dict[tuple[JobId, StageId], Run] = {}
        self._version = -1

    def put(self, run: Run, stage: StageId) -> None:
        """A stage of a group may start; again is fine."""
        if run.streams.begun(run.job, stage):
            run.queued.discard(stage)
            self._following[run.job.id, stage] = run
        elif all(self._placeable(run, each) for each in run.streams.groups[stage]):
            self._lanes.push(run, stage)
        else:
            self._aside[run.job.id, stage] = run

    def regrouped(self) -> None:
        """What stands with others, or apart from them, may have other nodes in the same fleet: `renew` looks."""
        self._version = -1

    def renew(self) -> None:
        """Groups may have nodes now that had none."""
        if self._version == self._fleet.version:
            return
        self._version = self._fleet.version
        aside, self._aside = self._aside, {}
        for (_, stage), run in aside.items():
            try:
                if self._waits(run, stage):
                    self.put(run, stage)
            except Exception as error:
                self._endings.contain(run.job.id, f"{stage}, which waited for nodes to stream with others", error)

    def run(self, follow: Follow) -> bool:
        """Places all that follows, and what follows that; what finds no node is tried again the next time.

        Returns whether something is ready meanwhile to begin a group.
        """
        ready = False
        left: dict[tuple[JobId, StageId], Run] = {}
        while self._following:
            (job, stage), run = next(iter(self._following.items()))
            del self._following[job, stage]
            try:
                if not self._waits(run, stage):
                    continue
                if not run.streams.begun(run.job, stage):
                    self.put(run, stage)
                    ready = True
                elif not follow(self._lanes.lane_of(run, stage), run, stage):
                    left[job, stage] = run
            except Exception as error:
                self._endings.contain(run.job.id, f"the placement of {stage}", error)
        self._following = left
        return ready

    def _waits(self, run: Run, name: StageId) -> bool:
        """Whether a stage still waits for nothing but its place."""
        stage = run.job.stages.get(name)
        if run.closed or stage is None or stage.status is not StageStatus.PENDING:
            return False
        if name in run.held or name in run.waits or name not in run.streams.groups:
            return False
        return run.streams.verdict(run.job, name) in (Verdict.RUN, Verdict.AHEAD)

    def _placeable(self, run: Run, name: StageId) -> bool:
        lane = self._lanes.lane_of(run, name)
        return run.job.stages[name].status in ENDED or bool(self._lanes.candidates(lane, run, name))
