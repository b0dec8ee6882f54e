"""Takes a change of a job that runs: with all that follows from it, in one decision."""

from collections.abc import Callable, Iterable, Mapping

from starloom.agents.messages import Cancel
from starloom.dag.constellation import Private
from starloom.dag.ids import StageId
from starloom.dag.patch import Change, Difference
from starloom.dag.privacy import strictest
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.lineage import resting_on
from starloom.orchestrator.propagation import Propagation
from starloom.orchestrator.runs import Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.touching import Plan
from starloom.orchestrator.worklist import Worklist


class Changing:
    """What patches and growth have in common."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        lanes: ReadyLanes,
        endings: Endings,
        settler: Settler,
        propagation: Propagation,
        worklist: Worklist,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._endings = endings
        self._settler = settler
        self._propagation = propagation
        self._worklist = worklist
        self._kinds = state.fleet.kinds

    def take(self, run: Run, plan: Plan, why: str, record: Callable[[], None]) -> None:
        """Ends the attempts that are in the way, lets `record` decide the change, and decides what it touches anew.

        What is held for a patch that settles stays held.
        """
        job, difference = run.job, plan.difference
        mine = [name for name in plan.touched if name not in run.held]
        run.held |= dict.fromkeys(mine)
        run.queued.difference_update(plan.touched)
        for task, agent in plan.active.items():
            if task.token not in job.stages[task.stage].live:
                # It awaited another of them, and went with that.
                continue
            self._ledger.send(agent, Cancel(task=task))
            self._settler.supersede(run, task.stage, task.token, why)
        # Also what is only fed otherwise: it may be ready in the lane of what it could read before.
        self._lanes.forget(run, {*plan.touched, *(change.stage for change in difference.stages)})
        record()
        run.patched(difference, self._state.fleet.kinds)
        before = run.labels.levels
        self.relabel(run)
        confided = self._end_confided(run, before)
        if run.colocated or run.spread:
            self._settler.regroup(run)
        refed = self._refed(run, difference, before)
        for name in plan.ended:
            if name in job.stages:
                self._propagation.reopen(run, name, why)
        estranged = self._end_estranged(run, refed)
        for name in mine:
            del run.held[name]
        fresh = [change.stage for change in difference.stages if change.before is None]
        self.decide(run, [*mine, *fresh, *confided, *estranged])
        self._worklist.touch(run)

    def _end_confided(self, run: Run, before: Mapping[StageId, Private]) -> list[StageId]:
        """Ends what was given out when less was private, and reads what is so now. It has read it, or may yet.

        On another tier it would fetch that, and wherever it is, it would tell what it makes of that with its report.
        """
        job, ended = run.job, []
        for name, level in run.labels.levels.items():
            was, stage = before.get(name), job.stages[name]
            if not stage.live or was == strictest(was, level) or not _reads_private(run, name):
                continue
            self._endings.cancel_attempts(job, name)
            for token in tuple(stage.live):
                self._settler.supersede(run, name, token, f"what it reads is private to {level} now")
            ended.append(name)
        return ended

    def _refed(self, run: Run, difference: Difference, before: Mapping[StageId, Private]) -> list[StageId]:
        """The stages of a job with private data that read other than what they gave last was made of."""
        stages = run.job.stages
        if not before and not run.labels.levels:
            return []
        # What runs again already may have been fed otherwise while nothing was private, when that did not matter.
        again = [] if before else [name for name, stage in stages.items() if stage.former is not None]
        return [name for name in dict.fromkeys([*_refed_by(difference), *again]) if name in stages]

    def _end_estranged(self, run: Run, refed: list[StageId]) -> list[StageId]:
        """Gives up what rests on what these gave before, be it a result or an attempt; the stages whose attempts that ended.

        Labels go along the dependencies that are there now: they do not tell how private that is.
        """
        job, ended = run.job, []
        for name, first in resting_on(job, refed).items():
            stage = job.stages[name]
            why = f"it rests on what {first} gave before it was fed otherwise, which may be private"
            if stage.live:
                self._endings.cancel_attempts(job, name)
                for token in tuple(stage.live):
                    self._settler.supersede(run, name, token, why)
                ended.append(name)
            elif stage.committed is not None:
                self._propagation.reopen(run, name, why)
        return ended

    def renew(self, runs: Iterable[Run]) -> None:
        """Kinds may have come, or come back otherwise, and it is their word whether they declassify."""
        if self._kinds is self._state.fleet.kinds:
            return
        self._kinds = self._state.fleet.kinds
        for run in tuple(runs):
            try:
                if run.labels.levels:
                    self.relabel(run)
            except Exception as error:
                self._endings.contain(run.job.id, "what is private now that kinds are others", error)

    def relabel(self, run: Run) -> None:
        """Finds the labels of a job's data anew: what is ready, and may now run elsewhere than before, is ready there."""
        changed = run.relabel(self._state.fleet.kinds)
        moved = [name for name in changed if name in run.queued]
        run.queued.difference_update(moved)
        self._lanes.forget(run, set(changed))
        for name in moved:
            self._lanes.push(run, name)

    def decide(self, run: Run, names: list[StageId]) -> None:
        """Pending stages go on, as their upstreams have it."""
        for name in names:
            stage = run.job.stages.get(name)
            if stage is not None and stage.status is StageStatus.PENDING:
                self._settler.decide(run, name)


def _refed_by(difference: Difference) -> dict[StageId, None]:
    """The stages that no longer read what they did, or are of other kinds, of which only the new one may declassify that."""
    return dict.fromkeys(
        [
            *(arc.downstream for arc in difference.removed if arc.output),
            *(binding.downstream for binding in difference.unbound),
            *(each.stage for each in difference.stages if _other_kinds(each)),
        ]
    )


def _other_kinds(change: Change) -> bool:
    before, after = change.before, change.after
    return before is None or after is None or (before.kind, before.variants) != (after.kind, after.variants)


def _reads_private(run: Run, name: StageId) -> bool:
    """Whether what feeds an attempt of a stage has a result that may not go everywhere."""
    stages = run.job.stages
    return any(
        arc.output and stages[arc.upstream].committed is not None and run.labels.of_output(arc.upstream, arc.output)
        for arc in run.job.upstreams[name]
    )
