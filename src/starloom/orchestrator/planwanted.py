"""What a planner is told of a job: what is left of it, the nodes as they stand, and what runs took."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.dag.stagestate import ENDED, StageState, StageStatus
from starloom.orchestrator.advice import NodeNow, PlanWanted, RunSeconds, Standing, cells, told_of
from starloom.orchestrator.clocks import JOB, NANOS
from starloom.orchestrator.costs import Source
from starloom.orchestrator.fleet import AgentState, Fleet, Member, Work
from starloom.orchestrator.guide import Guide
from starloom.orchestrator.placement import Planner
from starloom.orchestrator.runs import Run
from starloom.orchestrator.series import Series
from starloom.orchestrator.state import State

LEAST_LEFT = 0.1
"""Of its expected seconds: what a run that takes longer is taken to have left."""


def plan_wanted(run: Run, guide: Guide, state: State, number: int, now: int) -> PlanWanted | None:
    """A snapshot of a job and the fleet; None where there is nothing to choose."""
    job, fleet = run.job, state.fleet
    members = [fleet.members[name] for name in sorted(fleet.members)]
    there = [member for member in members if member.state is not AgentState.LOST]
    # One node is enough where variants are to be chosen.
    if sum(member.there for member in there) < (1 if guide.hurries else 2):
        return None
    specs = job.shape.specs.values()
    if cells(specs, len(there)) > limits.PLAN_LIVE_CELLS_MAX:
        return None
    standing = {name: found for name, stage in job.stages.items() if (found := _standing(job.id, stage, fleet, now))}
    _forgo(run, standing)
    if len(standing) == len(job.stages):
        return None
    names = {spec.kind for spec in specs}
    if any(fleet.kinds.get(name) is None for name in names):
        return None
    clock = run.clocks.get(JOB)
    kinds: dict[str, KindSpec] = {name: fleet.kinds[name] for name in sorted(names)}
    return PlanWanted(
        job=job.id,
        number=number,
        revision=job.revision,
        constellation=job.constellation,
        kinds=kinds,
        nodes=tuple(_node(member, kinds, job.id) for member in there),
        input_bytes={name: ref.bytes for name, ref in job.inputs.items() if ref.inline is None},
        standing=standing,
        seconds=tuple(runs_seconds(specs, kinds, there, state.planner)),
        old={
            name: advice.place(now)
            for name, advice in guide.places.items()
            if name in job.stages and name not in standing
        },
        had={name: stage.variant for name, stage in job.stages.items() if stage.variant and name not in standing},
        left=None if clock is None else (clock.ends - now) / NANOS,
    )


def rounds_wanted(
    run: Run, series: Series, taken: Mapping[AgentId, float], state: State, number: int
) -> PlanWanted | None:
    """What is told for a plan of a series, of which a round runs. `taken`: of each node the share that others take; None as above."""
    fleet, job, stages = state.fleet, run.job, series.constellation.stages
    there = [member for _, member in sorted(fleet.members.items()) if member.state is not AgentState.LOST]
    choose = any(len(spec.variants) > 1 for spec in stages.values())
    names = {spec.kind for spec in stages.values()}
    if sum(member.there for member in there) < (1 if choose else 2) or any(
        fleet.kinds.get(name) is None for name in names
    ):
        return None
    if cells(stages.values(), len(there)) > limits.PLAN_ROUNDS_CELLS_MAX:
        return None
    kinds: dict[str, KindSpec] = {name: fleet.kinds[name] for name in sorted(names)}
    nodes = (_node(member, kinds, job.id) for member in there)
    return PlanWanted(
        job=job.id,
        number=number,
        revision=job.revision,
        constellation=series.constellation,
        kinds=kinds,
        nodes=tuple(
            msgspec.structs.replace(node, busy_seconds=0.0, taken=taken.get(node.profile.name, 0.0)) for node in nodes
        ),
        input_bytes={name: ref.bytes for name, ref in job.inputs.items() if ref.inline is None},
        seconds=tuple(runs_seconds(stages.values(), kinds, there, state.planner)),
        old=series.places,
        rounds=True,
    )


def _node(member: Member, kinds: dict[str, KindSpec], job: JobId) -> NodeNow:
    others = sum(work.seconds for task, work in member.assigned.items() if task.job != job)
    return NodeNow(
        profile=msgspec.structs.replace(member.profile, details={}, kinds=(), measured=None),
        offers=tuple(name for name in kinds if name in member.offers),
        loaded=tuple(name for name, kind in kinds.items() if member.is_resident(kind)),
        takes=member.there,
        busy_seconds=others / member.slots,
        links=member.links,
    )


def runs_seconds(
    stages: Iterable[StageSpec], kinds: Mapping[str, KindSpec], members: list[Member], planner: Planner
) -> Iterator[RunSeconds]:
    """What a run of each of the stages' kinds takes wherever it is offered."""
    asked: dict[str, set[bool]] = {}
    for spec in stages:
        known = asked.setdefault(spec.kind, set())
        # Of most kinds all stages are alike in this.
        if len(known) < 2:
            known |= told_of(spec, kinds.get(spec.kind))
    for name, tells in asked.items():
        kind = kinds.get(name)
        if kind is None:
            continue
        for member, told in product(members, sorted(tells)):
            each = 1.0 if told else None
            for target in member.profile.targets:
                if name in member.offers and target.name in kind.targets:
                    found = planner.predicted(kind, member.name, target.name, each)
                    sure = found.source in (Source.MEASURED, Source.PREDICTED)
                    yield RunSeconds(name, member.name, target.name, found.seconds, sure, told, found.deviation)


def _standing(job: JobId, stage: StageState, fleet: Fleet, now: int) -> Standing | None:
    """How a stage stands; None if it waits, or what it gave is gone."""
    if stage.live:
        token, agent = next(reversed(stage.live.items()))
        member, task = fleet.members[agent], TaskToken(job, stage.spec.id, token)
        work = member.assigned[task]
        # What has a slot begins before word of it is here, and no plan may have something go before it.
        started = token in stage.started or (task not in member.delegated and member.in_hand <= member.slots)
        left = left_seconds(work, now) if started else work.seconds
        return Standing(node=agent, target=stage.target, variant=stage.variant, left=left, started=started)
    if stage.status is not StageStatus.SUCCEEDED:
        return Standing(ended=True, free=True) if stage.status in ENDED else None
    node = stage.agent
    if stage.held:
        holders = fleet.having(stage.holders)
        if not holders:
            return None
        node = holders[0].name
    return Standing(
        node=node,
        target=stage.target,
        variant=stage.variant,
        ended=True,
        # What the job store has is there for all, and what is inline comes along.
        free=not stage.held,
        sizes={port: ref.bytes for port, ref in stage.outputs.items()},
    )


def left_seconds(work: Work, now: int) -> float:
    """What a run that has begun is taken to have left."""
    return max((work.ends - now) / NANOS, LEAST_LEFT * work.seconds)


def _forgo(run: Run, standing: dict[StageId, Standing]) -> None:
    """What has ended, and is lost and read by nothing that waits, is no work that is left."""
    stages, upstreams = run.job.stages, run.job.upstreams
    lost = {name for name, stage in stages.items() if name not in standing and stage.status in ENDED}
    if not lost:
        return
    reading = [name for name in stages if name not in standing and name not in lost]
    for name in reading:
        for arc in upstreams[name]:
            if arc.upstream in lost:
                lost.remove(arc.upstream)
                reading.append(arc.upstream)
    for name in lost:
        standing[name] = Standing(ended=True, free=True)
