"""Which nodes may run a stage, and in words why the others may not."""

from collections.abc import Iterator

from starloom.dag.constellation import PRIVATE_TIERS, Private, Requirements
from starloom.dag.kinds import KindSpec
from starloom.devices.node import NodeProfile


def target_for(profile: NodeProfile, kind: KindSpec, requires: Requirements) -> str:
    """What a stage of that kind would compute on there: the required target, else the kind's first that is there."""
    wanted = (requires.target,) if requires.target else kind.targets
    return next((name for name in wanted if profile.target(name) is not None), "")


def may(profile: NodeProfile, offers: bool, kind: KindSpec, requires: Requirements, private: Private | None) -> bool:
    """Whether the node meets all requirements; `offers` says whether its agent runs the kind."""
    return next(misfits(profile, offers, kind, requires, private), None) is None


def misfits(
    profile: NodeProfile, offers: bool, kind: KindSpec, requires: Requirements, private: Private | None
) -> Iterator[str]:
    """Each reason why the node may not run a stage of that kind, as a clause about the node.

    `private` says how far what the stage reads and gives may go.
    """
    if requires.node and requires.node != profile.name:
        yield f"is not {requires.node!r}"
        return
    if not offers:
        yield f"does not offer {kind.name}"
    if private is not None and profile.tier not in PRIVATE_TIERS[private]:
        yield f"is on the {profile.tier} tier, where what is private to {private} may not be"
    elif requires.tiers and profile.tier not in requires.tiers:
        yield f"is on the {profile.tier} tier"
    if not target_for(profile, kind, requires):
        wanted = requires.target or ", ".join(kind.targets)
        has = ", ".join(target.name for target in profile.targets) or "none"
        yield f"has no target {wanted} (it has {has})"
    for name, value in requires.labels.items():
        found = profile.labels.get(name)
        if found is None:
            yield f"has no label {name}"
        elif found != value:
            yield f"has the label {name}={found}"
    if requires.memory_bytes > profile.memory_bytes:
        yield f"has {profile.memory_bytes} bytes of memory"
