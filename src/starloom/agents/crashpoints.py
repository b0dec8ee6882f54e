"""Named points at which a process can be made to die, for trials: `kill -9` where it hurts, not when it happens to come.

Off unless the environment variable STARLOOM_CRASH_POINTS names a folder when the process starts. Then the first process that comes
to a point whose name a file in that folder has renames the file to `NAME.reached`, and dies: once, and at no other point.
"""

import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import Final

VARIABLE: Final = "STARLOOM_CRASH_POINTS"
REACHED: Final = ".reached"


class CrashPoint(StrEnum):
    """Where. Those of an orchestrator stand first, in the order in which work comes by; each says what has been done."""

    BOOTED = "orchestrator-booted"
    """The journal is taken over, with a new epoch; nothing was read."""
    VALUE_WRITTEN = "orchestrator-value-written"
    """The bytes of a value are on the job store's disk, and not under their name."""
    VALUE_NAMED = "orchestrator-value-named"
    """A value is in the job store; nobody was told."""
    BEFORE_APPEND = "orchestrator-before-append"
    """Facts are decided; nothing of them is written."""
    BEFORE_FSYNC = "orchestrator-before-fsync"
    """Facts are written; their transaction is open."""
    AFTER_FSYNC = "orchestrator-after-fsync"
    """Facts are durable; nothing follows from them yet."""
    ACKNOWLEDGED = "orchestrator-acknowledged"
    """Reports may be acknowledged; clients have no answers."""
    ANSWERED = "orchestrator-answered"
    """Clients have answers; no events."""
    PUBLISHED = "orchestrator-published"
    """Events are out; commands are not."""
    COMMANDED = "orchestrator-commanded"
    """One agent was sent commands or acknowledgements; others may not have been."""
    JOB_ENDING = "orchestrator-job-ending"
    """A job's end is decided; it is not written."""
    JOB_ENDED = "orchestrator-job-ended"
    """A job's end is durable; nobody was told."""
    SNAPSHOT_HALF = "orchestrator-snapshot-half"
    """Half of a snapshot is written, not under its name. Of the process that takes it, and so is the next one."""
    SNAPSHOT_WRITTEN = "orchestrator-snapshot-written"
    """A snapshot is there under its name; those that it replaces are there as well."""
    SNAPSHOT_TAKEN = "orchestrator-snapshot-taken"
    """A snapshot is known to be there; no record was dropped for it."""

    ACCEPTED = "agent-accepted"
    """Assignments were taken in; nothing was done for them."""
    STARTED = "agent-started"
    """A stage has begun; nobody was told."""
    COMPUTED = "agent-computed"
    """A stage's outputs are held; nobody was told."""
    STORED = "agent-stored"
    """Outputs are in the job store; the stage's end was not told."""
    REPORTED = "agent-reported"
    """Reports were sent; they are not acknowledged."""

    @property
    def of_agent(self) -> bool:
        return self.value.startswith("agent-")

    @property
    def of_snapshot(self) -> bool:
        """Whether it is come by only once a snapshot is taken."""
        return self.value.startswith("orchestrator-snapshot-")


_folder = os.environ.get(VARIABLE) or None
ON: Final = _folder is not None
"""Whether a point may be armed in this process at all."""


def snapshot_awaited() -> bool:
    """Whether a point is armed that only a snapshot comes by: one is due then, however little was journaled."""
    return _folder is not None and any((Path(_folder) / point).exists() for point in CrashPoint if point.of_snapshot)


def reach(point: CrashPoint) -> None:
    """Dies here if this point is armed."""
    if _folder is not None:
        _die_if_armed(Path(_folder) / point)


def _die_if_armed(armed: Path) -> None:
    try:
        armed.rename(f"{armed}{REACHED}")
    except OSError:
        # It is not armed, or is no folder that anything could be armed in.
        return
    os.kill(os.getpid(), signal.SIGKILL)
