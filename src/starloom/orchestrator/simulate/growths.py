"""Properties of growth: it is one with its result, once, named after its stage, within bounds, and refused for a reason."""

import re
from collections.abc import Iterable, Iterator

from starloom.dag import facts as f
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Comparison, Constellation, Dependency
from starloom.dag.facts import AnyFact
from starloom.dag.ids import StageId, TaskToken
from starloom.dag.patch import Patch, between
from starloom.dag.stagestate import StageStatus
from starloom.dag.validate import problems
from starloom.orchestrator.simulate.flowing import touches_streams
from starloom.orchestrator.simulate.growth import (
    asked_names,
    derived,
    downstream_of,
    grown,
    taken_back,
)
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.model import KINDS
from starloom.orchestrator.simulate.patched import differing, same
from starloom.orchestrator.simulate.private import OF, adding, said_of
from starloom.orchestrator.simulate.property import Property

REFUSED = "PatchRefused"
"""The cause of a failure by what a stage asked for."""
_OPEN = (StageStatus.PENDING, StageStatus.SKIPPED)
_NOWHERE = re.compile(r"\.require\b")


class _OfGrowth(Property):
    """The base of properties of what results bring with them."""

    def wish(self, fact: f.StageFact) -> Patch | None:
        """What the attempt asked for, as its agent reported it."""
        made = self.judge.made.get(TaskToken(fact.job, fact.stage, fact.token))
        return made.growth if made is not None else None

    def freer(self, fact: f.StageFact, job: JobView) -> bool:
        """Whether what stands of the stage's growth may be where nothing may be that it adds now: more is private since."""
        standing = job.growths.get(fact.stage)
        if standing is None:
            return False
        allowed = OF[adding(job.constellation, fact.stage)]
        added = (change.after for change in standing.difference.stages if change.before is None)
        return any(spec is not None and not said_of(spec) <= allowed for spec in added)

    def same_again(self, fact: f.StageFact, job: JobView) -> bool:
        """Whether the attempt asked for what stands."""
        asked, standing = self.wish(fact), job.growths.get(fact.stage)
        return _operations(asked) == _operations(standing.asked if standing is not None else None)


class GrownWhole(_OfGrowth):
    """Of a stage that grows for the first time, or after one that is taken back: so and not otherwise."""

    name = "a result and its growth are one"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.JobPatched) and fact.why not in self.judge.patches:
            self.broken(f"revision {fact.revision} is no client's patch, and came with no result", fact.job)
        if not isinstance(fact, f.StageCommitted) or job is None or stage is None:
            return
        if fact.stage in job.growths or (fact.growth is None and self.wish(fact) is None):
            return
        wanted = wanted_by(job, fact.stage, self.wish(fact))
        now = job.constellation if fact.growth is None else differing(job.constellation, fact.growth.difference)
        if wanted is None:
            self.broken("it grew what no stage may ask for", fact.job, fact.stage)
        elif not same(now, wanted):
            self.broken("what it made of its job is not what it asked for", fact.job, fact.stage)
        if fact.growth is not None:
            self._took(fact, fact.growth, job, stage)

    def _took(self, fact: f.StageCommitted, growth: f.Growth, job: JobView, stage: StageView) -> None:
        if growth.revision != job.revision + 1:
            self.broken(f"revision {growth.revision} follows on {job.revision}", fact.job, fact.stage)
        for name in growth.difference.touched:
            other = job.stages.get(name)
            if other is None or name == fact.stage:
                continue
            if other.live:
                self.broken(f"it changes {name}, of which {other.live} runs", fact.job, fact.stage)
            elif other.status not in _OPEN and not stage.again:
                self.broken(f"it changes {name}, which has {other.status}", fact.job, fact.stage)


class GrownOnce(_OfGrowth):
    name = "a recompute that asks for the same grows nothing twice"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if job is None or not isinstance(fact, f.StageCommitted | f.StageFailed) or not self.same_again(fact, job):
            return
        if self.freer(fact, job):
            return
        if isinstance(fact, f.StageCommitted) and fact.growth is not None:
            self.broken(f"it grows again, as revision {fact.growth.revision}", fact.job, fact.stage)
        elif isinstance(fact, f.StageFailed) and fact.error.cause == REFUSED:
            self.broken(f"it asks for what it has grown, and is refused: {fact.error.message}", fact.job, fact.stage)


class TakenBack(_OfGrowth):
    name = "what grows otherwise takes back what it had changed"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageCommitted) or job is None or fact.stage not in job.growths:
            return
        if self.same_again(fact, job) and fact.growth is None:
            return
        asked = self.wish(fact)
        now = job.constellation if fact.growth is None else differing(job.constellation, fact.growth.difference)
        if not job.exact(fact.stage):
            self._of_it(fact, job, now, asked)
            return
        wanted = wanted_by(job, fact.stage, asked)
        if wanted is None or not same(now, wanted):
            self.broken("the job is not as if it had grown only this", fact.job, fact.stage)

    def _of_it(self, fact: f.StageCommitted, job: JobView, now: Constellation, asked: Patch | None) -> None:
        """At least all stages that came of it are gone, but for those that it asks for now."""
        if fact.growth is None:
            return
        names = asked_names(asked, fact.stage)
        left = {name for name in job.came_of(fact.stage) if name in now.stages}
        if not left <= names <= now.stages.keys():
            self.broken(f"of {sorted(left | names)} it asked for {sorted(names)}", fact.job, fact.stage)
        if wrong := problems(now, KINDS):
            self.broken(f"what it leaves is not valid: {wrong[0]}", fact.job, fact.stage)


