"""Links between nodes, by the tiers that they stand on, until links are measured.

The numbers are what such a path usually gives, for placement to weigh moving bytes against computing
elsewhere. They are no promise, and nothing is slowed down to them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from starloom.dag.constellation import Tier


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The path between two nodes: bandwidth one way, and the latency of one request with its answer.

    `joules_per_byte`, `price_per_byte`: what moving a byte takes, at both ends together.
    """

    bytes_per_second: float
    latency_seconds: float
    joules_per_byte: float = 0.0
    price_per_byte: float = 0.0

    def transfer_seconds(self, size_bytes: int) -> float:
        """How long a value of that size takes from one end to the other, asked for there."""
        return self.latency_seconds + size_bytes / self.bytes_per_second


STORE_TIER: Final = Tier.EDGE
"""Where the job store is taken to be: the orchestrator stands between the devices and the cloud."""

_MBIT: Final = 125_000.0

BY_TIERS: Final[Mapping[frozenset[Tier], Link]] = MappingProxyType(
    {
        # two devices meet through one access point: both halves of the path share its air
        frozenset({Tier.DEVICE}): Link(bytes_per_second=50 * _MBIT, latency_seconds=0.008),
        # Wi-Fi or 100 Mbit/s Ethernet to the next cabinet
        frozenset({Tier.DEVICE, Tier.EDGE}): Link(bytes_per_second=100 * _MBIT, latency_seconds=0.004),
        # one switch, gigabit
        frozenset({Tier.EDGE}): Link(bytes_per_second=1_000 * _MBIT, latency_seconds=0.001),
        # a site's uplink
        frozenset({Tier.EDGE, Tier.CLOUD}): Link(bytes_per_second=100 * _MBIT, latency_seconds=0.025),
        # mobile or consumer access to a data centre
        frozenset({Tier.DEVICE, Tier.CLOUD}): Link(bytes_per_second=20 * _MBIT, latency_seconds=0.040),
        # inside a data centre, ten gigabit
        frozenset({Tier.CLOUD}): Link(bytes_per_second=10_000 * _MBIT, latency_seconds=0.0005),
    }
)
"""The usual link between two different nodes, by the tiers that they stand on; the same both ways."""


def link(source: Tier, sink: Tier) -> Link:
    """The usual link between two different nodes on these tiers; the same both ways."""
    return BY_TIERS[frozenset({source, sink})]
