"""A constellation with streams as a problem of one chunk: what each stage takes for it, and what moves on. Pure.

Of a job whose streams flow, a round is a chunk: a frame that a camera gives, until all that reads it has done with it. Stages that
read and give no streams are done once, and take nothing of a chunk.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import numpy as np

from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.errors import InvalidInput
from starloom.dag.errors import Problem as Trouble
from starloom.dag.expectation import run_seconds
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.streams import has_streams, is_stream
from starloom.orchestrator.fleetfile import Fleet
from starloom.orchestrator.planner.building import STORE, USUAL_BYTES, Built, ways
from starloom.orchestrator.planner.problem import Flags

Measured = Mapping[tuple[StageId, str, str], float]
"""Seconds of a chunk, by stage, node and target; of stages in several variants it is not told in which, and it does not count."""


def chunked(
    constellation: Constellation,
    kinds: Mapping[str, KindSpec],
    fleet: Fleet,
    built: Built,
    measured: Measured = MappingProxyType({}),
) -> tuple[Built, Flags]:
    """The same stages and places, for one chunk of each stream; and [n] which stages take one chunk after the other.

    In a variant a chunk takes as much more or less of its kind's hint as the variant's run does of the stage's without one. Values
    that are no streams move once, and are left out. Raises InvalidInput with each stage of which neither its kind nor
    `measured` tells what a chunk takes, or where nothing streams.
    """
    specs = constellation.stages
    streaming = [name for name in built.stages if has_streams(kinds[specs[name].kind]) and not specs[name].cancelled]
    _refuse_untold(specs, kinds, streaming, measured)
    arrays, stages = built.problem.arrays, list(built.stages)
    speeds = {(node.node.name, target): speed for node in fleet.nodes for target, speed in node.speed.items()}
    seconds = np.where(np.isfinite(arrays.seconds), 0.0, np.inf)
    alone = np.zeros(len(built.problem.stages), dtype=np.bool_)
    for name in streaming:
        row = stages.index(name)
        alone[row] = True
        hints = _hints(specs[name], kinds[specs[name].kind])
        known = {} if len(hints) > 1 else measured
        for at, place in enumerate(built.problem.places):
            if place != STORE and np.isfinite(seconds[row, at]):
                told = hints[place.variant] / speeds.get((place.node, place.target), 1.0)
                seconds[row, at] = known.get((name, place.node, place.target), told)
    edges = _edges(constellation, kinds, {name: index for index, name in enumerate(built.problem.stages)}, specs)
    ends = np.array([edge[:2] for edge in edges], dtype=np.int32).reshape(-1, 2)
    problem = built.problem._replace(
        arrays=arrays._replace(
            seconds=seconds,
            upstream=ends[:, 0].copy(),
            downstream=ends[:, 1].copy(),
            size_bytes=np.array([float(edge[2]) for edge in edges]),
            charge=np.zeros_like(arrays.charge),
        )
    )
    return built._replace(problem=problem), alone


def _refuse_untold(
    specs: Mapping[StageId, StageSpec], kinds: Mapping[str, KindSpec], streaming: Sequence[StageId], measured: Measured
) -> None:
    """Raises InvalidInput where nothing streams, or nothing tells what a chunk takes."""
    troubles = [
        Trouble(f"stages.{name}", f"{specs[name].kind} does not say what a chunk takes; its runs have to tell")
        for name in streaming
        if kinds[specs[name].kind].cost.chunk_seconds is None
        and (len(specs[name].variants) > 1 or not any(key[0] == name for key in measured))
    ]
    if not streaming:
        troubles.append(
            Trouble("rate", "is of the chunks of streams, and there are none; say `every: 100ms` of the job")
        )
    if troubles:
        raise InvalidInput(troubles, "no period of a chunk can be planned")


def _hints(spec: StageSpec, kind: KindSpec) -> list[float]:
    """Seconds of a chunk in each of the stage's variants, on one core of the reference machine."""
    hint, plain = kind.cost.chunk_seconds or 0.0, run_seconds(msgspec.structs.replace(spec, variants=()), kind)
    return [hint * run_seconds(way, kind) / plain if plain else hint for way in ways(spec)]


def _edges(
    constellation: Constellation,
    kinds: Mapping[str, KindSpec],
    numbers: Mapping[str, int],
    specs: Mapping[StageId, StageSpec],
) -> list[tuple[int, int, int]]:
    """What carries a chunk: from a stage or an input to a stage or an output, and its bytes."""
    arcs = [arc for arc in constellation.dependencies if is_stream(arc, kinds[specs[arc.upstream].kind])]
    found = [
        (numbers[arc.upstream], numbers[arc.downstream], kinds[specs[arc.upstream].kind].outputs[arc.output].type)
        for arc in arcs
    ]
    given = [(constellation.inputs[each.source], each) for each in constellation.bindings]
    found += [
        (numbers[f"input {binding.source}"], numbers[binding.downstream], port.type)
        for port, binding in given
        if port.stream
    ]
    made = [
        (kinds[specs[output.upstream].kind].outputs.get(output.output), name, output)
        for name, output in constellation.outputs.items()
    ]
    found += [
        (numbers[output.upstream], numbers[f"output {name}"], port.type)
        for port, name, output in made
        if port is not None and port.stream
    ]
    return [(up, down, USUAL_BYTES[kind]) for up, down, kind in found]
