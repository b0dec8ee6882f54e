"""What a patch makes of a constellation, by plain lists and without a check: the model that the real patches are judged by."""

from collections.abc import Iterable, Iterator
from typing import Any, assert_never

import msgspec

from starloom.dag.constellation import Constellation, Dependency, InputBinding, OutputBinding, StageSpec
from starloom.dag.ids import StageId
from starloom.dag.patch import (
    Add,
    AnyOperation,
    CancelStage,
    Difference,
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
    arc_key,
    variants_said,
)


def patched(constellation: Constellation, patch: Patch) -> Constellation:
    """The constellation that a patch makes of another. Raises LookupError for an operation that cannot be done."""
    parts = _Parts(constellation)
    for operation in patch.operations:
        parts.do(operation)
    return parts.made


def differing(constellation: Constellation, difference: Difference) -> Constellation:
    """The constellation that a difference makes of another."""
    parts = _Parts(constellation)
    gone = {arc_key(arc) for arc in difference.removed}
    parts.arcs = [arc for arc in parts.arcs if arc_key(arc) not in gone] + list(difference.added)
    parts.bindings = [each for each in parts.bindings if each not in difference.unbound] + list(difference.bound)
    for change in difference.stages:
        parts.stages.pop(change.stage, None)
        if change.after is not None:
            parts.stages[change.stage] = change.after
    parts.set_outputs({name: change.after for name, change in difference.outputs.items()})
    return parts.made


def same(one: Constellation, other: Constellation) -> bool:
    """Whether two constellations mean the same: nothing rests on the order of what they consist of."""
    return (
        one.stages == other.stages
        and one.outputs == other.outputs
        and set(one.bindings) == set(other.bindings)
        and set(map(arc_key, one.dependencies)) == set(map(arc_key, other.dependencies))
    )


