"""Keeps the orchestrator's process alive: starts it, starts it again on the same address when it dies, ends it.

The child runs `python -m starloom.orchestrator.process`. It says that it serves by a byte on a pipe, after
it has written `orchestrator.json`. Another pipe tells it when this process has ended, be it by SIGKILL.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Final, NamedTuple

import msgspec

from starloom.dag import limits
from starloom.dag.errors import DeadlineExceeded, Unavailable

ORCHESTRATOR_NAME: Final = "orchestrator.json"
LOG_NAME: Final = "orchestrator.log"
FENCED: Final = 4
"""The child's exit status once another orchestrator took its folder over: to start it again would end that one."""
_LOG_TAIL_BYTES = 4_096
_LOG_TAIL_LINES = 12
MODULE: Final = (sys.executable, "-m", "starloom.orchestrator.process")


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What `orchestrator.json` says: `address` as host:port, the process, and its epoch."""

    address: str
    pid: int
    epoch: int = 0


class Patience(NamedTuple):
    """When restarting is given up, and how long is waited: all in seconds, but for `quick_deaths` in a row."""

    quick_deaths: int = limits.QUICK_DEATHS_MAX
    quick_death: float = limits.QUICK_DEATH_SECONDS
    ready: float = limits.ORCHESTRATOR_READY_SECONDS
    first_pause: float = limits.RESTART_FIRST_SECONDS
    last_pause: float = limits.RESTART_LAST_SECONDS


PATIENT: Final = Patience()


class Supervisor:
    """One orchestrator on `folder`, watched by a thread from `start` to `stop`.

    `token_file` is a path; `logs` is the folder of its log. `port` 0 takes a free one, and keeps it.
    `on_serving` is called, from the thread, each time the orchestrator begins to serve. `ended` is set
    when the thread has given up or was stopped; `failure` says why it gave up.
    """

    def __init__(
        self,
        folder: Path,
        token_file: Path,
        logs: Path,
        *,
        port: int = 0,
        on_serving: Callable[[Serving], None] = lambda _: None,
        command: Sequence[str] = MODULE,
        patience: Patience = PATIENT,
    ) -> None:
        self.failure = ""
        self.ended = Event()
        self.restarts = 0
        self._folder = folder
        self._token_file = token_file
        self._log = logs / LOG_NAME
        #: where the last child's part of the log begins, in bytes
        self._log_begin = 0
        self._port = port
        self._served = False
        self._on_serving = on_serving
        self._command = tuple(command)
        self._patience = patience
        self._stopping = Event()
        self._changed = Condition()
        self._child: subprocess.Popen[bytes] | None = None
        self._serving: Serving | None = None
        self._thread = Thread(target=self._run, name="supervisor", daemon=True)

    @property
    def serving(self) -> Serving | None:
        """Where the orchestrator serves; None before its first readiness and between a death and the next one."""
        return self._serving

    def start(self) -> None:
        """Starts the child, and does not wait for it."""
        self._thread.start()

    def wait_ready(self) -> Serving:
        """Waits until the orchestrator serves. Raises Unavailable with the end of its log if it cannot be started."""
        with self._changed:
            self._changed.wait_for(lambda: self._serving is not None or self.ended.is_set())
            if self._serving is None:
                raise Unavailable(self.failure or "the orchestrator was stopped before it served")
            return self._serving

    def stop(self, grace_seconds: float = limits.STOP_GRACE_SECONDS) -> None:
        """Ends the child: by SIGTERM, and by SIGKILL if it is there after the grace. May be called again."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._signal(signal.SIGTERM)
        self._thread.join(grace_seconds)
        if self._thread.is_alive():
            self._signal(signal.SIGKILL)
            self._thread.join()

    def _signal(self, number: int) -> None:
        with self._changed:
            if self._child is not None:
                self._child.send_signal(number)

    def _run(self) -> None:
        try:
            self.failure = self._supervise()
        except Exception as error:
            self.failure = f"the orchestrator cannot be kept running: {error}"
        finally:
            with self._changed:
                self.ended.set()
                self._changed.notify_all()

    def _supervise(self) -> str:
        """Starts children until told to stop; returns why it gave up, or an empty text."""
        patience, quick_deaths = self._patience, 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code, end = self._live()
            if code == FENCED:
                return f"another orchestrator took over the journal in {self._folder}; the log ends:\n{self._tail()}"
            if self._stopping.is_set():
                break
            if not self._served:
                return f"the orchestrator did not start: {end}; its log ends:\n{self._tail()}"
            quick_deaths = quick_deaths + 1 if time.monotonic() - began < patience.quick_death else 1
            if quick_deaths > patience.quick_deaths:
                return (
                    f"the orchestrator died {quick_deaths} times in a row within {patience.quick_death:g} s of its start, "
                    f"over QUICK_DEATHS_MAX = {patience.quick_deaths}; the last time {end}; its log ends:\n{self._tail()}"
                )
            self._stopping.wait(min(patience.first_pause * 2 ** (quick_deaths - 1), patience.last_pause))
            self.restarts += 1
        return ""

    def _live(self) -> tuple[int | None, str]:
        """The child's whole life; returns its status, None if it never served and was ended here, and how it ended."""
        ready, alive, child = self._spawn()
        try:
            self._await_readiness(ready)
            code = child.wait()
            return code, f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with status {code}"
        except DeadlineExceeded as error:
            return None, str(error)
        finally:
            os.close(ready)
            os.close(alive)
            child.kill()
            child.wait()
            with self._changed:
                self._child, self._serving = None, None

    def _spawn(self) -> tuple[int, int, subprocess.Popen[bytes]]:
        """The child, with the ends of both pipes that stay here: the one to read readiness from, and its lifeline."""
        ready, given = os.pipe()
        parent, alive = os.pipe()
        options = ["--folder", str(self._folder), "--port", str(self._port), "--token-file", str(self._token_file)]
        options += ["--ready-fd", str(given), "--parent-fd", str(parent)]
        try:
            with self._log.open("ab") as log, self._changed:
                self._log_begin = log.tell()
                # A group of its own: Ctrl-C reaches the supervisor alone, which ends the child in order.
                self._child = subprocess.Popen(
                    (*self._command, *options),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(given, parent),
                    process_group=0,
                )
                # Set before the child was there, `stop` has signalled nobody.
                if self._stopping.is_set():
                    self._child.terminate()
                return ready, alive, self._child
        except BaseException:
            os.close(ready)
            os.close(alive)
            raise
        finally:
            os.close(given)
            os.close(parent)

    def _await_readiness(self, ready: int) -> None:
        """Returns once the child serves, or has died. Raises DeadlineExceeded."""
        if not select.select([ready], [], [], self._patience.ready)[0]:
            limit = f"ORCHESTRATOR_READY_SECONDS = {self._patience.ready:g}"
            raise DeadlineExceeded(f"it did not serve within {limit} and was ended by SIGKILL")
        if not os.read(ready, 1):
            return
        serving = msgspec.json.decode((self._folder / ORCHESTRATOR_NAME).read_bytes(), type=Serving)
        self._port, self._served = int(serving.address.rpartition(":")[2]), True
        self._on_serving(serving)
        with self._changed:
            self._serving = serving
            self._changed.notify_all()

    def _tail(self) -> str:
        """The last lines that the last child wrote."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_begin, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:])
