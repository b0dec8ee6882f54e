"""The usual links between tiers."""

from itertools import product

import pytest

from starloom.dag.constellation import Tier
from starloom.devices.links import Link, SharedUplink, agreed, link


@pytest.mark.parametrize(("source", "sink"), list(product(Tier, Tier)))
def test_every_pair_of_tiers_has_a_link_the_same_both_ways(source: Tier, sink: Tier) -> None:
    assert link(source, sink) == link(sink, source)
    assert link(source, sink).transfer_seconds(0) > 0


def test_a_transfer_takes_latency_and_bytes() -> None:
    each = Link(bytes_per_second=1_000_000.0, latency_seconds=0.5)
    assert each.transfer_seconds(0) == 0.5
    assert each.transfer_seconds(2_000_000) == 2.5


def test_a_way_is_the_slower_the_further_it_leads() -> None:
    size = 10_000_000
    near = link(Tier.EDGE, Tier.EDGE).transfer_seconds(size)
    middle = link(Tier.DEVICE, Tier.EDGE).transfer_seconds(size)
    far = link(Tier.DEVICE, Tier.CLOUD).transfer_seconds(size)
    assert near < middle < far


def test_of_an_uplink_that_nodes_tell_differently_the_slower_counts() -> None:
    told = [
        SharedUplink(name="hall", up=5.0, down=8.0),
        SharedUplink(name="dsl", up=1.0, down=2.0),
        SharedUplink(name="hall", up=6.0, down=7.0, half=True),
    ]
    assert agreed(told) == (SharedUplink(name="hall", up=5.0, down=7.0, half=True), told[1])
    assert agreed([]) == ()


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e300, float("inf"), float("nan")])
def test_an_uplink_has_rates_that_can_be(rate: float) -> None:
    assert SharedUplink(name="u", up=100.0, down=200.0).fault() == ""
    assert SharedUplink(name="u", up=rate, down=200.0).fault()
    assert SharedUplink(name="u", up=100.0, down=rate).fault()
