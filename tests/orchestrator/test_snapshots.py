"""Snapshots: a start from one is a start from all facts, and one that is not whole is passed over."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.orchestrator import fewkept, hangs
from tests.orchestrator.rig import SECONDS, Rig, constellation, until
from tests.orchestrator.test_fsck import change, flip
from tools.golden_journal import FOLDER, story

from starloom.agents.crashpoints import REACHED, VARIABLE, CrashPoint
from starloom.dag import limits
from starloom.dag.errors import JournalDamaged
from starloom.dag.facts import EpochStarted, Fact, JobEnded, JobSubmitted, decode_fact
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.devices.faults import ALL_FAULTS
from starloom.orchestrator import image, snapshots, snapshotting
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.image import Image, ImageError
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.placement import EarliestFinish
from starloom.orchestrator.records import FILE_NAME, RecordReader
from starloom.orchestrator.same import difference
from starloom.orchestrator.simulate.world import Setup, World
from starloom.orchestrator.snapshots import Restored, SnapshotUnusableError
from starloom.orchestrator.state import State

NOOP = "stages: {a: {kind: basic.noop}, b: {kind: basic.noop, in: {value: a.value}}}\noutputs: {v: b.value}"


def replayed(facts: Sequence[Fact], begin: Restored | None = None) -> Restored:
    found = begin or Restored(State(EarliestFinish()), KeptJobs())
    for number, fact in enumerate(facts, found.offset):
        found.kept.note(fact, number)
        found.state.apply(fact)
    found.kept.forget(found.state.jobs)
    return found


def over_a_snapshot(facts: Sequence[Fact], cut: int) -> Restored:
    before = replayed(facts[:cut])
    data = msgspec.json.encode(image.take(before.state, before.kept))
    begun = Restored(State(EarliestFinish()), KeptJobs(), cut)
    image.restore(msgspec.json.decode(data, type=Image), begun.state, begun.kept)
    return replayed(facts[cut:], begun)


def differs(one: Restored, other: Restored) -> str:
    return difference(one.state, other.state) or difference(one.kept, other.kept, "kept")


@pytest.mark.parametrize("name", [*sorted(path.stem for path in FOLDER.glob("*.jsonl")), "story"])
def test_a_golden_journal_leads_to_the_same_state_over_a_snapshot_at_any_fact(name: str) -> None:
    lines = [] if name == "story" else (FOLDER / f"{name}.jsonl").read_bytes().splitlines()
    facts = [decode_fact(line) for line in lines] or story().facts
    expected = replayed(facts)
    for cut in range(len(facts) + 1):
        assert differs(over_a_snapshot(facts, cut), expected) == "", f"cut at {cut}"


@cache
def simulated(seed: int) -> Sequence[Fact]:
    world = World(seed, Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS))
    world.run()
    return world.disk.facts()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(1, 12), cut=st.floats(0, 1))
def test_a_journal_full_of_faults_leads_to_the_same_state_over_a_snapshot(seed: int, cut: float) -> None:
    facts = simulated(seed)
    assert differs(over_a_snapshot(facts, round(cut * len(facts))), replayed(facts)) == ""


def test_a_snapshot_on_a_snapshot_is_the_same_as_one() -> None:
    """Ended jobs go from one to the next without having been looked at."""
    facts = story().facts
    half = len(facts) // 2
    begun = over_a_snapshot(facts, half)
    twice = msgspec.json.decode(msgspec.json.encode(image.take(begun.state, begun.kept)), type=Image)
    found = Restored(State(EarliestFinish()), KeptJobs(), len(facts))
    image.restore(twice, found.state, found.kept)
    assert any(type(job) is not type(next(iter(found.state.open.values()))) for job in found.state.jobs.values())
    assert differs(found, replayed(facts)) == ""


def test_what_differs_is_named() -> None:
    one, other = replayed(story().facts), replayed(story().facts)
    assert difference(one.state, other.state) == ""
    job = next(iter(other.state.jobs.values()))
    next(iter(job.stages.values())).deaths += 1
    assert difference(one.state, other.state).startswith(f"state.jobs['{job.id}'].stages[")
    other = replayed(story().facts)
    other.state.fleet.members[AgentId("new")] = next(iter(other.state.fleet.members.values()))
    assert difference(one.state, other.state).startswith("state.fleet.members: ")


def test_an_attribute_that_is_added_is_in_the_image_and_an_older_image_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = image.take(*replayed(story().facts)[:2])
    begin = KeptJobs.__init__

    def with_another(self: Any) -> None:
        begin(self)
        self.another = 1

    monkeypatch.setattr(KeptJobs, "__init__", with_another)
    with pytest.raises(ImageError, match=r"KeptJobs has other fields than when it was taken: \['another'\]"):
        image.restore(older, State(EarliestFinish()), KeptJobs())
    state, kept = State(EarliestFinish()), KeptJobs()
    vars(kept)["another"] = 7
    found = KeptJobs()
    image.restore(image.take(state, kept), State(EarliestFinish()), found)
    assert vars(found)["another"] == 7


def test_what_cannot_be_in_an_image_is_told_when_it_is_taken() -> None:
    state, kept = replayed(story().facts)[:2]
    vars(state)["loop"] = object()
    with pytest.raises(ImageError, match="no image can hold a object"):
        image.take(state, kept)
    vars(state)["loop"] = state.planner
    with pytest.raises(ImageError, match="would be in the image twice"):
        image.take(state, kept)


def test_an_image_names_none_but_starlooms_classes() -> None:
    found = image.take(*replayed(story().facts)[:2])
    wrong = msgspec.structs.replace(found, classes=[["subprocess:Popen", []], *found.classes[1:]])
    with pytest.raises(ImageError, match="Popen is none of Starloom's classes"):
        image.restore(wrong, State(EarliestFinish()), KeptJobs())
    for name, value in (
        ("classes", [["starloom.dag.gone:Thing", []]]),
        ("kept", ["_jobs", ["struct", 0, "no struct"]]),
    ):
        with pytest.raises(ImageError, match="does not fit this version"):
            image.restore(msgspec.structs.replace(found, **{name: value}), State(EarliestFinish()), KeptJobs())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal with two snapshots, and facts before, between and after these."""
    journal = Journal.open(tmp_path / "journal")
    facts = list(story().facts)
    parts = (facts[:50], facts[50:70], facts[70:])
    assert [snapshots.make(journal.folder) for part in parts[:2] if journal.append(part, 1)] == [50, 70]
    journal.append(parts[2], 1)
    journal.close()
    return tmp_path / "journal"


