"""The inputs of attempts: from this agent's own values, or fetched from whoever holds them, each value once at a time."""

import asyncio
import time
from collections import OrderedDict

from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Input
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InputUnavailable, NotFound, StarloomError, Unavailable
from starloom.dag.ids import AgentId, JobId, StageId

_Key = tuple[JobId, str]


class InputsLost(InputUnavailable):
    """Inputs could not be had: `upstreams` lack values, which are `gone`, or with a holder that cannot be reached."""

    def __init__(self, upstreams: tuple[StageId, ...], reason: str, gone: bool) -> None:
        super().__init__(reason)
        self.upstreams = upstreams
        self.gone = gone


class _Flight:
    """A fetch that several attempts may wait for."""

    def __init__(self, task: asyncio.Task[bytes]) -> None:
        self.task = task
        self.waiting = 0


class InputFetcher:
    """Gets inputs. Fetched values of at most AGENT_FETCHED_BYTES_MAX are kept for other attempts of their job."""

    def __init__(self, agent: AgentId, holder: Holder, transfer: Transfer, store_address: str) -> None:
        self._agent = agent
        self._holder = holder
        self._transfer = transfer
        self._store_address = store_address
        self._flights: dict[_Key, _Flight] = {}
        self._copies: OrderedDict[_Key, bytes] = OrderedDict()
        self._copied_bytes = 0

    def local(self, assign: Assign) -> dict[str, bytes]:
        """The bytes of inputs that this agent made itself, by port. Raises InputsLost."""
        found: dict[str, bytes] = {}
        lost: list[tuple[Input, StarloomError]] = []
        for item in assign.inputs:
            if item.ref.inline is None and item.ref.holder == self._agent:
                try:
                    found[item.port] = self._holder.get(assign.task.job, item.ref.digest)
                except NotFound as error:
                    lost.append((item, error))
        if lost:
            raise _lost(lost)
        return found

    async def remote(self, assign: Assign) -> dict[str, bytes]:
        """The bytes of inputs that others hold, by port, fetched at the same time. Raises InputsLost."""
        items = [item for item in assign.inputs if item.ref.inline is None and item.ref.holder != self._agent]
        results = await asyncio.gather(*(self._shared(assign.task.job, item) for item in items), return_exceptions=True)
        found: dict[str, bytes] = {}
        lost: list[tuple[Input, StarloomError]] = []
        for item, result in zip(items, results, strict=True):
            if isinstance(result, bytes):
                found[item.port] = result
            elif isinstance(result, StarloomError):
                lost.append((item, result))
            else:
                raise result
        if lost:
            raise _lost(lost)
        return found

    def release(self, job: JobId) -> None:
        """Forgets the copies of a job's values."""
        for key in [key for key in self._copies if key[0] == job]:
            self._copied_bytes -= len(self._copies.pop(key))

    async def _shared(self, job: JobId, item: Input) -> bytes:
        key = (job, item.ref.digest)
        if (copy := self._copies.get(key)) is not None:
            self._copies.move_to_end(key)
            return copy
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._fetch(job, item)))
        flight.waiting += 1
        try:
            data = await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if self._flights.get(key) is flight and (flight.task.done() or not flight.waiting):
                # Out of the way at once: nobody may join a fetch that is being cancelled.
                del self._flights[key]
            if not flight.waiting:
                flight.task.cancel()
        self._copy(key, data)
        return data

    def _copy(self, key: _Key, data: bytes) -> None:
        if key in self._copies or len(data) > limits.AGENT_FETCHED_BYTES_MAX:
            return
        self._copies[key] = data
        self._copied_bytes += len(data)
        while self._copied_bytes > limits.AGENT_FETCHED_BYTES_MAX:
            _, dropped = self._copies.popitem(last=False)
            self._copied_bytes -= len(dropped)

    async def _fetch(self, job: JobId, item: Input) -> bytes:
        """Fetches with patience: for what the job store has, until there is an orchestrator again."""
        address = item.address or self._store_address
        give_up = time.monotonic() + limits.INPUT_PATIENCE_SECONDS
        damaged = False
        wait = limits.RECONNECT_FIRST_SECONDS
        while True:
            try:
                return await self._transfer.fetch(address, job, item.ref)
            except DigestMismatch:
                if damaged:
                    raise
                damaged = True
            except Unavailable:
                # Nobody else has it, and nobody could be told that it is missing.
                if address != self._store_address and time.monotonic() > give_up:
                    raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, limits.RECONNECT_LAST_SECONDS)


def _lost(lost: list[tuple[Input, StarloomError]]) -> InputsLost:
    """What is gone is told first: that decides what has to be made again."""
    gone = [(item, error) for item, error in lost if not isinstance(error, Unavailable)]
    told = gone or lost
    upstreams = tuple(dict.fromkeys(item.consumed.upstream for item, _ in told))
    reason = "; ".join(f"input {item.port}: {error}" for item, error in told)
    return InputsLost(upstreams, reason, gone=bool(gone))
