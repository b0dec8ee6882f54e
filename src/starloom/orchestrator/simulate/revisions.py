"""Properties of patches: each is there whole or not at all, once, in time; and what was given back stays given back."""

from collections.abc import Iterable, Sequence

from starloom.agents.messages import Assign, Command, Report, Revoke, Revoked
from starloom.dag import facts as f
from starloom.dag import limits
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Comparison, Constellation, Dependency, Join, On
from starloom.dag.errors import PatchRefused, StarloomError
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import AgentId, JobId, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.patch import Patch
from starloom.dag.validate import problems
from starloom.dag.variants import chosen
from starloom.orchestrator.effects import Answer, Decision, Patched
from starloom.orchestrator.inputs import Input, PatchJob
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.flowing import touches_streams
from starloom.orchestrator.simulate.jobview import Given, JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.loop import SECOND
from starloom.orchestrator.simulate.model import KINDS, whole_params
from starloom.orchestrator.simulate.patched import differing, patched, same
from starloom.orchestrator.simulate.property import LARGE_JOB_STAGES, Property, difference_of

SETTLE_NANOS = round((limits.PATCH_SETTLE_SECONDS + 0.1) * SECOND)
"""What is asked waits some milliseconds before it is decided on."""
VALIDATED_EACH = 3
"""Of so many revisions one is validated as a whole, and the last one."""


