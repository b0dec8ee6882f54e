"""Carries out what the agent's core decides: fetches inputs, runs stages in threads, publishes, reports.

Lives on the event loop, and keeps it free: values are read, written, hashed and compared in the worker
threads, in the same hop that runs the stage. Only what takes less than such a hop runs on the loop: `agents.brief`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from starloom.agents import crashpoints
from starloom.agents.core import (
    AgentCore,
    Answer,
    Ask,
    Bring,
    Drop,
    Fetch,
    Forget,
    Instruction,
    Keep,
    Named,
    Preload,
    Start,
    StartTogether,
    Stop,
    StopPreload,
    Tell,
    Unask,
    Wake,
)
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.execution import Execution, Made, ModelsFactory, StageLookup
from starloom.agents.fetching import InputFetcher, InputsLost
from starloom.agents.holder import Holder
from starloom.agents.messages import (
    Assign,
    Command,
    Failed,
    Published,
    Report,
    WasCancelled,
)
from starloom.agents.neighbours import Neighbours
from starloom.agents.outcomes import Outcomes
from starloom.agents.peers import Peers
from starloom.agents.preloader import Preloader
from starloom.agents.preloads import Wish
from starloom.agents.publishing import Publisher
from starloom.agents.relaying import Relay
from starloom.agents.replicator import Replicator
from starloom.agents.results import Results
from starloom.agents.runs import Runs
from starloom.agents.streams.runner import Streams
from starloom.agents.transfer import Transfer
from starloom.agents.values import Data
from starloom.agents.work import Work, lost_report, unable_report
from starloom.agents.workers import Began, Ended
from starloom.dag import limits
from starloom.dag.facts import ErrorInfo
from starloom.dag.ids import Epoch, JobId, TaskToken

_log = logging.getLogger(__name__)

_NANOS = 1e9


class Runtime:
    """The shell of one agent's core. All methods are for the event loop's thread.

    `store_address` is the orchestrator's data service; `tell` takes reports, in order.
    """

    def __init__(
        self,
        core: AgentCore,
        stages: StageLookup,
        models: ModelsFactory,
        holder: Holder,
        transfer: Transfer,
        store_address: str,
        tell: Callable[[Report], None],
        neighbours: Neighbours | None = None,
        peers: Peers | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.core = core
        self._holder = holder
        self._inputs = InputFetcher(core.agent, holder, transfer, store_address, neighbours)
        self.links = self._inputs.links
        self._replicator = Replicator(holder, self._inputs, self._replicated)
        self._relay = Relay(holder, transfer, store_address, self._brought)
        publisher = Publisher(transfer, store_address)
        self._results = Results(core, holder, publisher, self._end, self._carry_out)
        self._tell = tell
        self._streams = streams
        self._works: dict[TaskToken, Work] = {}
        self._runs = Runs(core.agent, core.slots, stages, models, streams, self)
        self._preloader = Preloader(stages, models, self._preloaded, f"{core.agent}-loading")
        self._outcomes = Outcomes(core, neighbours, peers, self._carry_out, self._runs.pause)
        self._leaving = False
        self._idle = asyncio.Event()

    def commands(self, commands: Sequence[Command], sender_epoch: Epoch) -> None:
        """Takes commands in."""
        instructions = self.core.commands(commands, sender_epoch, time.monotonic_ns())
        if crashpoints.ON and any(isinstance(command, Assign) for command in commands):
            reach(CrashPoint.ACCEPTED)
        self._carry_out(instructions)

    async def stop(self, seconds: float = limits.AGENT_STOP_SECONDS) -> None:
        """Cancels everything, without reports, and ends the threads; gives up on them after `seconds`."""
        self._leaving = True
        self._replicator.stop()
        self._relay.stop()
        self._outcomes.leave()
        self._carry_out(self.core.cancel_all())
        await self._outcomes.stop()
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                while not self.core.idle:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            _log.error("%d attempts did not stop within %g s", len(self.core.active), seconds)
        await self._runs.stop(deadline)
        if not await self._preloader.stop(max(0.0, deadline - time.monotonic())):
            _log.error("a model is still being loaded; its thread is left behind")

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        todo = deque(instructions)
        while True:
            while todo:
                todo.extend(self._obey(todo.popleft()))
            here = self._runs.next_here()
            if here is None:
                break
            todo.extend(here)
        if self.core.idle:
            self._idle.set()

    def _obey(self, instruction: Instruction) -> Sequence[Instruction]:
        """Carries one instruction out; returns what follows at once."""
        match instruction:
            case Tell(report):
                if not self._leaving:
                    self._tell(report)
            case Start() as start:
                return self._start(start)
            case StartTogether(starts):
                return self._start_together(starts)
            case Wake(at):
                asyncio.get_running_loop().call_later((at - time.monotonic_ns()) / _NANOS, self._wake)
            case Fetch(assign):
                return self._fetch(assign)
            case Stop(task):
                self._stop(task)
            case Drop(task):
                self._works.pop(task, None)
            case Keep(command):
                if not self._leaving:
                    self._replicator.begin(command)
            case Bring(command):
                if not self._leaving:
                    self._relay.begin(command)
            case Named(assign) if assign.task in self._works:
                self._works[assign.task].named(assign)
            case Ask() | Unask() | Answer() as of_peers:
                self._outcomes.obey(of_peers)
            case Preload(kind, target):
                self._preloader.begin(Wish(kind, target))
            case StopPreload():
                self._preloader.cancel()
            case Forget(job):
                self._forget(job)
        return ()

    def _forget(self, job: JobId) -> None:
        self._replicator.forget(job)
        self._relay.forget(job)
        self._holder.release(job)
        if self._streams is not None:
            self._streams.forget(job)
        self._inputs.release(job)
        self._outcomes.early_values.forget(job)

    def _end(self, task: TaskToken, report: Report) -> list[Instruction]:
        """Nothing of the attempt runs any more."""
        work = self._works.pop(task, None)
        if work is not None and work.timer is not None:
            work.timer.cancel()
        return self.core.ended(task, report, time.monotonic_ns())

    def _fetch(self, assign: Assign) -> list[Instruction]:
        task = assign.task
        work = self._works[task] = Work(assign)
        items = self._inputs.others(assign)
        work.fetched = self._outcomes.early_values.views(items, task.job)
        items = [item for item in items if item.port not in work.fetched]
        if not items:
            return self.core.fetched(task, time.monotonic_ns())
        work.task = asyncio.create_task(self._inputs.remote(items, task.job))
        work.task.add_done_callback(partial(self._fetched, work))
        return []

    def _start(self, start: Start) -> list[Instruction]:
        found: list[Instruction] = []
        if (run := self._ready(start, found)) is not None:
            self._runs.begin(run)
        return found

    def _start_together(self, starts: Iterable[Start]) -> list[Instruction]:
        """One whose inputs have gone runs by itself, once they were fetched again."""
        found: list[Instruction] = []
        runs = [run for start in starts if (run := self._ready(start, found)) is not None]
        if runs:
            self._runs.begin_together(runs)
        return found

    def _ready(self, start: Start, found: list[Instruction]) -> Execution | None:
        """What is to run; None where the inputs are fetched again, or where the attempt has ended without them."""
        assign = start.assign
        work = self._works.get(assign.task)
        if work is None:
            work = self._works[assign.task] = Work(assign)
        work.assign = assign
        work.accepted, work.fetching, work.task = start.accepted, start.fetching, None
        try:
            inputs = self._inputs.local(assign) | work.fetched
        except InputsLost as lost:
            if not self._inputs.elsewhere(assign):
                found += self._end(assign.task, lost_report(assign.task, lost))
                return None
            fetching = asyncio.create_task(self._inputs.replaced(assign))
            fetching.add_done_callback(partial(self._replaced, work))
            work.task = fetching
            return None
        return self._execution(work, inputs)

    def _wake(self) -> None:
        if not self._leaving:
            self._carry_out(self.core.woken(time.monotonic_ns()))

    def _replaced(self, work: Work, fetching: asyncio.Task[dict[str, Data]]) -> None:
        """What was gone here came from others; the attempt has kept its slot meanwhile."""
        task, work.task = work.assign.task, None
        if (unable := unable_report(self.core, task, fetching)) is not None:
            self._carry_out(self._end(task, unable))
        else:
            self._runs.begin(self._execution(work, fetching.result() | work.fetched))

    def _execution(self, work: Work, inputs: dict[str, Data]) -> Execution:
        streams = self._streams is not None and work.assign.kind in self._streams.kinds
        return work.execution(inputs, self._holder.arena, streams=streams)

    def _stop(self, task: TaskToken) -> None:
        work = self._works[task]
        try:
            work.cancel.cancel()
        # What a stage does on its cancel is foreign code, and must not end the loop's work.
        except Exception:
            _log.exception("%s: what kind %s does on a cancel failed", task, work.assign.kind)
        if work.task is not None:
            work.task.cancel()
        if work.timer is not None:
            work.timer.cancel()
        loop = asyncio.get_running_loop()
        work.timer = loop.call_later(limits.CANCEL_GRACE_SECONDS, self._complain, work)

    def _complain(self, work: Work) -> None:
        _log.warning(
            "%s (%s) does not react to its cancel since CANCEL_GRACE_SECONDS = %g; it keeps its slot",
            work.assign.task,
            work.assign.kind,
            limits.CANCEL_GRACE_SECONDS,
        )
        if work.timed_out:
            late = f", and does not react to its cancel since CANCEL_GRACE_SECONDS = {limits.CANCEL_GRACE_SECONDS:g}"
            what = f"{late}; its thread still runs, and keeps its slot"
            task = work.assign.task
            self._carry_out(self.core.overran(task, Failed(task=task, error=work.overran(self.core.agent, what))))

    def _fetched(self, work: Work, fetching: asyncio.Task[dict[str, Data]]) -> None:
        task = work.assign.task
        if (unable := unable_report(self.core, task, fetching)) is not None:
            self._carry_out(self._end(task, unable))
        else:
            work.fetched |= fetching.result()
            self._carry_out(self.core.fetched(task, time.monotonic_ns()))

    def _preloaded(self) -> None:
        self._carry_out(self.core.preloaded(time.monotonic_ns()))

    def _replicated(self, report: Report) -> None:
        self._carry_out(self.core.replicated(report))

    def _brought(self, report: Published) -> None:
        self._carry_out(self.core.published(report))

    def resume(self) -> None:
        """`runs.Runner`: what waits to run on this loop may go on."""
        self._carry_out(())

    def worked(self, events: Sequence[Began[TaskToken] | Ended[TaskToken]]) -> None:
        """`runs.Runner`: attempts have begun or ended elsewhere."""
        for event in events:
            if isinstance(event, Began):
                self._carry_out(self.began(event))
            else:
                self._carry_out(self.ended(event))

    def late(self, task: TaskToken) -> None:
        """`runs.Runner`: an attempt that ran on this loop has overrun its timeout."""
        self._works[task].timed_out = True

    def began(self, event: Began[TaskToken]) -> list[Instruction]:
        """`runs.Runner`: an attempt begins."""
        work = self._works[event.key]
        reach(CrashPoint.STARTED)
        if work.assign.timeout_seconds and not work.cancel.cancelled:
            left = work.assign.timeout_seconds - (time.monotonic_ns() - event.at) / _NANOS
            work.timer = asyncio.get_running_loop().call_later(max(0.0, left), self._time_out, work)
        return self.core.began(event.key, event.at)

    def _time_out(self, work: Work) -> None:
        work.timed_out = True
        self._stop(work.assign.task)

    def ended(self, event: Ended[TaskToken]) -> list[Instruction]:
        """`runs.Runner`: nothing of an attempt runs any more, and this is what came of it."""
        task, result = event.key, event.result
        work = self._works[task]
        self._runs.over(task)
        if work.timer is not None:
            work.timer.cancel()
        if isinstance(result, Made):
            return self._results.keep(work, result)
        if work.timed_out:
            return self._end(task, Failed(task=task, error=work.overran(self.core.agent)))
        if isinstance(result, InputsLost):
            return self._end(task, lost_report(task, result))
        if isinstance(result, ErrorInfo):
            return self._end(task, Failed(task=task, error=result))
        return self._end(task, WasCancelled(task=task))
