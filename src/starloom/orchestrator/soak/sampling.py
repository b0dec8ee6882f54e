"""What processes and folders take, read from /proc and the disk: for Linux."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from starloom.agents.sharedmemory import FOLDER

PROC: Final = Path("/proc")
_ARENA: Final = f"{FOLDER}/starloom-arena-"
_BLOCK_BYTES = 512


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What one process takes.

    `memory_bytes` is resident and its own, `shared_bytes` is resident in shared memory, an arena's pages among it.
    `handles` are open file descriptors.
    """

    pid: int
    memory_bytes: int
    shared_bytes: int
    handles: int
    threads: int


def footprint(pid: int) -> Footprint:
    """What a process takes. Raises OSError if there is none, or it is another user's."""
    status = dict(
        line.split(":", 1)
        for line in (PROC / str(pid) / "status").read_text("utf-8", "replace").splitlines()
        if ":" in line
    )

    def kilobytes(name: str) -> int:
        return int(status.get(name, "0").split()[0]) * 1024

    return Footprint(
        pid=pid,
        memory_bytes=kilobytes("RssAnon"),
        shared_bytes=kilobytes("RssShmem"),
        handles=len(os.listdir(PROC / str(pid) / "fd")),
        threads=int(status["Threads"]),
    )


def arena_bytes(pids: Iterable[int]) -> int:
    """The memory of all arenas that these processes have open, each once, those included that have lost their name."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        with suppress(OSError):
            for handle in (PROC / str(pid) / "fd").iterdir():
                # One may be closed between the two looks.
                with suppress(OSError):
                    if os.readlink(handle).startswith(_ARENA):
                        there = handle.stat()
                        found[there.st_dev, there.st_ino] = there.st_blocks * _BLOCK_BYTES
    return sum(found.values())


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder; 0 if there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(place, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
