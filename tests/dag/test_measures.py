"""Measures against a worked example and against every path of small graphs; networkx there and back."""

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starloom.dag.constellation import (
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    On,
    OutputBinding,
    Requirements,
    StageSpec,
    Tier,
)
from starloom.dag.errors import InvalidConstellation
from starloom.dag.ids import StageId
from starloom.dag.measures import from_networkx, measure, to_networkx
from starloom.dag.values import Port, PortType


def sid(name: str) -> StageId:
    return StageId(name)


def constellation(arcs: str, *, stages: str = "") -> Constellation:
    """From `ab bc`: an arc from a to b and one from b to c."""
    pairs = [(sid(pair[0]), sid(pair[1])) for pair in arcs.split()]
    names = sorted({name for pair in pairs for name in pair} | set(stages))
    return Constellation(
        name="g",
        stages={sid(name): StageSpec(id=sid(name), kind="k") for name in names},
        dependencies=tuple(Dependency(upstream=up, downstream=down) for up, down in pairs),
    )


def test_a_worked_example_of_five_stages() -> None:
    """Width, work, critical path and parallelism as UFO3's evaluation publishes them for five tasks.

    It gives W = 674.47 s, L = 638.13 s, P = 1.057 and a width of 4 for five tasks and four dependencies, but not
    each task's time; these are chosen so that they come to its W and L.
    """
    seconds = {sid("a"): 630.00, sid("b"): 12.04, sid("c"): 11.90, sid("d"): 12.40, sid("e"): 8.13}
    found = measure(constellation("ae be ce de"), seconds)
    assert (found.stages, found.dependencies, found.depth, found.width) == (5, 4, 2, 4)
    assert found.work_seconds == pytest.approx(674.47)
    assert found.critical_seconds == pytest.approx(638.13)
    assert found.critical_path == ("a", "e")
    assert found.parallelism == pytest.approx(1.057, abs=5e-4)
    counted = measure(constellation("ae be ce de"), dict.fromkeys(seconds, 1.0))
    assert counted.parallelism == 2.5


def test_dependencies_take_time_on_the_critical_path_but_are_no_work() -> None:
    seconds = {sid("a"): 1.0, sid("b"): 5.0, sid("c"): 1.0, sid("d"): 1.0}
    diamond = constellation("ab ac bd cd")
    assert measure(diamond, seconds).critical_path == ("a", "b", "d")
    found = measure(diamond, seconds, {(sid("a"), sid("c")): 3.0, (sid("c"), sid("d")): 3.0})
    assert found.critical_path == ("a", "c", "d")
    assert (found.critical_seconds, found.work_seconds) == (9.0, 8.0)


def test_stages_without_times_have_a_shape_only() -> None:
    found = measure(constellation("ab bc", stages="d"), {})
    assert (found.depth, found.width, found.critical_seconds, found.parallelism) == (3, 2, 0.0, 0.0)


def test_an_empty_constellation_measures_nothing() -> None:
    found = measure(Constellation(name="none", stages={}), {})
    assert (found.stages, found.depth, found.width, found.critical_path) == (0, 0, 0, ())


@settings(max_examples=100, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))), st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_the_critical_path_is_the_longest_of_all_paths(pairs: set[tuple[int, int]], times: list[int]) -> None:
    arcs = [(low, high) for low, high in pairs if low < high]
    seconds = {sid(str(index)): float(time) for index, time in enumerate(times)}
    found = measure(constellation(" ".join(f"{up}{down}" for up, down in arcs), stages="012345"), seconds)
    graph: nx.DiGraph[int] = nx.DiGraph(arcs)
    graph.add_nodes_from(range(6))
    paths = [[vertex] for vertex in graph]
    paths += [path for up in graph for down in graph for path in nx.all_simple_paths(graph, up, down) if up != down]
    assert found.critical_seconds == max(sum(times[vertex] for vertex in path) for path in paths)
    assert sum(seconds[stage] for stage in found.critical_path) == found.critical_seconds
    assert all(
        (int(up), int(down)) in arcs for up, down in zip(found.critical_path, found.critical_path[1:], strict=False)
    )
    assert found.depth == max(len(path) for path in paths)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InvalidConstellation, match="a -> b -> a"):
        measure(constellation("ab ba"), {})
    unknown = Constellation(
        name="g",
        stages={sid("a"): StageSpec(id=sid("a"), kind="k")},
        dependencies=(Dependency(upstream=sid("a"), downstream=sid("z")),),
    )
    with pytest.raises(InvalidConstellation, match=r"dependencies\[0\]: no stage is called 'z'"):
        measure(unknown, {})


def test_networkx_there_and_back_is_the_same() -> None:
    a, b = sid("a"), sid("b")
    comparison = Comparison(output="x", operator="==", value=1)
    before = Constellation(
        name="both-ways",
        stages={
            b: StageSpec(id=b, kind="k2", params={"n": 1}),
            a: StageSpec(id=a, kind="k1", requires=Requirements(tiers=(Tier.CLOUD,))),
        },
        dependencies=(
            Dependency(upstream=a, downstream=b, output="x", input="y"),
            Dependency(upstream=a, downstream=b, on=On.COMPARISON, comparison=comparison),
        ),
        inputs={"i": Port(PortType.TEXT, stream=True)},
        bindings=(InputBinding(source="i", downstream=a, input="z"),),
        outputs={"o": OutputBinding(upstream=b, output="w")},
        labels={"team": "demo"},
    )
    graph = to_networkx(before)
    assert graph.number_of_edges(a, b) == 2
    assert graph.nodes[a]["kind"] == "k1"
    assert from_networkx(graph) == before


def test_a_foreign_graph_becomes_a_constellation() -> None:
    graph: nx.DiGraph[object] = nx.DiGraph(name="foreign")
    graph.add_node(1, kind="k1")
    graph.add_edge(1, "two", output="x", input="y")
    graph.add_edge("two", 3)
    found = from_networkx(graph, kind="k")
    assert {name: stage.kind for name, stage in found.stages.items()} == {"1": "k1", "two": "k", "3": "k"}
    assert found.name == "foreign"
    assert found.dependencies == (
        Dependency(upstream=sid("1"), downstream=sid("two"), output="x", input="y"),
        Dependency(upstream=sid("two"), downstream=sid("3")),
    )


def test_what_is_no_constellation_is_refused() -> None:
    graph: nx.DiGraph[object] = nx.DiGraph([(1, "1"), (1, 2)])
    with pytest.raises(InvalidConstellation) as caught:
        from_networkx(graph)
    assert [problem.place for problem in caught.value.problems] == [
        "stages.1.kind",
        "stages.1",
        "stages.1.kind",
        "stages.2.kind",
    ]
    with pytest.raises(InvalidConstellation, match="undirected"):
        from_networkx(nx.Graph())  # type: ignore[arg-type]
