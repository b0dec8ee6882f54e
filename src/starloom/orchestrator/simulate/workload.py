"""Random nodes, and random constellations with conditions, joins, policies and failures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from starloom.agents.values import digest
from starloom.dag.constellation import (
    Bounds,
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    OnFailure,
    OutputBinding,
    Policy,
    Requirements,
    Retry,
    StageSpec,
    Straggler,
    Tier,
    Variant,
)
from starloom.dag.facts import JobOptions
from starloom.dag.ids import AgentId, StageId
from starloom.dag.values import Port, PortType, ValueRef
from starloom.devices.node import NodeProfile, Target
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import BYTES, KINDS, STREAMING, gives, takes

TIERS = (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)
LOOKS_BACK = 24
LAYERS = 50
"""A stage's upstreams are among the last LOOKS_BACK stages before it, or one LAYERS-th of all, if that is more."""
GROWING = {"sim.work": "sim.loop", "sim.blob": "sim.grow", "sim.read": "sim.find"}
"""Kinds, and those that take their places where stages grow."""
GROWING_MAX = 12
"""So many stages of a job grow: for each the judge looks at all of the job."""


class Work(NamedTuple):
    """What a client is to submit."""

    constellation: Constellation
    inputs: dict[str, ValueRef]
    options: JobOptions


def nodes(chance: Chance, count: int) -> list[NodeProfile]:
    """Nodes on all tiers, as far as `count` goes."""
    found = []
    for index in range(count):
        tier = TIERS[index] if index < len(TIERS) else chance.pick(TIERS)
        found.append(
            NodeProfile(
                name=AgentId(f"{tier}-{index}"),
                tier=tier,
                targets=(Target(name="cpu"),),
                memory_bytes=2**30,
                slots=1 + chance.below(4),
                kinds=tuple(KINDS),
            )
        )
    return found


