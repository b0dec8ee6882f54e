"""Brings values that this agent holds to the job store, for agents that cannot reach this one."""

import asyncio
from collections.abc import Callable
from functools import partial

from starloom.agents.holder import Holder
from starloom.agents.messages import Publish, Published
from starloom.agents.transfer import Transfer
from starloom.dag.errors import StarloomError
from starloom.dag.ids import JobId, TaskToken


class Relay:
    """Puts values one after another; `ended` is told how that came out, unless the job was forgotten first.

    For the event loop's thread.
    """

    def __init__(
        self, holder: Holder, transfer: Transfer, store_address: str, ended: Callable[[Published], None]
    ) -> None:
        self._holder = holder
        self._transfer = transfer
        self._store_address = store_address
        self._ended = ended
        self._puts: dict[TaskToken, asyncio.Task[Published]] = {}

    def begin(self, command: Publish) -> None:
        """Starts to put; what is asked for again meanwhile is put once."""
        if command.task not in self._puts:
            put = self._puts[command.task] = asyncio.create_task(self._put(command))
            put.add_done_callback(partial(self._done, command.task))

    def forget(self, job: JobId) -> None:
        """Breaks off what is put for a job."""
        for task in [task for task in self._puts if task.job == job]:
            self._puts.pop(task).cancel()

    def stop(self) -> None:
        """Breaks everything off."""
        for task in tuple(self._puts):
            self._puts.pop(task).cancel()

    async def _put(self, command: Publish) -> Published:
        task = command.task
        try:
            for ref in command.values:
                await self._transfer.put(self._store_address, ref, self._holder.get(task.job, ref.digest))
        except StarloomError as error:
            return Published(task=task, reason=str(error))
        return Published(task=task)

    def _done(self, task: TaskToken, put: asyncio.Task[Published]) -> None:
        if self._puts.get(task) is not put:
            return
        del self._puts[task]
        error = None if put.cancelled() else put.exception()
        if put.cancelled() or error is not None:
            self._ended(Published(task=task, reason=f"it was broken off: {error!r}"))
        else:
            self._ended(put.result())
