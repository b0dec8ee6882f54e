"""The inputs of attempts: from this agent's own values, or fetched from whoever holds them, each value once at a time.

Where several agents hold a value, one after another is asked, so that one that is gone costs time and nothing else.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

from starloom.agents.holder import Holder
from starloom.agents.messages import Assign, Input, Source
from starloom.agents.neighbours import Neighbours, is_anothers
from starloom.agents.transfer import Transfer
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InputUnavailable, NotFound, Overloaded, StarloomError, Unavailable
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.values import ValueRef
from starloom.devices.linkmeter import Alone, LinkMeter

_Key = tuple[JobId, str]


class InputsLost(InputUnavailable):
    """Inputs could not be had: `upstreams` lack values, which are `gone`, or with a holder that cannot be reached.

    `missing` names the holders, by upstream, that answered and do not have what they were asked for.
    """

    def __init__(
        self,
        upstreams: tuple[StageId, ...],
        reason: str,
        gone: bool,
        missing: Mapping[StageId, tuple[AgentId, ...]],
    ) -> None:
        super().__init__(reason)
        self.upstreams = upstreams
        self.gone = gone
        self.missing = missing


class Unfetched(InputUnavailable):
    """A value could not be had. `missing` are those who answered and do not have it; `gone`: that is all of them."""

    def __init__(self, reason: str, missing: tuple[AgentId, ...], gone: bool) -> None:
        super().__init__(reason)
        self.missing = missing
        self.gone = gone


class _Flight:
    """A fetch that several attempts may wait for."""

    def __init__(self, task: asyncio.Task[Data]) -> None:
        self.task = task
        self.waiting = 0


class InputFetcher:
    """Gets inputs: in `neighbours`' shared memory where the holder is on this host, else over the network.

    Fetched values of at most AGENT_FETCHED_BYTES_MAX are kept as long as a job is open that was given them, and serve
    every attempt that is given a reference to such bytes, of whichever job: the reference is the permission.
    """

    def __init__(
        self,
        agent: AgentId,
        holder: Holder,
        transfer: Transfer,
        store_address: str,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._agent = agent
        self._holder = holder
        self._transfer = transfer
        self._store_address = store_address
        self._flights: dict[_Key, _Flight] = {}
        self._neighbours = neighbours
        #: what links told, by the holders' names, and which fetches may tell
        self.links = LinkMeter()
        self._alone = Alone()
        self._copies: OrderedDict[str, Data] = OrderedDict()
        #: the jobs that were given each copy
        self._given: dict[str, set[JobId]] = {}
        self._copied_bytes = 0

    def local(self, assign: Assign) -> dict[str, Data]:
        """The bytes of inputs that this agent made itself, by port. Raises InputsLost."""
        found: dict[str, Data] = {}
        lost: list[tuple[Input, Unfetched]] = []
        for item in assign.inputs:
            if self._is_own(item):
                try:
                    found[item.port] = self._holder.get(assign.task.job, item.ref.digest)
                except NotFound as error:
                    lost.append((item, Unfetched(str(error), (self._agent,), gone=True)))
        if lost:
            raise _lost(lost)
        return found

    def elsewhere(self, assign: Assign) -> bool:
        """Whether others hold every input that this agent was to have, and has not."""
        gone = [item for item in assign.inputs if self._is_own(item) and not self._has(assign.task.job, item)]
        return all(item.others for item in gone)

    async def replaced(self, assign: Assign) -> dict[str, Data]:
        """As `local`, where others hold what is gone here: it is fetched from them, and kept again. Raises InputsLost."""
        found: dict[str, Data] = {}
        lost: list[tuple[Input, Unfetched]] = []
        job = assign.task.job
        for item in filter(self._is_own, assign.inputs):
            try:
                if not self._has(job, item):
                    data = await self.value(job, item.ref, item.others)
                    # Another host's memory is its owner's; of what does not fit, this attempt has its copy.
                    with suppress(Overloaded):
                        self._holder.keep(job, item.ref.digest, bytes(data) if is_anothers(data) else data)
                    found[item.port] = data
                else:
                    found[item.port] = self._holder.get(job, item.ref.digest)
            except Unfetched as error:
                lost.append((item, Unfetched(str(error), (self._agent, *error.missing), error.gone)))
        if lost:
            raise _lost(lost)
        return found

    def _is_own(self, item: Input) -> bool:
        return item.ref.inline is None and item.ref.holder == self._agent

    def _has(self, job: JobId, item: Input) -> bool:
        return self._holder.has(job, item.ref.digest)

    def others(self, assign: Assign) -> list[Input]:
        """The inputs that others hold."""
        return [item for item in assign.inputs if item.ref.inline is None and item.ref.holder != self._agent]

    async def remote(self, items: Sequence[Input], job: JobId) -> dict[str, Data]:
        """The bytes of inputs that others hold, by port, fetched at the same time. Raises InputsLost."""
        fetches = (self.value(job, item.ref, self._sources(item)) for item in items)
        results = await asyncio.gather(*fetches, return_exceptions=True)
        found: dict[str, Data] = {}
        lost: list[tuple[Input, Unfetched]] = []
        for item, result in zip(items, results, strict=True):
            if isinstance(result, bytes | memoryview):
                found[item.port] = result
            elif isinstance(result, Unfetched):
                lost.append((item, result))
            else:
                raise result
        if lost:
            raise _lost(lost)
        return found

    def release(self, job: JobId) -> None:
        """Forgets the copies of a job's values."""
        if self._neighbours is not None:
            self._neighbours.prune()
        for digest in [digest for digest, jobs in self._given.items() if job in jobs]:
            self._given[digest].discard(job)
            if not self._given[digest]:
                self._drop(digest)

    async def value(self, job: JobId, ref: ValueRef, sources: Sequence[Source]) -> Data:
        """The bytes that `ref` names, from any of the sources. Raises Unfetched."""
        if (held := self._holder.any(ref.digest)) is not None:
            return held
        if (copy := self._copies.get(ref.digest)) is not None:
            self._copies.move_to_end(ref.digest)
            self._given[ref.digest].add(job)
            return copy
        key = (job, ref.digest)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(self._fetch(job, ref, sources)))
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
        self._copy(job, ref.digest, data)
        return data

    def _sources(self, item: Input) -> tuple[Source, ...]:
        first = Source(agent=AgentId(item.ref.holder), address=item.address or self._store_address)
        return (first, *item.others)

    def _copy(self, job: JobId, digest: str, data: Data) -> None:
        # What lies in a neighbour's memory costs nothing to read again, and would be kept from its owner.
        if is_anothers(data) or len(data) > limits.AGENT_FETCHED_BYTES_MAX:
            return
        self._given.setdefault(digest, set()).add(job)
        if digest in self._copies:
            return
        self._copies[digest] = data
        self._copied_bytes += len(data)
        while self._copied_bytes > limits.AGENT_FETCHED_BYTES_MAX:
            self._drop(next(iter(self._copies)))

    def _drop(self, digest: str) -> None:
        del self._given[digest]
        self._copied_bytes -= len(self._copies.pop(digest))

    async def _get(self, source: Source, job: JobId, ref: ValueRef) -> Data:
        begun, began = self._alone.begin(), time.monotonic()
        got = False
        try:
            data = await self._got(source, job, ref)
            got = True
        finally:
            if self._alone.end(begun) and got:
                ended = time.monotonic()
                self.links.fetched(source.agent, ref.bytes, ended - began, ended)
        return data

    async def _got(self, source: Source, job: JobId, ref: ValueRef) -> Data:
        if self._neighbours is not None and source.address != self._store_address:
            found = await self._neighbours.read(source.address, job, ref)
            if found is not None:
                return found
        return await self._transfer.fetch(source.address, job, ref, self._holder.arena)

    async def _fetch(self, job: JobId, ref: ValueRef, sources: Sequence[Source]) -> Data:
        """Asks one holder after another, with patience; for what the job store has, until there is an orchestrator again."""
        left = deque(sources)
        give_up = time.monotonic() + limits.INPUT_PATIENCE_SECONDS
        missing: list[AgentId] = []
        damaged: set[str] = set()
        wait = limits.RECONNECT_FIRST_SECONDS
        asked = 0
        while True:
            source = left[0]
            try:
                return await self._get(source, job, ref)
            except Unavailable as error:
                asked += 1
                # Of the job store nobody else has it, and nobody could be told that it is missing.
                if asked >= len(left) and source.address != self._store_address and time.monotonic() > give_up:
                    raise Unfetched(str(error), tuple(missing), gone=False) from error
                left.rotate(-1)
            except StarloomError as error:
                if isinstance(error, DigestMismatch) and source.address not in damaged:
                    damaged.add(source.address)
                    asked += 1
                    left.rotate(-1)
                else:
                    missing += [source.agent] if source.agent else []
                    left.popleft()
                    if not left:
                        # What the job store gave twice with damage may be whole there, and nobody else has it.
                        gone = source.address != self._store_address or not isinstance(error, DigestMismatch)
                        raise Unfetched(str(error), tuple(missing), gone) from error
            if asked >= len(left):
                asked = 0
                await asyncio.sleep(wait)
                wait = min(2 * wait, limits.RECONNECT_LAST_SECONDS)


def _lost(lost: list[tuple[Input, Unfetched]]) -> InputsLost:
    """What is gone is told first: that decides what has to be made again."""
    gone = [(item, error) for item, error in lost if error.gone]
    told = gone or lost
    upstreams = tuple(dict.fromkeys(item.consumed.upstream for item, _ in told))
    missing: dict[StageId, tuple[AgentId, ...]] = {}
    for item, error in lost:
        if error.missing:
            known = missing.get(item.consumed.upstream, ())
            missing[item.consumed.upstream] = tuple(dict.fromkeys([*known, *error.missing]))
    reason = "; ".join(f"input {item.port}: {error}" for item, error in told)
    return InputsLost(upstreams, reason, gone=bool(gone), missing=missing)
