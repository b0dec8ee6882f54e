"""Which faults a plan comes to on a live cluster: all times, nodes and durations, drawn from a seed beforehand. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from starloom.dag import limits
from starloom.dag.checks import suggestion
from starloom.dag.constellation import Constellation, Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.ids import AgentId
from starloom.devices.faults import (
    AT_ONCE,
    AT_OPPORTUNITIES,
    OF_ORCHESTRATOR,
    ORCHESTRATOR,
    Fault,
    FaultKind,
    FaultPlan,
    Moment,
    live_problems,
)
from starloom.devices.node import NodeProfile
from starloom.orchestrator.simulate.loop import Chance, Chances

SLOWER: Final = (3.0, 20.0)
DELAY_SECONDS: Final = (0.05, 0.5)
STAGE_TIMES: Final = 1
"""How often a fault comes at a stage's moment, unless its `most` says otherwise: a stage that runs again has another."""
_SEEDS: Final = 2**53


class NodeFacts(NamedTuple):
    """What of a node a plan may speak of; `kinds` are those of the stages that it can run."""

    name: AgentId
    tier: Tier
    labels: Mapping[str, str] = {}
    kinds: Sequence[str] = ()

    def meets(self, fault: Fault) -> bool:
        """Whether a fault may happen to it."""
        return fault.may_meet(self.name, self.tier, self.labels)


def facts_of(profile: NodeProfile) -> NodeFacts:
    """What a plan may speak of, of a node as its agent tells it."""
    return NodeFacts(profile.name, profile.tier, profile.labels, profile.kinds)


