"""List schedulers as their papers have them, in plain loops: what the compiled ones are held against.

They know slots and places that a stage may not have, and no models, memory, groups, releases or work under way.
HEFT and CPOP: Topcuoglu, Hariri, Wu 2002. PEFT: Arabnejad, Barbosa 2014. Min-min: Ibarra, Kim 1977.
"""

from collections.abc import Callable, Collection, Sequence
from math import inf

import numpy as np

from starloom.orchestrator.planner.problem import Plan, Problem

Choice = Callable[[int, dict[int, float]], int]
"""Takes a stage and its finish at each place that it may have; gives the place."""


class Board:
    """Stages as they are set out: of each place as many lanes as it has slots, with gaps between runs."""

    def __init__(self, problem: Problem) -> None:
        arrays = problem.arrays
        self.problem = problem
        self.seconds: list[list[float]] = arrays.seconds.tolist()
        self.node: list[int] = arrays.node.tolist()
        self.n, self.m = arrays.seconds.shape
        self.parents: list[list[tuple[int, float]]] = [[] for _ in range(self.n)]
        self.children: list[list[tuple[int, float]]] = [[] for _ in range(self.n)]
        for up, down, size in zip(
            arrays.upstream.tolist(), arrays.downstream.tolist(), arrays.size_bytes.tolist(), strict=True
        ):
            self.parents[down].append((up, size))
            self.children[up].append((down, size))
        self.lanes: list[list[list[tuple[float, float]]]] = [[[] for _ in range(slots)] for slots in arrays.slots]
        self.place: dict[int, int] = {}
        self.start: dict[int, float] = {}

    def may(self, stage: int) -> list[int]:
        return [place for place in range(self.m) if self.seconds[stage][place] < inf]

    def moved(self, size: float, source: int, sink: int) -> float:
        a, b = self.node[source], self.node[sink]
        return float(self.problem.arrays.latency[a, b] + size * self.problem.arrays.seconds_per_byte[a, b])

    def finish(self, stage: int) -> float:
        return self.start[stage] + self.seconds[stage][self.place[stage]]

    def earliest(self, stage: int, place: int) -> tuple[float, int]:
        """The first start in a gap that is long enough, and its lane."""
        ready = max(
            (self.finish(up) + self.moved(size, self.place[up], place) for up, size in self.parents[stage]), default=0.0
        )
        length = self.seconds[stage][place]
        found = []
        for number, lane in enumerate(self.lanes[place]):
            begin = ready
            for start, finish in sorted(lane):
                if begin + length <= start:
                    break
                begin = max(begin, finish)
            found.append((begin, number))
        return min(found)

    def finishes(self, stage: int) -> dict[int, float]:
        return {place: self.earliest(stage, place)[0] + self.seconds[stage][place] for place in self.may(stage)}

    def put(self, stage: int, place: int) -> None:
        start, lane = self.earliest(stage, place)
        self.place[stage], self.start[stage] = place, start
        self.lanes[place][lane].append((start, self.finish(stage)))

    def ready(self) -> list[int]:
        return [
            stage
            for stage in range(self.n)
            if stage not in self.place and all(up in self.place for up, _ in self.parents[stage])
        ]

    def plan(self, method: str) -> Plan:
        place = np.array([self.place[stage] for stage in range(self.n)], dtype=np.int32)
        start = np.array([self.start[stage] for stage in range(self.n)])
        finish = np.array([self.finish(stage) for stage in range(self.n)])
        return Plan(place, start, finish, np.zeros(self.n, dtype=np.bool_), float(finish.max()), 0.0, method)

    def mean(self, stage: int) -> float:
        may = self.may(stage)
        return sum(self.seconds[stage][place] for place in may) / len(may)

    def mean_move(self, size: float) -> float:
        """Over all pairs of places on two nodes."""
        pairs = [(a, z) for a in range(self.m) for z in range(self.m) if self.node[a] != self.node[z]]
        return sum(self.moved(size, a, z) for a, z in pairs) / len(pairs)

    def upward(self) -> list[float]:
        moves = [[(down, self.mean_move(size)) for down, size in self.children[stage]] for stage in range(self.n)]
        rank: dict[int, float] = {}

        def of(stage: int) -> float:
            if stage not in rank:
                rank[stage] = self.mean(stage) + max((move + of(down) for down, move in moves[stage]), default=0.0)
            return rank[stage]

        return [of(stage) for stage in range(self.n)]

    def downward(self) -> list[float]:
        moves = [[(up, self.mean_move(size)) for up, size in self.parents[stage]] for stage in range(self.n)]
        rank: dict[int, float] = {}

        def of(stage: int) -> float:
            if stage not in rank:
                rank[stage] = max((of(up) + self.mean(up) + move for up, move in moves[stage]), default=0.0)
            return rank[stage]

        return [of(stage) for stage in range(self.n)]


