"""What follows when a stage ends, fails, or has to run again: dependents, retries, skips, and strict consistency."""

from collections import deque

from starloom.agents.messages import Cancel
from starloom.agents.values import digest, encode
from starloom.dag import limits
from starloom.dag.conditions import comparison_key, holds
from starloom.dag.constellation import Dependency, Join, OnFailure, Retry
from starloom.dag.facts import (
    ErrorInfo,
    JobStatus,
    StageCancelled,
    StageCommitted,
    StageDefaulted,
    StageFailed,
    StageReopened,
    StageSkipped,
    StageSuperseded,
)
from starloom.dag.ids import FencingToken, JobId, StageId, TaskToken
from starloom.dag.stagestate import Outcome, StageState, StageStatus
from starloom.dag.values import ValueRef
from starloom.orchestrator.ahead import Ahead
from starloom.orchestrator.clocks import NANOS, Clocks
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.lineage import (
    Verdict,
    changes,
    comparisons_of,
    made_again,
    satisfied,
    skip_reason,
    still_stands,
    verdict,
)
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.streaming import Streaming
from starloom.orchestrator.streams import pending


class Settler:
    """Draws the consequences of one stage's fate for the others of its job.

    Consequences are put on a list and worked off by `drain`: a chain of 10,000 skips is no recursion.
    """

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
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._ahead = ahead
        self._streaming = streaming
        self._waits = waits
        self._clocks = clocks
        self._endings = endings
        self._ended: deque[tuple[Run, StageId]] = deque()
        #: stages that ended, as long as their dependents are not judged by that
        self._unjudged: set[tuple[JobId, StageId]] = set()
        self._touched: dict[str, Run] = {}
        #: reports that came before those of the attempts they rest on, and whose tokens have died since
        self.refused = 0

    def decide(self, run: Run, name: StageId) -> None:
        """A pending stage becomes ready, is skipped, or goes on waiting, perhaps ahead, as its upstreams have it."""
        if name in run.held:
            return
        if name in run.unsettled:
            # `drain` decides it, once all has been judged.
            self.touch(run)
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

    def drain(self) -> None:
        """Works off all consequences, and ends the jobs that have nothing left to do."""
        self._judge()
        while self._try_again():
            self._judge()
        for run in self._touched.values():
            try:
                self._endings.check(run)
            except Exception as error:
                self._endings.contain(run.job.id, "its end", error)
        self._touched.clear()

    def _try_again(self) -> bool:
        """Decides what was put aside and rests on nothing any more that is made again. Returns whether more is to be judged.

        Only once all has been judged: what a stage rests on is made again one after the other. One that is skipped now may
        be what another waited for.
        """
        for run in [run for run in self._touched.values() if run.unsettled]:
            again = made_again(run.job) if run.job.status is JobStatus.RUNNING else run.unsettled
            for name in [name for name in run.unsettled if name not in again and name not in run.held]:
                del run.unsettled[name]
                try:
                    self.decide(run, name)
                except Exception as error:
                    self._endings.contain(run.job.id, f"another try of {name}", error)
                    break
        return bool(self._ended)

    def _judge(self) -> None:
        while self._ended:
            run, name = self._ended.popleft()
            unjudged = (run.job.id, name) in self._unjudged
            self._unjudged.discard((run.job.id, name))
            if run.job.status is not JobStatus.RUNNING or not unjudged:
                continue
            try:
                self._follow(run, name)
            except Exception as error:
                self._endings.contain(run.job.id, f"what follows from {name}", error)

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
        seconds = None
        if error.transient and stage.failures < policy.retry.times:
            seconds = back_off(policy.retry, stage.failures)
        elif not final and policy.on_failure is OnFailure.FAIL and self._put_aside(run, name, token, error.message):
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
        limit = ""
        # What is given up for another reason is no failure, though a copy lived on after the last that counted.
        if death and stage.deaths >= limits.AGENT_DEATHS_PER_STAGE_MAX:
            limit = f"in flight at the death of {stage.deaths} agents"
        elif input_lost and stage.input_losses >= limits.INPUT_LOSSES_PER_STAGE_MAX:
            limit = f"its inputs could not be had {stage.input_losses} times"
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
        self._touched[run.job.id] = run

    def reopen(self, run: Run, name: StageId, reason: str, *, lost: bool = False) -> None:
        """A result that is needed is gone (`lost`: from everywhere), or rests on what changed: the stage runs again."""
        stage = run.job.stages[name]
        assert stage.committed is not None
        unjudged = (run.job.id, name) in self._unjudged
        self._unjudged.discard((run.job.id, name))
        self._ledger.record(
            StageReopened(
                job=run.job.id, stage=name, token=stage.committed, reason=reason, lost=lost, unjudged=unjudged
            )
        )
        self._leaves(run, name)
        self.decide(run, name)
        for arc in run.job.downstreams[name]:
            for each in run.streams.groups.get(arc.downstream, (arc.downstream,)):
                if each in run.queued:
                    run.queued.discard(each)
                    self.decide(run, each)

    def regroup(self, run: Run) -> None:
        """Stages of the job that stand with others, or apart from them, may have other nodes than before."""
        self._lanes.wake(run)
        self._streaming.regrouped()

    def touch(self, run: Run) -> None:
        """The job may have nothing left to do; `drain` looks."""
        self._touched[run.job.id] = run

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
        self._leaves(run, name)
        self._settled(run, name)
        self._unread(run, name)

    def _default(self, run: Run, name: StageId) -> None:
        stage = run.job.stages[name]
        values = stage.spec.policy.defaults
        ports = self._state.fleet.kinds[stage.spec.kind].output_ports(stage.spec.params)
        outputs: dict[str, ValueRef] = {}
        for port, value in values.items():
            if port not in ports:
                # The fleet's kind is another one than when the job was accepted.
                continue
            data, meta = encode(ports[port].type, value, f"stages.{name}.defaults.{port}")
            outputs[port] = ValueRef(
                type=ports[port].type, bytes=len(data), digest=digest(data), meta=meta, inline=data
            )
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

    def _leaves(self, run: Run, name: StageId) -> None:
        """A stage does not stand where it stood: others of its group may, and no node needs to have room for that."""
        if name in run.spread or name in run.colocated:
            self.regroup(run)

    def _gone(self, run: Run, name: StageId) -> None:
        """A token of the stage is live no more, and gave no result."""
        self._leaves(run, name)
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
        self._ended.append((run, name))
        self._unjudged.add((run.job.id, name))
        self._touched[run.job.id] = run

    def _follow(self, run: Run, name: StageId) -> None:
        """Judges everything downstream of a stage that ended by how it did, and by what it had before it ran again."""
        job = run.job
        stage = job.stages[name]
        former = stage.earlier
        for arc in job.downstreams[name]:
            downstream = job.stages[arc.downstream]
            if former is not None and changes(arc, former, stage):
                self._invalidate(run, arc, former, stage, downstream)
            if downstream.status is StageStatus.PENDING and arc.downstream not in run.queued:
                self._arc_decided(run, arc, stage, downstream)

    def _arc_decided(self, run: Run, arc: Dependency, upstream: StageState, downstream: StageState) -> None:
        """The last upstream of ALL decides; of ANY, the first that is satisfied or the last: each arc is looked at twice.

        What streams connect starts together, so that what one of them waited for was perhaps the last for all.
        """
        if arc.downstream in run.streams.groups:
            for each in pending(run.job, run.streams.groups[arc.downstream]):
                self.decide(run, each)
            return
        first = downstream.spec.join is Join.ANY and satisfied(arc, upstream)
        if first or run.job.undecided[arc.downstream] == 0:
            self.decide(run, arc.downstream)

    def _invalidate(
        self, run: Run, arc: Dependency, former: Outcome, upstream: StageState, downstream: StageState
    ) -> None:
        """Strict consistency: what read or rests on the old outcome is run again on the new one."""
        reason = f"{arc.upstream} was run again and came out differently"
        # What was given out ahead of this very attempt rests on the new one.
        old = downstream.ahead_of.get(arc.upstream) != upstream.committed
        for token, agent in tuple(downstream.live.items()) if old else ():
            self._ledger.send(agent, Cancel(task=TaskToken(run.job.id, arc.downstream, token)))
            self.supersede(run, arc.downstream, token, reason)
        if downstream.committed is not None and not still_stands(arc, former, upstream, downstream):
            self.reopen(run, arc.downstream, reason)


def back_off(retry: Retry, failures: int) -> float:
    """Seconds to wait after a stage that had failed so many times before failed again."""
    try:
        return min(retry.first_seconds * retry.factor**failures, retry.last_seconds)
    except OverflowError:
        return retry.last_seconds


def unreachable_seconds(times: int) -> float:
    """Seconds to wait after a stage could not reach its inputs for the given time in a row."""
    return min(limits.UNREACHABLE_FIRST_SECONDS * 2.0 ** (times - 1), limits.UNREACHABLE_LAST_SECONDS)
