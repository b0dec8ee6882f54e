"""Puts the declared outputs of a result into the job store, before its end is told."""

import asyncio
import logging
import time
from collections.abc import Sequence

from starloom.agents.execution import Made
from starloom.agents.transfer import Transfer
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import DeadlineExceeded, DigestMismatch, StarloomError
from starloom.dag.ids import TaskToken
from starloom.dag.values import ValueRef

_log = logging.getLogger(__name__)


class Publisher:
    """Puts values to the orchestrator's data service at `store_address`."""

    def __init__(self, transfer: Transfer, store_address: str) -> None:
        self._transfer = transfer
        self._store_address = store_address

    async def publish(self, task: TaskToken, made: Made, ports: Sequence[str]) -> float:
        """Puts these outputs; the seconds that took. Raises what no repetition mends."""
        began = time.monotonic()
        for port in ports:
            await self._put(task, made.outputs[port], made.data[port])
        return time.monotonic() - began

    async def _put(self, task: TaskToken, ref: ValueRef, data: Data) -> None:
        """Puts until it is there: an orchestrator that is away comes back."""
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
