"""What moving a value between any two nodes of a fleet takes: as is usual between their tiers, or as fetches told. Pure."""

from collections.abc import Callable

import numpy as np

from starloom.dag.values import JOB_STORE
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import STORE_TIER, Link
from starloom.orchestrator.fleetfile import Fleet
from starloom.orchestrator.planner.problem import Floats


def usual(fleet: Fleet, of: Callable[[Link], float]) -> Floats:
    """A figure of each link by what is usual between tiers, [node, node], with the job store as the last."""
    tiers = [*(node.node.tier for node in fleet.nodes), STORE_TIER]
    each = list(dict.fromkeys(tiers))
    found: Floats = np.array([[of(fleet.links[frozenset({a, b})]) for b in each] for a in each])
    at = [each.index(tier) for tier in tiers]
    return found[np.ix_(at, at)]


def latency(fleet: Fleet) -> Floats:
    """Seconds of a request for few bytes, [node, node], with the job store as the last: as fetches told, and else as is usual."""
    return _fetched(fleet, usual(fleet, lambda link: link.latency_seconds), lambda link: link.latency_seconds)


def seconds_per_byte(fleet: Fleet) -> Floats:
    """Seconds for a byte more, likewise."""
    found = usual(fleet, lambda link: 1.0 / link.bytes_per_second)
    return _fetched(fleet, found, lambda link: None if link.bytes_per_second is None else 1.0 / link.bytes_per_second)


def _fetched(fleet: Fleet, found: Floats, of: Callable[[MeasuredLink], float | None]) -> Floats:
    numbers = {name: at for at, name in enumerate([*(node.node.name for node in fleet.nodes), JOB_STORE])}
    for (source, sink), known in fleet.paths.items():
        value = of(known)
        if value is not None and source in numbers and sink in numbers:
            found[numbers[source], numbers[sink]] = value
    return found
