"""What growth makes of a job, by plain lists: the model that the real growth is judged by. It asks no code that it judges."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from starloom.dag.constellation import (
    Constellation,
    Dependency,
    InputBinding,
    On,
    OutputBinding,
    Requirements,
    StageSpec,
)
from starloom.dag.ids import StageId
from starloom.dag.patch import Add, AnyOperation, Difference, Patch, Redirect, Rewire, swapped
from starloom.orchestrator.simulate.patched import differing, patched
from starloom.orchestrator.simulate.private import OF, adding, level_of, said_of

OWN, AGAIN, OWN_INPUT = "@", "@again", "@in"


class Origin(NamedTuple):
    """Where a grown stage comes from: who added it, the stage at the beginning that nobody grew, and how many rounds after."""

    by: StageId
    root: StageId
    generation: int


class Standing(NamedTuple):
    """What a stage has grown, as it stands: what it asked for, what that made differ, and as which revision.

    `exact`: no client's patch came before it that what stood was taken back over.
    """

    asked: Patch | None
    difference: Difference
    revision: int
    exact: bool = True


def named(name: str, stage: StageId) -> StageId:
    """What a stage means by a name. Raises LookupError if it means nothing."""
    if name[:1] != "@":
        return StageId(name)
    if name == OWN:
        return stage
    if name == AGAIN:
        first, dash, number = stage.rpartition("-r")
        known = int(number) if dash and number.isdigit() and number[0] != "0" else 1
        return StageId(f"{first if known > 1 else stage}-r{known + 1}")
    number = name[1:]
    if not number.isdigit() or str(int(number)) != number:
        raise LookupError(name)
    return StageId(f"{stage}-{number}")


def derived(name: StageId, stage: StageId) -> bool:
    """Whether a name is one of those that a stage may give."""
    first, _, last = name.rpartition("-")
    return (first == stage and last.isdigit()) or name == named(AGAIN, stage)


def taken_back(constellation: Constellation, standing: Sequence[Standing]) -> Constellation:
    """The constellation without what was grown, the last first. Raises LookupError where that cannot be."""
    for each in sorted(standing, key=lambda one: -one.revision):
        constellation = differing(constellation, swapped(each.difference))
    return constellation


def grown(constellation: Constellation, stage: StageId, asked: Patch | None, but: Collection[StageId]) -> Constellation:
    """What a stage makes of a job; those of `but` go on reading it. Raises LookupError for what no stage may ask for."""
    if asked is None:
        return constellation
    if asked.restart or asked.if_revision or asked.id:
        raise LookupError("it says what is for people")
    meant = _Meant(constellation, stage, tuple(but))
    return patched(constellation, Patch(operations=tuple(map(meant.operation, asked.operations))))


def asked_names(asked: Patch | None, stage: StageId) -> set[StageId]:
    """The stages that are asked for."""
    adds = (each for each in (asked.operations if asked else ()) if isinstance(each, Add))
    return {named(spec.id, stage) for add in adds for spec in add.stages}


def downstream_of(constellation: Constellation, stage: StageId) -> set[StageId]:
    """All stages that come behind a stage."""
    readers: dict[StageId, list[StageId]] = {}
    for arc in constellation.dependencies:
        readers.setdefault(arc.upstream, []).append(arc.downstream)
    found: set[StageId] = set()
    waiting = [stage]
    while waiting:
        fresh = [each for each in readers.get(waiting.pop(), ()) if each not in found]
        found.update(fresh)
        waiting += fresh
    return found


class _Meant:
    """Reads what a stage says in the names of its job."""

    def __init__(self, constellation: Constellation, stage: StageId, but: tuple[StageId, ...]) -> None:
        self._constellation = constellation
        self._stage = stage
        self._but = but

    def operation(self, operation: AnyOperation) -> AnyOperation:
        match operation:
            case Add():
                arcs, bindings = self._sources(operation.dependencies)
                bound = [self._bound(each) for each in operation.bindings]
                specs = tuple(map(self._spec, operation.stages))
                return Add(stages=specs, dependencies=tuple(arcs), bindings=(*bindings, *bound))
            case Rewire(join=None, unfed=(), frees=(), after=None) if operation.stage[:1] != "@":
                arcs, bindings = self._sources(operation.dependencies)
                waits, _ = self._sources(operation.waits)
                bound = [*bindings, *operation.bindings]
                return Rewire(
                    stage=operation.stage, dependencies=tuple(arcs), bindings=tuple(bound), waits=tuple(waits)
                )
            case Redirect(stage="@"):
                sources = tuple(
                    OutputBinding(upstream=self._named(each.upstream), output=each.output) for each in operation.sources
                )
                but = (*operation.but, *self._but)
                return Redirect(stage=self._stage, output=operation.output, sources=sources, but=but)
        raise LookupError(f"no stage may ask for {operation!r}")

    def _named(self, name: str) -> StageId:
        return named(name, self._stage)

    def _spec(self, spec: StageSpec) -> StageSpec:
        if spec.id != AGAIN and (spec.id[:1] != "@" or not spec.id[1:].isdigit()):
            raise LookupError(f"{spec.id} is no name for what is added")
        own = self._constellation.stages[self._stage]
        name = self._named(spec.id)
        if spec.kind == OWN:
            return self._private(msgspec.structs.replace(own, id=name, params={**own.params, **spec.params}))
        if spec.declassify:
            raise LookupError(f"{spec.id} declassifies, which is for people")
        plain = spec.requires == Requirements()
        requires = Requirements(tiers=own.requires.tiers) if plain else spec.requires
        return self._private(msgspec.structs.replace(spec, id=name, requires=requires))

    def _private(self, spec: StageSpec) -> StageSpec:
        """It goes no further than what the stage gives."""
        level = adding(self._constellation, self._stage)
        if level is None:
            return spec
        if not (spec.declassify and isinstance(spec.private, dict)):
            return msgspec.structs.replace(spec, private=level_of(OF[level] & said_of(spec)))
        if said_of(spec) <= OF[level]:
            return spec
        return msgspec.structs.replace(spec, private=level_of(OF[level] & said_of(spec)), declassify=False)

    def _bound(self, binding: InputBinding) -> InputBinding:
        return msgspec.structs.replace(binding, downstream=self._named(binding.downstream))

    def _sources(self, arcs: Sequence[Dependency]) -> tuple[list[Dependency], list[InputBinding]]:
        found: list[Dependency] = []
        bound: list[InputBinding] = []
        for arc in arcs:
            into = {"downstream": self._named(arc.downstream), "input": arc.input}
            if arc.upstream != OWN_INPUT:
                found.append(msgspec.structs.replace(arc, upstream=self._named(arc.upstream), **into))
                continue
            own = [*self._feeding(arc.output)]
            if not own:
                raise LookupError(f"{self._stage} is not fed at {arc.output}")
            for each in own:
                if isinstance(each, InputBinding):
                    bound.append(msgspec.structs.replace(each, **into))
                elif arc.on is On.SUCCESS:
                    found.append(msgspec.structs.replace(each, **into))
                else:
                    found.append(msgspec.structs.replace(each, on=arc.on, comparison=arc.comparison, **into))
        return found, bound

    def _feeding(self, port: str) -> Iterator[Dependency | InputBinding]:
        constellation = self._constellation
        yield from (each for each in constellation.bindings if (each.downstream, each.input) == (self._stage, port))
        yield from (each for each in constellation.dependencies if (each.downstream, each.input) == (self._stage, port))
