"""What can be wrong with one stage by itself: its name, kind, parameters, requirements and policy."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from starloom.dag import attributes, limits
from starloom.dag.checks import Suggestions, kind_of, name_fault, number_fault, plain_fault, suggestion, text_fault
from starloom.dag.constellation import (
    OnFailure,
    Policy,
    Preference,
    Preferences,
    Private,
    Requirements,
    StageSpec,
    Straggler,
    Tier,
)
from starloom.dag.errors import Problem
from starloom.dag.kinds import OUTPUTS_PARAM, PARAM_TYPES, KindSpec, Param
from starloom.dag.spreads import spread_problems
from starloom.dag.streams import has_streams
from starloom.dag.values import Port, PortType
from starloom.dag.variants import chosen, variant_problems

PLAIN_TYPES = (PortType.TEXT, PortType.JSON)
"""The port types whose values a document can hold, as defaults and in comparisons."""

_NOTHING_REQUIRED = Requirements()
_USUAL_POLICY = Policy()
_MEMORY_BYTES_MAX = 2**63 - 1


def stage_problems(
    name: str, stage: StageSpec, kinds: Mapping[str, KindSpec], suggestions: Suggestions
) -> Iterator[Problem]:
    """Everything wrong with one stage, apart from its dependencies. `name` is its key in the constellation."""
    place = f"stages.{name}"
    fault = name_fault(name)
    if fault:
        yield Problem(place, fault)
    if stage.id != name:
        yield Problem(place, f"the stage calls itself {stage.id!r}; its id must be the name it is listed under")
    kind = kinds.get(stage.kind)
    if kind is None:
        yield Problem(f"{place}.kind", f"no kind is called {stage.kind!r}{suggestions.of(stage.kind, kinds)}")
    # A parameter that is missing in some variant is told there.
    varied = frozenset(name for each in stage.variants for name in each.params)
    yield from _params_problems(f"{place}.params", stage.params, kind, suggestions, varied)
    yield from _requirement_problems(f"{place}.require", stage.requires, kind)
    if stage.colocate:
        yield from _colocate_problems(place, stage)
    if stage.spread is not None:
        yield from spread_problems(place, stage, stage.spread)
    if stage.prefers:
        yield from _preferences_problems(place, stage.prefers, kind)
    yield from _policy_problems(place, stage.policy, kind, stage.params)
    if stage.private is not None:
        yield from _private_problems(place, stage, kind)
    if stage.variants or stage.variant or stage.least_quality:
        yield from _variants_problems(place, stage, kind, suggestions)


def _variants_problems(
    place: str, stage: StageSpec, kind: KindSpec | None, suggestions: Suggestions
) -> Iterator[Problem]:
    yield from variant_problems(place, stage, suggestions)
    given = {name for each in stage.variants for name in each.params}
    for index, variant in enumerate(stage.variants):
        at, made = f"{place}.variants[{index}]", chosen(stage, variant)
        # What is wrong with the stage's own parameters is told once.
        varied = {name: value for name, value in made.params.items() if name in variant.params}
        missing = given - made.params.keys()
        elsewhere = [name for name in (kind.params if kind else ()) if name not in missing]
        yield from _params_problems(f"{at}.params", varied, kind, suggestions, elsewhere)
        yield from _requirement_problems(f"{at}.require", variant.requires, kind)


def _colocate_problems(place: str, stage: StageSpec) -> Iterator[Problem]:
    if fault := name_fault(stage.colocate):
        yield Problem(f"{place}.colocate", fault)
    if stage.policy.straggler is not None:
        what = f"the stage shares a node with those of {stage.colocate!r}, and a copy would be elsewhere; leave it out"
        yield Problem(f"{place}.straggler", what)


def _params_problems(
    place: str,
    params: Mapping[str, Any],
    kind: KindSpec | None,
    suggestions: Suggestions,
    elsewhere: Collection[str] = (),
) -> Iterator[Problem]:
    """What is wrong with parameters; those that are given `elsewhere` are not missing."""
    fault = plain_fault(dict(params)) if params else ""
    if fault:
        yield Problem(place, fault)
    elif params and (size := len(msgspec.json.encode(params))) > limits.PARAMS_BYTES_MAX:
        yield Problem(
            place, f"{size} bytes as JSON are over PARAMS_BYTES_MAX = {limits.PARAMS_BYTES_MAX}; use an input"
        )
    if kind is None:
        return
    for name, value in params.items():
        param = kind.params.get(name)
        if param is None:
            hint = suggestions.of(str(name), kind.params)
            known = hint if kind.params else f"; {kind.name} has no parameters"
            yield Problem(f"{place}.{name}", f"{kind.name} has no such parameter{known}")
        elif fault := param_fault(param, value):
            yield Problem(f"{place}.{name}", fault)
    if kind.variadic_output is not None and isinstance(named := params.get(OUTPUTS_PARAM), dict):
        yield from _named_problems(f"{place}.{OUTPUTS_PARAM}", named, kind)
    for name, param in kind.params.items():
        if param.required and name not in params and name not in elsewhere:
            yield Problem(f"{place}.{name}", f"{kind.name} needs this parameter, of type {param.type}; give a value")


def _named_problems(place: str, named: Mapping[str, Any], kind: KindSpec) -> Iterator[Problem]:
    """What is wrong with the names of a stage's own output ports."""
    if len(named) > limits.OUTPUTS_PER_STAGE_MAX:
        what = f"{len(named)} ports are over OUTPUTS_PER_STAGE_MAX = {limits.OUTPUTS_PER_STAGE_MAX}"
        yield Problem(place, f"{what}; let stages that read nearly the same read one port")
    for name in named:
        if fault := name_fault(name):
            yield Problem(f"{place}.{name}", fault)
        elif name in kind.outputs:
            yield Problem(f"{place}.{name}", f"{kind.name} has an output of that name already; take another name")


