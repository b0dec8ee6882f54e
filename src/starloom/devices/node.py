"""What a node is and has, as its agent probed it."""

from typing import Any

import msgspec

from starloom.dag import attributes
from starloom.dag.constellation import Tier
from starloom.dag.ids import AgentId
from starloom.devices.demand import Demand
from starloom.devices.links import SharedUplink


class Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What computes on a node. An `emulated` one computes elsewhere and says so in `note`."""

    name: str
    emulated: bool = False
    note: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent has measured of its node's targets, and read of its models' graphs, for predictions.

    `seconds`: by target, of one run of each of `agents.samples`, in their order; 0 for one that there was no time for.
    `samples` is the digest of these. `asks`: what one usual run of a kind asks, by kind and target, as `devices.demand`
    has it, of kinds that say which graphs they run and whose models are there.
    """

    samples: str = ""
    seconds: dict[str, tuple[float, ...]] = {}
    asks: dict[str, dict[str, Demand]] = {}


class NodeProfile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One node: its place, and what was measured of it.

    `cores`: usable ones, counting cgroup limits. `memory_bytes`: likewise. `slots`: stages that run
    at once. `providers`: ONNX Runtime's execution providers. `kinds`: stage kinds that its agent
    can run, by name. `address`: where its data service listens, `host:port`. `pid`: of its agent. `measured` is told
    once it is there. `uplinks`: that it shares with others, all on the way out, as its operator said.
    """

    name: AgentId
    tier: Tier
    targets: tuple[Target, ...] = (Target(name="cpu"),)
    cores: float = 1.0
    memory_bytes: int = 0
    slots: int = 1
    providers: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    kinds: tuple[str, ...] = ()
    address: str = ""
    pid: int = 0
    details: dict[str, Any] = {}
    measured: Measured | None = None
    uplinks: tuple[SharedUplink, ...] = ()

    def attribute(self, name: str) -> attributes.Value | None:
        """What the node says of itself under a name; None if it says nothing.

        That is a label, which goes before all else, or `name`, `tier`, `cores`, `memory` (bytes), `slots`, or a detail.
        """
        if name in self.labels:
            return self.labels[name]
        match name:
            case "name":
                return self.name
            case "tier":
                return str(self.tier)
            case "cores":
                return self.cores
            case "memory":
                return float(self.memory_bytes)
            case "slots":
                return float(self.slots)
        detail = self.details.get(name)
        if isinstance(detail, str):
            return detail or None
        return float(detail) if isinstance(detail, int | float) else None

    def attribute_text(self, name: str) -> str:
        """The same as text; empty if the node says nothing."""
        found = self.attribute(name)
        return "" if found is None else attributes.as_text(found)

    def target(self, name: str) -> Target | None:
        """The target of that name, or None."""
        return next((target for target in self.targets if target.name == name), None)
