"""The journal: facts in the order they were decided, in a SQLite file that outlives the process.

One writer at a time: the folder is locked while a Journal is open, and the epoch, raised at each opening,
is checked inside every transaction, so that a writer that was replaced fails instead of writing.

    <folder>/journal.db      the facts, one row each: offset, wall time, job, CRC-32, JSON line
    <folder>/lock            locked by the writer; holds its process id
    <folder>/headroom        room set aside, given back when the disk is full
    <folder>/snapshots/      what a start begins with, so that it need not read all facts
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from starloom.agents import crashpoints
from starloom.agents.crashpoints import CrashPoint
from starloom.dag import limits
from starloom.dag.errors import Conflict, Fenced, JournalDamaged, StarloomError
from starloom.dag.facts import Fact, encode_fact
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.orchestrator.headroom import Headroom
from starloom.orchestrator.records import (
    COLUMNS,
    FILE_NAME,
    FORMAT,
    Record,
    RecordReader,
    advice,
    checked,
    checksum,
    explained,
    last_offset,
    meta,
)
from starloom.orchestrator.trimming import superseded
from starloom.orchestrator.walfile import refuse_damage

_log = logging.getLogger(__name__)

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (
    offset INTEGER PRIMARY KEY,
    unix_nanos INTEGER NOT NULL,
    job TEXT NOT NULL,
    crc INTEGER NOT NULL,
    fact TEXT NOT NULL
);
CREATE INDEX facts_of_job ON facts (job, offset) WHERE job != '';
"""
#: of a journal that an earlier version made as well
_INDEX: Final = "CREATE INDEX IF NOT EXISTS facts_of_no_job ON facts (offset) WHERE job = ''"
_OF_NO_JOB: Final = "facts INDEXED BY facts_of_no_job WHERE job = '' AND offset <= ? ORDER BY offset"
_ROWS_PER_STATEMENT: Final = 1_000
#: what a full disk gives; the second one, where the memory that connections share finds no room
_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

Result = TypeVar("Result")


class JournalUnwritableError(StarloomError):
    """Facts could not be appended, so nothing that follows from them may happen: the process has to end."""


