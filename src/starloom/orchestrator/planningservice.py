"""Has plans made in a process of its own, which is there as long as its orchestrator is, and is started again when it dies.

numba takes half a second of processor time to import, and a minute where the planner has to be compiled first; in this
process that would stop all decisions again and again, and keep more memory than all else. Until the process is ready, and
while another waits to be started, whoever wants a plan is told at once that there is none.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Event, Thread, Timer
from typing import BinaryIO, Final, cast

import msgspec

from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.dag.ids import JobId
from starloom.orchestrator.advice import Planned, PlanWanted
from starloom.orchestrator.planningprocess import READY, read_frame, write_frame

_log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "starloom.orchestrator.planningprocess")
_STARTING: Final = "the planner is being started"


class PlanningService:
    """Makes plans one at a time, from `start` to `close`.

    `tell` gets each, or why there is none: in this service's thread, or in that which wants it. `is_open` says whether a job
    is still to be planned.
    """

    def __init__(self, tell: Callable[[Planned], None], is_open: Callable[[JobId], bool]) -> None:
        self._tell = tell
        self._is_open = is_open
        self._changed = Condition()
        #: what is wanted and not begun: of each job the last, in their order
        self._asked: dict[JobId, PlanWanted] = {}
        #: why nothing can be asked; empty while the process answers
        self._refusal = _STARTING
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread = Thread(target=self._work, name="planning", daemon=True)

    def start(self) -> None:
        """Starts the process, and does not wait for it."""
        self._thread.start()

    def want(self, wanted: PlanWanted) -> None:
        """Has a plan made, after those that were wanted before; one of the same job that is not begun is wanted no more."""
        with self._changed:
            if self._closed:
                return
            refusal = self._refusal
            if not refusal:
                self._asked.pop(wanted.job, None)
                self._asked[wanted.job] = wanted
                self._changed.notify()
        if refusal:
            self._tell(_refused(wanted, refusal))

    def close(self) -> None:
        """Ends the process and the thread, whatever they are at; blocks for a moment. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            process = self._process
        if process is not None:
            process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        pause = limits.PLANNER_AGAIN_FIRST_SECONDS
        while not self._closed:
            answered = False
            try:
                process = self._begin()
                while (wanted := self._next()) is not None:
                    # A plan for a period is for the rounds that come, whatever has become of this one.
                    if wanted.rounds or self._is_open(wanted.job):
                        self._tell(self._made(process, wanted))
                        answered = True
            except (OSError, msgspec.MsgspecError, Unavailable) as error:
                pause = limits.PLANNER_AGAIN_FIRST_SECONDS if answered else pause
                self._broken(error, pause)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause)
                    self._refusal = _STARTING
                pause = min(2 * pause, limits.PLANNER_AGAIN_LAST_SECONDS)
            finally:
                self._end()

    def _begin(self) -> subprocess.Popen[bytes]:
        """A process that is ready. Raises OSError, Unavailable."""
        # In a session of its own, so that a terminal's Ctrl-C is this process's to hear. The kernel ends it with the thread
        # that started it, which lives as long as this service.
        process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        with self._changed:
            self._process = process
            if self._closed:
                process.kill()
        began = time.monotonic()
        with _within(process, limits.PLANNER_READY_SECONDS, "was not ready"):
            said = _heard(process)
        if said != READY:
            raise Unavailable(f"says {said[:40]!r} and not that it is ready")
        _log.info("the planner was ready after %.1f s", time.monotonic() - began)
        with self._changed:
            self._refusal = ""
        return process

    def _next(self) -> PlanWanted | None:
        """What is to be planned next; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._asked)
            return None if self._closed else self._asked.pop(next(iter(self._asked)))

    def _made(self, process: subprocess.Popen[bytes], wanted: PlanWanted) -> Planned:
        data = msgspec.json.encode(wanted)
        if len(data) > limits.PLANNER_FRAME_BYTES_MAX:
            # The process would end at it, and at the next try again.
            what = f"{len(data)} bytes, over PLANNER_FRAME_BYTES_MAX = {limits.PLANNER_FRAME_BYTES_MAX}"
            return Planned(job=wanted.job, number=wanted.number, refusal=f"the planner would have to be told {what}")
        try:
            with _within(process, limits.PLAN_ANSWER_SECONDS, "did not answer"):
                write_frame(cast(BinaryIO, process.stdin), data)
                planned = msgspec.json.decode(_heard(process), type=Planned)
            if (planned.job, planned.number) != (wanted.job, wanted.number):
                raise Unavailable(f"was asked for plan {wanted.number} of {wanted.job} and gave another")
        except BaseException:
            # It is told of with the others that get none.
            with self._changed:
                self._asked.setdefault(wanted.job, wanted)
            raise
        return planned

    def _broken(self, error: Exception, pause: float) -> None:
        """Tells whoever waits for a plan that there is none."""
        refusal = f"the planner's process {error}; another is started"
        with self._changed:
            self._refusal = refusal
            left, self._asked = list(self._asked.values()), {}
            closed = self._closed
        if closed:
            return
        _log.warning("%s after %g s", refusal, pause)
        for wanted in left:
            self._tell(_refused(wanted, refusal))

    def _end(self) -> None:
        with self._changed:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            # What was still to be written has nobody to read it.
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()


def _refused(wanted: PlanWanted, refusal: str) -> Planned:
    return Planned(job=wanted.job, number=wanted.number, refusal=refusal, again=True)


def _heard(process: subprocess.Popen[bytes]) -> bytes:
    """The next document that it writes. Raises Unavailable at its end."""
    answer = read_frame(cast(BinaryIO, process.stdout))
    if answer is None:
        process.kill()
        raise Unavailable(f"ended with status {process.wait()}")
    return answer


@contextmanager
def _within(process: subprocess.Popen[bytes], seconds: float, what: str) -> Iterator[None]:
    """Kills the process if this takes longer, and raises Unavailable that says so: writing to it and reading end by that."""
    late = Event()

    def kill() -> None:
        late.set()
        process.kill()

    timer = Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, Unavailable) as error:
        if late.is_set():
            raise Unavailable(f"{what} within {seconds:g} s and was killed") from error
        raise
    finally:
        timer.cancel()
