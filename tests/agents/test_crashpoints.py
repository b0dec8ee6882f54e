"""Crash points: a process dies at the one that is armed, once, and nowhere else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from starloom.agents.crashpoints import ON, REACHED, VARIABLE, CrashPoint

SOURCES = Path(__file__).parents[2] / "src" / "starloom"
PASSES = """
from starloom.agents.crashpoints import CrashPoint, reach
for point in CrashPoint:
    reach(point)
    print(point, flush=True)
"""


def passing(**environment: str) -> subprocess.CompletedProcess[str]:
    """A process that comes by all points."""
    command = [sys.executable, "-c", PASSES]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("point", [CrashPoint.BOOTED, CrashPoint.REPORTED])
def test_the_first_process_that_comes_to_an_armed_point_dies_there_and_the_next_one_passes(
    tmp_path: Path, point: CrashPoint
) -> None:
    (tmp_path / point).touch()
    first = passing(**{VARIABLE: str(tmp_path)})
    points = list(CrashPoint)
    assert first.returncode == -signal.SIGKILL
    assert first.stdout.split() == points[: points.index(point)]
    assert [path.name for path in tmp_path.iterdir()] == [f"{point}{REACHED}"]
    second = passing(**{VARIABLE: str(tmp_path)})
    assert (second.returncode, second.stdout.split()) == (0, points)


def test_without_the_variable_no_file_ends_a_process(tmp_path: Path) -> None:
    for point in CrashPoint:
        (tmp_path / point).touch()
    done = subprocess.run(
        [sys.executable, "-c", PASSES], cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == list(CrashPoint)
    assert len(list(tmp_path.iterdir())) == len(CrashPoint)


def test_a_variable_that_names_no_folder_ends_no_process(tmp_path: Path) -> None:
    (tmp_path / CrashPoint.BOOTED).touch()
    for folder in ("", str(tmp_path / CrashPoint.BOOTED), str(tmp_path / "nowhere")):
        environment = {**os.environ, VARIABLE: folder}
        command = [sys.executable, "-c", PASSES]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.split()) == (0, list(CrashPoint))


def test_they_are_off_here_and_each_is_passed_somewhere() -> None:
    assert not ON
    code = "\n".join(path.read_text("utf-8") for path in SOURCES.rglob("*.py"))
    assert [point for point in CrashPoint if f"reach(CrashPoint.{point.name})" not in code] == []
