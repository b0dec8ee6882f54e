"""A job without what a stage had grown: as far as that still stands, and nothing that people have changed since."""

from collections.abc import Collection, Mapping

from starloom.dag.constellation import Dependency, InputBinding
from starloom.dag.draft import difference_of
from starloom.dag.errors import PatchRefused
from starloom.dag.ids import StageId
from starloom.dag.job import JobState
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Difference, Patch, arc_key, between, operations_of, swapped
from starloom.dag.shape import Shape


def without(job: JobState, name: StageId, kinds: Mapping[str, KindSpec]) -> Shape:
    """The job without what a stage, and all that came of it, changed. Raises PatchRefused where later patches rest on that.

    Takes time in the size of the job.
    """
    came = job.came_of(name)
    standing = [job.growths[each] for each in (name, *came) if each in job.growths]
    standing.sort(key=lambda growth: -growth.revision)
    shape = Shape(job.constellation)
    for growth in standing:
        shape.apply(_left_of(shape, swapped(growth.stands), came))
    back = between(job.constellation, shape.constellation)
    if not back:
        return job.shape
    _, problems = difference_of(job.shape, Patch(operations=operations_of(back)), kinds)
    if problems:
        raise PatchRefused(problems, f"{name} ran again and grows differently, and what it added cannot be taken back")
    return Shape(shape.constellation)


def _left_of(shape: Shape, back: Difference, going: Collection[StageId]) -> Difference:
    """What there is still to do of a way back, on which the stages of `going` go."""
    gone = {change.stage for change in back.stages}
    there = {arc_key(arc) for stage in back.touched for arc in shape.upstreams.get(stage, ())}
    removed = [arc for arc in back.removed if arc_key(arc) in there]
    unbound = [each for each in back.unbound if each in shape.bindings.get(each.downstream, ())]
    feeding = _Feeding(shape, removed, unbound, going)
    added = [arc for arc in back.added if arc.upstream in shape.specs and feeding.makes_room(arc)]
    bound = [each for each in back.bound if feeding.makes_room(each)]
    return Difference(
        stages=tuple(change for change in back.stages if change.stage in shape.specs),
        removed=(*removed, *(arc for arc in feeding.left if arc.downstream not in gone)),
        added=tuple(added),
        unbound=tuple(unbound),
        bound=tuple(bound),
        outputs={
            name: change
            for name, change in back.outputs.items()
            if (known := shape.outputs.get(name)) is not None and (known == change.before or known.upstream in going)
        },
    )


class _Feeding:
    """What feeds the inputs that are to be fed as before. `left`: what people feed them from stages that go."""

    def __init__(
        self,
        shape: Shape,
        removed: Collection[Dependency],
        unbound: Collection[InputBinding],
        going: Collection[StageId],
    ) -> None:
        self._shape = shape
        self._removed = {arc_key(arc) for arc in removed}
        self._unbound = unbound
        self._going = going
        self._freed = {arc.downstream for arc in removed} | {each.downstream for each in unbound}
        self.left: list[Dependency] = []

    def makes_room(self, source: Dependency | InputBinding) -> bool:
        """Whether a source may have its input back: what took its place goes, and nothing else feeds it."""
        stage, port = source.downstream, source.input
        if stage not in self._shape.specs:
            return False
        if any(each.input == port and each not in self._unbound for each in self._shape.bindings[stage]):
            return False
        arcs = [arc for arc in self._shape.upstreams[stage] if arc.input == port]
        others = [arc for arc in arcs if arc_key(arc) not in self._removed]
        if any(arc.upstream not in self._going for arc in others):
            return False
        self.left += (arc for arc in others if arc not in self.left)
        return bool(others) or stage in self._freed
