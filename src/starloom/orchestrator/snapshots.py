"""Snapshots: the state as of a record, so that a start reads that and the records after it, instead of all.

    <journal>/snapshots/<offset>    a line with a format, the digest of all that follows, then an image as JSON

Made by `python -m starloom.orchestrator.snapshots JOURNAL PARENT`, a process of its own beside the orchestrator's: it replays as a
start would, from the last snapshot on, so the loop is never held up. A snapshot appears by a rename after fsync. Two are
kept, and all facts: one that is damaged, or of another version, is passed over for the one before, or for a replay of
everything.
"""

import errno
import fcntl
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from starloom import __version__
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.dag import limits
from starloom.dag.errors import Conflict, StarloomError
from starloom.dag.facts import Fact
from starloom.orchestrator.image import Image, ImageError, restore, take
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.placement import EarliestFinish, Planner
from starloom.orchestrator.records import Record, RecordReader
from starloom.orchestrator.state import State

_log = logging.getLogger(__name__)

FOLDER: Final = "snapshots"
FORMAT: Final = 1
_MAGIC: Final = b"starloom-snapshot"
_LOOKS_EVERY: Final = 1_000
_NICENESS: Final = 10


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state after the record of `offset`, whose checksum is `crc`; `version` is Starloom's that took it."""

    version: str
    offset: int
    crc: int
    image: Image


class SnapshotUnusableError(StarloomError):
    """It is damaged, of another version, or of another journal; the message says which."""


class SnapshotOtherError(SnapshotUnusableError):
    """Another version of Starloom took it, or it is of another format."""