@pytest.fixture
def reader(folder: Path) -> Iterator[RecordReader]:
    with closing(RecordReader(folder)) as found:
        yield found


def start(reader: RecordReader) -> Restored:
    """As an orchestrator begins."""
    found = snapshots.newest(reader)
    snapshots.replay(found, reader.replay(reader.last_offset(), found.offset))
    found.kept.forget(found.state.jobs)
    return found


def test_a_start_reads_the_newest_snapshot_and_what_came_after_it(folder: Path, reader: RecordReader) -> None:
    assert snapshots.offsets(folder) == [70, 50]
    found = start(reader)
    assert found.offset == 70
    (folder / "snapshots").rename(folder / "away")
    everything = start(reader)
    assert everything.offset == 0
    assert differs(found, everything) == ""


def test_two_are_kept_and_what_a_killed_process_left_is_removed(folder: Path, reader: RecordReader) -> None:
    left = folder / "snapshots" / ".90.4711"
    left.write_bytes(b"half of")
    last = reader.last_offset()
    assert snapshots.make(folder) == last
    assert snapshots.offsets(folder) == [last, 70]
    assert not left.exists()
    assert snapshots.make(folder) == 0, "nothing new to take"
    assert snapshots.offsets(folder) == [last, 70]


@pytest.mark.parametrize(
    ("point", "made", "halves"),
    [(CrashPoint.SNAPSHOT_HALF, False, 1), (CrashPoint.SNAPSHOT_WRITTEN, True, 0)],
)
def test_a_start_is_the_same_where_the_process_was_killed_and_the_next_one_clears_up(
    folder: Path, reader: RecordReader, tmp_path: Path, point: CrashPoint, made: bool, halves: int
) -> None:
    expected, last = start(reader), reader.last_offset()
    there = [last, 70, 50] if made else [70, 50]
    points = tmp_path / "points"
    points.mkdir()
    (points / point).touch()
    command = [sys.executable, "-m", "starloom.orchestrator.snapshots", str(folder)]
    killed = subprocess.run(command, env={**os.environ, VARIABLE: str(points)}, check=False, timeout=SECONDS)
    assert (killed.returncode, [path.name for path in points.iterdir()]) == (-signal.SIGKILL, [f"{point}{REACHED}"])
    assert snapshots.offsets(folder) == there
    assert sum(half.stat().st_size > 0 for half in (folder / "snapshots").glob(".*")) == halves
    found = start(reader)
    assert (found.offset, differs(found, expected)) == (there[0], "")
    journal = Journal.open(folder)
    journal.append([EpochStarted(epoch=Epoch(99))], 1)
    journal.close()
    assert snapshots.make(folder) == last + 1
    assert snapshots.offsets(folder) == [last + 1, there[0]]
    assert not list((folder / "snapshots").glob(".*"))


