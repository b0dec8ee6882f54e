"""Changes of jobs that run: each whole or not at all, and never by luck.

A patch is checked against the job as it is. Attempts that were given out, and that it touches, are asked back:
each agent answers that its attempt was given back, or what it has become. Until then the stages that the patch
touches are held, and all others go on. Then it is checked again and taken, in one decision with all its facts,
or refused. One patch of a job settles at a time; others wait for their turn.
"""

import hashlib
from collections.abc import Callable
from typing import Final

import msgspec

from starloom.agents.messages import Revoke
from starloom.dag import limits
from starloom.dag.draft import REFUSED, difference_of
from starloom.dag.errors import Conflict, InternalError, Overloaded, PatchRefused, Problem, StarloomError
from starloom.dag.facts import JobPatched, JobStatus
from starloom.dag.ids import AgentId, JobId, Revision, TaskToken
from starloom.dag.job import JobState
from starloom.dag.patch import Patch
from starloom.dag.patchtext import changes_shown, in_short
from starloom.dag.stagestate import ENDED, StageStatus
from starloom.orchestrator.admission import Admission
from starloom.orchestrator.changing import Changing
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.effects import Patched
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.inputs import PatchJob
from starloom.orchestrator.propagation import Propagation
from starloom.orchestrator.runs import Asked, Run
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.touching import Plan, plan_of

_SETTLE_NANOS: Final = round(limits.PATCH_SETTLE_SECONDS * NANOS)
_encode = msgspec.json.Encoder(order="sorted").encode


