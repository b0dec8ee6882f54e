"""Checks a state folder from end to end and changes nothing: every record, what all of them come to, and every value.

The folder is locked meanwhile, so that no orchestrator starts on it. Damage is named with its record's number and
offset, its job, and what to do.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, JournalDamaged, NotFound, Problem, StarloomError
from starloom.dag.facts import AnyFact, EpochStarted, StageFact
from starloom.dag.ids import JobId
from starloom.dag.values import JOB_STORE, ValueRef
from starloom.orchestrator.journal import lock
from starloom.orchestrator.placement import EarliestFinish
from starloom.orchestrator.records import FILE_NAME, FORMAT, JournalUnusableError, Record, RecordReader, checked
from starloom.orchestrator.same import complete, difference
from starloom.orchestrator.server import JOURNAL_NAME, VALUES_NAME
from starloom.orchestrator.snapshots import SnapshotOtherError, SnapshotUnusableError, load, offsets
from starloom.orchestrator.state import State
from starloom.orchestrator.walfile import WAL_NAME, refuse_damage

_RESTORE: Final = "restore a copy of the folder"
_SEND_AGAIN: Final = "submit the job again, or restore a copy of the folder"
_DELETE: Final = "delete that file: a start reads the records instead"
_READ_BYTES: Final = 1024 * 1024


class _OfJob(msgspec.Struct):
    job: JobId = JobId("")


_jobs: Final = msgspec.json.Decoder(_OfJob)


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """What is not as it was written. `number` and `offset` are 0 where no single record is to blame.

    `place`: journal, snapshots or values. `number` counts the records that are there, from 1; offsets count those that ever were.
    """

    place: str
    what: str
    advice: str
    number: int = 0
    offset: int = 0
    job: str = ""

    def __str__(self) -> str:
        at = f"record {self.number} (offset {self.offset}): " if self.number else ""
        of = f" (job {self.job})" if self.job else ""
        return f"{self.place}: {at}{self.what}{of}; {self.advice}"


class Found(msgspec.Struct, kw_only=True):
    """What a check found. Sizes are in bytes; `orphans` are values that no kept job names."""

    folder: str
    records: int = 0
    last_offset: int = 0
    epoch: int = 0
    jobs: int = 0
    snapshots: int = 0
    values: int = 0
    value_bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    notes: list[str] = []
    damage: list[Damage] = []


def check(folder: Path) -> Found:
    """Checks the state folder. Raises NotFound if it has no journal, Conflict while an orchestrator runs on it, InvalidInput
    where this user may not lock or read it.
    """
    try:
        if not (folder / JOURNAL_NAME / FILE_NAME).is_file():
            what = f"there is no journal in {folder / JOURNAL_NAME}; name the folder that the orchestrator runs on"
            raise NotFound(what)
        with ExitStack() as opened:
            opened.callback(os.close, lock(folder / JOURNAL_NAME / "lock"))
            return _checked(folder)
    except OSError as error:
        what = f"{error.strerror}; check it as the user that the orchestrator runs as, or a copy that can be written to"
        raise InvalidInput([Problem(str(error.filename), what)], f"{folder} cannot be checked") from error
    except JournalUnusableError as error:
        raise InvalidInput([Problem("", str(error))], f"{folder} cannot be checked") from error


def _checked(folder: Path) -> Found:
    found = Found(folder=str(folder))
    named = _JournalCheck(folder / JOURNAL_NAME, found).run()
    _check_values(folder / VALUES_NAME, named, found)
    return found


class _JournalCheck:
    """Reads all records once. After the first that is damaged, only jobs without damage are followed further."""

    def __init__(self, folder: Path, found: Found) -> None:
        self._folder = folder
        self._found = found
        self._state = State(EarliestFinish())
        #: values in the job store, by the jobs that name them and by digest
        self._named: dict[JobId, dict[str, ValueRef]] = {}
        self._lost: set[JobId] = set()
        #: whether what agents did is followed; without it no fact of a job fits for certain
        self._whole = True
        self._snapshots = offsets(folder)

    def run(self) -> list[tuple[JobId, ValueRef]]:
        """Returns the values in the job store that kept jobs name, and by which job."""
        try:
            torn = refuse_damage(self._folder).torn_bytes
        except JournalDamaged as error:
            what, _, advice = str(error).rpartition("; ")
            self._damaged(what, advice)
            torn = 0
        if torn:
            self._found.notes.append(f"the last record was being written: {torn} bytes of {WAL_NAME} are cut off")
        try:
            # Without a log SQLite would make one to read; nobody else writes now.
            alone = not (self._folder / WAL_NAME).exists()
            with closing(RecordReader(self._folder, alone=alone)) as reader:
                self._check_file(reader)
                self._check_records(reader)
        except (JournalDamaged, sqlite3.DatabaseError) as error:
            self._damaged(_without_advice(error), _RESTORE)
        self._found.epoch = max(self._found.epoch, self._state.epoch)
        self._found.jobs = len(self._state.jobs)
        self._validate()
        kept = self._state.jobs.keys() if self._whole else self._named.keys()
        return [(job, ref) for job, refs in self._named.items() if job in kept for ref in refs.values()]

    def _damaged(self, what: str, advice: str, number: int = 0, offset: int = 0, job: str = "") -> None:
        self._found.damage.append(
            Damage(place="journal", what=what, advice=advice, number=number, offset=offset, job=job)
        )

    def _check_file(self, reader: RecordReader) -> None:
        found = reader.meta("format")
        if not 1 <= found <= FORMAT:
            self._damaged(f"its format is {found}, this version reads up to {FORMAT}", "use the version that wrote it")
        self._found.epoch = reader.meta("epoch")
        self._found.last_offset = reader.last_offset()
        for (line,) in reader.connection.execute("PRAGMA integrity_check"):
            if line != b"ok":
                self._damaged(f"SQLite says: {line.decode(errors='replace')}", _RESTORE)

    def _check_records(self, reader: RecordReader) -> None:
        dropped = reader.meta("dropped", 0)
        unmet = list(self._snapshots)
        number = after = 0
        for offset, row in self._rows(reader):
            number += 1
            if offset != after + 1 and not dropped:
                gone = f"the records of offset {after + 1} to {offset - 1} before it are missing"
                self._damaged(gone, _RESTORE, number, offset)
                self._whole = False
            after = offset
            self._check_record(number, offset, row)
            if offset in unmet:
                unmet.remove(offset)
                self._check_snapshot(reader, offset, comparable=self._whole and not self._lost, dropped=dropped > 0)
        for offset in unmet:
            self._check_snapshot(reader, offset, comparable=False)
        self._found.records = number
        missing = self._found.last_offset - dropped - number
        if missing > 0 and (dropped or after < self._found.last_offset):
            self._damaged(f"{missing} records up to offset {self._found.last_offset} are missing", _RESTORE)
            self._whole = False
        if self._state.epoch > self._found.epoch:
            self._damaged(f"a record tells of epoch {self._state.epoch}, the table of {self._found.epoch}", _RESTORE)

    def _check_snapshot(self, reader: RecordReader, offset: int, *, comparable: bool, dropped: bool = False) -> None:
        """A snapshot that this version reads gives what the records up to there give, where that is known.

        Of agents, and of what was learned, records that were dropped told as well: then only jobs are compared.
        """
        try:
            found = load(reader, offset)
        except SnapshotOtherError as error:
            self._found.notes.append(f"snapshot {offset} is not used: {error}")
            return
        except (SnapshotUnusableError, OSError) as error:
            what = str(error)
        else:
            what = self._differs(found.state, dropped) if comparable else ""
        self._found.snapshots += 1
        if what:
            damage = Damage(place="snapshots", what=f"snapshot {offset}: {what}", advice=_DELETE, offset=offset)
            self._found.damage.append(damage)

    def _differs(self, other: State, dropped: bool) -> str:
        if not dropped:
            return difference(self._state, other)
        complete(self._state)
        complete(other)
        return difference(self._state.jobs, other.jobs, "state.jobs") or difference(self._state.keys, other.keys)

    def _rows(self, reader: RecordReader) -> Iterator[tuple[int, Sequence[Any] | str]]:
        """Each row, or why it cannot be read, with its offset."""
        after = 0
        while True:
            try:
                rows = reader.rows(after, None, limits.EVENTS_PER_READ_MAX)
            except sqlite3.DatabaseError:
                end = min(after + limits.EVENTS_PER_READ_MAX, self._found.last_offset)
                yield from _one_by_one(reader, after, end)
                after = end
                if after >= self._found.last_offset:
                    return
                continue
            if not rows:
                return
            for row in rows:
                yield row[0], row
            after = rows[-1][0]

    def _check_record(self, number: int, offset: int, row: Sequence[Any] | str) -> None:
        try:
            if isinstance(row, str):
                raise JournalDamaged(f"it cannot be read: {row}")
            record = checked(row)
            fact = record.fact
            self._check_against_table(record, fact)
        except JournalDamaged as error:
            jobs = [] if isinstance(row, str) else _jobs_of(row)
            self._damaged(_without_advice(error), _RESTORE, number, offset, jobs[0] if jobs else "")
            self._lost.update(jobs)
            self._whole = self._whole and bool(jobs)
            return
        self._name_values(fact, record.job)
        if record.job in self._lost or not self._whole:
            return
        try:
            self._apply(fact, record)
        # What a fact does not find is a KeyError, and what it does not fit is told by the state itself.
        except (StarloomError, LookupError, ValueError, TypeError) as error:
            what = f"its fact does not fit what is before it: {error}"
            self._damaged(what, f"{_RESTORE}, and report this", number, offset, record.job)
            self._lost.add(record.job)
            self._whole = bool(record.job)

    def _check_against_table(self, record: Record, fact: AnyFact) -> None:
        job = getattr(fact, "job", JobId(""))
        if job != record.job:
            raise JournalDamaged(f"its fact is of job {job!r}, and its row says {record.job!r}")

    def _apply(self, fact: AnyFact, record: Record) -> None:
        if isinstance(fact, EpochStarted) and fact.epoch <= self._state.epoch:
            raise JournalDamaged(f"epoch {fact.epoch} follows epoch {self._state.epoch}; epochs only rise")
        if isinstance(fact, StageFact) and fact.token.epoch > max(self._state.epoch, self._found.epoch):
            raise JournalDamaged(f"its token is of epoch {fact.token.epoch}, after epoch {self._state.epoch}")
        self._state.apply(fact)

    def _name_values(self, fact: AnyFact, job: JobId) -> None:
        refs: Iterable[ValueRef] = {**getattr(fact, "inputs", {}), **getattr(fact, "outputs", {})}.values()
        for ref in refs:
            if ref.holder == JOB_STORE and ref.inline is None and not ref.stream:
                self._named.setdefault(job, {})[ref.digest] = ref

    def _validate(self) -> None:
        for name, job in self._state.jobs.items():
            if name in self._lost or not self._whole:
                continue
            try:
                job.validate()
            except AssertionError as error:
                self._damaged(f"the job's state contradicts itself: {error}", f"{_RESTORE}, and report this", job=name)


def _jobs_of(row: Sequence[Any]) -> list[JobId]:
    """The jobs that a damaged row may be of: what it says itself, and what its line says."""
    jobs = [JobId(row[2].decode(errors="replace"))] if isinstance(row[2], bytes) else []
    with suppress(msgspec.DecodeError, TypeError):
        jobs.append(_jobs.decode(row[4]).job)
    return [job for job in jobs if job]


def _without_advice(error: Exception) -> str:
    return str(error).removesuffix("; restore a copy")


def _one_by_one(reader: RecordReader, after: int, end: int) -> Iterator[tuple[int, Sequence[Any] | str]]:
    for offset in range(after + 1, end + 1):
        try:
            rows = reader.rows(offset - 1, None, 1)
        except sqlite3.DatabaseError as error:
            yield offset, str(error)
        else:
            if rows and rows[0][0] == offset:
                yield offset, rows[0]


def _check_values(folder: Path, named: Sequence[tuple[JobId, ValueRef]], found: Found) -> None:
    """Every value that a kept job names is there, with its digest; what no one names is counted."""
    there = {path.parent.name + path.name: path for path in sorted(folder.glob("??/*"))}
    for job, ref in named:
        path = there.get(ref.digest)
        what = f"value {ref.digest} is missing" if path is None else _wrong(path, ref)
        if what:
            damage = Damage(place="values", what=what, advice=_SEND_AGAIN, job=job)
            found.damage.append(damage)
    digests = {ref.digest for _, ref in named}
    for digest, path in there.items():
        size = _size(path)
        if digest in digests:
            found.values += 1
            found.value_bytes += size
        else:
            found.orphans += 1
            found.orphan_bytes += size


def _size(path: Path) -> int:
    """In bytes; 0 of what cannot be reached, as a link that leads nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _wrong(path: Path, ref: ValueRef) -> str:
    try:
        size = path.stat().st_size
        if size != ref.bytes:
            return f"value {ref.digest} has {size} bytes instead of {ref.bytes}"
        digest = blake3()
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        return f"value {ref.digest} cannot be read: {error.strerror}"
    return "" if digest.hexdigest() == ref.digest else f"value {ref.digest} holds something else"
