"""Measures of a constellation, and its form as a networkx graph. For people and tools; never in the hot path."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import networkx as nx

from starloom.dag.constellation import Constellation, Dependency, StageSpec
from starloom.dag.errors import InvalidConstellation, Problem
from starloom.dag.ids import StageId
from starloom.dag.order import cycle_text, find_cycles

DependencySeconds = Mapping[tuple[StageId, StageId], float]
"""The seconds that a dependency takes, by upstream and downstream."""


@dataclass(frozen=True, slots=True)
class Measures:
    """The shape of a constellation, and with stage times its least possible wall time.

    `depth`: stages on the longest chain. `width`: the most stages on one level, where a stage's level is
    the length of the longest chain before it; the largest set of stages that do not wait for each other can
    be greater. `critical_path`: the chain of stages that takes longest, and `critical_seconds` its time,
    dependencies included; no schedule ends sooner. `work_seconds`: the time of all stages, without
    dependencies. `parallelism`: work / critical, 0 where nothing takes time.
    """

    stages: int
    dependencies: int
    depth: int
    width: int
    critical_path: tuple[StageId, ...]
    critical_seconds: float
    work_seconds: float
    parallelism: float


def measure(
    constellation: Constellation, seconds: Mapping[StageId, float], dependency_seconds: DependencySeconds | None = None
) -> Measures:
    """Measures a constellation. A stage without an entry in `seconds` takes no time, nor does such a dependency.

    Raises InvalidConstellation if the stages wait for each other in a cycle, or a dependency names an unknown stage.
    """
    graph = _simple(constellation)
    between = dependency_seconds or {}
    levels = [len(level) for level in nx.topological_generations(graph)]
    ends: dict[StageId, float] = {}
    came_from: dict[StageId, StageId] = {}
    for stage in nx.topological_sort(graph):
        start = 0.0
        for upstream in graph.predecessors(stage):
            ready = ends[upstream] + between.get((upstream, stage), 0.0)
            if ready > start or stage not in came_from:
                start, came_from[stage] = max(ready, start), upstream
        ends[stage] = start + seconds.get(stage, 0.0)
    path = [max(ends, key=ends.__getitem__)] if ends else []
    while path and path[-1] in came_from:
        path.append(came_from[path[-1]])
    critical = max(ends.values(), default=0.0)
    work = sum(seconds.get(stage, 0.0) for stage in constellation.stages)
    return Measures(
        stages=len(constellation.stages),
        dependencies=len(constellation.dependencies),
        depth=len(levels),
        width=max(levels, default=0),
        critical_path=tuple(reversed(path)),
        critical_seconds=critical,
        work_seconds=work,
        parallelism=work / critical if critical else 0.0,
    )


def _simple(constellation: Constellation) -> "nx.DiGraph[StageId]":
    """The stages with one arc between any two that depend on each other; certainly acyclic."""
    downstreams: dict[StageId, list[StageId]] = {stage: [] for stage in constellation.stages}
    unknown = [
        Problem(f"dependencies[{index}]", f"no stage is called {stage!r}")
        for index, dependency in enumerate(constellation.dependencies)
        for stage in (dependency.upstream, dependency.downstream)
        if stage not in downstreams
    ]
    for dependency in constellation.dependencies:
        downstreams.setdefault(dependency.upstream, []).append(dependency.downstream)
    cycles = [Problem("", f"stages wait for each other: {cycle_text(cycle)}") for cycle in find_cycles(downstreams)]
    if unknown or cycles:
        raise InvalidConstellation([*unknown, *cycles], f"constellation {constellation.name!r} cannot be measured")
    graph: nx.DiGraph[StageId] = nx.DiGraph()
    graph.add_nodes_from(constellation.stages)
    graph.add_edges_from((upstream, end) for upstream, ends in downstreams.items() for end in ends)
    return graph


def to_networkx(constellation: Constellation) -> "nx.MultiDiGraph[StageId]":
    """A networkx graph: a vertex per stage, an arc per dependency, keyed by its index in `dependencies`.

    Vertices carry `kind` and `spec` (the StageSpec), arcs `output`, `input` and `dependency`. The graph's
    attribute `constellation` holds the rest, so that `from_networkx` gives back an equal constellation.
    """
    graph: nx.MultiDiGraph[StageId] = nx.MultiDiGraph(name=constellation.name)
    graph.graph["constellation"] = msgspec.structs.replace(constellation, stages={}, dependencies=())
    for stage, spec in constellation.stages.items():
        graph.add_node(stage, kind=spec.kind, spec=spec)
    for index, dependency in enumerate(constellation.dependencies):
        attributes = {"output": dependency.output, "input": dependency.input, "dependency": dependency}
        graph.add_edge(dependency.upstream, dependency.downstream, key=index, **attributes)
    return graph


def from_networkx(graph: "nx.DiGraph[Any]", *, name: str = "", kind: str = "") -> Constellation:
    """A constellation from any directed networkx graph; a multigraph may have several arcs between two vertices.

    A vertex becomes the stage of its attribute `spec`, else a stage named as the vertex, of the kind in its
    attribute `kind`, or else of `kind`. An arc becomes its attribute `dependency`, else one from its `output` to
    its `input`, if it has them, or else one of order only. `name` overrules the graph's own.
    Raises InvalidConstellation for an undirected graph, and with a place for each vertex without a kind.
    """
    if not graph.is_directed():
        raise InvalidConstellation("the networkx graph is undirected, and dependencies have a direction; use a DiGraph")
    stages: dict[StageId, StageSpec] = {}
    problems: list[Problem] = []
    for vertex, attributes in graph.nodes(data=True):
        stage = StageId(str(vertex))
        spec = attributes.get("spec") or StageSpec(id=stage, kind=str(attributes.get("kind") or kind))
        if stage in stages:
            problems.append(Problem(f"stages.{stage}", "two vertices have this name as text; rename one"))
        if not spec.kind:
            problems.append(Problem(f"stages.{stage}.kind", "the vertex has no attribute kind; set it, or pass kind="))
        stages[stage] = msgspec.structs.replace(spec, id=stage)
    if problems:
        raise InvalidConstellation(problems, "the networkx graph is no constellation")
    arcs = [(up, down, 0, attributes) for up, down, attributes in graph.edges(data=True)]
    if isinstance(graph, nx.MultiDiGraph):
        arcs = list(graph.edges(keys=True, data=True))
        if all(isinstance(key, int) for _, _, key, _ in arcs):
            arcs.sort(key=lambda arc: arc[2])
    rest = graph.graph.get("constellation") or Constellation(name="", stages={})
    return msgspec.structs.replace(
        rest,
        name=name or rest.name or str(graph.graph.get("name", "")) or "graph",
        stages=stages,
        dependencies=tuple(
            _dependency(upstream, downstream, attributes) for upstream, downstream, _, attributes in arcs
        ),
    )


def _dependency(upstream: Any, downstream: Any, attributes: Mapping[str, Any]) -> Dependency:
    ends = (StageId(str(upstream)), StageId(str(downstream)))
    known: Dependency | None = attributes.get("dependency")
    if known is not None:
        return msgspec.structs.replace(known, upstream=ends[0], downstream=ends[1])
    output, sink = str(attributes.get("output", "")), str(attributes.get("input", ""))
    return Dependency(upstream=ends[0], downstream=ends[1], output=output, input=sink)
