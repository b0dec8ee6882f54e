"""`starloom fsck`: whatever is not as it was written is found and named, and nothing is changed."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from starloom.agents.values import refer
from starloom.dag import facts as f
from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.errors import Conflict, InvalidInput, JournalDamaged, NotFound
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.values import JOB_STORE, PortType, ValueRef
from starloom.orchestrator import snapshots
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.fsck import Damage, check
from starloom.orchestrator.jobstore import JobStore
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.records import FILE_NAME, Record, RecordReader
from starloom.orchestrator.walfile import WAL_NAME

NOW = 1_700_000_000_000_000_000
INPUT, OUTPUT = b"what went in" * 100, b"what came out" * 100
AGENT = AgentId("n0")
A = StageId("a")
TOKEN = FencingToken(Epoch(1), Attempt(1))
ROUNDS = 3


def stored(data: bytes) -> ValueRef:
    return msgspec.structs.replace(refer(PortType.BYTES, data, {}, JOB_STORE), inline=None)


def submitted(job: str) -> Fact:
    constellation = Constellation(name=f"of {job}", stages={A: StageSpec(id=A, kind="basic.echo")})
    return f.JobSubmitted(job=JobId(job), constellation=constellation, inputs={"data": stored(INPUT)})


def placed(job: str, token: FencingToken = TOKEN) -> Fact:
    return f.StagePlaced(job=JobId(job), stage=A, token=token, agent=AGENT, incarnation="i1")


def story(job: str) -> list[Fact]:
    name = JobId(job)
    outputs = {"data": stored(OUTPUT)}
    return [
        submitted(job),
        placed(job),
        f.StageStarted(job=name, stage=A, token=TOKEN),
        f.StageCommitted(job=name, stage=A, token=TOKEN, outputs=outputs, published=("data",)),
        f.JobEnded(job=name, status=JobStatus.SUCCEEDED, outputs=outputs),
    ]


def facts() -> list[Fact]:
    begun = [
        f.EpochStarted(epoch=Epoch(1)),
        f.AgentJoined(agent=AGENT, incarnation="i1", profile={"name": "n0", "tier": "edge"}),
    ]
    return [*begun, *(fact for number in range(ROUNDS) for fact in story(f"job-{number}")), submitted("job-open")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder as an orchestrator leaves it that was stopped in order."""
    state = tmp_path / "state"
    store = JobStore(state / "values")
    for data in (INPUT, OUTPUT):
        store.put(stored(data), [data])
    journal = Journal.open(state / "journal")
    journal.append(facts(), NOW)
    journal.close()
    return state


@pytest.fixture
def killed(folder: Path, tmp_path: Path) -> Path:
    """One as an orchestrator leaves it that was killed: five more facts, one transaction each, are in the log only."""
    journal = Journal.open(folder / "journal")
    for fact in (f.EpochStarted(epoch=Epoch(2)), *story("job-late")[:4]):
        journal.append([fact], NOW)
    copy = tmp_path / "killed"
    shutil.copytree(folder, copy)
    journal.close()
    return copy


def records(folder: Path) -> list[Record]:
    reader = RecordReader(folder / "journal")
    try:
        return list(reader.replay(reader.last_offset()))
    finally:
        reader.close()


def change(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / "journal" / FILE_NAME) as connection:
        connection.execute(statement)
    connection.close()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x20
    path.write_bytes(data)


def only(folder: Path) -> Damage:
    """The one thing that is wrong."""
    damage = check(folder).damage
    assert len(damage) == 1, [str(each) for each in damage]
    return damage[0]


def test_what_is_whole_is_counted_and_left_as_it_is(folder: Path) -> None:
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}

    before = everything()
    found = check(folder)
    assert found.damage == []
    assert found.notes == []
    assert (found.records, found.last_offset, found.epoch, found.jobs) == (18, 18, 1, 4)
    assert (found.values, found.value_bytes, found.orphans) == (2, len(INPUT) + len(OUTPUT), 0)
    assert everything() == before


