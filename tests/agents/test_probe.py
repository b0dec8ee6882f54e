"""What the probe finds on this machine, and under a cgroup's limits."""

import os
from pathlib import Path

import psutil

from starloom.agents.probe import LoadMeter, probe, usable_cores, usable_memory_bytes


def test_cores_are_those_that_may_be_used(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == allowed
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("99900000 100000\n")
    assert usable_cores(tmp_path) == allowed


def test_cores_of_an_older_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("25000\n")
    assert usable_cores(tmp_path) == 0.25


def test_memory_is_what_the_cgroup_leaves(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert usable_memory_bytes(tmp_path) == total
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_memory_bytes(tmp_path) == total
    (tmp_path / "memory.max").write_text("1000000\n")
    assert usable_memory_bytes(tmp_path) == 1_000_000
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{2**63}\n")
    assert usable_memory_bytes(tmp_path) == total


def test_slots_are_one_for_each_core_unless_they_are_given() -> None:
    assert probe("a", "edge", slots=7).slots == 7
    found = probe("a", "edge")
    assert found.slots == max(1, int(found.cores))


def test_load_is_measured_between_two_calls() -> None:
    meter = LoadMeter()
    first = meter.measure(1, 2, 3, 4)
    assert (first.queued, first.running, first.held_bytes, first.stale_refused) == (1, 2, 3, 4)
    assert first.cpu_fraction >= 0
    assert first.memory_bytes > 0
    assert first.file_handles > 0
