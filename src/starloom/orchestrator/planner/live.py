"""A plan of what is left of a job that runs, from a snapshot of it: what an orchestrator's planner answers.

Beside what `building` forbids, a stage is planned only where placement looks: on nodes that take something new and offer
its kind, on the targets that are weighed there, and, unless it has preferences of its own, on its kind's usual tier if a
node there may run it.
"""

from collections import Counter
from collections.abc import Callable, Set
from typing import Final, NamedTuple

import msgspec
import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.errors import InvalidInput
from starloom.dag.expectation import told_seconds
from starloom.dag.ids import AgentId, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.values import JOB_STORE
from starloom.dag.variants import chosen
from starloom.devices.links import agreed
from starloom.orchestrator.advice import NodeNow, Place, Planned, PlanWanted, Standing, known_share
from starloom.orchestrator.clusterfile import NodeSpec
from starloom.orchestrator.feasible import targets_for
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.planner.building import STORE, Built, Measured, build
from starloom.orchestrator.planner.intime import lesser, renewed
from starloom.orchestrator.planner.planning import ITERATIONS, Budget
from starloom.orchestrator.planner.problem import Flags, Floats, Plan, Problem
from starloom.orchestrator.planner.recurring import recurring
from starloom.orchestrator.planner.renewing import Renewed, moving

NONE: Final = -1
_LEAST_SECONDS: Final = 1e-6
"""What runs has not ended: it takes a slot."""


class _Way(NamedTuple):
    """A stage in one of its variants, and the seconds that are told of that; 1 where none are."""

    stage: StageId
    variant: str
    seconds: float


def advise(wanted: PlanWanted, gone: Callable[[], float] = lambda: 0.0, iterations: int = ITERATIONS) -> Planned:
    """The plan that is wanted, or the reason why there is none; `gone`: which share of the time is over. Deterministic but for that."""
    if (
        share := known_share(wanted.constellation.stages.values(), wanted.kinds, wanted.seconds)
    ) < limits.PLAN_KNOWN_SHARE:
        why = f"how long its stages run is known of {share:.0%} of their places; that becomes more as they run"
        return Planned(job=wanted.job, number=wanted.number, refusal=why)
    try:
        built = problem_of(wanted)
        left, old = remaining(wanted, built)
        budget = Budget(iterations, lambda: gone() >= 1, gone=gone)
        if wanted.rounds:
            taken = {str(node.profile.name): node.taken for node in wanted.nodes}
            rounds = recurring(left, wanted.constellation, built.rates, taken, old, budget)
            made = _answer(wanted, built, rounds.renewed)
            return msgspec.structs.replace(made, ends=rounds.ends, rounds=rounds.rounds)
        found = renewed(left, built.rates, old, wanted.left, budget, deviations(wanted, built))
    except InvalidInput as error:
        first = "".join(f": {problem}" for problem in error.problems[:1])
        return Planned(job=wanted.job, number=wanted.number, refusal=f"{error.what}{first}")
    return _answer(wanted, built, found)


def fleet(wanted: PlanWanted) -> Fleet:
    """The nodes as the planner knows them, the links that they measured, and the up-links that they say they share.

    Of more than FLEET_UPLINKS_MAX up-links those count that most nodes share.
    """
    named = Counter(each.name for node in wanted.nodes for each in node.profile.uplinks)
    known = {name for name, _ in named.most_common(limits.FLEET_UPLINKS_MAX)}
    uplinks = agreed(each for node in wanted.nodes for each in node.profile.uplinks if each.name in known)
    nodes = tuple(_fleet_node(node, wanted.kinds, known) for node in wanted.nodes)
    told = {(source, str(node.profile.name)): link for node in wanted.nodes for source, link in node.links.items()}
    # The other way is the next best that is known of a path.
    back = {(sink, source): link for (source, sink), link in told.items() if source != JOB_STORE}
    paths = back | {ends: link.filled(back.get(ends, link)) for ends, link in told.items()}
    return Fleet(nodes=nodes, uplinks=uplinks, paths=paths)


def problem_of(wanted: PlanWanted) -> Built:
    """The whole job's problem, as if nothing of it had begun."""
    alike: dict[tuple[str, bool], list[_Way]] = {}
    for name, spec in wanted.constellation.stages.items():
        for way in [chosen(spec, each) for each in spec.variants] or [spec]:
            told = told_seconds(way, wanted.kinds[spec.kind])
            variant = way.variants[0].name if len(spec.variants) > 1 else ""
            alike.setdefault((spec.kind, told is not None), []).append(
                _Way(name, variant, 1.0 if told is None else told)
            )
    whole: dict[tuple[StageId, str, str], float] = {}
    varied: dict[tuple[StageId, str, str, str], float] = {}
    for run in wanted.seconds:
        for name, variant, each in alike.get((run.kind, run.told), ()):
            if variant:
                varied[name, run.node, run.target, variant] = each * run.seconds
            else:
                whole[name, run.node, run.target] = each * run.seconds
    measured = Measured(
        run_seconds=whole,
        output_bytes={(name, port): size for name, how in wanted.standing.items() for port, size in how.sizes.items()},
        variant_seconds=varied,
    )
    return build(wanted.constellation, wanted.kinds, fleet(wanted), wanted.input_bytes, measured)


