"""What a document says of stages, and of what leads into them, as plain mappings and lists: what `stagereader` reads."""

from math import isfinite
from typing import Any

import msgspec

from starloom.dag.constellation import (
    Comparison,
    Dependency,
    Join,
    On,
    OnFailure,
    Policy,
    Preference,
    Preferences,
    Private,
    Requirements,
    Retry,
    Spread,
    StageSpec,
    Straggler,
    Tier,
    Variant,
)
from starloom.dag.quantities import BYTES_PER_UNIT, SECONDS_PER_UNIT

_NOTHING_REQUIRED = Requirements()
_USUAL_POLICY = Policy()


def without_empty(part: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys that say something, and those to keep."""
    return {key: value for key, value in part.items() if key in keep or value not in ("", 0, None, {}, [], ())}


def _condition(dependency: Dependency) -> dict[str, Any]:
    if dependency.comparison is not None:
        return {"when": _comparison(dependency.comparison, dependency.output)}
    return {} if dependency.on == On.SUCCESS else {"on": str(dependency.on)}


def _comparison(comparison: Comparison, carried: str) -> dict[str, Any]:
    when = {"is": comparison.operator, "value": comparison.value}
    if comparison.output != carried:
        when = {"output": comparison.output, **when}
    return {**when, "path": comparison.path} if comparison.path else when


def source_to_json(dependency: Dependency) -> str | dict[str, Any]:
    """What stands under `in` for a dependency with data."""
    name = f"{dependency.upstream}.{dependency.output}"
    condition = _condition(dependency)
    return {"from": name, **condition} if condition else name


def order_to_json(dependency: Dependency) -> str | dict[str, Any]:
    """What stands under `after` for a dependency without data."""
    condition = _condition(dependency)
    return {"stage": str(dependency.upstream), **condition} if condition else str(dependency.upstream)


def stage_to_json(stage: StageSpec, feeds: dict[str, Any], after: list[Any]) -> dict[str, Any]:
    """What stands under a stage's name, with what stands under its `in` and `after`."""
    return without_empty(
        {
            "kind": stage.kind,
            "in": feeds,
            "params": msgspec.to_builtins(stage.params) if stage.params else {},
            "require": requirements_to_json(stage.requires),
            **preferences_to_json(stage.prefers),
            "colocate": stage.colocate,
            "spread": spread_to_json(stage.spread) or None,
            **policy_to_json(stage.policy),
            **privacy_to_json(stage.private, stage.declassify),
            **variants_to_json(stage.variants, stage.variant, stage.least_quality),
            "join": str(stage.join) if stage.join != Join.ALL else None,
            "after": after,
            "cancelled": stage.cancelled or None,
        },
        keep=("kind", "declassify"),
    )


def variants_to_json(variants: tuple[Variant, ...], variant: str, least_quality: float) -> dict[str, Any]:
    """What is said of a stage's variants, beside its other keys."""
    if not (variants or variant or least_quality):
        return {}
    listed = [_variant(each) for each in variants]
    return without_empty({"variants": listed, "variant": variant, "least_quality": least_quality})


def _variant(variant: Variant) -> dict[str, Any]:
    said = {
        "name": variant.name,
        "quality": variant.quality,
        "params": msgspec.to_builtins(variant.params),
        "require": requirements_to_json(variant.requires),
        "seconds": seconds_text(variant.seconds) if variant.seconds else None,
    }
    return without_empty(said, keep=("name", "quality"))


def privacy_to_json(private: Private | dict[str, Private] | None, declassify: bool | None) -> dict[str, Any]:
    """What is said of how far data may go, which stands beside a stage's other keys."""
    found = {"private": msgspec.to_builtins(private), "declassify": declassify}
    return {key: value for key, value in found.items() if value is not None}


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """A policy's keys, which stand beside a stage's others."""
    if policy == _USUAL_POLICY:
        return {}
    return without_empty(
        {
            "retry": _retry(policy.retry),
            "timeout": seconds_text(policy.timeout_seconds) if policy.timeout_seconds else None,
            "deadline": seconds_text(policy.deadline_seconds) if policy.deadline_seconds else None,
            "straggler": _straggler(policy.straggler),
            "on_failure": str(policy.on_failure) if policy.on_failure != OnFailure.FAIL else None,
            "defaults": msgspec.to_builtins(policy.defaults),
            "grow": msgspec.to_builtins(policy.grow),
            "replicate": policy.replicate,
        }
    )


def requirements_to_json(requires: Requirements) -> dict[str, Any]:
    """What stands under `require`."""
    if requires == _NOTHING_REQUIRED:
        return {}
    return without_empty(
        {
            "tier": _tiers(requires.tiers),
            "target": requires.target,
            "labels": requires.labels,
            "attributes": requires.attributes,
            "memory": _bytes_text(requires.memory_bytes),
            "node": requires.node,
        }
    )


def spread_to_json(spread: Spread | None) -> str | dict[str, Any]:
    """What stands under `spread`; an empty name for none."""
    if spread is None or spread == Spread(group=spread.group):
        return spread.group if spread else ""
    more = {"over": spread.over, "seconds": seconds_text(spread.seconds) if spread.seconds else None}
    return {"group": spread.group, **without_empty(more)}


def preferences_to_json(prefers: Preferences) -> dict[str, Any]:
    """What stands under `prefer` and `avoid`, beside a stage's other keys."""
    if not prefers:
        return {}
    return without_empty(
        {"prefer": list(map(_preference, prefers.prefer)), "avoid": list(map(_preference, prefers.avoid))}
    )


def _preference(preference: Preference) -> dict[str, Any]:
    place = {
        "tier": _tiers(preference.tiers),
        "target": preference.target,
        "labels": preference.labels,
        "attributes": preference.attributes,
        "node": preference.node,
    }
    return {**without_empty(place), "seconds": seconds_text(preference.seconds)}


def _tiers(tiers: tuple[Tier, ...]) -> str | list[str]:
    return str(tiers[0]) if len(tiers) == 1 else [str(tier) for tier in tiers]


def _straggler(straggler: Straggler | None) -> dict[str, Any] | None:
    if straggler is None:
        return None
    return {"factor": straggler.factor, "after": seconds_text(straggler.after_seconds)}


def _retry(retry: Retry) -> int | dict[str, Any] | None:
    usual = Retry()
    if retry == usual:
        return None
    changed: dict[str, Any] = {
        "first": seconds_text(retry.first_seconds) if retry.first_seconds != usual.first_seconds else None,
        "factor": retry.factor if retry.factor != usual.factor else None,
        "last": seconds_text(retry.last_seconds) if retry.last_seconds != usual.last_seconds else None,
    }
    return {"times": retry.times, **{key: value for key, value in changed.items() if value is not None}}


def seconds_text(seconds: float) -> str | float:
    """The shortest text that reads back as exactly this number; what is no duration stays a number."""
    if not isfinite(seconds) or seconds < 0:
        return seconds
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    milliseconds = round(seconds * 1_000)
    return f"{milliseconds}ms" if milliseconds * SECONDS_PER_UNIT["ms"] == seconds else f"{seconds!r}s"


def _bytes_text(count: int) -> str | int:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % BYTES_PER_UNIT[unit] == 0:
            return f"{count // BYTES_PER_UNIT[unit]}{unit}"
    return count