def test_what_a_killed_orchestrator_left_is_whole(killed: Path) -> None:
    database, log = ((killed / "journal" / name).read_bytes() for name in (FILE_NAME, WAL_NAME))
    found = check(killed)
    assert (found.damage, found.notes, found.records, found.epoch) == ([], [], 23, 2)
    assert (killed / "journal" / FILE_NAME).read_bytes() == database
    assert (killed / "journal" / WAL_NAME).read_bytes() == log


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_flipped_byte_of_any_record_is_named(folder: Path, part: float) -> None:
    path = folder / "journal" / FILE_NAME
    whole = path.read_bytes()
    for number, record in enumerate(records(folder), 1):
        assert whole.count(record.line) == 1
        flip(path, whole.index(record.line) + round(part * (len(record.line) - 1)))
        damage = only(folder)
        assert (damage.number, damage.offset, damage.job) == (number, record.offset, record.job)
        assert "CRC-32" in damage.what
        assert damage.advice == "restore a copy of the folder"
        path.write_bytes(whole)


@pytest.mark.parametrize("column", ["unix_nanos = unix_nanos + 1", "job = 'job-x'", "crc = crc + 1", "fact = x'00'"])
def test_every_column_of_a_record_is_covered(folder: Path, column: str) -> None:
    change(folder, f"UPDATE facts SET {column} WHERE offset = 4")
    damage = only(folder)
    assert (damage.number, damage.offset) == (4, 4)


def test_no_flipped_byte_of_the_file_changes_what_is_read_unnoticed(folder: Path) -> None:
    """What is not found lies in unused space, or in numbers that SQLite keeps for itself."""
    path = folder / "journal" / FILE_NAME
    whole, expected = path.read_bytes(), records(folder)
    unnoticed = 0
    for at in range(0, len(whole), 53):
        flip(path, at)
        if not check(folder).damage:
            unnoticed += 1
            assert records(folder) == expected, f"byte {at}"
        path.write_bytes(whole)
    assert 0 < unnoticed < len(whole) // 53


@pytest.mark.parametrize(
    ("statement", "what", "offset"),
    [
        ("DELETE FROM facts WHERE offset = 5", "the records of offset 5 to 5 before it are missing", 6),
        ("DELETE FROM facts WHERE offset BETWEEN 1 AND 3", "the records of offset 1 to 3 before it are missing", 4),
        ("INSERT INTO meta VALUES ('last', 20)", "2 records up to offset 20 are missing", 0),
        ("UPDATE meta SET value = 0 WHERE key = 'epoch'", "a record tells of epoch 1, the table of 0", 0),
        ("UPDATE meta SET value = 99 WHERE key = 'format'", "its format is 99", 0),
        ("DELETE FROM meta WHERE key = 'epoch'", "meta has no epoch", 0),
    ],
)
def test_what_is_missing_is_named(folder: Path, statement: str, what: str, offset: int) -> None:
    change(folder, statement)
    damage = check(folder).damage[0]
    assert what in damage.what
    assert damage.offset == offset


def test_dropped_jobs_are_no_damage(folder: Path) -> None:
    journal = Journal.open(folder / "journal")
    journal.append([f.EpochStarted(epoch=Epoch(2))], NOW)
    journal.drop([JobId("job-1")])
    journal.close()
    assert check(folder).damage == []
    change(folder, "DELETE FROM facts WHERE offset = 4")
    assert "1 records up to offset 19 are missing" in [damage.what for damage in check(folder).damage][-1]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (f.EpochStarted(epoch=Epoch(1)), "epoch 1 follows epoch 1; epochs only rise"),
        (placed("job-open", FencingToken(Epoch(7), Attempt(1))), "its token is of epoch 7, after epoch 1"),
        (placed("job-0"), "job job-0 is succeeded"),
        (placed("job-none"), "'job-none'"),
    ],
)
def test_a_fact_that_does_not_fit_is_named(folder: Path, wrong: Fact, what: str) -> None:
    journal = Journal.open(folder / "journal")
    [record] = journal.append([wrong], NOW)
    journal.close()
    damage = only(folder)
    assert what in damage.what
    assert (damage.number, damage.offset, damage.job) == (record.offset, record.offset, record.job)
    assert "report this" in damage.advice


