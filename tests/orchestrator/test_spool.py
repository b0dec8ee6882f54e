"""Streams on disk: read from any offset, whole after a crash, and the same for the same chunks written again."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starloom.agents.streams.records import Bound, How, RunningDigest, StreamChunk, StreamEnd
from starloom.dag import limits
from starloom.dag.errors import Conflict, InvalidInput, Overloaded, StreamGone
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId
from starloom.orchestrator import jobstore
from starloom.orchestrator.spool import Cursor, Spool, Spools

MUCH = Bound(1000, 1 << 30)
FIRST, SECOND = (FencingToken(Epoch(1), Attempt(number)) for number in (1, 2))


def chunk(offset: int, text: str = "", generation: int = 0) -> StreamChunk:
    return StreamChunk(offset, generation, (text or f"chunk {offset}").encode(), {"at": offset / 2})


def chunks(count: int, first: int = 0) -> list[StreamChunk]:
    return [chunk(offset) for offset in range(first, first + count)]


def end_of(given: list[StreamChunk], how: How = How.FINISHED) -> StreamEnd:
    digest = RunningDigest()
    for each in given:
        digest.add(each.offset, each.generation, each.data)
    return StreamEnd(how, digest.chunks, digest.bytes, digest.hex())


def read(spool: Spool, offset: int = 0, most: Bound = MUCH) -> list[StreamChunk]:
    return list(spool.read(Cursor(spool, offset), most))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAM_SEGMENT_BYTES", 200)


def test_chunks_are_read_from_any_offset(folder: Path) -> None:
    spool = Spool(folder)
    assert spool.adopt(FIRST) == 0
    assert spool.write(chunks(30)) == 30
    assert len(list(folder.iterdir())) > 3, "several segments"
    for offset in range(31):
        assert read(spool, offset) == chunks(30 - offset, offset)
    assert read(spool, 3, Bound(2, 1 << 20)) == chunks(2, 3)
    assert read(spool, 3, Bound(9, 1)) == chunks(1, 3), "at least one chunk"


def test_a_cursor_goes_on_over_what_is_written_meanwhile(folder: Path) -> None:
    spool = Spool(folder)
    cursor = Cursor(spool, 0)
    assert spool.read(cursor, MUCH) == ()
    got: list[StreamChunk] = []
    for offset in range(40):
        spool.write(chunks(1, offset))
        if offset % 3 == 0:
            got += spool.read(cursor, MUCH)
    got += spool.read(cursor, MUCH)
    assert got == chunks(40)


def test_a_spool_opened_again_is_what_it_was(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write([chunk(0), chunk(2, generation=1), chunk(5, generation=3)])
    spool.close()
    again = Spool(folder)
    assert (again.next, again.wanted, again.writer, again.generation, again.end) == (6, 6, FIRST, 3, None)
    assert again.adopt(FIRST) == 6, "the same attempt goes on where it was"
    again.write([chunk(6)])
    end = end_of([*read(again)])
    assert again.finish(end) == end
    third = Spool(folder)
    assert third.end == end == third.totals()
    assert [each.offset for each in read(third, 1)] == [2, 5, 6], "offsets may have gaps"


@given(cut=st.integers(0, 400), count=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_what_was_written_in_part_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int, count: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(count))
    spool.close()
    last = sorted(folder.iterdir())[-1]
    kept = max(0, last.stat().st_size - cut)
    with last.open("r+b") as file:
        file.truncate(kept)
    again = Spool(folder)
    assert read(again) == chunks(again.next)
    assert again.next <= count
    again.adopt(SECOND)
    assert again.write(chunks(count)) == count
    assert read(Spool(folder)) == chunks(count)


def test_a_damaged_record_ends_what_is_believed(folder: Path) -> None:
    spool = Spool(folder)
    spool.write(chunks(9))
    spool.close()
    path = sorted(folder.iterdir())[1]
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    again = Spool(folder)
    assert 0 < again.next < 9
    assert read(again) == chunks(again.next)
    assert len(list(folder.iterdir())) == 2, "what lay behind it is gone"


def test_a_rerun_that_gives_the_same_changes_nothing(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(10))
    cursor = Cursor(spool, 0)
    assert spool.read(cursor, Bound(7, 1 << 20)) == tuple(chunks(7))
    assert spool.adopt(SECOND) == 0
    assert spool.write(chunks(4)) == 4
    assert Spool(folder).wanted == 4, "how far the repetition is outlives a crash"
    assert spool.write(chunks(11, 4)) == 15
    assert spool.read(cursor, MUCH) == tuple(chunks(8, 7)), "no gap and no repeat"
    assert spool.cuts == []
    assert spool.finish(end_of(chunks(15))).chunks == 15
    assert spool.adopt(FencingToken(Epoch(2), Attempt(3))) == 0
    assert spool.write(chunks(15)) == 15
    assert spool.finish(end_of(chunks(15))) == Spool(folder).end


def test_a_rerun_that_differs_replaces_and_tells_who_has_read_further(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(20))
    spool.finish(end_of(chunks(20)))
    near, far = Cursor(spool, 0), Cursor(spool, 0)
    spool.read(near, Bound(3, 1 << 20))
    spool.read(far, Bound(9, 1 << 20))
    spool.adopt(SECOND)
    other = [*chunks(4), chunk(4, "another"), chunk(5, "others")]
    assert spool.write(other) == 6
    assert spool.end is None
    assert spool.read(near, MUCH) == tuple(other[3:])
    with pytest.raises(StreamGone, match="differently from chunk 4 on"):
        spool.read(far, MUCH)
    assert read(Spool(folder)) == other
    assert Spool(folder).end is None


def test_a_rerun_that_ends_earlier_cuts_what_is_beyond(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(20))
    spool.adopt(SECOND)
    spool.write(chunks(8))
    end = end_of(chunks(8))
    assert spool.finish(end) == end
    again = Spool(folder)
    assert (read(again), again.end) == (chunks(8), end)


def test_a_rerun_that_goes_on_beyond_the_end_has_another_end(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(5))
    spool.finish(end_of(chunks(5)))
    cursor = Cursor(spool, 0)
    spool.read(cursor, MUCH)
    spool.adopt(SECOND)
    assert spool.write(chunks(6)) == 6
    assert spool.end is None
    assert spool.read(cursor, MUCH) == tuple(chunks(1, 5)), "whoever has read all of the former one goes on"
    assert spool.finish(end_of(chunks(6))) == end_of(chunks(6))
    with pytest.raises(InvalidInput, match="comes after the end"):
        spool.write(chunks(1, 6))
    again = Spool(folder)
    assert (read(again), again.end, again.writer) == (chunks(6), end_of(chunks(6)), SECOND)


def test_a_whole_repetition_outlives_a_crash(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(10))
    spool.adopt(SECOND)
    assert spool.write(chunks(10)) == 10
    again = Spool(folder)
    assert again.adopt(SECOND) == 10, "its writer was told that it may forget them"


def test_of_two_writers_the_earlier_one_changes_nothing_once_the_other_has_begun(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(5), writer=FIRST)
    spool.adopt(SECOND)
    for late in (lambda: spool.write(chunks(1, 5), writer=FIRST), lambda: spool.finish(end_of([]), writer=FIRST)):
        with pytest.raises(Conflict, match="another one writes"):
            late()
    assert (spool.wanted, spool.cuts, read(spool)) == (0, [], chunks(5))


def test_a_disk_that_is_full_lets_no_other_writer_begin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(10))
    with monkeypatch.context() as patched:
        patched.setattr(jobstore, "_FREE_BYTES_MIN", 1 << 60)
        patched.setattr(limits, "STREAM_SEGMENT_BYTES", 1)
        with pytest.raises(Overloaded, match="bytes left"):
            spool.adopt(SECOND)
    assert (spool.writer, spool.wanted) == (FIRST, 10)
    assert spool.adopt(SECOND) == 0
    assert Spool(folder).writer == SECOND


def test_a_reader_of_more_than_there_is_now_is_given_no_end(folder: Path) -> None:
    spool = Spool(folder)
    spool.adopt(FIRST)
    spool.write(chunks(9))
    cursor = Cursor(spool, 0)
    spool.read(cursor, MUCH)
    assert spool.end_for(cursor) is None
    spool.adopt(SECOND)
    spool.write(chunks(4))
    spool.finish(end_of(chunks(4)))
    with pytest.raises(StreamGone, match="differently from chunk 4 on"):
        spool.end_for(cursor)
    assert spool.end_for(Cursor(spool, 3)) is None
    assert spool.end_for(Cursor(spool, 4)) == end_of(chunks(4))


def test_chunks_that_come_twice_are_kept_once(folder: Path) -> None:
    spool = Spool(folder)
    spool.write(chunks(5))
    assert spool.write(chunks(4, 3)) == 7
    assert read(spool) == chunks(7)


def test_what_does_not_fit_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(folder, bytes_max=300)
    spool.write(chunks(3))
    with pytest.raises(InvalidInput, match="STREAM_SPOOL_BYTES_MAX = 300"):
        spool.write([chunk(3, "x" * 300)])
    monkeypatch.setattr(limits, "STREAM_CHUNK_BYTES_MAX", 10)
    with pytest.raises(InvalidInput, match="STREAM_CHUNK_BYTES_MAX = 10; send it in parts"):
        spool.write([chunk(3, "x" * 11)])
    spool.finish(end_of(chunks(3)))
    with pytest.raises(InvalidInput, match="comes after the end, finished"):
        spool.write(chunks(1, 3))
    assert read(Spool(folder)) == chunks(3)


def test_a_full_disk_takes_no_segment_and_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(folder)
    spool.write(chunks(3))
    monkeypatch.setattr(jobstore, "_FREE_BYTES_MIN", 1 << 60)
    with pytest.raises(Overloaded, match="bytes left"):
        spool.write(chunks(10, 3))
    monkeypatch.undo()
    spool.write(chunks(7, spool.wanted))
    assert read(spool) == chunks(spool.next)
    assert read(Spool(folder)) == chunks(spool.next)


def test_what_is_durable_is_so_with_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    deep = folder / "job" / "in" / "mic"
    spool = Spool(deep)
    assert synced == [folder.parent, folder, folder / "job", folder / "job" / "in"]
    synced.clear()
    spool.write(chunks(3), sync=True)
    assert synced == [deep, deep / "00000001.seg"]
    synced.clear()
    spool.write(chunks(3, 3), sync=True)
    last = sorted(deep.iterdir())[-1]
    assert synced[-1] == last
    assert (deep in synced) == (last.name != "00000001.seg")
    synced.clear()
    spool.write(chunks(1, 6))
    assert deep / "00000001.seg" not in synced, "what can be given again is not waited for"


def test_a_stream_that_is_forgotten_while_it_is_read_says_so(tmp_path: Path) -> None:
    spools, job = Spools(tmp_path / "streams"), JobId("job-a")
    spool = spools.open(job, "in", "mic")
    spool.write(chunks(20))
    cursor = Cursor(spool, 0)
    spool.read(cursor, Bound(1, 1))
    spools.drop([job])
    with pytest.raises(StreamGone, match="its job was forgotten"):
        spool.read(cursor, MUCH)


def test_streams_of_jobs_that_are_not_kept_go(tmp_path: Path) -> None:
    spools = Spools(tmp_path / "streams")
    mine, other = JobId("job-a"), JobId("job-b")
    spools.open(mine, "in", "mic").write(chunks(2))
    spools.open(other, "out", "stage", "port").write(chunks(2))
    assert spools.there(mine, "in", "mic")
    assert not spools.there(mine, "in", "other")
    spools.drop([mine])
    assert not spools.there(mine, "in", "mic")
    assert read(spools.open(other, "out", "stage", "port")) == chunks(2)
    Spools(tmp_path / "streams").adopt({mine})
    assert not spools.there(other, "out", "stage", "port")
