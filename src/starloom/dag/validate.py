"""Finds everything that is wrong with a constellation, each with its place.

Places are those of the document form (`dag.document`), whatever the constellation was made from:
`stages.detect.in.image`, `stages.detect.require.tier`, `outputs.answer`; a dependency whose
downstream stage does not exist is `dependencies[3]`.

    validate(constellation, kinds)        # raises InvalidConstellation with all problems
    problems(constellation, kinds)        # the same as a list, empty if there are none
    warnings(constellation, kinds)        # what is allowed, but seldom meant
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from starloom.dag import limits
from starloom.dag.checks import Suggestions, kind_of, name_fault, number_fault, plain_fault, text_fault
from starloom.dag.constellation import API_VERSION, Comparison, Constellation, Dependency, InputBinding, Join, On
from starloom.dag.errors import InvalidConstellation, Problem
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.objective import objective_problems
from starloom.dag.order import cycle_text, find_cycles
from starloom.dag.privacy import conflicts, labels_of
from starloom.dag.sharing import sharing_problems
from starloom.dag.slo import slo_problems
from starloom.dag.spreads import group_problems
from starloom.dag.streams import buffer_fault, start_problems
from starloom.dag.validate_stage import PLAIN_TYPES, a_port, label_problems, private_fault, stage_problems
from starloom.dag.values import Port, PortType
from starloom.dag.variants import floor_problems

_ORDERED = ("<", "<=", ">", ">=")
_OPERATORS = ("==", "!=", *_ORDERED, "contains")


def validate(constellation: Constellation, kinds: Mapping[str, KindSpec]) -> None:
    """Raises InvalidConstellation with all problems, if there are any. Linear in the constellation's size."""
    found = problems(constellation, kinds)
    if found:
        raise InvalidConstellation(found, f"constellation {constellation.name!r} is not valid")


def problems(constellation: Constellation, kinds: Mapping[str, KindSpec]) -> list[Problem]:
    """Everything that is wrong with a constellation, in the order of its document; empty if nothing is."""
    return list(_Validator(constellation, kinds).problems())


def problems_of_part(part: Constellation, kinds: Mapping[str, KindSpec], stages: Iterable[StageId]) -> list[Problem]:
    """What is wrong with some stages of a constellation, apart from cycles and sizes. Linear in the part's size.

    `part` has all stages to look up, but only the dependencies, bindings and outputs that are to be checked;
    of each of `stages` it has all that lead into it.
    """
    validator = _Validator(part, kinds)
    return [*validator.part_problems(stages), *validator.output_problems()]


def warnings(constellation: Constellation, kinds: Mapping[str, KindSpec]) -> list[Problem]:
    """What a valid constellation may say but seldom means.

    Unused job inputs, inputs that may stay without a value, outputs of the job that are private, and stages that
    declassify nothing.
    """
    used = {binding.source for binding in constellation.bindings}
    found = [Problem(f"inputs.{name}", "no stage uses this input") for name in constellation.inputs if name not in used]
    for dependency in constellation.dependencies:
        stage = constellation.stages.get(dependency.downstream)
        kind = kinds.get(stage.kind) if stage else None
        port = kind.input_port(dependency.input) if kind and dependency.carries_data else None
        if stage is None or port is None or port.optional:
            continue
        place = f"stages.{dependency.downstream}.in.{dependency.input}"
        if dependency.on == On.COMPLETION:
            found.append(Problem(place, f"has no value when {dependency.upstream} fails, but {stage.kind} requires it"))
        elif stage.join == Join.ANY:
            found.append(Problem(place, f"may have no value yet when the stage starts, but {stage.kind} requires it"))
    return [*found, *_privacy_warnings(constellation, kinds)]


