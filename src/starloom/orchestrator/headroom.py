"""Room on the disk that is set aside, to be given back when the disk is full."""

import os
from pathlib import Path


class Headroom:
    """A file that only takes up room, so that there is some left to write in when the disk is full."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._there = False
        self.take()

    def take(self) -> bool:
        """Sets the room aside if it is not; returns whether it is there now."""
        if self._there:
            return True
        free = os.statvfs(self._path.parent)
        if free.f_bavail * free.f_frsize < 2 * self._size:
            return False
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._size)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        self._there = True
        return True

    def give_back(self) -> bool:
        """Frees the room, also what an earlier process set aside; returns False if there was none."""
        self._there = False
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True