class _Parts:
    """A constellation in pieces that can be changed."""

    def __init__(self, constellation: Constellation) -> None:
        self._origin = constellation
        self.stages: dict[StageId, StageSpec] = dict(constellation.stages)
        self.arcs: list[Dependency] = list(constellation.dependencies)
        self.bindings: list[InputBinding] = list(constellation.bindings)
        self._outputs: dict[str, OutputBinding] = dict(constellation.outputs)

    @property
    def made(self) -> Constellation:
        return msgspec.structs.replace(
            self._origin,
            stages=self.stages,
            dependencies=tuple(self.arcs),
            bindings=tuple(self.bindings),
            outputs=self._outputs,
        )

    def do(self, operation: AnyOperation) -> None:
        """Does one operation."""
        match operation:
            case Add(stages=specs, dependencies=arcs, bindings=bindings):
                _need(not any(spec.id in self.stages for spec in specs))
                self.stages.update((spec.id, spec) for spec in specs)
                self.arcs += arcs
                self.bindings += bindings
            case Remove(stage=stage):
                del self.stages[stage]
                self.arcs = [arc for arc in self.arcs if arc.downstream != stage]
                self.bindings = [each for each in self.bindings if each.downstream != stage]
            case Replace(stage=stage):
                spec = self.stages[stage]
                params = spec.params if operation.params is None else operation.params
                more = {"model": operation.model} if operation.model else {}
                self._set(stage, kind=operation.kind or spec.kind, params={**params, **more})
            case Rewire():
                self._rewire(operation)
            case Redirect():
                self._redirect(operation)
            case Move(stage=stage, requires=requires, colocate=colocate, spread=spread):
                groups: dict[str, Any] = {} if colocate is None else {"colocate": colocate}
                if spread is not None:
                    groups["spread"] = spread if spread.group else None
                self._set(stage, requires=requires, **groups)
            case SetPolicy(stage=stage, policy=policy):
                self._set(stage, policy=policy)
            case SetPreferences(stage=stage, prefers=prefers):
                self._set(stage, prefers=prefers)
            case SetPrivacy(stage=stage, private=private, declassify=declassify):
                self._set(stage, private=private, declassify=declassify)
            case SetVariants(stage=stage):
                self._set(stage, **variants_said(operation))
            case CancelStage(stage=stage):
                self._set(stage, cancelled=True)
            case ResumeStage(stage=stage):
                self._set(stage, cancelled=False)
            case Splice():
                for each in _spliced(operation):
                    self.do(each)
            case SetOutputs(outputs=outputs):
                self.set_outputs(outputs)
            case _:
                assert_never(operation)

    def set_outputs(self, outputs: dict[str, OutputBinding | None]) -> None:
        for name, output in outputs.items():
            _need(output is not None or name in self._outputs)
            self._outputs.pop(name, None)
            if output is not None:
                self._outputs[name] = output

    def _set(self, stage: StageId, **fields: object) -> None:
        self.stages[stage] = msgspec.structs.replace(self.stages[stage], **fields)

    def _rewire(self, rewire: Rewire) -> None:
        stage = rewire.stage
        self._set(stage, join=rewire.join or self.stages[stage].join)
        ports = {*rewire.unfed, *_inputs(rewire.dependencies), *(each.input for each in rewire.bindings)}
        frees = {arc_key(arc) for arc in rewire.frees}
        into = [arc for arc in self.arcs if arc.downstream == stage]
        fed = {*_inputs(into), *(each.input for each in self.bindings if each.downstream == stage)}
        _need(fed.issuperset(rewire.unfed) and frees.issubset(map(arc_key, into)))
        kept = []
        for arc in self.arcs:
            if arc.downstream != stage:
                kept.append(arc)
            elif arc.output:
                kept += [arc] if arc.input not in ports else []
            elif rewire.after is None and arc_key(arc) not in frees:
                kept.append(arc)
        self.arcs = [*kept, *rewire.dependencies, *(rewire.after or ()), *rewire.waits]
        bound = [each for each in self.bindings if each.downstream != stage or each.input not in ports]
        self.bindings = [*bound, *rewire.bindings]

    def _redirect(self, redirect: Redirect) -> None:
        _need(redirect.stage in self.stages and all(source.upstream in self.stages for source in redirect.sources))
        old, new = OutputBinding(upstream=redirect.stage, output=redirect.output), redirect.sources
        for arc in tuple(self.arcs):
            reads = (arc.upstream, arc.output) == (redirect.stage, redirect.output)
            makes = arc.downstream in {source.upstream for source in new} or arc.downstream not in self._origin.stages
            if not reads or makes or arc.downstream in redirect.but:
                continue
            self.arcs.remove(arc)
            for index, source in enumerate(new):
                port = f"{arc.input}-{index}" if len(new) > 1 else arc.input
                asked = arc.comparison
                if asked is not None and asked.output == arc.output:
                    asked = msgspec.structs.replace(asked, output=source.output)
                fed = {"upstream": source.upstream, "output": source.output, "input": port, "comparison": asked}
                self.arcs.append(msgspec.structs.replace(arc, **fed))
        for name, output in self._outputs.items():
            if output == old:
                _need(len(new) == 1)
                self._outputs[name] = new[0]


def _need(fits: bool) -> None:
    if not fits:
        raise LookupError


def _inputs(arcs: Iterable[Dependency]) -> Iterator[str]:
    return (arc.input for arc in arcs)


def _spliced(splice: Splice) -> Iterator[Add | Rewire]:
    inner, prefix = splice.constellation, splice.prefix

    def named(stage: StageId) -> StageId:
        return StageId(f"{prefix}-{stage}")

    arcs = [
        msgspec.structs.replace(arc, upstream=named(arc.upstream), downstream=named(arc.downstream))
        for arc in inner.dependencies
    ]
    bindings = []
    for binding in inner.bindings:
        source, stage = splice.inputs[binding.source], named(binding.downstream)
        if source.startswith("$"):
            bindings.append(InputBinding(source=source[1:], downstream=stage, input=binding.input))
        else:
            upstream, output = source.split(".")
            arcs.append(Dependency(upstream=StageId(upstream), downstream=stage, output=output, input=binding.input))
    specs = tuple(
        msgspec.structs.replace(
            spec,
            id=named(spec.id),
            colocate=f"{prefix}-{spec.colocate}" if spec.colocate else "",
            spread=spec.spread and msgspec.structs.replace(spec.spread, group=f"{prefix}-{spec.spread.group}"),
        )
        for spec in inner.stages.values()
    )
    yield Add(stages=specs, dependencies=tuple(arcs), bindings=tuple(bindings))
    for name, consumers in splice.outputs.items():
        output_ = inner.outputs[name]
        for consumer in consumers:
            downstream, port = consumer.split(".")
            arc = Dependency(
                upstream=named(output_.upstream), downstream=StageId(downstream), output=output_.output, input=port
            )
            yield Rewire(stage=arc.downstream, dependencies=(arc,))
