"""How things are measured side by side: warmed up, in alternation, and told with their number and spread."""

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

import msgspec

WARM_UPS: Final = 1
_QUARTERS = 4

Task = TypeVar("Task", bound=Hashable)
TaskIn = TypeVar("TaskIn", bound=Hashable, contravariant=True)
Samples = Mapping[tuple[str, Task], Sequence[float]]
"""The seconds that each repetition took, in order, by contender and work; what a contender cannot do is not there."""

Pick = Callable[[str], Sequence[float]]
"""Gives the figures of a contender by its name, one a repetition; none where it does not do the work."""


class Contender(Protocol, Generic[TaskIn]):
    """Somebody who does the same work as others do."""

    name: str

    def does(self, work: TaskIn) -> bool:
        """Whether it can do this work at all."""
        ...

    def seconds(self, work: TaskIn) -> float:
        """Does the work once; the seconds that it took, from asking to knowing that all is done."""
        ...


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The middle of `n` figures, and their quartiles (of fewer than three: their least and greatest)."""

    median: float
    low: float
    high: float
    n: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Starloom beside one peer: medians in `unit`, quartiles as [low, high], of `n` repetitions.

    `ratio` over 1 means that ours is better, whether small or great figures are.
    """

    what: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str
    n: int
    ours_spread: tuple[float, float]
    peer_spread: tuple[float, float]


def alternate(
    contenders: Sequence[Contender[Task]],
    works: Sequence[Task],
    repeat: int,
    *,
    warm_ups: int = WARM_UPS,
    note: Callable[[str], None] = lambda _: None,
) -> dict[tuple[str, Task], list[float]]:
    """Has every contender do all works `repeat` times, in turns, after `warm_ups` that do not count.

    Each repetition begins with the next contender, so that nobody always comes after the same one.
    """
    samples: dict[tuple[str, Task], list[float]] = {}
    for repetition in range(-warm_ups, repeat):
        note(f"repetition {repetition + 1} of {repeat}" if repetition >= 0 else "warm-up")
        first = repetition % len(contenders)
        for work in works:
            for contender in [*contenders[first:], *contenders[:first]]:
                if contender.does(work):
                    seconds = contender.seconds(work)
                    if repetition >= 0:
                        samples.setdefault((contender.name, work), []).append(seconds)
    return samples


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How steeply y grows with x, both as logarithms, by least squares: 1 where twice as much takes twice as long."""
    return statistics.linear_regression(*zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)).slope


def percentile(figures: Sequence[float], percent: int) -> float:
    """The figure that `percent` of all figures are at most, of 1 to 100."""
    return sorted(figures)[math.ceil(len(figures) * percent / 100) - 1]


def summary(figures: Sequence[float]) -> Summary:
    """The middle and the spread of at least one figure."""
    if len(figures) < _QUARTERS - 1:
        low, high = min(figures), max(figures)
    else:
        low, _, high = statistics.quantiles(figures, n=_QUARTERS, method="inclusive")
    return Summary(median=statistics.median(figures), low=low, high=high, n=len(figures))


def rows(
    what: str, unit: str, ours: str, peers: Iterable[str], pick: Pick, *, more_is_better: bool = False
) -> list[Row]:
    """One row for each peer that has figures; none where ours has none, or a median is not above 0."""
    own = pick(ours)
    if not own:
        return []
    mine, found = summary(own), []
    for peer in peers:
        figures = pick(peer)
        if not figures:
            continue
        theirs = summary(figures)
        if min(mine.median, theirs.median) <= 0:
            continue
        found.append(
            Row(
                what=what,
                ours=mine.median,
                peer=theirs.median,
                peer_name=peer,
                ratio=mine.median / theirs.median if more_is_better else theirs.median / mine.median,
                unit=unit,
                n=min(mine.n, theirs.n),
                ours_spread=(mine.low, mine.high),
                peer_spread=(theirs.low, theirs.high),
            )
        )
    return found
