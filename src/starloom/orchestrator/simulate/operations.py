"""Random operations on a job, as its clients know it: most can be done, some cannot."""

from collections.abc import Callable, Sequence

import msgspec

from starloom.dag.constellation import (
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    OutputBinding,
    Preference,
    Preferences,
    Private,
    Requirements,
    StageSpec,
)
from starloom.dag.ids import StageId
from starloom.dag.patch import (
    Add,
    AnyOperation,
    CancelStage,
    Move,
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
)
from starloom.dag.stagestate import StageStatus
from starloom.dag.values import PortType
from starloom.orchestrator.simulate.jobview import JobView
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import BYTES, JSON, KINDS, gives, takes
from starloom.orchestrator.simulate.private import has_labels
from starloom.orchestrator.simulate.workload import LOOKS_BACK, Style, output_of, variants

Operations = list[AnyOperation]


class OperationDrawer:
    """Draws what one client's patches change. `tiers` is how many there are in the fleet.

    `aside` is for what patches have beside all else, so that a seed's other draws stay as they were.
    """

    def __init__(self, chance: Chance, aside: Chance, tiers: int) -> None:
        self._chance = chance
        self._aside = aside
        self._style = Style(chance, tiers)
        #: of the patch that is drawn; what comes new in it differs by that from what came before
        self.number = 0

    def draw(self, job: JobView) -> Operations:
        """One change, of one operation or of a few that belong together; none where there is nothing to change so."""
        if self._chance.happens(0.08):
            return self._impossible(job)
        ways: Sequence[Callable[[JobView], Operations]] = (
            self._add,
            self._add,
            self._remove,
            self.replace,
            self.replace,
            self._rewire,
            self._rewire,
            self._redirect,
            self._order,
            self._move,
            self._policy,
            self._cancel,
            self._resume,
            self._splice,
            self._outputs,
        )
        return self._chance.pick(ways)(job)

    def _stage(self, job: JobView) -> StageSpec:
        """A stage: often one that was given out, more often any that is not known to have started; or one that has grown."""
        chance = self._chance
        if job.growths and chance.happens(0.2):
            return job.stages[chance.pick(list(job.growths))].spec
        given = [name for name, stage in job.stages.items() if stage.status is StageStatus.PLACED]
        waits = [name for name, stage in job.stages.items() if stage.status is StageStatus.PENDING]
        names = given if given and chance.happens(0.35) else [*given, *waits]
        if not names or chance.happens(0.2):
            names = list(job.stages)
        return job.stages[chance.pick(names)].spec

    def _before(self, job: JobView, stage: StageId, like: str = "") -> StageSpec | None:
        """A stage that comes before another, of the kinds that feed such a one; so most ways back are no cycles."""
        found: list[StageSpec] = []
        for name, view in job.stages.items():
            if name == stage:
                break
            if not like or _feeds(view.spec.kind, like):
                found.append(view.spec)
        return self._chance.pick(found[-2 * LOOKS_BACK :]) if found else None

    def _fresh(self, letter: str) -> StageId:
        """A name that is free, most often; now and then one that a stage may want to grow."""
        if self._chance.happens(0.04):
            return StageId(f"s{self._chance.below(15)}-{self._chance.below(2)}")
        return StageId(f"{letter}{self._chance.below(40)}")

    def _add(self, job: JobView) -> Operations:
        chance = self._chance
        specs = {name: view.spec for name, view in job.stages.items()}
        names = list(specs)
        stages: list[StageSpec] = []
        arcs: list[Dependency] = []
        outputs: dict[str, OutputBinding | None] = {}
        for _ in range(1 + chance.below(3)):
            name = self._fresh("n")
            if name in specs:
                continue
            upstreams = chance.sample(names[-2 * LOOKS_BACK :], chance.below(4))
            spec = self._style.stage(name, 1000 + self.number, upstreams, specs)
            specs[name] = spec
            names.append(name)
            stages.append(spec)
            arcs += [self._style.arc(specs, upstream, spec, number) for number, upstream in enumerate(upstreams)]
            if chance.happens(0.2):
                outputs[f"o-{name}"] = OutputBinding(upstream=name, output=output_of(spec))
        found: Operations = [Add(stages=tuple(stages), dependencies=tuple(arcs))] if stages else []
        return [*found, SetOutputs(outputs=outputs)] if outputs else found

    def _remove(self, job: JobView) -> Operations:
        """A stage goes; what it feeds gets something else, or nothing."""
        stage = self._stage(job).id
        found: Operations = []
        for arc in job.downstreams[stage]:
            consumer = job.stages[arc.downstream].spec
            if not arc.output:
                found.append(Rewire(stage=consumer.id, frees=(arc,)))
            elif not KINDS[consumer.kind].inputs:
                found.append(Rewire(stage=consumer.id, unfed=(arc.input,)))
            elif other := self._before(job, stage, consumer.kind):
                fed = msgspec.structs.replace(arc, upstream=other.id)
                found.append(Rewire(stage=consumer.id, dependencies=(fed,)))
        declared: dict[str, OutputBinding | None] = {
            name: None for name, output in job.constellation.outputs.items() if output.upstream == stage
        }
        if declared:
            found.append(SetOutputs(outputs=declared))
        return [*found, Remove(stage=stage)]

    def replace(self, job: JobView) -> Operations:
        """A stage computes something else."""
        chance = self._chance
        spec = self._stage(job)
        params = {**spec.params, "seed": 1000 * self.number + chance.below(1000), "fails": chance.happens(0.05)}
        kind = spec.kind
        if KINDS[kind].grows:
            params |= {chance.pick(("adds", "rounds")): chance.below(4)}
        if kind in ("sim.work", "sim.judge") and chance.happens(0.3):
            kind = "sim.work" if kind == "sim.judge" else "sim.judge"
        if kind == "sim.judge":
            params["score"] = chance.below(3)
        else:
            params.pop("score", None)
        return [Replace(stage=spec.id, kind=kind if chance.happens(0.5) or kind != spec.kind else "", params=params)]

    def _rewire(self, job: JobView) -> Operations:
        """Another source for an input that has one, or one more."""
        chance = self._chance
        spec = self._stage(job)
        if takes(spec.kind) is BYTES and not KINDS[spec.kind].inputs and chance.happens(0.15):
            binding = InputBinding(source="data", downstream=spec.id, input="given")
            bound = binding in job.constellation.bindings
            return [Rewire(stage=spec.id, unfed=("given",)) if bound else Rewire(stage=spec.id, bindings=(binding,))]
        upstream = self._before(job, spec.id, spec.kind)
        if upstream is None:
            return []
        ports = [arc.input for arc in job.upstreams[spec.id] if arc.output]
        port = chance.pick(ports) if ports and chance.happens(0.7) else f"from_{upstream.id}"
        if KINDS[spec.kind].inputs:
            port = "data"
        elif ports and chance.happens(0.15):
            return [Rewire(stage=spec.id, unfed=(port,))] if port in ports else []
        on = chance.pick((On.SUCCESS, On.SUCCESS, On.COMPLETION))
        arc = Dependency(upstream=upstream.id, downstream=spec.id, output=output_of(upstream), input=port, on=on)
        return [Rewire(stage=spec.id, dependencies=(arc,))]

    def _redirect(self, job: JobView) -> Operations:
        """All that reads a stage reads another instead, or two: one that is there, or that is added behind it."""
        chance = self._chance
        spec = self._stage(job)
        output = output_of(spec)
        others = [name for name, view in job.stages.items() if view.spec.kind == spec.kind and name != spec.id]
        found: Operations = []
        if others and chance.happens(0.3):
            names = chance.sample(others, 1 + chance.happens(0.3))
        else:
            names = [self._fresh("n")]
            behind = msgspec.structs.replace(self._style.stage(names[0], self.number, [], {}), kind=spec.kind)
            params = {name: value for name, value in behind.params.items() if name in ("seed", "seconds")}
            arc = Dependency(upstream=spec.id, downstream=names[0], output=output, input="from_it")
            if KINDS[spec.kind].inputs:
                return []
            policy = self._style.policy(spec.kind)
            behind = msgspec.structs.replace(behind, params=params, policy=policy)
            found = [Add(stages=(behind,), dependencies=(arc,))]
        sources = tuple(OutputBinding(upstream=name, output=output) for name in names)
        return [*found, Redirect(stage=spec.id, output=output, sources=sources)]

    def _order(self, job: JobView) -> Operations:
        """A stage waits for another one, or for fewer; or for any of them in place of all."""
        chance = self._chance
        spec = self._stage(job)
        waits = [arc for arc in job.upstreams[spec.id] if not arc.output]
        if waits and chance.happens(0.3):
            return [Rewire(stage=spec.id, frees=(chance.pick(waits),))]
        if waits and chance.happens(0.15):
            return [Rewire(stage=spec.id, after=())]
        if chance.happens(0.1):
            return [Rewire(stage=spec.id, join=Join.ANY if spec.join is Join.ALL else Join.ALL)]
        upstream = self._before(job, spec.id)
        if upstream is None:
            return []
        arc = self._style.arc({upstream.id: upstream}, upstream.id, spec, 1)
        return [Rewire(stage=spec.id, waits=(msgspec.structs.replace(arc, output="", input=""),))]

    def _move(self, job: JobView) -> Operations:
        spec = self._stage(job)
        tiers = (self._chance.pick(self._style.tiers),) if self._chance.happens(0.7) else ()
        return [Move(stage=spec.id, requires=Requirements(tiers=tiers))]

    def _policy(self, job: JobView) -> Operations:
        spec = self._stage(job)
        policy = self._style.policy(spec.kind)
        limit = self._chance.pick((0.0, 0.0, 0.0, 0.0, 2.0, 6.0, 20.0))
        return [SetPolicy(stage=spec.id, policy=msgspec.structs.replace(policy, deadline_seconds=limit))]

    def beside(self, job: JobView) -> Operations:
        """Where stages may and had better stand: where there are labels, a stage is private otherwise, or not any more."""
        chance = self._aside
        found: Operations = []
        if has_labels(job.constellation) and chance.happens(0.1):
            spec = job.stages[chance.pick(list(job.stages))].spec
            level = chance.pick((Private.DEVICE, Private.EDGE))
            private = chance.pick((None, None, level, {output_of(spec): level}))
            found.append(SetPrivacy(stage=spec.id, private=private, declassify=chance.pick((None, None, True, False))))
        if chance.happens(0.05):
            places = (Preference(tiers=(chance.pick(self._style.tiers),), seconds=chance.between(0.1, 2.0)),)
            prefers = chance.pick((Preferences(prefer=places), Preferences(avoid=places), Preferences()))
            found.append(SetPreferences(stage=chance.pick(list(job.stages)), prefers=prefers))
        if chance.happens(0.05):
            ways = chance.pick((variants(chance, self._style.tiers), ()))
            found.append(SetVariants(stage=chance.pick(list(job.stages)), variants=ways))
        return found

    def _cancel(self, job: JobView) -> Operations:
        return [CancelStage(stage=self._stage(job).id)]

    def _resume(self, job: JobView) -> Operations:
        names = [name for name, stage in job.stages.items() if stage.spec.cancelled]
        return [ResumeStage(stage=self._chance.pick(names))] if names else []

    def _splice(self, job: JobView) -> Operations:
        """A line of two stages between a stage and one before it."""
        chance = self._chance
        spec = self._stage(job)
        upstream = self._before(job, spec.id, spec.kind)
        if upstream is None:
            return []
        blob = gives(upstream.kind) is BYTES
        inner = _line("sim.blob" if blob else "sim.work", 1000 + self.number, round(chance.between(0.01, 0.6), 4))
        port = "data" if KINDS[spec.kind].inputs else f"from_{upstream.id}"
        source = "$data" if blob and chance.happens(0.2) else f"{upstream.id}.{output_of(upstream)}"
        outputs: dict[str, tuple[str, ...]] = {"out": (f"{spec.id}.{port}",)} if chance.happens(0.8) else {}
        return [Splice(prefix=self._fresh("q"), constellation=inner, inputs={"in": source}, outputs=outputs)]

    def _outputs(self, job: JobView) -> Operations:
        known = job.constellation.outputs
        if known and self._chance.happens(0.3):
            return [SetOutputs(outputs={self._chance.pick(list(known)): None})]
        spec = self._stage(job)
        output = OutputBinding(upstream=spec.id, output=output_of(spec))
        return [SetOutputs(outputs={f"o-{spec.id}": output})]

    def _impossible(self, job: JobView) -> Operations:
        """What has to be refused, at least if nothing else is done with it."""
        spec = self._stage(job)
        arcs = job.upstreams[spec.id]
        other = arcs[0].upstream if arcs else spec.id
        return [self._chance.pick(_impossible(spec, other))]


