"""What a patch would mean for the stages of a running job: which it touches, and what stands in the way."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Dependency
from starloom.dag.errors import Problem
from starloom.dag.ids import AgentId, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.patch import Difference, arc_key
from starloom.dag.stagestate import ACTIVE, ENDED, StageState, StageStatus
from starloom.dag.values import JOB_STORE
from starloom.orchestrator.lineage import comparisons_of


@dataclass(frozen=True, slots=True)
class Plan:
    """How a patch can be taken: `active` attempts have to end first, and results of `ended` stages are given up."""

    difference: Difference
    touched: tuple[StageId, ...]
    active: dict[TaskToken, AgentId] = field(default_factory=dict)
    ended: tuple[StageId, ...] = ()


def plan_of(
    job: JobState, difference: Difference, published: Mapping[StageId, tuple[str, ...]], *, restart: bool
) -> tuple[Plan, list[Problem]]:
    """The plan for a difference, and what stands in its way: stages that have started, unless they may be run again."""
    touched = touched_by(job, difference, published)
    problems: list[Problem] = []
    active: dict[TaskToken, AgentId] = {}
    ended: list[StageId] = []
    for name, why in touched.items():
        stage = job.stages[name]
        if stage.status in ACTIVE:
            active |= {TaskToken(job.id, name, token): agent for token, agent in stage.live.items()}
        elif stage.status in ENDED:
            ended.append(name)
        if not restart and stage.status not in (StageStatus.PENDING, StageStatus.PLACED):
            what = f"{state_of(stage)}, and the patch {why}; say restart to run it again, with what is downstream of it"
            problems.append(Problem(f"stages.{name}", what))
    return Plan(difference, tuple(touched), active, tuple(ended)), problems


def touched_by(
    job: JobState, difference: Difference, published: Mapping[StageId, tuple[str, ...]]
) -> dict[StageId, str]:
    """The stages of a job that a difference touches, each with what it does to them."""
    found: dict[StageId, str] = {}
    for change in difference.stages:
        if change.stage in job.stages:
            found[change.stage] = "changes it" if change.after else "removes it"
    for name in difference.touched:
        if name in job.stages:
            found.setdefault(name, "feeds it differently")
    for name, why in (*_newly_compared(job, difference), *_newly_declared(job, difference, published)):
        found.setdefault(name, why)
    return found


def state_of(stage: StageState) -> str:
    """How far a stage is, as the middle of a sentence."""
    match stage.status:
        case StageStatus.RUNNING:
            return f"runs on {', '.join(sorted(stage.live.values()))}"
        case StageStatus.PLACED:
            return f"was given to {', '.join(sorted(stage.live.values()))}"
        case StageStatus.SKIPPED:
            return "was skipped"
        case _:
            return f"has {stage.status}"


def _newly_compared(job: JobState, difference: Difference) -> Iterator[tuple[StageId, str]]:
    """Upstreams whose outputs would be compared otherwise: comparisons are made where and when the outputs are."""
    added: dict[StageId, list[Dependency]] = {}
    for arc in difference.added:
        if arc.comparison is not None:
            added.setdefault(arc.upstream, []).append(arc)
    removed = {arc_key(arc) for arc in difference.removed if arc.comparison is not None}
    for name in dict.fromkeys([*added, *(key.upstream for key in removed)]):
        stage = job.stages.get(name)
        if stage is None or stage.status is StageStatus.SKIPPED:
            continue
        asked = [arc for arc in job.downstreams[name] if arc.comparison is not None and arc_key(arc) not in removed]
        keys = dict.fromkeys(comparison_key(arc.comparison) for arc in (*asked, *added.get(name, ())) if arc.comparison)
        if stage.status is StageStatus.SUCCEEDED:
            if not keys.keys() <= stage.holds.keys():
                yield name, "compares its outputs in another way"
        elif list(keys) != [comparison_key(comparison) for comparison in comparisons_of(job, name)]:
            yield name, "compares its outputs in another way"


def _newly_declared(
    job: JobState, difference: Difference, published: Mapping[StageId, tuple[str, ...]]
) -> Iterator[tuple[StageId, str]]:
    """Stages with outputs that would be the job's, and were not made for the job store."""
    for name, change in difference.outputs.items():
        output = change.after
        stage = job.stages.get(output.upstream) if output else None
        if output is None or stage is None or output.output in published.get(output.upstream, ()):
            continue
        ref = stage.outputs.get(output.output)
        there = ref is not None and (ref.inline is not None or ref.holder == JOB_STORE)
        if stage.status is not StageStatus.SKIPPED and not there:
            yield output.upstream, f"makes {output.output} an output of the job, {name}"