def work(chance: Chance, stages: int, name: str, tiers: int = len(TIERS)) -> Work:
    """A valid job of so many stages, of which about one in three has its own way of failing."""
    style = Style(chance, tiers)
    specs: dict[StageId, StageSpec] = {}
    arcs: list[Dependency] = []
    bindings: list[InputBinding] = []
    names = [StageId(f"s{index}") for index in range(stages)]
    back = max(LOOKS_BACK, stages // LAYERS)
    for index, stage in enumerate(names):
        before = names[max(0, index - back) : index]
        upstreams = chance.sample(before, chance.below(min(len(before), 3) + 1))
        spec = specs[stage] = style.stage(stage, index, upstreams, specs)
        arcs += [style.arc(specs, upstream, spec, number) for number, upstream in enumerate(upstreams)]
        if spec.kind in ("sim.blob", "sim.grow") and chance.happens(0.2):
            bindings.append(InputBinding(source="data", downstream=stage, input="given"))
    style.feed(specs, arcs)
    outputs = {}
    for stage in chance.sample(names[-LOOKS_BACK:], 1 + chance.below(4)):
        outputs[f"o-{stage}"] = OutputBinding(upstream=stage, output=output_of(specs[stage]))
    constellation = Constellation(
        name=name,
        stages=specs,
        dependencies=tuple(arcs),
        inputs={"data": BYTES},
        bindings=tuple(bindings),
        outputs=outputs,
    )
    inputs = {"data": ValueRef(type=PortType.BYTES, bytes=50_000, digest=digest(name.encode()))}
    options = JobOptions(
        priority=chance.below(3), max_parallel=1 + chance.below(8) if stages <= 200 and chance.happens(0.3) else 0
    )
    return Work(constellation, inputs, options)


def hurried(chance: Chance, given: Work) -> Work:
    """The same, and perhaps with deadlines, of the job or of some of its stages, and with copies of those that run too long."""
    constellation, options = given.constellation, given.options
    if chance.happens(0.1):
        options = msgspec.structs.replace(options, deadline_seconds=chance.pick((6.0, 15.0, 40.0)))
    if chance.happens(0.3):
        stages = dict(constellation.stages)
        for name in chance.sample(list(stages), 1 + len(stages) // 10):
            policy = msgspec.structs.replace(stages[name].policy, deadline_seconds=chance.pick((2.0, 6.0, 20.0)))
            stages[name] = msgspec.structs.replace(stages[name], policy=policy)
        constellation = msgspec.structs.replace(constellation, stages=stages)
    if chance.happens(0.4):
        straggler = Straggler(factor=chance.pick((1.0, 1.5, 3.0)), after_seconds=chance.pick((0.2, 1.0)))
        stages = dict(constellation.stages)
        alone = [name for name, spec in stages.items() if spec.kind not in STREAMING]
        for name in chance.sample(alone, 1 + len(stages) // 2):
            policy = msgspec.structs.replace(stages[name].policy, straggler=straggler)
            stages[name] = msgspec.structs.replace(stages[name], policy=policy)
        constellation = msgspec.structs.replace(constellation, stages=stages)
    return Work(constellation, given.inputs, options)


def variants(chance: Chance, tiers: Sequence[Tier]) -> tuple[Variant, ...]:
    """Two or three ways to compute a stage, the best of them perhaps on one of these tiers only."""
    bound = bool(tiers) and chance.happens(0.6)
    best = Variant(name="best", quality=0.9, requires=Requirements(tiers=(chance.pick(tiers),) if bound else ()))
    worse = (
        Variant(name=f"less-{index}", quality=0.9 - 0.3 * index, params={"pace": 0.5**index})
        for index in range(1, 2 + chance.below(2))
    )
    return (best, *worse)


def varied(chance: Chance, given: Work, tiers: int = len(TIERS), share: float = 0.25) -> Work:
    """The same, or in a `share` of jobs with stages that can be computed in several ways, the best of them not everywhere."""
    if not chance.happens(share):
        return given
    stages = dict(given.constellation.stages)
    alike = [name for name, spec in stages.items() if spec.kind not in STREAMING and not KINDS[spec.kind].grows]
    for name in chance.sample(alike, 1 + len(alike) // 2):
        spec = stages[name]
        found = variants(chance, () if spec.requires.tiers else TIERS[:tiers])
        least = chance.pick((0.0, 0.0, 0.5))
        stages[name] = msgspec.structs.replace(spec, variants=found, least_quality=least)
    return given._replace(constellation=msgspec.structs.replace(given.constellation, stages=stages))


def plain(chance: Chance, given: Work) -> Work:
    """The same, or in half of all jobs one in which most stages go on only if what is before them succeeds: such go ahead."""
    if chance.happens(0.5):
        return given
    constellation = given.constellation
    stages = dict(constellation.stages)
    for name, spec in stages.items():
        if chance.happens(0.8):
            policy = msgspec.structs.replace(spec.policy, on_failure=OnFailure.FAIL, defaults={})
            stages[name] = msgspec.structs.replace(spec, policy=policy, params={**spec.params, "fails": False})
    arcs = tuple(
        msgspec.structs.replace(arc, on=On.SUCCESS) if arc.on is On.COMPLETION and chance.happens(0.7) else arc
        for arc in constellation.dependencies
    )
    constellation = msgspec.structs.replace(constellation, stages=stages, dependencies=arcs)
    return Work(constellation, given.inputs, msgspec.structs.replace(given.options, max_parallel=0))


class Style:
    """How one job's stages are: drawn once, so that jobs differ. `tiers`: where they may be bound to."""

    def __init__(self, chance: Chance, tiers: int) -> None:
        self._chance = chance
        self.tiers = TIERS[:tiers]
        self._any = chance.happens(0.3)
        self._failing = chance.pick((0.0, 0.02, 0.06))
        self._hard = chance.happens(0.15)
        self._seconds = chance.pick((0.05, 0.3, 1.2))
        self._copies = chance.pick((0, 1, 1, 2))
        self._grows = chance.pick((0.0, 0.0, 0.1, 0.25))
        self._growing = 0

    def stage(self, name: StageId, index: int, upstreams: list[StageId], specs: dict[StageId, StageSpec]) -> StageSpec:
        chance = self._chance
        kind = chance.pick(("sim.work", "sim.blob", "sim.blob", "sim.judge"))
        if upstreams and gives(specs[upstreams[0]].kind) is BYTES and chance.happens(0.3):
            kind = "sim.read"
        if self._growing < GROWING_MAX and kind in GROWING and chance.happens(self._grows):
            kind = GROWING[kind]
            self._growing += 1
        fails = chance.happens(self._failing)
        params = {"seed": index, "seconds": round(self._seconds * chance.between(0.2, 2.0), 4), "fails": fails}
        if kind == "sim.judge":
            params["score"] = index % 3
        elif "size" in KINDS[kind].params:
            params["size"] = 20_000 + chance.below(2_000_000)
        if KINDS[kind].grows:
            params |= self._growth(kind)
        return StageSpec(
            id=name,
            kind=kind,
            params=params,
            requires=Requirements(tiers=(chance.pick(self.tiers),) if chance.happens(0.2) else ()),
            policy=self.policy(kind),
            join=Join.ANY
            if self._any and len(upstreams) > 1 and not KINDS[kind].inputs and chance.happens(0.3)
            else Join.ALL,
        )

    def _growth(self, kind: str) -> dict[str, Any]:
        """How a stage grows: by regions, by rounds, or by both."""
        chance = self._chance
        adds, rounds = 1 + chance.below(3), 1 + chance.below(4)
        match kind:
            case "sim.find":
                return {"adds": adds}
            case "sim.loop":
                return {"rounds": rounds}
        return chance.pick(({"adds": adds}, {"adds": adds}, {"rounds": rounds}, {"adds": adds, "rounds": 1}, {}))

    def feed(self, specs: dict[StageId, StageSpec], arcs: Sequence[Dependency]) -> None:
        """Some of the stages that grow are told of a consumer, and give it more."""
        for name, spec in list(specs.items()):
            if spec.kind not in ("sim.find", "sim.grow") or spec.params.get("rounds"):
                continue
            read = (arc.downstream for arc in arcs if arc.upstream == name)
            fits = [each for each in read if _takes_more(specs[each].kind, gives(spec.kind))]
            if fits and (not spec.params.get("adds") or self._chance.happens(0.3)):
                params = {**spec.params, "feeds": self._chance.pick(fits)}
                specs[name] = msgspec.structs.replace(spec, params=params)

    def policy(self, kind: str) -> Policy:
        """How a stage of a kind meets trouble."""
        policy = self._trouble(kind)
        if not KINDS[kind].grows or not self._chance.happens(0.3):
            return policy
        bounds = Bounds(stages=1 + self._chance.below(8), generations=1 + self._chance.below(4))
        return msgspec.structs.replace(policy, grow=bounds)

    def _trouble(self, kind: str) -> Policy:
        chance = self._chance
        retry = Retry(times=chance.below(4), first_seconds=0.05)
        timeout = chance.pick((0.0, 0.0, 20.0))
        bytes_ = gives(kind) is BYTES
        copies = self._copies if bytes_ and chance.happens(0.7) else 0
        if self._hard and chance.happens(0.5):
            return Policy(retry=retry, timeout_seconds=timeout, replicate=copies)
        if not bytes_ and chance.happens(0.4):
            defaults = {"value": {"score": chance.below(3)}}
            return Policy(retry=retry, timeout_seconds=timeout, on_failure=OnFailure.DEFAULT, defaults=defaults)
        return Policy(retry=retry, timeout_seconds=timeout, on_failure=OnFailure.SKIP, replicate=copies)

    def arc(self, specs: dict[StageId, StageSpec], upstream: StageId, spec: StageSpec, number: int) -> Dependency:
        chance = self._chance
        kind = specs[upstream].kind
        fits = gives(kind) is takes(spec.kind)
        names = {}
        if KINDS[spec.kind].inputs:
            if number == 0:
                names = {"output": "data", "input": "data"}
        elif fits and chance.happens(0.8):
            names = {"output": output_of(specs[upstream]), "input": f"from_{upstream}"}
        on = chance.pick((On.SUCCESS, On.SUCCESS, On.SUCCESS, On.COMPLETION))
        comparison = None
        if kind in ("sim.judge", "sim.find", "sim.loop") and chance.happens(0.4):
            on = On.COMPARISON
            comparison = Comparison(output="value", path="score", operator=">=", value=chance.below(3))
        return Dependency(upstream=upstream, downstream=spec.id, on=on, comparison=comparison, **names)


def _takes_more(kind: str, port: Port) -> bool:
    return not KINDS[kind].inputs and takes(kind) is port


def output_of(spec: StageSpec) -> str:
    """The one output port of a stage."""
    return next(iter(KINDS[spec.kind].outputs))
