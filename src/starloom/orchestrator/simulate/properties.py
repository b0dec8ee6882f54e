"""What must hold in every run, whatever breaks. Each class is one property; `name` is what a violation of it is called.

A property has those of these methods that it needs:

    fact(fact, job, stage)      a fact is durable; the views are as they were before it
    written()                   all facts of a decision, or of several together, are
    decided(orchestrator, decision)         a coordinator has decided
    replayed(orchestrator)                  a coordinator has read the journal back
    asked(orchestrator, given), answered(orchestrator, answer), accepted(client, answer)
    sent(orchestrator, agent, commands), commanded(process, epoch, instructions)
    began(process, assign), told(process, report)
    end()                                   the run is over, and quiet for a while
"""

from starloom.agents.messages import Assign, Finished, Held, Report
from starloom.dag import facts as f
from starloom.dag import limits
from starloom.dag.errors import InternalError, StarloomError
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import TaskToken
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.effects import Answer, Stopped, Submitted
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.clients import Client
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.flowing import STREAMS
from starloom.orchestrator.simulate.growths import GROWTH, REFUSED
from starloom.orchestrator.simulate.intime import CopiesAreFew, DeadlinesAreKept, out_of_time
from starloom.orchestrator.simulate.inturn import CommitsInTurn, DiesWithWhatItAwaits, StartsInTurn
from starloom.orchestrator.simulate.jobview import JobView, StageView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.keeping import VariantsAreKept
from starloom.orchestrator.simulate.model import STREAMING, in_order, whole_params
from starloom.orchestrator.simulate.outcomes import Consistent, SameOutputs
from starloom.orchestrator.simulate.patched import differing
from starloom.orchestrator.simulate.property import Property, difference_of, may
from starloom.orchestrator.simulate.restarts import (
    NoOldEpoch,
    OneIsLeft,
    ReplayIsTheSame,
    SnapshotIsTheSame,
    StatesAreValid,
)
from starloom.orchestrator.simulate.revisions import Reasons, SettlesInTime, StaysRevoked, TakenOnce, WholeOrNot
from starloom.orchestrator.simulate.standing import StandsWhereItMay
from starloom.orchestrator.simulate.staying import StaysOnItsTiers


class Acyclic(Property):
    name = "acyclic"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        change = difference_of(fact)
        if isinstance(fact, f.JobSubmitted):
            name, made = fact.job, fact.constellation
        elif change is not None and job is not None:
            name, made = job.submitted.job, differing(job.constellation, change)
        else:
            return
        if len(in_order(made)) != len(made.stages):
            self.broken("an accepted constellation has a cycle", name)


class OneCommit(Property):
    name = "one commit"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._seen: set[TaskToken] = set()

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageCommitted | f.StageDefaulted | f.StageSkipped) or stage is None:
            return
        task = TaskToken(fact.job, fact.stage, fact.token)
        if stage.committed is not None:
            self.broken(f"{fact.token} commits beside {stage.committed}", fact.job, fact.stage)
        if task in self._seen:
            self.broken(f"{fact.token} commits again", fact.job, fact.stage)
        self._seen.add(task)


class ConditionsHold(Property):
    name = "conditions hold"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if job is None or stage is None:
            return
        if isinstance(fact, f.StagePlaced) and not may(job, fact.stage, stage, run=True, awaits=fact.awaits):
            self.broken(f"{fact.token} is placed against its conditions", fact.job, fact.stage)
        if (
            isinstance(fact, f.StageSkipped)
            and stage.status is StageStatus.PENDING
            and not may(job, fact.stage, stage, run=False)
        ):
            self.broken("it is skipped, though its conditions do not say so", fact.job, fact.stage)


class JournaledFirst(Property):
    name = "journaled before it runs"

    def began(self, process: AgentProcess, assign: Assign) -> None:
        task = assign.task
        if task not in self.judge.placed:
            self.broken(f"{process.name} runs {task}, of which the journal knows nothing", task.job, task.stage)


class ResultsOfTheirTokens(Property):
    name = "no result from a stale token"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageCommitted) or stage is None:
            return
        made = self.judge.made.get(TaskToken(fact.job, fact.stage, fact.token))
        if made is None:
            self.broken(f"{fact.token} commits, but no attempt of it finished", fact.job, fact.stage)
        elif {n: r.digest for n, r in made.outputs.items()} != {n: r.digest for n, r in fact.outputs.items()}:
            self.broken(f"{fact.token} commits what another attempt gave", fact.job, fact.stage)


class OnlyLiveTokens(Property):
    name = "nothing commits from a superseded token"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.StageCommitted) and stage is not None and fact.token not in stage.live:
            why = "is superseded" if fact.token in stage.over else "was never placed"
            self.broken(f"{fact.token} commits, though it {why}", fact.job, fact.stage)


