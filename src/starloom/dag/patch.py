"""Patches: atomic changes to a constellation, as typed operations, and the difference that they make.

    patch = Patch(operations=(Move(stage=hear, requires=Requirements(tiers=(Tier.CLOUD,))),), if_revision=3)
    patched, difference = apply(constellation, patch, kinds)        # `dag.draft`: or every problem at once
    undone, _ = apply(patched, inverse(difference), kinds)          # undo is a patch

`dag.patchdoc` has the document form. A Difference is all that a patch changed, so replaying one asks neither
kinds nor newer code.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec

from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import (
    Constellation,
    Dependency,
    InputBinding,
    Join,
    OutputBinding,
    Policy,
    Preferences,
    Private,
    Requirements,
    Spread,
    StageSpec,
    Variant,
)
from starloom.dag.ids import StageId

Leads = TypeVar("Leads", Dependency, InputBinding)


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op"):
    """The base of all operations."""


class Add(Operation, frozen=True, tag="add"):
    """New stages, with all that leads into them."""

    stages: tuple[StageSpec, ...]
    dependencies: tuple[Dependency, ...] = ()
    bindings: tuple[InputBinding, ...] = ()


class Remove(Operation, frozen=True, tag="remove"):
    """A stage goes, with all that leads into it; what it feeds has to be removed or rewired as well."""

    stage: StageId


class Replace(Operation, frozen=True, tag="replace"):
    """Another kind, or other parameters: `params` takes the place of all, `model` of the one of that name."""

    stage: StageId
    kind: str = ""
    params: dict[str, object] | None = None
    model: str = ""


class Rewire(Operation, frozen=True, tag="rewire"):
    """Other sources for input ports of a stage; ports that are not named keep theirs.

    `unfed` ports are left without one. Of dependencies without data, `after`, if given, takes the place of all;
    `waits` are added where they are not there yet, and `frees` go.
    """

    stage: StageId
    dependencies: tuple[Dependency, ...] = ()
    bindings: tuple[InputBinding, ...] = ()
    unfed: tuple[str, ...] = ()
    after: tuple[Dependency, ...] | None = None
    waits: tuple[Dependency, ...] = ()
    frees: tuple[Dependency, ...] = ()
    join: Join | None = None


class Move(Operation, frozen=True, tag="move"):
    """Other requirements, and so another place.

    `colocate`, `spread`: to stand with others, or apart from them; nothing for an empty group. None leaves it.
    """

    stage: StageId
    requires: Requirements
    colocate: str | None = None
    spread: Spread | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """What a stage has instead, by the names of its fields."""
        found: dict[str, Any] = {"requires": self.requires}
        if self.colocate is not None:
            found["colocate"] = self.colocate
        if self.spread is not None:
            found["spread"] = self.spread if self.spread.group else None
        return found


class SetPreferences(Operation, frozen=True, tag="set_preferences"):
    """Other preferences of a stage, in place of those that it has."""

    stage: StageId
    prefers: Preferences = Preferences()


class SetPolicy(Operation, frozen=True, tag="set_policy"):
    """Another policy."""

    stage: StageId
    policy: Policy


class SetPrivacy(Operation, frozen=True, tag="set_privacy"):
    """Other labels of a stage, in place of those that it has."""

    stage: StageId
    private: Private | dict[str, Private] | None = None
    declassify: bool | None = None


class SetVariants(Operation, frozen=True, tag="set_variants"):
    """Other variants of a stage, in place of those that it has."""

    stage: StageId
    variants: tuple[Variant, ...] = ()
    variant: str = ""
    least_quality: float = 0.0


class CancelStage(Operation, frozen=True, tag="cancel_stage"):
    """The stage stays, but is skipped, and with it what needs it."""

    stage: StageId


class ResumeStage(Operation, frozen=True, tag="resume_stage"):
    """A stage that was cancelled may run after all."""

    stage: StageId


class Splice(Operation, frozen=True, tag="splice"):
    """A whole constellation is put in: each of its stages as `prefix-name`.

    `inputs` gives its inputs sources, `stage.port` or `$input`, as documents write them. `outputs` leads its
    outputs to input ports that are there, `stage.port`, which lose the source that they had.
    """

    prefix: str
    constellation: Constellation
    inputs: dict[str, str] = {}
    outputs: dict[str, tuple[str, ...]] = {}


class Redirect(Operation, frozen=True, tag="redirect"):
    """All that reads an output reads `sources` instead: stages, but for those that the patch adds, and outputs of the job.

    The stages of `but` go on reading it. With several sources, a stage reads them at as many ports, `port-0`, `port-1` and so on, which its kind has
    to take; an output of the job has one.
    """

    stage: StageId
    output: str
    sources: tuple[OutputBinding, ...]
    but: tuple[StageId, ...] = ()


class SetOutputs(Operation, frozen=True, tag="outputs"):
    """Outputs of the job: None takes one away, others are added or changed."""

    outputs: dict[str, OutputBinding | None]


AnyOperation = (
    Add
    | Remove
    | Replace
    | Rewire
    | Redirect
    | Move
    | SetPreferences
    | SetPolicy
    | SetPrivacy
    | SetVariants
    | CancelStage
    | ResumeStage
    | Splice
    | SetOutputs
)


class Patch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Operations that are done in their order, all or none.

    `if_revision`: only on that revision; 0 is on any. `restart`: also stages that have started are changed,
    and run again. `id` is the caller's name for it: a repeat gets the first answer.
    """

    operations: tuple[AnyOperation, ...]
    if_revision: int = 0
    restart: bool = False
    id: str = ""
    why: str = ""


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stage as it was and as it is; None where there was or is none."""

    before: StageSpec | None = None
    after: StageSpec | None = None

    @property
    def stage(self) -> StageId:
        spec = self.after or self.before
        assert spec is not None
        return spec.id


class OutputChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output of the job as it was and as it is."""

    before: OutputBinding | None = None
    after: OutputBinding | None = None


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that differs between two constellations of one job."""

    stages: tuple[Change, ...] = ()
    removed: tuple[Dependency, ...] = ()
    added: tuple[Dependency, ...] = ()
    unbound: tuple[InputBinding, ...] = ()
    bound: tuple[InputBinding, ...] = ()
    outputs: dict[str, OutputChange] = {}

    def __bool__(self) -> bool:
        return bool(self.stages or self.removed or self.added or self.unbound or self.bound or self.outputs)

    @property
    def touched(self) -> dict[StageId, None]:
        """The stages that are not what they were, or are fed by something else, in order; also those that are gone."""
        return dict.fromkeys(
            [
                *(change.stage for change in self.stages),
                *(arc.downstream for arc in (*self.removed, *self.added)),
                *(binding.downstream for binding in (*self.unbound, *self.bound)),
            ]
        )


class ArcKey(NamedTuple):
    """What tells a dependency from the others of one constellation; hashable, as a comparison's value may not be."""

    upstream: StageId
    downstream: StageId
    output: str
    input: str
    on: str
    comparison: str


