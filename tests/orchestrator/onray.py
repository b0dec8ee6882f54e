"""A whole cluster on Ray, shared by the tests that need one; and what looks after the processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from starloom.dag.constellation import Constellation
from starloom.dag.document import load
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT

SECONDS = 60
MARK = "STARLOOM_TEST_MARK"


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """The default cluster, one for all tests; at the end nothing of it may be left."""
    before = running_children()
    with EmbeddedCluster(DEFAULT, tmp_path_factory.mktemp("embedded") / "cluster") as cluster:
        yield cluster
    assert running_children() <= before


def running_children() -> set[int]:
    """The ids of all processes below this one, but for those that have ended and wait to be collected.

    Python's resource tracker, which tests with processes of their own start, ends with this process.
    """
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if alive(child) and not is_tracker(child)}


def is_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(holds: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Waits until something is true, and returns it; other processes give no event to wait for."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return found


def marked(mark: str) -> list[psutil.Process]:
    """The processes that run with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class CommandLine:
    """`starloom` with a home of its own; every process it starts carries a mark, also when it is left behind."""

    def __init__(self, home: Path) -> None:
        self.mark = uuid4().hex
        self.folder = home / "starloom" / "cluster"
        # The model store stays the user's, so STARLOOM_HOME is not the way.
        self._environment = {**os.environ, "XDG_STATE_HOME": str(home), MARK: self.mark}
        for name in ("STARLOOM_HOME", "STARLOOM_ADDRESS", "STARLOOM_TOKEN"):
            self._environment.pop(name, None)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "starloom.orchestrator.cli.main", *arguments],
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate()
            return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    @property
    def processes(self) -> list[psutil.Process]:
        return marked(self.mark)


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path)
    yield made
    left = made.processes
    for process in left:
        process.kill()
    assert left == []


def sleeper(seconds: float, **require: Any) -> Constellation:
    """One stage that waits, placed by `require`."""
    document = {
        "api_version": "starloom/v1",
        "name": "sleeper",
        "inputs": {"value": {"type": "json"}},
        "stages": {
            "wait": {
                "kind": "basic.sleep",
                "in": {"value": "$value"},
                "params": {"seconds": seconds},
                "require": require,
            }
        },
        "outputs": {"value": "wait.value"},
    }
    return load(json.dumps(document))
