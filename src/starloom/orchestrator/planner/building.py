"""A constellation and a fleet as a problem of the planner.

    built = build(constellation, kinds, fleet)
    built.problem.stages    # the constellation's, then what each input is fed from and each output is taken to

A job's inputs lie in the job store and its outputs go there: it is a place of its own, on which no stage runs. What a
stage takes is what was measured, or else its kind's hint, or what its parameters say, divided by the speed of the
target. What streams is not waited for: a stage that reads a stream may start with the one that writes it.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec
import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import Constellation, Preference, Preferences, Spread, StageSpec, Tier, Variant
from starloom.dag.expectation import Expectation, expectation
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.privacy import labels_of
from starloom.dag.streams import is_stream
from starloom.dag.values import PortType
from starloom.dag.variants import chosen
from starloom.orchestrator.feasible import dislike_seconds, dislikes, misfits
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.planner import linking
from starloom.orchestrator.planner.bills import Rates
from starloom.orchestrator.planner.problem import NO_MODEL, Flags, Floats, Indices, Place, Plan, Problem, problem
from starloom.orchestrator.planner.uplinks import of_fleet, shared

_SECONDS_PER_HOUR: Final = 3_600.0
STORE: Final = Place(node="", target="job store")
"""Where a job's inputs are, and its outputs go."""

USUAL_BYTES: Final[Mapping[PortType, int]] = MappingProxyType(
    {
        PortType.TENSOR: 65_536,
        PortType.TEXT: 1_024,
        PortType.BYTES: 65_536,
        PortType.IMAGE: 1_000_000,
        PortType.AUDIO: 200_000,
        PortType.JSON: 4_096,
    }
)
"""What a value of each type is taken to have where nothing tells: orders of magnitude, no promise."""


class Built(NamedTuple):
    """A problem, and how it is read.

    `stages`: the constellation's, which come first. `excluded`: for each stage of the constellation, by index, what is said of
    places on which it may not run, and their indices. `disliked`: for each likewise, what its preferences say against
    places on which it may, by the index of the place. `private`: why the data of a stage may not go everywhere, with the way
    by which its label came; only of stages of which that is so. `rates`: what seconds and bytes take beside
    time. `variants`: of each stage that has any, which its places stand for, by their number.
    """

    problem: Problem
    stages: tuple[StageId, ...]
    excluded: tuple[Mapping[str, tuple[int, ...]], ...]
    disliked: tuple[Mapping[int, tuple[str, ...]], ...]
    private: Mapping[StageId, str]
    rates: Rates
    variants: Mapping[StageId, tuple[Variant, ...]] = MappingProxyType({})

    def variant(self, stage: int, place: int) -> Variant | None:
        """The variant that a place stands for; nothing for a stage that has none."""
        which = self.variants.get(self.stages[stage], ())
        return which[self.problem.places[place].variant] if which else None

    def named(self, stage: int, place: int) -> str:
        """A place, with the variant that the stage has there."""
        variant, what = self.variant(stage, place), self.problem.places[place]
        return str(what) if variant is None else f"{what._replace(variant=0)} as {variant.name}"


class Measured(NamedTuple):
    """What runs of a job have told, for use in place of hints; what it does not tell, the hints do.

    `run_seconds`: of a stage on a target of a node, by these three, without loading. `variant_seconds`: likewise of one that has
    several variants, and by the name of its variant. `output_bytes`: by stage and port.
    `stage_seconds`: what each stage takes beside its run, on whichever node: to be given out, begun and reported.
    """

    run_seconds: Mapping[tuple[StageId, str, str], float] = MappingProxyType({})
    output_bytes: Mapping[tuple[StageId, str], int] = MappingProxyType({})
    stage_seconds: float = 0.0
    variant_seconds: Mapping[tuple[StageId, str, str, str], float] = MappingProxyType({})


HINTS: Final = Measured()
"""Nothing was measured."""


def build(
    constellation: Constellation,
    kinds: Mapping[str, KindSpec],
    fleet: Fleet,
    input_bytes: Mapping[str, int] = MappingProxyType({}),
    measured: Measured = HINTS,
) -> Built:
    """The problem of placing a valid constellation; `input_bytes` of job inputs, where they are known."""
    return _Builder(constellation, kinds, fleet, measured).build(input_bytes)


def pinned(constellation: Constellation, built: Built, plan: Plan) -> Constellation:
    """The constellation with each stage required on the node and target that a plan has it on, in the plan's variant.

    Stages that were planned and that it does not have, as those which will be added by results, are left out.
    """

    def bind(spec: StageSpec, place: Place) -> StageSpec:
        requires = msgspec.structs.replace(spec.requires, node=place.node, target=place.target)
        return msgspec.structs.replace(spec, requires=requires)

    return _bound(constellation, built, plan, bind)