class NamedAfterIt(_OfGrowth):
    name = "what is grown is named after its stage"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.StageCommitted) and fact.growth is not None:
            for change in fact.growth.difference.stages:
                if change.before is None and not derived(change.stage, fact.stage):
                    self.broken(f"it adds {change.stage}", fact.job, fact.stage)


class GrownWithinBounds(_OfGrowth):
    name = "growth keeps its bounds"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.StageCommitted) and fact.growth is not None and job is not None:
            after = differing(job.constellation, fact.growth.difference)
            if what := over_bounds(job, fact.stage, after):
                self.broken(what, fact.job, fact.stage)


class GrownByTheLive(_OfGrowth):
    name = "nothing grows by a token that is not live"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        grows = isinstance(fact, f.StageCommitted) and fact.growth is not None
        if isinstance(fact, f.StageFact) and grows and stage is not None and fact.token not in stage.live:
            self.broken(f"{fact.token} grows, and is not live", fact.job, fact.stage)


class RefusedForAReason(_OfGrowth):
    name = "growth is refused for a reason"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageFailed) or fact.error.cause != REFUSED or job is None or stage is None:
            return
        # For want of a node a part is refused, and what clients have changed meanwhile may be in the way.
        if _NOWHERE.search(fact.error.message) or not job.exact(fact.stage):
            return
        if not any(_reasons(job, fact.stage, stage, self.wish(fact))):
            self.broken(f"it could be taken, and was refused: {fact.error.message}", fact.job, fact.stage)


def wanted_by(job: JobView, name: StageId, asked: Patch | None) -> Constellation | None:
    """What a stage makes of its job by what it asks for, and by nothing else that it did; None if that cannot be."""
    again = job.stages[name].again
    readers = dict.fromkeys(arc.downstream for arc in job.downstreams[name])
    started = [] if again else [each for each in readers if job.stages[each].status not in _OPEN]
    try:
        return grown(taken_back(job.constellation, list(job.standing(name).values())), name, asked, started)
    except LookupError:
        return None


def over_bounds(job: JobView, name: StageId, after: Constellation) -> str:
    """What a stage's growth, after which its job is like that, would come to; empty if it may."""
    origin = job.origin(name)
    bounds = (job.stages.get(origin.root) or job.stages[name]).spec.policy.grow
    fresh = [each for each in after.stages if each not in job.stages]
    known = (other for other, came in job.origins.items() if came.root == origin.root and other in after.stages)
    total = len(fresh) + sum(1 for _ in known)
    if fresh and total > bounds.stages:
        return f"{total} stages come of {origin.root}, whose bound is {bounds.stages}"
    if fresh and origin.generation >= bounds.generations:
        return f"{name} is generation {origin.generation} of {origin.root}, whose bound is {bounds.generations}"
    return ""


def _reasons(job: JobView, name: StageId, stage: StageView, asked: Patch | None) -> Iterator[bool]:
    """Whether there is a reason to refuse what a stage asks for."""
    yield asked is not None and not KINDS[stage.spec.kind].grows
    after = wanted_by(job, name, asked)
    if after is None:
        yield True
        return
    yield bool(over_bounds(job, name, after)) or bool(problems(after, KINDS))
    yield touches_streams(job.constellation, after)
    touched = [each for each in between(job.constellation, after).touched if each in job.stages]
    yield not downstream_of(job.constellation, name).issuperset(each for each in touched if each in after.stages)
    yield not stage.again and any(job.stages[each].status not in _OPEN for each in touched)
    readers: dict[StageId, list[Dependency]] = {}
    for arc in after.dependencies:
        readers.setdefault(arc.upstream, []).append(arc)
    for other in job.stages:
        asked_then, asks_now = _compared(job.downstreams[other]), _compared(readers.get(other, ()))
        yield asked_then != asks_now and (other == name or job.stages[other].status not in _OPEN)


def _compared(arcs: Iterable[Dependency]) -> set[str]:
    found: Iterable[Comparison] = (arc.comparison for arc in arcs if arc.comparison is not None)
    return {comparison_key(comparison) for comparison in found}


def _operations(asked: Patch | None) -> object:
    return asked.operations if asked is not None else ()


GROWTH: tuple[type[Property], ...] = (
    GrownWhole,
    GrownOnce,
    TakenBack,
    NamedAfterIt,
    GrownWithinBounds,
    GrownByTheLive,
    RefusedForAReason,
)