def test_a_job_whose_records_are_damaged_does_not_hide_the_others(folder: Path) -> None:
    journal = Journal.open(folder / "journal")
    journal.append([placed("job-open"), placed("job-open")], NOW)
    journal.close()
    change(folder, "UPDATE facts SET fact = '{}' WHERE offset = 4")
    damage = check(folder).damage
    assert [(each.offset, each.job) for each in damage] == [(4, "job-0"), (20, "job-open")]


class TestTorn:
    """The last transaction of a killed writer."""

    def test_it_is_cut_off_wherever_it_ends_and_that_is_said(
        self, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = records(killed)
        log = (killed / "journal" / WAL_NAME).read_bytes()
        begin = len(log) - self.last_transaction_bytes(killed)
        for end in (*range(begin + 1, len(log), 1021), len(log) - 1):
            copy = tmp_path / "torn"
            shutil.copytree(killed, copy)
            (copy / "journal" / WAL_NAME).write_bytes(log[:end])
            found = check(copy)
            assert (found.damage, found.records) == ([], len(expected) - 1)
            assert f"{end - begin} bytes of {WAL_NAME} are cut off" in found.notes[0]
            caplog.clear()
            journal = Journal.open(copy / "journal")
            assert list(journal.replay()) == expected[:-1]
            assert f"{end - begin} bytes are cut off" in caplog.text
            assert journal.append([placed("job-open")], NOW)[0].offset == len(expected)
            journal.close()
            assert check(copy).damage == []
            shutil.rmtree(copy)

    def test_a_flipped_byte_before_it_is_an_error_and_not_a_silent_loss(self, killed: Path) -> None:
        path = killed / "journal" / WAL_NAME
        log = path.read_bytes()
        end = len(log) - self.last_transaction_bytes(killed)
        for at in range(0, end, 499):
            flip(path, at)
            with pytest.raises(JournalDamaged, match=r"journal\.db-wal is damaged at frame \d+"):
                Journal.open(killed / "journal")
            assert any("is damaged at frame" in damage.what for damage in check(killed).damage), f"byte {at}"
            path.write_bytes(log)

    def test_what_an_older_generation_left_behind_is_not_torn(self, folder: Path, tmp_path: Path) -> None:
        journal = Journal.open(folder / "journal")
        for _ in range(10):
            journal.append([submitted("job-x")], NOW)
        journal._writer.execute("PRAGMA wal_checkpoint(RESTART)")
        journal.append([submitted("job-y")], NOW)
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        journal.close()
        assert check(copy).notes == []

    def last_transaction_bytes(self, killed: Path) -> int:
        """What is behind the transaction before the last: each ends with a frame that names the file's size."""
        log = (killed / "journal" / WAL_NAME).read_bytes()
        frame = 24 + int.from_bytes(log[8:12])
        starts = range(32, len(log), frame)
        commits = [at + frame for at in starts if int.from_bytes(log[at + 4 : at + 8])]
        assert commits[-1] == len(log)
        return len(log) - commits[-2]


def value_path(folder: Path, data: bytes) -> Path:
    digest = stored(data).digest
    return folder / "values" / digest[:2] / digest[2:]


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(OUTPUT[:-1]), f"has {len(OUTPUT) - 1} bytes instead of {len(OUTPUT)}"),
        (lambda path: flip(path, 7), "holds something else"),
        (lambda path: path.unlink() or path.symlink_to(path), "cannot be read: Too many levels"),
    ],
)
def test_a_value_that_is_not_there_or_not_itself_is_named(
    folder: Path, harm: Callable[[Path], object], what: str
) -> None:
    path = value_path(folder, OUTPUT)
    harm(path)
    damage = check(folder).damage
    assert {each.job for each in damage} == {f"job-{number}" for number in range(ROUNDS)}
    for each in damage:
        assert (each.place, each.offset) == ("values", 0)
        assert what in each.what
        assert path.parent.name + path.name in each.what
        assert "submit the job again" in each.advice


def test_a_value_that_no_job_names_is_counted(folder: Path) -> None:
    data = b"of nobody"
    JobStore(folder / "values").put(stored(data), [data])
    found = check(folder)
    assert (found.damage, found.orphans, found.orphan_bytes) == ([], 1, len(data))
    (folder / "values" / "ab").mkdir(exist_ok=True)
    (folder / "values" / "ab" / "cdef").symlink_to("nowhere")
    assert (check(folder).damage, check(folder).orphans) == ([], 2)


