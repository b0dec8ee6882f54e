"""Shared memory: what the allocator promises, and what owners, readers and their deaths do to what is read."""

import gc
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from starloom.agents import arena, sharedmemory, values
from starloom.agents.arena import ALIGNMENT_BYTES, VALUES_AT, Allocator, Entry, aligned
from starloom.agents.neighbours import Neighbour
from starloom.agents.sharedmemory import Arena, open_arena, sweep
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Unavailable
from starloom.dag.ids import JobId
from starloom.dag.values import PortType

JOB = JobId("j")
SIZE = limits.AGENT_ARENA_VALUE_BYTES_MIN
LIMIT = VALUES_AT + 16 * SIZE

STEPS = st.lists(st.one_of(st.integers(1, 3_000), st.integers(-20, -1)), max_size=80)


@given(steps=STEPS, grown=st.integers(1, 200))
def test_allocator_gives_out_no_byte_twice_and_all_of_them_again(steps: list[int], grown: int) -> None:
    room = grown * ALIGNMENT_BYTES
    allocator = Allocator(VALUES_AT)
    allocator.grow(room)
    held: list[tuple[int, int]] = []
    for step in steps:
        if step < 0:
            if held:
                allocator.free(held.pop(step % len(held))[0])
            continue
        start = allocator.allocate(step)
        if start is None:
            # First fit fails only where no hole is large enough.
            assert all(size < aligned(step) for _, size in allocator.holes)
            continue
        held.append((start, aligned(step)))
        spans = sorted([*held, *allocator.holes])
        assert all(begin % ALIGNMENT_BYTES == 0 for begin, _ in spans)
        # Held spans and holes tile the room, so none overlap; and no two holes touch, so there are few of them.
        assert [begin + size for begin, size in spans[:-1]] == [begin for begin, _ in spans[1:]]
        assert sum(size for _, size in spans) == room
        assert len(allocator.holes) <= len(held) + 1
        assert allocator.used_bytes == sum(size for _, size in held)
    for start, _ in held:
        allocator.free(start)
    assert allocator.holes == [(VALUES_AT, room)]
    with pytest.raises(ValueError, match="nothing was given out"):
        allocator.free(VALUES_AT)


@given(size=st.integers(1, 10_000), used=st.lists(st.integers(1, 500), max_size=5))
def test_growing_by_what_is_missing_makes_room(size: int, used: list[int]) -> None:
    allocator = Allocator(0)
    for each in used:
        allocator.grow(allocator.missing(each))
        assert allocator.allocate(each) is not None
    allocator.grow(allocator.missing(size))
    assert allocator.allocate(size) is not None


@given(start=st.integers(0, 2**64 - 1), size=st.integers(0, 2**64 - 1))
@settings(max_examples=200)
def test_entries_outside_of_the_values_are_refused(start: int, size: int) -> None:
    entry = Entry(b"k" * 32, 1, start, size)
    inside = start >= VALUES_AT and start % ALIGNMENT_BYTES == 0 and start + size <= LIMIT
    if inside:
        assert arena.unpack(arena.pack(entry), LIMIT) == entry
    else:
        with pytest.raises(InvalidInput, match="outside of the values"):
            arena.unpack(arena.pack(entry), LIMIT)


