"""Takes in what agents report of their attempts. Idempotent: a report may come again, late, or of a token long dead.

Reports of different agents overtake each other: how an attempt ended that was given out ahead of others is judged
once these have their results. Until then its report is kept, in memory only: it is acknowledged, and where the
orchestrator dies meanwhile the attempt is not held by anybody any more, and runs again.
"""

from collections import deque
from typing import Final

import msgspec

from starloom.agents.messages import (
    NOT_OF_ATTEMPTS,
    AwaitUnreachable,
    Cancel,
    Failed,
    Finished,
    Held,
    InputLost,
    NotHeld,
    Published,
    Report,
    Revoked,
    Started,
    WasCancelled,
)
from starloom.dag import limits
from starloom.dag.conditions import comparison_key
from starloom.dag.errors import DeadlineExceeded, StarloomError
from starloom.dag.facts import ErrorInfo, JobStatus, StageCommitted, StageStarted, Timing, figure_fault
from starloom.dag.ids import AgentId, StageId
from starloom.dag.stagestate import StageState
from starloom.dag.values import JOB_STORE, ValueRef
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import Work
from starloom.orchestrator.growing import Growing, Grown
from starloom.orchestrator.inputs import AgentReports
from starloom.orchestrator.lineage import comparisons_of, lineage_fault
from starloom.orchestrator.propagation import Propagation
from starloom.orchestrator.relays import Relays
from starloom.orchestrator.replicas import Replicas
from starloom.orchestrator.resolving import Resolving
from starloom.orchestrator.retrypolicy import unreachable_seconds
from starloom.orchestrator.runs import Early, Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.stragglers import Stragglers

_ENDS: Final = (Finished, Failed, InputLost)


