"""Bugs of growth for the simulator to find, as those of `planted`: the real coordinator, with one thing wrong."""

from collections.abc import Callable, Sequence

import msgspec

from starloom.agents.messages import Finished
from starloom.dag import facts as f
from starloom.dag.constellation import Dependency
from starloom.dag.errors import PatchRefused, Problem
from starloom.dag.facts import Fact
from starloom.dag.ids import Epoch, FencingToken, JobId, Revision, StageId
from starloom.dag.patch import Change
from starloom.dag.stagestate import Origin, StageState
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.growing import Grown
from starloom.orchestrator.inputs import Input
from starloom.orchestrator.runs import Run

Judging = Callable[[Run, StageState, Finished], Grown | None]


class _Judges(Coordinator):
    """The base of those that judge growth in another way."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        growing = self._reports._growing
        plain: Judging = growing.judge
        growing.judge = lambda run, stage, report: self._judge(plain, run, stage, report)  # type: ignore[method-assign]

    def _judge(self, plain: Judging, run: Run, stage: StageState, report: Finished) -> Grown | None:
        raise NotImplementedError


class _Writes(Coordinator):
    """The base of those that write something else of growth into the journal than they decide."""

    def handle(self, inputs: Sequence[Input], now: int) -> Decision:
        decision = super().handle(inputs, now)
        found: list[Fact] = []
        for fact in decision.facts:
            grows = isinstance(fact, f.StageCommitted) and fact.growth is not None
            found += self._written(fact, fact.growth) if grows else [fact]  # type: ignore[attr-defined, arg-type]
        decision.facts[:] = found
        return decision

    def _written(self, fact: f.StageCommitted, growth: f.Growth) -> list[Fact]:
        raise NotImplementedError


class GrowsApart(_Writes):
    """A result is one fact, and its growth another one behind it."""

    def _written(self, fact: f.StageCommitted, growth: f.Growth) -> list[Fact]:
        patched = f.JobPatched(job=fact.job, revision=growth.revision, difference=growth.difference)
        return [msgspec.structs.replace(fact, growth=None), patched]


class GrowsHalves(_Writes):
    """Of what is grown one dependency is left out."""

    def _written(self, fact: f.StageCommitted, growth: f.Growth) -> list[Fact]:
        half = msgspec.structs.replace(growth.difference, added=growth.difference.added[:-1])
        return [msgspec.structs.replace(fact, growth=msgspec.structs.replace(growth, difference=half))]


class NamesAsItLikes(_Writes):
    """What is grown is called otherwise than the stage says."""

    def _written(self, fact: f.StageCommitted, growth: f.Growth) -> list[Fact]:
        fresh = {change.stage for change in growth.difference.stages if change.before is None}

        def named(name: StageId) -> StageId:
            return StageId(f"x{name}") if name in fresh else name

        def renamed(arc: Dependency) -> Dependency:
            ends = {"upstream": named(arc.upstream), "downstream": named(arc.downstream)}
            return msgspec.structs.replace(arc, **ends)

        stages = (
            Change(change.before, change.after and msgspec.structs.replace(change.after, id=named(change.stage)))
            for change in growth.difference.stages
        )
        difference = msgspec.structs.replace(
            growth.difference, stages=tuple(stages), added=tuple(map(renamed, growth.difference.added))
        )
        return [msgspec.structs.replace(fact, growth=msgspec.structs.replace(growth, difference=difference))]


class GrowsByTheDead(_Writes):
    """The growth of a stage that was tried before goes by a token that was given up."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        self._given_up: dict[tuple[JobId, StageId], FencingToken] = {}

    def handle(self, inputs: Sequence[Input], now: int) -> Decision:
        decision = super().handle(inputs, now)
        for fact in decision.facts:
            if isinstance(fact, f.StageSuperseded | f.StageReopened):
                self._given_up[fact.job, fact.stage] = fact.token
        return decision

    def _written(self, fact: f.StageCommitted, growth: f.Growth) -> list[Fact]:
        token = self._given_up.get((fact.job, fact.stage), fact.token)
        return [msgspec.structs.replace(fact, token=token)]


class GrowsTwice(Coordinator):
    """A recompute grows what its stage had grown once more."""

    def handle(self, inputs: Sequence[Input], now: int) -> Decision:
        decision = super().handle(inputs, now)
        for index, fact in enumerate(decision.facts):
            if isinstance(fact, f.StageCommitted) and fact.growth is None:
                job = self._state.jobs[fact.job]
                if fact.stage in job.growths:
                    again = msgspec.structs.replace(job.growths[fact.stage], revision=Revision(job.revision + 1))
                    decision.facts[index] = msgspec.structs.replace(fact, growth=again)
        return decision


class TakesNothingBack(_Judges):
    """What a stage has grown before stays, whatever it grows when it runs again."""

    def _judge(self, plain: Judging, run: Run, stage: StageState, report: Finished) -> Grown | None:
        return None if stage.spec.id in run.job.growths else plain(run, stage, report)


class KnowsNoBounds(_Judges):
    """Each stage is taken to be the first from which others come."""

    def _judge(self, plain: Judging, run: Run, stage: StageState, report: Finished) -> Grown | None:
        job, grown = run.job, run.job.grown
        job.origin, job.grown = (lambda stage: Origin(stage, stage, 0)), {}  # type: ignore[method-assign]
        try:
            return plain(run, stage, report)
        finally:
            del job.origin
            job.grown = grown


class GrudgesGrowth(_Judges):
    """Nothing may grow by more than two stages."""

    def _judge(self, plain: Judging, run: Run, stage: StageState, report: Finished) -> Grown | None:
        grown = plain(run, stage, report)
        if grown is not None and len(grown.fact.difference.stages) > 2:
            raise PatchRefused([Problem("patch", "no")])
        return grown


class ForgetsWhatGrew(Coordinator):
    """Stages that were grown are never looked at."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        changing = self._patching._changing
        plain = changing.decide

        def decide(run: Run, names: list[StageId]) -> None:
            plain(run, [name for name in names if name not in run.job.origins])

        changing.decide = decide  # type: ignore[method-assign]
