"""A constellation's document form, as plain mappings and lists, read and checked.

`from_json` takes what a YAML or JSON reader gives and collects every structural problem: unknown
keys, missing ones, wrong types, unreadable durations and sizes. What the parts mean together is
`dag.validate`'s to judge. `dag.document` has the text forms, and writes.
"""

from collections.abc import Mapping
from typing import Any, get_args

from starloom.dag import objective as objectives
from starloom.dag import slo
from starloom.dag.checks import kind_of, plain_fault
from starloom.dag.constellation import (
    API_VERSION,
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    Operator,
    OutputBinding,
    Policy,
    Preferences,
    Private,
    Requirements,
    Slo,
    StageSpec,
)
from starloom.dag.errors import InvalidConstellation, Problem
from starloom.dag.ids import StageId
from starloom.dag.quantities import read_seconds
from starloom.dag.stagereader import POLICY_KEYS, PREFERENCE_KEYS, PRIVACY_KEYS, VARIANT_KEYS, StageReader
from starloom.dag.values import Full, Port, PortType

#: most stages of a large constellation say none of this
_NOTHING_REQUIRED = Requirements()
_USUAL_POLICY = Policy()
_NOTHING_PREFERRED = Preferences()
_SPEC_KEYS = ("kind", "in", "params", "require", "colocate", "spread", "join", "after", "cancelled")
_STAGE_KEYS = (*_SPEC_KEYS, *PREFERENCE_KEYS, *POLICY_KEYS, *PRIVACY_KEYS, *VARIANT_KEYS)


def from_json(document: Any, what: str = "the document is no constellation") -> Constellation:
    """The constellation that a document's plain form describes.

    Raises InvalidConstellation, headed by `what`, with every structural problem.
    """
    reader = Reader()
    constellation = reader.constellation(document)
    if reader.problems:
        raise InvalidConstellation(reader.problems, what)
    return constellation


class Reader(StageReader):
    """Reads whole constellations, and their stages for readers of other documents that derive from it."""

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
        rate, fault = slo.read_rate(part["rate"]) if "rate" in part else (0.0, "")
        self.problems.extend([Problem("rate", fault)] if fault else [])
        every, fault = slo.read_every(part["every"]) if "every" in part else (0.0, "")
        self.problems.extend([Problem("every", fault)] if fault else [])
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
            every_seconds=every,
            rate=rate,
            slo=promised,
            least_quality=self._number("least_quality", part.get("least_quality", 0.0), 0.0),
            api_version=version,
        )

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
