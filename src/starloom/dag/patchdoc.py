"""Patches as text: YAML, and JSON, with the grammar of constellations for all that they share.

api_version: starloom/v1
if_revision: 3                       # optional: only on this revision
restart: false                       # true: also stages that have started, which run again
why: a better recogniser             # optional, for those who look at the job later
id: fix-1                            # optional: a repeat under the same id gets the first answer
patch:                               # done in this order, all or none
  - add: {summary: {kind: text.summarise, in: {text: words.text}, after: [x]}}
  - remove: old
  - replace: {stage: words, kind: speech.recognise, params: {beams: 2}, model: small}
  - rewire: {stage: speak, in: {text: summary.text, more: null}, after: [x], join: any}
  - rewire: {stage: speak, wait: [x], free: [y]}
  - redirect: {from: words.text, to: short.text, but: [speak]}      # all that reads it; `to` may be a list
  - move: {stage: words, require: {tier: cloud}}           # and colocate or spread: NAME, '' for none
  - set_preferences: {stage: words, prefer: {tier: edge}, avoid: [{node: cam-1, seconds: 5s}]}     # in place of all
  - set_policy: {stage: words, retry: 3, timeout: 5s}
  - set_privacy: {stage: words, private: device, declassify: false}    # in place of what it says of both
  - set_variants: {stage: words, variants: [{name: small, quality: 0.7, params: {model: small}}], least_quality: 0.5}
  - cancel_stage: extra
  - resume_stage: extra
  - splice: {prefix: fr, constellation: {...}, inputs: {text: words.text}, outputs: {text: [speak.text]}}
  - outputs: {summary: summary.text, old: null}
"""

from collections.abc import Callable, Mapping
from typing import Any

from starloom.dag.checks import kind_of
from starloom.dag.constellation import API_VERSION, Dependency, InputBinding, Join, OutputBinding, Spread, StageSpec
from starloom.dag.document import read_document, to_json
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.ids import StageId
from starloom.dag.patch import (
    Add,
    AnyOperation,
    CancelStage,
    Move,
    Patch,
    Redirect,
    Remove,
    Replace,
    ResumeStage,
    Rewire,
    SetOutputs,
    SetPolicy,
    SetPreferences,
    SetPrivacy,
    SetVariants,
    Splice,
    variants_said,
)
from starloom.dag.schema import Reader
from starloom.dag.stagereader import POLICY_KEYS, PREFERENCE_KEYS, PRIVACY_KEYS, VARIANT_KEYS
from starloom.dag.stagewriter import (
    order_to_json,
    policy_to_json,
    preferences_to_json,
    privacy_to_json,
    requirements_to_json,
    source_to_json,
    spread_to_json,
    stage_to_json,
    variants_to_json,
)

_HEAD_KEYS = ("api_version", "if_revision", "restart", "why", "id", "patch")


def load_patch(text: str | bytes, *, place: str = "") -> Patch:
    """Reads a patch from YAML or JSON. `place` names the source in the error. Raises InvalidInput with all problems."""
    what = _what(place)
    try:
        document = read_document(text, what)
    except InvalidInput as error:
        raise InvalidInput(error.problems, what) from error
    return patch_from_json(document, what)


def patch_from_json(document: Any, what: str = "the document is no patch") -> Patch:
    """The patch that a document's plain form describes. Raises InvalidInput, headed by `what`, with all problems."""
    reader = _PatchReader()
    patch = reader.patch(document)
    if reader.problems:
        raise InvalidInput(reader.problems, what)
    return patch


def patch_to_json(patch: Patch) -> dict[str, Any]:
    """The document form as plain mappings and lists. Raises InvalidConstellation as `document.to_json` does."""
    head = {"if_revision": patch.if_revision, "restart": patch.restart, "why": patch.why, "id": patch.id}
    return {
        "api_version": API_VERSION,
        **{key: value for key, value in head.items() if value},
        "patch": [operation_to_json(operation) for operation in patch.operations],
    }


