"""Several constellations as one, for a plan of all on the same nodes: disjoint, each name with its job's before it. Pure."""

from collections.abc import Mapping
from itertools import count

import msgspec

from starloom.dag.constellation import Constellation, Spread, StageSpec
from starloom.dag.ids import StageId


def named(constellations: list[Constellation]) -> dict[str, Constellation]:
    """By their names, a second one of the same name as `name-2`."""
    found: dict[str, Constellation] = {}
    for each in constellations:
        tries = (each.name if number == 1 else f"{each.name}-{number}" for number in count(1))
        found[next(name for name in tries if name not in found)] = each
    return found


def joined(jobs: Mapping[str, Constellation]) -> Constellation:
    """One constellation with the stages, inputs and outputs of all, as `job.stage`; for plans alone: documents have no such names."""
    return Constellation(
        name="+".join(jobs),
        stages={
            _id(job, name): _spec(job, spec, each.least_quality)
            for job, each in jobs.items()
            for name, spec in each.stages.items()
        },
        dependencies=tuple(
            msgspec.structs.replace(arc, upstream=_id(job, arc.upstream), downstream=_id(job, arc.downstream))
            for job, each in jobs.items()
            for arc in each.dependencies
        ),
        inputs={f"{job}.{name}": port for job, each in jobs.items() for name, port in each.inputs.items()},
        private={f"{job}.{name}": tier for job, each in jobs.items() for name, tier in each.private.items()},
        bindings=tuple(
            msgspec.structs.replace(each, source=f"{job}.{each.source}", downstream=_id(job, each.downstream))
            for job, whole in jobs.items()
            for each in whole.bindings
        ),
        outputs={
            f"{job}.{name}": msgspec.structs.replace(output, upstream=_id(job, output.upstream))
            for job, each in jobs.items()
            for name, output in each.outputs.items()
        },
    )


def _id(job: str, stage: str) -> StageId:
    return StageId(f"{job}.{stage}")


def _spec(job: str, spec: StageSpec, least_quality: float) -> StageSpec:
    spread = spec.spread
    return msgspec.structs.replace(
        spec,
        id=_id(job, spec.id),
        least_quality=max(spec.least_quality, least_quality),
        colocate=_within(job, spec.colocate),
        spread=None if spread is None else _spread(job, spread),
    )


def _spread(job: str, spread: Spread) -> Spread:
    return msgspec.structs.replace(spread, group=_within(job, spread.group))


def _within(job: str, group: str) -> str:
    return f"{job}.{group}" if group else ""
