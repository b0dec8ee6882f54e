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
from typing import Any

import msgspec

from starloom.agents import crashpoints
from starloom.agents.brief import BriefKinds, BriefRuns
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
from starloom.agents.execution import Execution, Made, ModelsFactory, StageLookup, execute, failure
from starloom.agents.fetching import InputFetcher, InputsLost
from starloom.agents.holder import Holder
from starloom.agents.messages import (
    Assign,
    Command,
    Failed,
    Finished,
    InputLost,
    Outcome,
    Published,
    Report,
    WasCancelled,
)
from starloom.agents.neighbours import Neighbours
from starloom.agents.peers import Peers
from starloom.agents.preloader import Preloader
from starloom.agents.preloads import Wish
from starloom.agents.relaying import Relay
from starloom.agents.replicator import Replicator
from starloom.agents.stage import CancelToken
from starloom.agents.streams.runner import Streams
from starloom.agents.together import execute_together
from starloom.agents.transfer import Transfer
from starloom.agents.values import Data
from starloom.agents.workers import Began, Ended, Workers
from starloom.dag import limits
from starloom.dag.errors import DeadlineExceeded, DigestMismatch, Overloaded, StarloomError, Unavailable
from starloom.dag.facts import ErrorInfo, Timing
from starloom.dag.ids import Epoch, JobId, TaskToken
from starloom.dag.values import ValueRef

_log = logging.getLogger(__name__)

_NANOS = 1e9


