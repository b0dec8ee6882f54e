"""What an agent asks one peer for, over breaks of their stream, and when the peer counts as unreachable. Pure."""

from starloom.dag import limits
from starloom.dag.ids import TaskToken

_NANOS = 1e9


class PeerAsks:
    """Open asks, in their order. Times are monotonic nanoseconds.

    An ask stays open until it is answered or taken back. While no stream comes about for INPUT_PATIENCE_SECONDS, each
    is reported once; after a stream was there, once more if need be.
    """

    def __init__(self) -> None:
        self._open: dict[TaskToken, None] = {}
        self._reported: set[TaskToken] = set()
        #: since when a stream is dialed, while there is none
        self._down_since: int | None = None

    @property
    def open(self) -> tuple[TaskToken, ...]:
        """What has to be asked for on a new stream."""
        return tuple(self._open)

    def is_open(self, task: TaskToken) -> bool:
        """Whether an answer is waited for."""
        return task in self._open

    def ask(self, task: TaskToken) -> None:
        """An attempt is awaited."""
        self._open[task] = None

    def close(self, task: TaskToken) -> None:
        """It was answered, or is awaited no more."""
        self._open.pop(task, None)
        self._reported.discard(task)

    def connected(self) -> None:
        """A stream has come about."""
        self._down_since = None
        self._reported.clear()

    def dialing(self, now: int) -> None:
        """A stream is dialed, as far as is known for the first time since there is none."""
        if self._down_since is None:
            self._down_since = now

    def failed(self, now: int, *, at_once: bool = False) -> list[TaskToken]:
        """A dial failed, or a stream broke; those that are to be reported as unreachable now.

        `at_once`: what the peer said cannot be read, which another stream does not mend.
        """
        self.dialing(now)
        assert self._down_since is not None
        if not at_once and now - self._down_since < limits.INPUT_PATIENCE_SECONDS * _NANOS:
            return []
        found = [task for task in self._open if task not in self._reported]
        self._reported.update(found)
        return found
