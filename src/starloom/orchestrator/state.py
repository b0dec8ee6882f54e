"""The coordinator's whole durable state, changed by facts alone; and the ledger that decisions are written into."""

from collections import deque

from starloom.agents.messages import Command
from starloom.dag import limits
from starloom.dag.errors import InvalidTransition, StarloomError
from starloom.dag.expectation import told_seconds
from starloom.dag.facts import (
    AgentJoined,
    AgentLost,
    DeadlineSpent,
    EpochStarted,
    Fact,
    JobCancelRequested,
    JobEnded,
    JobPatched,
    JobSubmitted,
    StageCancelled,
    StageCommitted,
    StageFact,
    StagePlaced,
)
from starloom.dag.ids import AgentId, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.stagestate import StageState
from starloom.orchestrator.effects import Answer, Decision, Result
from starloom.orchestrator.fleet import Fleet
from starloom.orchestrator.placement import Planner


class State:
    """Jobs, fleet, and what the planner has learned: what replaying the journal gives."""

    def __init__(self, planner: Planner) -> None:
        self.epoch = Epoch(0)
        self.jobs: dict[JobId, JobState] = {}
        #: jobs that have not ended
        self.open: dict[JobId, JobState] = {}
        self.keys: dict[str, JobId] = {}
        self.fleet = Fleet()
        self.planner = planner
        self._ended: deque[JobId] = deque()
        self._ended_stages = 0

    def adopt(self, other: "State") -> None:
        """Takes over all of a state that nobody else uses; those who know this one, its fleet and its planner see it."""
        for mine, theirs in ((self.fleet, other.fleet), (self.planner, other.planner)):
            vars(mine).update(vars(theirs))
        vars(self).update({**vars(other), "fleet": self.fleet, "planner": self.planner})

    def apply(self, fact: Fact) -> None:
        """Changes the state by one fact. Raises InvalidTransition if it does not fit."""
        match fact:
            case StageFact() | StageCancelled():
                self._apply_to_stage(fact)
            case JobSubmitted():
                self.jobs[fact.job] = self.open[fact.job] = JobState(fact)
                if fact.key:
                    self.keys[fact.key] = fact.job
            case JobCancelRequested() | JobPatched() | DeadlineSpent():
                self.jobs[fact.job].apply(fact)
            case JobEnded():
                self.jobs[fact.job].apply(fact)
                self._retire(self.open.pop(fact.job))
            case AgentJoined():
                self.fleet.joined(fact)
                self.planner.meet(fact.agent, self.fleet.members[fact.agent].profile.measured)
            case AgentLost():
                self.fleet.lost(fact)
            case EpochStarted():
                self.epoch = fact.epoch

    def _apply_to_stage(self, fact: StageFact | StageCancelled) -> None:
        job = self.jobs[fact.job]
        stage = job.stages.get(fact.stage)
        before = dict(stage.live) if stage is not None and stage.live else None
        awaiting = _awaiting(job, fact) if type(fact) is StageCommitted else ()
        job.apply(fact)
        if before and stage is not None:
            for token, agent in before.items():
                if token not in stage.live:
                    self.fleet.free(agent, TaskToken(fact.job, fact.stage, token))
        if isinstance(fact, StagePlaced):
            self.fleet.place(fact.agent, TaskToken(fact.job, fact.stage, fact.token), delegated=bool(fact.awaits))
        elif isinstance(fact, StageCommitted):
            self._learn(job.stages[fact.stage])
            for downstream in awaiting:
                if not downstream.awaits:
                    ((token, agent),) = downstream.live.items()
                    self.fleet.due(agent, TaskToken(fact.job, downstream.spec.id, token))

    def _learn(self, stage: StageState) -> None:
        kind = stage.spec.kind
        told = told_seconds(stage.taken, self.fleet.kinds.get(kind))
        self.planner.learn(kind, stage.agent, stage.target, stage.timing, told)
        member = self.fleet.members.get(stage.agent)
        if member is not None:
            member.ran(kind)

    def _retire(self, job: JobState) -> None:
        """Ended jobs are kept for their answers, within bounds; the oldest go first."""
        self._ended.append(job.id)
        self._ended_stages += len(job.stages)
        while len(self._ended) > limits.FINISHED_JOBS_KEPT or (
            len(self._ended) > 1 and self._ended_stages > limits.FINISHED_STAGES_KEPT
        ):
            oldest = self.jobs.pop(self._ended.popleft())
            self._ended_stages -= len(oldest.stages)
            self.keys.pop(oldest.key, None)


def _awaiting(job: JobState, fact: StageCommitted) -> list[StageState]:
    """The stages with attempts that await the one that has a result."""
    found: dict[StageId, StageState] = {}
    for arc in job.downstreams.get(fact.stage, ()):
        stage = job.stages[arc.downstream]
        if fact.stage in stage.awaits:
            found[arc.downstream] = stage
    return list(found.values())


class Ledger:
    """One decision in the making: a fact that is recorded is applied at once, and goes out with the decision."""

    def __init__(self, state: State, epoch: Epoch) -> None:
        self.state = state
        self.epoch = epoch
        self.now = 0
        self.decision = Decision()
        #: a fact was perhaps applied in part: this state is not to be decided on
        self.damaged = False

    def begin(self, now: int) -> None:
        """Starts a new decision at a time, in monotonic nanoseconds."""
        self.now = max(self.now, now)
        self.decision = Decision()

    def record(self, fact: Fact) -> None:
        """Decides something."""
        try:
            self.state.apply(fact)
        except InvalidTransition:
            raise
        except Exception:
            self.damaged = True
            raise
        self.decision.facts.append(fact)

    @property
    def said(self) -> int:
        """Grows with all that is decided."""
        return len(self.decision.facts) + len(self.decision.commands)

    def send(self, agent: AgentId, command: Command) -> None:
        """Tells an agent something, after the facts are durable."""
        self.decision.commands.append((agent, command))

    def withdraw(self, agent: AgentId) -> None:
        """What this decision was to tell an agent until now is not sent."""
        self.decision.commands = [(name, command) for name, command in self.decision.commands if name != agent]

    def answer(self, request: int, result: Result | StarloomError) -> None:
        """Answers a client, after the facts are durable."""
        self.decision.answers.append(Answer(request, result))

    def next_token(self, stage: StageState) -> FencingToken:
        """The token of a stage's next attempt."""
        return FencingToken(self.epoch, type(stage.attempt)(stage.attempt + 1))
