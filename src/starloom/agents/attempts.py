"""An attempt as the agent's core keeps it, and how far it is."""

from enum import Enum, auto
from typing import Final

from starloom.agents.messages import Assign, Finished, Report, Revoked, WasCancelled
from starloom.dag.ids import TaskToken

_NANOS: Final = 1e9


class Phase(Enum):
    """How far an attempt is. WAITING: for attempts that it awaits. HANDED: given to the workers, perhaps behind another.

    SETTLING: computed, and digests are still to come, of what it gave or of what it read.
    """

    WAITING = auto()
    QUEUED = auto()
    FETCHING = auto()
    READY = auto()
    HANDED = auto()
    RUNNING = auto()
    PUBLISHING = auto()
    SETTLING = auto()


class Attempt:
    """One attempt that was accepted, from then on until its end."""

    __slots__ = (
        "accepted",
        "ahead",
        "assign",
        "cancelled",
        "due",
        "early",
        "fetching",
        "named",
        "order",
        "phase",
        "released",
        "report",
        "revoked",
        "since",
        "together",
    )

    def __init__(self, assign: Assign, accepted: int, order: int) -> None:
        self.assign = assign
        self.accepted = accepted
        self.order = order
        #: as when it counts as having come
        self.due = accepted + round(assign.after_seconds * _NANOS)
        self.phase = Phase.WAITING
        #: when the phase began, where that matters
        self.since = accepted
        #: how long the inputs took
        self.fetching = 0
        #: its inputs are fetched, or being fetched, and it waits
        self.ahead = False
        self.cancelled = False
        #: its cancel is a revocation: it never started
        self.revoked = False
        #: its job was released, or its end was told before it came: nobody waits for a report
        self.released = False
        #: others were told of it before its outputs were hashed
        self.early = False
        #: digests of its inputs came late: a report that was made before has names in their place
        self.named = False
        #: its result, which is told once the digests of all that it read are known
        self.report: Finished | None = None
        #: those that share its slot and have not ended, itself among them; None where it has one for itself
        self.together: set[TaskToken] | None = None

    @property
    def stopped(self) -> Report:
        """The report of one that was cancelled, once nothing of it runs any more."""
        task = self.assign.task
        return Revoked(task=task) if self.revoked else WasCancelled(task=task)

    @property
    def rank(self) -> tuple[int, int, int]:
        """What is lower comes first."""
        return -self.assign.priority, self.due, self.order
