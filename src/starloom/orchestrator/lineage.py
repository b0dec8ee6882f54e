"""What stages consume and what lets them start: pure questions to a job's state."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from starloom.dag import limits
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Comparison, Dependency, Join, On, OnFailure
from starloom.dag.facts import Consumed
from starloom.dag.ids import StageId
from starloom.dag.job import JobState
from starloom.dag.stagestate import ENDED, Outcome, StageState, StageStatus
from starloom.dag.values import ValueRef


class Verdict(Enum):
    """What a stage's upstreams let it do. AHEAD: it waits, and may be given out ahead of those that have no result yet."""

    WAIT = "wait"
    AHEAD = "ahead"
    RUN = "run"
    SKIP = "skip"


class Fed(NamedTuple):
    """What an input port is fed with; `upstream` is None for a job input."""

    port: str
    ref: ValueRef
    consumed: Consumed
    upstream: StageState | None


def satisfied(arc: Dependency, upstream: Outcome | StageState) -> bool:
    """Whether an upstream that ended lets the downstream stage start."""
    if arc.on is On.COMPLETION:
        return True
    if upstream.status is not StageStatus.SUCCEEDED:
        return False
    return arc.comparison is None or upstream.holds.get(comparison_key(arc.comparison), False)


def verdict(job: JobState, stage: StageId) -> Verdict:
    """Whether a stage may run, is to be skipped, or waits. Takes time in the number of its upstreams.

    One with many that have not ended is not looked at: it only waits.
    """
    arcs = job.upstreams[stage]
    undecided = job.undecided[stage]
    spec = job.stages[stage].spec
    if spec.cancelled:
        return Verdict.SKIP
    if spec.join is Join.ANY and arcs:
        if any(satisfied(arc, up) for arc, up in _ended(job, arcs)):
            return Verdict.RUN
        return Verdict.WAIT if undecided else Verdict.SKIP
    if undecided:
        return Verdict.AHEAD if _may_go_ahead(job, stage, undecided) else Verdict.WAIT
    return Verdict.RUN if all(satisfied(arc, job.stages[arc.upstream]) for arc in arcs) else Verdict.SKIP


def _may_go_ahead(job: JobState, stage: StageId, undecided: int) -> bool:
    """Whether nothing but the success of attempts that are under way keeps a stage from running.

    Only of first attempts: what has failed or died before may do so again, and what goes ahead is not to blame for that.
    """
    if undecided > limits.DELEGATED_UPSTREAMS_MAX or job.options.max_parallel or job.stages[stage].deaths:
        return False
    for arc in job.upstreams[stage]:
        upstream = job.stages[arc.upstream]
        if upstream.status in ENDED:
            if not satisfied(arc, upstream):
                return False
        elif (
            len(upstream.live) != 1
            or arc.on is On.COMPLETION
            or upstream.spec.policy.on_failure is not OnFailure.FAIL
            or upstream.failures
            or upstream.deaths
        ):
            return False
    return True


def _ended(job: JobState, arcs: list[Dependency]) -> Iterator[tuple[Dependency, StageState]]:
    for arc in arcs:
        upstream = job.stages[arc.upstream]
        if upstream.status in ENDED:
            yield arc, upstream


def made_again(job: JobState) -> dict[StageId, StageId]:
    """The stages that may read what rests on one that has to run again, over whatever lies between: each with one such.

    Takes time in the size of the job.
    """
    found: dict[StageId, StageId] = {}
    todo = [(name, name) for name, stage in job.stages.items() if stage.former is not None]
    while todo:
        name, again = todo.pop()
        for arc in job.downstreams[name]:
            if arc.downstream not in found:
                found[arc.downstream] = again
                if job.stages[arc.downstream].status in ENDED:
                    todo.append((arc.downstream, again))
    return found


def resting_on(job: JobState, stages: Iterable[StageId]) -> dict[StageId, StageId]:
    """What may have been computed from what some stages gave before they had to run again: results, and attempts that are under way.

    The nearest come first, each with the one of the stages. Takes time in what is downstream of those.
    """
    found: dict[StageId, StageId] = {}
    todo = deque((name, name) for name in stages if job.stages[name].former is not None)
    while todo:
        name, first = todo.popleft()
        for arc in job.downstreams[name]:
            stage = job.stages[arc.downstream]
            if not arc.output or arc.downstream in found:
                continue
            got = stage.consumed.get(arc.input)
            # What a result had read that was given up is not known any more.
            if stage.live or stage.former is not None or (got is not None and got.upstream == name):
                found[arc.downstream] = first
                todo.append((arc.downstream, first))
    return found


