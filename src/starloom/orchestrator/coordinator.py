"""The coordinator: decides everything, and does nothing. Pure: inputs and the time in, facts and effects out.

    coordinator = Coordinator(epoch)
    coordinator.replay(facts of the journal)
    decision = coordinator.boot(now)
    decision = coordinator.handle(inputs, now)      # again and again, and a Tick at next_wake()

Only facts change what lasts (`state`): replaying a journal asks no clock and no planner. What is kept beside
(the order of ready stages, waits, leases) is made anew by `boot`. The work is divided among:

    admission    whether a job is accepted            settle     how stages get ready, end and fail
    membership   agents and their leases              dispatch   ready stages and their places
    reports      what agents say of their attempts    delegation stages ahead of their upstreams
    patching     changes of jobs that run             resolving  outcomes that agents cannot ask for
    growing      what results add to their jobs       endings    how jobs end
    deadlines    the ends of what has had its time    stragglers copies of what runs too long
    replicas     results on other nodes as well       watchdog   the ends of what cannot go on
    streaming    stages that stream into each other   guiding    plans of jobs, as advice on places
    propagation  what ends mean for dependents        sourcing   where inputs are to be had
"""

from collections.abc import Iterable, KeysView, Mapping, Sequence

from starloom.dag import limits
from starloom.dag.errors import NotFound
from starloom.dag.facts import EpochStarted, Fact, JobStatus
from starloom.dag.ids import AgentId, Epoch, JobId, StageId
from starloom.dag.job import JobState
from starloom.dag.kinds import KindCatalog
from starloom.dag.privacy import Labels, labels_in
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.admission import Admission
from starloom.orchestrator.advice import Planned
from starloom.orchestrator.ahead import Ahead
from starloom.orchestrator.changing import Changing
from starloom.orchestrator.clocks import Clocks
from starloom.orchestrator.deadlines import Deadlines
from starloom.orchestrator.delegation import Delegation
from starloom.orchestrator.dispatch import Dispatcher
from starloom.orchestrator.effects import Decision, Stopped
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.growing import Growing
from starloom.orchestrator.guiding import Guiding
from starloom.orchestrator.inputs import (
    AgentGoodbye,
    AgentHeartbeat,
    AgentHello,
    AgentReports,
    CancelJob,
    Input,
    PatchJob,
    Submit,
    Tick,
)
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.membership import Membership
from starloom.orchestrator.patching import Patching
from starloom.orchestrator.placement import EarliestFinish, Planner
from starloom.orchestrator.propagation import Propagation
from starloom.orchestrator.relays import Relays
from starloom.orchestrator.replicas import Replicas
from starloom.orchestrator.reports import Reports
from starloom.orchestrator.resolving import Resolving
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.stragglers import Stragglers
from starloom.orchestrator.streaming import Streaming
from starloom.orchestrator.views import NodeView, copy_waits, node_view, waits_for
from starloom.orchestrator.watchdog import Watchdog
from starloom.orchestrator.worklist import Worklist


