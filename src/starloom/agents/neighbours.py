"""The arenas of agents on the same host, by the addresses of their data services.

That an agent is on the same host is proved, never guessed: both name the same start of the machine, and the file that
the agent names can be opened here and holds the nonce that the agent told.
"""

import asyncio
import logging
import time
from pathlib import Path

from starloom.agents import sharedmemory, values
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.sharedmemory import Neighbour
from starloom.agents.transfer import Transfer, off_loop
from starloom.dag import limits
from starloom.dag.errors import StarloomError, Unavailable
from starloom.dag.ids import JobId
from starloom.dag.values import ValueRef

_log = logging.getLogger(__name__)


class Neighbours:
    """Reads values where their holders wrote them. For the event loop's thread.

    What it gives is not hashed again unless `verify` says so: an entry names it by its digest, and no byte crossed a
    wire. ADR 11 has why that is enough.
    """

    def __init__(
        self,
        transfer: Transfer,
        verify: bool = False,
        folder: Path = sharedmemory.FOLDER,
        faults: FaultLayer | None = None,
    ) -> None:
        self._faults = faults
        self._transfer = transfer
        self._verify = verify
        self._folder = folder
        self._boot_id = sharedmemory.boot_id()
        self._met: dict[str, Neighbour] = {}
        #: those that cannot be read by shared memory, with the time to ask them again
        self._strangers: dict[str, float] = {}
        self._meeting: dict[str, asyncio.Task[Neighbour | None]] = {}

    async def read(self, address: str, job: JobId, ref: ValueRef) -> memoryview | None:
        """A read-only view of a value that the agent at `address` holds; None where it has to be fetched.

        Raises DigestMismatch where it is verified, and is not what `ref` names.
        """
        if ref.bytes < limits.AGENT_ARENA_VALUE_BYTES_MIN or not self._boot_id:
            return None
        if self._faults is not None and self._faults.disturbs_data():
            # It is the network that a fault disturbs, so that is where the value has to come from.
            return None
        neighbour = await self._neighbour(address)
        if neighbour is None:
            return None
        try:
            found = neighbour.read(job, ref.digest, ref.bytes)
            if found is None and neighbour.orphaned():
                # The address is another agent's now.
                self._met.pop(address, None)
                neighbour = await self._neighbour(address)
                found = neighbour.read(job, ref.digest, ref.bytes) if neighbour is not None else None
        except StarloomError as error:
            _log.warning("the arena of %s: %s", address, error)
            return None
        if found is not None and self._verify:
            return await off_loop(ref.bytes, values.verify, ref, found)
        return found

    def at_hand(self, address: str, job: JobId, ref: ValueRef) -> memoryview | None:
        """As `read`, at once: None also where the agent has not been met, and where all is verified that is read."""
        neighbour = self._met.get(address)
        if neighbour is None or self._verify or (self._faults is not None and self._faults.disturbs_data()):
            return None
        try:
            return neighbour.read(job, ref.digest, ref.bytes)
        except StarloomError as error:
            _log.warning("the arena of %s: %s", address, error)
            return None

    def prune(self) -> None:
        """Lets go of the arenas of agents that are dead: their memory is taken for as long as anybody has it mapped."""
        for address in [address for address, neighbour in self._met.items() if neighbour.orphaned()]:
            del self._met[address]

    async def _neighbour(self, address: str) -> Neighbour | None:
        if (known := self._met.get(address)) is not None:
            return known
        if self._strangers.get(address, 0.0) > time.monotonic():
            return None
        meeting = self._meeting.get(address)
        if meeting is None:
            meeting = self._meeting[address] = asyncio.create_task(self._meet(address))
            meeting.add_done_callback(lambda _: self._meeting.pop(address, None))
        return await asyncio.shield(meeting)

    async def _meet(self, address: str) -> Neighbour | None:
        try:
            told = await self._transfer.arena(address)
            if not told.name or told.boot_id != self._boot_id:
                raise Unavailable("is on another host, or has no arena")
            neighbour = self._met[address] = Neighbour(told.name, told.nonce, self._folder)
        except StarloomError as error:
            _log.info("values of %s are fetched: %s", address, error)
            self._forget(address)
            return None
        self._strangers.pop(address, None)
        return neighbour

    def _forget(self, address: str) -> None:
        self._met.pop(address, None)
        self._strangers[address] = time.monotonic() + limits.NEIGHBOUR_AGAIN_SECONDS
