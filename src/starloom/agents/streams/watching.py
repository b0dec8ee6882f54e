"""Looks, while a stage waits for room, whether those that wait wait for each other; see `watchdog`."""

import asyncio
import logging
import time
from collections import defaultdict

from starloom.agents.streams import watchdog
from starloom.agents.streams.records import Bound
from starloom.agents.streams.running import StreamRun
from starloom.agents.streams.watchdog import Enlarge, Hopeless, Waits
from starloom.dag import limits
from starloom.dag.errors import StageError
from starloom.dag.ids import JobId, StageId, TaskToken

_log = logging.getLogger(__name__)


class Watch:
    """The attempts of one agent that have streams. On the loop of stream stages; no timer runs while nobody waits."""

    def __init__(self) -> None:
        self._runs: dict[TaskToken, StreamRun] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: since when no room is left for what is stuck, by the stage that would fail
        self._hopeless: dict[TaskToken, float] = {}

    def add(self, run: StreamRun) -> None:
        """An attempt begins."""
        self._runs[run.assign.task] = run

    def remove(self, run: StreamRun) -> None:
        """An attempt has ended."""
        del self._runs[run.assign.task]
        self._hopeless.pop(run.assign.task, None)

    def arm(self) -> None:
        """A stage waits for room: looks in a while, and again as long as one does."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(limits.STREAM_WATCH_SECONDS, self.look)

    def look(self) -> None:
        """Gives room where stages wait for each other, and fails one of them where there is none left to give."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for job, waits in self._waits().items():
            if not any(found.rooms for found in waits.values()):
                continue
            self.arm()
            self._help(waits, self._most(job))
            for found in watchdog.overdue(waits, time.monotonic_ns()):
                self._fail(found)

    def _waits(self) -> dict[JobId, dict[TaskToken, Waits]]:
        attempts: dict[JobId, dict[StageId, TaskToken]] = defaultdict(dict)
        for task in self._runs:
            attempts[task.job][task.stage] = task
        waits: dict[JobId, dict[TaskToken, Waits]] = defaultdict(dict)
        for task, run in self._runs.items():
            if (found := run.waits(attempts[task.job])) is not None:
                waits[task.job][task] = found
        return waits

    def _most(self, job: JobId) -> Bound:
        """What one stream of a job may keep at most: not so much that all of them are over the job's bound."""
        flows = [flow for task, run in self._runs.items() if task.job == job for flow in run.flows.values()]
        left = limits.STREAM_JOB_BYTES_MAX - sum(flow.buffer.kept.bytes for flow in flows)
        if left <= 0:
            return Bound(0, 0)
        return Bound(limits.STREAM_BUFFER_CHUNKS_MAX, limits.STREAM_BUFFER_BYTES_MAX)

    def _help(self, waits: dict[TaskToken, Waits], most: Bound) -> None:
        match watchdog.remedy(waits, most):
            case Enlarge(task, port, bound):
                self._hopeless.pop(task, None)
                self._runs[task].flows[port].enlarge(bound)
                _log.info("%s: output %s keeps up to %s now: stages wait for each other", task, port, bound)
            case Hopeless() as found:
                # It may be that a stage waits for something else at the same time, which nobody sees.
                since = self._hopeless.setdefault(found.task, time.monotonic())
                if time.monotonic() - since >= limits.STREAM_STUCK_SECONDS:
                    self._fail(found)
            case None:
                self._hopeless.clear()

    def _fail(self, found: Hopeless) -> None:
        self._runs[found.task].fail(StageError(found.why))
