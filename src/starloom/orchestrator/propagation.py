"""Change propagation: what the end of a stage lets its dependents do, and what runs again because it came out differently."""

from starloom.agents.messages import Cancel
from starloom.dag.constellation import Dependency, Join
from starloom.dag.facts import JobStatus, StageReopened
from starloom.dag.ids import StageId, TaskToken
from starloom.dag.stagestate import Outcome, StageState, StageStatus
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.lineage import changes, made_again, satisfied, still_stands
from starloom.orchestrator.runs import Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger
from starloom.orchestrator.streams import pending
from starloom.orchestrator.worklist import Worklist


class Propagation:
    """Works the worklist off, which a chain of 10,000 skips makes long, and not a recursion deep."""

    def __init__(self, ledger: Ledger, endings: Endings, settler: Settler, worklist: Worklist) -> None:
        self._ledger = ledger
        self._endings = endings
        self._settler = settler
        self._worklist = worklist

    def drain(self) -> None:
        """Works off all consequences, and ends the jobs that have nothing left to do."""
        self._judge()
        while self._try_again():
            self._judge()
        for run in self._worklist.touched.values():
            try:
                self._endings.check(run)
            except Exception as error:
                self._endings.contain(run.job.id, "its end", error)
        self._worklist.touched.clear()

    def _try_again(self) -> bool:
        """Decides what was put aside and rests on nothing any more that is made again. Returns whether more is to be judged.

        Only once all has been judged: what a stage rests on is made again one after the other. One that is skipped now may
        be what another waited for.
        """
        for run in [run for run in self._worklist.touched.values() if run.unsettled]:
            again = made_again(run.job) if run.job.status is JobStatus.RUNNING else run.unsettled
            for name in [name for name in run.unsettled if name not in again and name not in run.held]:
                del run.unsettled[name]
                try:
                    self._settler.decide(run, name)
                except Exception as error:
                    self._endings.contain(run.job.id, f"another try of {name}", error)
                    break
        return bool(self._worklist.ended)

    def _judge(self) -> None:
        while self._worklist.ended:
            run, name = self._worklist.ended.popleft()
            unjudged = (run.job.id, name) in self._worklist.unjudged
            self._worklist.unjudged.discard((run.job.id, name))
            if run.job.status is not JobStatus.RUNNING or not unjudged:
                continue
            try:
                self._follow(run, name)
            except Exception as error:
                self._endings.contain(run.job.id, f"what follows from {name}", error)

    def reopen(self, run: Run, name: StageId, reason: str, *, lost: bool = False) -> None:
        """A result that is needed is gone (`lost`: from everywhere), or rests on what changed: the stage runs again."""
        stage = run.job.stages[name]
        assert stage.committed is not None
        unjudged = (run.job.id, name) in self._worklist.unjudged
        self._worklist.unjudged.discard((run.job.id, name))
        self._ledger.record(
            StageReopened(
                job=run.job.id, stage=name, token=stage.committed, reason=reason, lost=lost, unjudged=unjudged
            )
        )
        self._settler.leaves(run, name)
        self._settler.decide(run, name)
        for arc in run.job.downstreams[name]:
            for each in run.streams.groups.get(arc.downstream, (arc.downstream,)):
                if each in run.queued:
                    run.queued.discard(each)
                    self._settler.decide(run, each)

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
                self._settler.decide(run, each)
            return
        first = downstream.spec.join is Join.ANY and satisfied(arc, upstream)
        if first or run.job.undecided[arc.downstream] == 0:
            self._settler.decide(run, arc.downstream)

    def _invalidate(
        self, run: Run, arc: Dependency, former: Outcome, upstream: StageState, downstream: StageState
    ) -> None:
        """Strict consistency: what read or rests on the old outcome is run again on the new one."""
        reason = f"{arc.upstream} was run again and came out differently"
        # What was given out ahead of this very attempt rests on the new one.
        old = downstream.ahead_of.get(arc.upstream) != upstream.committed
        for token, agent in tuple(downstream.live.items()) if old else ():
            self._ledger.send(agent, Cancel(task=TaskToken(run.job.id, arc.downstream, token)))
            self._settler.supersede(run, arc.downstream, token, reason)
        if downstream.committed is not None and not still_stands(arc, former, upstream, downstream):
            self.reopen(run, arc.downstream, reason)
