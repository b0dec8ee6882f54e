"""Makes a patch from Python, with the words of documents for sources: `stage.port`, `$input`.

edit = Edit(if_revision=3, why="a better recogniser")
edit.add("short", "text.summarise", text="words.text")
edit.replace("words", kind="speech.recognise", params={"beams": 2})
edit.rewire("speak", text="short.text")
edit.move("find", tier="cloud")
patch = edit.patch()
"""

from collections.abc import Iterable, Mapping
from typing import Any

from starloom.dag.constellation import (
    Constellation,
    Join,
    Policy,
    Preference,
    Preferences,
    Private,
    Requirements,
    Spread,
    Variant,
)
from starloom.dag.document import to_json
from starloom.dag.patch import Patch
from starloom.dag.patchdoc import patch_from_json
from starloom.dag.stagewriter import (
    policy_to_json,
    preferences_to_json,
    privacy_to_json,
    requirements_to_json,
    spread_to_json,
    variants_to_json,
)

Source = str | Mapping[str, Any]
"""`stage.port`, `$input`, or either with a condition, as {from: stage.port, on: completion}."""


class Edit:
    """Operations of a patch in the making, in their order. What they mean is judged where the job is."""

    def __init__(self, *, if_revision: int = 0, restart: bool = False, why: str = "", id: str = "") -> None:  # noqa: A002
        self._head = {"if_revision": if_revision, "restart": restart, "why": why, "id": id}
        self._operations: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._operations)} operations>"

    def __len__(self) -> int:
        return len(self._operations)

    def add(
        self,
        name: str,
        kind: str,
        /,
        *,
        params: Mapping[str, Any] | None = None,
        require: Requirements | None = None,
        prefer: Iterable[Preference] = (),
        avoid: Iterable[Preference] = (),
        colocate: str = "",
        spread: Spread | None = None,
        policy: Policy | None = None,
        private: Private | dict[str, Private] | None = None,
        declassify: bool | None = None,
        join: Join = Join.ALL,
        after: Iterable[Source] = (),
        inputs: Mapping[str, Source] | None = None,
        **ports: Source,
    ) -> None:
        """A new stage; `inputs` feeds ports whose names are no Python names, or are taken by a parameter here."""
        stage = {
            "kind": kind,
            "params": dict(params or {}),
            "require": requirements_to_json(require or Requirements()),
            **preferences_to_json(Preferences(prefer=tuple(prefer), avoid=tuple(avoid))),
            "colocate": colocate,
            "spread": spread_to_json(spread),
            **policy_to_json(policy or Policy()),
            **privacy_to_json(private, declassify),
            "join": str(join),
            "after": _listed(after),
            "in": _plain({**ports, **(inputs or {})}),
        }
        self._operations.append({"add": {name: stage}})

    def remove(self, stage: str) -> None:
        """A stage goes; what it feeds has to be removed or rewired as well."""
        self._operations.append({"remove": stage})

    def replace(self, stage: str, kind: str = "", params: Mapping[str, Any] | None = None, model: str = "") -> None:
        """Another kind, other parameters in place of all, or another model in place of the parameter of that name."""
        new = {"kind": kind or None, "params": None if params is None else dict(params), "model": model or None}
        given = {key: value for key, value in new.items() if value is not None}
        self._operations.append({"replace": {"stage": stage, **given}})

    def rewire(
        self,
        stage: str,
        /,
        *,
        after: Iterable[Source] | None = None,
        wait: Iterable[Source] = (),
        free: Iterable[Source] = (),
        join: Join | None = None,
        inputs: Mapping[str, Source | None] | None = None,
        **ports: Source | None,
    ) -> None:
        """Other sources for ports, None for no source; `after` in place of all that is waited for, or more, or less."""
        parts = {
            "in": _plain({**ports, **(inputs or {})}),
            "wait": _listed(wait),
            "free": _listed(free),
            "join": str(join) if join else "",
        }
        found = {"stage": stage, **{key: value for key, value in parts.items() if value}}
        self._operations.append({"rewire": found if after is None else {**found, "after": _listed(after)}})

    def redirect(self, source: str, *to: str, but: Iterable[str] = ()) -> None:
        """All that reads `stage.port`, but these and what is added here, reads another instead, or several."""
        spared = {"but": list(but)} if but else {}
        self._operations.append({"redirect": {"from": source, "to": list(to), **spared}})

    def move(
        self,
        stage: str,
        require: Requirements | None = None,
        *,
        colocate: str | None = None,
        spread: Spread | None = None,
        **fields: Any,
    ) -> None:
        """Other requirements: a value, or a document's fields, as `tier="cloud"`; other groups, if they are given.

        An empty group is none.
        """
        wanted = requirements_to_json(require) if require is not None else {}
        group = {} if colocate is None else {"colocate": colocate}
        apart = {} if spread is None else {"spread": spread_to_json(spread)}
        self._operations.append({"move": {"stage": stage, "require": {**wanted, **fields}, **group, **apart}})

    def set_preferences(self, stage: str, prefer: Iterable[Preference] = (), avoid: Iterable[Preference] = ()) -> None:
        """Other preferences, in place of those that it has."""
        prefers = Preferences(prefer=tuple(prefer), avoid=tuple(avoid))
        self._operations.append({"set_preferences": {"stage": stage, **preferences_to_json(prefers)}})

    def set_variants(
        self, stage: str, variants: Iterable[Variant] = (), variant: str = "", least_quality: float = 0.0
    ) -> None:
        """Other variants, in place of those that it has."""
        said = variants_to_json(tuple(variants), variant, least_quality)
        self._operations.append({"set_variants": {"stage": stage, **said}})

    def set_policy(self, stage: str, policy: Policy) -> None:
        """Another policy."""
        self._operations.append({"set_policy": {"stage": stage, **policy_to_json(policy)}})

    def set_privacy(
        self, stage: str, private: Private | dict[str, Private] | None = None, declassify: bool | None = None
    ) -> None:
        """Other labels, in place of those that it has."""
        self._operations.append({"set_privacy": {"stage": stage, **privacy_to_json(private, declassify)}})

    def cancel_stage(self, stage: str) -> None:
        """The stage is skipped, with what needs it."""
        self._operations.append({"cancel_stage": stage})

    def resume_stage(self, stage: str) -> None:
        """A stage that was cancelled may run after all."""
        self._operations.append({"resume_stage": stage})

    def splice(
        self,
        prefix: str,
        constellation: Constellation,
        inputs: Mapping[str, str] | None = None,
        outputs: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """A whole constellation, each stage as `prefix-name`, with sources for its inputs and ports for its outputs."""
        splice = {
            "prefix": prefix,
            "constellation": to_json(constellation),
            "inputs": dict(inputs or {}),
            "outputs": {name: list(ports) for name, ports in (outputs or {}).items()},
        }
        self._operations.append({"splice": splice})

    def output(self, name: str, source: str | None) -> None:
        """Makes `stage.port` an output of the job; None takes the output away."""
        self._operations.append({"outputs": {name: source}})

    def patch(self) -> Patch:
        """The patch. Raises InvalidInput with everything that cannot be read."""
        return patch_from_json({**self._head, "patch": self._operations})


def _plain(sources: Mapping[str, Source | None]) -> dict[str, Any]:
    return {port: dict(source) if isinstance(source, Mapping) else source for port, source in sources.items()}


def _listed(sources: Iterable[Source]) -> list[Any]:
    items = [sources] if isinstance(sources, str) else sources
    return [dict(item) if isinstance(item, Mapping) else item for item in items]
