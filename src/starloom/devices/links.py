"""Links between nodes, by the tiers that they stand on, until fetches tell (`devices.linkmeter`); and up-links that nodes share, as they say.

The numbers are what such a path usually gives, for placement to weigh moving bytes against computing
elsewhere. They are no promise, and nothing is slowed down to them.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import Tier

BYTES_PER_MBIT: Final = 125_000.0


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


class SharedUplink(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An up-link that nodes share: bytes a second from them, `up`, and to them, `down`. `half`: both together have `up`."""

    name: str
    up: float
    down: float
    half: bool = False

    def fault(self) -> str:
        """What cannot be meant of its rates, as a clause; empty for a sound one."""
        least, most = limits.FLEET_MBIT_MIN * BYTES_PER_MBIT, limits.FLEET_MBIT_MAX * BYTES_PER_MBIT
        if all(least * (1 - 1e-9) <= rate <= most * (1 + 1e-9) for rate in (self.up, self.down)):
            return ""
        return f"has {self.up:g} bytes a second up and {self.down:g} down; give from {least:g} to {most:g} of each"


def agreed(told: Iterable[SharedUplink]) -> tuple[SharedUplink, ...]:
    """Each up-link once, by its name, in the order in which they were told of: of different rates the lowest, and half duplex if any says so."""
    found: dict[str, SharedUplink] = {}
    for each in told:
        before = found.get(each.name, each)
        up, down, half = min(before.up, each.up), min(before.down, each.down), before.half or each.half
        found[each.name] = SharedUplink(name=each.name, up=up, down=down, half=half)
    return tuple(found.values())


STORE_TIER: Final = Tier.EDGE
"""Where the job store is taken to be: the orchestrator stands between the devices and the cloud."""

BY_TIERS: Final[Mapping[frozenset[Tier], Link]] = MappingProxyType(
    {
        # two devices meet through one access point: both halves of the path share its air
        frozenset({Tier.DEVICE}): Link(bytes_per_second=50 * BYTES_PER_MBIT, latency_seconds=0.008),
        # Wi-Fi or 100 Mbit/s Ethernet to the next cabinet
        frozenset({Tier.DEVICE, Tier.EDGE}): Link(bytes_per_second=100 * BYTES_PER_MBIT, latency_seconds=0.004),
        # one switch, gigabit
        frozenset({Tier.EDGE}): Link(bytes_per_second=1_000 * BYTES_PER_MBIT, latency_seconds=0.001),
        # a site's uplink
        frozenset({Tier.EDGE, Tier.CLOUD}): Link(bytes_per_second=100 * BYTES_PER_MBIT, latency_seconds=0.025),
        # mobile or consumer access to a data centre
        frozenset({Tier.DEVICE, Tier.CLOUD}): Link(bytes_per_second=20 * BYTES_PER_MBIT, latency_seconds=0.040),
        # inside a data centre, ten gigabit
        frozenset({Tier.CLOUD}): Link(bytes_per_second=10_000 * BYTES_PER_MBIT, latency_seconds=0.0005),
    }
)
"""The usual link between two different nodes, by the tiers that they stand on; the same both ways."""


def link(source: Tier, sink: Tier) -> Link:
    """The usual link between two different nodes on these tiers; the same both ways."""
    return BY_TIERS[frozenset({source, sink})]
