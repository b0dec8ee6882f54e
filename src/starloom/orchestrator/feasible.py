"""Which nodes may run a stage, in words why the others may not, and what is said for and against those that may."""

from collections.abc import Iterator

from starloom.dag import attributes, limits
from starloom.dag.constellation import PRIVATE_TIERS, Preference, Preferences, Private, Requirements
from starloom.dag.kinds import KindSpec
from starloom.devices.node import NodeProfile


def target_for(profile: NodeProfile, kind: KindSpec, requires: Requirements) -> str:
    """What a stage of that kind would compute on there: the required target, else the kind's first that is there."""
    wanted = (requires.target,) if requires.target else kind.targets
    return next((name for name in wanted if profile.target(name) is not None), "")


def targets_for(profile: NodeProfile, kind: KindSpec, requires: Requirements, prefers: Preferences) -> tuple[str, ...]:
    """What a stage may compute on there: as `target_for` has it, but all that the kind can if it prefers some target."""
    if requires.target or not any(said.target for said in (*prefers.prefer, *prefers.avoid)):
        return (target_for(profile, kind, requires),)
    return tuple(name for name in kind.targets if profile.target(name) is not None)


def dislike_seconds(profile: NodeProfile, target: str, kind: KindSpec, prefers: Preferences) -> float:
    """How much later an end there counts as, beside what the best of places would.

    That is the seconds of each preference that the place does not fit, and of each that it fits and is to be avoided. Of
    equal places the kind's own tier is taken.
    """
    missed = sum(said.seconds for said in prefers.prefer if not _fits(profile, target, said))
    met = sum(said.seconds for said in prefers.avoid if _fits(profile, target, said))
    return missed + met + (limits.PLAN_OTHER_TIER_SECONDS if kind.tier not in (None, profile.tier) else 0.0)


def dislikes(profile: NodeProfile, target: str, prefers: Preferences) -> Iterator[str]:
    """Each preference that speaks against a place, as a clause about it."""
    for said in prefers.prefer:
        if not _fits(profile, target, said):
            yield f"is not on {_named(said)}, which is preferred by {said.seconds:g} s"
    for said in prefers.avoid:
        if _fits(profile, target, said):
            yield f"is on {_named(said)}, which is avoided by {said.seconds:g} s"


def in_words(prefers: Preferences) -> str:
    """What a stage prefers, in a few words; empty if it is nothing."""
    told = (("prefers", prefers.prefer), ("avoids", prefers.avoid))
    return " and ".join(
        f"{verb} {', '.join(f'{_named(said)} by {said.seconds:g} s' for said in listed)}"
        for verb, listed in told
        if listed
    )


def _fits(profile: NodeProfile, target: str, said: Preference) -> bool:
    return (
        (not said.node or said.node == profile.name)
        and (not said.tiers or profile.tier in said.tiers)
        and (not said.target or said.target == target)
        and all(profile.labels.get(name) == value for name, value in said.labels.items())
        and all(attributes.holds(asked, profile.attribute(name)) for name, asked in said.attributes.items())
    )


def _named(said: Preference) -> str:
    parts = [
        f"the {' or '.join(said.tiers)} tier" if said.tiers else "",
        f"node {said.node}" if said.node else "",
        f"target {said.target}" if said.target else "",
        *(f"{name}={value}" for name, value in said.labels.items()),
        *(f"{name} {asked}" for name, asked in said.attributes.items()),
    ]
    return " with ".join(filter(None, parts))


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
    for name, asked in requires.attributes.items():
        attribute = profile.attribute(name)
        if not attributes.holds(asked, attribute):
            has = "no attribute " + name if attribute is None else f"{name}={attributes.as_text(attribute)}"
            yield f"has {has}, where {asked} is required"
    if requires.memory_bytes > profile.memory_bytes:
        yield f"has {profile.memory_bytes} bytes of memory"