def skip_reason(job: JobState, stage: StageId) -> str:
    """Why a stage is skipped: it was cancelled, or its first upstream that does not let it start."""
    if job.stages[stage].spec.cancelled:
        return "it is cancelled in the constellation"
    for arc in job.upstreams[stage]:
        upstream = job.stages[arc.upstream]
        if upstream.status not in ENDED or satisfied(arc, upstream):
            continue
        if upstream.status is StageStatus.SUCCEEDED and arc.comparison is not None:
            asked = arc.comparison
            where = f"{asked.output}.{asked.path}" if asked.path else asked.output
            return f"{arc.upstream}: {where} {asked.operator} {asked.value!r} does not hold"
        return f"{arc.upstream} was {upstream.status}"
    return ""


def inputs_of(job: JobState, stage: StageId) -> list[Fed]:
    """What each input port of a stage that may run is fed with, in the order of its bindings and arcs."""
    fed = []
    for binding in job.bindings[stage]:
        ref = job.inputs.get(binding.source)
        if ref is not None:
            fed.append(Fed(binding.input, ref, Consumed(StageId(""), None, ref.digest), None))
    for arc in job.upstreams[stage]:
        upstream = job.stages[arc.upstream]
        ref = upstream.outputs.get(arc.output) if arc.output else None
        if ref is not None and satisfied(arc, upstream):
            fed.append(Fed(arc.input, ref, Consumed(arc.upstream, upstream.committed, ref.digest), upstream))
    return fed


def lineage_fault(job: JobState, stage: StageId, consumed: Mapping[str, Consumed]) -> str:
    """Why a result may not be committed: it read something other than what its upstreams have; empty if it may.

    Another attempt's output with the same digest is as good. An upstream that is being made again is judged by
    what it had: if that changes, its consumers are run again.
    """
    known = 0
    for binding in job.bindings[stage]:
        ref = job.inputs.get(binding.source)
        got = consumed.get(binding.input)
        if ref is None:
            # A stream, or one that is optional and was not given.
            known += got is not None and not got.upstream
            continue
        known += 1
        if got is None or got.upstream or got.digest != ref.digest:
            return f"input {binding.input} was not read from the job's input {binding.source}"
    for arc in job.upstreams[stage]:
        if not arc.output:
            continue
        got = consumed.get(arc.input)
        if got is None:
            if arc.on is not On.COMPLETION and job.stages[stage].spec.join is Join.ALL:
                return f"input {arc.input} was not read from {arc.upstream}"
            continue
        known += 1
        upstream = job.stages[arc.upstream]
        outcome = upstream.former or upstream.outcome
        now = outcome.outputs.get(arc.output)
        # Who was not told the digest of a stream's end knows it by the attempt that gave it.
        untold = now is not None and now.stream and not got.digest and got.token == upstream.committed
        same = untold or (now is not None and now.digest == got.digest)
        if got.upstream != arc.upstream or not same:
            return f"input {arc.input} was read from another result of {arc.upstream} than the one that counts"
    return "" if known == len(consumed) else "it read inputs that nothing feeds"


def changes(arc: Dependency, former: Outcome, now: StageState) -> bool:
    """Whether another outcome of an upstream differs in what a dependency asks or carries."""
    if satisfied(arc, former) != satisfied(arc, now):
        return True
    return bool(arc.output) and _digest(former, arc) != _digest(now, arc)


def still_stands(arc: Dependency, former: Outcome, now: StageState, downstream: StageState) -> bool:
    """Whether a downstream stage's result rests on nothing of the upstream that changed."""
    if satisfied(arc, former) != satisfied(arc, now):
        return False
    got = downstream.consumed.get(arc.input) if arc.output else None
    if got is None and downstream.spec.join is Join.ANY:
        return True
    # A stage that was not let run rests on no value; one that failed may do better with another.
    skipped = downstream.status is StageStatus.SKIPPED and downstream.error is None
    return skipped or (got.digest if got else None) == _digest(now, arc)


def _digest(outcome: Outcome | StageState, arc: Dependency) -> str | None:
    ref = outcome.outputs.get(arc.output)
    return ref.digest if ref else None


def comparisons_of(job: JobState, stage: StageId) -> tuple[Comparison, ...]:
    """The different comparisons that dependencies make of a stage's outputs, in a fixed order."""
    arcs = job.downstreams[stage]
    if not arcs:
        return ()
    found: dict[str, Comparison] = {}
    for arc in arcs:
        if arc.comparison is not None:
            found.setdefault(comparison_key(arc.comparison), arc.comparison)
    return tuple(found.values())
