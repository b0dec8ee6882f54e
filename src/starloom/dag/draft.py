"""Does a patch's operations on a copy of what they touch, and finds everything that is wrong with the result.

patched, difference = apply(constellation, patch, kinds)        # raises PatchRefused with all problems
difference = difference_of(shape, patch, kinds)                 # the same for a shape, which stays as it is
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, assert_never

import msgspec

from starloom.dag import limits
from starloom.dag.checks import Suggestions, plain_fault
from starloom.dag.closing import Arcs, closing_problems
from starloom.dag.constellation import Constellation, Dependency, InputBinding, OutputBinding, StageSpec
from starloom.dag.errors import PatchRefused, Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import OUTPUTS_PARAM, KindSpec
from starloom.dag.patch import (
    Add,
    AnyOperation,
    ArcKey,
    CancelStage,
    Change,
    Difference,
    Move,
    OutputChange,
    Patch,
    Redirect,
    Remove,
    Replace,
    ResumeStage,
    Rewire,
    SetOutputs,
    SetPolicy,
    SetPreferences,
    SetPrivacy,
    SetVariants,
    Splice,
    arc_key,
    variants_said,
)
from starloom.dag.privacy import Expected, conflicts, labels_in, loosened
from starloom.dag.redirect import redirected
from starloom.dag.shape import Shape
from starloom.dag.splice import Spliced, spliced
from starloom.dag.spreads import group_problems
from starloom.dag.validate import problems_of_part
from starloom.dag.variants import floor_problems

REFUSED = "the patch was refused, and nothing has changed"


def apply(
    constellation: Constellation, patch: Patch, kinds: Mapping[str, KindSpec]
) -> tuple[Constellation, Difference]:
    """The constellation that a patch makes of another, and how they differ. Raises PatchRefused with all problems."""
    shape = Shape(constellation)
    difference, problems = difference_of(shape, patch, kinds)
    if problems:
        raise PatchRefused(problems, REFUSED)
    shape.apply(difference)
    return shape.constellation, difference


def difference_of(
    shape: Shape, patch: Patch, kinds: Mapping[str, KindSpec], *, may_be_empty: bool = False
) -> tuple[Difference, list[Problem]]:
    """What a patch would change, and everything that is wrong with it. Takes time in what it touches."""
    draft = _Draft(shape)
    for index, operation in enumerate(patch.operations):
        draft.do(f"patch[{index}]", operation)
    difference = draft.difference()
    problems = [*draft.problems, *draft.faults(difference, kinds)]
    if not problems and not difference and not may_be_empty:
        problems = [Problem("patch", "changes nothing; say what is to be different")]
    return difference, problems


class _Draft:
    """What a patch makes of the stages that it touches; all others are looked up in the shape."""

    def __init__(self, shape: Shape) -> None:
        self.problems: list[Problem] = []
        self._suggestions = Suggestions()
        #: inputs of spliced constellations that are private in there
        self._expected: list[Expected] = []
        self._shape = shape
        self._specs: dict[StageId, StageSpec | None] = {}
        self._arcs: dict[StageId, list[Dependency]] = {}
        self._bindings: dict[StageId, list[InputBinding]] = {}
        self._outputs: dict[str, OutputBinding | None] = {}

    def do(self, place: str, operation: AnyOperation) -> None:
        """Does one operation; what cannot be done is a problem at its place."""
        match operation:
            case Add():
                self._add(f"{place}.add", operation)
            case Remove(stage=stage):
                if self._known(f"{place}.remove", stage):
                    self._specs[stage], self._arcs[stage], self._bindings[stage] = None, [], []
            case Replace(stage=stage):
                if self._known(f"{place}.replace", stage):
                    self._replace(f"{place}.replace", operation)
            case Rewire(stage=stage):
                if self._known(f"{place}.rewire", stage):
                    self._rewire(f"{place}.rewire", operation)
            case Redirect(stage=stage):
                if self._known(f"{place}.redirect.from", stage):
                    self._redirect(f"{place}.redirect", operation)
            case Move(stage=stage):
                self._set(f"{place}.move", stage, **operation.fields)
            case SetPreferences(stage=stage, prefers=prefers):
                self._set(f"{place}.set_preferences", stage, prefers=prefers)
            case SetPolicy(stage=stage, policy=policy):
                self._set(f"{place}.set_policy", stage, policy=policy)
            case SetPrivacy(stage=stage, private=private, declassify=declassify):
                self._set(f"{place}.set_privacy", stage, private=private, declassify=declassify)
            case SetVariants(stage=stage):
                self._set(f"{place}.set_variants", stage, **variants_said(operation))
            case CancelStage(stage=stage):
                self._set(f"{place}.cancel_stage", stage, cancelled=True)
            case ResumeStage(stage=stage):
                self._set(f"{place}.resume_stage", stage, cancelled=False)
            case Splice():
                self._splice(f"{place}.splice", operation)
            case SetOutputs(outputs=outputs):
                for name, output in outputs.items():
                    if output is None and self._output(name) is None:
                        self._problem(
                            f"{place}.outputs.{name}", f"is no output{self._suggestions.of(name, self._shape.outputs)}"
                        )
                    self._outputs[name] = output
            case _:
                assert_never(operation)

    def spec(self, stage: StageId) -> StageSpec | None:
        """A stage as it would be; None if there would be none."""
        return self._specs[stage] if stage in self._specs else self._shape.specs.get(stage)

    def names(self) -> list[StageId]:
        """The names of all stages that there would be."""
        return [stage for stage in {**self._shape.specs, **self._specs} if self.spec(stage) is not None]

    def arcs_into(self, stage: StageId) -> list[Dependency]:
        """The dependencies that would lead into a stage."""
        found = self._arcs.get(stage)
        return self._shape.upstreams.get(stage, []) if found is None else found

    def difference(self) -> Difference:
        """All that would differ."""
        shape = self._shape
        changes = (Change(shape.specs.get(stage), spec) for stage, spec in self._specs.items())
        removed: list[Dependency] = []
        added: list[Dependency] = []
        for stage, arcs in self._arcs.items():
            before = {arc_key(arc): arc for arc in shape.upstreams.get(stage, ())}
            after = {arc_key(arc): arc for arc in arcs}
            removed += (arc for key, arc in before.items() if key not in after)
            added += (arc for key, arc in after.items() if key not in before)
        unbound: list[InputBinding] = []
        bound: list[InputBinding] = []
        for stage, bindings in self._bindings.items():
            known = shape.bindings.get(stage, [])
            unbound += (binding for binding in known if binding not in bindings)
            bound += (binding for binding in bindings if binding not in known)
        outputs = ((name, OutputChange(shape.outputs.get(name), out)) for name, out in self._outputs.items())
        return Difference(
            stages=tuple(change for change in changes if change.before != change.after),
            removed=tuple(removed),
            added=tuple(added),
            unbound=tuple(unbound),
            bound=tuple(bound),
            outputs={name: change for name, change in outputs if change.before != change.after},
        )

    def faults(self, difference: Difference, kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
        """Everything that would be wrong with the constellation, in and around what differs."""
        yield from self._size_faults(difference)
        gone = [change.stage for change in difference.stages if change.after is None]
        yield from self._orphan_faults(gone)
        stages = [stage for stage in difference.touched if self.spec(stage) is not None]
        part = self._part(difference, stages, set(gone))
        yield from problems_of_part(part, kinds, stages)
        yield from floor_problems((part.stages[stage] for stage in stages), self._shape.origin.least_quality)
        yield from closing_problems(part, difference, self.arcs_into, self._arcs_out(), kinds)
        yield from self._spread_faults(difference)
        yield from self._privacy_faults(difference, kinds)

    def _problem(self, place: str, what: str) -> None:
        self.problems.append(Problem(place, what))

    def _known(self, place: str, stage: StageId) -> bool:
        if self.spec(stage) is not None:
            return True
        self._problem(place, f"no stage is called {stage!r}{self._suggestions.of(stage, _Stages(self))}")
        return False

    def _output(self, name: str) -> OutputBinding | None:
        return self._outputs[name] if name in self._outputs else self._shape.outputs.get(name)

    def _set(self, place: str, stage: StageId, **fields: Any) -> None:
        spec = self.spec(stage)
        if spec is not None:
            self._specs[stage] = msgspec.structs.replace(spec, **fields)
        else:
            self._known(place, stage)

    def _mine(self, stage: StageId) -> tuple[list[Dependency], list[InputBinding]]:
        """What leads into a stage, to be changed."""
        arcs = self._arcs.get(stage)
        if arcs is None:
            arcs = self._arcs[stage] = list(self._shape.upstreams.get(stage, ()))
        bindings = self._bindings.get(stage)
        if bindings is None:
            bindings = self._bindings[stage] = list(self._shape.bindings.get(stage, ()))
        return arcs, bindings

    def _add(self, place: str, add: Add) -> None:
        fresh: set[StageId] = set()
        for spec in add.stages:
            if self.spec(spec.id) is not None:
                self._problem(f"{place}.stages.{spec.id}", "there is already one of that name; take another")
                continue
            fresh.add(spec.id)
            self._specs[spec.id], self._arcs[spec.id], self._bindings[spec.id] = spec, [], []
        names = {spec.id for spec in add.stages}
        items: list[Dependency | InputBinding] = [*add.dependencies, *add.bindings]
        for item in items:
            if item.downstream in fresh:
                into: list[Any] = (self._arcs if isinstance(item, Dependency) else self._bindings)[item.downstream]
                into.append(item)
            elif item.downstream not in names:
                self._problem(place, f"something leads into {item.downstream!r}, which is not added here; rewire that")

    def _replace(self, place: str, replace: Replace) -> None:
        spec = self.spec(replace.stage)
        assert spec is not None
        params = spec.params if replace.params is None else replace.params
        if replace.model:
            params = {**params, "model": replace.model}
        if fault := plain_fault(params):
            self._problem(f"{place}.params", fault)
            return
        self._set(place, replace.stage, kind=replace.kind or spec.kind, params=params)

    def _rewire(self, place: str, rewire: Rewire) -> None:
        if rewire.join is not None:
            self._set(place, rewire.stage, join=rewire.join)
        arcs, bindings = self._mine(rewire.stage)
        items: list[Dependency | InputBinding] = [*rewire.dependencies, *rewire.bindings, *(rewire.after or ())]
        for item in [*items, *rewire.waits, *rewire.frees]:
            if item.downstream != rewire.stage:
                self._problem(place, f"something leads into {item.downstream!r} instead of {rewire.stage!r}")
                return
        fed = {arc.input for arc in arcs if arc.input} | {binding.input for binding in bindings}
        for port in rewire.unfed:
            if port not in fed:
                self._problem(f"{place}.in.{port}", f"has no source that could go{self._suggestions.of(port, fed)}")
        ports = {*rewire.unfed, *(arc.input for arc in rewire.dependencies), *(each.input for each in rewire.bindings)}
        frees = {arc_key(arc) for arc in rewire.frees}
        for key in frees.difference(map(arc_key, arcs)):
            self._problem(f"{place}.after", f"{rewire.stage} does not wait for {key.upstream} like that")
        stay = (arc for arc in arcs if self._stays(arc, ports, frees, rewire.after is None))
        arcs[:] = [*stay, *rewire.dependencies, *(rewire.after or ())]
        there = set(map(arc_key, arcs))
        arcs += {key: arc for arc in rewire.waits if (key := arc_key(arc)) not in there}.values()
        bindings[:] = [*(binding for binding in bindings if binding.input not in ports), *rewire.bindings]

    def _redirect(self, place: str, redirect: Redirect) -> None:
        unknown = [source for source in redirect.sources if not self._known(f"{place}.to", source.upstream)]
        if unknown:
            return
        read = [arc.downstream for arc in self._shape.downstreams.get(redirect.stage, ())]
        for consumer in dict.fromkeys((*read, *self._arcs)):
            # What the patch adds reads the old output to make the new one of it.
            if consumer in self._shape.specs and self.spec(consumer) is not None:
                rewire = redirected(redirect, consumer, self.arcs_into(consumer))
                if rewire is not None:
                    self._rewire(place, rewire)
        for name in {**self._shape.outputs, **self._outputs}:
            if self._output(name) == OutputBinding(upstream=redirect.stage, output=redirect.output):
                if len(redirect.sources) > 1:
                    self._problem(f"{place}.to", f"is several, but output {name} of the job has one source; join them")
                self._outputs[name] = redirect.sources[0]

    @staticmethod
    def _stays(arc: Dependency, ports: set[str], frees: set[ArcKey], orders_stay: bool) -> bool:
        if arc.carries_data:
            return arc.input not in ports
        return orders_stay and arc_key(arc) not in frees

    def _splice(self, place: str, splice: Splice) -> None:
        found = spliced(place, splice)
        if not isinstance(found, Spliced):
            self.problems += found
            return
        self._add(place, found.add)
        private = splice.constellation.private
        self._expected += (
            Expected(f"{place}.inputs.{name}", source, private[name])
            for name, source in splice.inputs.items()
            if name in private
        )
        for rewire in found.rewires:
            if self._known(f"{place}.outputs", rewire.stage):
                self._rewire(f"{place}.outputs", rewire)

    def _size_faults(self, difference: Difference) -> Iterator[Problem]:
        born = sum(change.before is None for change in difference.stages)
        died = sum(change.after is None for change in difference.stages)
        stages = len(self._shape.specs) + born - died
        arcs = self._shape.dependency_count + len(difference.added) - len(difference.removed)
        if not stages:
            yield Problem("stages", "there would be none; a constellation needs at least one stage")
        sizes = (
            ("stages", stages, "STAGES_PER_JOB_MAX", limits.STAGES_PER_JOB_MAX),
            ("dependencies", arcs, "DEPENDENCIES_PER_JOB_MAX", limits.DEPENDENCIES_PER_JOB_MAX),
        )
        for place, count, name, limit in sizes:
            if count > limit:
                yield Problem(place, f"{count} would be over {name} = {limit}; split the job")

    def _privacy_faults(self, difference: Difference, kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
        """Where what is private would leave: in all of the constellation, for labels go on from what differs."""
        labels, parts = labels_in(self._shape, kinds, difference)
        yield from conflicts(labels, parts)
        yield from loosened(labels, parts, self._expected)

    def _spread_faults(self, difference: Difference) -> Iterator[Problem]:
        """Where what differs is spread otherwise than the rest of its group."""
        spreads = (change.after.spread for change in difference.stages if change.after is not None)
        groups = {spread.group for spread in spreads if spread is not None}
        if groups:
            yield from group_problems(filter(None, map(self.spec, self.names())), groups)

    def _bindings_of(self, stage: StageId) -> list[InputBinding]:
        return self._bindings.get(stage, self._shape.bindings.get(stage, []))

    def _orphan_faults(self, gone: Iterable[StageId]) -> Iterator[Problem]:
        """What would still need a stage that is taken away."""
        lost = set(gone)
        untouched = [a.downstream for stage in lost for a in self._shape.downstreams[stage]]
        for consumer in dict.fromkeys((*self._arcs, *sorted(untouched))) if lost else ():
            for arc in self.arcs_into(consumer):
                if arc.upstream in lost:
                    place = f"stages.{consumer}.in.{arc.input}" if arc.input else f"stages.{consumer}.after"
                    what = f"still needs {arc.upstream}, which is removed; rewire it, or remove it as well"
                    yield Problem(place, what)

    def _part(self, difference: Difference, stages: Iterable[StageId], gone: set[StageId]) -> Constellation:
        """What has to be checked: all that leads into the stages, and out of those whose ports changed."""
        arcs = [arc for stage in stages for arc in self.arcs_into(stage) if arc.upstream not in gone]
        inside = set(stages)
        retyped = {
            change.stage
            for change in difference.stages
            if change.before is not None and change.after is not None and _has_other_ports(change.before, change.after)
        }
        for stage in retyped:
            consumers = {arc.downstream for arc in self._shape.downstreams[stage]} - inside
            arcs += (arc for consumer in consumers for arc in self.arcs_into(consumer) if arc.upstream == stage)
        names = set(self._outputs)
        if retyped or gone:
            names |= {name for name, out in self._shape.outputs.items() if out.upstream in retyped | gone}
        outputs = {name: out for name in names if (out := self._output(name)) is not None}
        bindings = map(self._bindings_of, stages)
        return msgspec.structs.replace(
            self._shape.origin,
            stages=_Stages(self),
            dependencies=tuple(arcs),
            bindings=tuple(binding for some in bindings for binding in some),
            outputs=outputs,
        )

    def _arcs_out(self) -> Arcs:
        """What would lead out of a stage, by its name."""
        mine, downstreams = self._arcs, self._shape.downstreams
        changed: dict[StageId, list[Dependency]] = {}
        for arcs in mine.values():
            for arc in arcs:
                changed.setdefault(arc.upstream, []).append(arc)

        def out_of(stage: StageId) -> list[Dependency]:
            kept = [arc for arc in downstreams.get(stage, ()) if arc.downstream not in mine]
            return [*changed[stage], *kept] if stage in changed else kept

        return out_of


def _has_other_ports(before: StageSpec, after: StageSpec) -> bool:
    return before.kind != after.kind or before.params.get(OUTPUTS_PARAM) != after.params.get(OUTPUTS_PARAM)


class _Stages(Mapping[StageId, StageSpec]):
    """The stages of a draft, to look up."""

    def __init__(self, draft: _Draft) -> None:
        self._draft = draft

    def get(self, stage: StageId, default: Any = None) -> Any:
        """As a mapping's, which would raise and catch for each stage that is not there."""
        found = self._draft.spec(stage)
        return default if found is None else found

    def __getitem__(self, stage: StageId) -> StageSpec:
        found = self._draft.spec(stage)
        if found is None:
            raise KeyError(stage)
        return found

    def __iter__(self) -> Iterator[StageId]:
        return iter(self._draft.names())

    def __len__(self) -> int:
        return len(self._draft.names())