def operation_to_json(operation: AnyOperation) -> dict[str, Any]:
    """One operation, as it stands in the list."""
    match operation:
        case Add(stages=stages):
            feeds, after = _sources(operation.dependencies, operation.bindings)
            return {
                "add": {spec.id: stage_to_json(spec, feeds.get(spec.id, {}), after.get(spec.id, [])) for spec in stages}
            }
        case Remove(stage=stage):
            return {"remove": stage}
        case Replace(stage=stage, kind=kind, params=params, model=model):
            parts = {"kind": kind or None, "params": params, "model": model or None}
            return {"replace": {"stage": stage, **{key: value for key, value in parts.items() if value is not None}}}
        case Rewire():
            return {"rewire": _rewire_to_json(operation)}
        case Redirect(stage=stage, output=output, sources=sources, but=but):
            to = [f"{source.upstream}.{source.output}" for source in sources]
            return {"redirect": {"from": f"{stage}.{output}", "to": to, **({"but": list(but)} if but else {})}}
        case Move(stage=stage, requires=requires, colocate=colocate, spread=spread):
            group = {} if colocate is None else {"colocate": colocate}
            apart = {} if spread is None else {"spread": spread_to_json(spread)}
            return {"move": {"stage": stage, "require": requirements_to_json(requires), **group, **apart}}
        case SetPreferences(stage=stage, prefers=prefers):
            return {"set_preferences": {"stage": stage, **preferences_to_json(prefers)}}
        case SetPolicy(stage=stage, policy=policy):
            return {"set_policy": {"stage": stage, **policy_to_json(policy)}}
        case SetPrivacy(stage=stage, private=private, declassify=declassify):
            return {"set_privacy": {"stage": stage, **privacy_to_json(private, declassify)}}
        case SetVariants(stage=stage):
            return {"set_variants": {"stage": stage, **variants_to_json(**variants_said(operation))}}
        case CancelStage(stage=stage):
            return {"cancel_stage": stage}
        case ResumeStage(stage=stage):
            return {"resume_stage": stage}
        case Splice(prefix=prefix, constellation=inner, inputs=inputs, outputs=outputs):
            listed = {name: list(consumers) for name, consumers in outputs.items()}
            splice = {"prefix": prefix, "constellation": to_json(inner), "inputs": inputs, "outputs": listed}
            return {"splice": splice}
        case SetOutputs(outputs=outputs):
            return {"outputs": {name: f"{out.upstream}.{out.output}" if out else None for name, out in outputs.items()}}


def _sources(
    dependencies: tuple[Dependency, ...], bindings: tuple[InputBinding, ...]
) -> tuple[dict[StageId, dict[str, Any]], dict[StageId, list[Any]]]:
    feeds: dict[StageId, dict[str, Any]] = {}
    after: dict[StageId, list[Any]] = {}
    for binding in bindings:
        feeds.setdefault(binding.downstream, {})[binding.input] = f"${binding.source}"
    for arc in dependencies:
        if arc.carries_data:
            feeds.setdefault(arc.downstream, {})[arc.input] = source_to_json(arc)
        else:
            after.setdefault(arc.downstream, []).append(order_to_json(arc))
    return feeds, after


def _rewire_to_json(rewire: Rewire) -> dict[str, Any]:
    feeds, _ = _sources(rewire.dependencies, rewire.bindings)
    parts = {
        "in": {**dict.fromkeys(rewire.unfed), **feeds.get(rewire.stage, {})},
        "wait": [order_to_json(arc) for arc in rewire.waits],
        "free": [order_to_json(arc) for arc in rewire.frees],
        "join": str(rewire.join) if rewire.join else "",
    }
    found = {"stage": rewire.stage, **{key: value for key, value in parts.items() if value}}
    return found if rewire.after is None else {**found, "after": [order_to_json(arc) for arc in rewire.after]}


def _what(place: str) -> str:
    return f"{place or 'the document'} is no patch"


