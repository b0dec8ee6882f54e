"""The golden snapshot: a change of what snapshots hold is noticed, and one of another format is discarded."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from tests.orchestrator.test_golden_journal import golden_facts
from tests.orchestrator.test_snapshots import replayed
from tools.golden_snapshot import NAME, PATH, taken

from starloom.orchestrator import snapshots
from starloom.orchestrator.image import Image
from starloom.orchestrator.records import RecordReader
from starloom.orchestrator.same import difference
from starloom.orchestrator.snapshots import Snapshot

ADVICE = (
    "snapshots hold something else than before: raise FORMAT in orchestrator/snapshots.py if an earlier one would be "
    "read and mean something else, and run `python -m tools.golden_snapshot`"
)


def image_of(data: bytes) -> tuple[bytes, Image]:
    """The first line without its digest, and the image: what does not change with each version's number."""
    line, _, body = data.partition(b"\n")
    return line.rpartition(b" ")[0], msgspec.json.decode(body, type=Snapshot).image


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordReader]:
    """Of a copy of the journal, with the golden snapshot beside it, as if this version had taken it."""
    taken(tmp_path)
    golden = PATH.read_bytes()
    monkeypatch.setattr(snapshots, "__version__", msgspec.json.decode(golden.partition(b"\n")[2])["version"])
    with closing(RecordReader(tmp_path)) as found:
        snapshots.path_of(tmp_path, found.last_offset()).write_bytes(golden)
        yield found


def test_it_is_what_this_version_takes(tmp_path: Path) -> None:
    golden, now = image_of(PATH.read_bytes()), image_of(taken(tmp_path))
    if now[1].classes != golden[1].classes:
        # Classes with other fields are told by the image itself, and such a snapshot is discarded.
        pytest.skip(f"classes have other fields than in the golden snapshot; {ADVICE}")
    assert now[0] == golden[0], ADVICE
    for field in Image.__struct_fields__:
        assert getattr(now[1], field) == getattr(golden[1], field), f"{field}: {ADVICE}"


def test_a_start_beside_it_is_a_start_from_the_journal(reader: RecordReader, caplog: pytest.LogCaptureFixture) -> None:
    """It is read and gives the same, or it is discarded and the log says so; nothing in between."""
    found = snapshots.newest(reader)
    assert (found.offset == reader.last_offset()) != ("is passed over" in caplog.text)
    snapshots.replay(found, reader.replay(reader.last_offset(), found.offset))
    assert difference(found.state, replayed(golden_facts(NAME)).state) == ""


@pytest.mark.parametrize("written", [0, snapshots.FORMAT + 1])
def test_one_of_another_format_is_discarded_and_the_log_says_so(
    reader: RecordReader, written: int, caplog: pytest.LogCaptureFixture
) -> None:
    last = reader.last_offset()
    path = snapshots.path_of(reader.folder, last)
    path.write_bytes(path.read_bytes().replace(b" %d " % snapshots.FORMAT, b" %d " % written, 1))
    with caplog.at_level(logging.WARNING):
        found = snapshots.newest(reader)
    assert found.offset == 0
    [said] = [record.getMessage() for record in caplog.records]
    assert said == (
        f"the snapshot {path} is passed over, and more records are read instead: it has format {written}, and this "
        f"version reads format {snapshots.FORMAT} alone"
    )
    assert snapshots.make(reader.folder) == last
    assert snapshots.newest(reader).offset == last