class Reports:
    """Commits what live tokens made. Everything from other tokens is refused and counted in `stale_refused`."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        endings: Endings,
        settler: Settler,
        propagation: Propagation,
        growing: Growing,
        stragglers: Stragglers,
        replicas: Replicas,
        resolving: Resolving,
        relays: Relays,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._endings = endings
        self._settler = settler
        self._propagation = propagation
        self._growing = growing
        self._stragglers = stragglers
        self._replicas = replicas
        self._relays = relays
        self._resolving = resolving
        #: kept reports whose attempts await nothing any more
        self._due: deque[Early] = deque()
        self.stale_refused = 0

    def handle(self, given: AgentReports) -> None:
        """Takes in reports of one agent, in their order."""
        for report in given.reports:
            self._carefully(given.agent, given.incarnation, report)
            while self._due:
                self._carefully(*self._due.popleft())

    def _carefully(self, agent: AgentId, incarnation: str, report: Report) -> None:
        try:
            self._one(agent, incarnation, report)
        except Exception as error:
            task = report.task
            what = f"{agent}'s report {type(report).__name__} of {task.stage}, token {task.token}"
            self._endings.contain(task.job, what, error)
        # The next one may take away, or run again, what this one has consequences for.
        self._propagation.drain()

    def _one(self, agent: AgentId, incarnation: str, report: Report) -> None:
        task = report.task
        run = self._endings.runs.get(task.job)
        if run is None:
            self._of_ended_job(agent, report)
            return
        if isinstance(report, Held):
            self._replicas.held(run, agent, incarnation, report)
            return
        if isinstance(report, Published):
            self._relays.published(run, report)
            return
        if isinstance(report, NotHeld):
            self._replicas.not_held(run, agent, report)
            return
        stage = run.job.stages.get(task.stage)
        if stage is None or stage.live.get(task.token) != agent:
            known = isinstance(report, WasCancelled | Revoked | AwaitUnreachable) or (
                stage is not None and stage.committed == task.token
            )
            self.stale_refused += not known
            return
        # One that reads streams is at work while those that it reads are: only its success rests on theirs.
        if stage.awaits and isinstance(report, Finished if run.streams.reads(task.stage) else _ENDS):
            self._early(run, stage, Early(agent, incarnation, report))
            return
        match report:
            case Started():
                self._started(run, stage, report)
            case AwaitUnreachable():
                self._resolving.asked(run, report)
            case Finished():
                self._finished(run, stage, report, agent)
            case Failed():
                error = msgspec.structs.replace(report.error, node=report.error.node or agent)
                if error.cause == DeadlineExceeded.__name__:
                    # It may run on there, in the slot that the next attempt would wait for.
                    run.avoid.setdefault(task.stage, set()).add(agent)
                self._settler.fail(run, task.stage, task.token, error)
            case InputLost():
                self._input_lost(run, stage, report, agent)
            case WasCancelled():
                if self._settler.supersede(run, task.stage, task.token, f"{agent} stopped it"):
                    self._settler.decide(run, task.stage)
            case Revoked():
                if self._settler.supersede(run, task.stage, task.token, f"{agent} gave it back, for a patch"):
                    self._settler.decide(run, task.stage)

    def _early(self, run: Run, stage: StageState, early: Early) -> None:
        """An attempt has ended before those that it awaits have results, as far as is known here."""
        task = early.report.task
        if run.job.status is JobStatus.CANCELLING:
            self._settler.stopped(run, task.stage, task.token, "the job is being stopped")
        elif task.stage in run.early or len(run.early) < limits.DELEGATED_REPORTS_KEPT_MAX:
            run.early[task.stage] = early
        elif self._settler.supersede(run, task.stage, task.token, "too many reports wait for those they rest on"):
            self._settler.decide(run, task.stage)

    def _awaited(self, run: Run, name: StageId) -> None:
        """A stage has its result: what was reported before that, and rests on it, is due."""
        for arc in run.job.downstreams.get(name, ()) if run.early else ():
            early = run.early.get(arc.downstream)
            if early is not None and not run.job.stages[arc.downstream].awaits:
                del run.early[arc.downstream]
                self._due.append(early)

    def _of_ended_job(self, agent: AgentId, report: Report) -> None:
        """The agent's release crossed with the report, or never came: it is told again what to forget."""
        if isinstance(report, WasCancelled | Revoked | AwaitUnreachable):
            return
        self.stale_refused += not isinstance(report, NOT_OF_ATTEMPTS)
        if isinstance(report, Started):
            self._ledger.send(agent, Cancel(task=report.task))
        self._endings.release(agent, report.task.job)

    def _started(self, run: Run, stage: StageState, report: Started) -> None:
        task = report.task
        if task.token not in stage.started:
            self._ledger.record(StageStarted(job=task.job, stage=task.stage, token=task.token))
            self._stragglers.started(run, task.stage, task.token)
            clock = run.clocks.get(task.stage)
            if clock is not None:
                clock.started(self._ledger.now)

    def _finished(self, run: Run, stage: StageState, report: Finished, agent: AgentId) -> None:
        task = report.task
        fault = lineage_fault(run.job, task.stage, report.consumed)
        if fault:
            if self._settler.supersede(run, task.stage, task.token, fault, input_lost=True):
                self._settler.decide(run, task.stage)
            return
        comparisons = comparisons_of(run.job, task.stage)
        fault = self._output_fault(run, stage, report)
        if not fault and len(report.holds) != len(comparisons):
            fault = f"{len(report.holds)} comparisons were answered, of {len(comparisons)} asked"
        if fault:
            error = ErrorInfo(message=f"the report does not fit the stage: {fault}", node=agent)
            self._settler.fail(run, task.stage, task.token, error)
            return
        try:
            grown = self._growing.judge(run, stage, report)
        except StarloomError as refused:
            what, cause = str(refused), type(refused).__name__
            error = ErrorInfo(message=what, cause=cause, transient=refused.retryable, node=agent)
            self._settler.fail(run, task.stage, task.token, error)
            return
        answers = {comparison_key(c): held for c, held in zip(comparisons, report.holds, strict=True)}
        self._commit(run, report, agent, answers, grown)

    def _commit(
        self, run: Run, report: Finished, agent: AgentId, answers: dict[str, bool], grown: Grown | None
    ) -> None:
        task = report.task
        fact = StageCommitted(
            job=task.job,
            stage=task.stage,
            token=task.token,
            outputs=_held_where(report, agent),
            consumed=report.consumed,
            published=report.published,
            timing=_plain(report.timing),
            figures={name: value for name, value in report.figures.items() if not figure_fault(name, value)},
            models=report.models,
            target=report.target,
            emulated=report.emulated,
            holds=answers,
            growth=grown.fact if grown is not None else None,
        )
        if grown is None:
            self._settler.commit(run, fact)
        elif run.job.status is JobStatus.CANCELLING:
            # A result and what it adds are one, and nothing is added to a job that stops.
            self._settler.stopped(run, task.stage, task.token, "the job is being stopped")
        else:
            self._growing.commit(run, fact, grown)
        self._resolving.ended(run, task.stage)
        self._awaited(run, task.stage)

    def _output_fault(self, run: Run, stage: StageState, report: Finished) -> str:
        """What is wrong with a result's outputs; empty if they are those of the kind, and declared ones are durable."""
        ports = self._state.fleet.kinds[stage.spec.kind].output_ports(stage.spec.params)
        outputs = report.outputs
        if outputs.keys() != ports.keys():
            return f"it has the outputs {sorted(outputs)}, the kind has {sorted(ports)}"
        for name, port in ports.items():
            if outputs[name].type is not port.type:
                return f"output {name} is {outputs[name].type} instead of {port.type}"
        for name in run.publish.get(stage.spec.id, ()):
            if outputs[name].inline is None and name not in report.published:
                return f"output {name} is declared by the job, and was not brought to the job store"
        for name in report.published:
            if name not in ports:
                return f"it published {name}, which is no output"
        return ""

    def _input_lost(self, run: Run, stage: StageState, report: InputLost, agent: AgentId) -> None:
        task = report.task
        work = self._state.fleet.members[agent].assigned[task]
        reason = f"{agent} could not get its inputs: {report.reason}"
        if not self._settler.supersede(run, task.stage, task.token, reason, input_lost=True):
            return
        name = task.stage
        if report.gone and "" in report.upstreams:
            message = f"an input of the job is not there any more: {report.reason}"
            self._settler.fail(run, name, task.token, ErrorInfo(message=message, cause="InputUnavailable", node=agent))
            return
        if not report.gone:
            times = run.unreachable[name] = run.unreachable.get(name, 0) + 1
            run.avoid.setdefault(name, set()).add(agent)
            coming = self._relays.ask(run, agent, report.upstreams)
            tries = limits.UNREACHABLE_WHILE_RELAYED if coming else limits.UNREACHABLE_BEFORE_REMADE
            if times < tries or not any(report.upstreams):
                self._settler.wait(run, name, unreachable_seconds(times), reason)
                return
            del run.unreachable[name]
        self._remake(run, name, report, work)
        self._settler.decide(run, name)

    def _remake(self, run: Run, name: StageId, report: InputLost, work: Work) -> None:
        """Reopens the results that are missing, unless they were made again since the attempt was given out."""
        arcs = {arc.upstream for arc in run.job.upstreams[name]}
        for upstream in dict.fromkeys(report.upstreams):
            stage = run.job.stages[upstream] if upstream in arcs else None
            if stage is not None and work.fetches.get(upstream) in stage.live:
                self._produce_again(run, upstream, report)
            if stage is None or stage.committed is None:
                continue
            if work.fetches.get(upstream, stage.committed) != stage.committed:
                continue
            missing = report.missing.get(upstream, ()) if report.gone else ()
            if missing and self._replicas.lacks(run, upstream, missing):
                continue
            lost = report.gone and not self._state.fleet.having(stage.holders)
            self._propagation.reopen(run, upstream, f"its output is gone: {report.reason}", lost=lost)

    def _produce_again(self, run: Run, name: StageId, report: InputLost) -> None:
        """A reader lacks chunks of a stream whose producer is under way: that begins again, and so do all who read from it."""
        reason = f"a reader of its stream has to begin again, and lacks chunks: {report.reason}"
        self._endings.cancel_attempts(run.job, name)
        for token in tuple(run.job.stages[name].live):
            if self._settler.supersede(run, name, token, reason):
                self._settler.decide(run, name)


def _plain(timing: Timing) -> Timing:
    """The timing, if it is one: what is no number could not even be read back from the journal, and what ends in no time does not add up."""
    total = timing.queue + timing.transfer + timing.load + timing.run
    least = min(timing.queue, timing.transfer, timing.load, timing.run)
    return timing if least >= 0 and total <= limits.DURATION_SECONDS_MAX else Timing()


def _held_where(report: Finished, agent: AgentId) -> dict[str, ValueRef]:
    """The outputs with their true holders: the job store where they were published, else the agent."""
    outputs = report.outputs
    found = {}
    for name, ref in outputs.items():
        holder = JOB_STORE if name in report.published else agent
        found[name] = ref if ref.holder == holder else msgspec.structs.replace(ref, holder=holder)
    return found