def _privacy_warnings(constellation: Constellation, kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
    labels, _ = labels_of(constellation, kinds)
    for name, output in constellation.outputs.items():
        label = labels.of_output(output.upstream, output.output)
        if label is not None:
            what = f"{output.upstream}.{output.output} is private to {label.level}"
            yield Problem(f"outputs.{name}", f"{what}, and goes to the client through the orchestrator all the same")
    for stage, spec in constellation.stages.items():
        if spec.declassify and labels.of(stage) is None:
            yield Problem(f"stages.{stage}.declassify", "nothing that the stage reads is private, nor the stage itself")


class _Validator:
    """One pass over one constellation."""

    def __init__(self, constellation: Constellation, kinds: Mapping[str, KindSpec]) -> None:
        self._c = constellation
        self._kinds = kinds
        self._suggestions = Suggestions()
        self._feeds: dict[tuple[StageId, str], list[str]] = {}

    def problems(self) -> Iterator[Problem]:
        yield from self._head_problems()
        for name, port in self._c.inputs.items():
            if fault := name_fault(name):
                yield Problem(f"inputs.{name}", fault)
            if port.type not in tuple(PortType):
                yield Problem(f"inputs.{name}.type", f"no port type is called {port.type!r}; use {', '.join(PortType)}")
            if fault := buffer_fault(port):
                yield Problem(f"inputs.{name}", fault)
        for name, level in self._c.private.items():
            if name not in self._c.inputs:
                yield Problem(
                    f"inputs.{name}",
                    f"is private, but there is no such input{self._suggestions.of(name, self._c.inputs)}",
                )
            if fault := private_fault(level):
                yield Problem(f"inputs.{name}.private", fault)
        yield from self.part_problems(self._c.stages)
        yield from group_problems(self._c.stages.values())
        labels, parts = labels_of(self._c, self._kinds)
        yield from conflicts(labels, parts)
        yield from sharing_problems(self._c.stages, labels.levels)
        cycles = list(self._cycle_problems())
        yield from cycles or start_problems(self._c, self._kinds)
        yield from self.output_problems()

    def part_problems(self, stages: Iterable[StageId]) -> Iterator[Problem]:
        for name in stages:
            yield from stage_problems(name, self._c.stages[name], self._kinds, self._suggestions)
        for binding in self._c.bindings:
            yield from self._binding_problems(binding)
        for index, dependency in enumerate(self._c.dependencies):
            yield from self._dependency_problems(self._dependency_place(index, dependency), dependency)
        yield from self._duplicate_problems()
        yield from self._feed_problems(stages)

    def _head_problems(self) -> Iterator[Problem]:
        if self._c.api_version != API_VERSION:
            yield Problem(
                "api_version", f"{self._c.api_version!r} is not known here; this version reads {API_VERSION!r}"
            )
        if fault := name_fault(self._c.name, dotted=True):
            yield Problem("name", fault)
        yield from label_problems("labels", self._c.labels)
        longest = limits.DURATION_SECONDS_MAX
        if fault := number_fault(self._c.deadline_seconds, at_most=longest, unit="seconds, 0 for no bound"):
            yield Problem("deadline", fault)
        yield from objective_problems(self._c.objective)
        yield from slo_problems(self._c)
        yield from floor_problems(self._c.stages.values(), self._c.least_quality)
        if not self._c.stages:
            yield Problem("stages", "there are none; a constellation needs at least one stage")
        sizes = (
            ("stages", len(self._c.stages), "STAGES_PER_JOB_MAX", limits.STAGES_PER_JOB_MAX),
            ("dependencies", len(self._c.dependencies), "DEPENDENCIES_PER_JOB_MAX", limits.DEPENDENCIES_PER_JOB_MAX),
        )
        for place, count, limit_name, limit in sizes:
            if count > limit:
                yield Problem(place, f"{count} are over {limit_name} = {limit}; split the job")

    def _dependency_place(self, index: int, dependency: Dependency) -> str:
        if dependency.downstream not in self._c.stages:
            return f"dependencies[{index}]"
        stage = f"stages.{dependency.downstream}"
        return f"{stage}.in.{dependency.input}" if dependency.input else f"{stage}.after"

    def _stage_fault(self, stage: StageId) -> str:
        if stage in self._c.stages:
            return ""
        return f"no stage is called {stage!r}{self._suggestions.of(stage, self._c.stages)}"

    def _output_port(self, stage: StageId, name: str) -> tuple[Port | None, str]:
        """The port, or what is wrong with the name; neither where the stage or its kind is unknown."""
        spec = self._c.stages.get(stage)
        kind = self._kinds.get(spec.kind) if spec else None
        if kind is None:
            return None, ""
        ports = kind.output_ports(spec.params) if spec else kind.outputs
        port = ports.get(name)
        if port is None:
            return None, f"{stage} ({kind.name}) has no output {name!r}{self._suggestions.of(name, ports)}"
        return port, ""

    def _input_port(self, stage: StageId, name: str) -> tuple[Port | None, str]:
        spec = self._c.stages.get(stage)
        kind = self._kinds.get(spec.kind) if spec else None
        if kind is None:
            return None, ""
        port = kind.input_port(name)
        if port is None:
            return None, f"{kind.name} has no input {name!r}{self._suggestions.of(name, kind.inputs)}"
        return port, "" if name in kind.inputs else name_fault(name)

    def _binding_problems(self, binding: InputBinding) -> Iterator[Problem]:
        if fault := self._stage_fault(binding.downstream):
            yield Problem(f"inputs.{binding.source}", fault)
            return
        place = f"stages.{binding.downstream}.in.{binding.input}"
        self._feeds.setdefault((binding.downstream, binding.input), []).append(f"${binding.source}")
        source = self._c.inputs.get(binding.source)
        if source is None:
            hint = self._suggestions.of(binding.source, self._c.inputs)
            known = hint if self._c.inputs else "; the constellation has no inputs"
            yield Problem(place, f"the job has no input {binding.source!r}{known}")
        port, fault = self._input_port(binding.downstream, binding.input)
        if fault:
            yield Problem(place, fault)
        if source and port:
            yield from _match_problems(place, f"${binding.source}", source, port)
            if source.optional and not port.optional:
                yield Problem(place, f"${binding.source} is optional, but this input needs a value; make both the same")

    def _dependency_problems(self, place: str, dependency: Dependency) -> Iterator[Problem]:
        for stage in (dependency.upstream, dependency.downstream):
            if fault := self._stage_fault(stage):
                yield Problem(place, fault)
        if dependency.upstream == dependency.downstream:
            yield Problem(place, f"{dependency.upstream} depends on itself; remove that dependency")
        if bool(dependency.output) != bool(dependency.input):
            there, missing = ("an output", "input") if dependency.output else ("an input", "output")
            yield Problem(place, f"the dependency names {there} but no {missing}; give both, or neither for order only")
        source, sink = None, None
        if dependency.output:
            source, fault = self._output_port(dependency.upstream, dependency.output)
            if fault:
                yield Problem(place, fault)
        if dependency.input and dependency.downstream in self._c.stages:
            feed = f"{dependency.upstream}.{dependency.output}"
            self._feeds.setdefault((dependency.downstream, dependency.input), []).append(feed)
            sink, fault = self._input_port(dependency.downstream, dependency.input)
            if fault:
                yield Problem(place, fault)
        if source and sink:
            yield from _match_problems(place, f"{dependency.upstream}.{dependency.output}", source, sink)
            if source.stream and sink.stream:
                yield from self._stream_problems(place, dependency)
        yield from self._condition_problems(place, dependency)

    def _stream_problems(self, place: str, dependency: Dependency) -> Iterator[Problem]:
        """What a stream cannot have, since it is read before its upstream has ended."""
        name = f"{dependency.upstream}.{dependency.output}"
        if dependency.on != On.SUCCESS:
            what = f"{name} is a stream, which is read from its first chunk on, before {dependency.upstream} ends"
            yield Problem(place, f"{what}; it can have no condition on how that ends: leave it out")
        if self._c.stages[dependency.downstream].join == Join.ANY:
            what = f"the stage joins any of its upstreams, but it starts with the stream {name}; leave the join out"
            yield Problem(place, what)

    def _condition_problems(self, place: str, dependency: Dependency) -> Iterator[Problem]:
        comparison = dependency.comparison
        if (dependency.on == On.COMPARISON) != (comparison is not None):
            what = "a comparison is given, but" if comparison else "no comparison is given, but"
            yield Problem(place, f"{what} the dependency is on {dependency.on}; give both, or neither")
        if comparison is None:
            return
        port, fault = self._output_port(dependency.upstream, comparison.output)
        if fault:
            yield Problem(f"{place}.when.output", fault)
        if port is not None and (port.stream or port.type not in PLAIN_TYPES):
            yield Problem(
                f"{place}.when.output", f"{comparison.output!r} is {a_port(port)}; only text and JSON can be compared"
            )
            port = None
        if comparison.operator not in _OPERATORS:
            yield Problem(f"{place}.when.is", f"no operator {comparison.operator!r}; use {' '.join(_OPERATORS)}")
        elif fault := _value_fault(comparison, port):
            yield Problem(f"{place}.when.value", fault)
        if comparison.path and port is not None and port.type == PortType.TEXT:
            yield Problem(
                f"{place}.when.path", f"{comparison.output!r} is text, which has no parts; leave the path out"
            )
        elif fault := text_fault(comparison.path):
            yield Problem(f"{place}.when.path", fault)
        elif comparison.path and not all(comparison.path.split(".")):
            yield Problem(f"{place}.when.path", f"{comparison.path!r} has an empty part; write it as faces.0.score")

    def _duplicate_problems(self) -> Iterator[Problem]:
        """Order-only dependencies given twice; of those with data, a port fed twice tells."""
        groups: dict[tuple[StageId, StageId], list[Dependency]] = {}
        for index, dependency in enumerate(self._c.dependencies):
            if dependency.input or dependency.output:
                continue
            group = groups.setdefault((dependency.upstream, dependency.downstream), [])
            if dependency in group:
                what = f"the dependency on {dependency.upstream} is given twice; remove one"
                yield Problem(self._dependency_place(index, dependency), what)
            group.append(dependency)

    def _feed_problems(self, stages: Iterable[StageId]) -> Iterator[Problem]:
        for (stage, name), sources in self._feeds.items():
            if len(sources) > 1:
                given = "twice" if len(sources) == 2 else f"{len(sources)} times"
                yield Problem(f"stages.{stage}.in.{name}", f"is fed {given}, by {' and '.join(sources)}; keep one")
        for stage in stages:
            spec = self._c.stages[stage]
            kind = self._kinds.get(spec.kind)
            for name, port in kind.inputs.items() if kind else ():
                if not port.optional and (stage, name) not in self._feeds:
                    what = f"{spec.kind} needs {a_port(port)} here; name a job input ($name) or an output (stage.port)"
                    yield Problem(f"stages.{stage}.in.{name}", what)

    def _cycle_problems(self) -> Iterator[Problem]:
        downstreams: dict[StageId, list[StageId]] = {stage: [] for stage in self._c.stages}
        for dependency in self._c.dependencies:
            known = dependency.upstream in downstreams and dependency.downstream in downstreams
            if known and dependency.upstream != dependency.downstream:
                downstreams[dependency.upstream].append(dependency.downstream)
        for cycle in find_cycles(downstreams):
            place = f"stages.{cycle[1]}"
            yield Problem(place, f"waits for itself: {cycle_text(cycle)}; remove one of these dependencies")

    def output_problems(self) -> Iterator[Problem]:
        for name, binding in self._c.outputs.items():
            faults = (
                name_fault(name),
                self._stage_fault(binding.upstream),
                self._output_port(binding.upstream, binding.output)[1],
            )
            yield from (Problem(f"outputs.{name}", fault) for fault in faults if fault)
            source = self._c.inputs.get(name)
            if source is not None and source.stream:
                what = "is the name of an input stream as well, and both are read by their names; call one differently"
                yield Problem(f"outputs.{name}", what)


def _match_problems(place: str, name: str, source: Port, sink: Port) -> Iterator[Problem]:
    if (source.type, source.stream) != (sink.type, sink.stream):
        yield Problem(place, f"{name} is {a_port(source)}, but this input takes {a_port(sink)}")


def _value_fault(comparison: Comparison, port: Port | None) -> str:
    value: Any = comparison.value
    if fault := plain_fault(value):
        return fault
    if port is not None and port.type == PortType.TEXT and not isinstance(value, str):
        return f"is {kind_of(value)}, but {comparison.output!r} is text; compare it with text"
    if comparison.operator in _ORDERED and (isinstance(value, bool) or not isinstance(value, int | float | str)):
        return f"is {kind_of(value)}, which has no order; compare with a number or text, or use == or !="
    if comparison.operator == "contains" and isinstance(value, dict | list | tuple):
        return f"is {kind_of(value)}; contains looks for one text, number, true, false or null"
    return ""
