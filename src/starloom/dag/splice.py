"""Puts a whole constellation into another one: its stages renamed, its inputs and outputs connected."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from starloom.dag.checks import name_fault, suggestion
from starloom.dag.constellation import Constellation, Dependency, InputBinding
from starloom.dag.errors import Problem
from starloom.dag.ids import StageId
from starloom.dag.patch import Add, Rewire, Splice


@dataclass(frozen=True, slots=True)
class Spliced:
    """A splice in simpler operations."""

    add: Add
    rewires: tuple[Rewire, ...]


def spliced(place: str, splice: Splice) -> Spliced | list[Problem]:
    """What a splice comes to; or everything that is wrong with how it is connected, below `place`."""
    problems = list(_problems(place, splice))
    if problems:
        return problems
    inner = splice.constellation
    names = {stage: StageId(f"{splice.prefix}-{stage}") for stage in inner.stages}
    dependencies = [
        msgspec.structs.replace(arc, upstream=names[arc.upstream], downstream=names[arc.downstream])
        for arc in inner.dependencies
    ]
    bindings: list[InputBinding] = []
    for binding in inner.bindings:
        source = splice.inputs.get(binding.source, "")
        downstream = names[binding.downstream]
        if source.startswith("$"):
            bindings.append(InputBinding(source=source[1:], downstream=downstream, input=binding.input))
        elif source:
            upstream, port = parts_of(source)
            arc = Dependency(upstream=upstream, downstream=downstream, output=port, input=binding.input)
            dependencies.append(arc)
    stages = tuple(
        msgspec.structs.replace(
            spec,
            id=names[stage],
            colocate=f"{splice.prefix}-{spec.colocate}" if spec.colocate else "",
            least_quality=max(spec.least_quality, inner.least_quality),
            spread=spec.spread and msgspec.structs.replace(spec.spread, group=f"{splice.prefix}-{spec.spread.group}"),
        )
        for stage, spec in inner.stages.items()
    )
    add = Add(stages=stages, dependencies=tuple(dependencies), bindings=tuple(bindings))
    return Spliced(add, tuple(_rewires(splice, inner, names)))


def parts_of(text: str) -> tuple[StageId, str]:
    """The stage and port of `stage.port`."""
    stage, _, port = text.partition(".")
    return StageId(stage), port


def _rewires(splice: Splice, inner: Constellation, names: Mapping[StageId, StageId]) -> Iterator[Rewire]:
    for name, consumers in splice.outputs.items():
        output = inner.outputs[name]
        for consumer in consumers:
            stage, port = parts_of(consumer)
            arc = Dependency(upstream=names[output.upstream], downstream=stage, output=output.output, input=port)
            yield Rewire(stage=stage, dependencies=(arc,))


def _problems(place: str, splice: Splice) -> Iterator[Problem]:
    inner = splice.constellation
    if fault := name_fault(splice.prefix):
        yield Problem(f"{place}.prefix", fault)
    for name, port in inner.inputs.items():
        if name not in splice.inputs and not port.optional:
            what = "needs a source from the constellation around it; give stage.port or $input"
            yield Problem(f"{place}.inputs.{name}", what)
    for name, source in splice.inputs.items():
        if name not in inner.inputs:
            yield Problem(f"{place}.inputs.{name}", f"{inner.name} has no such input{suggestion(name, inner.inputs)}")
        elif not source.startswith("$"):
            yield from _form_problems(f"{place}.inputs.{name}", [source])
    for name, consumers in splice.outputs.items():
        if name not in inner.outputs:
            hint = suggestion(name, inner.outputs)
            yield Problem(f"{place}.outputs.{name}", f"{inner.name} has no such output{hint}")
        yield from _form_problems(f"{place}.outputs.{name}", consumers)
    for index, arc in enumerate(inner.dependencies):
        for stage in (arc.upstream, arc.downstream):
            if stage not in inner.stages:
                yield Problem(f"{place}.constellation.dependencies[{index}]", f"no stage is called {stage!r}")
    ends = [(f"inputs.{binding.source}", binding.downstream) for binding in inner.bindings]
    ends += [(f"outputs.{name}", output.upstream) for name, output in inner.outputs.items()]
    for where, stage in ends:
        if stage not in inner.stages:
            yield Problem(f"{place}.constellation.{where}", f"no stage is called {stage!r}")


def _form_problems(place: str, texts: Iterable[str]) -> Iterator[Problem]:
    for text in texts:
        if not all(parts_of(text)):
            yield Problem(place, f"is {text!r}; name a port as stage.port")
