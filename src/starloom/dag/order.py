"""Topological order: kept while arcs come and go, and found at once for a whole graph.

Nothing here recurses, so the depth of a graph is bounded by memory only. Vertices are any hashable
values; an arc may be there several times, as two stages may be joined by several dependencies.
"""

from collections.abc import Generator, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from starloom.dag import limits

V = TypeVar("V", bound=Hashable)


class TopologicalOrder(Generic[V]):
    """A topological order of a growing and shrinking graph, with a cycle check at each new arc.

    Each vertex has an integer label, and every arc goes from a smaller label to a greater one. An
    arc that fits the labels is accepted at once. For any other, two searches take turns, one arc
    each: backwards from `upstream` and forwards from `downstream`. If they meet, the arc would close
    a cycle. If one runs out first, all it found moves past the other end of the order. So an arc
    costs at most twice the smaller of the two searches; labels only decide whether there is a
    search at all. (The two-way search is that of Bender, Fineman, Gilbert and Tarjan, "A new
    approach to incremental cycle detection", 2016, without its bound on the search by level.)

    `visited` counts the vertices that searches have looked at, over the object's life.

        order = TopologicalOrder[str]()
        order.add_vertex("hear"); order.add_vertex("speak")
        order.add_arc("hear", "speak")       # ()
        order.add_arc("speak", "hear")       # ("speak", "hear", "speak"), and not added
    """

    def __init__(self) -> None:
        self._labels: dict[V, int] = {}
        self._upstreams: dict[V, dict[V, int]] = {}
        self._downstreams: dict[V, dict[V, int]] = {}
        self._lowest = 0
        self._highest = -1
        self.visited = 0

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, vertex: object) -> bool:
        return vertex in self._labels

    def __repr__(self) -> str:
        arcs = sum(sum(arcs.values()) for arcs in self._downstreams.values())
        return f"<TopologicalOrder: {len(self)} vertices, {arcs} arcs>"

    def order(self) -> list[V]:
        """All vertices, each after all its upstreams."""
        return sorted(self._labels, key=self._labels.__getitem__)

    def upstreams(self, vertex: V) -> list[V]:
        """The vertices with an arc to this one. Raises KeyError for an unknown vertex."""
        return list(self._upstreams[vertex])

    def downstreams(self, vertex: V) -> list[V]:
        """The vertices with an arc from this one. Raises KeyError for an unknown vertex."""
        return list(self._downstreams[vertex])

    def add_vertex(self, vertex: V) -> None:
        """Adds a vertex at the end of the order; one that is there stays as it is."""
        if vertex in self._labels:
            return
        self._highest += 1
        self._labels[vertex] = self._highest
        self._upstreams[vertex] = {}
        self._downstreams[vertex] = {}

    def remove_vertex(self, vertex: V) -> None:
        """Removes a vertex and all its arcs. Raises KeyError for an unknown vertex."""
        del self._labels[vertex]
        for upstream in self._upstreams.pop(vertex):
            del self._downstreams[upstream][vertex]
        for downstream in self._downstreams.pop(vertex):
            del self._upstreams[downstream][vertex]

    def add_arc(self, upstream: V, downstream: V) -> tuple[V, ...]:
        """Adds an arc, unless that closes a cycle.

        Returns () if the arc was added; else the cycle that it would close, from `upstream` over
        `downstream` back to `upstream`, and nothing has changed. Raises KeyError for an unknown vertex.
        """
        up_label, down_label = self._labels[upstream], self._labels[downstream]
        if upstream == downstream:
            return (upstream, downstream)
        if up_label > down_label:
            cycle = self._make_room(upstream, downstream)
            if cycle:
                return cycle
        ends, starts = self._downstreams[upstream], self._upstreams[downstream]
        ends[downstream] = starts[upstream] = ends.get(downstream, 0) + 1
        return ()

    def remove_arc(self, upstream: V, downstream: V) -> None:
        """Removes one arc of those between two vertices. Raises KeyError if there is none."""
        for arcs, end in ((self._downstreams[upstream], downstream), (self._upstreams[downstream], upstream)):
            if arcs.get(end, 0) > 1:
                arcs[end] -= 1
            elif not arcs.pop(end, 0):
                raise KeyError((upstream, downstream))

    def _make_room(self, upstream: V, downstream: V) -> tuple[V, ...]:
        """Moves vertices so that `upstream` comes before `downstream`; or returns the cycle in the way."""
        towards_up: dict[V, V] = {upstream: upstream}
        towards_down: dict[V, V] = {downstream: downstream}
        backwards = self._walk(upstream, self._upstreams, towards_up)
        forwards = self._walk(downstream, self._downstreams, towards_down)
        while True:
            for found in backwards:
                if found in towards_down:
                    return _joined(upstream, downstream, found, towards_up, towards_down)
                break
            else:
                self._move_to_front(towards_up)
                return ()
            for found in forwards:
                if found in towards_up:
                    return _joined(upstream, downstream, found, towards_up, towards_down)
                break
            else:
                self._move_to_end(towards_down)
                return ()

    def _walk(self, start: V, arcs: Mapping[V, dict[V, int]], came_from: dict[V, V]) -> Generator[V, None, None]:
        """Yields the end of every arc reachable from `start`, once per arc, and notes how it was reached."""
        waiting = [start]
        while waiting:
            vertex = waiting.pop()
            self.visited += 1
            for neighbour in arcs[vertex]:
                if neighbour not in came_from:
                    came_from[neighbour] = vertex
                    waiting.append(neighbour)
                yield neighbour

    def _move_to_front(self, vertices: Iterable[V]) -> None:
        moved = sorted(vertices, key=self._labels.__getitem__)
        self._lowest -= len(moved)
        self._labels.update(zip(moved, range(self._lowest, self._lowest + len(moved)), strict=True))

    def _move_to_end(self, vertices: Iterable[V]) -> None:
        moved = sorted(vertices, key=self._labels.__getitem__)
        self._labels.update(zip(moved, range(self._highest + 1, self._highest + 1 + len(moved)), strict=True))
        self._highest += len(moved)


