"""Whether a series of figures grows, by slopes that outliers do not move. Pure.

The slope is that of Theil and Sen: the median over all pairs of points; its interval is Sen's, of 95 %, from the variance of
Kendall's S (P. K. Sen, 1968, Journal of the American Statistical Association 63, 1379-1389).
"""

import math
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

POINTS_MIN: Final = 9
"""With fewer, nothing is said of a trend: each half needs a slope of its own, and each third a median."""
_NORMAL_95 = 1.96
_THIRDS = 3

Point = tuple[float, float]
"""Seconds, and the figure that was taken then."""


class Slope(NamedTuple):
    """A change of the figure a second, and the interval that it lies in."""

    per_second: float
    low: float
    high: float


class Growth(NamedTuple):
    """What a series did: the medians of its first and last third, its slope, and by how much it rose from end to end on that.

    `allowed` is by how much it may rise.
    """

    first: float
    last: float
    slope: Slope
    rise: float
    allowed: float
    grows: bool


class Allowance(NamedTuple):
    """By how much a figure may rise: the greater of an amount and a share of where it began."""

    amount: float
    share: float = 0.0

    def of(self, level: float) -> float:
        return max(self.amount, self.share * level)


def slope(points: Sequence[Point]) -> Slope:
    """The robust slope of at least two points, at different times. Raises ValueError where there are not."""
    found = sorted(
        (later - earlier) / (after - before)
        for place, (before, earlier) in enumerate(points)
        for after, later in points[place + 1 :]
        if after != before
    )
    if not found:
        raise ValueError(f"{len(points)} points have no slope; give two at different times")
    count = len(points)
    margin = _NORMAL_95 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(found) - margin) / 2))
    high = min(len(found) - 1, math.ceil((len(found) + margin) / 2))
    return Slope(statistics.median(found), found[low], found[high])


def growth(points: Sequence[Point], allowance: Allowance) -> Growth:
    """What a series of at least POINTS_MIN points does, in the order of their time.

    It grows where its slope makes more than is allowed from end to end, and is surely above 0, as that of each half is for itself:
    what rose once and stays, such as a pool that reached its size, does not grow. The thirds have to agree: a saw has slopes as
    well. Raises ValueError for fewer points.
    """
    if len(points) < POINTS_MIN:
        raise ValueError(f"{len(points)} points are fewer than POINTS_MIN = {POINTS_MIN}")
    third, half = len(points) // _THIRDS, len(points) // 2
    first = statistics.median(figure for _, figure in points[:third])
    allowed, whole = allowance.of(first), slope(points)
    rise = whole.per_second * (points[-1][0] - points[0][0])
    last = statistics.median(figure for _, figure in points[-third:])
    halves = slope(points[:half]), slope(points[half:])
    return Growth(
        first=first,
        last=last,
        slope=whole,
        rise=rise,
        allowed=allowed,
        grows=rise > allowed and last - first > rise / 2 and all(part.low > 0 for part in (whole, *halves)),
    )