def param_fault(param: Param, value: Any) -> str:
    """Why a value does not suit a parameter; empty if it does. None suits one that is not required and has no default."""
    if value is None and param.default is None and not param.required:
        return ""
    fits = isinstance(value, PARAM_TYPES[param.type])
    if not fits or (isinstance(value, bool) and param.type != "boolean"):
        return f"is {kind_of(value)} ({value!r}), but the parameter is of type {param.type}"
    if param.choices and value not in param.choices:
        return f"is {value!r}; choose one of {', '.join(repr(choice) for choice in param.choices)}"
    return ""


def _requirement_problems(place: str, requires: Requirements, kind: KindSpec | None) -> Iterator[Problem]:
    if requires == _NOTHING_REQUIRED:
        return
    yield from _place_problems(place, requires, kind)
    if fault := number_fault(requires.memory_bytes, at_most=_MEMORY_BYTES_MAX, whole=True, unit="bytes"):
        yield Problem(f"{place}.memory", fault)


def _place_problems(place: str, said: Requirements | Preference, kind: KindSpec | None) -> Iterator[Problem]:
    """What is wrong with what is said of a place."""
    if kind is not None and said.target and said.target not in kind.targets:
        can = ", ".join(kind.targets)
        yield Problem(f"{place}.target", f"{kind.name} cannot compute on {said.target!r}; it can on {can}")
    for tier in said.tiers:
        if tier not in tuple(Tier):
            yield Problem(f"{place}.tier", f"no tier is called {tier!r}; use device, edge or cloud")
    if fault := text_fault(said.node):
        yield Problem(f"{place}.node", fault)
    yield from label_problems(f"{place}.labels", said.labels)
    for name, asked in said.attributes.items():
        if fault := text_fault(name) or attributes.fault(asked):
            yield Problem(f"{place}.attributes.{name}", fault)