def by_priority(board: Board, priority: Sequence[float], choose: Choice, method: str, late: bool = False) -> Plan:
    """Always the ready stage of the highest priority, of equals the first, or the last, at the place that is chosen."""
    while ready := board.ready():
        stage = max(ready, key=lambda each: (priority[each], each if late else -each))
        board.put(stage, choose(stage, board.finishes(stage)))
    return board.plan(method)


def soonest(_: int, finishes: dict[int, float]) -> int:
    """The first of the places where it ends first."""
    return min(finishes, key=lambda place: (finishes[place], place))


def soonest_last(_: int, finishes: dict[int, float]) -> int:
    """The last of the places where it ends first."""
    return min(finishes, key=lambda place: (finishes[place], -place))


def heft(problem: Problem) -> Plan:
    board = Board(problem)
    return by_priority(board, board.upward(), soonest, "heft")


def heft_last(problem: Problem) -> Plan:
    board = Board(problem)
    return by_priority(board, board.upward(), soonest_last, "heft-last", late=True)


def peft(problem: Problem) -> Plan:
    board = Board(problem)
    table: list[list[float]] = [[] for _ in range(board.n)]

    def row(stage: int) -> list[float]:
        if not table[stage]:
            table[stage] = [
                max((rest(place, down, board.mean_move(size)) for down, size in board.children[stage]), default=0.0)
                for place in range(board.m)
            ]
        return table[stage]

    def rest(place: int, down: int, move: float) -> float:
        return min(
            row(down)[other] + board.seconds[down][other] + (move if board.node[other] != board.node[place] else 0.0)
            for other in board.may(down)
        )

    rank = [sum(row(stage)) / board.m for stage in range(board.n)]

    def choose(stage: int, finishes: dict[int, float]) -> int:
        return min(finishes, key=lambda place: (finishes[place] + table[stage][place], place))

    return by_priority(board, rank, choose, "peft")


def cpop(problem: Problem) -> Plan:
    board = Board(problem)
    priority = [up + down for up, down in zip(board.upward(), board.downward(), strict=True)]
    entries = [stage for stage in range(board.n) if not board.parents[stage]]
    path = [max(entries, key=lambda each: (priority[each], -each))]
    while board.children[path[-1]]:
        path.append(max((down for down, _ in board.children[path[-1]]), key=lambda each: (priority[each], -each)))
    sums = [sum(board.seconds[stage][place] for stage in path) for place in range(board.m)]
    critical = sums.index(min(sums))

    def choose(stage: int, finishes: dict[int, float]) -> int:
        return critical if stage in path else soonest(stage, finishes)

    return by_priority(board, priority, choose, "cpop")


def min_min(problem: Problem) -> Plan:
    board = Board(problem)
    while ready := board.ready():
        best = {stage: min(board.finishes(stage).values()) for stage in ready}
        stage = min(ready, key=lambda each: (best[each], each))
        board.put(stage, soonest(stage, board.finishes(stage)))
    return board.plan("min-min")


def fastest_places(problem: Problem) -> Plan:
    """Each stage where it runs fastest."""
    board = Board(problem)

    def choose(stage: int, _: dict[int, float]) -> int:
        return board.seconds[stage].index(min(board.seconds[stage]))

    return by_priority(board, board.upward(), choose, "fastest-places")


def among(problem: Problem, places: Collection[int], method: str) -> Plan:
    """HEFT on these places; a stage that none of them may have goes where it ends first."""
    board = Board(problem)

    def choose(stage: int, finishes: dict[int, float]) -> int:
        return soonest(stage, {place: at for place, at in finishes.items() if place in places} or finishes)

    return by_priority(board, board.upward(), choose, method)


def fastest_node(problem: Problem) -> Plan:
    """All on the node whose slots would be done with all work first, transfers aside."""
    board = Board(problem)
    done = {}
    for node in dict.fromkeys(board.node):
        here = [place for place in range(board.m) if board.node[place] == node]
        work = 0.0
        for stage in range(board.n):
            able = [place for place in here if board.seconds[stage][place] < inf] or board.may(stage)
            work += min(board.seconds[stage][place] for place in able)
        done[node] = work / sum(len(board.lanes[place]) for place in here)
    fastest = min(done, key=lambda node: (done[node], node))
    return among(problem, [place for place in range(board.m) if board.node[place] == fastest], "fastest-node")


SCHEDULERS: dict[str, Callable[[Problem], Plan]] = {
    "heft": heft,
    "heft-last": heft_last,
    "peft": peft,
    "cpop": cpop,
    "min-min": min_min,
    "fastest-places": fastest_places,
    "fastest-node": fastest_node,
}
"""Those that need nothing but the problem, by the names that the benchmark has for them."""
