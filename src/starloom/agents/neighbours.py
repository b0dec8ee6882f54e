"""The arenas of agents on the same host, by the addresses of their data services.

That an agent is on the same host is proved, never guessed: both name the same start of the machine, and the file that
the agent names can be opened here and holds the nonce that the agent told.
"""

import asyncio
import fcntl
import logging
import mmap
import os
import stat
import time
import weakref
from pathlib import Path

import numpy as np

from starloom.agents import arena, sharedmemory, values
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.sharedmemory import FLOCK, NAME, Block, Returns
from starloom.agents.transfer import Transfer, off_loop
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import StarloomError, Unavailable
from starloom.dag.ids import JobId
from starloom.dag.values import ValueRef

_log = logging.getLogger(__name__)


class Neighbour:
    """Another agent's arena, on this host. Safe for threads. It lives as long as anything that was read by it."""

    def __init__(self, name: str, nonce: bytes, folder: Path = sharedmemory.FOLDER) -> None:
        """Opens it. Raises Unavailable where it cannot be opened, or is not what the agent told of."""
        if not NAME.fullmatch(name) or len(nonce) != arena.NONCE_BYTES:
            raise Unavailable(f"{name[:80]!r} is no name of an arena")
        try:
            self._file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"arena {name} is not on this host: {error.strerror}") from error
        weakref.finalize(self, os.close, self._file).atexit = False
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise Unavailable(f"arena {name} is another user's, or open to others")
        self.size = found.st_size
        if self.size < arena.VALUES_AT:
            raise Unavailable(f"arena {name} has {self.size} bytes, too few")
        map_ = mmap.mmap(self._file, self.size, prot=mmap.PROT_READ)
        if map_[: len(arena.MAGIC) + arena.NONCE_BYTES] != arena.MAGIC + nonce:
            raise Unavailable(f"arena {name} is another one than was told of")
        self._bytes = np.frombuffer(map_, np.uint8)
        index = self._bytes[arena.HEAD_BYTES : arena.VALUES_AT].reshape(-1, arena.ENTRY_BYTES)
        self._index = index
        self._heads = index[:, :8].view(np.uint64)[:, 0]
        self._returns = Returns(self._unlock)
        self._readers: dict[int, int] = {}

    def read(self, job: JobId, digest: str, size: int) -> memoryview | None:
        """A read-only view of a value of `size` bytes, or None if it is not here, or not any more.

        Raises InvalidInput or DigestMismatch for an index that is malformed.
        """
        key = arena.key_of(job, digest)
        places = np.flatnonzero(self._heads == np.frombuffer(key, np.uint64, 1)[0])
        found = next((place for place in places if self._index[place, : arena.KEY_BYTES].tobytes() == key), None)
        if found is None or os.fstat(self._file).st_size != self.size:
            return None
        written = self._index[found].tobytes()
        entry = arena.unpack(written, self.size)
        if entry.size != size:
            return None
        with self._returns.guard:
            self._lock(entry.start)
            still = self._index[found].tobytes() == written
            if not still:
                self._unlock(entry.start)
        self._returns.settle()
        if not still:
            return None
        block = self._bytes[entry.start : entry.start + size].view(Block)
        block.start, block.owner = entry.start, self
        weakref.finalize(block, self._returns.add, entry.start).atexit = False
        return block.data

    def orphaned(self) -> bool:
        """Whether the agent is dead: its lock is gone."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return True

    def _lock(self, start: int) -> None:
        readers = self._readers.get(start, 0)
        if not readers:
            asked = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, start, 1, 0)
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, asked)
        self._readers[start] = readers + 1

    def _unlock(self, start: int) -> None:
        self._readers[start] -= 1
        if not self._readers[start]:
            del self._readers[start]
            asked = FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, 1, 0)
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, asked)


def is_anothers(data: Data) -> bool:
    """Whether the bytes lie in another agent's memory."""
    return isinstance(data, memoryview) and isinstance(data.obj, Block) and isinstance(data.obj.owner, Neighbour)


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
