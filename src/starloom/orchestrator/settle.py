"""What becomes of a stage: whether it gets ready, and how it ends, with a result, a failure, a skip or a default."""

from collections import deque

from starloom.agents.values import digest, encode
from starloom.dag.conditions import comparison_key, holds
from starloom.dag.constellation import OnFailure, StageSpec
from starloom.dag.facts import (
    ErrorInfo,
    JobStatus,
    StageCancelled,
    StageCommitted,
    StageDefaulted,
    StageFailed,
    StageSkipped,
    StageSuperseded,
)
from starloom.dag.ids import FencingToken, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.values import ValueRef
from starloom.orchestrator.ahead import Ahead
from starloom.orchestrator.clocks import NANOS, Clocks
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.lineage import Verdict, comparisons_of, made_again, satisfied, skip_reason, verdict
from starloom.orchestrator.retrypolicy import exhausted, retry_seconds
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.streaming import Streaming
from starloom.orchestrator.worklist import Worklist


class Settler:
    """Settles stages one by one. What that means for their dependents is put on a list, which `propagation` works off."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        lanes: ReadyLanes,
        ahead: Ahead,
        streaming: Streaming,
        waits: Waits,
        clocks: Clocks,
        endings: Endings,
        worklist: Worklist,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._ahead = ahead
        self._streaming = streaming
        self._waits = waits
        self._clocks = clocks
        self._endings = endings
        self._worklist = worklist
        #: reports that came before those of the attempts they rest on, and whose tokens have died since
        self.refused = 0

    def decide(self, run: Run, name: StageId) -> None:
        """A pending stage becomes ready, is skipped, or goes on waiting, perhaps ahead, as its upstreams have it."""
        if name in run.held:
            return
        if name in run.unsettled:
            # `propagation` decides it, once all has been judged.
            self._worklist.touch(run)
            return
        streaming = name in run.streams.groups
        match run.streams.verdict(run.job, name) if streaming else verdict(run.job, name):
            case Verdict.RUN | Verdict.AHEAD if streaming:
                self._clocks.stage(run, name, self._ledger.now)
                if name not in run.waits:
                    self._streaming.put(run, name)
            case Verdict.RUN:
                self._clocks.stage(run, name, self._ledger.now)
                if name not in run.waits:
                    self._lanes.push(run, name)
            case Verdict.AHEAD:
                self._ahead.put(run, name)
            case Verdict.SKIP:
                self._skip(run, name, skip_reason(run.job, name))

    def commit(self, run: Run, fact: StageCommitted) -> None:
        """The stage has a result."""
        stage = run.job.stages[fact.stage]
        if run.job.status is JobStatus.CANCELLING and len(stage.live) > 1:
            self.stopped(run, fact.stage, fact.token, "the job is being stopped")
            return
        if len(stage.live) > 1:
            self._endings.cancel_attempts(run.job, fact.stage, but=fact.token)
        stages = run.job.stages
        awaiting = [a.downstream for a in run.job.downstreams[fact.stage] if fact.stage in stages[a.downstream].awaits]
        self._ledger.record(fact)
        self._settled(run, fact.stage)
        # A producer that is under way now was made again since the stage read from it.
        self._unread(run, fact.stage)
        if awaiting:
            self.take_back(run, fact.stage)
            for name in dict.fromkeys(awaiting):
                self._awaited(run, fact.stage, name)

    def fail(self, run: Run, name: StageId, token: FencingToken, error: ErrorInfo, *, final: bool = False) -> None:
        """An attempt failed: another follows if its policy allows, else the stage has failed for good.

        Not for good while anything is made again that it rests on, for with that it may do better; unless it is `final`, as
        what no input changes. What streams is not kept from that either: its producer would wait for it.
        """
        stage = run.job.stages[name]
        if run.job.status is JobStatus.CANCELLING:
            self.stopped(run, name, token, error.message)
            return
        if stage.live.keys() - {token}:
            # Of an attempt and its copy the last to fail is the stage's failure: both are one try.
            self.supersede(run, name, token, f"{error.node or 'it'} failed: {error.message}; the other attempt goes on")
            return
        policy = stage.spec.policy
        seconds = retry_seconds(stage, error)
        gives_up = seconds is None and not final and policy.on_failure is OnFailure.FAIL
        if gives_up and self._put_aside(run, name, token, error.message):
            return
        self._ledger.record(StageFailed(job=run.job.id, stage=name, token=token, error=error, retry_seconds=seconds))
        self._gone(run, name)
        if seconds is not None:
            self.take_back(run, name)
            self.wait(run, name, seconds, error.message)
            return
        run.waits.pop(name, None)
        run.clocks.pop(name, None)
        match policy.on_failure:
            case OnFailure.FAIL:
                self._endings.fail(run)
            case OnFailure.SKIP:
                self._skip(run, name, f"failed: {error.message}")
            case OnFailure.DEFAULT:
                self._default(run, name)
        self.take_back(run, name)

    def expire(self, run: Run, name: StageId, error: ErrorInfo) -> None:
        """The stage has had its time: its attempts are stopped, and it has failed for good."""
        stage = run.job.stages[name]
        self._endings.cancel_attempts(run.job, name)
        run.queued.discard(name)
        *others, last = tuple(stage.live) or (FencingToken(self._ledger.epoch, stage.attempt),)
        for token in others:
            self._ledger.record(StageSuperseded(job=run.job.id, stage=name, token=token, reason=error.message))
        self.fail(run, name, last, error, final=True)

    def _put_aside(self, run: Run, name: StageId, token: FencingToken, message: str) -> bool:
        again = made_again(run.job).get(name) if name not in run.streams.groups else None
        if again is None:
            return False
        reason = run.unsettled[name] = f"{again}, which it rests on, runs again, and it failed: {message}"
        if token in run.job.stages[name].live:
            self.supersede(run, name, token, reason)
        return True

    def supersede(
        self,
        run: Run,
        name: StageId,
        token: FencingToken,
        reason: str,
        *,
        death: bool = False,
        input_lost: bool = False,
    ) -> bool:
        """A live token is given up. Returns whether the stage will be tried again; `decide` says when.

        Not if another attempt of it goes on.
        """
        stage = run.job.stages[name]
        if run.job.status is JobStatus.CANCELLING:
            self.stopped(run, name, token, reason)
            return False
        self._ledger.record(
            StageSuperseded(job=run.job.id, stage=name, token=token, reason=reason, death=death, input_lost=input_lost)
        )
        self._gone(run, name)
        self.take_back(run, name)
        if stage.live:
            return False
        limit = exhausted(stage, death=death, input_lost=input_lost)
        if limit:
            error = ErrorInfo(message=f"{limit}; the last time: {reason}", cause="Unavailable")
            self.fail(run, name, token, error, final=True)
        return not limit

    def stopped(self, run: Run, name: StageId, token: FencingToken, why: str) -> None:
        """An attempt has ended, in a job that is being stopped; with the last one the stage has."""
        if run.job.stages[name].live.keys() - {token}:
            self._ledger.record(StageSuperseded(job=run.job.id, stage=name, token=token, reason=why))
            return
        self._ledger.record(StageCancelled(job=run.job.id, stage=name))
        self._worklist.touch(run)

    def regroup(self, run: Run) -> None:
        """Stages of the job that stand with others, or apart from them, may have other nodes than before."""
        self._lanes.wake(run)
        self._streaming.regrouped()

    def wait(self, run: Run, name: StageId, seconds: float, why: str) -> None:
        """A pending stage is not placed before so many seconds have passed."""
        self._waits.until(run, name, self._ledger.now + round(seconds * NANOS), why)

    def take_back(self, run: Run, name: StageId) -> None:
        """What was given out ahead lives no longer than the tokens it awaits: called whenever one of a stage is over.

        It is given up, and decided anew; so is what awaits that. This is no failure of it, no death and no loss of inputs.
        """
        job = run.job
        if job.status is not JobStatus.RUNNING:
            return
        over, taken = deque([name]), []
        while over:
            upstream = over.popleft()
            live = job.stages[upstream].live
            for arc in job.downstreams[upstream]:
                downstream = job.stages[arc.downstream]
                token = downstream.awaits.get(upstream)
                if token is None or token in live:
                    continue
                self._give_up(run, arc.downstream, f"it awaited {upstream}'s attempt {token}, which is over")
                over.append(arc.downstream)
                taken.append(arc.downstream)
        for each in taken:
            self.decide(run, each)

    def _awaited(self, run: Run, upstream: StageId, name: StageId) -> None:
        """A stage was given out ahead of one that has its result now: its time begins, or it is not let run after all."""
        job = run.job
        stage = job.stages[name]
        if job.status is not JobStatus.RUNNING or not stage.live or upstream in stage.awaits:
            # It was taken back with another that it awaited, or will be, for the result is another attempt's.
            return
        if not all(satisfied(arc, job.stages[upstream]) for arc in job.upstreams[name] if arc.upstream == upstream):
            self._give_up(run, name, f"{upstream}'s result does not let it run")
            self.take_back(run, name)
            self.decide(run, name)
        elif not stage.awaits:
            self._clocks.stage(run, name, self._ledger.now)

    def _give_up(self, run: Run, name: StageId, reason: str) -> None:
        """An attempt that awaits upstreams is told to stop, and counts for nothing."""
        stage = run.job.stages[name]
        (token,) = stage.live
        if name not in run.early:
            self._endings.cancel_attempts(run.job, name)
        self._ledger.record(StageSuperseded(job=run.job.id, stage=name, token=token, reason=reason))
        self._gone(run, name)

    def _skip(self, run: Run, name: StageId, reason: str) -> None:
        stage = run.job.stages[name]
        run.waits.pop(name, None)
        run.queued.discard(name)
        token = self._ledger.next_token(stage)
        self._ledger.record(StageSkipped(job=run.job.id, stage=name, token=token, reason=reason))
        self.leaves(run, name)
        self._settled(run, name)
        self._unread(run, name)

    def _default(self, run: Run, name: StageId) -> None:
        stage = run.job.stages[name]
        values = stage.spec.policy.defaults
        # The fleet's kind may be another one than when the job was accepted.
        outputs = _default_outputs(stage.spec, self._state.fleet.kinds[stage.spec.kind])
        held = {comparison_key(c): holds(c, values[c.output]) for c in comparisons_of(run.job, name)}
        token = self._ledger.next_token(stage)
        self._ledger.record(StageDefaulted(job=run.job.id, stage=name, token=token, outputs=outputs, holds=held))
        self._settled(run, name)
        self._unread(run, name)

    def _unread(self, run: Run, name: StageId) -> None:
        """A reader of streams reads no more: producers that are under way keep chunks for it, and begin again without it."""
        for upstream in run.streams.held_up(run.job, name) if run.job.status is JobStatus.RUNNING else ():
            self._endings.cancel_attempts(run.job, upstream)
            for token in tuple(run.job.stages[upstream].live):
                if self.supersede(run, upstream, token, f"{name} reads its stream no more, and it would wait for that"):
                    self.decide(run, upstream)

    def leaves(self, run: Run, name: StageId) -> None:
        """A stage does not stand where it stood: others of its group may, and no node needs to have room for that."""
        if name in run.spread or name in run.colocated:
            self.regroup(run)

    def _gone(self, run: Run, name: StageId) -> None:
        """A token of the stage is live no more, and gave no result."""
        self.leaves(run, name)
        if not run.job.stages[name].live:
            self.refused += run.early.pop(name, None) is not None
            run.unasked.pop(name, None)
        clock = run.clocks.get(name)
        if clock is not None and not run.job.stages[name].started:
            clock.stopped(self._ledger.now)

    def _settled(self, run: Run, name: StageId) -> None:
        run.clocks.pop(name, None)
        run.early.pop(name, None)
        run.unasked.pop(name, None)
        run.unreachable.pop(name, None)
        run.avoid.pop(name, None)
        run.unsettled.pop(name, None)
        self._worklist.ended.append((run, name))
        self._worklist.unjudged.add((run.job.id, name))
        self._worklist.touched[run.job.id] = run


def _default_outputs(spec: StageSpec, kind: KindSpec) -> dict[str, ValueRef]:
    """The defaults of a stage's policy as inline values, of the ports that its kind has."""
    ports = kind.output_ports(spec.params)
    outputs: dict[str, ValueRef] = {}
    for port, value in spec.policy.defaults.items():
        if port in ports:
            data, meta = encode(ports[port].type, value, f"stages.{spec.id}.defaults.{port}")
            outputs[port] = ValueRef(
                type=ports[port].type, bytes=len(data), digest=digest(data), meta=meta, inline=data
            )
    return outputs