class _Work:
    """What the shell keeps of one attempt that is fetched, run or published."""

    __slots__ = ("accepted", "assign", "cancel", "fetched", "fetching", "task", "threaded", "timed_out", "timer")

    def __init__(self, assign: Assign) -> None:
        self.assign = assign
        self.cancel = CancelToken()
        self.fetched: dict[str, Data] = {}
        self.accepted = 0
        self.fetching = 0
        #: its fetch or its publication
        self.task: asyncio.Task[Any] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.timed_out = False
        #: it is with the workers
        self.threaded = False


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
        self._stages = stages
        self._models = models
        self._holder = holder
        self._transfer = transfer
        self._store_address = store_address
        self._inputs = InputFetcher(core.agent, holder, transfer, store_address, neighbours)
        self._replicator = Replicator(holder, self._inputs, self._replicated)
        self._relay = Relay(holder, transfer, store_address, self._brought)
        self._peers = peers
        if peers is not None:
            peers.bind(self)
        self._tell = tell
        self._streams = streams
        self._works: dict[TaskToken, _Work] = {}
        self._brief = BriefKinds(stages.kinds.values())
        self._due: BriefRuns[Execution] = BriefRuns(partial(self._carry_out, ()))
        self._threaded = 0
        self._workers: Workers[TaskToken] = Workers(core.slots, self._worked, f"{core.agent}-stage")
        self._preloader = Preloader(stages, models, self._preloaded, f"{core.agent}-loading")
        self._leaving = False
        self._idle = asyncio.Event()

    def commands(self, commands: Sequence[Command], sender_epoch: Epoch) -> None:
        """Takes commands in."""
        instructions = self.core.commands(commands, sender_epoch, time.monotonic_ns())
        if crashpoints.ON and any(isinstance(command, Assign) for command in commands):
            reach(CrashPoint.ACCEPTED)
        self._carry_out(instructions)

    def answered(self, outcome: Outcome) -> None:
        """`peers.Awaiter`: another agent's attempt has succeeded."""
        self._carry_out(self.core.answered(outcome, time.monotonic_ns()))

    def unreachable(self, task: TaskToken, reason: str) -> None:
        """`peers.Awaiter`: another agent cannot be asked for an attempt."""
        self._carry_out(self.core.unreachable(task, reason))

    def subscribed(self, subscriber: int, task: TaskToken) -> None:
        """`peers.Awaiter`: another agent awaits an attempt."""
        self._carry_out(self.core.subscribed(subscriber, task))

    def unsubscribed(self, subscriber: int, task: TaskToken | None = None) -> None:
        """`peers.Awaiter`: another agent awaits an attempt no more; without one, nothing."""
        self.core.unsubscribed(subscriber, task)

    async def stop(self, seconds: float = limits.AGENT_STOP_SECONDS) -> None:
        """Cancels everything, without reports, and ends the threads; gives up on them after `seconds`."""
        self._leaving = True
        self._replicator.stop()
        self._relay.stop()
        self._carry_out(self.core.cancel_all())
        if self._peers is not None:
            await self._peers.stop()
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                while not self.core.idle:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            _log.error("%d attempts did not stop within %g s", len(self.core.active), seconds)
        if self._streams is not None and not await self._streams.stop(max(0.0, deadline - time.monotonic())):
            _log.error("a stream stage does not react to its cancel; its thread is left behind")
        if not await self._workers.stop(max(0.0, deadline - time.monotonic())):
            _log.error("a stage does not react to its cancel; its thread is left behind")
        if not await self._preloader.stop(max(0.0, deadline - time.monotonic())):
            _log.error("a model is still being loaded; its thread is left behind")

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        todo = deque(instructions)
        while True:
            while todo:
                todo.extend(self._obey(todo.popleft()))
            run = self._due.next()
            if run is None:
                break
            todo.extend(self._run_here(run))
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
                work = self._works[assign.task] = _Work(assign)
                fetching = asyncio.create_task(self._inputs.remote(assign))
                fetching.add_done_callback(partial(self._fetched, work))
                work.task = fetching
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
            case Ask() | Unask() | Answer() as of_peers:
                self._to_peers(of_peers)
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

    def _to_peers(self, instruction: Ask | Unask | Answer) -> None:
        assert self._peers is not None, "attempts of other agents are awaited, and there is no way to ask"
        match instruction:
            case Ask() as ask:
                if not self._leaving:
                    self._peers.ask(ask)
            case Unask(task):
                self._peers.unask(task)
            case Answer(subscriber, outcome):
                self._peers.answer(subscriber, outcome)
                # The stream's task has been woken: it writes before more stages run on this loop.
                self._due.pause()

    def _end(self, task: TaskToken, report: Report) -> list[Instruction]:
        """Nothing of the attempt runs any more."""
        work = self._works.pop(task, None)
        if work is not None and work.timer is not None:
            work.timer.cancel()
        return self.core.ended(task, report, time.monotonic_ns())

    def _start(self, start: Start) -> list[Instruction]:
        found: list[Instruction] = []
        if (run := self._ready(start, found)) is not None:
            self._run(run)
        return found

    def _start_together(self, starts: Iterable[Start]) -> list[Instruction]:
        """One whose inputs have gone runs by itself, once they were fetched again."""
        found: list[Instruction] = []
        runs = [run for start in starts if (run := self._ready(start, found)) is not None]
        if runs:
            self._count_thread(runs[0].assign.task)
            tasks = [run.assign.task for run in runs]
            work = partial(execute_together, runs, self._stages, self._models, self.core.agent)
            self._workers.submit_together(tasks, work)
        return found

    def _ready(self, start: Start, found: list[Instruction]) -> Execution | None:
        """What is to run; None where the inputs are fetched again, or where the attempt has ended without them."""
        assign = start.assign
        work = self._works.get(assign.task)
        if work is None:
            work = self._works[assign.task] = _Work(assign)
        work.accepted, work.fetching, work.task = start.accepted, start.fetching, None
        try:
            inputs = self._inputs.local(assign) | work.fetched
        except InputsLost as lost:
            if not self._inputs.elsewhere(assign):
                found += self._end(assign.task, _lost(assign.task, lost))
                return None
            fetching = asyncio.create_task(self._inputs.replaced(assign))
            fetching.add_done_callback(partial(self._replaced, work))
            work.task = fetching
            return None
        return self._execution(work, inputs)

    def _wake(self) -> None:
        if not self._leaving:
            self._carry_out(self.core.woken(time.monotonic_ns()))

    def _replaced(self, work: _Work, fetching: asyncio.Task[dict[str, Data]]) -> None:
        """What was gone here came from others; the attempt has kept its slot meanwhile."""
        task, work.task = work.assign.task, None
        if (unable := self._unable(task, fetching)) is not None:
            self._carry_out(self._end(task, unable))
        else:
            self._run(self._execution(work, fetching.result() | work.fetched))

    def _execution(self, work: _Work, inputs: dict[str, Data]) -> Execution:
        work.fetched = {}
        return Execution(work.assign, inputs, work.cancel, self._holder.arena)

    def _run(self, run: Execution) -> None:
        assign = run.assign
        if self._streams is not None and assign.kind in self._streams.kinds:
            self._streams.begin(run, self._workers.compute, self._worked)
        elif self._threaded < self.core.slots and self._brief.takes(assign):
            self._due.add(run)
        else:
            self._run_there(run)

    def _run_there(self, run: Execution) -> None:
        task = run.assign.task
        self._count_thread(task)
        self._workers.submit(task, partial(execute, run, self._stages, self._models, self.core.agent))

    def _count_thread(self, task: TaskToken) -> None:
        self._works[task].threaded = True
        self._threaded += 1

    def _run_here(self, run: Execution) -> list[Instruction]:
        """Runs an attempt on this loop, as a worker would. One that overran its timeout has failed, as it has there."""
        task, kind = run.assign.task, run.assign.kind
        if not self._brief.takes(run.assign):
            self._run_there(run)
            return []
        began = time.monotonic_ns()
        found = self._began(Began(task, began))
        before = time.thread_time_ns()
        result: Any = execute(run, self._stages, self._models, self.core.agent)
        computed, ended = time.thread_time_ns() - before, time.monotonic_ns()
        if self._brief.ran(kind, computed, ended - began):
            _log.warning(
                "kind %s declares itself brief, and is not: a run took %.3g s. Its runs get a thread from now on",
                kind,
                (ended - began) / _NANOS,
            )
        if ended - began >= limits.AGENT_CHEAP_NANOS:
            # Others have waited longer than they should.
            self._due.pause()
        timeout = run.assign.timeout_seconds
        if timeout and ended - began >= timeout * _NANOS and not run.cancel.cancelled:
            self._works[task].timed_out, result = True, None
        return found + self._finished(Ended(task, ended, result))

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

    def _complain(self, work: _Work) -> None:
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
            self._carry_out(self.core.overran(task, Failed(task=task, error=self._timeout(work, what))))

    def _fetched(self, work: _Work, fetching: asyncio.Task[dict[str, Data]]) -> None:
        task = work.assign.task
        if (unable := self._unable(task, fetching)) is not None:
            self._carry_out(self._end(task, unable))
        else:
            work.fetched = fetching.result()
            self._carry_out(self.core.fetched(task, time.monotonic_ns()))

    def _preloaded(self) -> None:
        self._carry_out(self.core.preloaded(time.monotonic_ns()))

    def _replicated(self, report: Report) -> None:
        self._carry_out(self.core.replicated(report))

    def _brought(self, report: Published) -> None:
        self._carry_out(self.core.published(report))

    def _unable(self, task: TaskToken, done: asyncio.Task[Any]) -> Report | None:
        """What to report of a fetch or a publication that did not succeed. Whatever went wrong is told.

        Asked in a task's callback, which runs even where a cancel came before the task's first step.
        """
        if done.cancelled():
            if self.core.is_cancelled(task):
                return WasCancelled(task=task)
            error: BaseException | None = Unavailable("a transfer was broken off: the agent is stopping")
        else:
            error = done.exception()
        if error is None:
            return None
        if isinstance(error, InputsLost):
            return _lost(task, error)
        return Failed(task=task, error=failure(error, self.core.agent))

    def _worked(self, events: Sequence[Began[TaskToken] | Ended[TaskToken]]) -> None:
        for event in events:
            if isinstance(event, Began):
                self._carry_out(self._began(event))
            else:
                self._carry_out(self._finished(event))

    def _began(self, event: Began[TaskToken]) -> list[Instruction]:
        work = self._works[event.key]
        reach(CrashPoint.STARTED)
        if work.assign.timeout_seconds and not work.cancel.cancelled:
            left = work.assign.timeout_seconds - (time.monotonic_ns() - event.at) / _NANOS
            work.timer = asyncio.get_running_loop().call_later(max(0.0, left), self._time_out, work)
        return self.core.began(event.key, event.at)

    def _time_out(self, work: _Work) -> None:
        work.timed_out = True
        self._stop(work.assign.task)

    def _finished(self, event: Ended[TaskToken]) -> list[Instruction]:
        task, result = event.key, event.result
        work = self._works[task]
        self._threaded -= work.threaded
        if work.timer is not None:
            work.timer.cancel()
        if isinstance(result, Made):
            return self._keep(work, result)
        if work.timed_out:
            return self._end(task, Failed(task=task, error=self._timeout(work)))
        if isinstance(result, InputsLost):
            return self._end(task, _lost(task, result))
        if isinstance(result, ErrorInfo):
            return self._end(task, Failed(task=task, error=result))
        return self._end(task, WasCancelled(task=task))

    def _timeout(self, work: _Work, more: str = "") -> ErrorInfo:
        what = f"{work.assign.kind} ran longer than its timeout of {work.assign.timeout_seconds:g} s{more}"
        return ErrorInfo(message=what, cause=DeadlineExceeded.__name__, transient=True, node=self.core.agent)

    def _keep(self, work: _Work, made: Made) -> list[Instruction]:
        """Holds the outputs that are not inline, and publishes those that the job store is to have."""
        task = work.assign.task
        if self.core.is_cancelled(task):
            return self._end(task, WasCancelled(task=task))
        try:
            for port, ref in made.outputs.items():
                if ref.inline is None and port in made.data:
                    self._holder.keep(task.job, ref.digest, made.data[port])
        except Overloaded as error:
            return self._end(task, Failed(task=task, error=failure(error, self.core.agent)))
        reach(CrashPoint.COMPUTED)
        published = tuple(port for port in work.assign.publish if port in made.outputs)
        # Inline bytes travel in the report, and the journal keeps them.
        to_put = [port for port in published if port in made.data and made.outputs[port].inline is None]
        report = _report(work, made, published)
        if not to_put:
            return self._end(task, report)
        publishing = asyncio.create_task(self._publish(task, made, to_put))
        publishing.add_done_callback(partial(self._published, report))
        work.task = publishing
        return self.core.computed(task, made.ended)

    async def _publish(self, task: TaskToken, made: Made, ports: Sequence[str]) -> float:
        """Puts outputs into the job store; the seconds that took."""
        began = time.monotonic()
        for port in ports:
            await self._put(task, made.outputs[port], made.data[port])
        return time.monotonic() - began

    def _published(self, report: Finished, publishing: asyncio.Task[float]) -> None:
        task = report.task
        if (unable := self._unable(task, publishing)) is not None:
            self._carry_out(self._end(task, unable))
            return
        reach(CrashPoint.STORED)
        timing = msgspec.structs.replace(report.timing, transfer=report.timing.transfer + publishing.result())
        self._carry_out(self._end(task, msgspec.structs.replace(report, timing=timing)))

    async def _put(self, task: TaskToken, ref: ValueRef, data: Data) -> None:
        """Puts until it is there: an orchestrator that is away comes back. Raises what no repetition mends."""
        wait = limits.BACKOFF_FIRST_SECONDS
        while True:
            try:
                await self._transfer.put(self._store_address, ref, data)
                return
            except StarloomError as error:
                if not error.retryable and not isinstance(error, DigestMismatch | DeadlineExceeded):
                    raise
                _log.warning("%s: publishing %s waits %g s: %s", task, ref.digest[:12], wait, error)
            await asyncio.sleep(wait)
            wait = min(wait * limits.BACKOFF_FACTOR, limits.RECONNECT_LAST_SECONDS)


def _lost(task: TaskToken, lost: InputsLost) -> InputLost:
    return InputLost(task=task, upstreams=lost.upstreams, reason=str(lost), gone=lost.gone, missing=dict(lost.missing))


def _report(work: _Work, made: Made, published: tuple[str, ...]) -> Finished:
    run = (made.ended - made.began) / _NANOS
    timing = Timing(
        queue=max(0, made.began - work.accepted - work.fetching) / _NANOS,
        transfer=work.fetching / _NANOS,
        load=made.load_seconds,
        run=max(0.0, run - made.load_seconds),
    )
    return Finished(
        task=work.assign.task,
        outputs=dict(made.outputs),
        consumed={item.port: item.consumed for item in work.assign.inputs} | dict(made.consumed),
        timing=timing,
        models=made.models,
        target=made.target,
        emulated=made.emulated,
        published=published,
        holds=made.holds,
        figures=dict(made.figures),
        growth=made.growth,
    )
