"""Fetches the replicas that an agent was asked to keep."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from starloom.agents.fetching import InputFetcher, Unfetched
from starloom.agents.holder import Holder
from starloom.agents.messages import Held, NotHeld, Replicate, Report
from starloom.agents.neighbours import is_anothers
from starloom.agents.transfer import off_loop
from starloom.agents.values import Data, verify
from starloom.dag.errors import DigestMismatch, Overloaded
from starloom.dag.ids import JobId, TaskToken
from starloom.dag.values import ValueRef

_log = logging.getLogger(__name__)


class Replicator:
    """Fetches replicas and keeps them with the agent's own values. All methods are for the event loop's thread.

    `ended` is told how each came out, unless its job was forgotten first.
    """

    def __init__(self, holder: Holder, inputs: InputFetcher, ended: Callable[[Report], None]) -> None:
        self._holder = holder
        self._inputs = inputs
        self._ended = ended
        self._fetches: dict[TaskToken, asyncio.Task[Report]] = {}

    def begin(self, command: Replicate) -> None:
        """Starts to fetch."""
        fetch = self._fetches[command.task] = asyncio.create_task(self._fetch(command))
        fetch.add_done_callback(partial(self._done, command.task))

    def forget(self, job: JobId) -> None:
        """Breaks off what is fetched for a job."""
        for task in [task for task in self._fetches if task.job == job]:
            self._fetches.pop(task).cancel()

    def stop(self) -> None:
        """Breaks everything off."""
        for task in tuple(self._fetches):
            self._fetches.pop(task).cancel()

    async def _fetch(self, command: Replicate) -> Report:
        task = command.task
        try:
            wanted = [ref for ref in command.values if not self._holder.has(task.job, ref.digest)]
            self._holder.check_replica(sum(ref.bytes for ref in wanted))
            found = [await self._inputs.value(task.job, ref, command.sources) for ref in wanted]
            self._holder.check_replica(sum(map(len, found)))
            for ref, data in zip(wanted, found, strict=True):
                self._holder.keep(task.job, ref.digest, await off_loop(ref.bytes, self._own, ref, data))
        except Unfetched as error:
            return NotHeld(task=task, reason=str(error), missing=error.missing)
        except (Overloaded, DigestMismatch) as error:
            return NotHeld(task=task, reason=str(error))
        return Held(task=task)

    @staticmethod
    def _own(ref: ValueRef, data: Data) -> Data:
        """Bytes that are this agent's: what lies in its maker's shared memory could be written over by its maker."""
        return verify(ref, bytes(data)) if is_anothers(data) else data

    def _done(self, task: TaskToken, fetch: asyncio.Task[Report]) -> None:
        if self._fetches.get(task) is not fetch:
            return
        del self._fetches[task]
        error = None if fetch.cancelled() else fetch.exception()
        if fetch.cancelled() or error is not None:
            _log.error("%s: no replica: %r", task, error)
            self._ended(NotHeld(task=task, reason=f"the fetch was broken off: {error!r}"))
        else:
            self._ended(fetch.result())
