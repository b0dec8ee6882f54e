"""Everything that would be wrong with what a patch makes of a constellation, in and around what differs."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from starloom.dag import limits
from starloom.dag.closing import Arcs, closing_problems
from starloom.dag.constellation import Constellation, Dependency, StageSpec
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import OUTPUTS_PARAM, KindSpec
from starloom.dag.patch import Difference
from starloom.dag.privacy import conflicts, labels_in, loosened
from starloom.dag.spreads import group_problems
from starloom.dag.validate import problems_of_part
from starloom.dag.variants import floor_problems

if TYPE_CHECKING:
    from starloom.dag.draft import Draft


class DraftCheck:
    """Judges a draft. Takes time in what differs."""

    def __init__(self, draft: "Draft") -> None:
        self._draft = draft
        self._shape = draft.shape

    def problems(self, difference: Difference, kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
        """Everything that would be wrong with the constellation, in and around what differs."""
        yield from self._size_problems(difference)
        gone = [change.stage for change in difference.stages if change.after is None]
        yield from self._orphan_problems(gone)
        stages = [stage for stage in difference.touched if self._draft.spec(stage) is not None]
        part = self._part(difference, stages, set(gone))
        yield from problems_of_part(part, kinds, stages)
        yield from floor_problems((part.stages[stage] for stage in stages), self._shape.origin.least_quality)
        yield from closing_problems(part, difference, self._draft.arcs_into, self._arcs_out(), kinds)
        yield from self._spread_problems(difference)
        yield from self._privacy_problems(difference, kinds)

    def _size_problems(self, difference: Difference) -> Iterator[Problem]:
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

    def _privacy_problems(self, difference: Difference, kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
        """Where what is private would leave: in all of the constellation, for labels go on from what differs."""
        labels, parts = labels_in(self._shape, kinds, difference)
        yield from conflicts(labels, parts)
        yield from loosened(labels, parts, self._draft.expected)

    def _spread_problems(self, difference: Difference) -> Iterator[Problem]:
        """Where what differs is spread otherwise than the rest of its group."""
        spreads = (change.after.spread for change in difference.stages if change.after is not None)
        groups = {spread.group for spread in spreads if spread is not None}
        if groups:
            yield from group_problems(filter(None, map(self._draft.spec, self._draft.names())), groups)

    def _orphan_problems(self, gone: Iterable[StageId]) -> Iterator[Problem]:
        """What would still need a stage that is taken away."""
        lost = set(gone)
        untouched = [a.downstream for stage in lost for a in self._shape.downstreams[stage]]
        for consumer in dict.fromkeys((*self._draft.arcs, *sorted(untouched))) if lost else ():
            for arc in self._draft.arcs_into(consumer):
                if arc.upstream in lost:
                    place = f"stages.{consumer}.in.{arc.input}" if arc.input else f"stages.{consumer}.after"
                    what = f"still needs {arc.upstream}, which is removed; rewire it, or remove it as well"
                    yield Problem(place, what)

    def _part(self, difference: Difference, stages: Iterable[StageId], gone: set[StageId]) -> Constellation:
        """What has to be checked: all that leads into the stages, and out of those whose ports changed."""
        arcs = [arc for stage in stages for arc in self._draft.arcs_into(stage) if arc.upstream not in gone]
        inside = set(stages)
        retyped = {
            change.stage
            for change in difference.stages
            if change.before is not None and change.after is not None and _has_other_ports(change.before, change.after)
        }
        for stage in retyped:
            consumers = {arc.downstream for arc in self._shape.downstreams[stage]} - inside
            arcs += (arc for consumer in consumers for arc in self._draft.arcs_into(consumer) if arc.upstream == stage)
        names = set(self._draft.outputs)
        if retyped or gone:
            names |= {name for name, out in self._shape.outputs.items() if out.upstream in retyped | gone}
        outputs = {name: out for name in names if (out := self._draft.output(name)) is not None}
        bindings = map(self._draft.bindings_of, stages)
        return msgspec.structs.replace(
            self._shape.origin,
            stages=self._draft.stages,
            dependencies=tuple(arcs),
            bindings=tuple(binding for some in bindings for binding in some),
            outputs=outputs,
        )

    def _arcs_out(self) -> Arcs:
        """What would lead out of a stage, by its name."""
        mine, downstreams = self._draft.arcs, self._shape.downstreams
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