def preferred(constellation: Constellation, built: Built, plan: Plan) -> Constellation:
    """As `pinned`, with each stage's place as its first preference: it goes elsewhere if that is lost or full.

    It takes the place of preferences for other nodes, which the plan has weighed, and of the last if there are too many.
    """
    most = limits.PREFERENCES_PER_STAGE_MAX - 1

    def bind(spec: StageSpec, place: Place) -> StageSpec:
        here = Preference(node=place.node, target=place.target, seconds=limits.PLAN_SOFT_SECONDS)
        avoid = spec.prefers.avoid[:most]
        others = [said for said in spec.prefers.prefer if not said.node][: most - len(avoid)]
        prefers = Preferences(prefer=(here, *others), avoid=avoid)
        return msgspec.structs.replace(spec, prefers=prefers)

    return _bound(constellation, built, plan, bind)


def _bound(
    constellation: Constellation, built: Built, plan: Plan, bind: Callable[[StageSpec, Place], StageSpec]
) -> Constellation:
    stages = dict(constellation.stages)
    for index, name in enumerate(built.stages):
        if name in stages:
            at = int(plan.place[index])
            # What was planned may have fewer variants than what is bound: their numbers differ, their names do not.
            variant = built.variant(index, at)
            bound = bind(stages[name], built.problem.places[at])
            stages[name] = msgspec.structs.replace(bound, variant=variant.name if variant else "")
    return msgspec.structs.replace(constellation, stages=stages)