def test_whoever_took_it_up_and_is_gone_gets_none(folder: Path) -> None:
    for lives in range(3):
        answers = iter([True] * lives + [False] * 9)
        assert snapshots.make(folder, answers.__next__) == 0
    assert snapshots.offsets(folder) == [70, 50]
    assert [path.name for path in (folder / "snapshots").glob(".*")] == []


def test_one_process_at_a_time_takes_one(folder: Path) -> None:
    with snapshots._alone(folder / "snapshots"):
        command = [sys.executable, "-m", "starloom.orchestrator.snapshots", str(folder)]
        other = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert (other.returncode, snapshots.offsets(folder)) == (1, [70, 50])
    assert "no snapshot was taken: another process takes a snapshot in" in other.stderr
    assert snapshots.make(folder) > 70


def test_without_room_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 10, 5, 5, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OSError, match="no room for accepted work"):
        snapshots.make(folder)
    assert snapshots.offsets(folder) == [70, 50]


def test_a_damaged_one_is_passed_over_wherever_a_byte_is_flipped(
    folder: Path, reader: RecordReader, caplog: pytest.LogCaptureFixture
) -> None:
    expected = start(reader)
    path = snapshots.path_of(folder, 70)
    whole = path.read_bytes()
    for at in (*range(0, 90, 3), *range(90, len(whole), 1_500)):
        flip(path, at)
        caplog.clear()
        found = start(reader)
        assert found.offset == 50, f"byte {at}"
        assert "snapshots/70 is passed over" in caplog.text
        assert differs(found, expected) == ""
        path.write_bytes(whole)
    path.write_bytes(whole[: len(whole) // 2])
    assert start(reader).offset == 50
    snapshots.path_of(folder, 50).write_bytes(b"")
    found = start(reader)
    assert found.offset == 0
    assert differs(found, expected) == ""


def test_damage_before_a_snapshot_does_not_hinder_a_start_and_behind_it_is_named(folder: Path) -> None:
    for offset, hinders in ((20, False), (75, True)):
        change(folder.parent, f"UPDATE facts SET crc = 1 WHERE offset = {offset}")
        with closing(RecordReader(folder)) as reader:
            if hinders:
                with pytest.raises(JournalDamaged, match="record 75 is not as it was"):
                    start(reader)
            else:
                assert start(reader).offset == 70
    shutil.rmtree(folder / "snapshots")
    with closing(RecordReader(folder)) as reader, pytest.raises(JournalDamaged, match="record 20 is not as it was"):
        start(reader)


def test_a_record_that_is_missing_behind_a_snapshot_is_named(folder: Path) -> None:
    change(folder.parent, "DELETE FROM facts WHERE offset = 80")
    with closing(RecordReader(folder)) as reader, pytest.raises(JournalDamaged, match="record 80 is missing"):
        start(reader)


def test_one_of_another_version_or_another_journal_is_passed_over(
    folder: Path, reader: RecordReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Journal.open(tmp_path / "other")
    other.append([EpochStarted(epoch=Epoch(number)) for number in range(1, 90)], 1)
    other.close()
    shutil.copytree(folder / "snapshots", tmp_path / "other" / "snapshots")
    with closing(RecordReader(tmp_path / "other")) as of_other:
        with pytest.raises(SnapshotUnusableError, match="another journal"):
            snapshots.load(of_other, 70)
        assert snapshots.newest(of_other).offset == 0
    shutil.copy(snapshots.path_of(folder, 70), snapshots.path_of(folder, 999))
    with pytest.raises(SnapshotUnusableError, match="another journal"):
        snapshots.load(reader, 999)
    monkeypatch.setattr(snapshots, "__version__", "99.0")
    with pytest.raises(SnapshotUnusableError, match="and this is 99"):
        snapshots.load(reader, 70)
    assert snapshots.newest(reader).offset == 0


def test_the_process_takes_one_beside_a_writer(folder: Path) -> None:
    journal = Journal.open(folder)
    journal.append([EpochStarted(epoch=Epoch(99))], 1)
    command = [sys.executable, "-m", "starloom.orchestrator.snapshots", str(folder)]
    subprocess.run(command, check=True, timeout=SECONDS)
    assert snapshots.offsets(folder) == [journal.last_offset, 70]
    journal.close()
    journal = Journal.open(folder)
    journal.append([EpochStarted(epoch=Epoch(100))], 1)
    subprocess.run([*command, "1"], check=True, timeout=SECONDS)
    assert snapshots.offsets(folder) == [journal.last_offset - 1, 70], (
        "whoever asked for it, process 1, is not its parent"
    )
    journal.close()
    (folder / FILE_NAME).write_bytes(b"no database at all" * 300)
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert failed.returncode == 1
    assert "no snapshot was taken: the journal in" in failed.stderr


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(limits, "SNAPSHOT_FACTS", 20)
    monkeypatch.setattr(limits, "SNAPSHOT_PAUSES", 0.0)
    async with Rig(tmp_path) as found:
        await found.agent("n0")
        yield found


async def until_taken(rig: Rig, after: int = 0) -> int:
    """Once there is a snapshot of a later offset."""

    async def taken() -> bool:
        await asyncio.sleep(0.01)
        return max(snapshots.offsets(rig.folder / "journal"), default=0) > after

    await until(taken)
    return snapshots.offsets(rig.folder / "journal")[0]


async def test_an_orchestrator_takes_them_and_begins_with_the_last(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = await rig.client()
    waiting = await client.submit(constellation("stages: {g: {kind: test.gate}}\noutputs: {v: g.value}"))
    await rig.gate.until_arrived(1)
    ended = [await client.submit(constellation(NOOP)) for _ in range(6)]
    for job in ended:
        await job.result(timeout=SECONDS)
    first = await until_taken(rig)
    for _ in range(6):
        await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)
    await until_taken(rig, first)
    began: list[int] = []
    replay = Journal.replay

    def noted(journal: Journal, after: int = 0) -> Any:
        began.append(after)
        return replay(journal, after)

    monkeypatch.setattr(Journal, "replay", noted)
    await rig.restart()
    assert began[0] >= first
    assert "passed over" not in caplog.text
    assert {job.status for job in await client.jobs(100)} == {"running", "succeeded"}
    for job in ended:
        info = await job.status()
        assert [stage.status for stage in info.stages] == ["succeeded", "succeeded"]
        assert info.ended_unix_nanos
    events = [event async for event in ended[0].events()]
    assert (type(events[0].fact), type(events[-1].fact)) == (JobSubmitted, JobEnded)
    rig.gate.open()
    assert await waiting.result(timeout=SECONDS) == {"v": None}


async def test_records_of_dropped_jobs_stay_while_a_snapshot_knows_the_jobs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FINISHED_JOBS_KEPT", fewkept.KEPT)
    monkeypatch.setattr(snapshotting, "_MODULE", fewkept.__name__)
    monkeypatch.setattr(limits, "JOBS_DROPPED_TOGETHER", 1)
    monkeypatch.setattr(limits, "SNAPSHOT_FACTS", 5)
    client = await rig.client()
    first = await client.submit(constellation(NOOP))
    await first.result(timeout=SECONDS)
    offset, journal = await until_taken(rig), rig.folder / "journal"
    while first.id in known(rig):
        await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)
        oldest = snapshots.offsets(journal)[-1]
        with closing(RecordReader(journal)) as reader, suppress(OSError):
            of_snapshot = snapshots.load(reader, oldest).state.jobs.keys()
            assert of_snapshot <= known(rig) or oldest not in snapshots.offsets(journal)
    assert snapshots.offsets(journal)[-1] > offset
    await rig.restart()
    await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)


async def test_a_start_keeps_the_records_that_a_snapshot_needs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FINISHED_JOBS_KEPT", fewkept.KEPT)
    monkeypatch.setattr(snapshotting, "_MODULE", fewkept.__name__)
    client = await rig.client()
    for _ in range(4):
        await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)
    await until_taken(rig)
    monkeypatch.setattr(limits, "SNAPSHOT_FACTS", 10_000)
    for _ in range(2 * fewkept.KEPT):
        await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)
    # What a start deletes, the one after it would miss.
    await rig.restart()
    await rig.restart()
    await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)


