"""The job store: values on the orchestrator's disk, named by their content.

    <folder>/ab/cdef...    a value, whole and verified; `abcdef...` is its BLAKE3
    <folder>/incoming/     values that are still arriving

A value appears by a rename after fsync, so what is there is whole. Blocking: for worker threads.
"""

import os
import re
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from threading import Lock
from typing import Final
from uuid import uuid4

from blake3 import blake3

from starloom.agents.crashpoints import CrashPoint, reach
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, NotFound, Overloaded, Problem, StarloomError
from starloom.dag.values import JOB_STORE, ValueRef

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FREE_BYTES_MIN: Final = 2 * limits.JOURNAL_RESERVED_BYTES


class JobStore:
    """Values by digest, in `folder`. Safe for threads: a value is written once and never changes.

    `wall_seconds` tells the time that files' ages are reckoned by.
    """

    def __init__(self, folder: Path, wall_seconds: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._wall_seconds = wall_seconds
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        #: values that came lately and wait for a job to name them, with the wall time of their coming
        self._unclaimed: dict[str, float] = {}
        #: values that kept jobs name
        self._kept: Container[str] = ()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<JobStore {str(self.folder)!r}>"

    def size(self, digest: str) -> int | None:
        """The value's size in bytes, or None if it is not here."""
        try:
            return self._path(digest).stat().st_size
        except (FileNotFoundError, NotFound):
            return None

    def has(self, digest: str) -> bool:
        return self.size(digest) is not None

    def read(self, digest: str, offset: int = 0, size: int = -1) -> bytes:
        """At most `size` bytes from `offset` on, all that follow if negative. Raises NotFound."""
        try:
            with self._path(digest).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as error:
            raise NotFound(f"value {digest[:12]} is not in the job store, or not any more") from error

    def put(self, ref: ValueRef, chunks: Iterable[bytes]) -> ValueRef:
        """Stores a value given in chunks, durably; see `Upload` for what it raises."""
        with Upload(self, ref) as upload:
            for chunk in chunks:
                upload.write(chunk)
            return upload.commit()

    def claim(self, digest: str) -> bool:
        """Whether the value is here; if it is, it stays for UPLOAD_KEPT_SECONDS, unless a job takes it before."""
        with self._lock:
            if not self.has(digest):
                return False
            self._await_job(digest)
            return True

    def taken(self, digests: Iterable[str]) -> None:
        """A job names these values now: they stay until `drop`."""
        for digest in digests:
            self._unclaimed.pop(digest, None)

    def drop(self, digests: Iterable[str]) -> None:
        """Deletes values that no job names any more; those that came anew, or that another job took since, stay."""
        for digest in digests:
            with self._lock:
                # In this order: a job that takes a value is in `_kept` before the value is out of `_unclaimed`.
                if digest not in self._unclaimed and digest not in self._kept:
                    self._path(digest).unlink(missing_ok=True)

    def adopt(self, kept: Container[str]) -> None:
        """At the start: what no kept job names waits for one, and what had only half arrived is deleted.

        `kept` is asked from now on, from any thread, and so has to follow the jobs.
        """
        self._kept = kept
        for path in self._incoming.iterdir():
            path.unlink()
        found = ((path.parent.name + path.name, path.stat().st_mtime) for path in self.folder.glob("??/*"))
        unnamed = sorted((seconds, digest) for digest, seconds in found if digest not in kept)
        self._unclaimed = {digest: seconds for seconds, digest in unnamed}

    def expire(self) -> int:
        """Deletes what no job took within UPLOAD_KEPT_SECONDS, and no kept one names; returns how many values."""
        oldest = self._wall_seconds() - limits.UPLOAD_KEPT_SECONDS
        expired = 0
        for digest, seconds in tuple(self._unclaimed.items()):
            if seconds >= oldest:
                continue
            with self._lock:
                if self._unclaimed.get(digest, oldest) >= oldest:
                    continue
                self._unclaimed.pop(digest, None)
                # One that a kept job names came a second time, for a submission that was refused.
                if digest not in self._kept:
                    self._path(digest).unlink(missing_ok=True)
                    expired += 1
        return expired

    def _await_job(self, digest: str) -> None:
        self._unclaimed[digest] = self._wall_seconds()

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise NotFound(f"{digest[:80]!r} is no digest: give BLAKE3 as 64 lower-case hex digits")
        return self.folder / digest[:2] / digest[2:]


class Upload:
    """One value on its way in: `write` its chunks in order, then `commit`. Closing without it leaves nothing.

    Raises InvalidInput for a size over VALUE_BYTES_MAX or no digest, DigestMismatch where the bytes are
    not those that were announced, Overloaded where the disk has no room.
    """

    def __init__(self, store: JobStore, ref: ValueRef) -> None:
        if ref.bytes > limits.VALUE_BYTES_MAX:
            what = f"{ref.bytes} bytes are over VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}"
            raise InvalidInput([Problem("ref.bytes", what)], "a value is too large")
        if not _DIGEST.fullmatch(ref.digest):
            what = f"{ref.digest[:80]!r} is no digest: give BLAKE3 as 64 lower-case hex digits"
            raise InvalidInput([Problem("ref.digest", what)], "a value is not named by its content")
        self._store = store
        self._ref = ref
        self._there = store.claim(ref.digest)
        self._hash = blake3()
        self._written = 0
        self._path = store._incoming / uuid4().hex
        if not self._there:
            check_room(store.folder, ref.bytes)
        self._file = None if self._there else self._path.open("xb")

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, chunk: bytes) -> None:
        self._written += len(chunk)
        if self._written > self._ref.bytes:
            raise DigestMismatch(
                f"value {self._ref.digest[:12]} was announced with {self._ref.bytes} bytes, and more came; put it again"
            )
        self._hash.update(chunk)
        if self._file is not None:
            try:
                self._file.write(chunk)
            except OSError as error:
                raise no_room(self._store.folder, error) from error

    def commit(self) -> ValueRef:
        """Makes the value durable under its digest; returns the reference to it as stored."""
        if self._written != self._ref.bytes or self._hash.hexdigest() != self._ref.digest:
            raise DigestMismatch(
                f"value {self._ref.digest[:12]} of {self._ref.bytes} bytes arrived as "
                f"{self._hash.hexdigest()[:12]} of {self._written} bytes; put it again"
            )
        if self._file is not None:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
                reach(CrashPoint.VALUE_WRITTEN)
                self._settle()
                reach(CrashPoint.VALUE_NAMED)
            except OSError as error:
                raise no_room(self._store.folder, error) from error
        return ValueRef(
            type=self._ref.type, bytes=self._ref.bytes, digest=self._ref.digest, meta=self._ref.meta, holder=JOB_STORE
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None

    def _settle(self) -> None:
        path = self._store._path(self._ref.digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True, mode=0o700)
            sync_folder(self._store.folder)
        with self._store._lock:
            self._path.rename(path)
            self._store._await_job(self._ref.digest)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, size: int) -> None:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < size + _FREE_BYTES_MIN:
        raise Overloaded(
            f"the job store in {folder} has {free} bytes left, too few for {size} more; make room, then try again",
            limits.OVERLOADED_RETRY_SECONDS,
        )


def no_room(folder: Path, error: OSError) -> StarloomError:
    return Overloaded(f"the job store in {folder} cannot be written: {error}", limits.OVERLOADED_RETRY_SECONDS)
