"""Tells agents what awaited attempts gave, where they cannot learn it from each other, so that work goes on through the centre."""

from collections.abc import Callable, Iterator
from functools import partial

from starloom.agents.messages import AwaitUnreachable, Resolve
from starloom.dag.facts import JobStatus
from starloom.dag.ids import AgentId, FencingToken, StageId, TaskToken
from starloom.dag.stagestate import StageState, StageStatus
from starloom.orchestrator.dispatch import Dispatcher
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import Fleet, Member
from starloom.orchestrator.lineage import Fed, inputs_of
from starloom.orchestrator.runs import Run
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.sourcing import input_of
from starloom.orchestrator.state import Ledger, State


class Resolving:
    """Sends what was asked for, at once or when it is there.

    What counts no more by then, or is gone, takes along the attempt that awaits it, which is decided anew.
    """

    def __init__(
        self, state: State, ledger: Ledger, endings: Endings, settler: Settler, dispatcher: Dispatcher
    ) -> None:
        self._fleet: Fleet = state.fleet
        self._ledger = ledger
        self._endings = endings
        self._settler = settler
        self._dispatcher = dispatcher

    def asked(self, run: Run, report: AwaitUnreachable) -> None:
        """An agent cannot ask those that have the attempts which one of its own awaits."""
        run.unasked.setdefault(report.task.stage, {}).update(dict.fromkeys(report.upstreams))
        self._tell(run, report.task.stage, report.upstreams)

    def ended(self, run: Run, name: StageId) -> None:
        """A stage has a result: those whose agents could not ask for it are told."""
        for arc in run.job.downstreams.get(name, ()) if run.unasked else ():
            if name in run.unasked.get(arc.downstream, ()):
                self._tell(run, arc.downstream, (name,))

    def hello(self, agent: AgentId) -> None:
        """What was sent to an agent may have been lost with its session, or what it had asked for with an orchestrator."""
        for task, run, stage in self._sent_ahead(self._fleet.members[agent]):
            run.unasked[task.stage] = dict.fromkeys(stage.awaits)
            self._carefully(task, partial(self._tell, run, task.stage, tuple(stage.ahead_of)))

    def lost(self, agent: AgentId) -> None:
        """Who was to learn from the agent what attempts had given cannot any more; perhaps another process answers there.

        What waits and was to read from it is decided anew: there may be other copies by now.
        """
        for member in self._fleet.members.values():
            for task, run, stage in self._sent_ahead(member):
                self._carefully(task, partial(self._without, agent, task, run, stage))

    def _without(self, agent: AgentId, task: TaskToken, run: Run, stage: StageState) -> None:
        """An attempt goes on without an agent that was lost, or is taken back."""
        stages = run.job.stages
        self._tell(run, task.stage, tuple(u for u in stage.ahead_of if u in stages and stages[u].agent == agent))
        if (
            stage.awaits
            and not stage.started
            and any(_reads_from(item, agent) for item in inputs_of(run.job, task.stage))
        ):
            self._take_back(run, task, f"{agent}, which held an input, was lost")

    def _sent_ahead(self, member: Member) -> Iterator[tuple[TaskToken, Run, StageState]]:
        """The attempts that an agent has, and that went ahead of others; each as it is when its turn comes."""
        for task in tuple(member.assigned):
            run = self._endings.runs.get(task.job)
            stage = run.job.stages.get(task.stage) if run is not None else None
            if run is not None and stage is not None and stage.ahead_of and task.token in stage.live:
                yield task, run, stage

    def _carefully(self, task: TaskToken, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._endings.contain(task.job, f"what {task.stage} awaits", error)

    def _tell(self, run: Run, name: StageId, upstreams: tuple[StageId, ...]) -> None:
        """Tells what has results of some upstreams that an attempt went ahead of, unless it has started."""
        stage = run.job.stages[name]
        # What reads streams was told where they are, and nothing is told of them from here.
        for upstream in () if run.streams.reads(name) else upstreams:
            if stage.status is not StageStatus.PLACED or run.job.status is not JobStatus.RUNNING:
                return
            token = stage.ahead_of.get(upstream)
            if token is None or upstream in stage.awaits:
                continue
            ((own, agent),) = stage.live.items()
            task = TaskToken(run.job.id, name, own)
            command = self._outcome(run, task, upstream, token, agent)
            if command is not None:
                self._ledger.send(agent, command)
                continue
            self._take_back(run, task, f"what it awaited of {upstream} is gone")

    def _take_back(self, run: Run, task: TaskToken, reason: str) -> None:
        """It counts for nothing, and is decided anew."""
        self._endings.cancel_attempts(run.job, task.stage)
        if self._settler.supersede(run, task.stage, task.token, reason):
            self._settler.decide(run, task.stage)

    def _outcome(
        self, run: Run, task: TaskToken, upstream: StageId, token: FencingToken, agent: AgentId
    ) -> Resolve | None:
        """What an awaited attempt gave; None where it does not count any more, or is not there."""
        stage: StageState = run.job.stages[upstream]
        if stage.committed != token:
            return None
        fed = [item for item in inputs_of(run.job, task.stage) if item.consumed.upstream == upstream]
        holders = self._dispatcher.sourcing.holders(fed)
        if not all(holders.values()):
            return None
        return Resolve(
            task=task,
            upstream=upstream,
            token=token,
            inputs=tuple(input_of(run, item, holders, self._fleet.members[agent]) for item in fed),
            holds=tuple(key for key, held in stage.holds.items() if held),
        )


def _reads_from(item: Fed, agent: AgentId) -> bool:
    return item.ref.inline is None and item.upstream is not None and agent in item.upstream.holders
