"""How soon places can be done with stages that share them: each second of a place at a price, stages where they are cheapest. Pure.

For any prices that add up to one over all slots, what stages cost at their cheapest is no more than the seconds that all of it
takes: the dual of the linear relaxation of unrelated machines. Good prices are found by multiplicative weights. Memory has prices as
slots have, where it is short: working sets times how long they are held are no more than there is, times how long all of it takes.
"""

import math
from typing import Final, NamedTuple

import numpy as np

from starloom.orchestrator.planner.check import SLACK
from starloom.orchestrator.planner.prepared import Prepared
from starloom.orchestrator.planner.problem import Flags, Floats, Indices

TURNS: Final = 60
"""How often prices are bettered at first, and a third as often when they are known from before."""
WINDOWS: Final = 24
"""Of how many seconds that come after stages, spread over all, those are looked at that have no less."""


COUNTED: Final = (1, 2, 3)
"""Ways to count memory beside its bytes: of what has more than a half, a third or a quarter of it no more than one, two or three run at a time."""


class Ways(NamedTuple):
    """Of each stage at each place [n, m]: `able`: whether it may stand there; `head`, `tail`: seconds before its start and after its end, at the least.

    `takes`: from start to end, a load that only it can do included, and `lasts`: with what it waits for a load of others. `costs`: penalties.
    """

    able: Flags
    head: Floats
    tail: Floats
    takes: Floats
    lasts: Floats
    costs: Floats

    def path(self) -> float:
        """Seconds before which no plan ends: the longest way through a stage where that is shortest."""
        through = np.where(self.able, self.head + self.lasts + self.tail, np.inf)
        return float(through.min(axis=1).max())