class _PatchReader(Reader):
    """Reads a patch's document, and notes everything that is wrong with it."""

    def patch(self, value: Any) -> Patch:
        part = self._mapping("", value, _HEAD_KEYS, needed=("patch",))
        version = self._text("api_version", part.get("api_version", API_VERSION))
        if version != API_VERSION:
            self._problem("api_version", f"{version!r} is not known here; this version reads {API_VERSION!r}")
        operations = part.get("patch", [])
        if not isinstance(operations, list | tuple):
            self._problem("patch", f"is {kind_of(operations)}; write a list of operations")
            operations = []
        elif not operations and "patch" in part:
            self._problem("patch", "is empty; give at least one operation")
        found = (self._operation(f"patch[{index}]", item) for index, item in enumerate(operations))
        return Patch(
            operations=tuple(operation for operation in found if operation is not None),
            if_revision=self._number("if_revision", part.get("if_revision", 0), 0, whole=True),
            restart=self._flag("restart", part.get("restart", False)),
            id=self._text("id", part.get("id", "")),
            why=self._text("why", part.get("why", "")),
        )

    def _operation(self, place: str, value: Any) -> AnyOperation | None:
        readers: Mapping[str, Callable[[str, Any], AnyOperation]] = {
            "add": self._read_add,
            "remove": lambda at, item: Remove(stage=self._name(at, item)),
            "replace": self._read_replace,
            "rewire": self._read_rewire,
            "redirect": self._read_redirect,
            "move": self._read_move,
            "set_preferences": self._read_preferences,
            "set_policy": self._read_policy,
            "set_privacy": self._read_privacy,
            "set_variants": self._read_variants,
            "cancel_stage": lambda at, item: CancelStage(stage=self._name(at, item)),
            "resume_stage": lambda at, item: ResumeStage(stage=self._name(at, item)),
            "splice": self._read_splice,
            "outputs": self._read_outputs,
        }
        part = self._mapping(place, value, readers)
        if len(part) != 1:
            if isinstance(value, dict) and (part or not value):
                self._problem(place, f"has {len(part)} operations; write one for each item: {', '.join(readers)}")
            return None
        ((key, item),) = part.items()
        return readers[key](f"{place}.{key}", item)

    def _name(self, place: str, value: Any) -> StageId:
        return StageId(self._text(place, value))

    def _named(self, place: str, value: Any, known: tuple[str, ...]) -> tuple[StageId, dict[str, Any]]:
        part = self._mapping(place, value, ("stage", *known), needed=("stage",))
        return self._name(f"{place}.stage", part.get("stage", "")), part

    def _read_add(self, place: str, value: Any) -> Add:
        stages: list[StageSpec] = []
        dependencies: list[Dependency] = []
        bindings: list[InputBinding] = []
        before = len(self.problems)
        for name, stage in self._mapping("", value).items():
            stages.append(self._stage(StageId(name), stage, bindings, dependencies))
        self._below(before, place, inside="stages.")
        if not stages and len(self.problems) == before:
            self._problem(place, "is empty; give at least one stage")
        return Add(stages=tuple(stages), dependencies=tuple(dependencies), bindings=tuple(bindings))

    def _below(self, since: int, place: str, *, inside: str = "") -> None:
        """What was found since then lies below a place, without what its own place begins with."""
        self.problems[since:] = [
            Problem(".".join(filter(None, (place, found.place.removeprefix(inside)))), found.what)
            for found in self.problems[since:]
        ]

    def _read_replace(self, place: str, value: Any) -> Replace:
        stage, part = self._named(place, value, ("kind", "params", "model"))
        if len(part) < 2 and isinstance(value, dict):
            self._problem(place, "says nothing new; give a kind, params or a model")
        return Replace(
            stage=stage,
            kind=self._text(f"{place}.kind", part.get("kind", "")),
            params=self._plain(f"{place}.params", part["params"]) if "params" in part else None,
            model=self._text(f"{place}.model", part.get("model", "")),
        )

    def _read_rewire(self, place: str, value: Any) -> Rewire:
        stage, part = self._named(place, value, ("in", "after", "wait", "free", "join"))
        if len(part) < 2 and isinstance(value, dict):
            self._problem(place, "says nothing new; give in, after, wait, free or join")
        bindings: list[InputBinding] = []
        dependencies: list[Dependency] = []
        unfed: list[str] = []
        for port, source in self._mapping(f"{place}.in", part.get("in", {})).items():
            if source is None:
                unfed.append(port)
            else:
                self._feed(place, stage, port, source, bindings, dependencies)
        return Rewire(
            stage=stage,
            dependencies=tuple(dependencies),
            bindings=tuple(bindings),
            unfed=tuple(unfed),
            after=tuple(self._orders(stage, f"{place}.after", part["after"])) if "after" in part else None,
            waits=tuple(self._orders(stage, f"{place}.wait", part.get("wait", []))),
            frees=tuple(self._orders(stage, f"{place}.free", part.get("free", []))),
            join=self._choice(f"{place}.join", part["join"], Join, Join.ALL) if "join" in part else None,
        )

    def _read_redirect(self, place: str, value: Any) -> Redirect:
        part = self._mapping(place, value, ("from", "to", "but"), needed=("from", "to"))
        read = self._output(f"{place}.from", part["from"]) if "from" in part else None
        to = part.get("to", [])
        items = to if isinstance(to, list | tuple) else [to]
        if "to" in part and not items:
            self._problem(f"{place}.to", "is empty; name an output as stage.port, or several")
        return Redirect(
            stage=read.upstream if read else StageId(""),
            output=read.output if read else "",
            sources=tuple(self._output(f"{place}.to", item) for item in items),
            but=tuple(map(StageId, self._consumers(f"{place}.but", part.get("but", ())))),
        )

    def _read_move(self, place: str, value: Any) -> Move:
        stage, part = self._named(place, value, ("require", "colocate", "spread"))
        spread = None
        if "spread" in part:
            spread = self._spread(f"{place}.spread", part["spread"]) or Spread(group="")
        if "require" not in part and isinstance(value, dict):
            self._problem(f"{place}.require", "is missing; say where it is to run, {} for anywhere")
        return Move(
            stage=stage,
            requires=self._requirements(f"{place}.require", part.get("require", {})),
            colocate=self._text(f"{place}.colocate", part["colocate"]) if "colocate" in part else None,
            spread=spread,
        )

    def _read_preferences(self, place: str, value: Any) -> SetPreferences:
        stage, part = self._named(place, value, PREFERENCE_KEYS)
        return SetPreferences(stage=stage, prefers=self._preferences(place, part))

    def _read_variants(self, place: str, value: Any) -> SetVariants:
        stage, part = self._named(place, value, VARIANT_KEYS)
        return SetVariants(stage=stage, **self._of_variants(place, part))

    def _read_policy(self, place: str, value: Any) -> SetPolicy:
        stage, part = self._named(place, value, POLICY_KEYS)
        return SetPolicy(stage=stage, policy=self._policy(place, part))

    def _read_privacy(self, place: str, value: Any) -> SetPrivacy:
        stage, part = self._named(place, value, PRIVACY_KEYS)
        private, declassify = self._privacy(place, part)
        return SetPrivacy(stage=stage, private=private, declassify=declassify)

    def _read_splice(self, place: str, value: Any) -> Splice:
        known = ("prefix", "constellation", "inputs", "outputs")
        part = self._mapping(place, value, known, needed=("prefix", "constellation"))
        before = len(self.problems)
        inner = self.constellation(part.get("constellation", {"api_version": API_VERSION, "name": "", "stages": {}}))
        self._below(before, f"{place}.constellation")
        inputs = self._mapping(f"{place}.inputs", part.get("inputs", {}))
        outputs = self._mapping(f"{place}.outputs", part.get("outputs", {}))
        return Splice(
            prefix=self._text(f"{place}.prefix", part.get("prefix", "")),
            constellation=inner,
            inputs={name: self._text(f"{place}.inputs.{name}", source) for name, source in inputs.items()},
            outputs={name: self._consumers(f"{place}.outputs.{name}", item) for name, item in outputs.items()},
        )

    def _consumers(self, place: str, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            self._problem(place, f"is {kind_of(value)}; write a list of stages, or of ports as stage.port")
            return ()
        return tuple(self._text(f"{place}[{index}]", item) for index, item in enumerate(value))

    def _read_outputs(self, place: str, value: Any) -> SetOutputs:
        found: dict[str, OutputBinding | None] = {
            name: None if item is None else self._output(f"{place}.{name}", item)
            for name, item in self._mapping(place, value).items()
        }
        if not found and isinstance(value, dict):
            self._problem(place, "is empty; name an output")
        return SetOutputs(outputs=found)
