"""Takes a change of a job that runs: with all that follows from it, in one decision."""

from collections.abc import Callable, Iterable, Mapping

from starloom.agents.messages import Cancel
from starloom.dag.constellation import Private
from starloom.dag.ids import StageId
from starloom.dag.privacy import strictest
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.runs import Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.touching import Plan


class Changing:
    """What patches and growth have in common."""

    def __init__(self, state: State, ledger: Ledger, lanes: ReadyLanes, endings: Endings, settler: Settler) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._endings = endings
        self._settler = settler
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
        for name in plan.ended:
            if name in job.stages:
                self._settler.reopen(run, name, why)
        for name in mine:
            del run.held[name]
        fresh = [change.stage for change in difference.stages if change.before is None]
        self.decide(run, [*mine, *fresh, *confided])
        self._settler.touch(run)

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


def _reads_private(run: Run, name: StageId) -> bool:
    """Whether what feeds an attempt of a stage has a result that may not go everywhere."""
    stages = run.job.stages
    return any(
        arc.output and stages[arc.upstream].committed is not None and run.labels.of_output(arc.upstream, arc.output)
        for arc in run.job.upstreams[name]
    )
