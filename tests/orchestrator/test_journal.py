"""The journal: one writer, nothing half-written, nothing read that was not written."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from starloom.dag import limits
from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.errors import Conflict, Fenced, JournalDamaged
from starloom.dag.facts import Fact, JobEnded, JobStatus, JobSubmitted, StageSkipped
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId
from starloom.orchestrator import journal as module
from starloom.orchestrator.headroom import Headroom
from starloom.orchestrator.journal import Journal, JournalUnwritableError
from starloom.orchestrator.records import FORMAT, JournalUnusableError, Record, RecordReader, checksum, explained

NOW = 1_700_000_000_000_000_000


def submitted(job: str) -> Fact:
    stage = StageSpec(id=StageId("a"), kind="basic.noop")
    return JobSubmitted(job=JobId(job), constellation=Constellation(name="n", stages={stage.id: stage}))


def skipped(job: str, attempt: int = 1, reason: str = "because") -> Fact:
    token = FencingToken(Epoch(1), Attempt(attempt))
    return StageSkipped(job=JobId(job), stage=StageId("a"), token=token, reason=reason)


def ended(job: str) -> Fact:
    return JobEnded(job=JobId(job), status=JobStatus.SUCCEEDED)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal")
    yield opened
    opened.close()


def damage(journal: Journal, statement: str) -> None:
    """Changes the file behind the journal's back."""
    with sqlite3.connect(journal.folder / "journal.db") as connection:
        connection.execute(statement)
    connection.close()


def test_facts_come_back_in_order_with_growing_offsets(journal: Journal) -> None:
    facts = [submitted("j1"), skipped("j1"), ended("j1")]
    first = journal.append(facts[:2], NOW)
    second = journal.append(facts[2:], NOW + 1)
    assert [record.offset for record in (*first, *second)] == [1, 2, 3]
    assert journal.read() == [*first, *second]
    assert [record.fact for record in journal.replay()] == facts
    assert [record.kind for record in journal.replay()] == ["job-submitted", "stage-skipped", "job-ended"]
    assert [record.unix_nanos for record in journal.replay()] == [NOW, NOW, NOW + 1]


def test_nothing_to_append_is_no_transaction(journal: Journal) -> None:
    assert journal.append([], NOW) == []
    assert journal.last_offset == 0


def test_reading_goes_on_behind_an_offset_in_pages(journal: Journal) -> None:
    journal.append([skipped("j1", attempt) for attempt in range(1, 8)], NOW)
    assert [record.offset for record in journal.read(after=2, limit=3)] == [3, 4, 5]
    assert journal.read(after=7) == []


def test_one_jobs_records_are_read_by_an_index(journal: Journal) -> None:
    journal.append([submitted("j1"), submitted("j2"), ended("j1"), ended("j2")], NOW)
    assert [record.offset for record in journal.read(job=JobId("j2"))] == [2, 4]
    assert [record.offset for record in journal.read(after=2, job=JobId("j2"))] == [4]
    assert journal.read(job=JobId("")) == []
    connection = sqlite3.connect(journal.folder / "journal.db")
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM facts WHERE job = ? AND job != '' AND offset > ?", ("", 0)
    )
    assert "facts_of_job" in str(plan.fetchall())
    connection.close()


def test_each_opening_raises_the_epoch_and_keeps_what_was_written(tmp_path: Path) -> None:
    first = Journal.open(tmp_path)
    assert first.epoch == 1
    first.append([submitted("j1")], NOW)
    first.close()
    second = Journal.open(tmp_path)
    assert second.epoch == 2
    assert second.append([ended("j1")], NOW)[0].offset == 2
    assert [record.fact for record in second.replay()] == [submitted("j1"), ended("j1")]
    second.close()


def test_the_journal_is_written_with_full_synchronisation(journal: Journal) -> None:
    assert journal._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._writer.execute("PRAGMA journal_mode").fetchone() == (b"wal",)


def test_a_second_writer_is_told_who_the_first_is(journal: Journal) -> None:
    with pytest.raises(Conflict, match=rf"in use by process {os.getpid()}\b"):
        Journal.open(journal.folder)


def test_a_writer_in_another_process_is_refused(journal: Journal) -> None:
    code = "import sys; from pathlib import Path; from starloom.orchestrator.journal import Journal\n"
    code += "Journal.open(Path(sys.argv[1]))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(journal.folder)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert f"in use by process {os.getpid()}" in found.stderr