def _joined(
    upstream: V, downstream: V, meeting: V, towards_up: Mapping[V, V], towards_down: Mapping[V, V]
) -> tuple[V, ...]:
    first = [meeting]
    while first[-1] != downstream:
        first.append(towards_down[first[-1]])
    second = [meeting]
    while second[-1] != upstream:
        second.append(towards_up[second[-1]])
    return (upstream, *reversed(first), *second[1:])


def find_cycles(arcs: Mapping[V, Iterable[V]]) -> list[tuple[V, ...]]:
    """Cycles of a whole graph, given as the downstreams of each vertex: empty if and only if there is none.

    One for each arc that leads back in a depth-first search, at most CYCLES_REPORTED_MAX; each starts
    and ends with the same vertex. Time and memory are linear in vertices and arcs. Vertices that occur
    only as downstreams count as vertices without downstreams.
    """
    cycles: list[tuple[V, ...]] = []
    finished: set[V] = set()
    for root in arcs:
        if root in finished:
            continue
        path = {root: iter(arcs[root])}
        while path:
            vertex, downstreams = next(reversed(path.items()))
            for downstream in downstreams:
                if downstream in path:
                    trail = list(path)
                    cycles.append((*trail[trail.index(downstream) :], downstream))
                    if len(cycles) == limits.CYCLES_REPORTED_MAX:
                        return cycles
                elif downstream not in finished:
                    path[downstream] = iter(arcs.get(downstream, ()))
                    break
            else:
                del path[vertex]
                finished.add(vertex)
    return cycles


def cycle_text(cycle: tuple[V, ...]) -> str:
    """A cycle for a message, `a -> b -> a`; a long one is cut in the middle."""
    names = [str(vertex) for vertex in cycle]
    shown = limits.CYCLE_NAMES_SHOWN
    if len(names) > shown:
        names = [*names[: shown // 2], f"({len(names) - shown} more)", *names[-(shown - shown // 2) :]]
    return " -> ".join(names)
