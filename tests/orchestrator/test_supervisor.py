"""The supervisor, with a stand-in for the orchestrator's process."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from starloom.dag.errors import Unavailable
from starloom.orchestrator.supervisor import LOG_NAME, Patience, Serving, Supervisor

STAND_IN = """
import argparse, json, os, pathlib, signal, socket, sys
parser = argparse.ArgumentParser()
for name in ("--folder", "--token-file"):
    parser.add_argument(name, type=pathlib.Path)
for name in ("--port", "--ready-fd", "--parent-fd"):
    parser.add_argument(name, type=int)
given = parser.parse_args()
mode = os.environ.get("STAND_IN_MODE", "")
starts = given.folder / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if mode == "never" or (mode == "once" and starts.read_text() != "x"):
    sys.exit("the journal is damaged: record 7")
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "mute":
    signal.pause()
server = socket.create_server(("127.0.0.1", given.port))
address = "127.0.0.1:%d" % server.getsockname()[1]
assert given.token_file.read_text() == "secret"
(given.folder / "orchestrator.json").write_text(json.dumps({"address": address, "pid": os.getpid(), "epoch": 1}))
os.write(given.ready_fd, b"x")
if mode == "fenced":
    server.accept()
    print("the journal has epoch 2", file=sys.stderr)
    sys.exit(4)
while True:
    server.accept()[0].sendall(b"%d" % os.getpid())
"""
HOLDER = """
import sys
from pathlib import Path
from starloom.orchestrator.supervisor import Supervisor
folder = Path(sys.argv[1])
supervisor = Supervisor(folder, folder / "token", folder)
supervisor.start()
print(supervisor.wait_ready().pid, flush=True)
supervisor.ended.wait()
"""
PATIENCE = Patience(quick_deaths=3, quick_death=60.0, ready=60.0, first_pause=0.001, last_pause=0.002)


class Started:
    """A supervisor over the stand-in, and what it said of serving."""

    def __init__(self, folder: Path, patience: Patience = PATIENCE) -> None:
        (folder / "token").write_text("secret")
        self.served: Queue[Serving] = Queue()
        self.supervisor = Supervisor(
            folder,
            folder / "token",
            folder,
            on_serving=self.served.put,
            command=(sys.executable, "-c", STAND_IN),
            patience=patience,
        )
        self.supervisor.start()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    made = Started(tmp_path)
    yield made
    made.supervisor.stop()


def answer(serving: Serving) -> int:
    host, _, port = serving.address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        return int(connection.recv(20))


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_orchestrator_serves_again_on_the_same_address(started: Started) -> None:
    first = started.supervisor.wait_ready()
    assert started.served.get() == first
    assert answer(first) == first.pid

    os.kill(first.pid, signal.SIGKILL)
    second = started.served.get()
    assert second.address == first.address
    assert second.pid != first.pid
    assert answer(second) == second.pid
    assert started.supervisor.restarts == 1


def test_stop_leaves_no_process_and_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    supervisor = Started(tmp_path).supervisor
    serving = supervisor.wait_ready()
    supervisor.stop()
    supervisor.stop()
    assert not is_there(serving.pid)
    assert supervisor.failure == ""
    assert len(os.listdir("/proc/self/fd")) == before


def test_stop_kills_a_child_that_ignores_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "stubborn")
    supervisor = Started(tmp_path).supervisor
    serving = supervisor.wait_ready()
    supervisor.stop(grace_seconds=0.01)
    assert not is_there(serving.pid)


def test_the_orchestrator_ends_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        orchestrator = os.pidfd_open(pid)
        holder.kill()
    assert select.select([orchestrator], [], [], 60)[0], "the orchestrator goes on"
    os.close(orchestrator)


def test_stop_before_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "mute")
    supervisor = Started(tmp_path).supervisor
    supervisor.stop()
    with pytest.raises(Unavailable, match="stopped before it served"):
        supervisor.wait_ready()


def test_a_first_start_that_fails_is_told_with_the_log_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "never")
    (tmp_path / LOG_NAME).write_text("of an earlier cluster\n")
    supervisor = Started(tmp_path).supervisor
    with pytest.raises(Unavailable, match=r"did not start: it ended with status 1; (.*\n)+.*record 7") as raised:
        supervisor.wait_ready()
    assert "earlier" not in str(raised.value)
    assert (tmp_path / "starts").read_text() == "x"
    supervisor.stop()


def test_restarting_is_given_up_after_quick_deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "once")
    supervisor = Started(tmp_path).supervisor
    os.kill(supervisor.wait_ready().pid, signal.SIGKILL)
    assert supervisor.ended.wait(60)
    assert "QUICK_DEATHS_MAX = 3" in supervisor.failure
    assert "record 7" in supervisor.failure
    assert (tmp_path / "starts").read_text() == "xxxx"
    assert supervisor.serving is None
    supervisor.stop()


def test_a_child_that_was_replaced_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "fenced")
    supervisor = Started(tmp_path).supervisor
    host, _, port = supervisor.wait_ready().address.rpartition(":")
    socket.create_connection((host, int(port))).close()
    assert supervisor.ended.wait(60)
    assert supervisor.failure.startswith("another orchestrator took over")
    assert "the journal has epoch 2" in supervisor.failure
    assert (tmp_path / "starts").read_text() == "x"
    supervisor.stop()


def test_a_child_that_never_serves_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "mute")
    supervisor = Started(tmp_path, PATIENCE._replace(ready=0.05)).supervisor
    with pytest.raises(Unavailable, match=r"ORCHESTRATOR_READY_SECONDS = 0\.05"):
        supervisor.wait_ready()
    supervisor.stop()


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, tmp_path / "token", tmp_path, command=(str(tmp_path / "gone"),))
    supervisor.start()
    with pytest.raises(Unavailable, match=r"cannot be kept running.*gone"):
        supervisor.wait_ready()
    assert (tmp_path / LOG_NAME).exists()
