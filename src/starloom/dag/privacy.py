"""Labels on data, and how they go along dependencies: where what is private may stand and be computed with.

An input of the job, or what a stage gives, may be private to a tier (`constellation.Private`). What is computed from it
is so as well, and what is computed from that, until a stage declassifies it. A stage runs only where all that it reads
and gives may stand. Only dependencies with data pass labels on: neither that a stage has ended nor whether a comparison
holds is private.

    labels, _ = labels_of(constellation, kinds)
    labels.levels.get("read")               # Private.DEVICE
    str(labels.of("read"))                  # regions is private to device: photo -> see
    labels.of_output("read", "text")        # None where it is free

Whether a kind declassifies is the kind's word; of a kind that is not known the answer is no.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from starloom.dag.constellation import (
    PRIVATE_TIERS,
    Constellation,
    Dependency,
    InputBinding,
    Private,
    StageSpec,
)
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.order import cycle_text
from starloom.dag.patch import Difference, arc_key
from starloom.dag.shape import Shape

_STRICTEST_FIRST: Final = (Private.DEVICE, Private.EDGE)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Label:
    """How far something of a stage may go: `what` it is, an input port or what the stage says of itself.

    `source` is what feeds the port, an input of the job or a stage, and `before` that stage's own label; empty and None
    for what a stage says of itself.
    """

    level: Private
    what: str
    source: str = ""
    before: "Label | None" = None

    @property
    def way(self) -> tuple[str, ...]:
        """From the input of the job, or the stage that said so, to what feeds the stage; empty where it says so itself."""
        found: list[str] = []
        label: Label | None = self
        while label is not None:
            found += (label.source,) if label.source else ()
            label = label.before
        return tuple(reversed(found))

    def __str__(self) -> str:
        way = self.way
        return f"{self.what} is private to {self.level}{f': {cycle_text(way)}' if way else ''}"


class Labels:
    """The labels of one constellation.

    `levels` has the stages that may not run everywhere, with the strictest label of what they read and give.
    """

    def __init__(
        self, specs: Mapping[StageId, StageSpec], reads: Mapping[StageId, Label], kinds: Mapping[str, KindSpec]
    ) -> None:
        self._specs = specs
        self._reads = reads
        self._kinds = kinds
        # Most say nothing of themselves, and are as private as what they read.
        self.levels = {name: label.level for name, label in reads.items()}
        for name, spec in specs.items():
            if spec.private and (label := self.of(name)) is not None:
                self.levels[name] = label.level

    def __repr__(self) -> str:
        return f"<Labels: {len(self.levels)} stages>"

    def of(self, stage: StageId) -> Label | None:
        """The strictest label of what a stage reads and gives, which says where it may run; None for anywhere."""
        return _strictest((self._reads.get(stage), *_said(self._specs.get(stage))))

    def of_output(self, stage: StageId, port: str) -> Label | None:
        """The label of one of its outputs; None where that may go anywhere."""
        spec = self._specs.get(stage)
        if spec is None:
            return None
        return _strictest((self._inherited(stage, spec), *_gives(spec, port)))

    def given(self, stage: StageId) -> Label | None:
        """The strictest label of all that it gives, what its result adds to the job included."""
        spec = self._specs.get(stage)
        if spec is None:
            return None
        ports = spec.private if isinstance(spec.private, dict) else ("",)
        return _strictest((self._inherited(stage, spec), *(label for port in ports for label in _gives(spec, port))))

    def _inherited(self, stage: StageId, spec: StageSpec) -> Label | None:
        return None if declassifies(spec, self._kinds) else self._reads.get(stage)


NO_LABELS: Final = Labels({}, {}, {})


class Parts(NamedTuple):
    """What labels are found in: how far the job's inputs may go, all stages, and what leads into them."""

    inputs: Mapping[str, Private]
    specs: Mapping[StageId, StageSpec]
    arcs: Iterable[Dependency] = ()
    bindings: Iterable[InputBinding] = ()


class Expected(NamedTuple):
    """What feeds a place, `stage.port` or `$input`, and how far it may go at most."""

    place: str
    source: str
    level: Private


def labels_of(constellation: Constellation, kinds: Mapping[str, KindSpec]) -> tuple[Labels, Parts]:
    """The labels of a constellation, which need not be valid, and where they were found. Linear in its size."""
    specs = constellation.stages
    parts = Parts(constellation.private, specs, constellation.dependencies, constellation.bindings)
    if not constellation.private and not any(spec.private for spec in specs.values()):
        return NO_LABELS, parts
    return Labels(specs, _spread(parts, kinds), kinds), parts


def labels_in(
    shape: Shape, kinds: Mapping[str, KindSpec], difference: Difference | None = None
) -> tuple[Labels, Parts]:
    """The labels of a shape, or of what a difference makes of it. Linear in its size; in the difference's, if there are none."""
    inputs = shape.origin.private
    changes = difference.stages if difference is not None else ()
    fresh = any(change.after is not None and change.after.private for change in changes)
    if not inputs and not shape.private and not fresh:
        return NO_LABELS, Parts(inputs, shape.specs)
    specs = dict(shape.specs)
    arcs = [arc for some in shape.upstreams.values() for arc in some]
    bindings = [binding for some in shape.bindings.values() for binding in some]
    if difference is not None:
        for change in changes:
            specs.pop(change.stage, None)
            if change.after is not None:
                specs[change.stage] = change.after
        gone = {arc_key(arc) for arc in difference.removed}
        arcs = [*(arc for arc in arcs if arc_key(arc) not in gone), *difference.added]
        bindings = [*(each for each in bindings if each not in difference.unbound), *difference.bound]
    parts = Parts(inputs, specs, arcs, bindings)
    return Labels(specs, _spread(parts, kinds), kinds), parts


