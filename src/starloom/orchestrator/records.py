"""The records of a journal: what one is, how its checksum is made, and how they are read back.

A reader changes nothing and needs no lock, so it also serves beside the writer, in a process of its own.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote
from zlib import crc32

import msgspec

from starloom.dag import limits
from starloom.dag.errors import JournalDamaged, StarloomError
from starloom.dag.facts import AnyFact, decode_fact
from starloom.dag.ids import JobId

FILE_NAME: Final = "journal.db"
FORMAT: Final = 2
"""The version of the tables. A journal of a lower one is brought forward at opening, a higher one refused.

1: the CRC-32 is of the offset and the line. 2: new records have one of the time and the job as well.
"""
COLUMNS: Final = "offset, unix_nanos, job, crc, fact"
_TYPES: Final = (int, int, bytes, int, bytes)


_ALLOW: Final = "let this user read and write the folder and its files, then start again"
_NO_DAMAGE: Final = {
    sqlite3.SQLITE_FULL: "make room, then start again",
    sqlite3.SQLITE_IOERR: "see that the disk is whole and has room, then start again",
    sqlite3.SQLITE_BUSY: "end the program that has it open, then start again",
    sqlite3.SQLITE_READONLY: _ALLOW,
    sqlite3.SQLITE_CANTOPEN: _ALLOW,
    sqlite3.SQLITE_PERM: _ALLOW,
}


class JournalUnusableError(StarloomError):
    """A journal cannot be opened, read or written now, and nothing tells that it is damaged; the message says what to do."""


class _Kind(msgspec.Struct):
    fact: str


_kinds = msgspec.json.Decoder(_Kind)


class Record(NamedTuple):
    """One fact as it is journaled. `line` is the fact as JSON; `job` is empty for facts about agents."""

    offset: int
    unix_nanos: int
    job: JobId
    line: bytes

    @property
    def kind(self) -> str:
        """The fact's kind, such as `stage-placed`."""
        return _kinds.decode(self.line).fact

    @property
    def fact(self) -> AnyFact:
        """The fact itself. Raises JournalDamaged if the line holds none that this version knows."""
        try:
            return decode_fact(self.line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JournalDamaged(
                f"journal record {self.offset} holds no fact that this version can read ({error}): "
                f"{self.line[:80]!r}; use the version that wrote it, or restore a copy"
            ) from error


def checksum(offset: int, unix_nanos: int, job: bytes, line: bytes) -> int:
    """The CRC-32 of a record's columns."""
    return crc32(line, crc32(b"%d %d %b" % (offset, unix_nanos, job)))


class RecordReader:
    """Reads the journal in `folder`. For one thread at a time. Raises JournalUnusableError if there is none to read.

    `alone`: nobody writes meanwhile, and no write-ahead log is there; then no file is made to read.
    """

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        self.folder = folder
        with explained(folder):
            uri = f"file:{quote(str(folder / FILE_NAME))}?mode=ro{'&immutable=1' if alone else ''}"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            self.connection.text_factory = bytes

    def close(self) -> None:
        """May be called again."""
        self.connection.close()

    def meta(self, key: str, default: int | None = None) -> int:
        """A number that the journal keeps of itself. Raises JournalDamaged if there is none and no default."""
        with explained(self.folder):
            return meta(self.connection, key, default)

    def last_offset(self) -> int:
        """The offset of the last record, whether or not it was dropped since; 0 before the first."""
        with explained(self.folder):
            return last_offset(self.connection)

    def rows(self, after: int, job: JobId | None, limit: int) -> list[Sequence[Any]]:
        """What stands in the table, unchecked; see `checked`. Raises sqlite3.DatabaseError."""
        of_job, parameters = ("job = ? AND job != '' AND ", (job,)) if job is not None else ("", ())
        query = f"SELECT {COLUMNS} FROM facts WHERE {of_job}offset > ? ORDER BY offset LIMIT ?"
        return self.connection.execute(query, (*parameters, after, limit)).fetchall()

    def read(self, after: int = 0, job: JobId | None = None, limit: int = limits.EVENTS_PER_READ_MAX) -> list[Record]:
        """At most `limit` records behind offset `after`, of one job or of all. Raises JournalDamaged."""
        with explained(self.folder):
            rows = self.rows(after, job, limit)
        records = [checked(row) for row in rows]
        if job is None and not self.meta("dropped", 0):
            _check_order(records, after)
        return records

    def replay(self, last: int, after: int = 0) -> Iterator[Record]:
        """Every record behind offset `after`, up to `last`. Behind a snapshot, which is any `after` but 0, none was dropped.

        Raises JournalDamaged, naming the record, at the first that is not whole.
        """
        begin, count = after, 0
        while records := self.read(after):
            if begin:
                _check_order(records, after)
            yield from records
            after = records[-1].offset
            count += len(records)
        missing = last - begin - count - (0 if begin else self.meta("dropped", 0))
        if missing > 0:
            raise JournalDamaged(f"{missing} records up to {last} are missing from the journal; restore a copy")

    def crc_of(self, offset: int) -> int | None:
        """The checksum of a record; None if it was dropped, or never was."""
        with explained(self.folder):
            row = self.connection.execute("SELECT crc FROM facts WHERE offset = ?", (offset,)).fetchone()
        return None if row is None else int(row[0])

    def jobs(self) -> list[JobId]:
        """Every job that has a record."""
        with explained(self.folder):
            rows = self.connection.execute("SELECT DISTINCT job FROM facts WHERE job != ''").fetchall()
        return [JobId(job.decode(errors="replace")) for (job,) in rows]


def checked(row: Sequence[Any]) -> Record:
    """The record in a row of the table. Raises JournalDamaged if it is not as it was written."""
    offset, unix_nanos, job, crc, line = row
    whole = tuple(map(type, row)) == _TYPES and crc in (
        checksum(offset, unix_nanos, job, line),
        crc32(line, offset & 0xFFFFFFFF),
    )
    if not whole:
        raise JournalDamaged(f"journal record {offset} is not as it was written: its CRC-32 is wrong; restore a copy")
    return Record(offset, unix_nanos, JobId(job.decode()), line)


def meta(connection: sqlite3.Connection, key: str, default: int | None = None) -> int:
    """A number that the journal keeps of itself. Raises JournalDamaged if there is none and no default."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None and default is not None:
        return default
    if row is None or not isinstance(row[0], int):
        raise JournalDamaged(f"the journal's table meta has no {key}; restore a copy")
    return row[0]


def last_offset(connection: sqlite3.Connection) -> int:
    """The offset of the last record, whether or not it was dropped since; 0 before the first."""
    last: int = connection.execute("SELECT ifnull(max(offset), 0) FROM facts").fetchone()[0]
    return max(last, meta(connection, "last", 0))


def advice(error: sqlite3.Error) -> str:
    """What to do about an error of SQLite's that tells of no damage; empty for others."""
    # The lowest byte says what, the others which of its sorts.
    return _NO_DAMAGE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What SQLite raises of a file comes as JournalDamaged, or where nothing tells of damage as JournalUnusableError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if what_to_do := advice(error):
            raise JournalUnusableError(f"the journal in {folder} cannot be used: {error}; {what_to_do}") from error
        raise JournalDamaged(f"the journal in {folder} cannot be read: {error}; restore a copy") from error


def _check_order(records: Sequence[Record], after: int) -> None:
    for expected, record in enumerate(records, after + 1):
        if record.offset != expected:
            raise JournalDamaged(f"journal record {expected} is missing: {record.offset} follows; restore a copy")