class _OfPatches(Property):
    """The base of properties of requests: which is which."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._asked: dict[tuple[int, int], PatchJob] = {}

    def asked(self, orchestrator: Orchestrator, given: Input) -> None:
        if isinstance(given, PatchJob):
            self._asked[orchestrator.epoch, given.request] = given

    def _request(self, orchestrator: Orchestrator, answer: Answer) -> PatchJob | None:
        """The patch that is answered, if one is."""
        return self._asked.pop((orchestrator.epoch, answer.request), None)


class WholeOrNot(_OfPatches):
    name = "a patch is visible entirely or not at all"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: what attempts were asked to compare
        self._compares: dict[TaskToken, set[str]] = {}
        #: of each orchestrator's epoch, its jobs as its decisions have them, those that were not written included
        self._decided: dict[int, dict[JobId, Constellation]] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if job is None:
            return
        if isinstance(fact, f.JobPatched):
            self._patched(fact, job)
        elif isinstance(fact, f.StageFact) and stage is None:
            self.broken(f"{fact!r} is of a stage that revision {job.revision} does not have", fact.job, fact.stage)
        elif isinstance(fact, f.StageCommitted) and stage is not None:
            self._committed(fact, job)

    def began(self, process: AgentProcess, assign: Assign) -> None:
        task = assign.task
        given = self.judge.placed.get(task)
        if given is None:
            return
        fault = _fault(given, assign)
        job = self.judge.jobs[task.job]
        same_revision = given.revision == job.revision
        if same_revision and _keys(assign.comparisons) != _keys(_compared(job.downstreams[task.stage])):
            fault = fault or "compares something else"
        if fault:
            self.broken(f"{process.name} {fault} than revision {given.revision} says", task.job, task.stage)
        self._compares[task] = _keys(assign.comparisons)

    def decided(self, orchestrator: Orchestrator, decision: Decision) -> None:
        """A refusal leaves the job as it was, and a patch makes of it what the fact says; looked at when one is answered."""
        # One that was replaced decides on jobs as it has them, and writes none of it.
        if orchestrator is not self.world.current or not (decision.facts or decision.answers):
            return
        jobs = self._decided.setdefault(orchestrator.epoch, {})
        for fact in decision.facts:
            made = difference_of(fact)
            if made is not None:
                job = getattr(fact, "job", JobId(""))
                before = jobs.get(job) or self.judge.jobs[job].constellation
                jobs[job] = differing(before, made)
        for answer in decision.answers:
            asked = self._request(orchestrator, answer)
            if asked is None:
                continue
            job = JobId(asked.job)
            view = self.judge.jobs.get(job)
            known = jobs.get(job) or (view.constellation if view is not None else None)
            state = orchestrator.coordinator.jobs.get(job)
            if known is None or state is None:
                continue
            if not same(known, state.constellation):
                what = "refused" if isinstance(answer.result, StarloomError) else "taken"
                self.broken(f"the patch {asked.patch.why} was {what}, and the job is another one than was decided", job)

    def replayed(self, orchestrator: Orchestrator) -> None:
        for name, job in self.judge.jobs.items():
            state = orchestrator.coordinator.jobs.get(name)
            if state is None or not job.differences:
                continue
            if state.revision != job.revision or not same(state.constellation, job.constellation):
                self.broken(f"is not what the journal's revision {job.revision} is", name)

    def end(self) -> None:
        self.replayed(self.world.current)
        for name, job in self.judge.jobs.items():
            state = self.world.current.coordinator.jobs.get(name)
            if state is None:
                continue
            if job.differences:
                self._validate(name, job.constellation)
            wanted = job.submitted.constellation
            for revision, made in enumerate([None, *job.differences], 1):
                wanted = wanted if made is None else differing(wanted, made)
                large = len(job.stages) > LARGE_JOB_STAGES
                if not large and not same(state.constellation_at(revision), wanted):
                    self.broken(f"revision {revision} is shown as another than was taken", name)

    def _validate(self, job: JobId, constellation: Constellation) -> None:
        if wrong := problems(constellation, KINDS):
            self.broken(f"patches have made a constellation that is not valid: {wrong[0]}", job)

    def _patched(self, fact: f.JobPatched, job: JobView) -> None:
        drawn = self.judge.patches.get(fact.why)
        if drawn is None:
            self.broken(f"revision {fact.revision} is of a patch that nobody asked for", fact.job)
            return
        if fact.revision != job.revision + 1:
            self.broken(f"revision {fact.revision} follows on {job.revision}", fact.job)
        if drawn.patch.if_revision not in (0, job.revision):
            self.broken(f"{fact.why} was for revision {drawn.patch.if_revision}, not {job.revision}", fact.job)
        found = differing(job.constellation, fact.difference)
        if not same(found, patched(job.constellation, drawn.patch)):
            self.broken(f"{fact.why} makes something else of the job than it says", fact.job)
        if drawn.undoes and not same(found, job.before):
            self.broken(f"{fact.why} does not undo revision {drawn.undoes}", fact.job)
        if fact.revision % VALIDATED_EACH == 0 and len(found.stages) <= LARGE_JOB_STAGES:
            self._validate(fact.job, found)
        for name in fact.difference.touched:
            stage = job.stages.get(name)
            if stage is not None and stage.live:
                self.broken(f"{fact.why} changes a stage of which {stage.live} runs", fact.job, name)
            elif stage is not None and stage.committed is not None and not fact.restart:
                self.broken(f"{fact.why} changes a stage that has ended, without restart", fact.job, name)

    def _committed(self, fact: f.StageCommitted, job: JobView) -> None:
        task = TaskToken(fact.job, fact.stage, fact.token)
        given, now = self.judge.placed.get(task), job.given(fact.stage)
        if given is None or given.revision == now.revision:
            return
        if (given.spec, _arcs(given), set(given.bindings)) != (now.spec, _arcs(now), set(now.bindings)):
            what = f"{fact.token} was given out for revision {given.revision}, and commits in {now.revision}"
            self.broken(f"{what}, which has changed the stage", fact.job, fact.stage)
        elif self._compares.get(task) != _keys(_compared(job.downstreams[fact.stage])):
            self.broken(f"{fact.token} compared something else than revision {now.revision} does", fact.job, fact.stage)


def _fault(given: Given, assign: Assign) -> str:
    """In what an assignment differs from its stage, as that was when it was given out."""
    spec = given.spec
    if assign.kind != spec.kind or assign.timeout_seconds != spec.policy.timeout_seconds:
        return f"runs {assign.kind} with {assign.timeout_seconds} s"
    way = next((each for each in spec.variants if each.name == given.variant), None)
    if assign.params != whole_params(spec if way is None else chosen(spec, way)):
        return f"runs it with {assign.params}"
    sources = {(arc.input, arc.upstream) for arc in given.arcs if arc.output}
    sources |= {(binding.input, StageId("")) for binding in given.bindings}
    fed = {(item.port, item.consumed.upstream) for item in assign.inputs}
    fed |= {(port, awaited.upstream) for awaited in assign.awaits for port in (*awaited.feeds, *awaited.streams)}
    if not fed <= sources:
        return f"reads {sorted(fed - sources)}"
    needed = {(arc.input, arc.upstream) for arc in given.arcs if arc.output and arc.on is not On.COMPLETION}
    if spec.join is Join.ALL and not needed <= fed:
        return f"does not read {sorted(needed - fed)}"
    return ""


def _arcs(given: Given) -> list[str]:
    """The dependencies in an order of their own."""
    return sorted(map(repr, given.arcs))


def _compared(arcs: Iterable[Dependency]) -> Iterable[Comparison]:
    return (arc.comparison for arc in arcs if arc.comparison is not None)


def _keys(comparisons: Iterable[Comparison]) -> set[str]:
    return {comparison_key(comparison) for comparison in comparisons}


class StaysRevoked(Property):
    name = "a revoked token is never sent again and never commits"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._sent: set[TaskToken] = set()
        self._revoked: set[TaskToken] = set()
        self._given_back: set[TaskToken] = set()

    def sent(self, orchestrator: Orchestrator, agent: AgentId, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Revoke):
                self._revoked.add(command.task)
            elif isinstance(command, Assign):
                task = command.task
                if task in self._revoked:
                    self.broken(f"{agent} is given {task.token}, which was revoked", task.job, task.stage)
                elif task in self._sent:
                    self.broken(f"{agent} is given {task.token} a second time", task.job, task.stage)
                self._sent.add(task)

    def told(self, process: AgentProcess, report: Report) -> None:
        if isinstance(report, Revoked):
            self._given_back.add(report.task)

    def began(self, process: AgentProcess, assign: Assign) -> None:
        task = assign.task
        if task in self._given_back:
            self.broken(f"{process.name} runs {task.token}, which it gave back", task.job, task.stage)

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageCommitted | f.StageStarted):
            return
        if TaskToken(fact.job, fact.stage, fact.token) in self._given_back:
            self.broken(f"{fact.token} was given back, and the journal has {fact!r}", fact.job, fact.stage)


class SettlesInTime(Property):
    """Of one job, one patch settles at a time: the first that waits, since its turn came."""

    name = "a patch settles or is refused within its deadline"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._waiting: dict[int, dict[str, dict[int, int]]] = {}

    def asked(self, orchestrator: Orchestrator, given: Input) -> None:
        if isinstance(given, PatchJob):
            of_job = self._waiting.setdefault(orchestrator.epoch, {}).setdefault(given.job, {})
            of_job[given.request] = 0

    def decided(self, orchestrator: Orchestrator, decision: Decision) -> None:
        waiting = self._waiting.get(orchestrator.epoch)
        if not waiting:
            return
        now = self.world.loop.now
        answered = {answer.request for answer in decision.answers}
        for job, of_job in tuple(waiting.items()):
            for request in answered.intersection(of_job):
                del of_job[request]
            if not of_job:
                del waiting[job]
                continue
            first, since = next(iter(of_job.items()))
            if not since:
                of_job[first] = now
            elif now - since > SETTLE_NANOS:
                self.broken(f"a patch waits for {(now - since) / SECOND:.1f} s", job)

    def end(self) -> None:
        for client in self.world.clients:
            if not client.patcher.done:
                self.broken(f"{client.name} has no answer to {client.patcher.waits_for}", client.job or "")


class Reasons(_OfPatches):
    name = "a patch is refused for a reason"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._answered: set[tuple[int, str]] = set()

    def decided(self, orchestrator: Orchestrator, decision: Decision) -> None:
        """Looks at refusals by a job's present state: not at repeats, nor where it changed in the same decision."""
        if not decision.answers:
            return
        changed = {getattr(fact, "job", None) for fact in decision.facts if difference_of(fact) is not None}
        for answer in decision.answers:
            asked = self._request(orchestrator, answer)
            if asked is None:
                continue
            key = orchestrator.epoch, asked.patch.id
            repeat = asked.patch.id and key in self._answered
            self._answered.add(key)
            if isinstance(answer.result, PatchRefused) and not repeat and asked.job not in changed:
                self._look(orchestrator.coordinator.jobs[JobId(asked.job)], asked.patch, answer.result)

    def _look(self, job: JobState, patch: Patch, refusal: PatchRefused) -> None:
        """One that may run again what has started, and that fits, can only fail for want of a node."""
        if not patch.restart or patch.if_revision not in (0, job.revision):
            return
        try:
            after = patched(job.constellation, patch)
        except LookupError:
            return
        if same(after, job.constellation) or problems(after, KINDS) or touches_streams(job.constellation, after):
            return
        wrong = [each for each in refusal.problems if not each.place.endswith(".require")]
        if wrong:
            self.broken(f"{patch.why} could be taken, and was refused: {wrong[0]}", job.id)


