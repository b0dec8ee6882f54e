"""Where attempts run: in the agent's worker threads, on the loop of stream stages, or, brief ones, on the agent's own loop."""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from starloom.agents.brief import BriefKinds, BriefRuns
from starloom.agents.core import Instruction
from starloom.agents.execution import Execution, ModelsFactory, StageLookup, execute
from starloom.agents.streams.runner import Streams
from starloom.agents.together import execute_together
from starloom.agents.workers import Began, Ended, Workers
from starloom.dag import limits
from starloom.dag.ids import AgentId, TaskToken

_log = logging.getLogger(__name__)

_NANOS = 1e9


class Runner(Protocol):
    """Who is told what becomes of attempts; as `runtime.Runtime` is. `began` and `ended` return what follows."""

    def began(self, event: Began[TaskToken]) -> list[Instruction]:
        """An attempt begins."""
        ...

    def ended(self, event: Ended[TaskToken]) -> list[Instruction]:
        """Nothing of an attempt runs any more."""
        ...

    def worked(self, events: Sequence[Began[TaskToken] | Ended[TaskToken]]) -> None:
        """Attempts have begun or ended elsewhere."""
        ...

    def late(self, task: TaskToken) -> None:
        """An attempt that ran on the agent's loop has overrun its timeout."""
        ...

    def resume(self) -> None:
        """What waits to run on the agent's loop may go on."""
        ...


class Runs:
    """Starts attempts whose inputs are there. For the event loop's thread."""

    def __init__(
        self,
        agent: AgentId,
        slots: int,
        stages: StageLookup,
        models: ModelsFactory,
        streams: Streams | None,
        runner: Runner,
    ) -> None:
        self._agent = agent
        self._slots = slots
        self._stages = stages
        self._models = models
        self._streams = streams
        self._runner = runner
        self._brief = BriefKinds(stages.kinds.values())
        self._due: BriefRuns[Execution] = BriefRuns(runner.resume)
        #: those that are with the workers; of some that run together the first
        self._threaded: set[TaskToken] = set()
        self._workers: Workers[TaskToken] = Workers(slots, runner.worked, f"{agent}-stage")

    def begin(self, run: Execution) -> None:
        """Starts one, or lets it wait for its turn on the loop."""
        assign = run.assign
        if self._streams is not None and assign.kind in self._streams.kinds:
            self._streams.begin(run, self._workers.compute, self._runner.worked)
        elif len(self._threaded) < self._slots and self._brief.takes(assign):
            self._due.add(run)
        else:
            self._begin_there(run)

    def begin_together(self, runs: Sequence[Execution]) -> None:
        """Starts attempts that share a call."""
        tasks = [run.assign.task for run in runs]
        self._threaded.add(tasks[0])
        work = partial(execute_together, runs, self._stages, self._models, self._agent)
        self._workers.submit_together(tasks, work)

    def next_here(self) -> list[Instruction] | None:
        """Runs the next attempt whose turn it is on this loop; what follows, or None where there is none."""
        run = self._due.next()
        return None if run is None else self._run_here(run)

    def pause(self) -> None:
        """Lets others on this loop go first."""
        self._due.pause()

    def over(self, task: TaskToken) -> None:
        """Nothing of the attempt runs any more."""
        self._threaded.discard(task)

    async def stop(self, deadline: float) -> None:
        """Ends the threads; gives up on them at this time of `time.monotonic`."""
        if self._streams is not None and not await self._streams.stop(max(0.0, deadline - time.monotonic())):
            _log.error("a stream stage does not react to its cancel; its thread is left behind")
        if not await self._workers.stop(max(0.0, deadline - time.monotonic())):
            _log.error("a stage does not react to its cancel; its thread is left behind")

    def _begin_there(self, run: Execution) -> None:
        task = run.assign.task
        self._threaded.add(task)
        self._workers.submit(task, partial(execute, run, self._stages, self._models, self._agent))

    def _run_here(self, run: Execution) -> list[Instruction]:
        """As a worker would. One that overran its timeout has failed, as it has there."""
        task, kind = run.assign.task, run.assign.kind
        if not self._brief.takes(run.assign):
            self._begin_there(run)
            return []
        began = time.monotonic_ns()
        found = self._runner.began(Began(task, began))
        before = time.thread_time_ns()
        result: Any = execute(run, self._stages, self._models, self._agent)
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
            self._runner.late(task)
            result = None
        return found + self._runner.ended(Ended(task, ended, result))
