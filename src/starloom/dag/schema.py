"""A constellation's document form, as plain mappings and lists, read and checked.

`from_json` takes what a YAML or JSON reader gives and collects every structural problem: unknown
keys, missing ones, wrong types, unreadable durations and sizes. What the parts mean together is
`dag.validate`'s to judge. `dag.document` has the text forms, and writes.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, TypeVar, get_args

from starloom.dag import limits, slo
from starloom.dag import objective as objectives
from starloom.dag.checks import kind_of, number_fault, plain_fault, suggestion
from starloom.dag.constellation import (
    API_VERSION,
    Bounds,
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    OnFailure,
    Operator,
    OutputBinding,
    Policy,
    Preference,
    Preferences,
    Private,
    Requirements,
    Retry,
    Slo,
    Spread,
    StageSpec,
    Straggler,
    Tier,
    Variant,
)
from starloom.dag.errors import InvalidConstellation, Problem
from starloom.dag.ids import StageId
from starloom.dag.quantities import read_bytes, read_seconds
from starloom.dag.values import Full, Port, PortType

#: most stages of a large constellation say none of this
_NOTHING_REQUIRED = Requirements()
_USUAL_POLICY = Policy()
_NOTHING_PREFERRED = Preferences()
POLICY_KEYS = ("retry", "timeout", "deadline", "straggler", "on_failure", "defaults", "grow", "replicate")
PRIVACY_KEYS = ("private", "declassify")
PREFERENCE_KEYS = ("prefer", "avoid")
VARIANT_KEYS = ("variants", "variant", "least_quality")
_SPEC_KEYS = ("kind", "in", "params", "require", "colocate", "spread", "join", "after", "cancelled")
_STAGE_KEYS = (*_SPEC_KEYS, *PREFERENCE_KEYS, *POLICY_KEYS, *PRIVACY_KEYS, *VARIANT_KEYS)

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def from_json(document: Any, what: str = "the document is no constellation") -> Constellation:
    """The constellation that a document's plain form describes.

    Raises InvalidConstellation, headed by `what`, with every structural problem.
    """
    reader = Reader()
    constellation = reader.constellation(document)
    if reader.problems:
        raise InvalidConstellation(reader.problems, what)
    return constellation


class Reader:
    """Reads parts; notes what is wrong and goes on with a stand-in, so that one pass finds everything.

    Its methods are for readers that derive from it, of documents with the same grammar.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def constellation(self, value: Any) -> Constellation:
        known = (
            "api_version",
            "name",
            "labels",
            "deadline",
            "objective",
            "inputs",
            "stages",
            "outputs",
            "every",
            "rate",
            "slo",
            "least_quality",
        )
        part = self._mapping("", value, known, needed=("api_version", "name", "stages"))
        version = self._text("api_version", part.get("api_version", API_VERSION))
        if version != API_VERSION:
            self._problem("api_version", f"{version!r} is not known here; this version reads {API_VERSION!r}")
        stages: dict[StageId, StageSpec] = {}
        bindings: list[InputBinding] = []
        dependencies: list[Dependency] = []
        for name, stage in self._mapping("stages", part.get("stages", {})).items():
            stages[StageId(name)] = self._stage(StageId(name), stage, bindings, dependencies)
        objective, faults = objectives.read(part["objective"]) if "objective" in part else ((), ())
        self.problems.extend(faults)
        promised, faults = slo.read(part["slo"]) if "slo" in part else (Slo(), [])
        self.problems.extend(faults)
        rate, fault = slo.read_rate(part.get("rate", 0.0))
        self.problems.extend([Problem("rate", fault)] if fault else [])
        inputs, private = self._inputs(part.get("inputs", {}))
        outputs = self._mapping("outputs", part.get("outputs", {}))
        return Constellation(
            name=self._text("name", part.get("name", "")),
            stages=stages,
            dependencies=tuple(dependencies),
            inputs=inputs,
            private=private,
            bindings=tuple(bindings),
            outputs={name: self._output(f"outputs.{name}", output) for name, output in outputs.items()},
            labels=self._labels("labels", part.get("labels", {})),
            deadline_seconds=self._quantity("deadline", part.get("deadline", 0.0), 0.0, read_seconds),
            objective=objective,
            every_seconds=self._quantity("every", part.get("every", 0.0), 0.0, read_seconds),
            rate=rate,
            slo=promised,
            least_quality=self._number("least_quality", part.get("least_quality", 0.0), 0.0),
            api_version=version,
        )

    def _problem(self, place: str, what: str) -> None:
        self.problems.append(Problem(place, what))

    def _mapping(
        self, place: str, value: Any, known: Iterable[str] | None = None, *, needed: Iterable[str] = ()
    ) -> dict[str, Any]:
        """`value` as a mapping, without its unknown keys; an empty one where it is something else."""
        if not isinstance(value, dict):
            self._problem(place, f"is {kind_of(value)}; write a mapping, key: value")
            return {}
        prefix = f"{place}." if place else ""
        for key in value:
            if not isinstance(key, str):
                self._problem(f"{prefix}{key}", f"the key {key!r} is {kind_of(key)}; write it as text")
            elif known is not None and key not in known:
                self._problem(f"{prefix}{key}", f"there is no such key here{suggestion(key, known)}")
        for key in needed:
            if key not in value:
                self._problem(f"{prefix}{key}", "is missing; add it")
        return {key: item for key, item in value.items() if isinstance(key, str) and (known is None or key in known)}

    def _text(self, place: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        self._problem(place, f"is {kind_of(value)} ({value!r}); write text{_quoted(value)}")
        return ""

    def _flag(self, place: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self._problem(place, f"is {kind_of(value)} ({value!r}); write true or false")
        return value is True

    def _choice(self, place: str, value: Any, choices: type[E], otherwise: E) -> E:
        try:
            return choices(value)
        except ValueError:
            self._problem(place, f"is {value!r}; use {_listed(choices)}")
            return otherwise

    def _labels(self, place: str, value: Any) -> dict[str, str]:
        return {key: self._text(f"{place}.{key}", text) for key, text in self._mapping(place, value).items()}

    def _plain(self, place: str, value: Any) -> dict[str, Any]:
        part = self._mapping(place, value)
        for key, item in part.items():
            if fault := plain_fault(item):
                self._problem(f"{place}.{key}", fault)
        return part

    def _number(self, place: str, value: Any, otherwise: T, *, whole: bool = False, at_least: float = 0.0) -> T:
        if fault := number_fault(value, whole=whole, at_least=at_least):
            self._problem(place, fault)
            return otherwise
        try:
            return type(otherwise)(value)  # type: ignore[call-arg]
        except OverflowError:
            self._problem(place, f"is a whole number of {value.bit_length()} bits, which is too large")
            return otherwise

    def _quantity(self, place: str, value: Any, otherwise: T, read: Callable[[Any], T]) -> T:
        try:
            return read(value)
        except ValueError as error:
            self._problem(place, str(error))
            return otherwise

    def _inputs(self, value: Any) -> tuple[dict[str, Port], dict[str, Private]]:
        """The job's inputs, and how far those may go that are private."""
        ports: dict[str, Port] = {}
        private: dict[str, Private] = {}
        known = ("type", "stream", "optional", "chunks", "full", "private")
        for name, item in self._mapping("inputs", value).items():
            place = f"inputs.{name}"
            part = self._mapping(place, {"type": item} if isinstance(item, str) else item, known, needed=("type",))
            ports[name] = self._port(place, part)
            if "private" in part:
                private[name] = self._choice(f"{place}.private", part["private"], Private, Private.DEVICE)
        return ports, private

    def _port(self, place: str, part: Mapping[str, Any]) -> Port:
        return Port(
            type=self._choice(f"{place}.type", part.get("type", PortType.BYTES), PortType, PortType.BYTES),
            stream=self._flag(f"{place}.stream", part.get("stream", False)),
            optional=self._flag(f"{place}.optional", part.get("optional", False)),
            chunks=self._number(f"{place}.chunks", part.get("chunks", 0), 0, whole=True),
            full=self._choice(f"{place}.full", part["full"], Full, Full.BLOCK) if "full" in part else None,
        )

    def _output(self, place: str, value: Any) -> OutputBinding:
        stage, port = self._reference(place, value)
        return OutputBinding(upstream=stage, output=port)

    def _reference(self, place: str, value: Any) -> tuple[StageId, str]:
        stage, dot, port = self._text(place, value).partition(".")
        if isinstance(value, str) and not (stage and dot and port and not stage.startswith("$")):
            self._problem(place, f"is {value!r}; name an upstream's output as stage.port")
        return StageId(stage), port

    def _stage(
        self, name: StageId, value: Any, bindings: list[InputBinding], dependencies: list[Dependency]
    ) -> StageSpec:
        place = f"stages.{name}"
        part = self._mapping(place, value, _STAGE_KEYS, needed=("kind",))
        for port, source in self._mapping(f"{place}.in", part["in"]).items() if "in" in part else ():
            self._feed(place, name, port, source, bindings, dependencies)
        if "after" in part:
            dependencies.extend(self._orders(name, f"{place}.after", part["after"]))
        private, declassify = self._privacy(place, part)
        return StageSpec(
            id=name,
            kind=self._text(f"{place}.kind", part.get("kind", "")),
            params=self._plain(f"{place}.params", part["params"]) if "params" in part else {},
            requires=self._requirements(f"{place}.require", part["require"])
            if "require" in part
            else _NOTHING_REQUIRED,
            policy=self._policy(place, part) if not part.keys().isdisjoint(POLICY_KEYS) else _USUAL_POLICY,
            join=self._choice(f"{place}.join", part["join"], Join, Join.ALL) if "join" in part else Join.ALL,
            cancelled=self._flag(f"{place}.cancelled", part["cancelled"]) if "cancelled" in part else False,
            private=private,
            declassify=declassify,
            colocate=self._text(f"{place}.colocate", part["colocate"]) if "colocate" in part else "",
            spread=self._spread(f"{place}.spread", part["spread"]) if "spread" in part else None,
            prefers=self._preferences(place, part)
            if not part.keys().isdisjoint(PREFERENCE_KEYS)
            else _NOTHING_PREFERRED,
            **self._of_variants(place, part),
        )

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

    def _orders(self, stage: StageId, place: str, value: Any) -> list[Dependency]:
        if isinstance(value, str | dict):
            value = [value]
        if not isinstance(value, list | tuple):
            self._problem(place, f"is {kind_of(value)}; write a list of stages")
            return []
        return [self._after(stage, f"{place}[{index}]", item) for index, item in enumerate(value)]

    def _feed(
        self,
        of: str,
        stage: StageId,
        port: str,
        value: Any,
        bindings: list[InputBinding],
        dependencies: list[Dependency],
    ) -> None:
        place = f"{of}.in.{port}"
        part = {"from": value}
        if isinstance(value, dict):
            part = self._mapping(place, value, ("from", "on", "when"), needed=("from",))
            if "from" not in part:
                return
        if not isinstance(part["from"], str):
            what = f"is {kind_of(part['from'])}; name a job input ($name) or an upstream's output (stage.port)"
            self._problem(place, what)
            return
        if part["from"].startswith("$"):
            bindings.append(InputBinding(source=part["from"][1:], downstream=stage, input=port))
            if len(part) > 1:
                self._problem(place, "a job input is always there; leave on and when out")
            return
        upstream, output = self._reference(place, part["from"])
        on, comparison = self._condition(place, part, output)
        dependencies.append(
            Dependency(upstream=upstream, downstream=stage, output=output, input=port, on=on, comparison=comparison)
        )

    def _after(self, stage: StageId, place: str, value: Any) -> Dependency:
        if isinstance(value, str):
            return Dependency(upstream=StageId(value), downstream=stage)
        part = self._mapping(place, value, ("stage", "on", "when"), needed=("stage",))
        on, comparison = self._condition(place, part, "")
        upstream = StageId(self._text(f"{place}.stage", part.get("stage", "")))
        return Dependency(upstream=upstream, downstream=stage, on=on, comparison=comparison)

    def _condition(self, place: str, part: Mapping[str, Any], output: str) -> tuple[On, Comparison | None]:
        if "when" not in part:
            if "on" not in part:
                return On.SUCCESS, None
            on = self._choice(f"{place}.on", part["on"], On, On.SUCCESS)
            if on == On.COMPARISON:
                self._problem(f"{place}.on", "a comparison needs a when; write when: {is: '>=', value: 0.5}")
            return on, None
        if part.get("on", On.COMPARISON) != On.COMPARISON:
            self._problem(f"{place}.on", "when already says on what; leave on out")
        place = f"{place}.when"
        needed = ("is", "value") if output else ("output", "is", "value")
        when = self._mapping(place, part["when"], ("output", "is", "value", "path"), needed=needed)
        operator = when.get("is", "==")
        if operator not in get_args(Operator):
            self._problem(f"{place}.is", f"is {operator!r}; use one of {' '.join(get_args(Operator))}")
        if fault := plain_fault(when.get("value")):
            self._problem(f"{place}.value", fault)
        return On.COMPARISON, Comparison(
            output=self._text(f"{place}.output", when.get("output", output)),
            operator=operator,
            value=when.get("value"),
            path=self._text(f"{place}.path", when.get("path", "")),
        )

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


def _quoted(value: Any) -> str:
    return f", with quotes: '{value}'" if isinstance(value, bool | int | float) else ""


def _listed(choices: type[E]) -> str:
    return " or ".join([", ".join(list(choices)[:-1]), list(choices)[-1]])
