"""List schedulers: HEFT, PEFT, CPOP, min-min, fastest places, and a portfolio of their parts.

A listing sets all stages out once. The classics come first, as their papers have them: penalties count for nothing
there. The others weigh penalties, look ahead, and keep to one node or to the fastest few.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from starloom.orchestrator.planner import ranks
from starloom.orchestrator.planner.decode import decode
from starloom.orchestrator.planner.minmin import minmin
from starloom.orchestrator.planner.prepared import NONE, Board, Numbers, Prepared, slots_of
from starloom.orchestrator.planner.problem import Flags, Floats
from starloom.orchestrator.planner.seating import seats

CLASSICS = ("heft", "heft, last of equals", "peft", "cpop", "min-min", "fastest places")
ALONE_MAX = 16
"""Nodes that are tried alone: those that would be done with all work first."""
ALONE_FIRST = 4
"""Of those as many are tried before other listings."""


class Listing(NamedTuple):
    """One way to set stages out, as `decode.decode` takes it; `order` None: min-min. `least`: seconds that it takes about
    at least, where that is known beforehand.
    """

    method: str
    order: Numbers | None
    wished: Numbers
    among: Flags
    look: Floats
    price: float = 0.0
    late: bool = False
    least: float = 0.0


class Table:
    """The ranks of a problem, each computed when it is first asked for."""

    def __init__(self, prepared: Prepared) -> None:
        n, m = prepared.seconds.shape
        self.prepared = prepared
        self.anywhere = np.full(n, NONE, dtype=np.int64)
        self.everywhere = np.ones(m, dtype=np.bool_)
        self.blind = np.zeros((n, m))
        self.link = ranks.mean_link(prepared)
        self.mean = ranks.typical(prepared, ranks.MEAN)
        self.upward = ranks.upward(prepared, self.mean, *self.link)

    @cached_property
    def optimistic(self) -> Floats:
        """The optimistic cost table, [n, m]."""
        return ranks.optimistic(self.prepared, *self.link)

    @cached_property
    def half(self) -> Floats:
        """Half of the optimistic cost table, [n, m]."""
        return self.optimistic * 0.5

    @cached_property
    def least(self) -> Floats:
        """[n] The seconds of each stage where it runs fastest."""
        return ranks.typical(self.prepared, ranks.LEAST)

    def order(self, urgency: Floats, late: bool = False) -> Numbers:
        """Upstreams first, then the most urgent."""
        return ranks.urgent_first(self.prepared, urgency, late)

    def listing(self, method: str, urgency: Floats, price: float = 0.0) -> Listing:
        """A listing in the order of the urgency, free to choose all places."""
        return Listing(method, self.order(urgency), self.anywhere, self.everywhere, self.blind, price)


def run(prepared: Prepared, board: Board, listing: Listing) -> int:
    """Sets all stages out on the board. Returns -1, or the stage for which no place was left."""
    _, order, wished, among, look, price, late, *_ = listing
    if order is None:
        return minmin(prepared, board)
    return decode(prepared, board, order, wished, among, look, price, late)


def classics(table: Table) -> Iterator[Listing]:
    """HEFT with equal finishes to the first and to the last place, PEFT, CPOP, min-min, each on its fastest place."""
    prepared = table.prepared
    heft = table.listing(CLASSICS[0], table.upward)
    yield heft
    yield heft._replace(method=CLASSICS[1], order=table.order(table.upward, late=True), late=True)
    yield table.listing(CLASSICS[2], table.optimistic.mean(axis=1))._replace(look=table.optimistic)
    both = table.upward + ranks.downward(prepared, table.mean, *table.link)
    yield table.listing(CLASSICS[3], both)._replace(wished=_critical(table, both))
    yield heft._replace(method=CLASSICS[4], order=None)
    yield heft._replace(method=CLASSICS[5], wished=_fastest(prepared))


def portfolio(table: Table) -> Iterator[Listing]:
    """Those that tell most, then the others."""
    yield from telling(table)
    yield from others(table)


def telling(table: Table) -> Iterator[Listing]:
    """Tiers, nodes alone, and ranks that look ahead; penalties count. The cheapest come first.

    What a listing needs is computed when it is its turn: on large problems that takes as long as the listing.
    """
    mean = _ranked(table, "mean")
    yield from (_among(table, mean, *each) for each in _tiers(table.prepared))
    yield _ahead(_ranked(table, "far"), table.half, "half ")
    yield _ahead(mean, table.optimistic)
    yield from (_among(table, mean, *each) for each in islice(_alone(table.prepared), ALONE_FIRST))
    yield _ahead(mean, table.half, "half ")
    yield _ranked(table, "table")


def others(table: Table) -> Iterator[Listing]:
    """All ranks x how far to look ahead that are left, more nodes alone, and the fastest few places."""
    far, mean, near, whole = (_ranked(table, name) for name in ("far", "mean", "near", "table"))
    yield from (mean, far, near, _ahead(far, table.optimistic), _ahead(near, table.half, "half "))
    yield from (_ahead(near, table.optimistic), _ahead(whole, table.half, "half "), _ahead(whole, table.optimistic))
    yield from (_among(table, mean, *each) for each in islice(_alone(table.prepared), ALONE_FIRST, None))
    yield from (_among(table, mean, *each) for each in _fast(table.prepared))


def _ranked(table: Table, name: str) -> Listing:
    """Penalties count. The urgency is what is left on the longest path: of mean or least seconds, without links if near."""
    if name == "mean":
        urgency = table.upward
    elif name == "table":
        urgency = table.optimistic.mean(axis=1)
    else:
        urgency = ranks.upward(table.prepared, table.least, *(table.link if name == "far" else (0.0, 0.0)))
    return table.listing(f"list: {name}", urgency, price=1.0)


def _among(table: Table, plain: Listing, name: str, among: Flags) -> Listing:
    return plain._replace(method=f"list: {name}", among=among, least=_work(table.prepared, among))


def seated(table: Table, board: Board) -> Listing | None:
    """A listing that meets no dead end, with places given out before times; None if no such places were found."""
    prepared = table.prepared
    turn = np.lexsort((-table.upward, prepared.allowed.sum(axis=1)))
    if not seats(prepared, board, turn, np.zeros(len(prepared.node))):
        return None
    return table.listing("seated", table.upward)._replace(wished=board.place.copy())


def _ahead(plain: Listing, look: Floats, how: str = "") -> Listing:
    return plain._replace(method=f"{plain.method}, {how}ahead", look=look)


def _fastest(prepared: Prepared) -> Numbers:
    seconds = np.where(prepared.allowed, prepared.seconds, np.inf)
    return np.where(prepared.allowed.any(axis=1), seconds.argmin(axis=1), NONE).astype(np.int64)


def _critical(table: Table, urgency: Floats) -> Numbers:
    """The stages of CPOP's critical path, wished to the place that runs most of them, and those soonest."""
    prepared, wished = table.prepared, table.anywhere.copy()
    if not len(urgency):
        return wished
    path = [int(np.argmax(np.where(np.diff(prepared.lead_heads) == 0, urgency, -1.0)))]
    while True:
        follows = prepared.follow_stage[prepared.follow_heads[path[-1]] : prepared.follow_heads[path[-1] + 1]]
        if not len(follows):
            break
        path.append(int(follows[np.argmax(urgency[follows])]))
    able = prepared.allowed[path]
    sums = np.where(able, prepared.seconds[path], 0.0).sum(axis=0)
    best = int(np.lexsort((sums, -able.sum(axis=0)))[0])
    wished[path] = np.where(able[:, best], best, NONE)
    return wished


