"""One end of a session: numbers what it sends, keeps it until acknowledged, and drops what it had already.

Pure. Both ends hold one: the agent's sends reports and receives commands, the orchestrator's the
other way round. A stream may break at any point; `resume` tells what to send again.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from starloom.dag import limits
from starloom.dag.errors import StarloomError

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class SequenceGap(StarloomError):
    """A frame is missing: the stream is no longer in order, and the session has to be resumed."""

    status = "ABORTED"
    retryable = True


class Frame(NamedTuple, Generic[Sent]):
    """`sequence` numbers the first of `messages`, from 1; `acknowledged` is the last one done with here."""

    sequence: int
    acknowledged: int
    messages: tuple[Sent, ...]


class Channel(Generic[Sent, Received]):
    """Sequence numbers, acknowledgements, flow control and resumption of one end.

    A message received is acknowledged only by `done`: for the orchestrator, once it is journaled.
    """

    def __init__(self) -> None:
        self._next = 1
        #: sent or to be sent, not acknowledged; the first has number _next - len(_kept)
        self._kept: deque[Sent] = deque()
        #: how many of _kept, from the right, were not put on the present stream yet
        self._unsent = 0
        #: the last number received, and the last that was done with
        self.received = 0
        self.acknowledged = 0

    def __repr__(self) -> str:
        return f"<Channel next={self._next} kept={len(self._kept)} unsent={self._unsent} received={self.received}>"

    @property
    def kept(self) -> Sequence[Sent]:
        """What the other end has not acknowledged."""
        return tuple(self._kept)

    @property
    def waiting(self) -> bool:
        """Whether something was not put on the present stream yet."""
        return self._unsent > 0

    def send(self, messages: Iterable[Sent]) -> None:
        """Queues messages; `frames` gives them out as credit allows."""
        for message in messages:
            self._kept.append(message)
            self._next += 1
            self._unsent += 1

    def frames(self) -> list[Frame[Sent]]:
        """What may go out now: at most SESSION_CREDITS messages are unacknowledged on the stream."""
        frames = []
        sent = len(self._kept) - self._unsent
        count = min(self._unsent, limits.SESSION_CREDITS - sent)
        while count > 0:
            size = min(count, limits.SESSION_FRAME_MESSAGES_MAX)
            start = len(self._kept) - self._unsent
            messages = tuple(islice(self._kept, start, start + size))
            frames.append(Frame(self._next - self._unsent, self.acknowledged, messages))
            self._unsent -= size
            count -= size
        return frames

    def acknowledge(self, number: int) -> None:
        """The other end is done with everything up to `number`."""
        first = self._next - len(self._kept)
        for _ in range(min(number - first + 1, len(self._kept) - self._unsent)):
            self._kept.popleft()

    def receive(self, frame: Frame[Received]) -> tuple[Received, ...]:
        """The frame's new messages; those had before are left out. Raises SequenceGap if some are missing."""
        self.acknowledge(frame.acknowledged)
        if not frame.messages:
            return ()
        if frame.sequence > self.received + 1:
            raise SequenceGap(f"frame {frame.sequence} after {self.received}: resume the session")
        fresh = frame.messages[self.received + 1 - frame.sequence :]
        self.received += len(fresh)
        return fresh

    def done(self, number: int | None = None) -> None:
        """Everything received up to `number`, or all, may be acknowledged."""
        self.acknowledged = max(self.acknowledged, self.received if number is None else number)

    def can_resume(self, received: int) -> bool:
        """Whether everything that the other end has not, which has all up to `received`, is still kept here."""
        return self._next - 1 - len(self._kept) <= received < self._next

    def resume(self, received: int) -> None:
        """A new stream of the same session: the other end has everything up to `received`; the rest goes again."""
        self._unsent = max(0, min(len(self._kept), self._next - 1 - received))

    def restart(self) -> None:
        """A new session: numbers start again from 1, and everything kept goes again."""
        self._next = len(self._kept) + 1
        self._unsent = len(self._kept)
        self.received = self.acknowledged = 0