def _preferences_problems(place: str, prefers: Preferences, kind: KindSpec | None) -> Iterator[Problem]:
    if (count := len(prefers.prefer) + len(prefers.avoid)) > limits.PREFERENCES_PER_STAGE_MAX:
        over = f"over PREFERENCES_PER_STAGE_MAX = {limits.PREFERENCES_PER_STAGE_MAX}"
        yield Problem(
            f"{place}.prefer", f"{count} preferences, with those to avoid, are {over}; say them more generally"
        )
    for key, listed in (("prefer", prefers.prefer), ("avoid", prefers.avoid)):
        for index, said in enumerate(listed):
            at = f"{place}.{key}[{index}]"
            if not (said.tiers or said.target or said.labels or said.attributes or said.node):
                yield Problem(at, "fits every place; name a tier, a target, labels, attributes or a node")
            yield from _place_problems(at, said, kind)
            if fault := number_fault(said.seconds, at_most=limits.DURATION_SECONDS_MAX, unit="seconds"):
                yield Problem(f"{at}.seconds", fault)
            elif not said.seconds:
                yield Problem(f"{at}.seconds", "is 0, which changes nothing; give how much later the stage may end")


def private_fault(level: Any) -> str:
    """What is wrong with how far something may go; empty if nothing is."""
    return "" if level in tuple(Private) else f"is {level!r}; use device, or edge for the device and the edge tier"


def _private_problems(place: str, stage: StageSpec, kind: KindSpec | None) -> Iterator[Problem]:
    private = stage.private
    if not isinstance(private, dict):
        if fault := private_fault(private):
            yield Problem(f"{place}.private", fault)
        return
    if not private:
        yield Problem(f"{place}.private", "is empty; say device or edge, for the whole stage or for outputs by name")
    for name, level in private.items():
        if fault := private_fault(level):
            yield Problem(f"{place}.private.{name}", fault)
        if kind is not None and name not in (ports := kind.output_ports(stage.params)):
            yield Problem(f"{place}.private.{name}", f"{kind.name} has no such output{suggestion(name, ports)}")


def a_port(port: Port) -> str:
    """The port's type with its article, for messages."""
    text = str(port)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def label_problems(place: str, labels: Mapping[str, str]) -> Iterator[Problem]:
    """Everything wrong with labels: both keys and values are text of at most NAME_CHARACTERS_MAX characters."""
    for key, value in labels.items():
        for what, text in (("key", key), ("value", value)):
            if not isinstance(text, str):
                yield Problem(f"{place}.{key}", f"the {what} is {kind_of(text)}; write it as text, {str(text)!r}")
            elif len(text) > limits.NAME_CHARACTERS_MAX:
                over = f"over NAME_CHARACTERS_MAX = {limits.NAME_CHARACTERS_MAX}"
                yield Problem(f"{place}.{key[:32]}", f"the {what} has {len(text)} characters, {over}")
            elif fault := text_fault(text):
                yield Problem(f"{place}.{key}", f"the {what} {fault}")


def _straggler_problems(place: str, straggler: Straggler, kind: KindSpec | None) -> Iterator[Problem]:
    least, longest = limits.STRAGGLER_AFTER_SECONDS_MIN, limits.DURATION_SECONDS_MAX
    if fault := number_fault(straggler.factor, at_least=1.0, at_most=limits.STRAGGLER_FACTOR_MAX):
        yield Problem(f"{place}.factor", fault)
    if fault := number_fault(straggler.after_seconds, at_least=least, at_most=longest, unit="seconds"):
        yield Problem(f"{place}.after", fault)
    if kind is not None and kind.effects:
        yield Problem(place, f"{kind.name} acts on the world outside, where a copy would act as well; leave it out")
    if has_streams(kind):
        yield Problem(
            place, "a stage with stream ports gets no copy: its streams have one writer and one reader; leave it out"
        )


