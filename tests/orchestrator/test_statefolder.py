"""The state folder: where it lies, who may read it, and who holds it."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from starloom.dag.errors import Conflict, InvalidInput, Unavailable
from starloom.orchestrator.statefolder import (
    CLUSTER_NAME,
    ClusterRecord,
    FolderLock,
    forget_cluster,
    holder,
    make_token,
    prepare,
    read_cluster,
    state_folder,
    write_cluster,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state" / "cluster"
    prepare(made)
    return made


def record(folder: Path) -> ClusterRecord:
    return ClusterRecord(
        address="127.0.0.1:5", token_file=str(folder / "token"), pid=7, orchestrator_pid=8, nodes=("a",)
    )


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder({"STARLOOM_HOME": "/h", "XDG_STATE_HOME": "/x"}) == Path("/h/cluster")
    assert state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/starloom/cluster")
    assert state_folder({"XDG_STATE_HOME": "relative"}) == tmp_path / ".local/state/starloom/cluster"
    assert state_folder({}) == tmp_path / ".local/state/starloom/cluster"


def test_a_folder_that_cannot_be_made_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cluster").write_text("a file")
    with pytest.raises(InvalidInput, match=r"cluster: no cluster can be kept there: File exists.*STARLOOM_HOME"):
        prepare(tmp_path / "cluster")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is opened from here on has no room, as on a full disk."""
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, *_: plain("/dev/full", os.O_RDWR))


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("name", ["token", CLUSTER_NAME])
def test_a_full_disk_is_told_with_the_file_and_the_way_out(folder: Path, name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        make_token(folder) if name == "token" else write_cluster(folder, record(folder))
    assert str(raised.value).startswith("the state folder cannot be used")
    [problem] = raised.value.problems
    assert problem.place == str(folder / name)
    advice = "make room on that disk, or name another folder with STARLOOM_HOME"
    assert problem.what == f"it cannot be written: No space left on device; {advice}"
    assert [path.name for path in folder.iterdir()] == ["logs"]


def test_a_full_disk_leaves_the_folder_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(InvalidInput, match=r"cluster\.lock: it cannot be written: No space left.*make room"):
            FolderLock(folder)
    assert holder(folder) is None
    FolderLock(folder).release()


def test_only_the_user_can_read_it(folder: Path) -> None:
    make_token(folder)
    write_cluster(folder, record(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ("token", CLUSTER_NAME)} == {0o600}


def test_a_record_is_read_while_its_holder_lives(folder: Path) -> None:
    token = make_token(folder)
    assert read_cluster(folder) is None
    lock = FolderLock(folder)
    write_cluster(folder, record(folder))
    found = read_cluster(folder)
    assert found == record(folder)
    assert found.token() == token
    lock.release()
    assert read_cluster(folder) is None


def test_a_damaged_record_counts_as_none(folder: Path) -> None:
    lock = FolderLock(folder)
    (folder / CLUSTER_NAME).write_text("{")
    assert read_cluster(folder) is None
    lock.release()


def test_a_second_holder_is_refused_and_told_what_to_do(folder: Path) -> None:
    lock = FolderLock(folder)
    write_cluster(folder, record(folder))
    with pytest.raises(Conflict, match=r"process 7, at 127\.0\.0\.1:5.*starloom down"):
        FolderLock(folder)
    lock.release()
    FolderLock(folder).release()


def test_the_lock_ends_with_its_process(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from starloom.orchestrator.statefolder import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert holder(folder) == child.pid
        child.kill()
    assert holder(folder) is None


def test_a_forgotten_cluster_leaves_no_token(folder: Path) -> None:
    make_token(folder)
    lock = FolderLock(folder)
    write_cluster(folder, record(folder))
    forget_cluster(folder)
    forget_cluster(folder)
    assert read_cluster(folder) is None
    with pytest.raises(Unavailable, match="starloom up"):
        record(folder).token()
    lock.release()
