"""What fetches tell of links."""

import numpy as np
import pytest

from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.devices.linkmeter import Alone, LinkMeter, MeasuredLink
from starloom.devices.links import Link, link

SMALL, LARGE = limits.LINK_SMALL_BYTES_MAX, 64 * limits.LINK_SMALL_BYTES_MAX


def taking(real: Link, sizes: list[int], noise: float = 0.0) -> LinkMeter:
    """A meter that saw fetches of these sizes over such a link, and one before that dialed."""
    meter, draw = LinkMeter(), np.random.default_rng(5)
    meter.fetched("x", SMALL, 9.0, 0.0)
    for size in sizes:
        meter.fetched("x", size, real.transfer_seconds(size) * float(draw.lognormal(0.0, noise)), 0.0)
    return meter


def test_latency_and_rate_are_told_apart_by_the_sizes_that_came() -> None:
    real = Link(latency_seconds=0.04, bytes_per_second=2.5e6)
    told = taking(real, [1_000, LARGE, 1_000, LARGE]).told(0.0)["x"]
    assert told.latency_seconds == pytest.approx(0.04, rel=0.02)
    assert told.bytes_per_second == pytest.approx(2.5e6, rel=0.02)


def test_what_no_fetch_told_is_as_it_usually_is() -> None:
    usual = link(Tier.DEVICE, Tier.CLOUD)
    small = taking(Link(latency_seconds=0.5, bytes_per_second=1e6), [1_000]).told(0.0)["x"]
    assert small.bytes_per_second is None
    assert small.over(usual).latency_seconds == pytest.approx(0.501)
    assert small.over(usual).bytes_per_second == usual.bytes_per_second
    large = taking(Link(latency_seconds=0.0, bytes_per_second=1e6), [LARGE]).told(0.0)["x"]
    assert large.over(usual).latency_seconds == usual.latency_seconds
    assert large.over(usual).bytes_per_second == pytest.approx(1e6)
    assert taking(Link(latency_seconds=1.0, bytes_per_second=1.0), []).told(0.0) == {}, "the first fetch dials"


def test_a_link_that_changes_is_soon_known_as_it_is() -> None:
    meter = taking(Link(latency_seconds=0.001, bytes_per_second=1e8), [SMALL, LARGE] * 20, noise=0.2)
    assert meter.told(0.0)["x"].bytes_per_second == pytest.approx(1e8, rel=0.3)
    slow = Link(latency_seconds=0.2, bytes_per_second=1e6)
    for size in [SMALL, LARGE] * 12:
        meter.fetched("x", size, slow.transfer_seconds(size), 0.0)
    assert meter.told(0.0)["x"].latency_seconds == pytest.approx(slow.transfer_seconds(SMALL), rel=0.05)
    assert meter.told(0.0)["x"].bytes_per_second == pytest.approx(1e6, rel=0.05)


def test_a_link_that_was_slow_once_is_not_taken_so_for_ever() -> None:
    """Nothing is placed where a value takes too long to come, so no fetch tells that the path is well again."""
    meter, kept = LinkMeter(), limits.LINK_KEPT_SECONDS
    for seconds, now in ((0.1, 0.0), (40.0, 50.0)):
        meter.fetched("x", SMALL, seconds, now)
        meter.fetched("x", LARGE, seconds, now)
    assert meter.told(50.0 + kept)["x"].latency_seconds == 40.0
    assert meter.told(51.0 + kept) == {}
    meter.fetched("x", SMALL, 0.001, 51.0 + kept)
    assert meter.told(51.0 + kept)["x"] == MeasuredLink(latency_seconds=0.001), "it was dialed before"


@pytest.mark.parametrize(("once", "often"), [(LARGE, SMALL), (SMALL, LARGE)])
def test_nor_is_one_over_which_only_values_of_the_other_sort_still_come(once: int, often: int) -> None:
    """Small values went on over a link that was once too slow for large ones, and kept it known as that."""
    meter, kept = LinkMeter(), limits.LINK_KEPT_SECONDS
    meter.fetched("x", SMALL, 9.0, 0.0)
    meter.fetched("x", once, 400.0, 0.0)
    for now in (0.4 * kept, 0.8 * kept, 1.2 * kept):
        meter.fetched("x", often, 0.01, now)
    told = meter.told(1.2 * kept)["x"]
    assert (told.bytes_per_second is None) == (once == LARGE)
    assert (told.latency_seconds is None) == (once == SMALL)


def test_a_large_fetch_that_came_sooner_than_small_ones_does_not_tell_of_a_link_without_end() -> None:
    """Where the latency varies by more than the rest takes, that made a radio carry terabytes a second."""
    meter = LinkMeter()
    for size, seconds in ((SMALL, 0.1), (SMALL, 0.1), (2 * SMALL, 0.09)):
        meter.fetched("x", size, seconds, 0.0)
    assert (meter.told(0.0)["x"].bytes_per_second or 0.0) <= 10.001 * 2 * SMALL / 0.09


def test_nothing_that_it_tells_is_refused() -> None:
    meter = LinkMeter()
    for seconds in (0.0, 1e-12, 1e9, 0.0):
        meter.fetched("a", SMALL, seconds, 0.0)
        meter.fetched("a", LARGE, seconds, 0.0)
        assert all(each.fault() == "" for each in meter.told(0.0).values())


def test_only_so_many_paths_are_kept_the_last_used_ones() -> None:
    meter = LinkMeter()
    for number in range(limits.LINKS_MEASURED_MAX + 1):
        for _ in range(2):
            meter.fetched(f"n{number}", SMALL, 1.0, 0.0)
        meter.fetched("n0", SMALL, 1.0, 0.0)
    told = meter.told(0.0)
    assert len(told) == limits.LINKS_MEASURED_MAX
    assert "n0" in told
    assert "n1" not in told


@pytest.mark.parametrize(
    "measured",
    [
        MeasuredLink(latency_seconds=-0.1),
        MeasuredLink(latency_seconds=2 * limits.LINK_LATENCY_SECONDS_MAX),
        MeasuredLink(bytes_per_second=0.0),
        MeasuredLink(bytes_per_second=float("inf")),
        MeasuredLink(bytes_per_second=float("nan")),
        MeasuredLink(latency_seconds=float("nan")),
    ],
)
def test_what_cannot_be_meant_is_a_fault(measured: MeasuredLink) -> None:
    assert measured.fault()


def test_a_fetch_is_alone_only_if_nothing_began_or_ran_beside_it() -> None:
    alone = Alone()
    first = alone.begin()
    second = alone.begin()
    assert not alone.end(second)
    assert not alone.end(first), "another one began while it was on its way"
    assert alone.end(alone.begin())
