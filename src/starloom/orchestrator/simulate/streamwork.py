"""Random jobs in which stages stream into each other: lines, fans and diamonds beside what else a job has."""

import msgspec

from starloom.dag.constellation import Dependency, OnFailure, OutputBinding, Policy, Retry, StageSpec
from starloom.dag.ids import StageId
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import KINDS
from starloom.orchestrator.simulate.workload import Work

SHARE = 0.3
"""So many of all jobs have stages with streams."""
SHAPES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("sim.ticks",), ("sim.sum", "f0")),
    (("sim.ticks",), ("sim.map", "f0"), ("sim.sum", "f1")),
    (("sim.ticks",), ("sim.map", "f0"), ("sim.map", "f1"), ("sim.sum", "f2")),
    (("sim.ticks",), ("sim.sum", "f0"), ("sim.sum", "f0")),
    (("sim.ticks",), ("sim.map", "f0"), ("sim.sum", "f0"), ("sim.sum", "f1")),
    (("sim.ticks",), ("sim.map", "f0"), ("sim.map", "f0"), ("sim.sum", "f1", "f2")),
    (("sim.ticks",), ("sim.ticks",), ("sim.map", "f0"), ("sim.sum", "f1", "f2")),
)
"""Of each stage its kind, and the stages whose streams it reads."""


def streamed(chance: Chance, given: Work) -> Work:
    """The same job, or in some of all one with some stages more, which stream into each other."""
    if not chance.happens(SHARE):
        return given
    constellation = given.constellation
    stages, arcs = dict(constellation.stages), list(constellation.dependencies)
    seconds = chance.pick((0.05, 0.3, 1.2))
    feeding = [name for name, spec in stages.items() if spec.kind in ("sim.work", "sim.judge")]
    outputs = dict(constellation.outputs)
    for index, (kind, *upstreams) in enumerate(chance.pick(SHAPES)):
        name = StageId(f"f{index}")
        stages[name] = _stage(chance, name, kind, seconds)
        for upstream in map(StageId, upstreams):
            port = "data" if KINDS[kind].inputs else f"from_{upstream}"
            arcs.append(Dependency(upstream=upstream, downstream=name, output="data", input=port))
        if kind == "sim.ticks" and feeding and chance.happens(0.5):
            before = chance.pick(feeding)
            arcs.append(Dependency(upstream=before, downstream=name, output="value", input=f"from_{before}"))
        if kind == "sim.sum":
            after = StageId(f"g{index}")
            stages[after] = _stage(chance, after, "sim.work", seconds)
            arcs.append(Dependency(upstream=name, downstream=after, output="value", input=f"from_{name}"))
            outputs[f"o-{name}"] = OutputBinding(upstream=name, output="value")
    made = msgspec.structs.replace(constellation, stages=stages, dependencies=tuple(arcs), outputs=outputs)
    return Work(made, given.inputs, given.options)


def _stage(chance: Chance, name: StageId, kind: str, seconds: float) -> StageSpec:
    params = {"seed": chance.below(1000), "seconds": round(seconds * chance.between(0.2, 2.0), 4)}
    params["fails"] = chance.happens(0.02)
    if kind == "sim.ticks":
        params["chunks"] = chance.below(12)
    policy = Policy(
        retry=Retry(times=chance.below(4), first_seconds=0.05),
        timeout_seconds=chance.pick((0.0, 0.0, 20.0)),
        on_failure=chance.pick((OnFailure.SKIP, OnFailure.SKIP, OnFailure.FAIL)),
    )
    return StageSpec(id=name, kind=kind, params=params, policy=policy)
