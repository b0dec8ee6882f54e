"""CLUSTER.yaml: the nodes of a cluster on one machine.

    nodes:
      - {name: camera, tier: device, targets: [cpu, npu], labels: {sensor: camera}}
      - {name: edge-1, tier: edge, slots: 2}
      - {name: kiosk, tier: device, uplink: [hall-wifi, shop-dsl]}
    uplinks:
      - {name: hall-wifi, mbit: 40, duplex: half}
      - {name: shop-dsl, mbit: 50, up_mbit: 10}

`targets` is [cpu] unless given; `slots`, the stages that run at once, is taken from the cores.

An up-link is shared by the nodes that name it, as `uplink: hall-wifi`, or `uplink: [hall-wifi, shop-dsl]` for all on the way: what goes from
them to any other node, or comes from one, passes it, and no faster than at `mbit`, or `up_mbit` from them. What such nodes send each other stays
within. A radio (`duplex: half`) carries one value at a time, in either direction, and twice what goes from one of its nodes to another. Plans
count that; nothing is slowed down to it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from starloom.dag import limits
from starloom.dag.checks import kind_of, name_fault, number_fault, suggestion
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidConstellation, InvalidInput, Problem
from starloom.dag.validate_stage import label_problems
from starloom.dag.yamltext import read_yaml
from starloom.devices.faults import ORCHESTRATOR
from starloom.devices.links import BYTES_PER_MBIT, SharedUplink
from starloom.orchestrator.filebytes import read_at_most

TARGETS: Final = ("cpu", "gpu", "npu", "fpga")


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A node to start: its name, place, targets and labels. `slots` of 0 goes by the cores. `uplinks`: names of those that it shares."""

    name: str
    tier: Tier
    targets: tuple[str, ...] = ("cpu",)
    labels: dict[str, str] = {}
    slots: int = 0
    uplinks: tuple[str, ...] = ()


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster to start: its nodes, each with a name of its own, and up-links that some of them share."""

    nodes: tuple[NodeSpec, ...]
    uplinks: tuple[SharedUplink, ...] = ()

    def uplinks_of(self, node: NodeSpec) -> tuple[SharedUplink, ...]:
        """Those that a node shares."""
        return tuple(each for each in self.uplinks if each.name in node.uplinks)


DEFAULT: Final = ClusterSpec(
    nodes=(
        NodeSpec(name="mic-speaker", tier=Tier.DEVICE, labels={"sensor": "microphone", "actuator": "speaker"}),
        NodeSpec(name="camera", tier=Tier.DEVICE, targets=("cpu", "npu"), labels={"sensor": "camera"}),
        NodeSpec(name="edge-1", tier=Tier.EDGE),
        NodeSpec(name="edge-2", tier=Tier.EDGE),
        NodeSpec(name="cloud", tier=Tier.CLOUD),
    )
)
"""Two devices, two edge nodes, one cloud node."""


def read_file(path: Path) -> ClusterSpec:
    """The cluster that a file describes. Raises InvalidInput with all problems, also if there is no such file."""
    try:
        data = read_at_most(path, limits.DOCUMENT_BYTES_MAX)
    except OSError as error:
        raise InvalidInput([Problem(str(path), f"cannot be read: {error.strerror}")], "bad cluster file") from error
    return parse(data, str(path))


def parse(data: bytes, place: str = "the cluster file") -> ClusterSpec:
    """The cluster in a YAML text; `place` names it in errors. Raises InvalidInput with all problems."""
    what = f"{place} describes no cluster"
    reader = NodeReader()
    spec = reader.cluster(read_document(data, what))
    if reader.problems:
        raise InvalidInput(reader.problems, what)
    return spec


def read_document(data: bytes, what: str) -> Any:
    """The plain form of a YAML text; `what` begins errors. Raises InvalidInput."""
    if len(data) > limits.DOCUMENT_BYTES_MAX:
        over = f"has {len(data)} bytes, over DOCUMENT_BYTES_MAX = {limits.DOCUMENT_BYTES_MAX}"
        raise InvalidInput([Problem("", over)], what)
    try:
        return read_yaml(data.decode())
    except UnicodeDecodeError as error:
        raise InvalidInput([Problem("", f"is no UTF-8 text: {error}")], what) from error
    except InvalidConstellation as error:
        raise InvalidInput(error.problems, what) from error


def read_node(
    form: dict[str, Any], uplinks: Sequence[dict[str, Any]] = ()
) -> tuple[NodeSpec, tuple[SharedUplink, ...]]:
    """The node in the plain form of one line of `nodes`, and the up-links in that of `uplinks`. Raises InvalidInput with all problems."""
    reader = NodeReader()
    found = reader.node("", form), reader.uplinks(list(uplinks))
    if reader.problems:
        raise InvalidInput(reader.problems, "bad node")
    return found


def rate_fault(value: Any) -> str:
    """What is wrong with the rate of a link, in Mbit/s; empty if nothing is."""
    return number_fault(value, at_least=limits.FLEET_MBIT_MIN, at_most=limits.FLEET_MBIT_MAX)


class NodeReader:
    """Reads the plain form, and collects what is wrong with it. A node may have `more` keys, for a subclass to read."""

    more: tuple[str, ...] = ()
    nodes_max, nodes_limit = limits.CLUSTER_NODES_MAX, "CLUSTER_NODES_MAX"

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def cluster(self, document: Any) -> ClusterSpec:
        """The cluster of a whole document."""
        part = self.mapping("", document, ("nodes", "uplinks"))
        nodes = part.get("nodes")
        uplinks = self.uplinks(part.get("uplinks", []))
        if not isinstance(nodes, list) or not nodes:
            self.add("nodes", "list at least one node, such as {name: edge-1, tier: edge}")
            return ClusterSpec(nodes=())
        if len(nodes) > self.nodes_max:
            self.add("nodes", f"are {len(nodes)}, over {self.nodes_limit} = {self.nodes_max}")
        specs = tuple(self.node(f"nodes.{index}", node) for index, node in enumerate(nodes))
        for name, count in Counter(spec.name for spec in specs if spec.name).items():
            if count > 1:
                self.add("nodes", f"the name {name!r} is given {count} times; give each node its own")
        self._named(specs, [each.name for each in uplinks])
        return ClusterSpec(nodes=specs, uplinks=uplinks)

    def node(self, place: str, value: Any) -> NodeSpec:
        """The node of one list entry at `place`."""
        part = self.mapping(place, value, ("name", "tier", "targets", "labels", "slots", "uplink", *self.more))
        if not isinstance(value, dict):
            return NodeSpec(name="", tier=Tier.DEVICE)
        prefix = f"{place}." if place else ""
        return NodeSpec(
            name=self.checked(f"{prefix}name", part.get("name"), _name_fault, ""),
            tier=Tier(self.checked(f"{prefix}tier", part.get("tier"), _tier_fault, Tier.DEVICE)),
            targets=self._targets(f"{prefix}targets", part.get("targets", ["cpu"])),
            labels=self._labels(f"{prefix}labels", part.get("labels", {})),
            slots=self.checked(f"{prefix}slots", part.get("slots", 0), _slots_fault, 0),
            uplinks=self._uplink_names(f"{prefix}uplink", part.get("uplink", [])),
        )

    def uplinks(self, value: Any) -> tuple[SharedUplink, ...]:
        """The up-links of a whole document, as `uplinks` lists them."""
        if not isinstance(value, list):
            self.add(
                "uplinks", f"is {kind_of(value)}; list up-links, such as {{name: hall-wifi, mbit: 40, duplex: half}}"
            )
            return ()
        if len(value) > limits.FLEET_UPLINKS_MAX:
            self.add("uplinks", f"are {len(value)}, over FLEET_UPLINKS_MAX = {limits.FLEET_UPLINKS_MAX}")
        found, said = [], dict[str, str]()
        for index, each in enumerate(value):
            place = f"uplinks.{index}"
            part = self.mapping(place, each, ("name", "mbit", "up_mbit", "duplex"))
            name = self.checked(f"{place}.name", part.get("name"), lambda given: name_fault(given, dotted=True), "")
            if name and (first := said.setdefault(name, place)) != place:
                self.add(f"{place}.name", f"{first} has this name already; give each up-link its own")
            half = self.checked(f"{place}.duplex", part.get("duplex", "full"), _duplex_fault, "full") == "half"
            if half and "up_mbit" in part:
                self.add(f"{place}.up_mbit", "is of one way, and with `duplex: half` both share mbit; leave it out")
            down = self.checked(f"{place}.mbit", part.get("mbit"), rate_fault, 1.0)
            up = self.checked(f"{place}.up_mbit", part.get("up_mbit", down), rate_fault, 1.0)
            found.append(SharedUplink(name=name, up=up * BYTES_PER_MBIT, down=down * BYTES_PER_MBIT, half=half))
        return tuple(found)

    def _targets(self, place: str, value: Any) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not given:
            self.add(place, f"is {kind_of(value)}; list targets, such as [cpu, npu]")
            return ()
        for name in given:
            if name not in TARGETS:
                self.add(place, f"there is no target {name!r}{suggestion(str(name), TARGETS)}")
        # In their order, each once.
        return tuple(dict.fromkeys(map(str, given)))

    def _labels(self, place: str, value: Any) -> dict[str, str]:
        labels: dict[str, str] = self.mapping(place, value, None)
        self.problems.extend(label_problems(place, labels))
        return labels

    def _uplink_names(self, place: str, value: Any) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            self.add(
                place, f"is {kind_of(value)}; name an up-link, or list those on the way, such as [hall-wifi, shop-dsl]"
            )
            return ()
        # In their order, each once.
        return tuple(dict.fromkeys(given))

    def _named(self, nodes: Sequence[NodeSpec], uplinks: list[str]) -> None:
        """Whether nodes name up-links that there are, and each of these is named."""
        named, known = {name for node in nodes for name in node.uplinks}, [name for name in uplinks if name]
        for index, node in enumerate(nodes):
            for name in node.uplinks:
                if name not in uplinks:
                    self.add(f"nodes.{index}.uplink", f"there is no up-link {name!r}{suggestion(name, known)}")
        for index, name in enumerate(uplinks):
            if name and name not in named:
                self.add(
                    f"uplinks.{index}", f"no node shares it; say `uplink: {name}` of those that do, or leave it out"
                )

    def mapping(self, place: str, value: Any, known: tuple[str, ...] | None) -> dict[str, Any]:
        """A mapping, empty if it is none; `known` are its keys, if not all are."""
        if not isinstance(value, dict):
            self.add(place, f"is {kind_of(value)}, not a mapping")
            return {}
        for key in value:
            if known is not None and key not in known:
                self.add(f"{place}.{key}".lstrip("."), f"is no known key{suggestion(key, known)}")
        return value

    def checked(self, place: str, value: Any, fault_of: Callable[[Any], str], otherwise: Any) -> Any:
        """The value, or something else and a problem if `fault_of` finds a fault."""
        if fault := fault_of(value):
            self.add(place, fault)
            return otherwise
        return value

    def add(self, place: str, what: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(place, what))


def _name_fault(value: Any) -> str:
    taken = f"{value!r} is what faults call the orchestrator; take another" if value == ORCHESTRATOR else ""
    return taken or name_fault(value, dotted=True)


def _tier_fault(value: Any) -> str:
    return "" if value in tuple(Tier) else f"is {value!r}; give one of {', '.join(Tier)}"


def _duplex_fault(value: Any) -> str:
    return "" if value in ("full", "half") else f"is {value!r}; give one of full, half"


def _slots_fault(value: Any) -> str:
    return number_fault(value, at_most=limits.NODE_SLOTS_MAX, whole=True)
