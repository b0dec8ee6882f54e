"""Does a patch's operations on a copy of what they touch, and finds everything that is wrong with the result.

patched, difference = apply(constellation, patch, kinds)        # raises PatchRefused with all problems
difference = difference_of(shape, patch, kinds)                 # the same for a shape, which stays as it is
"""

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

import msgspec

from starloom.dag.checks import Suggestions, plain_fault
from starloom.dag.constellation import Constellation, Dependency, InputBinding, OutputBinding, StageSpec
from starloom.dag.draftcheck import DraftCheck
from starloom.dag.errors import PatchRefused, Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
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
from starloom.dag.privacy import Expected
from starloom.dag.redirect import redirected
from starloom.dag.shape import Shape
from starloom.dag.splice import Spliced, spliced

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
    draft = Draft(shape)
    for index, operation in enumerate(patch.operations):
        draft.do(f"patch[{index}]", operation)
    difference = draft.difference()
    problems = [*draft.problems, *DraftCheck(draft).problems(difference, kinds)]
    if not problems and not difference and not may_be_empty:
        problems = [Problem("patch", "changes nothing; say what is to be different")]
    return difference, problems


class Draft:
    """What a patch makes of the stages that it touches; all others are looked up in the shape."""

    def __init__(self, shape: Shape) -> None:
        self.problems: list[Problem] = []
        self._suggestions = Suggestions()
        #: inputs of spliced constellations that are private in there
        self.expected: list[Expected] = []
        self.shape = shape
        #: what the patch touches, as it would be
        self._specs: dict[StageId, StageSpec | None] = {}
        self.arcs: dict[StageId, list[Dependency]] = {}
        self._bindings: dict[StageId, list[InputBinding]] = {}
        self.outputs: dict[str, OutputBinding | None] = {}

    def do(self, place: str, operation: AnyOperation) -> None:
        """Does one operation; what cannot be done is a problem at its place."""
        match operation:
            case Add():
                self._add(f"{place}.add", operation)
            case Remove(stage=stage):
                if self._known(f"{place}.remove", stage):
                    self._specs[stage], self.arcs[stage], self._bindings[stage] = None, [], []
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
                    if output is None and self.output(name) is None:
                        self._problem(
                            f"{place}.outputs.{name}", f"is no output{self._suggestions.of(name, self.shape.outputs)}"
                        )
                    self.outputs[name] = output
            case _:
                assert_never(operation)

    def spec(self, stage: StageId) -> StageSpec | None:
        """A stage as it would be; None if there would be none."""
        return self._specs[stage] if stage in self._specs else self.shape.specs.get(stage)

    @property
    def stages(self) -> Mapping[StageId, StageSpec]:
        """The stages that there would be, to look up."""
        return _Stages(self)

    def names(self) -> list[StageId]:
        """The names of all stages that there would be."""
        return [stage for stage in {**self.shape.specs, **self._specs} if self.spec(stage) is not None]

    def arcs_into(self, stage: StageId) -> list[Dependency]:
        """The dependencies that would lead into a stage."""
        found = self.arcs.get(stage)
        return self.shape.upstreams.get(stage, []) if found is None else found

    def bindings_of(self, stage: StageId) -> list[InputBinding]:
        """The job's inputs that would lead into a stage."""
        return self._bindings.get(stage, self.shape.bindings.get(stage, []))

    def output(self, name: str) -> OutputBinding | None:
        """An output of the job as it would be; None if there would be none."""
        return self.outputs[name] if name in self.outputs else self.shape.outputs.get(name)

    def difference(self) -> Difference:
        """All that would differ."""
        shape = self.shape
        changes = (Change(shape.specs.get(stage), spec) for stage, spec in self._specs.items())
        removed: list[Dependency] = []
        added: list[Dependency] = []
        for stage, arcs in self.arcs.items():
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
        outputs = ((name, OutputChange(shape.outputs.get(name), out)) for name, out in self.outputs.items())
        return Difference(
            stages=tuple(change for change in changes if change.before != change.after),
            removed=tuple(removed),
            added=tuple(added),
            unbound=tuple(unbound),
            bound=tuple(bound),
            outputs={name: change for name, change in outputs if change.before != change.after},
        )

    def _problem(self, place: str, what: str) -> None:
        self.problems.append(Problem(place, what))

    def _known(self, place: str, stage: StageId) -> bool:
        if self.spec(stage) is not None:
            return True
        self._problem(place, f"no stage is called {stage!r}{self._suggestions.of(stage, self.stages)}")
        return False

    def _set(self, place: str, stage: StageId, **fields: Any) -> None:
        spec = self.spec(stage)
        if spec is not None:
            self._specs[stage] = msgspec.structs.replace(spec, **fields)
        else:
            self._known(place, stage)

    def _mine(self, stage: StageId) -> tuple[list[Dependency], list[InputBinding]]:
        """What leads into a stage, to be changed."""
        arcs = self.arcs.get(stage)
        if arcs is None:
            arcs = self.arcs[stage] = list(self.shape.upstreams.get(stage, ()))
        bindings = self._bindings.get(stage)
        if bindings is None:
            bindings = self._bindings[stage] = list(self.shape.bindings.get(stage, ()))
        return arcs, bindings

    def _add(self, place: str, add: Add) -> None:
        fresh: set[StageId] = set()
        for spec in add.stages:
            if self.spec(spec.id) is not None:
                self._problem(f"{place}.stages.{spec.id}", "there is already one of that name; take another")
                continue
            fresh.add(spec.id)
            self._specs[spec.id], self.arcs[spec.id], self._bindings[spec.id] = spec, [], []
        names = {spec.id for spec in add.stages}
        items: list[Dependency | InputBinding] = [*add.dependencies, *add.bindings]
        for item in items:
            if item.downstream in fresh:
                into: list[Any] = (self.arcs if isinstance(item, Dependency) else self._bindings)[item.downstream]
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
        read = [arc.downstream for arc in self.shape.downstreams.get(redirect.stage, ())]
        for consumer in dict.fromkeys((*read, *self.arcs)):
            # What the patch adds reads the old output to make the new one of it.
            if consumer in self.shape.specs and self.spec(consumer) is not None:
                rewire = redirected(redirect, consumer, self.arcs_into(consumer))
                if rewire is not None:
                    self._rewire(place, rewire)
        for name in {**self.shape.outputs, **self.outputs}:
            if self.output(name) == OutputBinding(upstream=redirect.stage, output=redirect.output):
                if len(redirect.sources) > 1:
                    self._problem(f"{place}.to", f"is several, but output {name} of the job has one source; join them")
                self.outputs[name] = redirect.sources[0]

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
        self.expected += (
            Expected(f"{place}.inputs.{name}", source, private[name])
            for name, source in splice.inputs.items()
            if name in private
        )
        for rewire in found.rewires:
            if self._known(f"{place}.outputs", rewire.stage):
                self._rewire(f"{place}.outputs", rewire)


class _Stages(Mapping[StageId, StageSpec]):
    """The stages of a draft, to look up."""

    def __init__(self, draft: Draft) -> None:
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
