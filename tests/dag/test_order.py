"""The incremental topological order, against networkx as the oracle, and its work on a long chain."""

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starloom.dag import limits
from starloom.dag.order import TopologicalOrder, cycle_text, find_cycles

VERTICES = 9
CHAIN = 10_000


def assert_in_order(order: TopologicalOrder[int], graph: "nx.MultiDiGraph[int]") -> None:
    position = {vertex: index for index, vertex in enumerate(order.order())}
    assert position.keys() == set(graph.nodes)
    assert all(position[up] < position[down] for up, down in graph.edges())


def assert_cycle(cycle: tuple[int, ...], graph: "nx.MultiDiGraph[int]") -> None:
    """The first arc of the cycle is the one refused; all others are there; no vertex comes twice."""
    assert cycle[0] == cycle[-1]
    assert len(set(cycle[1:])) == len(cycle) - 1
    assert all(graph.has_edge(up, down) for up, down in pairwise(cycle[1:]))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arc", "arc", "arc", "drop", "vertex"]), st.integers(0, VERTICES), st.integers(0, VERTICES)
        ),
        max_size=80,
    )
)
def test_agrees_with_networkx_on_random_changes(changes: list[tuple[str, int, int]]) -> None:
    order = TopologicalOrder[int]()
    graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
    for what, up, down in changes:
        for vertex in (up, down):
            order.add_vertex(vertex)
            graph.add_node(vertex)
        if what == "arc":
            cycle = order.add_arc(up, down)
            assert bool(cycle) == nx.has_path(graph, down, up)
            if cycle:
                assert cycle[:2] == (up, down)
                assert_cycle(cycle, graph)
            else:
                graph.add_edge(up, down)
        elif what == "drop" and graph.has_edge(up, down):
            order.remove_arc(up, down)
            graph.remove_edge(up, down)
        elif what == "vertex":
            order.remove_vertex(up)
            graph.remove_node(up)
        assert_in_order(order, graph)


def test_a_chain_added_tail_first_looks_at_one_vertex_per_arc() -> None:
    order = TopologicalOrder[int]()
    for vertex in reversed(range(CHAIN)):
        order.add_vertex(vertex)
    for upstream in reversed(range(CHAIN - 1)):
        assert order.add_arc(upstream, upstream + 1) == ()
    assert order.order() == list(range(CHAIN))
    assert order.visited <= 2 * CHAIN


def test_a_chain_added_head_first_needs_no_search() -> None:
    order = TopologicalOrder[int]()
    for vertex in range(CHAIN):
        order.add_vertex(vertex)
    assert not any(order.add_arc(upstream, upstream + 1) for upstream in range(CHAIN - 1))
    assert order.visited == 0


def test_a_wide_hub_is_searched_from_its_narrow_side() -> None:
    order = TopologicalOrder[int]()
    for vertex in range(CHAIN):
        order.add_vertex(vertex)
    for downstream in range(1, CHAIN - 100):
        order.add_arc(0, downstream)
    for upstream in range(CHAIN - 100, CHAIN):
        order.add_arc(upstream, 0)
    assert order.visited <= 2 * 100


def test_closing_a_long_chain_names_the_whole_cycle_without_recursion() -> None:
    order = TopologicalOrder[int]()
    for vertex in range(CHAIN):
        order.add_vertex(vertex)
    for upstream in range(CHAIN - 1):
        order.add_arc(upstream, upstream + 1)
    assert order.add_arc(CHAIN - 1, 0) == (CHAIN - 1, *range(CHAIN))
    assert order.order() == list(range(CHAIN))


def test_parallel_arcs_are_counted() -> None:
    order = TopologicalOrder[str]()
    order.add_vertex("a")
    order.add_vertex("b")
    order.add_arc("a", "b")
    order.add_arc("a", "b")
    order.remove_arc("a", "b")
    assert order.add_arc("b", "a") == ("b", "a", "b")
    order.remove_arc("a", "b")
    assert order.add_arc("b", "a") == ()
    with pytest.raises(KeyError):
        order.remove_arc("a", "b")


def test_an_arc_to_itself_is_a_cycle_and_an_unknown_vertex_an_error() -> None:
    order = TopologicalOrder[str]()
    order.add_vertex("a")
    assert order.add_arc("a", "a") == ("a", "a")
    with pytest.raises(KeyError):
        order.add_arc("a", "b")
    with pytest.raises(KeyError):
        order.remove_vertex("b")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, VERTICES), st.integers(0, VERTICES)), max_size=30))
def test_find_cycles_agrees_with_networkx(arcs: list[tuple[int, int]]) -> None:
    graph: nx.MultiDiGraph[int] = nx.MultiDiGraph(arcs)
    cycles = find_cycles({vertex: list(graph.successors(vertex)) for vertex in graph})
    assert bool(cycles) != nx.is_directed_acyclic_graph(graph)
    for cycle in cycles:
        assert_cycle(cycle, graph)
        assert graph.has_edge(cycle[0], cycle[1])


def test_find_cycles_stops_at_its_limit() -> None:
    everything = range(20)
    assert len(find_cycles(dict.fromkeys(everything, everything))) == limits.CYCLES_REPORTED_MAX


def test_find_cycles_follows_a_long_chain_without_recursion() -> None:
    arcs: dict[int, list[int]] = {vertex: [vertex + 1] for vertex in range(CHAIN)}
    assert find_cycles(arcs) == []
    arcs[CHAIN] = [CHAIN - 1]
    assert find_cycles(arcs) == [(CHAIN - 1, CHAIN, CHAIN - 1)]


def test_a_long_cycle_is_cut_in_the_middle() -> None:
    assert cycle_text(("a", "b", "a")) == "a -> b -> a"
    text = cycle_text((*range(1_000), 0))
    assert text.startswith("0 -> 1 -> ")
    assert text.endswith(" -> 999 -> 0")
    assert "(989 more)" in text
