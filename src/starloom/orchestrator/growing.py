"""What results add to their jobs: judged as patches are, and taken with the result, as one fact.

A stage may add stages, and feed what is downstream of it and has not started. One that runs again and asks for
the same changes nothing. If it asks for something else, this is as any result that came out differently: what
it had changed is taken back, with all that came of it, and what rests on it runs again.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from starloom.agents.messages import Finished
from starloom.dag import limits
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Private
from starloom.dag.draft import difference_of
from starloom.dag.errors import PatchRefused, Problem
from starloom.dag.facts import Growth, StageCommitted
from starloom.dag.growth import digest_of, resolved
from starloom.dag.ids import AgentId, Revision, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.patch import Difference, Patch, between
from starloom.dag.patchtext import in_short
from starloom.dag.privacy import said_by, strictest
from starloom.dag.shape import Shape, constellation_at
from starloom.dag.stagestate import ACTIVE, StageState, StageStatus
from starloom.orchestrator.admission import Admission
from starloom.orchestrator.changing import Changing
from starloom.orchestrator.lineage import comparisons_of
from starloom.orchestrator.runs import Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import State
from starloom.orchestrator.takingback import without
from starloom.orchestrator.touching import Plan, plan_of, state_of, touched_by

_OPEN: Final = (StageStatus.PENDING, StageStatus.SKIPPED)
"""What may be fed differently: it has not read anything, or never will."""


class Grown(NamedTuple):
    """A growth that may be taken."""

    fact: Growth
    plan: Plan


class Growing:
    """Judges what results add, and takes it."""

    def __init__(self, state: State, settler: Settler, admission: Admission, changing: Changing) -> None:
        self._state = state
        self._settler = settler
        self._admission = admission
        self._changing = changing

    def judge(self, run: Run, stage: StageState, report: Finished) -> Grown | None:
        """What a result changes; None for nothing. Raises PatchRefused with everything against it, Overloaded."""
        job, name = run.job, stage.spec.id
        former = job.growths.get(name)
        if former is None and report.growth is None:
            return None
        digest = digest_of(report.growth)
        given = run.labels.given(name)
        if digest == (former.digest if former else "") and not _freer(former, given.level if given else None):
            return None
        kinds = self._state.fleet.kinds
        if report.growth is not None and not kinds[stage.spec.kind].grows:
            raise _refused(name, [Problem("kind", f"{stage.spec.kind} does not declare that it grows")])
        base = without(job, name, kinds) if former is not None else job.shape
        started = () if stage.former is not None else _started(job, name)
        asked, problems = resolved(report.growth or Patch(operations=()), base, name, started, kinds)
        whole, wrong = self._difference(base, asked)
        problems += wrong
        if not problems:
            problems += _strangers(base, name, whole)
            problems += _uncompared(job, name, whole)
        difference = whole
        if base is not job.shape and not problems:
            difference = between(job.constellation, constellation_at(base.constellation, [whole]))
        problems += _over_bounds(job, stage, difference)
        plan = self._plan(run, stage, difference, problems)
        if problems:
            raise _refused(name, problems)
        self._admission.check_load(0, sum(change.before is None for change in difference.stages))
        if not difference:
            return None
        return Grown(
            Growth(
                revision=Revision(job.revision + 1),
                difference=difference,
                digest=digest,
                whole=None if whole is difference else whole,
                operations=tuple(map(in_short, asked.operations)) or ("take back",),
            ),
            plan,
        )

    def commit(self, run: Run, fact: StageCommitted, grown: Grown) -> None:
        """The stage has a result, and the job what it adds."""
        why = f"{fact.stage} was run again and grew differently"
        self._changing.take(run, grown.plan, why, lambda: self._settler.commit(run, fact))

    def _difference(self, base: Shape, asked: Patch) -> tuple[Difference, list[Problem]]:
        """What a patch would change, and everything that is wrong with it."""
        if not asked.operations:
            return Difference(), []
        difference, problems = difference_of(base, asked, self._state.fleet.kinds, may_be_empty=True)
        problems += self._admission.stream_problems(base.specs, difference)
        if not problems:
            problems += self._admission.infeasible_after(base, difference)
        return difference, problems

    def _plan(self, run: Run, stage: StageState, difference: Difference, problems: list[Problem]) -> Plan:
        """How the change can be taken: what has started runs again only if the stage itself does."""
        job, name = run.job, stage.spec.id
        if stage.former is None:
            touched = {each: why for each, why in touched_by(job, difference, run.publish).items() if each != name}
            active: dict[TaskToken, AgentId] = {}
            for each, why in touched.items():
                there = job.stages[each]
                if there.awaits and not there.started:
                    # It was given out ahead of others, and waits: nothing keeps it from being another one.
                    active |= {TaskToken(job.id, each, token): agent for token, agent in there.live.items()}
                elif there.status not in _OPEN:
                    problems.append(Problem(f"stages.{each}", f"{state_of(there)}, and the growth {why}"))
            return Plan(difference, tuple(touched), active)
        plan, _ = plan_of(job, difference, run.publish, restart=True)
        gone = {change.stage for change in difference.stages if change.after is None}
        lost = [each for each in job.came_of(name) if each in job.growths and each not in gone]
        found = _also(job, plan, lost, name)
        if any(_uncompared(job, name, difference)):
            # What is fed by it again asks of its result what this attempt was not asked: another one is.
            found = replace(found, ended=(*found.ended, name))
        return found


def _freer(former: Growth | None, level: Private | None) -> bool:
    """Whether something that a stage has added may go further than what it gives now may."""
    added = (change.after for change in former.stands.stages if change.before is None) if former is not None else ()
    return any(spec is not None and strictest(*said_by(spec)) != strictest(level, *said_by(spec)) for spec in added)


def _started(job: JobState, name: StageId) -> tuple[StageId, ...]:
    """Consumers of a stage that did not wait for it: of what they join, something else was there."""
    consumers = dict.fromkeys(arc.downstream for arc in job.downstreams[name])
    return tuple(each for each in consumers if job.stages[each].status not in _OPEN)


def _also(job: JobState, plan: Plan, more: list[StageId], but: StageId) -> Plan:
    """The plan, with more stages that have to run again, and without one."""
    touched = tuple(dict.fromkeys(each for each in (*plan.touched, *more) if each != but))
    active = {task: agent for task, agent in plan.active.items() if task.stage != but}
    for each in more:
        if job.stages[each].status in ACTIVE:
            active |= {TaskToken(job.id, each, token): agent for token, agent in job.stages[each].live.items()}
    results = [each for each in more if job.stages[each].committed is not None]
    ended = tuple(dict.fromkeys(each for each in (*plan.ended, *results) if each != but))
    return Plan(plan.difference, touched, active, ended)


def _refused(name: StageId, problems: list[Problem]) -> PatchRefused:
    return PatchRefused(problems, f"{name} may not grow like that, and nothing has changed")


def _strangers(base: Shape, name: StageId, difference: Difference) -> Iterator[Problem]:
    """Stages that are fed differently, and are not downstream."""
    fed = [stage for stage in difference.touched if stage in base.specs]
    direct = {arc.downstream for arc in base.downstreams[name]}
    if direct.issuperset(fed):
        return
    found, waiting = set(direct), list(direct)
    while waiting:
        for arc in base.downstreams[waiting.pop()]:
            if arc.downstream not in found:
                found.add(arc.downstream)
                waiting.append(arc.downstream)
    for stage in fed:
        if stage not in found:
            yield Problem(f"stages.{stage}", f"is not downstream of {name}, which may feed only what is")


def _uncompared(job: JobState, name: StageId, difference: Difference) -> Iterator[Problem]:
    """Comparisons of the stage's own outputs, which it would have had to make before it ended."""
    made = {comparison_key(comparison) for comparison in comparisons_of(job, name)}
    for arc in difference.added:
        if arc.upstream == name and arc.comparison is not None and comparison_key(arc.comparison) not in made:
            what = f"compares an output of {name}, which has ended; let {name} decide by itself what to add"
            yield Problem(f"stages.{arc.downstream}", what)