def deviations(wanted: PlanWanted, built: Built) -> Floats:
    """[n, m]: standard deviations of what runs take, in seconds, also of those that have begun; 0 of what has ended."""
    arrays, places = built.problem.arrays, _Places(built)
    usual = np.full(len(arrays.node), limits.PLAN_DEVIATION)
    shares: dict[tuple[str, bool], Floats] = {}
    for run in wanted.seconds:
        row = shares.setdefault((run.kind, run.told), usual.copy())
        row[list(places.at(run.node, run.target).values())] = run.deviation
    found = np.where(np.isfinite(arrays.seconds), arrays.seconds, 0.0)
    for index, name in enumerate(built.stages):
        spec, how = wanted.constellation.stages[name], wanted.standing.get(name)
        if how is not None and how.ended:
            found[index] = 0.0
            continue
        ways = [chosen(spec, each) for each in built.variants.get(name, ())]
        for number, way in enumerate(ways or [spec]):
            here = arrays.variant == number
            told = told_seconds(way, wanted.kinds[spec.kind]) is not None
            found[index, here] *= shares.get((spec.kind, told), usual)[here]
    return found


def _fleet_node(node: NodeNow, kinds: dict[str, KindSpec], uplinks: Set[str]) -> FleetNode:
    profile = node.profile
    return FleetNode(
        node=NodeSpec(
            name=profile.name,
            tier=profile.tier,
            targets=tuple(target.name for target in profile.targets),
            labels=profile.labels,
            slots=profile.slots,
            uplinks=tuple(each.name for each in profile.uplinks if each.name in uplinks),
        ),
        memory_bytes=profile.memory_bytes,
        resident=tuple(model for name in node.loaded for model in kinds[name].models),
    )


def remaining(wanted: PlanWanted, built: Built) -> tuple[Problem, Plan]:
    """What is left, as a problem, and the plan before this one; a place of -1 is none."""
    problem, arrays = built.problem, built.problem.arrays
    n, stages = len(problem.stages), built.stages
    seconds, penalty = arrays.seconds.copy(), arrays.penalty.copy()
    started, ended, free = np.zeros((3, n), dtype=np.bool_)
    masks, places = _Masks(wanted, built), _Places(built)
    old = _Old(n)
    for index, name in enumerate(stages):
        how = wanted.standing.get(name)
        if how is None:
            masks.narrow(index, seconds[index])
            _keep(seconds[index], places.columns(index, wanted.had.get(name, "")))
            old.had(index, wanted.old.get(name), places, seconds[index])
            continue
        place = places.of(index, how)
        takes = _takes(how, seconds[index, place])
        seconds[index], penalty[index] = np.inf, 0.0
        seconds[index, place] = takes
        started[index], ended[index], free[index] = how.started, how.ended, how.free
    running = np.bincount(arrays.shares[np.nonzero(np.isfinite(seconds[started]))[1]], minlength=len(problem.places))
    # An agent runs more than one stage of an accelerator if it is given them.
    slots = np.maximum(arrays.slots, running)[arrays.shares].astype(arrays.slots.dtype)
    fed = {f"input {name}" for name in wanted.input_bytes}
    free[len(stages) :] = [not (name in fed or name.startswith("output ")) for name in problem.stages[len(stages) :]]
    penalty = moving(penalty, old.place, old.place >= 0, limits.PLAN_MOVE_SECONDS)
    waits = ~(started | ended)[arrays.downstream] & ~free[arrays.upstream]
    left = problem._replace(
        places=tuple(place._replace(slots=int(count)) for place, count in zip(problem.places, slots, strict=True)),
        arrays=arrays._replace(
            seconds=seconds,
            penalty=penalty,
            slots=slots,
            available=_available(wanted, problem),
            started=started,
            upstream=arrays.upstream[waits],
            downstream=arrays.downstream[waits],
            size_bytes=arrays.size_bytes[waits],
            resident=_resident(wanted, problem),
            # Whom a group is with is known of those of it that have a node.
            together=np.where(free, np.int32(NONE), arrays.together),
        ),
    )
    return left, old.plan()


class _Places:
    """Finds places by node, target and variant."""

    def __init__(self, built: Built) -> None:
        self._built = built
        self._numbers: dict[tuple[str, str], dict[int, int]] = {}
        for index, place in enumerate(built.problem.places):
            self._numbers.setdefault((place.node, place.target), {})[place.variant] = index
        self._variant = built.problem.arrays.variant

    def variant(self, stage: int, name: str) -> int:
        """The number of a variant; 0 where the stage has none of that name."""
        names = [each.name for each in self._built.variants.get(self._built.stages[stage], ())]
        return names.index(name) if name in names else 0

    def columns(self, stage: int, variant: str) -> Flags:
        """[m]: the places that stand for a variant; all where that is empty."""
        if not variant:
            return np.ones(len(self._variant), dtype=np.bool_)
        found: Flags = self._variant == self.variant(stage, variant)
        return found

    def at(self, node: str, target: str) -> dict[int, int]:
        """The places of a target, by the number of the variant."""
        return self._numbers.get((node, target), {})

    def of(self, stage: int, how: Standing) -> int:
        """Where a stage stands, another place of that node, or else the job store."""
        variant = self.variant(stage, how.variant)
        there = self.at(how.node, how.target)
        for each in [there, *(found for (node, _), found in self._numbers.items() if node == how.node)]:
            if each:
                return each.get(variant, each[0])
        return self.at(STORE.node, STORE.target)[0]