class Journal:
    """An open journal. `append` is for one thread; `read` has a connection of its own, for another one."""

    def __init__(self, folder: Path) -> None:
        """Use `Journal.open`."""
        self.folder = folder
        with ExitStack() as opened:
            opened.callback(os.close, lock(folder / "lock"))
            #: whether a fault has the disk full, in trials
            self.disk_full: Callable[[], bool] | None = None
            self._headroom = Headroom(folder / "headroom", limits.JOURNAL_RESERVED_BYTES)
            torn = refuse_damage(folder).torn_bytes
            if torn:
                _log.warning(
                    "the last record of the journal in %s was being written: %d bytes are cut off", folder, torn
                )
            with explained(folder):
                self._writer, self.epoch = self._with_headroom(partial(_begin, folder))
                opened.callback(self._writer.close)
                self.last_offset = last_offset(self._writer)
            self.reader = opened.enter_context(closing(RecordReader(folder)))
            self._opened = opened.pop_all()

    @classmethod
    def open(cls, folder: Path) -> "Journal":
        """Opens the journal in `folder`, making it if it is not there, and raises the epoch.

        On a full disk the head-room is given back for that. Raises Conflict if another process has it open,
        JournalDamaged if it cannot be read or is of a later format, JournalUnusableError if it may not be written.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(folder)

    def __repr__(self) -> str:
        return f"<Journal {str(self.folder)!r} epoch={self.epoch} last_offset={self.last_offset}>"

    def close(self) -> None:
        """Gives the folder to the next writer. May be called again."""
        self._opened.close()

    def append(self, facts: Sequence[Fact], unix_nanos: int) -> list[Record]:
        """Writes facts in one transaction and returns after fsync, with the offsets they were given.

        When the disk is full, the head-room is given back and the facts go there. Raises Fenced if
        another writer took over, JournalUnwritableError if nothing could be written.
        """
        if not facts:
            return []
        records = [
            Record(offset, unix_nanos, getattr(fact, "job", JobId("")), encode_fact(fact))
            for offset, fact in enumerate(facts, self.last_offset + 1)
        ]
        try:
            self._with_headroom(partial(self._insert, records))
        except sqlite3.Error as error:
            raise self._unwritable(error) from error
        self.last_offset = records[-1].offset
        return records

    def has_room(self) -> bool:
        """Whether new work may be accepted: False from a full disk on until the head-room is there again."""
        return not self._found_full() and self._headroom.take()

    def make_room(self) -> bool:
        """Gives the head-room back, for what else a start has to write; returns False if there was none."""
        return self._headroom.give_back()

    def read(self, after: int = 0, job: JobId | None = None, limit: int = limits.EVENTS_PER_READ_MAX) -> list[Record]:
        """At most `limit` records behind offset `after`, of one job or of all. Raises JournalDamaged."""
        return self.reader.read(after, job, limit)

    def replay(self, after: int = 0) -> Iterator[Record]:
        """Every record, from the first on or behind a snapshot's offset. Raises JournalDamaged, naming what is not whole."""
        return self.reader.replay(self.last_offset, after)

    def drop(self, jobs: Iterable[JobId]) -> None:
        """Deletes all records of jobs that nobody asks for any more, so that a replay does not grow with the years.

        For the thread that appends. The jobs must have ended, and other records must have followed.
        """
        with _transaction(self._writer):
            self.check_epoch()
            dropped = sum(
                self._writer.execute("DELETE FROM facts WHERE job = ? AND job != ''", (job,)).rowcount for job in jobs
            )
            self._note_dropped(dropped)

    def trim(self, until: int, agents: Container[AgentId]) -> int:
        """Deletes records about agents and epochs, up to an offset, that no start needs any more; returns how many.

        For the thread that appends. `agents` are those that are known; no snapshot may stand before `until`. Raises
        JournalDamaged if one is not whole.
        """
        with _transaction(self._writer):
            self.check_epoch()
            rows = self._writer.execute(f"SELECT {COLUMNS} FROM {_OF_NO_JOB}", (until,)).fetchall()
            offsets = superseded([checked(row) for row in rows], agents)
            self._writer.executemany("DELETE FROM facts WHERE offset = ?", ((offset,) for offset in offsets))
            self._note_dropped(len(offsets))
        return len(offsets)

    def _note_dropped(self, count: int) -> None:
        for key, value in (("dropped", meta(self._writer, "dropped", 0) + count), ("last", self.last_offset)):
            self._writer.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _with_headroom(self, write: Callable[[], Result]) -> Result:
        """Writes; once more, into the head-room, if the disk is full."""
        self._found_full()
        try:
            return write()
        except sqlite3.Error as error:
            if error.sqlite_errorcode not in _FULL or not self._headroom.give_back():
                raise
        return write()

    def _found_full(self) -> bool:
        """Whether a fault has the disk full: then the head-room is what there is to write in, as on a disk that is."""
        if self.disk_full is None or not self.disk_full():
            return False
        self._headroom.give_back()
        return True

    def _insert(self, records: Sequence[Record]) -> None:
        # One statement is one transaction, and gives the interpreter's lock away once, not once a row.
        several = len(records) > _ROWS_PER_STATEMENT or crashpoints.ON
        with _transaction(self._writer) if several else nullcontext():
            for start in range(0, len(records), _ROWS_PER_STATEMENT):
                self._insert_part(records[start : start + _ROWS_PER_STATEMENT])
            crashpoints.reach(CrashPoint.BEFORE_FSYNC)

    def _insert_part(self, records: Sequence[Record]) -> None:
        values: list[int | str] = []
        for offset, unix_nanos, job, line in records:
            values += (offset, unix_nanos, job, checksum(offset, unix_nanos, job.encode(), line), line.decode())
        rows = ", ".join(["(?, ?, ?, ?, ?)"] * len(records))
        statement = (
            f"INSERT INTO facts SELECT * FROM (VALUES {rows}) WHERE ? = (SELECT value FROM meta WHERE key = 'epoch')"
        )
        if self._writer.execute(statement, (*values, self.epoch)).rowcount != len(records):
            self.check_epoch()

    def check_epoch(self) -> None:
        """Raises Fenced if another writer took over. For the thread that appends; it reads one row."""
        with explained(self.folder):
            epoch = meta(self._writer, "epoch")
        if epoch != self.epoch:
            raise Fenced(
                f"this orchestrator has epoch {self.epoch}, and the journal in {self.folder} has {epoch}: another one "
                "took over, and goes on with all that was accepted; see to it that one process runs on that folder"
            )

    def _unwritable(self, error: sqlite3.Error) -> JournalUnwritableError:
        return JournalUnwritableError(
            f"the journal in {self.folder} cannot be written: {error} ({error.sqlite_errorname}); "
            f"{advice(error) or 'mend the disk, then start again'}; what was accepted is in the journal"
        )


def lock(path: Path) -> int:
    """The descriptor that holds a journal's lock until it is closed. Raises Conflict if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise Conflict(
            f"the journal in {path.parent} is in use by process {holder}; stop that orchestrator, or use another folder"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _begin(folder: Path) -> tuple[sqlite3.Connection, Epoch]:
    with ExitStack() as opened:
        connection = opened.enter_context(closing(_connect(folder)))
        epoch = _take_over(connection, folder)
        opened.pop_all()
    return connection, epoch


def _connect(folder: Path) -> sqlite3.Connection:
    # Whoever calls sees to it that a connection is used by one thread at a time.
    with ExitStack() as opened:
        connection = sqlite3.connect(folder / FILE_NAME, isolation_level=None, check_same_thread=False)
        opened.callback(connection.close)
        connection.text_factory = bytes
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        opened.pop_all()
    return connection


def _take_over(connection: sqlite3.Connection, folder: Path) -> Epoch:
    with _transaction(connection):
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('format', ?), ('epoch', 0)", (FORMAT,))
        connection.execute(_INDEX)
        found = meta(connection, "format")
        if found > FORMAT:
            raise JournalDamaged(
                f"the journal in {folder} has format {found}, this version reads up to {FORMAT}; use the version that wrote it"
            )
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT,))
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
        return Epoch(meta(connection, "epoch"))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