def arc_key(arc: Dependency) -> ArcKey:
    """The key of a dependency."""
    comparison = comparison_key(arc.comparison) if arc.comparison is not None else ""
    return ArcKey(arc.upstream, arc.downstream, arc.output, arc.input, arc.on, comparison)


def between(before: Constellation, after: Constellation) -> Difference:
    """What differs between two constellations; linear in their sizes."""
    arcs_before = {arc_key(arc): arc for arc in before.dependencies}
    arcs_after = {arc_key(arc): arc for arc in after.dependencies}
    bound_before, bound_after = dict.fromkeys(before.bindings), dict.fromkeys(after.bindings)
    names = {**before.stages, **after.stages}
    stages = (Change(before.stages.get(name), after.stages.get(name)) for name in names)
    outputs = (
        (name, before.outputs.get(name), after.outputs.get(name)) for name in {**before.outputs, **after.outputs}
    )
    return Difference(
        stages=tuple(change for change in stages if change.before != change.after),
        removed=tuple(arc for key, arc in arcs_before.items() if key not in arcs_after),
        added=tuple(arc for key, arc in arcs_after.items() if key not in arcs_before),
        unbound=tuple(binding for binding in bound_before if binding not in bound_after),
        bound=tuple(binding for binding in bound_after if binding not in bound_before),
        outputs={name: OutputChange(old, new) for name, old, new in outputs if old != new},
    )


