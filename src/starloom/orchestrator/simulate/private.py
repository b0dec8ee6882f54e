"""Jobs with private data, and by plain sets of tiers where it may be: what the real labels are judged by. It asks no code that it judges."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from starloom.dag.constellation import Constellation, Private, Requirements, StageSpec, Tier
from starloom.dag.ids import StageId
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import KINDS
from starloom.orchestrator.simulate.workload import Work, output_of

SHARE: Final = 0.25
"""So many of all jobs have private data."""
Tiers = frozenset[Tier]
EVERYWHERE: Final[Tiers] = frozenset(Tier)
OF: Final[Mapping[Private | None, Tiers]] = MappingProxyType(
    {
        None: EVERYWHERE,
        Private.DEVICE: frozenset({Tier.DEVICE}),
        Private.EDGE: frozenset({Tier.DEVICE, Tier.EDGE}),
    }
)


def labelled(chance: Chance, given: Work) -> Work:
    """The same job, or in some of all one with private data: of its input, of stages or of what they give."""
    if not chance.happens(SHARE):
        return given
    constellation = given.constellation
    levels = (Private.DEVICE, Private.EDGE, Private.EDGE)
    stages = dict(constellation.stages)
    for name in chance.sample(list(stages), 1 + len(stages) // 10):
        level = chance.pick(levels)
        said = level if chance.happens(0.5) else {output_of(stages[name]): level}
        stages[name] = msgspec.structs.replace(stages[name], private=said)
    for name in chance.sample(list(stages), 1 + len(stages) // 5):
        stages[name] = msgspec.structs.replace(stages[name], declassify=chance.happens(0.7))
    private = {"data": chance.pick(levels)} if chance.happens(0.6) else {}
    made = msgspec.structs.replace(constellation, stages=stages, private=private)
    for name, tiers in reading(made).items():
        required = stages[name].requires.tiers
        if required and not tiers & said_of(stages[name]) & set(required):
            stages[name] = msgspec.structs.replace(stages[name], requires=Requirements())
    return Work(msgspec.structs.replace(made, stages=stages), given.inputs, given.options)


def said_of(spec: StageSpec) -> Tiers:
    """Where a stage says of itself, and of what it gives, that it may be."""
    found = EVERYWHERE
    for level in spec.private.values() if isinstance(spec.private, dict) else (spec.private,):
        found &= OF[level]
    return found


def given_by(spec: StageSpec, reads: Tiers, port: str) -> Tiers:
    """Where an output may be, of a stage that reads what may be there."""
    if isinstance(spec.private, dict):
        own, whole = OF[spec.private.get(port)], EVERYWHERE
    else:
        own, whole = EVERYWHERE, OF[spec.private]
    frees = KINDS[spec.kind].declassifies if spec.declassify is None else spec.declassify
    return own & (EVERYWHERE if frees else reads) & (EVERYWHERE if spec.declassify else whole)


def reading(constellation: Constellation) -> dict[StageId, Tiers]:
    """For each stage, where all that it may read may be: looked at again until nothing changes."""
    stages = constellation.stages
    reads = dict.fromkeys(stages, EVERYWHERE)
    for binding in constellation.bindings:
        reads[binding.downstream] &= OF[constellation.private.get(binding.source)]
    before = None
    while before != reads:
        before = dict(reads)
        for arc in constellation.dependencies:
            if arc.output:
                reads[arc.downstream] &= given_by(stages[arc.upstream], reads[arc.upstream], arc.output)
    return reads


def adding(constellation: Constellation, stage: StageId) -> Private | None:
    """How private what a stage adds to its job is: as all that it gives."""
    if not has_labels(constellation):
        return None
    spec, reads = constellation.stages[stage], reading(constellation)[stage]
    ports = spec.private if isinstance(spec.private, dict) else ("",)
    return level_of(frozenset.intersection(*(given_by(spec, reads, port) for port in ports)))


def has_labels(constellation: Constellation) -> bool:
    """Whether something of it is private."""
    return bool(constellation.private) or any(spec.private for spec in constellation.stages.values())


def level_of(tiers: Tiers) -> Private | None:
    """The level that says so."""
    return next(level for level, allowed in OF.items() if allowed == tiers)
