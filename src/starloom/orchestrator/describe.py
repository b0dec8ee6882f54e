"""What clients are told of jobs and nodes, made from the coordinator's state."""

import asyncio
import os
from collections.abc import Iterable
from typing import Final

import msgspec

from starloom.dag import limits
from starloom.dag.constellation import PRIVATE_TIERS, Private
from starloom.dag.facts import JobPatched
from starloom.dag.ids import AgentId, Revision
from starloom.dag.job import JobState
from starloom.dag.patchtext import changes_shown
from starloom.dag.stagestate import ENDED, StageState, StageStatus
from starloom.dag.values import JOB_STORE
from starloom.devices.node import NodeProfile
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.infos import ClusterInfo, JobInfo, NodeInfo, PatchInfo, StageInfo
from starloom.orchestrator.kept import JobTimes

_STAGES_AT_ONCE: Final = 500


async def job_info(coordinator: Coordinator, job: JobState, times: JobTimes | None, revision: int = 0) -> JobInfo:
    """A job with its stages and its constellation, as it is or was at a revision. Raises NotFound if there is none.

    Lets the event loop go on between parts of a large one.
    """
    shown = Revision(revision or job.revision)
    constellation = job.constellation if shown == job.revision else job.constellation_at(shown)
    patches = tuple(map(_patch_info, job.patches))
    profiles = {node.name: node.profile for node in coordinator.fleet_view()}
    labels = coordinator.labels(job.id)
    kept_off = {level: _kept_off(profiles.values(), level) for level in set(labels.levels.values())}
    stages: list[StageInfo] = []
    for index, stage in enumerate(job.stages.values(), 1):
        label = labels.of(stage.spec.id)
        private = f"{label}{kept_off[label.level]}" if label is not None else ""
        stages.append(_stage_info(coordinator, job, stage, profiles.get(stage.agent), private))
        if not index % _STAGES_AT_ONCE:
            await asyncio.sleep(0)
    line = _job_info(job, times, tuple(stages))
    return msgspec.structs.replace(
        line,
        constellation=constellation,
        constellation_revision=shown,
        patches=patches,
        stuck=coordinator.stuck(job.id),
        plan=coordinator.planned(job.id),
    )


def job_line(job: JobState, times: JobTimes | None) -> JobInfo:
    """A job without its stages, for a list."""
    return _job_info(job, times, ())


def _job_info(job: JobState, times: JobTimes | None, stages: tuple[StageInfo, ...]) -> JobInfo:
    outputs = job.outputs if job.ended else job.declared()
    return JobInfo(
        id=job.id,
        key=job.key,
        name=job.name,
        status=job.status,
        revision=job.revision,
        error=job.error,
        cause=job.cause,
        degraded=job.degraded,
        outputs={name: ref for name, ref in outputs.items() if ref.holder == JOB_STORE or ref.inline is not None},
        stages=stages,
        submitted_unix_nanos=times.submitted if times else 0,
        ended_unix_nanos=times.ended if times else 0,
        labels=job.options.labels,
    )


def _patch_info(fact: JobPatched) -> PatchInfo:
    return PatchInfo(
        revision=fact.revision,
        principal=fact.principal,
        why=fact.why,
        id=fact.patch,
        restart=fact.restart,
        operations=fact.operations,
        changes=changes_shown(fact.difference),
    )


def _kept_off(profiles: Iterable[NodeProfile], level: Private) -> str:
    """The nodes that may not have what is so private, as the end of a sentence."""
    names = [f"{each.name} ({each.tier})" for each in profiles if each.tier not in PRIVATE_TIERS[level]]
    more = len(names) - limits.NODES_EXPLAINED_MAX
    shown = ", ".join(names[: limits.NODES_EXPLAINED_MAX])
    return f"; not on {shown}{f' and {more} more' if more > 0 else ''}" if names else ""


def _stage_info(
    coordinator: Coordinator, job: JobState, stage: StageState, profile: NodeProfile | None, private: str
) -> StageInfo:
    return StageInfo(
        name=stage.spec.id,
        kind=stage.spec.kind,
        status=stage.status,
        node=stage.agent,
        tier=profile.tier if profile else "",
        target=stage.target,
        emulated=stage.emulated,
        models=stage.models,
        attempts=stage.tries,
        copies=stage.copies,
        reason=_reason(coordinator, job, stage),
        grown_by=job.origins[stage.spec.id].by if stage.spec.id in job.origins else "",
        private=private,
        variant=stage.variant,
        degraded=stage.degraded,
        planned=coordinator.planned(job.id, stage.spec.id),
        seconds=stage.timing,
        figures=dict(stage.figures),
    )


def _reason(coordinator: Coordinator, job: JobState, stage: StageState) -> str:
    if stage.status not in ENDED:
        return coordinator.waits_for(job.id, stage.spec.id)
    if stage.error is not None and stage.status is not StageStatus.SKIPPED:
        return stage.error.message
    return stage.reason


def cluster_info(coordinator: Coordinator, now: int) -> ClusterInfo:
    """All nodes, by name, at a time in monotonic nanoseconds, and this process."""
    nodes = tuple(
        NodeInfo(
            name=AgentId(node.name),
            state=node.state.value,
            profile=node.profile,
            load=node.load,
            heard_seconds=node.heard_seconds,
            incarnation=node.incarnation,
        )
        for node in coordinator.fleet_view(now)
    )
    return ClusterInfo(nodes=nodes, epoch=coordinator.epoch, pid=os.getpid())