def declassifies(spec: StageSpec, kinds: Mapping[str, KindSpec]) -> bool:
    """Whether what a stage gives is free of the labels of what it reads."""
    if spec.declassify is not None:
        return spec.declassify
    kind = kinds.get(spec.kind)
    return kind is not None and kind.declassifies


def conflicts(labels: Labels, parts: Parts) -> Iterator[Problem]:
    """The stages that are required on other tiers than what they read or give may stand on: a problem for each of that."""
    specs = parts.specs
    closed = {name: None for name, level in labels.levels.items() if _is_closed(specs[name], level)}
    if not closed:
        return
    for binding in parts.bindings:
        level = parts.inputs.get(binding.source)
        if binding.downstream in closed and level is not None:
            way: tuple[str, ...] = (binding.source, str(binding.downstream))
            yield from _conflict(specs[binding.downstream], f"in.{binding.input}", level, way)
    for arc in parts.arcs:
        label = labels.of_output(arc.upstream, arc.output) if arc.downstream in closed and arc.output else None
        if label is not None:
            way = (*label.way, str(arc.upstream), str(arc.downstream))
            yield from _conflict(specs[arc.downstream], f"in.{arc.input}", label.level, way)
    for name in closed:
        private = specs[name].private
        said = private if isinstance(private, dict) else {} if private is None else {"": private}
        for port, level in said.items():
            yield from _conflict(specs[name], f"private.{port}" if port else "private", level, (name,))


def loosened(labels: Labels, parts: Parts, expected: Iterable[Expected]) -> Iterator[Problem]:
    """Where what feeds a place may go further than is expected there."""
    for place, source, level in expected:
        if source.startswith("$"):
            found = parts.inputs.get(source[1:])
        else:
            stage, _, port = source.partition(".")
            label = labels.of_output(StageId(stage), port)
            found = label.level if label is not None else None
        if found is None or not set(PRIVATE_TIERS[found]) <= set(PRIVATE_TIERS[level]):
            there = f"private to {found}" if found is not None else "not private"
            yield Problem(place, f"is private to {level} in there, but {source} is {there}; say so of what gives it")


def _conflict(spec: StageSpec, place: str, level: Private, way: tuple[str, ...]) -> Iterator[Problem]:
    if _is_closed(spec, level):
        tiers = " or ".join(spec.requires.tiers)
        what = f"is private to {level} ({cycle_text(way)}), but the stage requires the {tiers} tier"
        yield Problem(
            f"stages.{spec.id}.{place}", f"{what}; let it run where its data may stand, or declassify that before"
        )


def _is_closed(spec: StageSpec, level: Private) -> bool:
    """Whether none of the tiers that a stage requires is one where such data may stand."""
    tiers = spec.requires.tiers
    return bool(tiers) and not set(tiers).intersection(PRIVATE_TIERS[level])


def _said(spec: StageSpec | None) -> tuple[Label, ...]:
    """What a stage says of itself, as a whole or of its outputs."""
    private = spec.private if spec is not None else None
    if not isinstance(private, dict):
        return () if private is None else (Label(private, "the stage"),)
    return tuple(Label(level, f"its output {name}") for name, level in private.items())


def _gives(spec: StageSpec, port: str) -> tuple[Label, ...]:
    """What a stage says of one of its outputs."""
    private = spec.private
    if isinstance(private, dict):
        return (Label(private[port], f"its output {port}"),) if port in private else ()
    return () if private is None or spec.declassify else (Label(private, "the stage"),)


def said_by(spec: StageSpec) -> tuple[Private, ...]:
    """How far a stage says that it, or single outputs of it, may go; empty where it says nothing."""
    return tuple(label.level for label in _said(spec))


def strictest(*levels: Private | None) -> Private | None:
    """What lets data go least far; None where nothing is private."""
    return next((level for level in _STRICTEST_FIRST if level in levels), None)


def _strictest(labels: Iterable[Label | None]) -> Label | None:
    known = [label for label in labels if label is not None]
    level = strictest(*(label.level for label in known))
    return next((label for label in known if label.level == level), None)


def _spread(parts: Parts, kinds: Mapping[str, KindSpec]) -> dict[StageId, Label]:
    """The strictest label of what each stage reads, by the shortest way. The strictest go first, and meet no other."""
    inputs, specs = parts.inputs, parts.specs
    out: dict[StageId, list[Dependency]] = {}
    for arc in parts.arcs:
        if arc.output and arc.upstream in specs and arc.downstream in specs:
            out.setdefault(arc.upstream, []).append(arc)
    bound = [
        (inputs[each.source], each) for each in parts.bindings if each.source in inputs and each.downstream in specs
    ]
    said = [
        (label.level, arc, label)
        for name, spec in specs.items()
        if spec.private and name in out
        for arc in out[name]
        for label in _gives(spec, arc.output)
    ]
    reads: dict[StageId, Label] = {}
    for level in _STRICTEST_FIRST:
        waiting: deque[StageId] = deque()
        found = [(each.downstream, Label(level, each.input, each.source)) for at, each in bound if at == level]
        found += [
            (arc.downstream, Label(level, arc.input, arc.upstream, label)) for at, arc, label in said if at == level
        ]
        while found or waiting:
            for name, label in found:
                if name not in reads:
                    reads[name] = label
                    waiting.append(name)
            found = []
            if waiting:
                name = waiting.popleft()
                if name in out and not declassifies(specs[name], kinds):
                    found = [(arc.downstream, Label(level, arc.input, name, reads[name])) for arc in out[name]]
    return reads