@given(flipped=st.integers(0, 8 * arena.ENTRY_BYTES - 1))
def test_entry_with_any_bit_flipped_is_refused(flipped: int) -> None:
    data = bytearray(arena.pack(Entry(b"k" * 32, 7, VALUES_AT, 64)))
    data[flipped // 8] ^= 1 << flipped % 8
    with pytest.raises(DigestMismatch):
        arena.unpack(bytes(data), LIMIT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in shared memory would show no more: the kernel's locks and maps are the same for every file."""
    return tmp_path


@pytest.fixture
def own(folder: Path) -> Iterator[Arena]:
    made = open_arena(LIMIT, folder)
    assert made is not None
    yield made
    made.close()


def neighbour(own: Arena) -> Neighbour:
    return Neighbour(own.name, own.nonce, own.path.parent)


def filled(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def put(own: Arena, array: NDArray[np.uint8], job: JobId = JOB) -> tuple[str, memoryview]:
    """Writes a value and lists it; its digest and its bytes."""
    data, _ = values.encode_into(own, PortType.TENSOR, array, "value")
    assert isinstance(data, memoryview)
    digest = values.digest(data)
    own.add(job, digest, data)
    return digest, data


def test_neighbour_reads_what_was_written_without_a_copy(own: Arena) -> None:
    array = filled(1)
    digest, data = put(own, array)
    reader = neighbour(own)
    found = reader.read(JOB, digest, SIZE)
    assert found is not None
    assert bytes(found) == array.tobytes() == bytes(data)
    view = values.decode(PortType.TENSOR, found, {"dtype": "uint8", "shape": [SIZE]})
    assert np.shares_memory(view, np.frombuffer(found, np.uint8))


def test_views_cannot_be_written_to(own: Arena) -> None:
    digest, data = put(own, filled(1))
    found = neighbour(own).read(JOB, digest, SIZE)
    assert found is not None
    for each in (data, found):
        view = values.decode(PortType.TENSOR, each, {"dtype": "uint8", "shape": [SIZE]})
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(TypeError, match="read-only"):
            each[0] = 1


def test_only_the_job_that_has_a_value_finds_it(own: Arena) -> None:
    digest, _ = put(own, filled(1))
    reader = neighbour(own)
    assert reader.read(JobId("k"), digest, SIZE) is None
    assert reader.read(JOB, values.digest(b""), SIZE) is None
    assert reader.read(JOB, digest, SIZE - 1) is None


def test_strided_and_foreign_arrays_are_written_by_one_copy(own: Arena) -> None:
    array = np.arange(4 * SIZE, dtype=">i4").reshape(2, -1)[:, ::2]
    data, meta = values.encode_into(own, PortType.TENSOR, array, "value")
    assert isinstance(data, memoryview)
    assert np.array_equal(values.decode(PortType.TENSOR, data, meta), array)
    assert (bytes(data), meta) == values.encode(PortType.TENSOR, array)


def test_small_values_and_those_that_do_not_fit_go_to_the_heap(own: Arena) -> None:
    for size in (SIZE - 1, LIMIT):
        data, _ = values.encode_into(own, PortType.BYTES, bytes(size), "value")
        assert isinstance(data, bytes)
    held = [put(own, filled(n)) for n in range(16)]
    data, _ = values.encode_into(own, PortType.BYTES, bytes(SIZE), "value")
    assert isinstance(data, bytes)
    del held[3]
    data, _ = values.encode_into(own, PortType.BYTES, bytes(SIZE), "value")
    assert isinstance(data, memoryview)


@pytest.mark.parametrize("size", [1, 4095, 4097])
def test_value_of_any_size_finds_room_beyond_the_first_step(folder: Path, size: int) -> None:
    own = open_arena(VALUES_AT + 4 * limits.AGENT_ARENA_STEP_BYTES, folder)
    assert own is not None
    array = filled(1, limits.AGENT_ARENA_STEP_BYTES + size)
    digest, _ = put(own, array)
    found = neighbour(own).read(JOB, digest, len(array))
    assert found is not None
    assert bytes(found) == array.tobytes()
    own.close()


def test_memory_is_used_again_once_nobody_has_a_view(own: Arena) -> None:
    digest, data = put(own, filled(1))
    view = values.decode(PortType.TENSOR, data, {"dtype": "uint8", "shape": [SIZE]})[5:]
    first = own.used_bytes
    own.remove(JOB, digest)
    del data
    gc.collect()
    assert own.used_bytes == first == SIZE
    assert bytes(view) == filled(1)[5:].tobytes()
    del view
    assert own.used_bytes == 0


def test_memory_that_a_neighbour_reads_is_not_used_again(own: Arena) -> None:
    digest, data = put(own, filled(1))
    reader = neighbour(own)
    found, twice = reader.read(JOB, digest, SIZE), reader.read(JOB, digest, SIZE)
    own.remove(JOB, digest)
    del data
    assert reader.read(JOB, digest, SIZE) is None
    others = [put(own, filled(n)) for n in range(2, 17)]
    assert isinstance(values.encode_into(own, PortType.BYTES, bytes(SIZE), "value")[0], bytes)
    assert found is not None
    assert bytes(found) == filled(1).tobytes()
    del found
    assert own.used_bytes == 16 * SIZE
    del twice
    assert own.used_bytes == 15 * SIZE
    del others


def test_neighbour_that_is_let_go_keeps_what_was_read_by_it(own: Arena) -> None:
    digest, data = put(own, filled(1))
    found = neighbour(own).read(JOB, digest, SIZE)
    own.remove(JOB, digest)
    del data
    gc.collect()
    assert own.used_bytes == SIZE
    del found
    gc.collect()
    assert own.used_bytes == 0


def test_index_that_is_full_lists_no_more(own: Arena) -> None:
    digest, data = put(own, filled(1))
    for n in range(limits.AGENT_ARENA_VALUES_MAX):
        own.add(JobId(f"k{n}"), digest, data)
    last = JobId(f"k{limits.AGENT_ARENA_VALUES_MAX - 1}")
    reader = neighbour(own)
    assert reader.read(last, digest, SIZE) is None
    own.remove(JOB, digest)
    own.add(last, digest, data)
    assert reader.read(last, digest, SIZE) is not None


def test_malformed_entry_is_refused(own: Arena) -> None:
    digest, _ = put(own, filled(1))
    beyond = arena.pack(Entry(arena.key_of(JOB, digest), 9, own.size - 64, SIZE))
    own._map[arena.HEAD_BYTES : arena.HEAD_BYTES + arena.ENTRY_BYTES] = beyond
    reader = neighbour(own)
    with pytest.raises(InvalidInput, match="outside of the values"):
        reader.read(JOB, digest, SIZE)
    own._map[arena.HEAD_BYTES + 40 : arena.HEAD_BYTES + 48] = struct.pack("<Q", VALUES_AT)
    with pytest.raises(DigestMismatch):
        reader.read(JOB, digest, SIZE)


def test_other_file_than_was_told_of_is_not_opened(own: Arena, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, nonce in [
        (own.name, bytes(32)),
        (own.name, b""),
        ("../" + own.name, own.nonce),
        ("starloom-arena-" + "0" * 32, own.nonce),
    ]:
        with pytest.raises(Unavailable):
            Neighbour(name, nonce, folder)
    link = "starloom-arena-" + "1" * 32
    (folder / link).symlink_to(own.path)
    with pytest.raises(Unavailable):
        Neighbour(link, own.nonce, folder)
    assert own.path.stat().st_mode & 0o777 == 0o600
    own.path.chmod(0o640)
    with pytest.raises(Unavailable, match="open to others"):
        neighbour(own)


def test_file_that_shrank_is_not_read(own: Arena) -> None:
    digest, _ = put(own, filled(1))
    reader = neighbour(own)
    os.ftruncate(own._file, own.size - 4096)
    assert reader.read(JOB, digest, SIZE) is None
    os.ftruncate(own._file, own.size)


def test_full_disk_falls_back_to_the_heap(own: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[str, memoryview]] = []
    while own.reserved_bytes < own.size:
        held.append(put(own, filled(len(held))))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    small = open_arena(LIMIT, own.path.parent)
    assert small is not None
    monkeypatch.setattr(os, "posix_fallocate", full)
    small._allocator.allocate(small._allocator.end - VALUES_AT)
    assert isinstance(values.encode_into(small, PortType.BYTES, bytes(SIZE), "value")[0], bytes)
    small.close()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    assert open_arena(LIMIT, own.path.parent) is None


OWNER = """
import sys
from pathlib import Path
import numpy as np
from starloom.agents import values
from starloom.agents.sharedmemory import open_arena
from starloom.dag.values import PortType
own = open_arena(int(sys.argv[2]), Path(sys.argv[1]))
data, _ = values.encode_into(own, PortType.TENSOR, np.full(int(sys.argv[3]), 7, np.uint8), "value")
digest = values.digest(data)
own.add("j", digest, data)
print(own.name, own.nonce.hex(), digest, flush=True)
sys.stdin.read()
"""
READER = """
import sys
from pathlib import Path
from starloom.agents.neighbours import Neighbour
folder, name, nonce, digest, size = sys.argv[1:]
found = Neighbour(name, bytes.fromhex(nonce), Path(folder)).read("j", digest, int(size))
print(bytes(found[:1]).hex(), flush=True)
sys.stdin.read()
"""


def started(script: str, *args: object) -> tuple[subprocess.Popen[str], str]:
    """A process, and the line that it says once it is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_reader_that_dies_gives_back_what_it_read(own: Arena, folder: Path) -> None:
    digest, data = put(own, np.full(SIZE, 7, np.uint8))
    process, said = started(READER, folder, own.name, own.nonce.hex(), digest, SIZE)
    try:
        assert said == "07"
        own.remove(JOB, digest)
        del data
        assert own.used_bytes == SIZE
    finally:
        killed(process)
    assert own.used_bytes == 0


def test_what_a_dead_agent_left_is_removed_and_its_readers_are_safe(folder: Path) -> None:
    process, said = started(OWNER, folder, LIMIT, SIZE)
    try:
        name, nonce, digest = said.split()
        reader = Neighbour(name, bytes.fromhex(nonce), folder)
        found = reader.read(JOB, digest, SIZE)
        assert sweep(folder) == 0
        assert not reader.orphaned()
    finally:
        killed(process)
    assert reader.orphaned()
    # The next agent's start removes it.
    own = open_arena(LIMIT, folder)
    assert own is not None
    assert [path.name for path in folder.iterdir()] == [own.name]
    assert found is not None
    assert bytes(found) == b"\7" * SIZE
    # And what is still mapped can be read further, though nobody else can find it any more.
    assert reader.read(JOB, digest, SIZE) is not None
    with pytest.raises(Unavailable):
        Neighbour(name, bytes.fromhex(nonce), folder)
    own.close()
    assert list(folder.iterdir()) == []


def test_machine_without_shared_memory_has_no_arena(folder: Path) -> None:
    assert open_arena(LIMIT, folder / "none") is None
    assert open_arena(0, folder) is None
    assert sweep(folder / "none") == 0
    assert sharedmemory.boot_id()
