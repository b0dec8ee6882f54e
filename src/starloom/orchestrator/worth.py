"""Whether a plan of a job that runs is worth its making. Pure."""

from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.expectation import run_seconds, told_seconds
from starloom.dag.kinds import KindSpec
from starloom.dag.stagestate import ENDED, StageState
from starloom.dag.variants import allowed, ways_of
from starloom.orchestrator.advice import cells, known_share
from starloom.orchestrator.planwanted import runs_seconds
from starloom.orchestrator.runs import Run
from starloom.orchestrator.state import State


def may_gain(run: Run, nodes: int) -> bool:
    """Whether stages wait for each other, and are neither few nor too many, or a deadline may ask for other variants.

    What streams ends when its source does. Plans here know of no bound on stages that run at one time.
    """
    job = run.job
    many = len(job.stages) >= limits.PLAN_LIVE_STAGES_MIN and bool(job.shape.dependency_count)
    return (
        (many or chooses(run))
        and len(job.stages) <= limits.PLAN_LIVE_STAGES_MAX
        and cells(job.shape.specs.values(), nodes) <= limits.PLAN_LIVE_CELLS_MAX
        and not job.options.max_parallel
        and not run.streams.groups
    )


def chooses(run: Run) -> bool:
    """Whether it has a deadline, and stages of which several variants may be taken."""
    return bool(run.job.deadline_seconds) and any(_has_choice(run, spec) for spec in run.job.shape.specs.values())


def is_open(run: Run, stage: StageState) -> bool:
    """Whether a plan may still choose a stage's variant: it never had a place."""
    return not stage.variant and stage.status not in ENDED and _has_choice(run, stage.spec)


def _has_choice(run: Run, spec: StageSpec) -> bool:
    if not spec.variants or spec.variant:
        return False
    return len(allowed(spec, run.job.shape.origin.least_quality)) > 1


def work_seconds(run: Run, state: State) -> float:
    """What its stages are expected to take, one after the other."""
    kinds, total = state.fleet.kinds, 0.0
    known: dict[str, float] = {}
    for spec in run.job.shape.specs.values():
        kind: KindSpec | None = kinds.get(spec.kind)
        if kind is None:
            continue
        # Of several variants the best one, as long as nothing is known of time.
        best = ways_of(spec)[0]
        if told_seconds(best, kind) is not None:
            total += run_seconds(best, kind)
            continue
        seconds = known.get(spec.kind)
        if seconds is None:
            seconds = known[spec.kind] = _usual_seconds(kind, state)
        total += seconds
    return total


def is_known(run: Run, state: State) -> bool:
    """Whether it is known how long its stages run: where it is not, there will be no plan to wait for."""
    kinds, members = state.fleet.kinds, list(state.fleet.members.values())
    specs = run.job.shape.specs.values()
    return known_share(specs, kinds, runs_seconds(specs, kinds, members, state.planner)) >= limits.PLAN_KNOWN_SHARE


def _usual_seconds(kind: KindSpec, state: State) -> float:
    """What a run takes on some node that offers the kind; 0 if none does."""
    for member in state.fleet.members.values():
        if kind.name in member.offers:
            return state.planner.expected_seconds(kind, member.name, kind.targets[0])
    return 0.0
