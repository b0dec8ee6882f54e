"""FLEET.yaml: nodes to plan for, none of which needs to run, and the links between their tiers.

    nodes:
      - {name: camera, tier: device, targets: [cpu, npu], speed: {cpu: 0.2, npu: 3}, memory: 2GiB, resident: [centerface],
         watts: {cpu: 4, npu: 2}, battery_joules: 500}
      - {name: edge-1, tier: edge, slots: 4, watts: 40, price_per_hour: 0.5}
    links:
      - {between: [device, edge], mbit: 50, latency: 8ms, joules_per_mb: 0.8, price_per_gb: 0}
    uplinks:
      - {name: hall-wifi, mbit: 40, duplex: half}
      - {name: shop-dsl, mbit: 50, up_mbit: 10}

A node's lines and `uplinks` are those of a cluster file, which is a fleet as well. Beside them `speed`, how many times as fast as the
reference machine, for all targets or by target; `memory`, without which it is taken to suffice; `resident`, the models
that are loaded there; `slots`, 1 unless given. `watts`, for all targets or by target, is what a target takes with all its slots in use beside what
it takes idle, and `price_per_hour` what the node costs then: a stage takes the share of one slot. `battery_joules` is what the stages of a job may take of
the node in all. Links that are not listed are what such paths usually give (`devices.links`).
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from starloom.dag import limits
from starloom.dag.checks import kind_of, number_fault
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.ids import AgentId
from starloom.dag.quantities import BYTES_PER_UNIT, read_bytes, read_seconds
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import BY_TIERS, BYTES_PER_MBIT, Link, SharedUplink
from starloom.devices.node import NodeProfile, Target
from starloom.orchestrator.clusterfile import NodeReader, NodeSpec, rate_fault, read_document
from starloom.orchestrator.filebytes import read_at_most

_UNBOUNDED_BYTES = 1 << 62


class FleetNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node to plan for. `speed` by target, relative to the reference machine. `memory_bytes`: 0 where it is not known.

    `watts` by target, and `price_per_hour`, with all slots in use. `battery_joules`: for one job; infinite without a bound.
    """

    node: NodeSpec
    speed: dict[str, float] = {}
    watts: dict[str, float] = {}
    price_per_hour: float = 0.0
    battery_joules: float = math.inf
    memory_bytes: int = 0
    resident: tuple[str, ...] = ()

    @property
    def profile(self) -> NodeProfile:
        """As its agent would tell of it."""
        node = self.node
        return NodeProfile(
            name=AgentId(node.name),
            tier=node.tier,
            targets=tuple(Target(name=name) for name in node.targets),
            # What is not known is taken to suffice.
            memory_bytes=self.memory_bytes or _UNBOUNDED_BYTES,
            slots=max(1, node.slots),
            cores=float(max(1, node.slots)),
            labels=node.labels,
        )


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes, the links between different nodes by the tiers that they stand on, and up-links that some of them share.

    `paths`: what is known of single links, by the names of their source and sink; that of the job store is empty.
    """

    nodes: tuple[FleetNode, ...]
    links: Mapping[frozenset[Tier], Link] = BY_TIERS
    uplinks: tuple[SharedUplink, ...] = ()
    paths: Mapping[tuple[str, str], MeasuredLink] = {}


def read_file(path: Path) -> Fleet:
    """The fleet that a file describes. Raises InvalidInput with all problems, also if there is no such file."""
    try:
        data = read_at_most(path, limits.DOCUMENT_BYTES_MAX)
    except OSError as error:
        raise InvalidInput([Problem(str(path), f"cannot be read: {error.strerror}")], "bad fleet file") from error
    return parse(data, str(path))


def parse(data: bytes, place: str = "the fleet file") -> Fleet:
    """The fleet in a YAML text; `place` names it in errors. Raises InvalidInput with all problems."""
    what = f"{place} describes no fleet"
    reader = _FleetReader()
    fleet = reader.fleet(read_document(data, what))
    if reader.problems:
        raise InvalidInput(reader.problems, what)
    return fleet


class _FleetReader(NodeReader):
    nodes_max = limits.FLEET_NODES_MAX
    nodes_limit = "FLEET_NODES_MAX"
    more = ("speed", "memory", "resident", "watts", "price_per_hour", "battery_joules")

    def fleet(self, document: Any) -> Fleet:
        part = self.mapping("", document, ("nodes", "links", "uplinks"))
        # None where what should list nodes does not; else one for each line, so that what else a line holds is read as well.
        spec = self.cluster({"nodes": part.get("nodes"), "uplinks": part.get("uplinks", [])})
        nodes = [self._more(f"nodes.{i}", each, part["nodes"][i]) for i, each in enumerate(spec.nodes)]
        return Fleet(nodes=tuple(nodes), links=self._links(part.get("links", [])), uplinks=spec.uplinks)

    def _more(self, place: str, spec: NodeSpec, value: Any) -> FleetNode:
        if not isinstance(value, dict):
            return FleetNode(node=spec)
        resident = value.get("resident", [])
        if not isinstance(resident, list) or not all(isinstance(name, str) for name in resident):
            self.add(f"{place}.resident", "list names of models, such as [minilm-l6-v2]")
            resident = []
        try:
            memory = read_bytes(value.get("memory", 0))
        except ValueError as error:
            self.add(f"{place}.memory", str(error))
            memory = 0
        return FleetNode(
            node=spec,
            speed=self._by_target(f"{place}.speed", value.get("speed", 1.0), spec.targets, above=True),
            watts=self._by_target(f"{place}.watts", value.get("watts", 0.0), spec.targets),
            price_per_hour=self._at_most(
                f"{place}.price_per_hour", value.get("price_per_hour", 0.0), limits.FLEET_PRICE_MAX
            ),
            battery_joules=self.checked(f"{place}.battery_joules", value["battery_joules"], number_fault, 0.0)
            if "battery_joules" in value
            else math.inf,
            memory_bytes=memory,
            resident=tuple(resident),
        )

    def _by_target(self, place: str, value: Any, targets: tuple[str, ...], *, above: bool = False) -> dict[str, float]:
        """A number for each target, from one for all or a mapping; `above`: greater than 0."""
        given = value if isinstance(value, dict) else dict.fromkeys(targets, value)
        for name, number in given.items():
            if name not in targets:
                self.add(f"{place}.{name}", f"is no target of the node, which has {', '.join(targets)}")
            elif fault := number_fault(number, at_most=limits.FLEET_SPEED_MAX if above else limits.FLEET_WATTS_MAX) or (
                "is 0; give a number above 0" if above and not number else ""
            ):
                self.add(f"{place}.{name}" if isinstance(value, dict) else place, fault)
        return given

    def _links(self, value: Any) -> Mapping[frozenset[Tier], Link]:
        found, said = dict(BY_TIERS), dict[frozenset[Tier], str]()
        if not isinstance(value, list):
            self.add("links", f"is {kind_of(value)}; list links, such as {{between: [device, edge], mbit: 50}}")
            return found
        for index, each in enumerate(value):
            place = f"links.{index}"
            part = self.mapping(place, each, ("between", "mbit", "latency", "joules_per_mb", "price_per_gb"))
            ends: Any = part.get("between")
            known = isinstance(ends, list) and len(ends) == 2 and all(end in tuple(Tier) for end in ends)
            if not known:
                self.add(f"{place}.between", f"is {ends!r}; give two of {', '.join(Tier)}")
            tiers = frozenset(map(Tier, ends if known else (Tier.EDGE,)))
            if known and (first := said.setdefault(tiers, place)) != place:
                self.add(f"{place}.between", f"{first} is of these two already; keep one of them")
            found[tiers] = self._link(place, part, BY_TIERS[tiers])
        return MappingProxyType(found)

    def _link(self, place: str, part: Mapping[str, Any], usual: Link) -> Link:
        """A link as a line has it, and as `usual` where it says nothing or something wrong."""
        mbit = self.checked(f"{place}.mbit", part.get("mbit", usual.bytes_per_second / BYTES_PER_MBIT), rate_fault, 1.0)
        latency = usual.latency_seconds
        try:
            latency = read_seconds(part.get("latency", latency))
        except ValueError as error:
            self.add(f"{place}.latency", str(error))
        joules = self._at_most(f"{place}.joules_per_mb", part.get("joules_per_mb", 0.0), limits.FLEET_JOULES_MAX)
        price = self._at_most(f"{place}.price_per_gb", part.get("price_per_gb", 0.0), limits.FLEET_PRICE_MAX)
        return Link(
            bytes_per_second=mbit * BYTES_PER_MBIT,
            latency_seconds=latency,
            joules_per_byte=joules / BYTES_PER_UNIT["MB"],
            price_per_byte=price / BYTES_PER_UNIT["GB"],
        )

    def _at_most(self, place: str, value: Any, most: float) -> Any:
        """A number from 0 to `most`; 0 and a problem for any other."""
        return self.checked(place, value, partial(number_fault, at_most=most), 0.0)
