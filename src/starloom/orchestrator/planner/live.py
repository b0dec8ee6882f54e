"""A plan of what is left of a job that runs, from a snapshot of it: what an orchestrator's planner answers.

Beside what `building` forbids, a stage is planned only where placement looks: on nodes that take something new and offer
its kind, on the targets that are weighed there, and, unless it has preferences of its own, on its kind's usual tier if a
node there may run it.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.errors import InvalidInput
from starloom.dag.expectation import told_seconds
from starloom.dag.ids import AgentId, StageId
from starloom.dag.kinds import KindSpec
from starloom.orchestrator.advice import NodeNow, Place, Planned, PlanWanted, Standing, known_share
from starloom.orchestrator.clusterfile import NodeSpec
from starloom.orchestrator.feasible import targets_for
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.planner.building import STORE, Built, Measured, build
from starloom.orchestrator.planner.planning import ITERATIONS, Budget
from starloom.orchestrator.planner.problem import Flags, Floats, Plan, Problem
from starloom.orchestrator.planner.renewing import Renewed, moving, steadied

NONE: Final = -1
_LEAST_SECONDS: Final = 1e-6
"""What runs has not ended: it takes a slot."""


def advise(wanted: PlanWanted, spent: Callable[[], bool] = lambda: False, iterations: int = ITERATIONS) -> Planned:
    """The plan that is wanted, or the reason why there is none; `spent` ends the search. Deterministic but for that."""
    if (share := known_share(wanted.constellation.stages.values(), wanted.seconds)) < limits.PLAN_KNOWN_SHARE:
        why = f"how long its stages run is known of {share:.0%} of their places; that becomes more as they run"
        return Planned(job=wanted.job, number=wanted.number, refusal=why)
    try:
        built = problem_of(wanted)
        left, old = remaining(wanted, built)
        found = steadied(left, old, Budget(iterations, spent))
    except InvalidInput as error:
        first = "".join(f": {problem}" for problem in error.problems[:1])
        return Planned(job=wanted.job, number=wanted.number, refusal=f"{error.what}{first}")
    return _answer(wanted, built, found)


def fleet(wanted: PlanWanted) -> Fleet:
    """The nodes as the planner knows them."""
    return Fleet(nodes=tuple(_fleet_node(node, wanted.kinds) for node in wanted.nodes))


def problem_of(wanted: PlanWanted) -> Built:
    """The whole job's problem, as if nothing of it had begun."""
    stages = wanted.constellation.stages
    by_kind: dict[str, list[StageId]] = {}
    for name, spec in stages.items():
        by_kind.setdefault(spec.kind, []).append(name)
    told = {name: told_seconds(spec, wanted.kinds[spec.kind]) for name, spec in stages.items()}
    measured = Measured(
        run_seconds={
            (stage, run.node, run.target): run.seconds if (known := told[stage]) is None else known * run.seconds
            for run in wanted.seconds
            for stage in by_kind.get(run.kind, ())
        },
        output_bytes={(name, port): size for name, how in wanted.standing.items() for port, size in how.sizes.items()},
    )
    return build(wanted.constellation, wanted.kinds, fleet(wanted), wanted.input_bytes, measured)


def _fleet_node(node: NodeNow, kinds: dict[str, KindSpec]) -> FleetNode:
    profile = node.profile
    return FleetNode(
        node=NodeSpec(
            name=profile.name,
            tier=profile.tier,
            targets=tuple(target.name for target in profile.targets),
            labels=profile.labels,
            slots=profile.slots,
        ),
        memory_bytes=profile.memory_bytes,
        resident=tuple(model for name in node.loaded for model in kinds[name].models),
    )


def remaining(wanted: PlanWanted, built: Built) -> tuple[Problem, Plan]:
    """What is left, as a problem, and the plan before this one; a place of -1 is none."""
    problem, arrays = built.problem, built.problem.arrays
    n, (stages, places) = len(problem.stages), (built.stages, problem.places)
    numbers = {(place.node, place.target): index for index, place in enumerate(places)}
    seconds, penalty, slots = arrays.seconds.copy(), arrays.penalty.copy(), arrays.slots.copy()
    started, ended, free = np.zeros((3, n), dtype=np.bool_)
    masks = _Masks(wanted, problem)
    old = _Old(n)
    for index, name in enumerate(stages):
        how = wanted.standing.get(name)
        if how is None:
            seconds[index, ~masks.of(wanted.constellation.stages[name], seconds[index])] = np.inf
            old.had(index, wanted.old.get(name), numbers)
            continue
        place = _place_of(how, numbers)
        takes = _takes(how, seconds[index, place])
        seconds[index], penalty[index] = np.inf, 0.0
        seconds[index, place] = takes
        started[index], ended[index], free[index] = how.started, how.ended, how.free
    for place in range(len(places)):
        # An agent runs more than one stage of an accelerator if it is given them.
        slots[place] = max(slots[place], int((started & np.isfinite(seconds[:, place])).sum()))
    fed = {f"input {name}" for name in wanted.input_bytes}
    free[len(stages) :] = [not (name in fed or name.startswith("output ")) for name in problem.stages[len(stages) :]]
    penalty = moving(penalty, old.place, old.place >= 0, limits.PLAN_MOVE_SECONDS)
    waits = ~(started | ended)[arrays.downstream] & ~free[arrays.upstream]
    left = problem._replace(
        places=tuple(place._replace(slots=int(count)) for place, count in zip(places, slots, strict=True)),
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


class _Old:
    """The plan before, as far as it is known: only its places and starts count."""

    def __init__(self, n: int) -> None:
        self.place = np.full(n, NONE, dtype=np.int32)
        self.start = np.zeros(n)

    def had(self, index: int, place: Place | None, numbers: dict[tuple[str, str], int]) -> None:
        if place is not None:
            self.place[index] = numbers.get((place.node, place.target), NONE)
            self.start[index] = max(0.0, place.start)

    def plan(self) -> Plan:
        return Plan(self.place, self.start, self.start, np.zeros(len(self.place), dtype=np.bool_), 0.0, 0.0, "old")


class _Masks:
    """Where placement would look for a stage, beside what is forbidden anyway."""

    def __init__(self, wanted: PlanWanted, problem: Problem) -> None:
        self._wanted = wanted
        self._nodes = {str(node.profile.name): node for node in wanted.nodes}
        self._places = problem.places
        self._known: dict[tuple[str, str, bool], Flags] = {}
        self._tiers = np.array([str(self._nodes[p.node].profile.tier) if p.node else "" for p in self._places])

    def of(self, spec: StageSpec, seconds: Floats) -> Flags:
        """[m]; `seconds` [m] are finite where it may run."""
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


def _place_of(how: Standing, numbers: dict[tuple[str, str], int]) -> int:
    """Its place, another of its node, or else the job store."""
    found = numbers.get((how.node, how.target))
    if found is None:
        found = next((index for (node, _), index in numbers.items() if node == how.node), None)
    return numbers[STORE.node, STORE.target] if found is None else found


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
    plan, places = found.plan, built.problem.places
    return Planned(
        job=wanted.job,
        number=wanted.number,
        places={
            name: Place(
                AgentId(places[plan.place[index]].node),
                places[plan.place[index]].target,
                float(plan.start[index]),
                float(plan.finish[index]),
            )
            for index, name in enumerate(built.stages)
            if name not in wanted.standing
        },
        ends=plan.makespan,
        method=plan.method,
        kept=found.kept,
    )
