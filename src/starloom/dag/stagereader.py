"""What a stage says of itself in a document, beside what it runs and reads: where it may run, in what variants, and what happens when it fails."""

from collections.abc import Mapping
from typing import Any

from starloom.dag import limits
from starloom.dag.checks import kind_of
from starloom.dag.constellation import (
    Bounds,
    OnFailure,
    Policy,
    Preference,
    Preferences,
    Private,
    Requirements,
    Retry,
    Spread,
    Straggler,
    Tier,
    Variant,
)
from starloom.dag.fieldreader import FieldReader
from starloom.dag.quantities import read_bytes, read_seconds

POLICY_KEYS = ("retry", "timeout", "deadline", "straggler", "on_failure", "defaults", "grow", "replicate")
PRIVACY_KEYS = ("private", "declassify")
PREFERENCE_KEYS = ("prefer", "avoid")
VARIANT_KEYS = ("variants", "variant", "least_quality")


class StageReader(FieldReader):
    """Reads requirements, preferences, variants, labels and policies; of documents with the same grammar."""

    def _of_variants(self, place: str, part: Mapping[str, Any]) -> dict[str, Any]:
        """What a stage says of its variants, by the names of its fields."""
        found: dict[str, Any] = {}
        if "variants" in part:
            found["variants"] = self._variants(f"{place}.variants", part["variants"])
        if "variant" in part:
            found["variant"] = self._text(f"{place}.variant", part["variant"])
        if "least_quality" in part:
            found["least_quality"] = self._number(f"{place}.least_quality", part["least_quality"], 0.0)
        return found

    def _variants(self, place: str, value: Any) -> tuple[Variant, ...]:
        if isinstance(value, list | tuple):
            return tuple(self._variant(f"{place}[{index}]", item) for index, item in enumerate(value))
        self._problem(
            place, f"is {kind_of(value)}; write a list such as [{{name: small, quality: 0.7}}], the best first"
        )
        return ()

    def _variant(self, place: str, value: Any) -> Variant:
        known = ("name", "quality", "params", "require", "seconds")
        part = self._mapping(place, value, known, needed=("name", "quality"))
        return Variant(
            name=self._text(f"{place}.name", part.get("name", "")),
            quality=self._number(f"{place}.quality", part.get("quality", 0.0), 0.0),
            params=self._plain(f"{place}.params", part.get("params", {})),
            requires=self._requirements(f"{place}.require", part.get("require", {})),
            seconds=self._quantity(f"{place}.seconds", part.get("seconds", 0.0), 0.0, read_seconds),
        )

    def _privacy(self, place: str, part: Mapping[str, Any]) -> tuple[Private | dict[str, Private] | None, bool | None]:
        """How far what a stage gives may go, all of it or by output port; and whether that is free of what it reads."""
        declassify = self._flag(f"{place}.declassify", part["declassify"]) if "declassify" in part else None
        if "private" not in part:
            return None, declassify
        place, value = f"{place}.private", part["private"]
        if not isinstance(value, dict):
            return self._choice(place, value, Private, Private.DEVICE), declassify
        ports = self._mapping(place, value)
        found = {port: self._choice(f"{place}.{port}", item, Private, Private.DEVICE) for port, item in ports.items()}
        return found, declassify

    def _requirements(self, place: str, value: Any) -> Requirements:
        part = self._mapping(place, value, ("tier", "target", "labels", "attributes", "memory", "node"))
        return Requirements(
            tiers=self._tiers(f"{place}.tier", part.get("tier", [])),
            target=self._text(f"{place}.target", part.get("target", "")),
            labels=self._labels(f"{place}.labels", part.get("labels", {})),
            attributes=self._attributes(f"{place}.attributes", part.get("attributes", {})),
            memory_bytes=self._quantity(f"{place}.memory", part.get("memory", 0), 0, read_bytes),
            node=self._text(f"{place}.node", part.get("node", "")),
        )

    def _attributes(self, place: str, value: Any) -> dict[str, str]:
        """What is asked of attributes; numbers, true and false as the text that they are written as."""
        found = {}
        for name, asked in self._mapping(place, value).items():
            if isinstance(asked, bool):
                asked = str(asked).lower()
            found[name] = str(asked) if isinstance(asked, int | float) else self._text(f"{place}.{name}", asked)
        return found

    def _spread(self, place: str, value: Any) -> Spread | None:
        """A group, by its name or with all that is said of it; none for an empty name."""
        if isinstance(value, str):
            return Spread(group=value) if value else None
        part = self._mapping(place, value, ("group", "over", "seconds"), needed=("group",))
        return Spread(
            group=self._text(f"{place}.group", part.get("group", "")),
            over=self._text(f"{place}.over", part.get("over", "")),
            seconds=self._quantity(f"{place}.seconds", part.get("seconds", 0.0), 0.0, read_seconds),
        )

    def _tiers(self, place: str, value: Any) -> tuple[Tier, ...]:
        tiers = value if isinstance(value, list | tuple) else [value]
        return tuple(self._choice(place, tier, Tier, Tier.DEVICE) for tier in tiers)

    def _preferences(self, place: str, part: Mapping[str, Any]) -> Preferences:
        prefer, avoid = (self._preferred(f"{place}.{key}", part.get(key, [])) for key in PREFERENCE_KEYS)
        return Preferences(prefer=prefer, avoid=avoid)

    def _preferred(self, place: str, value: Any) -> tuple[Preference, ...]:
        if isinstance(value, dict):
            return (self._preference(place, value),)
        if isinstance(value, list | tuple):
            return tuple(self._preference(f"{place}[{index}]", item) for index, item in enumerate(value))
        self._problem(place, f"is {kind_of(value)}; write a mapping such as {{tier: edge}}, or a list of them")
        return ()

    def _preference(self, place: str, value: Any) -> Preference:
        part = self._mapping(place, value, ("tier", "target", "labels", "attributes", "node", "seconds"))
        seconds = part.get("seconds", limits.PREFERENCE_SECONDS)
        return Preference(
            tiers=self._tiers(f"{place}.tier", part.get("tier", [])),
            target=self._text(f"{place}.target", part.get("target", "")),
            labels=self._labels(f"{place}.labels", part.get("labels", {})),
            attributes=self._attributes(f"{place}.attributes", part.get("attributes", {})),
            node=self._text(f"{place}.node", part.get("node", "")),
            seconds=self._quantity(f"{place}.seconds", seconds, limits.PREFERENCE_SECONDS, read_seconds),
        )

    def _policy(self, place: str, stage: Mapping[str, Any]) -> Policy:
        usual = Policy()
        return Policy(
            retry=self._retry(f"{place}.retry", stage["retry"]) if "retry" in stage else usual.retry,
            timeout_seconds=self._quantity(f"{place}.timeout", stage.get("timeout", 0.0), 0.0, read_seconds),
            deadline_seconds=self._quantity(f"{place}.deadline", stage.get("deadline", 0.0), 0.0, read_seconds),
            straggler=self._straggler(f"{place}.straggler", stage["straggler"]) if "straggler" in stage else None,
            on_failure=self._choice(
                f"{place}.on_failure", stage.get("on_failure", usual.on_failure), OnFailure, usual.on_failure
            ),
            defaults=self._plain(f"{place}.defaults", stage.get("defaults", {})),
            grow=self._bounds(f"{place}.grow", stage["grow"]) if "grow" in stage else usual.grow,
            replicate=self._number(f"{place}.replicate", stage.get("replicate", 0), 0, whole=True),
        )

    def _bounds(self, place: str, value: Any) -> Bounds:
        part = self._mapping(place, value, ("stages", "generations"))
        usual = Bounds()
        return Bounds(
            stages=self._number(f"{place}.stages", part.get("stages", usual.stages), usual.stages, whole=True),
            generations=self._number(
                f"{place}.generations", part.get("generations", usual.generations), usual.generations, whole=True
            ),
        )

    def _straggler(self, place: str, value: Any) -> Straggler:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"factor": value}
        part = self._mapping(place, value, ("factor", "after"))
        usual = Straggler()
        after = part.get("after", usual.after_seconds)
        return Straggler(
            factor=self._number(f"{place}.factor", part.get("factor", usual.factor), usual.factor, at_least=1.0),
            after_seconds=self._quantity(f"{place}.after", after, usual.after_seconds, read_seconds),
        )

    def _retry(self, place: str, value: Any) -> Retry:
        if isinstance(value, int) and not isinstance(value, bool):
            value = {"times": value}
        part = self._mapping(place, value, ("times", "first", "factor", "last"))
        usual = Retry()
        first = part.get("first", usual.first_seconds)
        last = part.get("last", usual.last_seconds)
        return Retry(
            times=self._number(f"{place}.times", part.get("times", usual.times), usual.times, whole=True),
            first_seconds=self._quantity(f"{place}.first", first, usual.first_seconds, read_seconds),
            factor=self._number(f"{place}.factor", part.get("factor", usual.factor), usual.factor, at_least=1.0),
            last_seconds=self._quantity(f"{place}.last", last, usual.last_seconds, read_seconds),
        )
