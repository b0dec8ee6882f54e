"""Networks: nodes four times as fast as others with links drawn apart, and tiers of devices, edge nodes and clouds."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.dag.constellation import Tier
from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.planner.problem import Floats, Place

NODES_MIN: Final = 3


class Network(NamedTuple):
    """`node` [m], `speed` [m], in seconds of work a second; `tiers` [k], none where there are none.

    `latency` [k, k] in seconds. `per_byte` [k, k]: relative, around 1 between nodes; zero on both diagonals.
    """

    places: tuple[Place, ...]
    node: npt.NDArray[np.int64]
    speed: Floats
    tiers: tuple[Tier, ...]
    latency: Floats
    per_byte: Floats


def network(kind: str, nodes: int, draws: Draws) -> Network:
    """A network of so many nodes, NODES_MIN or more, of one of NETWORKS."""
    return NETWORKS[kind](nodes, draws)


def _uneven(nodes: int, draws: Draws) -> Network:
    """One slot a node, speeds from 1 to 4, every link with a bandwidth of its own, the same both ways."""
    drawn = draws.heavy(nodes, nodes)
    return Network(
        places=tuple(Place(f"node-{index}") for index in range(nodes)),
        node=np.arange(nodes),
        speed=draws.uniform(1.0, 4.0, nodes),
        tiers=(),
        latency=_off(draws.uniform(0.0, 0.02, nodes, nodes)),
        per_byte=_off((drawn + drawn.T) / 2),
    )


#: by tier: slots and speed of the CPU, speed of the NPU that every second one has
_SLOTS: Final = {Tier.DEVICE: 1, Tier.EDGE: 2, Tier.CLOUD: 4}
_SPEED: Final = {Tier.DEVICE: 1.0, Tier.EDGE: 3.0, Tier.CLOUD: 8.0}
_NPU_SPEED: Final = {Tier.DEVICE: 4.0, Tier.EDGE: 9.0}

#: by the lower and the higher tier: relative seconds a byte and latency, within a site and between sites
_NEAR: Final = {(Tier.DEVICE, Tier.DEVICE): (0.8, 0.002), (Tier.DEVICE, Tier.EDGE): (0.5, 0.002)}
_FAR: Final = {
    (Tier.DEVICE, Tier.DEVICE): (3.0, 0.02),
    (Tier.DEVICE, Tier.EDGE): (2.0, 0.02),
    (Tier.DEVICE, Tier.CLOUD): (2.5, 0.04),
    (Tier.EDGE, Tier.EDGE): (1.0, 0.015),
    (Tier.EDGE, Tier.CLOUD): (1.0, 0.03),
    (Tier.CLOUD, Tier.CLOUD): (0.1, 0.002),
}
_UP: Final = 2.0
"""How many times as long a byte takes up as down."""


def _tiered(nodes: int, draws: Draws) -> Network:
    """An eighth clouds, a quarter edge nodes, each a site, and devices at the sites; links up are slower than down."""
    clouds, edges = max(1, nodes // 8), max(1, nodes // 4)
    tiers = (Tier.DEVICE,) * (nodes - edges - clouds) + (Tier.EDGE,) * edges + (Tier.CLOUD,) * clouds
    count = dict.fromkeys(Tier, 0)
    sites, places, node, speed = [], [], [], []
    for index, tier in enumerate(tiers):
        number = count[tier]
        count[tier] += 1
        sites.append(number % edges if tier is not Tier.CLOUD else -1)
        name = f"{tier.value}-{number}"
        places.append(Place(name, slots=_SLOTS[tier]))
        node.append(index)
        speed.append(_SPEED[tier])
        if tier in _NPU_SPEED and number % 2:
            places.append(Place(name, "npu"))
            node.append(index)
            speed.append(_NPU_SPEED[tier])
    links = np.array([[_link(tiers, sites, a, z) for z in range(nodes)] for a in range(nodes)])
    uneven = draws.uniform(0.5, 1.5, nodes, nodes)
    return Network(
        places=tuple(places),
        node=np.array(node),
        speed=np.array(speed) * draws.uniform(0.75, 1.25, len(places)),
        tiers=tiers,
        latency=_off(links[:, :, 1]),
        per_byte=_off(links[:, :, 0] * uneven),
    )


def _link(tiers: tuple[Tier, ...], sites: list[int], source: int, sink: int) -> tuple[float, float]:
    rank = list(Tier)
    low, high = sorted((tiers[source], tiers[sink]), key=rank.index)
    near = sites[source] == sites[sink] and (low, high) in _NEAR
    per_byte, latency = (_NEAR if near else _FAR)[low, high]
    up = rank.index(tiers[sink]) > rank.index(tiers[source])
    return (per_byte * (_UP if up else 1.0), latency)


def _off(links: Floats) -> Floats:
    np.fill_diagonal(links, 0.0)
    return links


NETWORKS: Final[Mapping[str, Callable[[int, Draws], Network]]] = {"uneven": _uneven, "tiered": _tiered}