class Coordinator:
    """One orchestrator's decisions, from its start on. `epoch` is the number of that start.

    `delegate`: stages are given out ahead of upstreams that are under way. `guided`: plans are asked for, in
    `Decision.plans`, and those that come are weighed.
    """

    def __init__(
        self, epoch: Epoch, planner: Planner | None = None, *, delegate: bool = True, guided: bool = False
    ) -> None:
        self.epoch = epoch
        self._state = State(planner or EarliestFinish())
        self._ledger = Ledger(self._state, epoch)
        self._lanes = ReadyLanes(self._state.fleet)
        self._waits = Waits()
        self._clocks = Clocks()
        self._endings = Endings(self._state, self._ledger, self._lanes, self._clocks)
        self._streaming = Streaming(self._state.fleet, self._lanes, self._endings)
        ahead = Ahead(self._state.fleet, self._lanes, limits.DELEGATED_CANDIDATES_MAX if delegate else 0)
        worklist = Worklist()
        self._settler = Settler(
            self._state,
            self._ledger,
            self._lanes,
            ahead,
            self._streaming,
            self._waits,
            self._clocks,
            self._endings,
            worklist,
        )
        self._propagation = Propagation(self._ledger, self._endings, self._settler, worklist)
        self._deadlines = Deadlines(self._state, self._ledger, self._lanes, self._clocks, self._endings, self._settler)
        self._dispatcher = Dispatcher(
            self._state,
            self._ledger,
            self._lanes,
            ahead,
            self._waits,
            self._endings,
            self._settler,
            self._propagation,
        )
        self._delegation = Delegation(self._state, self._ledger, ahead, self._endings, self._dispatcher)
        self._resolving = Resolving(self._state, self._ledger, self._endings, self._settler, self._dispatcher)
        self._watchdog = Watchdog(self._state, self._ledger, self._lanes, self._endings)
        self._stragglers = Stragglers(self._state, self._ledger, self._endings, self._dispatcher)
        self._guiding = Guiding(
            self._state, self._ledger, self._endings, ahead, self._waits, self._settler, self._lanes, on=guided
        )
        self._admission = Admission(self._state, self._ledger, self._lanes, self._endings, self._settler)
        self._replicas = Replicas(self._state, self._ledger, self._endings)
        self._changing = Changing(
            self._state, self._ledger, self._lanes, self._endings, self._settler, self._propagation, worklist
        )
        growing = Growing(self._state, self._settler, self._admission, self._changing)
        relays = Relays(self._state, self._ledger)
        self._reports = Reports(
            self._state,
            self._ledger,
            self._endings,
            self._settler,
            self._propagation,
            growing,
            self._stragglers,
            self._replicas,
            self._resolving,
            relays,
        )
        self._patching = Patching(
            self._state, self._ledger, self._endings, self._propagation, self._admission, self._changing
        )
        self._membership = Membership(
            self._state, self._ledger, self._waits, self._endings, self._settler, self._resolving
        )

    def adopt(self, state: State) -> None:
        """Begins with a snapshot's state, whose planner is of the same class; before `replay` of what came after it."""
        self._state.adopt(state)

    def replay(self, facts: Iterable[Fact]) -> None:
        """Takes over the facts of a journal, in their order; before `boot`. Raises InvalidTransition."""
        for fact in facts:
            self._state.apply(fact)

    def boot(self, now: int) -> Decision:
        """Starts to decide, once, after the replay: open jobs go on, known agents have one lease to say hello."""
        self._ledger.begin(now)
        self._ledger.record(EpochStarted(epoch=self.epoch))
        self._membership.boot()
        for job in tuple(self._state.open.values()):
            run = self._endings.begin(job)
            try:
                self._resume(run)
            except Exception as error:
                self._endings.contain(job.id, "its resumption after a restart", error)
        self._replicas.boot()
        self._guiding.boot()
        self._advance()
        return self._ledger.decision

    def handle(self, inputs: Sequence[Input], now: int) -> Decision:
        """Decides what follows from inputs at a time, in monotonic nanoseconds, and from the time itself."""
        self._ledger.begin(now)
        for given in inputs:
            self._take(given)
            self._propagation.drain()
        self._advance()
        return self._ledger.decision

    def next_wake(self) -> int | None:
        """When a Tick is due at the latest, in monotonic nanoseconds; None if only inputs can change anything.

        At once, where a decision was cut short so that agents can begin with what it placed.
        """
        if self._lanes.cut:
            return self._ledger.now
        parts = (
            self._membership,
            self._waits,
            self._patching,
            self._deadlines,
            self._stragglers,
            self._replicas,
            self._watchdog,
            self._guiding,
        )
        due = (part.next_time for part in parts)
        return min((time for time in due if time is not None), default=None)

    @property
    def jobs(self) -> Mapping[JobId, JobState]:
        """All jobs that are kept, the oldest first."""
        return self._state.jobs

    @property
    def kinds(self) -> KindCatalog:
        """The kinds that agents offer, or offered."""
        return self._state.fleet.kinds

    @property
    def agents(self) -> KeysView[AgentId]:
        """The agents that are known, also those that were lost, but for those that were lost long ago."""
        return self._state.fleet.members.keys()

    @property
    def stale_refused(self) -> int:
        """Reports refused since the start, because their tokens were not live."""
        return self._reports.stale_refused + self._settler.refused

    def find(self, id_or_key: str) -> JobState:
        """A job by its id, or by the key that it was submitted with. Raises NotFound."""
        job = self._state.jobs.get(JobId(id_or_key))
        if job is None and id_or_key in self._state.keys:
            job = self._state.jobs[self._state.keys[id_or_key]]
        if job is None:
            raise NotFound(f"there is no job with the id or key {id_or_key!r}; it may have ended long ago")
        return job

    def fleet_view(self, now: int | None = None) -> list[NodeView]:
        """All nodes by name, at a time, or when an input was last handled."""
        time = self._ledger.now if now is None else now
        members = self._state.fleet.members
        return [node_view(members[name], time) for name in sorted(members)]

    def waits_for(self, job: JobId, stage: StageId) -> str:
        """In one line, what a stage waits for; empty if it has ended. Raises NotFound."""
        run = self._endings.runs.get(job)
        found = waits_for(self.find(job), run, stage, self._lanes, self._state.fleet, self._ledger.now)
        return f"{found}; {copy_waits(run)}" if run is not None and self._stragglers.waits(job, stage) else found

    def labels(self, job: JobId) -> Labels:
        """How far what a job's stages read and give may go, and why. Raises NotFound."""
        run = self._endings.runs.get(job)
        return run.labels if run is not None else labels_in(self.find(job).shape, self.kinds)[0]

    def planned(self, job: JobId, stage: StageId | None = None) -> str:
        """The plan of a job in a line, or where it has one of its stages, and how old it is; empty without one.

        Of a job that has ended: what its plan had said, and what came, as long as this process knows.
        """
        return self._guiding.told(job) if stage is None else self._guiding.of_stage(job, stage)

    def stuck(self, job: JobId) -> str:
        """Why no stage of a job can go on, and when it fails for that; empty if one can, or it has ended."""
        return self._watchdog.stuck(job)

    def _take(self, given: Input) -> None:
        match given:
            case AgentReports():
                self._membership.reported(given)
                self._reports.handle(given)
            case AgentHeartbeat():
                self._membership.heartbeat(given)
            case Submit():
                self._admission.submit(given)
            case CancelJob():
                self._cancel(given)
            case PatchJob():
                self._patch(given)
            case AgentHello():
                self._membership.hello(given)
                if not given.resumed:
                    self._patching.hello(given.agent)
                    self._resolving.hello(given.agent)
                    self._replicas.hello(given.agent)
            case AgentGoodbye():
                self._membership.goodbye(given)
            case Planned():
                self._guiding.take(given)
            case Tick():
                pass

    def _advance(self) -> None:
        """What time brings, and then new places for all that is ready."""
        self._membership.lapse()
        for run, stage in self._waits.due(self._ledger.now):
            try:
                self._settler.decide(run, stage)
            except Exception as error:
                self._endings.contain(run.job.id, f"the next attempt of {stage}", error)
        self._propagation.drain()
        self._deadlines.check()
        self._propagation.drain()
        self._patching.settle()
        self._changing.renew(self._endings.runs.values())
        self._streaming.renew()
        self._guiding.look()
        self._dispatcher.run()
        while self._streaming.run(self._dispatcher.follow):
            self._dispatcher.run()
        self._delegation.run()
        self._stragglers.look()
        self._watchdog.look()
        self._replicas.run()
        self._guiding.look()
        if self._guiding.ask():
            self._propagation.drain()
            self._dispatcher.run()
            self._delegation.run()
            self._guiding.look()

    def _cancel(self, given: CancelJob) -> None:
        try:
            job = self.find(given.job)
        except NotFound as error:
            self._ledger.answer(given.request, error)
            return
        run = self._endings.runs.get(job.id)
        if run is None:
            self._ledger.answer(given.request, Stopped(job=job.id, status=job.status, seconds=0.0))
            return
        run.askers.append((given.request, self._ledger.now))
        if job.status is JobStatus.RUNNING:
            try:
                self._endings.cancel(run, given.principal, given.reason)
            except Exception as error:
                self._endings.contain(job.id, "its cancellation", error)

    def _patch(self, given: PatchJob) -> None:
        try:
            job = self.find(given.job)
        except NotFound as error:
            self._ledger.answer(given.request, error)
        else:
            self._patching.request(job, given)

    def _resume(self, run: Run) -> None:
        """An open job after a restart: its pending stages get ready or wait, as before."""
        for name, stage in run.job.stages.items():
            for token in stage.started:
                self._stragglers.started(run, name, token)
            # What reads a stream began when its producer did, whose end it awaits; what went ahead has not begun.
            begun = stage.live and (not stage.awaits or name in run.streams.groups)
            if begun or (stage.status is StageStatus.PENDING and stage.deadline_spent):
                self._clocks.stage(run, name, self._ledger.now)
            if stage.status is not StageStatus.PENDING:
                continue
            if stage.retry_seconds is not None:
                self._clocks.stage(run, name, self._ledger.now)
                self._settler.wait(run, name, stage.retry_seconds, stage.error.message if stage.error else "")
            else:
                self._settler.decide(run, name)
