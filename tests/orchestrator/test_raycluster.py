"""Ray as it is started here, in a process of its own: one process holds one Ray."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from starloom.dag import limits
from starloom.orchestrator.raycluster import patient_start, settings, tunables

# A wait of no seconds is how a stalled machine looks to Ray: its first process does not answer in time.
STALLED = """
import os, sys
from pathlib import Path
# Ray asks for it when it is first imported.
os.environ["RAY_AUTH_MODE"] = "token"
import psutil, ray
from starloom.dag.errors import Unavailable
from starloom.orchestrator.raycluster import RayCluster

real, folders = ray.init, []
def init(**options):
    folders.append(options["_temp_dir"])
    print(os.environ["RAY_gcs_server_port_wait_time_s"])
    if len(folders) <= int(sys.argv[2]):
        os.environ["RAY_gcs_server_port_wait_time_s"] = "0"
    return real(**options)
ray.init = init
cluster = RayCluster(("a",), Path(sys.argv[1]))
try:
    cluster.start()
    print("Ray started")
    cluster.stop()
except Unavailable as error:
    print(str(error).partition("file")[0])
left = [child.name() for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
print(left, [folder for folder in folders if os.path.exists(folder)])
"""


def test_large_copies_go_past_the_caches_unless_the_user_said_something_else() -> None:
    ours = f"glibc.cpu.x86_non_temporal_threshold={limits.COPY_PAST_CACHES_BYTES_MIN}"
    assert tunables("") == ours
    assert tunables(ours) == ours
    assert tunables("glibc.malloc.arena_max=2") == f"glibc.malloc.arena_max=2:{ours}"
    assert tunables("glibc.cpu.x86_non_temporal_threshold=0x4040") == "glibc.cpu.x86_non_temporal_threshold=0x4040"


@pytest.mark.parametrize(("given", "taken"), [(None, "0"), ("15", "15"), ("0", "0")])
def test_agents_have_the_niceness_of_others_unless_the_user_said_something_else(
    given: str | None, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_worker_niceness", given)
    assert settings(tmp_path)["RAY_worker_niceness"] == taken


def test_a_node_that_is_slow_to_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    services: Any = importlib.import_module("ray._private.services")
    asked: list[object] = []

    def slow(*args: object) -> str:
        asked.append(args)
        if len(asked) < 3:
            raise RuntimeError("no such node yet")
        return "the node"

    monkeypatch.setattr(services, "get_node", slow)
    with patient_start():
        assert services.get_node("address", "node") == "the node"
    assert asked == [("address", "node")] * 3
    assert services.get_node is slow


def test_a_node_that_never_comes_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    services: Any = importlib.import_module("ray._private.services")

    def never(*_: object) -> None:
        raise RuntimeError("no such node")

    monkeypatch.setattr(services, "get_node", never)
    monkeypatch.setattr(limits, "RAY_PORT_SECONDS", 0)
    with patient_start(), pytest.raises(RuntimeError, match="no such node"):
        services.get_node("address", "node")


@pytest.mark.ray
@pytest.mark.slow
def test_a_start_that_fails_twice_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    assert stalled(tmp_path, 2) == ["60", "60", "Ray did not start: Timed out waiting for ", "[] []"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_start_that_fails_once_is_begun_again(tmp_path: Path) -> None:
    assert stalled(tmp_path, 1) == ["60", "60", "Ray started", "[] []"]


def stalled(folder: Path, times: int) -> list[str]:
    """What a process prints whose first so many starts of Ray stall."""
    command = [sys.executable, "-c", STALLED, str(folder), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return done.stdout.splitlines()
