"""A constellation that changes: indexed from all sides, so that a patch costs what it touches."""

from collections.abc import Iterable, MutableMapping

import msgspec

from starloom.dag.constellation import Constellation, Dependency, InputBinding, OutputBinding, StageSpec
from starloom.dag.ids import StageId
from starloom.dag.patch import ArcKey, Difference, arc_key


class Shape:
    """The stages, dependencies and bindings of a constellation, as differences are applied to it."""

    def __init__(self, constellation: Constellation) -> None:
        self._made: Constellation | None = constellation
        self._origin = constellation
        self.specs: dict[StageId, StageSpec] = dict(constellation.stages)
        self.upstreams: dict[StageId, list[Dependency]] = {stage: [] for stage in self.specs}
        self.downstreams: dict[StageId, list[Dependency]] = {stage: [] for stage in self.specs}
        self.bindings: dict[StageId, list[InputBinding]] = {stage: [] for stage in self.specs}
        self.outputs: dict[str, OutputBinding] = constellation.outputs
        #: the stages that say how far what they give may go
        self.private = {name: None for name, spec in self.specs.items() if spec.private is not None}
        self.dependency_count = len(constellation.dependencies)
        for dependency in constellation.dependencies:
            self.upstreams[dependency.downstream].append(dependency)
            self.downstreams[dependency.upstream].append(dependency)
        for binding in constellation.bindings:
            self.bindings[binding.downstream].append(binding)

    def __repr__(self) -> str:
        return f"<Shape of {self._origin.name!r}: {len(self.specs)} stages, {self.dependency_count} dependencies>"

    @property
    def origin(self) -> Constellation:
        """The constellation before the first difference."""
        return self._origin

    @property
    def constellation(self) -> Constellation:
        """The constellation as it is now; made when it is asked for, in time linear in its size."""
        if self._made is None:
            self._made = msgspec.structs.replace(
                self._origin,
                stages=dict(self.specs),
                dependencies=tuple(arc for arcs in self.upstreams.values() for arc in arcs),
                bindings=tuple(binding for bindings in self.bindings.values() for binding in bindings),
                outputs=dict(self.outputs),
            )
        return self._made

    def apply(self, difference: Difference) -> None:
        """Takes over a difference that was made for what is here. Raises KeyError if it was not."""
        self._made = None
        for change in difference.stages:
            if change.after is not None:
                self.specs[change.stage] = change.after
                if change.after.private is not None:
                    self.private[change.stage] = None
                else:
                    self.private.pop(change.stage, None)
                for index in (self.upstreams, self.downstreams, self.bindings):
                    index.setdefault(change.stage, [])
        self._drop_arcs(difference.removed)
        for binding in difference.unbound:
            self.bindings[binding.downstream].remove(binding)
        for arc in difference.added:
            self.upstreams[arc.downstream].append(arc)
            self.downstreams[arc.upstream].append(arc)
        for binding in difference.bound:
            self.bindings[binding.downstream].append(binding)
        for change in difference.stages:
            if change.after is None:
                del self.specs[change.stage], self.bindings[change.stage]
                del self.upstreams[change.stage], self.downstreams[change.stage]
                self.private.pop(change.stage, None)
        self.dependency_count += len(difference.added) - len(difference.removed)
        if difference.outputs:
            changed = {name: change.after for name, change in difference.outputs.items()}
            self.outputs = {name: out for name, out in {**self.outputs, **changed}.items() if out is not None}

    def _drop_arcs(self, removed: Iterable[Dependency]) -> None:
        keys = {arc_key(arc) for arc in removed}
        _drop(self.upstreams, {key.downstream for key in keys}, keys)
        _drop(self.downstreams, {key.upstream for key in keys}, keys)


def _drop(index: MutableMapping[StageId, list[Dependency]], stages: Iterable[StageId], keys: set[ArcKey]) -> None:
    for stage in stages:
        index[stage] = [arc for arc in index[stage] if arc_key(arc) not in keys]


def constellation_at(origin: Constellation, differences: Iterable[Difference]) -> Constellation:
    """The constellation that differences make of another, one after the other."""
    shape = Shape(origin)
    for difference in differences:
        shape.apply(difference)
    return shape.constellation