def _keep(seconds: Floats, columns: Flags) -> None:
    """A stage keeps its variant as long as it may run anywhere in that; `seconds` [m] are narrowed."""
    if np.isfinite(seconds[columns]).any():
        seconds[~columns] = np.inf


class _Old:
    """The plan before, as far as it is known: only its places and starts count."""

    def __init__(self, n: int) -> None:
        self.place = np.full(n, NONE, dtype=np.int32)
        self.start = np.zeros(n)

    def had(self, index: int, place: Place | None, places: _Places, seconds: Floats) -> None:
        if place is None:
            return
        there = places.at(place.node, place.target)
        # In the best variant that it may have there, where no other was chosen.
        best = next((number for number, at in sorted(there.items()) if np.isfinite(seconds[at])), 0)
        self.place[index] = there.get(places.variant(index, place.variant) if place.variant else best, NONE)
        self.start[index] = max(0.0, place.start)

    def plan(self) -> Plan:
        return Plan(self.place, self.start, self.start, np.zeros(len(self.place), dtype=np.bool_), 0.0, 0.0, "old")


class _Masks:
    """Where placement would look for a stage, beside what is forbidden anyway."""

    def __init__(self, wanted: PlanWanted, built: Built) -> None:
        self._wanted = wanted
        self._built = built
        self._nodes = {str(node.profile.name): node for node in wanted.nodes}
        self._places = built.problem.places
        self._known: dict[tuple[str, str, bool], Flags] = {}
        self._tiers = np.array([str(self._nodes[p.node].profile.tier) if p.node else "" for p in self._places])

    def narrow(self, stage: int, seconds: Floats) -> None:
        """Takes the others out of `seconds` [m], which are finite where the stage may run."""
        name = self._built.stages[stage]
        spec = self._wanted.constellation.stages[name]
        variants = self._built.variants.get(name, ())
        if not variants:
            seconds[~self._of(spec, seconds)] = np.inf
        for number, each in enumerate(variants):
            mine = self._built.problem.arrays.variant == number
            alone = np.where(mine, seconds, np.inf)
            seconds[mine & ~self._of(chosen(spec, each), alone)] = np.inf

    def _of(self, spec: StageSpec, seconds: Floats) -> Flags:
        kind, prefers = self._wanted.kinds[spec.kind], spec.prefers
        weighs = any(said.target for said in (*prefers.prefer, *prefers.avoid))
        key = (spec.kind, spec.requires.target, weighs)
        mask = self._known.get(key)
        if mask is None:
            mask = self._known[key] = np.array([self._looks(place.node, place.target, spec) for place in self._places])
        if kind.tier is not None and not prefers and not spec.requires.tiers:
            usual: Flags = mask & (self._tiers == str(kind.tier))
            if np.isfinite(seconds[usual]).any():
                return usual
        return mask

    def _looks(self, name: str, target: str, spec: StageSpec) -> bool:
        node = self._nodes.get(name)
        if node is None or not node.takes or spec.kind not in node.offers:
            return False
        return target in targets_for(node.profile, self._wanted.kinds[spec.kind], spec.requires, spec.prefers)


def _takes(how: Standing, usual: float) -> float:
    if how.ended:
        return 0.0
    if how.started:
        return max(how.left, _LEAST_SECONDS)
    return float(usual) if np.isfinite(usual) else how.left


def _available(wanted: PlanWanted, problem: Problem) -> Floats:
    busy = {str(node.profile.name): node.busy_seconds for node in wanted.nodes}
    return np.array([busy.get(place.node, 0.0) for place in problem.places])


def _resident(wanted: PlanWanted, problem: Problem) -> Flags:
    """Agents tell of kinds that have run, also of those that name no models."""
    found = problem.arrays.resident.copy()
    for index, kind in enumerate(problem.models):
        for node in wanted.nodes:
            found[index, problem.nodes.index(str(node.profile.name))] = kind in node.loaded
    return found


def _answer(wanted: PlanWanted, built: Built, found: Renewed) -> Planned:
    plan, places = found.plan, found.problem.places
    given = lesser(found.problem, built.rates, plan)
    variants = {stage: built.variant(stage, int(plan.place[stage])) for stage in given}
    return Planned(
        job=wanted.job,
        number=wanted.number,
        places={
            name: Place(
                AgentId(places[plan.place[index]].node),
                places[plan.place[index]].target,
                float(plan.start[index]),
                float(plan.finish[index]),
                variant.name if (variant := variants.get(index)) is not None else "",
            )
            for index, name in enumerate(built.stages)
            if name not in wanted.standing
        },
        ends=plan.makespan,
        method=plan.method,
        kept=found.kept,
    )