def swapped(difference: Difference) -> Difference:
    """The difference seen from the other side."""
    return Difference(
        stages=tuple(Change(change.after, change.before) for change in difference.stages),
        removed=difference.added,
        added=difference.removed,
        unbound=difference.bound,
        bound=difference.unbound,
        outputs={name: OutputChange(change.after, change.before) for name, change in difference.outputs.items()},
    )


def inverse(difference: Difference, *, restart: bool = False, why: str = "") -> Patch:
    """The patch that takes a difference back."""
    return Patch(operations=operations_of(swapped(difference)), restart=restart, why=why)


def operations_of(difference: Difference) -> tuple[AnyOperation, ...]:
    """Operations that make a difference."""
    arrives = {change.stage: change.after for change in difference.stages if change.before is None and change.after}
    leaves = [change.stage for change in difference.stages if change.after is None]
    found: list[AnyOperation] = []
    if arrives:
        found.append(
            Add(
                stages=tuple(arrives.values()),
                dependencies=tuple(arc for arc in difference.added if arc.downstream in arrives),
                bindings=tuple(binding for binding in difference.bound if binding.downstream in arrives),
            )
        )
    found += (operation for change in difference.stages for operation in _of_change(change))
    found += _rewires(difference, {*arrives, *leaves})
    if difference.outputs:
        found.append(SetOutputs(outputs={name: change.after for name, change in difference.outputs.items()}))
    found += (Remove(stage=stage) for stage in leaves)
    return tuple(found)


def _of_change(change: Change) -> Iterator[AnyOperation]:
    before, after = change.before, change.after
    if before is None or after is None:
        return
    if (before.kind, before.params) != (after.kind, after.params):
        yield Replace(stage=after.id, kind=after.kind, params=after.params)
    if (before.requires, before.colocate, before.spread) != (after.requires, after.colocate, after.spread):
        colocate = after.colocate if before.colocate != after.colocate else None
        spread = (after.spread or Spread(group="")) if before.spread != after.spread else None
        yield Move(stage=after.id, requires=after.requires, colocate=colocate, spread=spread)
    if before.prefers != after.prefers:
        yield SetPreferences(stage=after.id, prefers=after.prefers)
    if before.policy != after.policy:
        yield SetPolicy(stage=after.id, policy=after.policy)
    if (before.private, before.declassify) != (after.private, after.declassify):
        yield SetPrivacy(stage=after.id, private=after.private, declassify=after.declassify)
    if variants_said(before) != variants_said(after):
        yield SetVariants(stage=after.id, **variants_said(after))
    if before.join != after.join:
        yield Rewire(stage=after.id, join=after.join)
    if before.cancelled != after.cancelled:
        yield CancelStage(stage=after.id) if after.cancelled else ResumeStage(stage=after.id)


def variants_said(said: StageSpec | SetVariants) -> dict[str, Any]:
    """What a stage, or an operation, says of variants, by the names of the fields."""
    return {"variants": said.variants, "variant": said.variant, "least_quality": said.least_quality}


def _rewires(difference: Difference, but: Iterable[StageId]) -> Iterator[Rewire]:
    """One for each stage whose sources differ; those of a stage that comes or goes come and go with it."""
    skipped = set(but)
    stages = (stage for stage in difference.touched if stage not in skipped)
    removed = _by_downstream(difference.removed)
    added = _by_downstream(difference.added)
    unbound = _by_downstream(difference.unbound)
    bound = _by_downstream(difference.bound)
    for stage in stages:
        gone, new = removed.get(stage, []), added.get(stage, [])
        freed, fed = unbound.get(stage, []), bound.get(stage, [])
        if not (gone or new or freed or fed):
            continue
        ports = {arc.input for arc in new} | {binding.input for binding in fed}
        lost = [*(arc.input for arc in gone if arc.carries_data), *(binding.input for binding in freed)]
        yield Rewire(
            stage=stage,
            dependencies=tuple(arc for arc in new if arc.carries_data),
            bindings=tuple(fed),
            unfed=tuple(port for port in lost if port not in ports),
            waits=tuple(arc for arc in new if not arc.carries_data),
            frees=tuple(arc for arc in gone if not arc.carries_data),
        )


def _by_downstream(items: Iterable[Leads]) -> dict[StageId, list[Leads]]:
    found: dict[StageId, list[Leads]] = {}
    for item in items:
        found.setdefault(item.downstream, []).append(item)
    return found