def _speed(prepared: Prepared) -> Floats:
    """[m] The mean seconds of a stage; more where few may stand: a place that few may have is worth little alone."""
    able = prepared.allowed & (prepared.seconds > 0)
    counts = np.maximum(1, able.sum(axis=0))
    speed: Floats = np.where(able, prepared.seconds, 0.0).sum(axis=0) / counts * (1 + able.any(axis=1).sum()) / counts
    return speed


def _work(prepared: Prepared, among: Flags) -> float:
    """The seconds that these places take for the stages that may stand there, at the least, if none waits."""
    best = np.where(prepared.allowed[:, among], prepared.seconds[:, among], np.inf).min(axis=1, initial=np.inf)
    return float(best[np.isfinite(best)].sum()) / slots_of(prepared, among)


def _alone(prepared: Prepared) -> Iterator[tuple[str, Flags]]:
    """Single nodes, those first that would be done with all stages first."""
    rates = np.bincount(prepared.node, weights=(prepared.upto - prepared.lanes) / np.maximum(_speed(prepared), 1e-12))
    for node in np.argsort(-rates, kind="stable")[:ALONE_MAX]:
        yield f"node {node} alone", prepared.node == node


def _tiers(prepared: Prepared) -> Iterator[tuple[str, Flags]]:
    """Each tier; stages that no place of it may have go where they end first."""
    for tier in range(int(prepared.tier.max(initial=NONE)) + 1):
        yield f"tier {tier} alone", prepared.tier[prepared.node] == tier


def _fast(prepared: Prepared) -> Iterator[tuple[str, Flags]]:
    """The 2, 4, 8 and so on fastest places."""
    fast = np.argsort(_speed(prepared), kind="stable")
    few = 2
    while few < len(fast):
        among = np.zeros(len(fast), dtype=np.bool_)
        among[fast[:few]] = True
        yield f"{few} fastest places", among
        few *= 2