class Planned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault that is to happen: `at_seconds` from the job's submission on, or at the `on` of an attempt of `stage`.

    `entry`: the fault's index in its plan; those of one entry come at one attempt of the stage each. `node`: a node's name,
    ORCHESTRATOR, or empty for the node that has the stage then. `nodes`: of an opportunity without a node, all. `lasts_seconds`: None until somebody heals it. The other fields are as `devices.faults.Fault` has them.
    """

    id: str
    what: FaultKind
    node: str
    at_seconds: float | None = None
    stage: str = ""
    on: Moment = Moment.START
    entry: int = 0
    peer: str = ""
    kind: str = ""
    nodes: tuple[str, ...] = ()
    lasts_seconds: float | None = 0.0
    factor: float = 0.0
    add_seconds: float = 0.0
    delay_seconds: float = 0.0
    chance: float = 1.0
    seed: int = 0
    most: int = 0


def horizon(plan: FaultPlan) -> float:
    """After how many seconds of a run all its faults have ended."""
    return plan.quiet_after_seconds or limits.FAULTS_QUIET_SECONDS


def plan_faults(plan: FaultPlan, seed: int, nodes: Sequence[NodeFacts]) -> tuple[Planned, ...]:
    """What happens under a plan, in the order of time, then those that wait for a stage.

    The same plan, seed and nodes, in any order, give the same. At most FAULTS_PLANNED_MAX; what a longer list would have
    had is left out.
    """
    chances = Chances(seed)
    arming = chances.of("arming")
    armed = [(index, fault) for index, fault in enumerate(plan.faults) if arming.happens(fault.armed)]
    there = sorted(nodes)
    drawn = [
        msgspec.structs.replace(planned, entry=index)
        for index, fault in armed
        for planned in _of_fault(fault, chances.of(f"{index}/{fault.what}"), there, horizon(plan))
    ]
    in_time = sorted(
        (planned for planned in drawn if planned.at_seconds is not None), key=lambda planned: planned.at_seconds or 0.0
    )
    ordered = [*in_time, *(planned for planned in drawn if planned.at_seconds is None)]
    return tuple(
        msgspec.structs.replace(planned, id=f"fault-{number}")
        for number, planned in enumerate(ordered[: limits.FAULTS_PLANNED_MAX], 1)
    )


def _of_fault(fault: Fault, chance: Chance, nodes: Sequence[NodeFacts], end: float) -> Iterator[Planned]:
    if fault.stage:
        for _ in range(fault.most or STAGE_TIMES):
            yield _one(fault, chance, nodes, None, chance.between(*fault.lasts_seconds))
        return
    if fault.what in AT_OPPORTUNITIES and fault.at_seconds is None:
        lasts = min(fault.to_seconds, end) - fault.from_seconds
        if lasts > 0:
            yield _one(fault, chance, nodes, fault.from_seconds, lasts)
        return
    for at in _times(fault, chance, end):
        yield _one(fault, chance, nodes, at, min(chance.between(*fault.lasts_seconds), end - at))


def _times(fault: Fault, chance: Chance, end: float) -> Iterator[float]:
    if fault.at_seconds is not None:
        if fault.at_seconds < end:
            yield fault.at_seconds
        return
    at, count = fault.from_seconds, 0
    while count < (fault.most or limits.FAULTS_PLANNED_MAX):
        # As the simulator has it.
        at += chance.between(0, 120 / fault.per_minute)
        if at >= min(end, fault.to_seconds):
            return
        yield at
        count += 1


def _one(fault: Fault, chance: Chance, nodes: Sequence[NodeFacts], at: float | None, lasts: float) -> Planned:
    candidates = [node.name for node in nodes if node.meets(fault)]
    everywhere = fault.what in AT_OPPORTUNITIES and not fault.stage
    node = ""
    if fault.what in OF_ORCHESTRATOR:
        node, candidates = ORCHESTRATOR, []
    elif not everywhere and not (fault.stage and fault.anywhere):
        node, candidates = chance.pick(candidates), []
    elif not everywhere:
        candidates = []
    slow, link_slow = fault.what == FaultKind.AGENT_SLOW, fault.what == FaultKind.LINK_SLOW
    drawn_factor = chance.between(*SLOWER) if slow and not fault.add_seconds else 0.0
    drawn_delay = chance.between(*DELAY_SECONDS) if link_slow else 0.0
    return Planned(
        id="",
        what=fault.what,
        node=node,
        nodes=tuple(candidates),
        at_seconds=at,
        stage=fault.stage,
        on=fault.on,
        peer=fault.peer,
        kind=fault.kind,
        lasts_seconds=0.0 if fault.what in AT_ONCE else lasts if fault.heals else None,
        factor=fault.factor or drawn_factor,
        add_seconds=fault.add_seconds,
        delay_seconds=fault.delay_seconds or drawn_delay,
        chance=fault.chance or 1.0,
        seed=chance.below(_SEEDS),
        most=fault.most if fault.what in AT_OPPORTUNITIES else 0,
    )


def check_fit(plan: FaultPlan, nodes: Sequence[NodeFacts], what: Constellation) -> None:
    """Raises InvalidInput with everything that a plan names and that this cluster or this job has not."""
    problems = live_problems(plan)
    names = {node.name for node in nodes}
    for index, fault in enumerate(plan.faults):
        place = f"faults.{index}"
        if fault.stage and fault.stage not in what.stages:
            known = ", ".join(list(what.stages)[: limits.SUGGESTION_NAMES_SHOWN])
            problems.append(Problem(f"{place}.stage", f"the job has no stage {fault.stage!r}; it has {known}"))
        if fault.peer and fault.peer != ORCHESTRATOR and fault.peer not in names:
            known = ", ".join((ORCHESTRATOR, *sorted(names)))
            problems.append(Problem(f"{place}.peer", f"there is no node {fault.peer!r}; there are {known}"))
        if fault.what not in OF_ORCHESTRATOR and not any(node.meets(fault) for node in nodes):
            problems.append(Problem(place, f"meets no node; there are {', '.join(sorted(names))}"))
        elif wrong := kind_fault(fault, nodes):
            problems.append(Problem(f"{place}.kind", wrong))
    if problems:
        raise InvalidInput(problems, "the fault plan does not fit")


def kind_fault(fault: Fault, nodes: Sequence[NodeFacts]) -> str:
    """What is wrong with the kind whose stages a fault is of: no node that it may meet runs such; empty if nothing is."""
    known = {kind for node in nodes if node.meets(fault) for kind in node.kinds}
    if not fault.kind or fault.kind in known:
        return ""
    if others := sorted(node.name for node in nodes if fault.kind in node.kinds):
        return f"no node that it may happen to runs stages of the kind {fault.kind!r}; there are such on {', '.join(others)}"
    few = sorted(known)[: limits.SUGGESTION_NAMES_SHOWN]
    some = f"; known: {', '.join(few)} and {len(known) - len(few)} more" if len(known) > len(few) else ""
    return f"no node runs stages of the kind {fault.kind!r}{suggestion(fault.kind, known) or some}"
