"""The job store: what is there is whole, what is needed stays, what is not goes."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from starloom.agents.values import digest, refer
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, NotFound, Overloaded
from starloom.dag.values import PortType, ValueRef
from starloom.orchestrator.jobstore import JobStore, Upload

DATA = bytes(range(256)) * 1000
HOUR = limits.UPLOAD_KEPT_SECONDS


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> JobStore:
    return JobStore(tmp_path / "values", clock)


def ref_of(data: bytes) -> ValueRef:
    return refer(PortType.BYTES, data, {"k": 1}, "somewhere")


def put(store: JobStore, data: bytes) -> str:
    return store.put(ref_of(data), [data]).digest


def parts(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def test_a_value_is_stored_by_its_digest_and_read_from_any_offset(store: JobStore) -> None:
    stored = store.put(ref_of(DATA), parts(DATA, 1000))
    assert stored == ValueRef(type=PortType.BYTES, bytes=len(DATA), digest=digest(DATA), meta={"k": 1}, holder="")
    assert store.read(stored.digest) == DATA
    assert store.read(stored.digest, 1000, 10) == DATA[1000:1010]
    assert store.size(stored.digest) == len(DATA)
    assert (store.folder / stored.digest[:2] / stored.digest[2:]).read_bytes() == DATA


def test_an_empty_value_is_a_value(store: JobStore) -> None:
    assert store.read(put(store, b"")) == b""


def test_putting_twice_is_putting_once(store: JobStore) -> None:
    first = put(store, DATA)
    inode = (store.folder / first[:2] / first[2:]).stat().st_ino
    assert put(store, DATA) == first
    assert (store.folder / first[:2] / first[2:]).stat().st_ino == inode


def test_a_second_put_is_verified_like_the_first(store: JobStore) -> None:
    put(store, DATA)
    with pytest.raises(DigestMismatch):
        store.put(ref_of(DATA), [DATA[:-1] + b"x"])


@pytest.mark.parametrize("sent", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x", b""])
def test_other_bytes_than_announced_leave_nothing(store: JobStore, sent: bytes) -> None:
    ref = ref_of(DATA)
    with pytest.raises(DigestMismatch, match=ref.digest[:12]):
        store.put(ref, parts(sent, 1000))
    assert not store.has(ref.digest)
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_an_upload_that_breaks_off_leaves_nothing(store: JobStore) -> None:
    with Upload(store, ref_of(DATA)) as upload:
        upload.write(DATA[:1000])
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_what_cannot_be_a_value_is_refused_before_its_bytes_come(store: JobStore) -> None:
    large = ValueRef(type=PortType.BYTES, bytes=limits.VALUE_BYTES_MAX + 1, digest=digest(b""))
    with pytest.raises(InvalidInput, match="over VALUE_BYTES_MAX"):
        Upload(store, large)
    with pytest.raises(InvalidInput, match=r"ref\.digest"):
        Upload(store, ValueRef(type=PortType.BYTES, bytes=0, digest="../../etc/passwd"))


def test_what_is_not_there_is_not_found(store: JobStore) -> None:
    with pytest.raises(NotFound, match="not in the job store"):
        store.read(digest(b"never put"))
    with pytest.raises(NotFound, match="no digest"):
        store.read("../values")
    assert store.size("../values") is None


def test_a_full_disk_is_told_before_and_while_writing(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 100, 0, 0, 10, 5, 5, 0, 255)))
        with pytest.raises(Overloaded, match="too few"):
            Upload(store, ref_of(DATA))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Overloaded, match="No space left"):
            store.put(ref_of(DATA), [DATA])
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_bytes_and_names_are_on_the_disk_before_put_returns(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    name = put(store, DATA)
    assert len(synced) == 3
    assert synced[1:] == ["values", name[:2]]


def test_an_upload_waits_an_hour_for_its_job(store: JobStore, clock: Clock) -> None:
    name = put(store, DATA)
    clock.now += HOUR - 1
    assert store.expire() == 0
    clock.now += 2
    assert store.expire() == 1
    assert not store.has(name)


def test_a_repeated_upload_waits_anew(store: JobStore, clock: Clock) -> None:
    name = put(store, DATA)
    clock.now += HOUR - 1
    put(store, DATA)
    clock.now += 2
    assert store.expire() == 0
    assert store.has(name)


def test_what_a_job_took_stays_until_it_is_dropped(store: JobStore, clock: Clock) -> None:
    name = put(store, DATA)
    store.taken([name])
    clock.now += 100 * HOUR
    assert store.expire() == 0
    assert store.has(name)
    store.drop([name])
    assert not store.has(name)
    store.drop([name])


def test_a_value_that_came_anew_for_another_job_is_not_dropped(store: JobStore) -> None:
    name = put(store, DATA)
    store.taken([name])
    put(store, DATA)
    store.drop([name])
    assert store.has(name)


def test_a_value_that_a_kept_job_names_outlives_a_second_upload_of_it(store: JobStore, clock: Clock) -> None:
    named: set[str] = set()
    store.adopt(named)
    name = put(store, DATA)
    named.add(name)
    store.taken([name])
    # The same bytes come again, for a submission that is refused.
    put(store, DATA)
    clock.now += HOUR + 1
    assert store.expire() == 0
    assert store.has(name)
    named.clear()
    store.drop([name])
    assert not store.has(name)


def test_a_value_that_another_job_took_before_it_could_be_dropped_stays(store: JobStore) -> None:
    named: set[str] = set()
    store.adopt(named)
    name = put(store, DATA)
    store.taken([name])
    # The first job is forgotten, and a second one takes the value while the deletion still waits for its thread.
    assert store.claim(name)
    named.add(name)
    store.taken([name])
    store.drop([name])
    assert store.has(name)


def test_a_claimed_value_stays_for_its_submission(store: JobStore, clock: Clock) -> None:
    name = put(store, DATA)
    clock.now += HOUR - 1
    assert store.claim(name)
    clock.now += 2
    store.expire()
    assert store.has(name)
    assert not store.claim(digest(b"never put"))


def test_a_restart_keeps_what_jobs_name_and_clears_what_had_half_arrived(store: JobStore, clock: Clock) -> None:
    kept, young, old = put(store, b"kept"), put(store, b"young"), put(store, b"old")
    for name, age in ((kept, 2 * HOUR), (old, 2 * HOUR), (young, 60)):
        os.utime(store.folder / name[:2] / name[2:], (clock.now - age, clock.now - age))
    (store.folder / "incoming" / "half").write_bytes(b"half")
    again = JobStore(store.folder, clock)
    again.adopt({kept})
    assert again.expire() == 1
    assert (again.has(kept), again.has(young), again.has(old)) == (True, True, False)
    assert list((store.folder / "incoming").iterdir()) == []


def test_many_threads_put_the_same_value(store: JobStore) -> None:
    start = threading.Barrier(8)
    found: list[str] = []

    def run() -> None:
        start.wait()
        found.append(put(store, DATA))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {digest(DATA)}
    assert store.read(found[0]) == DATA
    assert list((store.folder / "incoming").iterdir()) == []
