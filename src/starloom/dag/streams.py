"""Streams between stages: which arcs are such, and which stages they connect.

Stages that stream into each other, directly or through others, are a group: they run at the same time, so nothing
that one of them waits for may need the end of another.
"""

from collections.abc import Iterable, Iterator, Mapping

from starloom.dag import limits
from starloom.dag.constellation import Constellation, Dependency
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.order import find_cycles
from starloom.dag.values import Port

Groups = dict[StageId, tuple[StageId, ...]]
"""Each stage that streams connect to others, with all stages of its group, itself included, in a fixed order."""


def has_streams(kind: KindSpec | None) -> bool:
    """Whether a kind has a stream among its ports; not if it is unknown."""
    if kind is None:
        return False
    ports = (*kind.inputs.values(), *kind.outputs.values(), *([kind.variadic_input] if kind.variadic_input else ()))
    return any(port.stream for port in ports)


def buffer_fault(port: Port) -> str:
    """Why what a port says of its stream's chunks cannot be; empty if it can."""
    if port.chunks > limits.STREAM_BUFFER_CHUNKS_MAX:
        return f"keeps {port.chunks} chunks, over STREAM_BUFFER_CHUNKS_MAX = {limits.STREAM_BUFFER_CHUNKS_MAX}"
    if not port.stream and (port.chunks or port.full is not None):
        return "says what becomes of a stream's chunks, but is no stream; add stream: true, or leave that out"
    return ""


def is_stream(arc: Dependency, upstream: KindSpec | None) -> bool:
    """Whether a dependency carries a stream, by the kind of its upstream."""
    port = upstream.outputs.get(arc.output) if upstream is not None and arc.output else None
    return port is not None and port.stream


def groups_of(arcs: Iterable[Dependency]) -> Groups:
    """The groups that these stream arcs make, each in the order in which the arcs name its stages."""
    root: dict[StageId, StageId] = {}

    def find(stage: StageId) -> StageId:
        root.setdefault(stage, stage)
        while root[stage] != stage:
            root[stage] = root[root[stage]]
            stage = root[stage]
        return stage

    for arc in arcs:
        first, second = find(arc.upstream), find(arc.downstream)
        root[second] = first
    members: dict[StageId, list[StageId]] = {}
    for stage in root:
        members.setdefault(find(stage), []).append(stage)
    return {stage: group for group in map(tuple, members.values()) for stage in group}


def input_streams(constellation: Constellation) -> dict[str, Port]:
    """The inputs that are streams, by name."""
    return {name: port for name, port in constellation.inputs.items() if port.stream}


def open_inputs(constellation: Constellation, options: Mapping[str, object]) -> dict[str, Port]:
    """The input streams that a job of it has: an optional one only if it was named."""
    return {name: port for name, port in input_streams(constellation).items() if not port.optional or name in options}


def start_problems(constellation: Constellation, kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
    """The groups that could never start, in a constellation without cycles: one stage of each waits for another's end."""
    streams, others = [], []
    for arc in constellation.dependencies:
        stage = constellation.stages.get(arc.upstream)
        known = stage is not None and arc.downstream in constellation.stages
        if known and is_stream(arc, kinds.get(stage.kind)):  # type: ignore[union-attr]
            streams.append(arc)
        elif known:
            others.append(arc)
    if not streams:
        return
    groups = groups_of(streams)
    waits: dict[StageId, list[StageId]] = {}
    for arc in others:
        first, second = (_head(groups, stage) for stage in (arc.upstream, arc.downstream))
        if first == second and arc.upstream != arc.downstream:
            what = f"waits for the end of {arc.upstream}, but both belong to one group of streams, and run at the same time"
            yield Problem(
                f"stages.{arc.downstream}", f"{what}: read a stream of it instead, or cut the streams between"
            )
        elif first != second:
            waits.setdefault(first, []).append(second)
            waits.setdefault(second, [])
    for cycle in find_cycles(waits):
        first = next(stage for stage in cycle if stage in groups)
        way = " -> ".join(", ".join(groups.get(stage, (stage,))) for stage in cycle)
        what = f"runs at the same time as those that it streams with, and they wait for each other's end: {way}"
        yield Problem(f"stages.{first}", f"{what}; remove one of these dependencies")


def _head(groups: Groups, stage: StageId) -> StageId:
    return groups[stage][0] if stage in groups else stage
