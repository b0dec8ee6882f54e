"""Values in shared memory: an agent's arena, which its `neighbours` read. Linux only; elsewhere there is none.

The owner of a file locks it (flock) for as long as it lives, so a file that nobody has locked is a dead agent's, and
whoever finds it removes it; a reader that has it mapped keeps what it reads. What is being read is locked byte by byte
(open file description locks), which the kernel gives back for a process that dies.
"""

import errno
import fcntl
import logging
import mmap
import os
import re
import secrets
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starloom.agents import arena
from starloom.agents.arena import Allocator, Entry
from starloom.agents.values import Data
from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.dag.ids import JobId

_log = logging.getLogger(__name__)

FOLDER: Final = Path("/dev/shm")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
NAME: Final = re.compile(r"starloom-arena-[0-9a-f]{32}")
"""What the files are called."""
_OWN_ONLY = 0o600
_MADV_POPULATE_WRITE: Final = 23
FLOCK: Final = struct.Struct("hhqqi4x")
"""The kernel's `struct flock`, of a 64-bit Linux."""
_FREE_DIVISOR: Final = 2


class Block(NDArray[np.uint8]):
    """The bytes of one value in shared memory. They stay what they are for as long as it, or any view of it, lives."""

    start: int
    owner: object


class Returns:
    """What finalizers give back: they may run anywhere, also amid what the guard protects, so they never wait for it."""

    def __init__(self, take_back: Callable[[int], None]) -> None:
        self.guard = threading.Lock()
        self._take_back = take_back
        self._waiting: deque[int] = deque()

    def add(self, start: int) -> None:
        """A value that began there is let go."""
        self._waiting.append(start)
        self.settle()

    def settle(self) -> None:
        """Takes back what waits, unless somebody holds the guard, who then does so after giving it up."""
        while self._waiting and self.guard.acquire(blocking=False):
            try:
                while self._waiting:
                    self._take_back(self._waiting.popleft())
            finally:
                self.guard.release()


