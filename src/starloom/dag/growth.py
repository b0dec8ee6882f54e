"""What a stage that grows asks for: a patch in names relative to itself, and how that becomes one of its job.

A stage does not know what it and the others are called where it runs. In its patch, `@` is the stage itself,
`@0`, `@1` and so on are those that it adds, `@again` is one more like it, the next round of a loop, and the
source `@in.port` is whatever feeds its own input `port`. The kind `@` is its own kind, with its requirements,
its policy and its parameters, but for those that are given.

What it adds is called after it, `detect-0`, `detect-1`, and the rounds of a loop are counted, `round-r2`,
`round-r3`: a stage that runs again gives the same names. It may only add stages, let others read those in
place of itself (`redirect`), and feed stages downstream differently (`rewire`). What it adds is computed from what it
reads, and so is as private as what it gives; it cannot declassify that, though kinds may.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from starloom.dag.constellation import Dependency, InputBinding, On, OutputBinding, Requirements, StageSpec
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Add, AnyOperation, Patch, Redirect, Rewire
from starloom.dag.privacy import declassifies, labels_in, said_by, strictest
from starloom.dag.shape import Shape

OWN: Final = StageId("@")
AGAIN: Final = StageId("@again")
OWN_INPUT: Final = StageId("@in")

_ADDED = re.compile("@(0|[1-9][0-9]{0,8})")
_ROUND = re.compile("(.+)-r([1-9][0-9]{0,8})")
_NOTHING_REQUIRED = Requirements()
_encode = msgspec.json.Encoder(order="sorted").encode


def added_name(index: int) -> StageId:
    """The relative name of a stage that is added."""
    return StageId(f"@{index}")


def name_of(relative: str, stage: StageId) -> StageId | None:
    """What a relative name means for a stage; a name that is not relative means itself. None for one that means nothing."""
    if not relative.startswith("@"):
        return StageId(relative)
    if relative == OWN:
        return stage
    if relative == AGAIN:
        found = _ROUND.fullmatch(stage)
        return StageId(f"{found[1]}-r{int(found[2]) + 1}" if found else f"{stage}-r2")
    added = _ADDED.fullmatch(relative)
    return StageId(f"{stage}-{added[1]}") if added else None


def digest_of(patch: Patch | None) -> str:
    """Tells what a stage asked for from anything else; empty for nothing."""
    return hashlib.blake2b(_encode(patch.operations), digest_size=16).hexdigest() if patch else ""


def resolved(
    patch: Patch, shape: Shape, stage: StageId, started: tuple[StageId, ...], kinds: Mapping[str, KindSpec]
) -> tuple[Patch, list[Problem]]:
    """The patch that a stage of a job asks for, in the job's names, and everything in it that a stage may not ask for.

    What has `started` without the stage is not redirected.
    """
    resolver = _Resolver(shape, stage, started, kinds)
    operations = [resolver.operation(f"patch[{index}]", operation) for index, operation in enumerate(patch.operations)]
    if patch.restart or patch.if_revision or patch.id:
        resolver.problem("patch", "says restart, if_revision or id; those are for people")
    return Patch(operations=tuple(filter(None, operations)), why=patch.why), resolver.problems


class _Resolver:
    def __init__(
        self, shape: Shape, stage: StageId, started: tuple[StageId, ...], kinds: Mapping[str, KindSpec]
    ) -> None:
        self.problems: list[Problem] = []
        self._shape = shape
        self._stage = stage
        self._started = started
        self._kinds = kinds
        given = labels_in(shape, kinds)[0].given(stage)
        self._private = given.level if given is not None else None

    def problem(self, place: str, what: str) -> None:
        self.problems.append(Problem(place, what))

    def operation(self, place: str, operation: AnyOperation) -> AnyOperation | None:
        match operation:
            case Add():
                return self._add(f"{place}.add", operation)
            case Rewire():
                return self._rewire(f"{place}.rewire", operation)
            case Redirect():
                return self._redirect(f"{place}.redirect", operation)
            case _:
                what = "a stage may only add stages, and redirect and rewire what is downstream of it"
                self.problem(f"{place}.{operation.__struct_config__.tag}", what)
                return None

    def _add(self, place: str, add: Add) -> Add:
        stages = [self._spec(f"{place}.{spec.id}", spec) for spec in add.stages]
        dependencies, bindings = self._sources(place, add.dependencies)
        return Add(
            stages=tuple(stages),
            dependencies=tuple(dependencies),
            bindings=(*bindings, *(self._binding(place, binding) for binding in add.bindings)),
        )

    def _spec(self, place: str, spec: StageSpec) -> StageSpec:
        if not _ADDED.fullmatch(spec.id) and spec.id != AGAIN:
            what = "call it @0, @1 and so on, or @again: it is named after the stage that adds it"
            self.problem(place, what)
        own = self._shape.specs[self._stage]
        name = self._name(place, spec.id)
        if spec.kind == OWN:
            return self._labelled(msgspec.structs.replace(own, id=name, params={**own.params, **spec.params}))
        if spec.declassify:
            self.problem(f"{place}.declassify", "a stage may not declassify what it adds; its kind may, and people")
        # What a stage was kept from, its data is kept from as well.
        near = Requirements(tiers=own.requires.tiers) if spec.requires == _NOTHING_REQUIRED else spec.requires
        return self._labelled(msgspec.structs.replace(spec, id=name, requires=near))

    def _labelled(self, spec: StageSpec) -> StageSpec:
        """As private as what the stage gives: the parameters of what it adds may be computed from that."""
        if self._private is None:
            return spec
        said = said_by(spec)
        level = strictest(self._private, *said)
        if not declassifies(spec, self._kinds):
            return msgspec.structs.replace(spec, private=level)
        if not isinstance(spec.private, dict):
            frees = True if spec.private is None else spec.declassify
            return msgspec.structs.replace(spec, private=level, declassify=frees)
        # What it says of an output stands though it declassifies, which one label for all of the stage could not tell.
        return spec if level == strictest(*said) else msgspec.structs.replace(spec, private=level, declassify=False)

    def _rewire(self, place: str, rewire: Rewire) -> Rewire:
        if rewire.stage.startswith("@"):
            self.problem(place, f"{rewire.stage} is fed where it is added; only stages that are there are rewired")
        if rewire.join is not None:
            self.problem(f"{place}.join", "a stage may feed others differently, and not change what they wait for")
        dependencies, bindings = self._sources(place, rewire.dependencies)
        if rewire.unfed or rewire.frees or rewire.after is not None:
            self.problem(place, "a stage may give others more to wait for, and nothing less")
        return Rewire(
            stage=rewire.stage,
            dependencies=tuple(dependencies),
            bindings=(*bindings, *rewire.bindings),
            waits=tuple(self._sources(place, rewire.waits)[0]),
        )

    def _redirect(self, place: str, redirect: Redirect) -> Redirect:
        if redirect.stage != OWN:
            self.problem(f"{place}.from", f"is of {redirect.stage}; a stage may only redirect its own outputs, @.port")
        sources = [
            OutputBinding(upstream=self._name(f"{place}.to", each.upstream), output=each.output)
            for each in redirect.sources
        ]
        but = (*redirect.but, *self._started)
        return Redirect(stage=self._stage, output=redirect.output, sources=tuple(sources), but=but)

    def _name(self, place: str, relative: StageId) -> StageId:
        found = name_of(relative, self._stage)
        if found is None:
            self.problem(place, f"{relative!r} means nothing; use @, @0, @1 and so on, or @again")
        return found or relative

    def _binding(self, place: str, binding: InputBinding) -> InputBinding:
        return msgspec.structs.replace(binding, downstream=self._name(place, binding.downstream))

    def _sources(self, place: str, arcs: tuple[Dependency, ...]) -> tuple[list[Dependency], list[InputBinding]]:
        """Dependencies in the job's names; what feeds the stage itself may be an input of the job."""
        dependencies: list[Dependency] = []
        bindings: list[InputBinding] = []
        for arc in arcs:
            downstream = self._name(place, arc.downstream)
            if arc.upstream != OWN_INPUT:
                upstream = self._name(place, arc.upstream)
                dependencies.append(msgspec.structs.replace(arc, upstream=upstream, downstream=downstream))
                continue
            fed = list(self._as_own(arc, downstream))
            if not fed:
                self.problem(place, f"{self._stage} has no source for its input {arc.output!r}")
            dependencies += (each for each in fed if isinstance(each, Dependency))
            bindings += (each for each in fed if isinstance(each, InputBinding))
        return dependencies, bindings

    def _as_own(self, arc: Dependency, downstream: StageId) -> Iterator[Dependency | InputBinding]:
        """What feeds an input of the stage, feeding another stage; on the same condition, unless another is given."""
        for binding in self._shape.bindings[self._stage]:
            if binding.input == arc.output:
                yield msgspec.structs.replace(binding, downstream=downstream, input=arc.input)
        for own in self._shape.upstreams[self._stage]:
            if own.input == arc.output:
                given = own if arc.on is On.SUCCESS else arc
                on, comparison = given.on, given.comparison
                yield msgspec.structs.replace(own, downstream=downstream, input=arc.input, on=on, comparison=comparison)