class TakenOnce(_OfPatches):
    name = "a patch is taken once and answered the same"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        #: patches with an id that are journaled, and their first answers; refusals by the orchestrator's epoch
        self._taken: dict[str, f.JobPatched] = {}
        self._answers: dict[str, Patched] = {}
        self._refusals: dict[tuple[int, str], str] = {}

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.JobPatched):
            return
        if fact.why in self._taken:
            self.broken(f"{fact.why} is taken again, as revision {fact.revision}", fact.job)
        self._taken[fact.why] = fact

    def answered(self, orchestrator: Orchestrator, answer: Answer) -> None:
        asked = self._request(orchestrator, answer)
        if asked is None:
            return
        why = asked.patch.why
        taken = self._taken.get(why)
        if isinstance(answer.result, Patched):
            self._accepted(asked, answer.result, taken)
        elif isinstance(answer.result, StarloomError):
            # One that was replaced does not know what was taken since.
            if taken is not None and orchestrator is self.world.current:
                self.broken(f"{why} was taken as revision {taken.revision}, and refused: {answer.result}", taken.job)
            self._refused(orchestrator, asked, answer.result)

    def _refused(self, orchestrator: Orchestrator, asked: PatchJob, error: StarloomError) -> None:
        """The reasons are kept in memory, as long as the job runs."""
        why, job = asked.patch.why, self.judge.jobs.get(JobId(asked.job))
        if asked.patch.id != why or error.retryable or job is None or job.status is not JobStatus.RUNNING:
            return
        first = self._refusals.setdefault((orchestrator.epoch, why), str(error))
        if first != str(error):
            self.broken(f"{why} was refused: {first}; and then: {error}", asked.job)

    def _accepted(self, asked: PatchJob, result: Patched, taken: f.JobPatched | None) -> None:
        why = asked.patch.why
        if taken is None or taken.revision != result.revision:
            self.broken(f"{why} was answered with revision {result.revision}, which is not journaled so", asked.job)
        first = self._answers.setdefault(why, result)
        if (first.revision, first.changes) != (result.revision, result.changes):
            self.broken(f"{why} was answered {first}, and then {result}", asked.job)
        if not asked.patch.id and result.existing:
            self.broken(f"{why} has no id, and is known", asked.job)