def known(rig: Rig) -> set[JobId]:
    with closing(RecordReader(rig.folder / "journal")) as reader:
        return set(reader.jobs())


async def test_one_that_cannot_be_taken_hinders_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    (rig.folder / "journal" / "snapshots").write_text("a file where the folder is to be")
    client = await rig.client()
    for _ in range(6):
        await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)

    async def told() -> bool:
        await asyncio.sleep(0.01)
        return "no snapshot was taken" in caplog.text

    await until(told)
    await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)


async def test_one_that_hangs_is_ended_and_another_is_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_SECONDS_MAX", 0.1)
    monkeypatch.setattr(limits, "SNAPSHOT_RETRY_SECONDS", 0.0)
    with monkeypatch.context() as hanging:
        hanging.setattr(snapshotting, "_MODULE", hangs.__name__)
        client = await rig.client()
        for _ in range(4):
            await (await client.submit(constellation(NOOP))).result(timeout=SECONDS)

        async def told() -> bool:
            await asyncio.sleep(0.01)
            return "was not done within SNAPSHOT_SECONDS_MAX = 0.1" in caplog.text

        await until(told)
    monkeypatch.setattr(limits, "SNAPSHOT_SECONDS_MAX", SECONDS)
    await until_taken(rig)


def test_a_coordinator_that_adopted_a_state_goes_on_with_it() -> None:
    found = replayed(story().facts)
    coordinator = Coordinator(Epoch(1_000))
    coordinator.adopt(found.state)
    whole = Coordinator(Epoch(1_000))
    whole.replay(story().facts)
    one, other = coordinator.boot(1), whole.boot(1)
    assert (one.facts, one.commands) == (other.facts, other.commands)