def _over_bounds(job: JobState, stage: StageState, difference: Difference) -> Iterator[Problem]:
    """Where a job or a stage would grow too much."""
    added = [change.stage for change in difference.stages if change.before is None]
    origin = job.origin(stage.spec.id)
    removed = sum(
        change.after is None and change.stage in job.origins and job.origins[change.stage].root == origin.root
        for change in difference.stages
    )
    root = job.stages.get(origin.root, stage).spec
    bounds = root.policy.grow
    total = job.grown.get(origin.root, 0) + len(added) - removed
    if added and total > bounds.stages:
        what = f"{total} stages would come of {root.id}, whose bound is {bounds.stages}"
        yield Problem("grow.stages", f"{what} (policy grow, GROWN_STAGES_MAX = {limits.GROWN_STAGES_MAX})")
    if added and origin.generation >= bounds.generations:
        what = f"it is generation {origin.generation} of {root.id}, whose bound is {bounds.generations}"
        yield Problem(
            "grow.generations", f"{what} (policy grow, GROWN_GENERATIONS_MAX = {limits.GROWN_GENERATIONS_MAX})"
        )
    if len(job.patches) >= limits.PATCHES_PER_JOB_MAX:
        what = f"the job has had {len(job.patches)} changes, and PATCHES_PER_JOB_MAX = {limits.PATCHES_PER_JOB_MAX}"
        yield Problem("patch", what)
