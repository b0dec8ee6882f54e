"""The usual links between tiers."""

from itertools import product

import pytest

from starloom.dag.constellation import Tier
from starloom.devices.links import Link, link


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
