"""Bugs of variants for the simulator to find."""

from starloom.dag.constellation import StageSpec
from starloom.dag.ids import Epoch, StageId
from starloom.dag.variants import ways_of
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.runs import Run


class TriesAWorseOne(Coordinator):
    """A stage that ran before runs in its worst variant, though its own could be had."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        plain = self._lanes._take

        def take(run: Run, stage: StageId) -> StageSpec:
            state = run.job.stages[stage]
            found = plain(run, stage)
            if state.tries and not state.live:
                found = run.taken[stage] = ways_of(state.spec, run.job.shape.origin.least_quality)[-1]
            return found

        self._lanes._take = take  # type: ignore[method-assign]


class FollowsAnyVariant(Coordinator):
    """A stage runs in the variant that a plan says, whatever it had before."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch, guided=True)
        plain = self._lanes._take

        def take(run: Run, stage: StageId) -> StageSpec:
            found = plain(run, stage)
            state = run.job.stages[stage]
            said = run.guide.variant(stage) if run.guide is not None else ""
            for way in ways_of(state.spec) if said and not state.live else ():
                if way.variants[0].name == said:
                    found = run.taken[stage] = way
            return found

        self._lanes._take = take  # type: ignore[method-assign]