class Arena:
    """An agent's own shared memory, of at most `limit_bytes`. Safe for threads. `close` it in the end."""

    def __init__(self, folder: Path = FOLDER, limit_bytes: int = limits.AGENT_ARENA_BYTES_MAX) -> None:
        """Makes the file. Raises Unavailable where there is no shared memory, or none that can be locked."""
        self.nonce = secrets.token_bytes(arena.NONCE_BYTES)
        free = _free_bytes(folder)
        self.size = max(0, min(limit_bytes, free // _FREE_DIVISOR)) // mmap.PAGESIZE * mmap.PAGESIZE
        if self.size < arena.VALUES_AT + limits.AGENT_ARENA_VALUE_BYTES_MIN:
            raise Unavailable(f"{folder} has {free} bytes free, too few for an arena")
        self.path, self._file = _create(folder)
        try:
            os.ftruncate(self._file, self.size)
            os.posix_fallocate(self._file, 0, arena.VALUES_AT)
            self._map = mmap.mmap(self._file, self.size)
        except OSError as error:
            self._unlink()
            raise Unavailable(f"no arena in {folder}: {error}") from error
        self._map[: len(arena.MAGIC) + arena.NONCE_BYTES] = arena.MAGIC + self.nonce
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._returns = Returns(self._take_back)
        self._allocator = Allocator(arena.VALUES_AT)
        #: taken back, and still read by another process
        self._read: list[int] = []
        self._serial = 0
        self._free_entries = list(range(limits.AGENT_ARENA_VALUES_MAX - 1, -1, -1))
        self._listed: dict[bytes, int] = {}
        self._full = False

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def used_bytes(self) -> int:
        """What values take, those included that nobody needs any more but somebody still reads."""
        self.reclaim()
        with self._returns.guard:
            used = self._allocator.used_bytes
        self._returns.settle()
        return used

    @property
    def reserved_bytes(self) -> int:
        """The memory that is taken, used or not."""
        return self._allocator.end

    def reserve(self) -> None:
        """Takes the first step of memory, ahead of need."""
        with self._returns.guard:
            if self._allocator.end == arena.VALUES_AT:
                self._grow(0)
        self._returns.settle()

    def room(self, size: int) -> NDArray[np.uint8] | None:
        """`size` bytes to write into, or None where there is no room."""
        if size > self.size - arena.VALUES_AT:
            return None
        with self._returns.guard:
            self._reclaim()
            start = self._allocator.allocate(size)
            if start is None and self._grow(self._allocator.missing(size)):
                start = self._allocator.allocate(size)
        if start is None:
            self._returns.settle()
            return None
        block = self._bytes[start : start + size].view(Block)
        block.start, block.owner = start, self
        weakref.finalize(block, self._returns.add, start).atexit = False
        self._returns.settle()
        return block

    def whole(self, array: NDArray[Any]) -> memoryview | None:
        """The bytes of `array`, if it is all of what `room` gave; then neither can be written to any more."""
        arrays: list[NDArray[Any]] = []
        base: object = array
        while isinstance(base, np.ndarray) and not isinstance(base, Block):
            arrays.append(base)
            base = base.base
        block = base.obj if isinstance(base, memoryview) else base
        if not isinstance(block, Block) or block.owner is not self:
            return None
        if array.nbytes != block.nbytes or not array.flags.c_contiguous or array.ctypes.data != block.ctypes.data:
            return None
        for each in (*arrays, block):
            each.flags.writeable = False
        return block.data

    def add(self, job: JobId, digest: str, data: Data) -> None:
        """Lets neighbours find a value, if it lies here and the index has room for it."""
        block = self._block(data)
        if block is None:
            return
        key = arena.key_of(job, digest)
        with self._returns.guard:
            if key not in self._listed and self._free_entries:
                place = self._listed[key] = self._free_entries.pop()
                self._serial += 1
                at = _entry_at(place)
                self._map[at : at + arena.ENTRY_BYTES] = arena.pack(Entry(key, self._serial, block.start, len(data)))
        self._returns.settle()

    def remove(self, job: JobId, digest: str) -> None:
        """Lets no neighbour find a value any more; those that read it go on. Before its last reference is let go."""
        with self._returns.guard:
            place = self._listed.pop(arena.key_of(job, digest), None)
            if place is not None:
                at = _entry_at(place)
                self._map[at : at + arena.ENTRY_BYTES] = bytes(arena.ENTRY_BYTES)
                self._free_entries.append(place)
        self._returns.settle()

    def has(self, data: Data) -> bool:
        """Whether the bytes lie here."""
        return self._block(data) is not None

    def _block(self, data: Data) -> Block | None:
        block: object = data.obj if isinstance(data, memoryview) else None
        return block if isinstance(block, Block) and block.owner is self else None

    def reclaim(self) -> None:
        """Takes back what its readers have let go."""
        with self._returns.guard:
            self._reclaim()
        self._returns.settle()

    def close(self) -> None:
        """Removes the file. Whoever still has views of it, here or elsewhere, keeps them."""
        self._unlink()

    def _take_back(self, start: int) -> None:
        if self._is_read(start):
            self._read.append(start)
        else:
            self._allocator.free(start)

    def _reclaim(self) -> None:
        waiting, self._read = self._read, []
        for start in waiting:
            self._take_back(start)

    def _is_read(self, start: int) -> bool:
        if self._file < 0:
            return True
        asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
        kind, *_ = FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)

    def _grow(self, size: int) -> bool:
        """Takes memory for at least `size` bytes more: reserved, for a write into what tmpfs has no page for is SIGBUS."""
        start = self._allocator.end
        whole_pages = -(-max(size, limits.AGENT_ARENA_STEP_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        step = min(whole_pages, self.size - start)
        if step < max(size, mmap.PAGESIZE) or self._full or self._file < 0:
            return False
        try:
            os.posix_fallocate(self._file, start, step)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._full = True
            return False
        # A kernel before 5.14 does not know it; there each page costs a fault when it is first written.
        with suppress(OSError):
            self._map.madvise(_MADV_POPULATE_WRITE, start, step)
        self._allocator.grow(step)
        return True

    def _unlink(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            self.path.unlink(missing_ok=True)
            # Closing does not do it: the map has a descriptor of its own.
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)


def open_arena(limit_bytes: int, folder: Path = FOLDER) -> Arena | None:
    """An arena, its first memory taken, after those of dead agents are removed; None where there can be none."""
    if not limit_bytes or not hasattr(fcntl, "F_OFD_SETLK") or not BOOT_ID.exists():
        return None
    sweep(folder)
    try:
        made = Arena(folder, limit_bytes)
    except Unavailable as error:
        _log.warning("values go through gRPC: %s", error)
        return None
    made.reserve()
    return made


def boot_id() -> str:
    """Names this start of this machine, whatever containers and network namespaces it has; empty if it has no name."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def sweep(folder: Path = FOLDER) -> int:
    """Removes this user's arenas whose agents are dead; returns how many."""
    removed = 0
    try:
        paths = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    except OSError:
        return 0
    for path in paths:
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
            finally:
                os.close(file)
    return removed


def _create(folder: Path) -> tuple[Path, int]:
    """A new file that this process has locked."""
    while True:
        path = folder / f"starloom-arena-{secrets.token_hex(16)}"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OWN_ONLY)
        except OSError as error:
            raise Unavailable(f"no arena in {folder}: {error.strerror}") from error
        # Somebody who sweeps may have found it before it was locked.
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:
                return path, file
        os.close(file)


def _entry_at(place: int) -> int:
    return arena.HEAD_BYTES + place * arena.ENTRY_BYTES


def _free_bytes(folder: Path) -> int:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise Unavailable(f"no arena in {folder}: {error.strerror}") from error
    return found.f_bavail * found.f_frsize