def test_a_writer_that_was_replaced_fails_and_writes_nothing(journal: Journal) -> None:
    journal.append([submitted("j1")], NOW)
    damage(journal, "UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
    with pytest.raises(Fenced, match=r"epoch 1, and the journal in .* has 2"):
        journal.append([ended("j1")], NOW)
    assert [record.fact for record in journal.replay()] == [submitted("j1")]


def test_a_killed_writer_leaves_whole_transactions_and_no_lock(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from starloom.dag.facts import JobEnded, JobStatus
from starloom.orchestrator.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
journal.append([JobEnded(job="j1", status=JobStatus.SUCCEEDED)] * 3, 1)
journal._writer.execute("BEGIN IMMEDIATE")
journal._writer.execute("INSERT INTO facts VALUES (4, 1, 'j1', 0, 'half')")
os.kill(os.getpid(), signal.SIGKILL)
"""
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert found.returncode == -9
    journal = Journal.open(tmp_path)
    assert [record.offset for record in journal.replay()] == [1, 2, 3]
    assert journal.epoch == 2
    journal.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE facts SET fact = replace(fact, 'because', 'becaues') WHERE offset = 3", "record 3 is not as it was"),
        ("DELETE FROM facts WHERE offset = 2", "record 2 is missing: 3 follows"),
        ("DELETE FROM facts WHERE offset = 1", "record 1 is missing: 2 follows"),
        ("UPDATE facts SET fact = x'ff' WHERE offset = 2", "record 2 is not as it was"),
        ("UPDATE facts SET unix_nanos = unix_nanos + 1 WHERE offset = 4", "record 4 is not as it was"),
        ("UPDATE facts SET job = 'j2' WHERE offset = 5", "record 5 is not as it was"),
        ("UPDATE facts SET crc = 'x' WHERE offset = 1", "record 1 is not as it was"),
    ],
)
def test_what_was_changed_is_found_and_named(journal: Journal, statement: str, message: str) -> None:
    journal.append([skipped("j1", attempt) for attempt in range(1, 6)], NOW)
    damage(journal, statement)
    with pytest.raises(JournalDamaged, match=message):
        list(journal.replay())


def test_a_fact_of_another_version_is_named(journal: Journal) -> None:
    journal.append([skipped("j1")], NOW)
    line = '{"fact":"stage-teleported","job":"j1"}'
    crc = checksum(2, 0, b"j1", line.encode())
    damage(journal, f"INSERT INTO facts VALUES (2, 0, 'j1', {crc}, '{line}')")
    records = list(journal.replay())
    with pytest.raises(JournalDamaged, match=r"record 2 holds no fact .*stage-teleported"):
        _ = records[1].fact


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(JournalDamaged, match=r"cannot be read: file is not a database"):
        Journal.open(tmp_path)


def test_a_damaged_page_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append([skipped("j1", attempt, "r" * 500) for attempt in range(1, 200)], NOW)
    journal.close()
    path = tmp_path / "journal.db"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\x55" * 4096
    path.write_bytes(data)
    journal = Journal.open(tmp_path)
    with pytest.raises(JournalDamaged):
        list(journal.replay())
    journal.close()


def test_a_later_format_is_refused_and_the_folder_left_free(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    damage(journal, f"UPDATE meta SET value = {FORMAT + 1} WHERE key = 'format'")
    journal.close()
    journal.close()
    for _ in range(2):
        with pytest.raises(JournalDamaged, match=f"format {FORMAT + 1}, this version reads up to {FORMAT}"):
            Journal.open(tmp_path)


def fill(journal: Journal) -> None:
    """No further page: as a full disk, for the writer."""
    pages = journal._writer.execute("PRAGMA page_count").fetchone()[0]
    journal._writer.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_gives_the_head_room_to_accepted_work(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert journal.has_room()
    assert (journal.folder / "headroom").stat().st_size == limits.JOURNAL_RESERVED_BYTES
    journal.append([submitted("j1")], NOW)
    fill(journal)
    give_back = Headroom.give_back

    def make_room(headroom: Headroom) -> bool:
        journal._writer.execute("PRAGMA max_page_count = 1000000")
        return give_back(headroom)

    monkeypatch.setattr(Headroom, "give_back", make_room)
    records = journal.append([skipped("j1", 1, "r" * 20_000)], NOW)
    assert [record.offset for record in records] == [2]
    assert [record.fact for record in journal.replay()] == [submitted("j1"), skipped("j1", 1, "r" * 20_000)]
    assert not (journal.folder / "headroom").exists()


def test_new_work_is_refused_until_the_head_room_is_there_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal._headroom.give_back()
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 10, 5, 5, 0, 255))
    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", lambda path: full)
        assert not journal.has_room()
    assert journal.has_room()
    assert (journal.folder / "headroom").exists()


def test_a_start_on_a_full_disk_has_the_head_room_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = module._connect
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 10, 5, 5, 0, 255))

    def on_a_full_disk(folder: Path) -> sqlite3.Connection:
        connection = connect(folder)
        if (folder / "headroom").exists():
            connection.execute("PRAGMA max_page_count = 1")
        return connection

    (tmp_path / "headroom").write_bytes(b"set aside")
    monkeypatch.setattr(module, "_connect", on_a_full_disk)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    journal = Journal.open(tmp_path)
    assert journal.append([submitted("j1")], NOW)[0].offset == 1
    assert not journal.has_room()
    journal.close()


def test_what_is_no_damage_is_not_called_so(journal: Journal, tmp_path: Path) -> None:
    journal.append([submitted("j1")], NOW)
    with pytest.raises(JournalUnusableError, match=r"readonly.*let this user read and write"), explained(tmp_path):
        journal.reader.connection.execute("DELETE FROM facts")
    with sqlite3.connect(journal.folder / "journal.db", isolation_level=None) as another:
        another.execute("BEGIN IMMEDIATE")
        journal._writer.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(JournalUnwritableError, match=r"locked.*end the program that has it open"):
            journal.append([ended("j1")], NOW)
        another.execute("ROLLBACK")
    another.close()
    fill(journal)
    with pytest.raises(JournalUnusableError, match="full; make room, then start again"), explained(tmp_path):
        journal._insert([Record(2, NOW, JobId("j1"), b"x" * 20_000)])
    with pytest.raises(JournalUnusableError, match="unable to open"):
        RecordReader(tmp_path / "nowhere")


def test_a_disk_that_stays_full_ends_in_an_error_and_nothing_half_written(journal: Journal) -> None:
    journal.append([submitted("j1")], NOW)
    fill(journal)
    with pytest.raises(JournalUnwritableError, match=r"full.*make room"):
        journal.append([ended("j1"), skipped("j1", 1, "r" * 20_000)], NOW)
    assert [record.fact for record in journal.replay()] == [submitted("j1")]
    journal._writer.execute("PRAGMA max_page_count = 1000000")
    assert journal.append([ended("j1")], NOW)[0].offset == 2


def test_more_facts_than_one_statement_takes_are_one_transaction(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_PER_STATEMENT", 3)
    journal.append([skipped("j1", attempt) for attempt in range(1, 8)], NOW)
    assert len(list(journal.replay())) == 7
    fill(journal)
    with pytest.raises(JournalUnwritableError):
        journal.append([ended("j1"), ended("j1"), ended("j1"), skipped("j1", 1, "r" * 20_000)], NOW)
    assert len(list(journal.replay())) == 7


def test_dropped_jobs_leave_gaps_that_are_no_damage(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.append([submitted("j1"), submitted("j2"), ended("j1"), submitted("j3"), ended("j3"), ended("j2")], NOW)
    journal.drop([JobId("j1"), JobId("j3"), JobId("")])
    assert [record.offset for record in journal.replay()] == [2, 6]
    assert journal.append([skipped("j4")], NOW)[0].offset == 7
    journal.drop([JobId("j4")])
    journal.close()
    again = Journal.open(tmp_path)
    assert again.append([skipped("j5")], NOW)[0].offset == 8
    assert [record.offset for record in again.replay()] == [2, 6, 8]
    damage(again, "DELETE FROM facts WHERE offset = 6")
    with pytest.raises(JournalDamaged, match="1 records up to 8 are missing"):
        list(again.replay())
    again.close()


def test_a_writer_that_was_replaced_drops_nothing(journal: Journal) -> None:
    journal.append([submitted("j1"), submitted("j2")], NOW)
    damage(journal, "UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
    with pytest.raises(Fenced):
        journal.drop([JobId("j1")])
    assert len(list(journal.replay())) == 2