class Prices:
    """What work asks of places. `price` [groups]: of all slots of each target, then of each short memory, added up to one; kept from one question to the next."""

    def __init__(self, prepared: Prepared) -> None:
        _, first, self.group = np.unique(prepared.lanes, return_index=True, return_inverse=True)
        self.slots = (prepared.upto - prepared.lanes)[first].astype(np.float64)
        self.price = np.zeros(0)
        short = np.isfinite(prepared.memory)
        left = (prepared.memory * (1 + SLACK) - prepared.weight @ prepared.resident)[prepared.node]
        holds = short[prepared.node] & (left > 0)
        share = np.where(holds, prepared.working[:, prepared.variant], 0.0) / np.where(holds, left, 1.0)
        number = (np.cumsum(short) - 1)[prepared.node]
        counts = (0, *COUNTED) if short.any() else ()
        #: of each way to count memory: [m] the group of each place's, and [n, m] the share that each stage counts for while it runs
        self.held = [
            (len(self.slots) + turn * int(short.sum()) + number, _counted(share, count))
            for turn, count in enumerate(counts)
        ]
        self.groups = len(self.slots) + len(counts) * int(short.sum())

    def least(self, ways: Ways, floor: float) -> float:
        """The least objective, where no plan's is below `floor`: of all stages, and of those between two others.

        Places and stages as in `ways`, of which each stage has one at the least.
        """
        stages = np.ones(len(ways.able), dtype=np.bool_)
        head = np.where(ways.able, ways.head, np.inf).min(axis=1)
        tail = np.where(ways.able, ways.tail, np.inf).min(axis=1)
        best = floor
        for _ in range(3):
            value, price = self._priced(ways, stages)
            if stages.all():
                self.price = price
            value, window = max((value, None), self._between(ways, price, head, tail), key=lambda each: each[0])
            best = max(best, value)
            if window is None:
                break
            stages = (head >= window[0]) & (tail >= window[1])
        return best

    def _each(self, price: Floats) -> Floats:
        """[n, m], or [1, m] where that is the same for all: what a second of each stage at each place costs."""
        found: Floats = (price[: len(self.slots)] / self.slots)[self.group][None, :]
        for holder, share in self.held:
            found = found + price[holder][None, :] * share
        return found

    def _busy(self, stages: Flags, at: Indices, takes: Floats) -> Floats:
        """[groups]: seconds for which these stages, at these places, keep all of each busy."""
        slots = np.append(self.slots, np.ones(self.groups - len(self.slots)))
        found: Floats = np.bincount(self.group[at], weights=takes, minlength=self.groups) / slots
        for holder, share in self.held:
            found += np.bincount(
                holder[at], weights=takes * share[stages][np.arange(len(at)), at], minlength=self.groups
            )
        return found

    def _worth(self, ways: Ways, price: Floats) -> Floats:
        """[n]: what each stage costs at its cheapest, beyond its least penalty."""
        costs = self._each(price) * np.where(ways.able, ways.takes, 0.0) + ways.costs
        worth: Floats = np.where(ways.able, costs, np.inf).min(axis=1) - ways.costs.min(axis=1)
        return worth

    def _priced(self, ways: Ways, stages: Flags) -> tuple[float, Floats]:
        """The greatest least objective that was found for these stages [n], and the prices for it."""
        rest, (around, usable) = float(ways.costs.min(axis=1).sum()), self._around(ways, stages)
        kept = len(self.price) == len(usable) and self.price[usable].any()
        price = np.where(usable, np.maximum(self.price, 1e-3) if kept else 1.0, 0.0)
        price /= price.sum() or 1.0
        best, found = -math.inf, price
        takes, costs = np.where(ways.able, ways.takes, 0.0)[stages], ways.costs[stages]
        least = costs.min(axis=1)
        for turn in range(TURNS // 3 if kept else TURNS):
            rates = self._each(price)
            each = np.where(ways.able[stages], rates[stages if len(rates) > 1 else ...] * takes + costs, np.inf)
            at = each.argmin(axis=1)
            value = float(price @ around + (each[np.arange(len(at)), at] - least).sum()) + rest
            if value > best:
                best, found = value, price
            busy = self._busy(stages, at, takes[np.arange(len(at)), at])
            gain = np.where(usable, busy + around, 0.0)
            if not (top := float(gain.max(initial=0.0))):
                break
            price = price * np.exp(2.0 / math.sqrt(turn + 1) * (gain / top - 1.0))
            price /= price.sum()
        return best, found

    def _around(self, ways: Ways, stages: Flags) -> tuple[Floats, Flags]:
        """[groups]: seconds before and after any of these stages at the places of a target, or that hold a memory, and whether one may stand there."""
        able = (ways.able & stages[:, None]) & (ways.takes > 0)
        head, tail = np.full((2, self.groups), np.inf)
        for which, group in ((able, self.group), *((able & (share > 0), holder) for holder, share in self.held)):
            np.minimum.at(head, group, np.where(which, ways.head, np.inf).min(axis=0, initial=np.inf))
            np.minimum.at(tail, group, np.where(which, ways.tail, np.inf).min(axis=0, initial=np.inf))
        usable = np.isfinite(head)
        around = np.where(usable, head, 0.0) + np.where(usable, tail, 0.0)
        # With penalties a plan may end before a place that it does not use could have done anything.
        return np.minimum(around, ways.path()), usable

    def _between(
        self, ways: Ways, price: Floats, head: Floats, tail: Floats
    ) -> tuple[float, tuple[float, float] | None]:
        """The most, at these prices, of stages that start after some second and have some seconds after them; and these two."""
        worth, rest = self._worth(ways, price), float(ways.costs.min(axis=1).sum())
        order = np.argsort(-head, kind="stable")
        tails = np.unique(tail)
        tails = tails[np.unique(np.linspace(0, len(tails) - 1, WINDOWS).astype(np.int64))]
        inside = tail[order][None, :] >= tails[:, None]
        sums = np.cumsum(np.where(inside, worth[order][None, :], 0.0), axis=1)
        values = np.where(inside, head[order][None, :] + tails[:, None] + sums, -np.inf)
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        return float(values[row, column]) + rest, (float(head[order][column]), float(tails[row]))


def _counted(share: Floats, count: int) -> Floats:
    """What stages count for, of which those that run have no more than all: their share, or how many parts of `count` and one more it is above.

    Those that fit together count for no more than one: dual feasible functions (Fekete, Schepers 2001).
    """
    return np.maximum(np.ceil((count + 1) * share - 1e-9) - 1, 0.0) / count if count else share
