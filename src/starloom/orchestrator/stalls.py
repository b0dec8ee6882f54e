"""Tells in the log what held the orchestrator up: its journal's disk, or an event loop that did not turn.

Only times that are at hand are compared, where something ends or a timer rings that rings anyway. So a stall is told
once it is over, or, of the journal, at the next look.
"""

import logging
import time

from starloom.dag import limits

_log = logging.getLogger(__name__)


class Stalls:
    """One engine's stalls. `handed` and `wrote` are the journal's, `took` and `look` the event loop's.

    All times are of `time.monotonic`, in seconds.
    """

    def __init__(self) -> None:
        #: when the facts that the journal has now were handed to it, and how many they are
        self._handed: tuple[float, int] | None = None
        self._told_of = 0.0
        self._looked = (time.monotonic(), time.thread_time())
        #: when what was told of since the last look was over
        self._told_until = 0.0

    def handed(self, facts: int) -> float:
        """The journal gets so many facts, and nothing more until they are written; returns when."""
        now = time.monotonic()
        self._handed = now, facts
        return now

    def wrote(self, handed: float, begun: float, facts: int) -> None:
        """The journal is done with them. `begun`: when its thread had come to them. In that thread."""
        now = time.monotonic()
        self._handed = None
        if now - handed > limits.JOURNAL_SLOW_SECONDS:
            _log.warning(
                "the journal took %.1f s to commit %d facts, over JOURNAL_SLOW_SECONDS = %g: %.1f s until its thread came "
                "to them, %.1f s until the disk had them; nobody was answered meanwhile; see what else uses that disk, or the processors",
                *(now - handed, facts, limits.JOURNAL_SLOW_SECONDS, begun - handed, now - begun),
            )

    def took(self, what: str, count: int, began: float) -> None:
        """The event loop did something in one go, to so many."""
        now = time.monotonic()
        seconds = now - began
        if seconds > limits.LOOP_SLOW_SECONDS:
            self._told_until = now
            _log.warning(
                "%s %d took %.1f s, over LOOP_SLOW_SECONDS = %g, in which the event loop did not turn",
                *(what, count, seconds, limits.LOOP_SLOW_SECONDS),
            )

    def look(self, due: float) -> None:
        """A timer rings that was due then. In the event loop's thread."""
        now, computed = time.monotonic(), time.thread_time()
        (before, computed_before), self._looked = self._looked, (now, computed)
        since, self._told_until = max(due, self._told_until), 0.0
        if now - since > limits.LOOP_SLOW_SECONDS:
            _log.warning(
                "the event loop did not turn for %.1f s or more, over LOOP_SLOW_SECONDS = %g; of the last %.1f s its thread "
                "computed for %.1f s: if that is little, the process was stopped, or others had the processor",
                *(now - since, limits.LOOP_SLOW_SECONDS, now - before, computed - computed_before),
            )
        handed = self._handed
        if handed is not None and handed[0] != self._told_of and now - handed[0] > limits.JOURNAL_SLOW_SECONDS:
            self._told_of = handed[0]
            _log.warning(
                "the journal has been committing %d facts for %.1f s, over JOURNAL_SLOW_SECONDS = %g; nobody is answered "
                "until its disk has them",
                *(handed[1], now - handed[0], limits.JOURNAL_SLOW_SECONDS),
            )
