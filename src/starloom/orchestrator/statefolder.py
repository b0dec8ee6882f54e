"""The state folder of a cluster on this machine: where it is reached, and who holds it.

    cluster.json   where the cluster listens, while one runs    (mode 0600)
    token          what a client or a joining agent must show   (mode 0600)
    cluster.lock   locked by the process that holds the cluster
    journal/  values/  logs/

The client reads this too, so it needs the standard library and msgspec only.
"""

import errno
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from starloom.dag.errors import Conflict, InvalidInput, Problem, Unavailable

HOME_VARIABLE: Final = "STARLOOM_HOME"
CLUSTER_NAME: Final = "cluster.json"
TOKEN_NAME: Final = "token"
LOCK_NAME: Final = "cluster.lock"
LOGS_NAME: Final = "logs"
_TOKEN_BYTES = 32
_PID_BYTES_MAX = 20
_LOCK_TRIES = 5
_LOCK_PAUSE_SECONDS = 0.02
#: what a full disk gives, and a user's share of one
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `cluster.json` says.

    `address`: the orchestrator's, `host:port`. `token_file`: the path of the file with the token.
    `pid`: of the process that holds the cluster; `orchestrator_pid`: of the orchestrator, which is
    another one after a restart. `nodes`: the names of the nodes that were started with it.
    """

    address: str
    token_file: str
    pid: int
    orchestrator_pid: int
    nodes: tuple[str, ...] = ()

    def token(self) -> str:
        """The token. Raises Unavailable if its file is gone or cannot be read."""
        try:
            return Path(self.token_file).read_text("ascii").strip()
        except OSError as error:
            raise Unavailable(
                f"the cluster's token cannot be read: {error}; run `starloom down`, then `starloom up`"
            ) from error


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """`$STARLOOM_HOME/cluster`, else `$XDG_STATE_HOME/starloom/cluster`, else `~/.local/state/starloom/cluster`."""
    if home := environment.get(HOME_VARIABLE):
        return Path(home) / "cluster"
    # The XDG base directory specification has relative paths ignored.
    state = Path(environment.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "starloom" / "cluster"


def prepare(folder: Path) -> None:
    """Makes the folder and its `logs`, for this user alone. Raises InvalidInput if it cannot be made or written to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / LOGS_NAME).mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, "no cluster can be kept there", error, HOME_VARIABLE) from error


@contextmanager
def writing(path: Path, variable: str = HOME_VARIABLE) -> Iterator[None]:
    """What cannot be written to `path` is told as InvalidInput: what, where, and that room helps, or a folder named by `variable`."""
    try:
        yield
    except OSError as error:
        raise _unusable(path, "it cannot be written", error, variable) from error


def make_token(folder: Path) -> str:
    """A new token, written to the folder's `token`; returns it. Raises InvalidInput if it cannot be written."""
    token = secrets.token_hex(_TOKEN_BYTES)
    _write(folder / TOKEN_NAME, token.encode("ascii"))
    return token


def write_cluster(folder: Path, record: ClusterRecord) -> None:
    """Writes `cluster.json`, whole or not at all. Raises InvalidInput if it cannot be written."""
    _write(folder / CLUSTER_NAME, msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def read_cluster(folder: Path | None = None) -> ClusterRecord | None:
    """The cluster that runs in the folder, `state_folder()` unless given; None if none does.

    A record that a dead process left behind counts as none.
    """
    folder = state_folder() if folder is None else folder
    try:
        record = msgspec.json.decode((folder / CLUSTER_NAME).read_bytes(), type=ClusterRecord)
    except (OSError, msgspec.DecodeError):
        return None
    return record if holder(folder) is not None else None


def forget_cluster(folder: Path) -> None:
    """Removes `cluster.json` and the token, which are of no use after the cluster's end."""
    for name in (CLUSTER_NAME, TOKEN_NAME):
        (folder / name).unlink(missing_ok=True)


def holder(folder: Path) -> int | None:
    """The id of the living process that holds the folder, also before its cluster is there; None if none does."""
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(lock, _PID_BYTES_MAX) or 0)
    finally:
        os.close(lock)
    return None


class FolderLock:
    """Holds a state folder against other processes, until `release` or the process's end."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock. Raises Conflict, saying how to stop the holder, if another process has it; InvalidInput as `writing`."""
        path = folder / LOCK_NAME
        with writing(path):
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # `holder` takes the lock for a moment as well, so one refusal says nothing yet.
        for _ in range(_LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._sign(path)
                return
            time.sleep(_LOCK_PAUSE_SECONDS)
        os.close(self._lock)
        running = read_cluster(folder)
        who = f" (process {running.pid}, at {running.address})" if running else f" (process {holder(folder)})"
        raise Conflict(f"a cluster runs in {folder} already{who}; stop it with `starloom down`")

    def release(self) -> None:
        os.close(self._lock)

    def _sign(self, path: Path) -> None:
        try:
            with writing(path):
                os.ftruncate(self._lock, 0)
                os.write(self._lock, str(os.getpid()).encode("ascii"))
        except InvalidInput:
            self.release()
            raise


def _write(path: Path, data: bytes) -> None:
    # Opened with its mode, so that no other user can read it even for a moment.
    made = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        made.unlink(missing_ok=True)
        try:
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(data)
            made.replace(path)
        finally:
            made.unlink(missing_ok=True)


def _unusable(path: Path, what: str, error: OSError, variable: str) -> InvalidInput:
    first = "make room on that disk, or " if error.errno in _FULL else ""
    problem = Problem(str(path), f"{what}: {error.strerror}; {first}name another folder with {variable}")
    return InvalidInput([problem], "the state folder cannot be used")
