"""Variants of a stage: which may be taken, what a stage is with one of them, and what can be wrong with them.

stages:
  answer:
    kind: language.answer
    variants:                                # the best first; all have the ports of the kind
      - {name: large, quality: 0.8, params: {model: starloom-10m}}
      - {name: small, quality: 0.6, params: {model: starloom-1m}, seconds: 50ms}
    least_quality: 0.5
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from starloom.dag import limits
from starloom.dag.checks import Suggestions, name_fault, number_fault
from starloom.dag.constellation import Requirements, StageSpec, Variant
from starloom.dag.errors import Problem
from starloom.dag.kinds import OUTPUTS_PARAM

_NOTHING_REQUIRED = Requirements()


def allowed(stage: StageSpec, least_quality: float = 0.0) -> tuple[Variant, ...]:
    """The variants that may be taken where a job asks for so much quality: that which the stage names first, then the best."""
    least = max(stage.least_quality, least_quality)
    found = [each for each in stage.variants if each.quality >= least]
    return tuple(sorted(found, key=lambda each: each.name != stage.variant))


def chosen(stage: StageSpec, variant: Variant) -> StageSpec:
    """The stage as it is with a variant: with its parameters, its requirements, and no other variant."""
    requires = stage.requires
    if variant.requires != _NOTHING_REQUIRED:
        said = {name: getattr(variant.requires, name) for name in Requirements.__struct_fields__}
        requires = msgspec.structs.replace(requires, **{name: value for name, value in said.items() if value})
    params = {**stage.params, **variant.params}
    return msgspec.structs.replace(stage, params=params, requires=requires, variants=(variant,))


def ways_of(stage: StageSpec, least_quality: float = 0.0) -> list[StageSpec]:
    """The stage as it is with each variant that may be taken; by itself where it has none."""
    if not stage.variants:
        return [stage]
    return [chosen(stage, each) for each in allowed(stage, least_quality)] or [stage]


def told_of_variant(stage: StageSpec) -> float:
    """The seconds that a stage's variant says a run takes; 0 where it says none, or is not chosen yet."""
    return stage.variants[0].seconds if len(stage.variants) == 1 else 0.0


def variant_problems(place: str, stage: StageSpec, suggestions: Suggestions) -> Iterator[Problem]:
    """What is wrong with a stage's variants beside their parameters and requirements, which are checked as a stage's are."""
    if fault := number_fault(stage.least_quality, at_most=1.0):
        yield Problem(f"{place}.least_quality", fault)
    variants = stage.variants
    if (count := len(variants)) > limits.VARIANTS_PER_STAGE_MAX:
        over = f"over VARIANTS_PER_STAGE_MAX = {limits.VARIANTS_PER_STAGE_MAX}"
        yield Problem(f"{place}.variants", f"{count} variants are {over}; keep those that differ most")
    named = {each.name: each for each in variants}
    for name, times in Counter(each.name for each in variants).items():
        if times > 1:
            yield Problem(f"{place}.variants", f"{times} are called {name!r}; give each a name of its own")
    if stage.variant and stage.variant not in named:
        hint = suggestions.of(stage.variant, named) if named else "; the stage has none"
        yield Problem(f"{place}.variant", f"no variant is called {stage.variant!r}{hint}")
    for index, variant in enumerate(variants):
        yield from _one(f"{place}.variants[{index}]", variant, variants[index - 1] if index else None)
    if variants and _numbers(stage, stage.least_quality) and not allowed(stage):
        yield Problem(f"{place}.least_quality", _too_much(stage, stage.least_quality))


def _one(place: str, variant: Variant, better: Variant | None) -> Iterator[Problem]:
    if fault := name_fault(variant.name):
        yield Problem(f"{place}.name", fault)
    if fault := number_fault(variant.quality, at_most=1.0):
        yield Problem(f"{place}.quality", fault)
    elif better is not None and not number_fault(better.quality) and variant.quality > better.quality:
        what = f"is {variant.quality:g}, more than the {better.quality:g} of {better.name!r} before it; list the best first"
        yield Problem(f"{place}.quality", what)
    if fault := number_fault(variant.seconds):
        yield Problem(f"{place}.seconds", fault)
    if OUTPUTS_PARAM in variant.params:
        what = f"names other outputs with {OUTPUTS_PARAM}, and all variants have the same ports; leave it to the stage"
        yield Problem(f"{place}.params.{OUTPUTS_PARAM}", what)


def floor_problems(stages: Iterable[StageSpec], least_quality: float) -> Iterator[Problem]:
    """What a job asks for, and no variant of some stage has."""
    if fault := number_fault(least_quality, at_most=1.0):
        yield Problem("least_quality", fault)
        return
    for stage in stages:
        # What a stage asks for itself is told with the stage.
        if stage.variants and _numbers(stage, least_quality) and allowed(stage) and not allowed(stage, least_quality):
            yield Problem("least_quality", f"{_too_much(stage, least_quality)}, or give {stage.id} a better one")


def _numbers(stage: StageSpec, least: float) -> bool:
    """Whether qualities can be compared; what is no number is told where it stands."""
    given = (least, stage.least_quality, *(each.quality for each in stage.variants))
    return not any(number_fault(each) for each in given)


def _too_much(stage: StageSpec, least: float) -> str:
    best = max(each.quality for each in stage.variants)
    return f"asks for {least:g}, and the best variant of {stage.id} has {best:g}; ask for less"