def _impossible(spec: StageSpec, other: StageId) -> Sequence[AnyOperation]:
    """What cannot be done to a stage, or between it and one that it comes after, or is."""
    mistyped = Dependency(upstream=spec.id, downstream=other, output="nothing", input="from_nowhere")
    return (
        Rewire(stage=other, waits=(Dependency(upstream=spec.id, downstream=other),)),
        Rewire(stage=other, dependencies=(mistyped,)),
        Move(stage=StageId("nowhere"), requires=Requirements()),
        Move(stage=spec.id, requires=Requirements(labels={"there": "is none"})),
        Replace(stage=spec.id, params=spec.params),
        Replace(stage=spec.id, kind="sim.unknown"),
        Add(stages=(spec,)),
        SetOutputs(outputs={"o-none": None}),
        Splice(prefix="-", constellation=_line("sim.work", 0, 0.1)),
    )


def _feeds(kind: str, consumer: str) -> bool:
    """Whether what a kind gives is what another takes."""
    return gives(kind) is takes(consumer)


def _line(kind: str, seed: int, seconds: float) -> Constellation:
    """Two stages, one behind the other, with an input and an output."""
    output = next(iter(KINDS[kind].outputs))
    port = JSON if KINDS[kind].outputs[output].type is PortType.JSON else BYTES
    params = {"seed": seed, "seconds": seconds, "fails": False}
    specs = [
        StageSpec(id=StageId(name), kind=kind, params={**params, "size": 30_000} if port is BYTES else params)
        for name in ("a", "b")
    ]
    arc = Dependency(upstream=specs[0].id, downstream=specs[1].id, output=output, input="from_a")
    return Constellation(
        name="line",
        stages={spec.id: spec for spec in specs},
        dependencies=(arc,),
        inputs={"in": port},
        bindings=(InputBinding(source="in", downstream=specs[0].id, input="from_in"),),
        outputs={"out": OutputBinding(upstream=specs[1].id, output=output)},
    )