class Patching:
    """Takes patches in, and settles them."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        endings: Endings,
        propagation: Propagation,
        admission: Admission,
        changing: Changing,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._endings = endings
        self._propagation = propagation
        self._admission = admission
        self._changing = changing
        #: jobs with a patch that settles
        self._settling: dict[JobId, Run] = {}

    @property
    def next_time(self) -> int | None:
        """When the next patch has waited long enough."""
        return min((run.patches[0].deadline for run in self._settling.values()), default=None)

    def request(self, job: JobState, given: PatchJob) -> None:
        """Takes a patch, or puts it in the queue, or answers with all that is wrong."""
        asked = Asked(given.patch, _digest(given.patch), given.principal, [given.request])
        try:
            run = self._queue(job, asked)
        except StarloomError as error:
            self._ledger.answer(given.request, error)
            return
        if run is not None and run.patches[0] is asked:
            self._carefully(run, self._begin)

    def hello(self, agent: AgentId) -> None:
        """What was asked of an agent may have been lost with its session."""
        for run in self._settling.values():
            for task, holder in run.patches[0].revoked.items():
                if holder == agent and self._waits_for(run, task):
                    self._ledger.send(agent, Revoke(task=task))

    def settle(self) -> None:
        """Goes on with patches whose attempts have answered, or that have waited long enough."""
        for run in tuple(self._settling.values()):
            self._carefully(run, self._look)
        self._propagation.drain()

    def _carefully(self, run: Run, step: Callable[[Run], None]) -> None:
        """A defect in judging a patch refuses it. Once something of it is decided, its job fails."""
        said = self._ledger.said
        try:
            step(run)
        except Exception as error:
            what = f"the patch could not be judged, by a defect of Starloom's: {error!r}; please report it"
            if self._ledger.said == said and not self._ledger.damaged and run.patches:
                self._refuse(run, InternalError(what))
                self._carefully(run, self._begin)
                return
            self._endings.contain(run.job.id, "a patch", error)
            self._settling.pop(run.job.id, None)
            while run.patches:
                self._refuse(run, InternalError(f"job {run.job.id} has failed: {run.job.error}"))

    def _queue(self, job: JobState, asked: Asked) -> Run | None:
        """The job's run, with the patch in its queue; None if it is answered, or waits with its like. Raises the refusal."""
        if self._answered_before(job, asked):
            return None
        run = self._endings.runs.get(job.id)
        if run is None or job.status is not JobStatus.RUNNING:
            raise Conflict(f"job {job.id} is {job.status}; only a job that runs can be changed")
        self._check_words(asked.patch)
        for other in run.patches if asked.patch.id else ():
            if other.patch.id == asked.patch.id:
                _same(asked, other.digest)
                other.requests += asked.requests
                return None
        if len(run.patches) > limits.PATCHES_WAITING_MAX:
            what = f"{len(run.patches) - 1} patches of job {job.id} wait, PATCHES_WAITING_MAX"
            raise Overloaded(f"{what} = {limits.PATCHES_WAITING_MAX}; try again", limits.OVERLOADED_RETRY_SECONDS)
        run.patches.append(asked)
        return run

    def _answered_before(self, job: JobState, asked: Asked) -> bool:
        """Gives the first answer to a repeat. Raises it if it was a refusal, Conflict if the id is another patch's."""
        if not asked.patch.id:
            return False
        for fact in reversed(job.patches):
            if fact.patch == asked.patch.id:
                _same(asked, fact.digest)
                self._answer(asked, _patched(fact, existing=True))
                return True
        run = self._endings.runs.get(job.id)
        refused = run.refusals.get(asked.patch.id) if run is not None else None
        if refused is not None:
            _same(asked, refused[0])
            raise refused[1]
        return False

    @staticmethod
    def _check_words(patch: Patch) -> None:
        texts = (
            ("id", patch.id, "PATCH_ID_CHARACTERS_MAX", limits.PATCH_ID_CHARACTERS_MAX),
            ("why", patch.why, "PATCH_WHY_CHARACTERS_MAX", limits.PATCH_WHY_CHARACTERS_MAX),
        )
        long = [
            Problem(place, f"has {len(text)} characters, over {name} = {limit}")
            for place, text, name, limit in texts
            if len(text) > limit
        ]
        if long:
            raise PatchRefused(long, REFUSED)

    def _begin(self, run: Run) -> None:
        """Takes or refuses the patches of a job, until one has to wait for agents."""
        while run.patches:
            asked = run.patches[0]
            try:
                self._check_runs(run)
                plan = self._plan(run, asked.patch)
            except StarloomError as error:
                self._refuse(run, error)
            else:
                if plan.active and not asked.patch.restart:
                    self._revoke(run, asked, plan)
                    return
                self._take(run, asked, plan)
            # The next one is for the job as this one leaves it.
            self._propagation.drain()
        self._settling.pop(run.job.id, None)

    @staticmethod
    def _check_runs(run: Run) -> None:
        """Raises Conflict for a job that has ended, or is being cancelled."""
        job = run.job
        if run.closed or job.status is not JobStatus.RUNNING:
            raise Conflict(f"job {job.id} is {job.status}; only a job that runs can be changed")

    def _plan(self, run: Run, patch: Patch) -> Plan:
        """How the patch can be taken. Raises PatchRefused with everything that stands in its way."""
        job = run.job
        kinds = self._state.fleet.kinds
        problems = []
        if patch.if_revision not in (0, job.revision):
            what = f"is {patch.if_revision}, but the job is at revision {job.revision}{_last(job)}; look at it again"
            problems.append(Problem("if_revision", what))
        if len(job.patches) >= limits.PATCHES_PER_JOB_MAX:
            what = f"the job has had {len(job.patches)}, and PATCHES_PER_JOB_MAX = {limits.PATCHES_PER_JOB_MAX}"
            problems.append(Problem("patch", f"{what}; submit a new job"))
        difference, wrong = difference_of(job.shape, patch, kinds)
        problems += wrong
        problems += self._admission.stream_problems(job.shape.specs, difference)
        if not problems:
            problems += self._admission.infeasible_after(job.shape, difference)
        plan, started = plan_of(job, difference, run.publish, restart=patch.restart)
        problems += started
        if problems:
            raise PatchRefused(problems, REFUSED)
        more = sum(change.before is None for change in difference.stages)
        if more:
            self._admission.check_load(0, more)
        return plan

    def _revoke(self, run: Run, asked: Asked, plan: Plan) -> None:
        """Asks for the attempts that are given out, and holds what the patch touches."""
        self._settling[run.job.id] = run
        if not asked.deadline:
            asked.deadline = self._ledger.now + _SETTLE_NANOS
        run.held |= dict.fromkeys(plan.touched)
        run.queued.difference_update(plan.touched)
        for task, agent in plan.active.items():
            asked.revoked[task] = agent
            self._ledger.send(agent, Revoke(task=task))

    def _look(self, run: Run) -> None:
        """Whether all have answered; one that has started decides as well."""
        job, asked = run.job, run.patches[0]
        if run.closed or job.status is not JobStatus.RUNNING:
            self._begin(run)
            return
        waiting = [task for task in asked.revoked if self._waits_for(run, task)]
        stages = (job.stages.get(task.stage) for task in asked.revoked)
        started = any(stage and (stage.status is StageStatus.RUNNING or stage.status in ENDED) for stage in stages)
        if waiting and not started:
            if asked.deadline > self._ledger.now:
                return
            agents = ", ".join(sorted({asked.revoked[task] for task in waiting}))
            names = ", ".join(task.stage for task in waiting[: limits.NODES_EXPLAINED_MAX])
            what = f"{agents} did not say within PATCH_SETTLE_SECONDS = {limits.PATCH_SETTLE_SECONDS:g} s"
            why = Problem("patch", f"{what} whether {names} has started; try again")
            self._refuse(run, PatchRefused([why], REFUSED))
        self._begin(run)

    def _waits_for(self, run: Run, task: TaskToken) -> bool:
        """Whether the attempt is still given out, and not known to have started."""
        stage = run.job.stages.get(task.stage)
        return stage is not None and stage.status is StageStatus.PLACED and task.token in stage.live

    def _take(self, run: Run, asked: Asked, plan: Plan) -> None:
        """Everything that follows from the patch, in one decision."""
        job, patch = run.job, asked.patch
        revision = Revision(job.revision + 1)
        fact = JobPatched(
            job=job.id,
            revision=revision,
            difference=plan.difference,
            operations=tuple(map(in_short, patch.operations)),
            principal=asked.principal,
            why=patch.why,
            patch=patch.id,
            digest=asked.digest,
            restart=patch.restart,
        )
        why = f"the patch to revision {revision} runs it again"
        self._changing.take(run, plan, why, lambda: self._ledger.record(fact))
        self._release(run)
        run.patches.popleft()
        self._answer(asked, _patched(fact))

    def _release(self, run: Run) -> None:
        """What was held goes on, as its upstreams have it."""
        held, run.held = run.held, {}
        self._changing.decide(run, list(held))

    def _refuse(self, run: Run, error: StarloomError) -> None:
        asked = run.patches.popleft()
        if asked.patch.id and not error.retryable:
            run.refusals[asked.patch.id] = (asked.digest, error)
            if len(run.refusals) > limits.PATCH_REFUSALS_KEPT:
                del run.refusals[next(iter(run.refusals))]
        if run.job.status is JobStatus.RUNNING:
            self._release(run)
        else:
            run.held.clear()
        self._answer(asked, error)

    def _answer(self, asked: Asked, answer: Patched | StarloomError) -> None:
        for request in asked.requests:
            self._ledger.answer(request, answer)


def _patched(fact: JobPatched, *, existing: bool = False) -> Patched:
    return Patched(job=fact.job, revision=fact.revision, changes=changes_shown(fact.difference), existing=existing)


def _digest(patch: Patch) -> str:
    return hashlib.blake2b(_encode((patch.operations, patch.if_revision, patch.restart)), digest_size=16).hexdigest()


def _same(asked: Asked, digest: str) -> None:
    if asked.digest != digest:
        raise Conflict(f"the id {asked.patch.id!r} belongs to another patch of this job; use another id")


def _last(job: JobState) -> str:
    if not job.patches:
        return ""
    last = job.patches[-1]
    who = f" by {last.principal}" if last.principal else ""
    return f", since a patch{who}{f' ({last.why})' if last.why else ''}: {', '.join(last.operations)[:200]}"