class Budgets(Property):
    name = "budgets are kept"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if job is None or stage is None:
            return
        if isinstance(fact, f.StagePlaced):
            self._placed(fact, job, stage)
        elif isinstance(fact, f.StageFailed):
            self._failed(fact, job, stage)

    def began(self, process: AgentProcess, assign: Assign) -> None:
        if process.runner.running > process.profile.slots:
            self.broken(f"{process.name} runs {process.runner.running} attempts in {process.profile.slots} slots")

    def _placed(self, fact: f.StagePlaced, job: JobView, stage: StageView) -> None:
        bound = job.submitted.options.max_parallel
        streams = stage.spec.kind in STREAMING
        if 0 < bound <= job.live and not (_streams_live(job) and (streams or _streams_again(job))):
            self.broken(f"{job.live + 1} attempts of the job, and max_parallel is {bound}", fact.job, fact.stage)
        if streams:
            return
        slots = self.world.slots[fact.agent]
        live, waiting = self.judge.agent_live.get(fact.agent, 0), self.judge.waiting_on(fact.agent)
        if not fact.awaits and live - waiting >= slots + limits.AGENT_BACKLOG_FACTOR * limits.AGENT_BACKLOG_STAGES:
            what = f"{fact.agent} with {slots} slots was given {live - waiting + 1} attempts that could run"
            self.broken(what, fact.job, fact.stage)
        if fact.awaits and waiting >= limits.DELEGATED_STAGES_PER_AGENT_MAX:
            self.broken(f"{fact.agent} was given {waiting + 1} attempts that await others", fact.job, fact.stage)

    def _failed(self, fact: f.StageFailed, job: JobView, stage: StageView) -> None:
        times = stage.spec.policy.retry.times
        if fact.retry_seconds is not None:
            if stage.failures >= times:
                self.broken(f"retry {stage.failures + 1} of {times}", fact.job, fact.stage)
            return
        if fact.error.transient and stage.failures < times:
            self.broken(f"given up after {stage.failures + 1} failures, with {times} retries", fact.job, fact.stage)
        if whole_params(stage.spec)["fails"]:
            return
        if fact.error.cause == "InputUnavailable":
            # What came damaged twice from the only one who has it counts as gone, a job's input as well.
            if fact.error.message.startswith("an input of the job"):
                job.tainted.add(fact.stage)
            return
        if out_of_time(fact) or fact.error.cause == REFUSED:
            job.tainted.add(fact.stage)
            return
        used_up = (
            fact.error.transient
            or stage.deaths >= limits.AGENT_DEATHS_PER_STAGE_MAX
            or stage.input_losses >= limits.INPUT_LOSSES_PER_STAGE_MAX
            or fact.stage in self.world.misbehaviour.liars.get(fact.job, ())
        )
        if not used_up:
            self.broken(f"failed for good without need: {fact.error.message}", fact.job, fact.stage)
        job.tainted.add(fact.stage)


def _streams_live(job: JobView) -> bool:
    """Whether stages with streams are with agents: what streams with them follows, whatever room there is."""
    return any(stage.live and stage.spec.kind in STREAMING for stage in job.stages.values())


def _streams_again(job: JobView) -> bool:
    """Whether a stage with streams waits: what streams with it may wait for that, and for what it needs."""
    return any(stage.status is StageStatus.PENDING and stage.spec.kind in STREAMING for stage in job.stages.values())


class EveryJobEnds(Property):
    name = "every job ends"

    def accepted(self, client: Client, answer: Submitted) -> None:
        if answer.job not in self.judge.jobs:
            self.broken(f"{client.name} was told of {answer.job}, which is not journaled", answer.job)

    def end(self) -> None:
        coordinator = self.world.current.coordinator
        for client in self.world.clients:
            if client.job is None:
                self.broken(f"{client.name} has no answer")
        for name, job in self.judge.jobs.items():
            if job.ended:
                continue
            for stage in job.stages:
                waits = coordinator.waits_for(name, stage) if name in coordinator.jobs else "a coordinator"
                if waits:
                    self.broken(f"{stage} waits for {waits}", name, stage)
                    return


class Answers(Property):
    name = "answers are true"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._job_of: dict[str, str] = {}

    def answered(self, orchestrator: Orchestrator, answer: Answer) -> None:
        result = answer.result
        if isinstance(result, StarloomError):
            return
        job = self.judge.jobs.get(result.job)
        if job is None:
            self.broken("answered before it is journaled", result.job)
        elif isinstance(result, Stopped) and job.status is not result.status:
            self.broken(f"answered {result.status}, and the journal says {job.status}", result.job)

    def accepted(self, client: Client, answer: Submitted) -> None:
        known = self._job_of.setdefault(client.name, answer.job)
        if known != answer.job:
            self.broken(f"the key {client.name} has two jobs, {known} and {answer.job}", answer.job)

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.JobEnded) and job is not None and job.cancelled and fact.status is not job.ends:
            self.broken(f"it was to end {job.ends}, and it ends {fact.status}", fact.job)