def test_a_snapshot_of_a_record_that_is_not_there_is_named(folder: Path) -> None:
    offset = snapshots.make(folder / "journal")
    snapshots.path_of(folder / "journal", offset).rename(snapshots.path_of(folder / "journal", 999))
    damage = only(folder)
    assert (damage.place, damage.offset) == ("snapshots", 999)
    assert "another journal" in damage.what


def test_a_folder_in_use_and_one_without_a_journal_are_refused(folder: Path, tmp_path: Path) -> None:
    journal = Journal.open(folder / "journal")
    with pytest.raises(Conflict, match="in use by process"):
        check(folder)
    journal.close()
    assert check(folder).damage == []
    with pytest.raises(NotFound, match="no journal in"):
        check(tmp_path / "nothing")
    (folder / "journal" / "lock").unlink()
    (folder / "journal" / "lock").mkdir()
    with pytest.raises(InvalidInput, match=r"cannot be checked:\n.*lock: Is a directory; check it as the user"):
        check(folder)


class TestCommand:
    def test_what_cannot_be_opened_is_no_damage(self, killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log = killed / "journal" / WAL_NAME
        log.unlink()
        log.mkdir()
        assert main(["fsck", str(killed), "--json"]) == 2
        said = json.loads(capsys.readouterr().out)
        assert "cannot be checked" in said["error"]["message"]
        assert [problem["place"] for problem in said["error"]["problems"]] == [str(log)]

    def test_it_says_what_is_there(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["fsck", str(folder), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["whole"], said["records"], said["damage"]) == (True, 18, [])
        folder.rename(folder.parent / "cluster")
        monkeypatch.setenv("STARLOOM_HOME", str(folder.parent))
        assert main(["fsck"]) == 0
        assert "all is whole" in capsys.readouterr().out

    def test_damage_ends_with_1_and_names_it(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        change(folder, "UPDATE facts SET crc = 1 WHERE offset = 4")
        assert main(["fsck", str(folder), "--json"]) == 1
        said = json.loads(capsys.readouterr().out)
        assert said["whole"] is False
        [damage] = said["damage"]
        assert (damage["place"], damage["number"], damage["offset"], damage["job"]) == ("journal", 4, 4, "job-0")
        assert main(["fsck", str(folder)]) == 1
        assert "journal: record 4 (offset 4): " in capsys.readouterr().out

    def test_it_refuses_while_an_orchestrator_runs(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        journal = Journal.open(folder / "journal")
        assert main(["fsck", str(folder)]) == 2
        assert "in use by process" in capsys.readouterr().err
        journal.close()
        assert main(["fsck", str(folder / "nothing")]) == 2


class TestSnapshots:
    def test_one_that_gives_what_the_records_give_is_whole(self, folder: Path) -> None:
        offset = snapshots.make(folder / "journal")
        found = check(folder)
        assert (found.damage, found.snapshots, offset) == ([], 1, 18)

    def test_one_that_is_damaged_or_tells_something_else_is_named(self, folder: Path) -> None:
        journal = folder / "journal"
        offset = snapshots.make(journal)
        path = snapshots.path_of(journal, offset)
        whole = path.read_bytes()
        flip(path, 500)
        damage = only(folder)
        assert (damage.place, damage.offset) == ("snapshots", offset)
        assert "its digest is wrong" in damage.what
        assert "delete that file" in damage.advice
        snapshot = snapshots.decode(whole)
        fewer = msgspec.structs.replace(snapshot.image, jobs=snapshot.image.jobs[:-1])
        path.write_bytes(snapshots.encode(msgspec.structs.replace(snapshot, image=fewer)))
        assert "state.jobs: " in only(folder).what

    def test_one_of_another_version_is_noted(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshots.make(folder / "journal")
        monkeypatch.setattr(snapshots, "__version__", "99.0")
        found = check(folder)
        assert (found.damage, found.snapshots) == ([], 0)
        assert "and this is 99.0" in found.notes[0]