class _Builder:
    def __init__(
        self, constellation: Constellation, kinds: Mapping[str, KindSpec], fleet: Fleet, measured: Measured
    ) -> None:
        self._constellation = constellation
        self._fleet = fleet
        self._measured = measured
        self._stages = tuple(constellation.stages)
        self._kinds = {name: kinds[spec.kind] for name, spec in constellation.stages.items()}
        stages = [spec for spec in constellation.stages.values() if spec.spread is not None and not spec.cancelled]
        #: groups that stand apart, each as the first stage has it
        self._spreads = list({spec.spread.group: spec.spread for spec in reversed(stages) if spec.spread}.values())
        #: each stage as it is with each of its variants
        self._ways = {name: ways(spec) for name, spec in constellation.stages.items()}
        self._expected = {
            name: [expectation(spec, self._kinds[name]) for spec in each] for name, each in self._ways.items()
        }
        self._labels = labels_of(constellation, kinds)[0]
        #: kinds that load something, which is what takes the time of a first run
        self._loading = {kind.name: kind for kind in self._kinds.values() if kind.cost.load_seconds}
        # An accelerator runs one stage at a time.
        self._owned = [
            (node, Place(node.node.name, target, max(1, node.node.slots) if target == "cpu" else 1, variant))
            for variant in range(max(map(len, self._ways.values()), default=1))
            for node in fleet.nodes
            for target in node.node.targets
        ]

    def build(self, input_bytes: Mapping[str, int]) -> Built:
        ends = [f"input {name}" for name in self._constellation.inputs]
        ends += [f"output {name}" for name in self._constellation.outputs]
        n, m = len(self._stages) + len(ends), len(self._owned) + 1
        seconds, penalty, barred = np.full((n, m), np.inf), np.zeros((n, m)), np.full((n, m), np.inf)
        # What a job is given lies in the store, and what it gives goes there.
        seconds[len(self._stages) :, -1] = 0.0
        excluded = tuple(self._place(name, seconds[i], penalty[i], barred[i]) for i, name in enumerate(self._stages))
        numbers = {name: index for index, name in enumerate([*self._stages, *ends])}
        loading = list(self._loading)
        models = [
            loading.index(self._kinds[name].name) if self._kinds[name].cost.load_seconds else NO_MODEL
            for name in self._stages
        ]
        made = problem(
            list(numbers),
            [*(place for _, place in self._owned), STORE],
            seconds,
            self._dependencies(numbers, input_bytes),
            latency=linking.latency(self._fleet),
            seconds_per_byte=linking.seconds_per_byte(self._fleet),
            penalty=penalty,
            models=loading,
            model=[*models, *[NO_MODEL] * len(ends)],
            load_seconds=self._loads(),
            resident=self._resident(),
            weight_bytes=np.zeros(len(loading)),
            working_bytes=self._by_variant(n, lambda name, way: float(self._expected[name][way].memory_bytes)),
            variants=[*(len(self._ways[name]) for name in self._stages), *[1] * len(ends)],
            together=[*self._groups(), *[-1] * len(ends)],
            apart=[*self._apart(), *[-1] * len(ends)],
            zone=self._zones(),
            crowding=[spread.seconds or np.inf for spread in self._spreads],
            memory_bytes=[*(node.memory_bytes or np.inf for node in self._fleet.nodes), np.inf],
            tiers=[*(list(Tier).index(node.node.tier) for node in self._fleet.nodes), -1],
            charge=np.where(np.isfinite(seconds), self._charge(seconds, models), 0.0),
            store=[*(node.battery_joules for node in self._fleet.nodes), np.inf],
        )
        made = shared(made._replace(barred=barred), of_fleet(self._fleet))
        disliked = tuple(self._disliked(name, seconds[i]) for i, name in enumerate(self._stages))
        private = {name: str(self._labels.of(name)) for name in self._labels.levels}
        variants = {name: spec.variants for name, spec in self._constellation.stages.items() if spec.variants}
        lacks = self._by_variant(n, lambda name, way: 1 - variants[name][way].quality if name in variants else 0.0)
        return Built(made, self._stages, excluded, disliked, private, self._rates()._replace(loss=lacks), variants)

    def _by_variant(self, n: int, of: Callable[[StageId, int], float]) -> Floats:
        """[n, v] of each stage and variant; 0 where there is none."""
        found = np.zeros((n, max(map(len, self._ways.values()), default=1)))
        for index, name in enumerate(self._stages):
            for way in range(len(self._ways[name])):
                found[index, way] = of(name, way)
        return found

    def _place(self, name: StageId, seconds: Floats, penalty: Floats, barred: Floats) -> dict[str, tuple[int, ...]]:
        """Fills a stage's rows; what is said of places on which it may not run."""
        kind, ways = self._kinds[name], self._ways[name]
        excluded: dict[str, list[int]] = {}
        quality = self._unwanted(name)
        for number, (node, place) in enumerate(self._owned):
            if place.variant >= len(ways):
                continue
            spec = ways[place.variant]
            faults = list(misfits(node.profile, True, kind, spec.requires, self._labels.levels.get(name)))
            wanted = (spec.requires.target,) if spec.requires.target else kind.targets
            if not faults and place.target not in wanted:
                faults = [f"is its target {place.target}, and {kind.name} computes on {', '.join(wanted)}"]
            if not faults:
                faults = [*_unspread(node, spec.spread), *_endless(self._seconds(name, node, place))]
            for fault in faults:
                text = f"{fault}, for its variant {spec.variants[0].name}" if len(ways) > 1 else fault
                excluded.setdefault(text, []).append(number)
            if place.variant in quality:
                excluded.setdefault(quality[place.variant], []).append(number)
                barred[number] = self._seconds(name, node, place)
            elif not faults:
                seconds[number] = 0.0 if spec.cancelled else self._seconds(name, node, place)
                penalty[number] = dislike_seconds(node.profile, place.target, kind, spec.prefers)
        return {fault: tuple(places) for fault, places in excluded.items()}

    def _unwanted(self, name: StageId) -> dict[int, str]:
        """Why some variants of a stage may not be taken, by their numbers."""
        stage = self._constellation.stages[name]
        least, found = max(stage.least_quality, self._constellation.least_quality), {}
        for number, each in enumerate(stage.variants):
            if each.quality < least:
                found[number] = (
                    f"its variant {each.name} has a quality of {each.quality:g}, under the {least:g} asked for"
                )
            elif stage.variant and each.name != stage.variant:
                found[number] = f"its variant {each.name} is not {stage.variant}, which is asked for"
        return found

    def _rates(self) -> Rates:
        slots = np.array([place.slots for _, place in self._owned])
        watts = np.array([node.watts.get(place.target, 0.0) for node, place in self._owned]) / slots
        price = np.array([node.price_per_hour / _SECONDS_PER_HOUR for node, _ in self._owned]) / slots
        by_byte = (
            linking.usual(self._fleet, lambda link: link.joules_per_byte),
            linking.usual(self._fleet, lambda link: link.price_per_byte),
        )
        for each in by_byte:
            np.fill_diagonal(each, 0.0)
        return Rates(np.append(watts, 0.0), np.append(price, 0.0), *by_byte)

    def _charge(self, seconds: Floats, models: list[int]) -> Floats:
        """[n, m]: joules of each stage on each place. A model that is not there is taken to be loaded by each."""
        loads, resident = self._loads(), self._resident()
        numbers = {node.node.name: index for index, node in enumerate(self._fleet.nodes)}
        node = [*(numbers[place.node] for _, place in self._owned), len(numbers)]
        longest = seconds.copy()
        for stage, model in enumerate(models):
            if model != NO_MODEL:
                longest[stage] += np.where(resident[model][node], 0.0, loads[model])
        with np.errstate(invalid="ignore"):
            return longest * self._rates().watts[None, :]

    def _groups(self) -> list[int]:
        names = list(dict.fromkeys(spec.colocate for spec in self._constellation.stages.values() if spec.colocate))
        return [
            names.index(spec.colocate) if spec.colocate and not spec.cancelled else -1
            for spec in self._constellation.stages.values()
        ]

    def _apart(self) -> list[int]:
        groups = [spread.group for spread in self._spreads]
        return [
            groups.index(spec.spread.group) if spec.spread and not spec.cancelled else -1
            for spec in self._constellation.stages.values()
        ]

    def _zones(self) -> Indices:
        """[g, k]: of each group apart which nodes count as one."""
        found = np.full((len(self._spreads), len(self._fleet.nodes) + 1), -1, dtype=np.int32)
        for row, spread in enumerate(self._spreads):
            if spread.over:
                values = [node.profile.attribute_text(spread.over) for node in self._fleet.nodes]
                found[row, :-1] = [values.index(value) for value in values]
        return found

    def _disliked(self, name: StageId, seconds: Floats) -> dict[int, tuple[str, ...]]:
        prefers = self._constellation.stages[name].prefers
        if not prefers:
            return {}
        said = {
            number: tuple(dislikes(node.profile, place.target, prefers))
            for number, (node, place) in enumerate(self._owned)
            if np.isfinite(seconds[number])
        }
        return {number: against for number, against in said.items() if against}

    def _seconds(self, name: StageId, node: FleetNode, place: Place) -> float:
        if len(ways := self._ways[name]) > 1:
            way = ways[place.variant].variants[0].name
            known = self._measured.variant_seconds.get((name, place.node, place.target, way))
        else:
            known = self._measured.run_seconds.get((name, place.node, place.target))
        run = self._expected[name][place.variant].run_seconds / _speed(node, place) if known is None else known
        return run + self._measured.stage_seconds

    def _dependencies(self, numbers: Mapping[str, int], given: Mapping[str, int]) -> list[tuple[int, int, float]]:
        constellation = self._constellation
        found = []
        for arc in constellation.dependencies:
            if not is_stream(arc, self._kinds[arc.upstream]):
                size = self._size(arc.upstream, arc.output) if arc.carries_data else 0
                found.append((numbers[arc.upstream], numbers[arc.downstream], float(size)))
        for binding in constellation.bindings:
            usual = USUAL_BYTES[constellation.inputs[binding.source].type]
            size = given.get(binding.source, self._usual(binding.downstream).entry_bytes or usual)
            found.append((numbers[f"input {binding.source}"], numbers[binding.downstream], float(size)))
        for name, output in constellation.outputs.items():
            size = self._size(output.upstream, output.output)
            found.append((numbers[output.upstream], numbers[f"output {name}"], float(size)))
        return found

    def _size(self, upstream: StageId, output: str) -> int:
        told = self._measured.output_bytes.get((upstream, output), self._usual(upstream).output_bytes.get(output))
        port = self._kinds[upstream].output_ports(self._constellation.stages[upstream].params).get(output)
        return told if told is not None else USUAL_BYTES[port.type] if port is not None else 0

    def _usual(self, name: StageId) -> Expectation:
        """What is expected of a stage in the first variant that may be taken: sizes are told of one."""
        unwanted, expected = self._unwanted(name), self._expected[name]
        return next((each for way, each in enumerate(expected) if way not in unwanted), expected[0])

    def _loads(self) -> Floats:
        rows = [
            [*(kind.cost.load_seconds / _speed(node, place) for node, place in self._owned), 0.0]
            for kind in self._loading.values()
        ]
        return np.array(rows).reshape(-1, len(self._owned) + 1)

    def _resident(self) -> Flags:
        rows = [
            [*(bool(kind.models) and set(kind.models) <= set(node.resident) for node in self._fleet.nodes), False]
            for kind in self._loading.values()
        ]
        return np.array(rows, dtype=bool).reshape(-1, len(self._fleet.nodes) + 1)


def ways(stage: StageSpec) -> list[StageSpec]:
    """The stage as it is with each of its variants, whether it may be taken or not; by itself where it has none."""
    return [chosen(stage, variant) for variant in stage.variants] or [stage]


def _unspread(node: FleetNode, spread: Spread | None) -> Iterator[str]:
    if spread is not None and spread.over and not spread.seconds and not node.profile.attribute_text(spread.over):
        yield f"has no attribute {spread.over}, over which {spread.group} is spread"


def _endless(seconds: float) -> Iterator[str]:
    if seconds > limits.PLAN_SECONDS_MAX:
        yield f"would take over PLAN_SECONDS_MAX = {limits.PLAN_SECONDS_MAX:g} s"


def _speed(node: FleetNode, place: Place) -> float:
    return node.speed.get(place.target, 1.0)