class OutputsAreDurable(Property):
    name = "declared outputs are in the job store"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.JobEnded) and fact.status is JobStatus.SUCCEEDED:
            for name, ref in fact.outputs.items():
                if ref.inline is None and ref.digest not in self.world.disk.values:
                    self.broken(f"output {name} is not there", fact.job)


class ClientsSawAll(Property):
    name = "clients saw the journal"

    def end(self) -> None:
        for client in self.world.clients:
            job = self.judge.jobs.get(client.job) if client.job is not None else None
            if job is None or client.events == job.events:
                continue
            for seen, written in zip(client.events, job.events, strict=False):
                if seen != written:
                    self.broken(f"{client.name} saw {seen!r}, and the journal has {written!r}", client.job or "")
                    break
            else:
                self.broken(f"{client.name} saw {len(client.events)} of {len(job.events)} events", client.job or "")


class Released(Property):
    name = "agents keep nothing of ended jobs"

    def end(self) -> None:
        for name, process in self.world.processes.items():
            kept = dict.fromkeys([*process.core.jobs, *process.runner.keeps])
            for job in kept:
                view = self.judge.jobs.get(job)
                if view is None or view.ended:
                    self.broken(f"{name} keeps something of {job}, which has ended", job)
            if not any(not view.ended for view in self.judge.jobs.values()) and not process.core.idle:
                self.broken(f"{name} has {process.core.active}")


class ReplicasAreUsed(Property):
    name = "nothing is made again of which there is a replica"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if not isinstance(fact, f.StageReopened) or not fact.lost or stage is None:
            return
        for agent, process in stage.holders.items():
            if self.judge.there.get(agent) == process:
                self.broken(f"it is made again as lost, and {agent} has it", fact.job, fact.stage)


class ReplicasAreThere(Property):
    name = "replicas are there when they are told of"

    def told(self, process: AgentProcess, report: Report) -> None:
        made = self.judge.made.get(report.task)
        if not isinstance(report, Held) or made is None:
            return
        task = report.task
        kept = process.holder.held.get(task.job, {})
        for name, ref in made.outputs.items():
            if ref.inline is None and name not in made.published and ref.digest not in kept:
                self.broken(f"{process.name} tells of a replica, and does not have {name}", task.job, task.stage)


class NothingIsNamed(Property):
    name = "only digests are told to the orchestrator"

    def told(self, process: AgentProcess, report: Report) -> None:
        if not isinstance(report, Finished):
            return
        told = [*(ref.digest for ref in report.outputs.values()), *(read.digest for read in report.consumed.values())]
        if any(digest in self.world.truths for digest in told):
            self.broken(f"{process.name} tells of a value that is not hashed", report.task.job, report.task.stage)


class NoDefects(Property):
    name = "no defect shows"

    def fact(self, fact: AnyFact, job: JobView | None, stage: StageView | None) -> None:
        if isinstance(fact, f.JobEnded) and fact.cause == InternalError.__name__:
            self.broken(fact.error, fact.job)

    def answered(self, orchestrator: Orchestrator, answer: Answer) -> None:
        # Whatever is meant for a client is an error of a class of its own.
        if isinstance(answer.result, InternalError) or type(answer.result) is StarloomError:
            self.broken(str(answer.result))


PROPERTIES: tuple[type[Property], ...] = (
    Acyclic,
    OneCommit,
    ConditionsHold,
    JournaledFirst,
    ResultsOfTheirTokens,
    OnlyLiveTokens,
    Budgets,
    EveryJobEnds,
    Answers,
    OutputsAreDurable,
    SameOutputs,
    Consistent,
    ClientsSawAll,
    StatesAreValid,
    ReplayIsTheSame,
    SnapshotIsTheSame,
    Released,
    NoOldEpoch,
    OneIsLeft,
    DeadlinesAreKept,
    CopiesAreFew,
    ReplicasAreUsed,
    ReplicasAreThere,
    StartsInTurn,
    CommitsInTurn,
    DiesWithWhatItAwaits,
    *STREAMS,
    WholeOrNot,
    StaysRevoked,
    SettlesInTime,
    TakenOnce,
    Reasons,
    *GROWTH,
    StaysOnItsTiers,
    VariantsAreKept,
    StandsWhereItMay,
    NothingIsNamed,
    NoDefects,
)
