"""What a change would make wait for itself: by dependencies alone, or because stages that stream run together."""

from collections.abc import Callable, Iterator, Mapping

import msgspec

from starloom.dag.constellation import Constellation, Dependency
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.order import cycle_text, find_cycles
from starloom.dag.patch import Difference
from starloom.dag.streams import has_streams, is_stream, start_problems

Arcs = Callable[[StageId], list[Dependency]]
"""The dependencies at one end of a stage."""


def closing_problems(
    made: Constellation, difference: Difference, into: Arcs, out_of: Arcs, kinds: Mapping[str, KindSpec]
) -> Iterator[Problem]:
    """Cycles that a difference would close, and groups of streams that could then never start.

    `made` has all stages as they would be, to look up; `into` and `out_of` give their dependencies. What was there
    before waits for nothing of its own. So whatever is wrong leads through a new dependency, or through a stage of
    another kind, whose outputs are streams now or were, and one walk from there finds it. Takes time in what is
    downstream of them, and of what streams with that.
    """
    added = [arc for arc in difference.added if arc.upstream != arc.downstream]
    retyped = list(_retyped(difference, kinds))
    found = _reached(made, [*(arc.downstream for arc in added), *retyped], into, out_of, kinds)
    if not retyped and not any(arc.upstream in found for arc in added):
        return
    after = {stage: [arc.downstream for arc in arcs if arc.downstream != stage] for stage, arcs in found.items()}
    cycles = find_cycles(after)
    for cycle in cycles:
        yield Problem(f"stages.{cycle[1]}", f"would wait for itself: {cycle_text(cycle)}; leave one of these out")
    if not cycles:
        arcs = tuple(arc for some in found.values() for arc in some)
        yield from start_problems(msgspec.structs.replace(made, dependencies=arcs), kinds)


def _retyped(difference: Difference, kinds: Mapping[str, KindSpec]) -> Iterator[StageId]:
    """The stages that stay as another kind, where either has streams."""
    for change in difference.stages:
        names = {spec.kind for spec in (change.before, change.after) if spec is not None}
        if len(names) > 1 and any(has_streams(kinds.get(name)) for name in names):
            yield change.stage


def _reached(
    made: Constellation, starts: list[StageId], into: Arcs, out_of: Arcs, kinds: Mapping[str, KindSpec]
) -> dict[StageId, list[Dependency]]:
    """What comes after some stages, or runs at the same time as they or it; each with what leads out of it."""
    streaming: dict[str, bool] = {}
    found: dict[StageId, list[Dependency]] = {}
    waiting = starts
    while waiting:
        stage = waiting.pop()
        if stage in found:
            continue
        arcs = found[stage] = out_of(stage)
        waiting += [arc.downstream for arc in arcs]
        spec = made.stages.get(stage)
        if spec is None:
            continue
        if spec.kind not in streaming:
            streaming[spec.kind] = has_streams(kinds.get(spec.kind))
        if streaming[spec.kind]:
            for arc in into(stage):
                upstream = made.stages.get(arc.upstream)
                if upstream is not None and is_stream(arc, kinds.get(upstream.kind)):
                    waiting.append(arc.upstream)
    return found