def _policy_problems(place: str, policy: Policy, kind: KindSpec | None, params: Mapping[str, Any]) -> Iterator[Problem]:
    if policy == _USUAL_POLICY:
        return
    retry, longest = policy.retry, limits.DURATION_SECONDS_MAX
    numbers = (
        ("retry.times", number_fault(retry.times, at_most=limits.RETRIES_MAX, whole=True)),
        ("retry.first", number_fault(retry.first_seconds, at_most=longest, unit="seconds")),
        ("retry.factor", number_fault(retry.factor, at_least=1.0, at_most=limits.BACKOFF_FACTOR_MAX)),
        ("retry.last", number_fault(retry.last_seconds, at_most=longest, unit="seconds")),
        ("grow.stages", number_fault(policy.grow.stages, at_most=limits.GROWN_STAGES_MAX, whole=True)),
        ("grow.generations", number_fault(policy.grow.generations, at_most=limits.GROWN_GENERATIONS_MAX, whole=True)),
        ("timeout", number_fault(policy.timeout_seconds, at_most=longest, unit="seconds, 0 for no bound")),
        ("deadline", number_fault(policy.deadline_seconds, at_most=longest, unit="seconds, 0 for no bound")),
        ("replicate", _replicate_fault(policy.replicate)),
    )
    faulty = [Problem(f"{place}.{part}", fault) for part, fault in numbers if fault]
    yield from faulty
    if policy.straggler is not None:
        yield from _straggler_problems(f"{place}.straggler", policy.straggler, kind)
    if policy.replicate and kind is not None and any(port.stream for port in kind.outputs.values()):
        what = f"{kind.name} gives a stream, whose chunks are kept only until they are read; leave the copies out"
        yield Problem(f"{place}.replicate", what)
    if (
        not any(problem.place.startswith(f"{place}.retry") for problem in faulty)
        and retry.times
        and retry.first_seconds > retry.last_seconds
    ):
        wait = f"the first wait of {retry.first_seconds:g} s is longer than the last, {retry.last_seconds:g} s"
        yield Problem(f"{place}.retry", f"{wait}; let first be at most last")
    if policy.grow != _USUAL_POLICY.grow and kind is not None and not kind.grows:
        yield Problem(f"{place}.grow", f"{kind.name} does not grow; leave the bounds out")
    if policy.on_failure == OnFailure.DEFAULT:
        if kind is not None:
            yield from _default_problems(f"{place}.defaults", policy.defaults, kind, kind.output_ports(params))
    elif policy.defaults:
        yield Problem(f"{place}.defaults", f"defaults are given, but on_failure is {policy.on_failure}; say default")


def _replicate_fault(copies: Any) -> str:
    fault = number_fault(copies, whole=True, unit="copies beside the original")
    if not fault and copies > limits.REPLICAS_MAX:
        return f"is {copies}, over REPLICAS_MAX = {limits.REPLICAS_MAX}; each copy takes memory of another node"
    return fault


def _default_problems(
    place: str, defaults: Mapping[str, Any], kind: KindSpec, ports: Mapping[str, Port]
) -> Iterator[Problem]:
    for name, port in ports.items():
        if port.stream or port.type not in PLAIN_TYPES:
            yield Problem(
                f"{place}.{name}", f"{a_port(port)} output can have no default; let on_failure be fail or skip"
            )
        elif name not in defaults:
            yield Problem(f"{place}.{name}", f"on_failure is default, so this {port} output needs a value; add one")
        elif fault := _default_fault(port, defaults[name]):
            yield Problem(f"{place}.{name}", fault)
    for name in defaults:
        if name not in ports:
            hint = suggestion(str(name), ports)
            yield Problem(f"{place}.{name}", f"{kind.name} has no such output{hint}")


def _default_fault(port: Port, value: Any) -> str:
    if port.type == PortType.TEXT and not isinstance(value, str):
        return f"is {kind_of(value)} ({value!r}), but the output is text"
    return plain_fault(value)