class Restored(NamedTuple):
    """What a start begins with: the state and the kept jobs as of `offset`; with 0 they are new."""

    state: State
    kept: KeptJobs
    offset: int = 0


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as its file holds it."""
    body = msgspec.json.encode(snapshot)
    return b"%b %d %b\n%b" % (_MAGIC, FORMAT, blake3(body).hexdigest().encode(), body)


def decode(data: bytes) -> Snapshot:
    """The snapshot in a file. Raises SnapshotUnusableError."""
    line, _, body = data.partition(b"\n")
    magic, _, rest = line.partition(b" ")
    written, _, digest = rest.partition(b" ")
    if magic != _MAGIC or not written.isdigit():
        raise SnapshotUnusableError(f"it is damaged, or none at all: it begins {line[:40]!r}")
    if int(written) != FORMAT:
        raise SnapshotOtherError(f"it has format {int(written)}, and this version reads format {FORMAT} alone")
    if digest != blake3(body).hexdigest().encode():
        raise SnapshotUnusableError("it is not as it was written: its digest is wrong")
    try:
        if (version := msgspec.json.decode(body, type=_Versioned).version) != __version__:
            raise SnapshotOtherError(f"it was taken by version {version}, and this is {__version__}")
        return msgspec.json.decode(body, type=Snapshot)
    except msgspec.DecodeError as error:
        raise SnapshotUnusableError(f"it does not fit this version: {error}") from error


class _Versioned(msgspec.Struct):
    version: str


def offsets(journal: Path) -> list[int]:
    """The offsets of the snapshots that lie there, the newest first; whether these are whole is not looked at."""
    return sorted((int(path.name) for path in _files(journal)), reverse=True)


def newest(reader: RecordReader, planner: Planner | None = None) -> Restored:
    """What the newest snapshot holds that is whole and fits; a new state if none does. What is passed over is logged."""
    for offset in offsets(reader.folder):
        try:
            return load(reader, offset, planner)
        except (SnapshotUnusableError, OSError) as error:
            path = path_of(reader.folder, offset)
            _log.warning("the snapshot %s is passed over, and more records are read instead: %s", path, error)
    return Restored(State(planner or EarliestFinish()), KeptJobs())


def load(reader: RecordReader, offset: int, planner: Planner | None = None) -> Restored:
    """What one snapshot holds. Raises SnapshotUnusableError, OSError."""
    snapshot = decode(path_of(reader.folder, offset).read_bytes())
    records = reader.crc_of(offset)
    if snapshot.offset != offset or offset > reader.last_offset() or records not in (None, snapshot.crc):
        raise SnapshotUnusableError("it is of another journal than the one it lies beside")
    found = Restored(State(planner or EarliestFinish()), KeptJobs(), offset)
    try:
        restore(snapshot.image, found.state, found.kept)
    except ImageError as error:
        raise SnapshotOtherError(str(error)) from error
    return found


def replay(found: Restored, records: Iterator[Record]) -> Record | None:
    """Applies records that follow; returns the last."""
    record = None
    for record in records:
        fact: Fact = record.fact
        found.kept.note(fact, record.unix_nanos)
        found.state.apply(fact)
    return record


def make(journal: Path, goes_on: Callable[[], bool] = lambda: True) -> int:
    """Takes a snapshot of a journal's newest state, and removes those that are not needed any more; returns its offset.

    Leaves things as they are once `goes_on()` is false, and returns 0, as for a journal without new records. Raises
    JournalDamaged, Conflict if another process takes one, OSError.
    """
    with _alone(journal / FOLDER):
        return _make(journal, goes_on)


def _make(journal: Path, goes_on: Callable[[], bool]) -> int:
    with closing(RecordReader(journal)) as reader:
        # One transaction: what the orchestrator writes and deletes meanwhile is not seen.
        reader.connection.execute("BEGIN")
        found = newest(reader)
        last = replay(found, _while(goes_on, reader.replay(reader.last_offset(), found.offset)))
        crc = reader.crc_of(last.offset) if last else None
    if last is None or crc is None or not goes_on():
        return 0
    found.kept.forget(found.state.jobs)
    image = take(found.state, found.kept)
    data = encode(Snapshot(version=__version__, offset=last.offset, crc=crc, image=image))
    if not _write(path_of(journal, last.offset), data, goes_on):
        return 0
    reach(CrashPoint.SNAPSHOT_WRITTEN)
    for path in _files(journal):
        if int(path.name) not in (last.offset, found.offset):
            path.unlink(missing_ok=True)
    return last.offset


def path_of(journal: Path, offset: int) -> Path:
    """Where the snapshot of an offset lies."""
    return journal / FOLDER / str(offset)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time: two would remove each other's, also those that dropped records hang on."""
    folder.mkdir(exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Conflict(f"another process takes a snapshot in {folder}; wait until it has ended") from error
    finally:
        os.close(descriptor)


def _files(journal: Path) -> list[Path]:
    return [path for path in (journal / FOLDER).glob("*") if path.name.isdecimal()]


def _while(goes_on: Callable[[], bool], records: Iterator[Record]) -> Iterator[Record]:
    for count, record in enumerate(records):
        if not count % _LOOKS_EVERY and not goes_on():
            return
        yield record


def _write(path: Path, data: bytes, goes_on: Callable[[], bool]) -> bool:
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < len(data) + 2 * limits.JOURNAL_RESERVED_BYTES:
        raise OSError(errno.ENOSPC, f"its {len(data)} bytes would leave no room for accepted work", str(path))
    for left in path.parent.glob(".*"):
        left.unlink(missing_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.open("xb") as file:
            half = len(data) // 2
            file.write(memoryview(data)[:half])
            file.flush()
            reach(CrashPoint.SNAPSHOT_HALF)
            file.write(memoryview(data)[half:])
            file.flush()
            os.fsync(file.fileno())
        if not goes_on():
            return False
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def main(arguments: list[str]) -> int:
    """Takes one snapshot, unless whoever asked for it, whose process id may be given, ends before."""
    # Whoever asks may have ended before this line is reached.
    parent = int(arguments[1]) if len(arguments) > 1 else os.getppid()
    os.nice(_NICENESS)
    # What a replay makes stays, and the process ends soon.
    gc.disable()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        make(Path(arguments[0]), lambda: os.getppid() == parent)
    except (StarloomError, OSError) as error:
        _log.error("no snapshot was taken: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
