"""Every error a user of Starloom can meet, on one screen.

Each class names the gRPC status that carries it across the wire; the border maps by that name and
rebuilds the class on the other side. A message says what was wrong, where, and what to do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from starloom.dag import limits


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: `place` is a path such as `stages.detect.require.tier`."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


class StarloomError(Exception):
    """The root; `retryable` says whether the same call may succeed later without a change."""

    status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False


class InvalidInput(StarloomError):
    """The input is wrong; `problems` holds everything that is, not only the first."""

    status = "INVALID_ARGUMENT"

    def __init__(self, problems: Iterable[Problem] | str, what: str = "invalid input") -> None:
        found = (Problem("", problems),) if isinstance(problems, str) else tuple(problems)
        self.problems: tuple[Problem, ...] = found
        self.what = what
        super().__init__("\n".join([f"{what}:", *(f"  {problem}" for problem in found)]))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...], str]]:
        return type(self), (self.problems, self.what)


class InvalidConstellation(InvalidInput):
    """A constellation is malformed, cyclic, badly typed, or names an unknown kind."""


class Infeasible(InvalidInput):
    """No node meets a stage's requirements, or all cannot be kept at once; a problem per stage or requirement says which."""

    status = "FAILED_PRECONDITION"


class PatchRefused(InvalidInput):
    """A patch cannot be taken; `problems` has every reason, and nothing has changed."""

    status = "FAILED_PRECONDITION"


class NotFound(StarloomError):
    """No such job, stage, port, model or value."""

    status = "NOT_FOUND"


class Conflict(StarloomError):
    """The key is taken by a different job, or the state moved on."""

    status = "ALREADY_EXISTS"


class Overloaded(StarloomError):
    """A limit was reached; nothing was accepted. Try again after `retry_after_seconds`."""

    status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(StarloomError):
    """The orchestrator or an agent cannot be reached."""

    status = "UNAVAILABLE"
    retryable = True


class Unauthenticated(StarloomError):
    """The call has no valid token."""

    status = "UNAUTHENTICATED"


class Fenced(StarloomError):
    """The sender's epoch, or its lease, is over: somebody else has taken its place."""

    status = "FAILED_PRECONDITION"


class DeadlineExceeded(StarloomError, TimeoutError):
    """Time ran out; the message says which limit, and where."""

    status = "DEADLINE_EXCEEDED"


class Cancelled(StarloomError):
    """The job or the attempt was cancelled."""

    status = "CANCELLED"


class ClientClosed(StarloomError):
    """The client was closed: what it was doing has ended on this side, and it does nothing more. Jobs go on."""

    status = "FAILED_PRECONDITION"


class JobFailed(StarloomError):
    """A job ended without success; `problems` has each failed stage's error, at the place `stages.NAME`.

    `cause` is the class of the error that ended it, such as `DeadlineExceeded`, where that is known.
    """

    status = "ABORTED"

    def __init__(self, message: str, problems: Iterable[Problem] = (), cause: str = "") -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join([message, *(f"  {problem}" for problem in self.problems)]))
        self.message = message
        self.cause = cause

    def __reduce__(self) -> tuple[type, tuple[str, tuple[Problem, ...], str]]:
        return type(self), (self.message, self.problems, self.cause)


class StageError(StarloomError):
    """A stage's own failure on its input; raise it from a stage. `transient` asks for a retry."""

    status = "ABORTED"

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class InputUnavailable(StarloomError):
    """A value could not be had from its holder. Costs no retry: it is made again or moved."""

    status = "UNAVAILABLE"
    retryable = True


class StreamGone(InputUnavailable):
    """Chunks of a stream that a reader needs are not kept any more; the message says where it can begin."""

    status = "OUT_OF_RANGE"
    retryable = False


class DigestMismatch(StarloomError):
    """Bytes are not those that were named: a damaged transfer, or a model that was swapped."""

    status = "DATA_LOSS"


class ModelMissing(StarloomError):
    """A model is not in the model store; `starloom models pull` gets it."""

    status = "FAILED_PRECONDITION"


class JournalDamaged(StarloomError):
    """The journal holds something other than what was written; the message names the record."""

    status = "DATA_LOSS"


class Stuck(StarloomError):
    """Every stage of a job that has not ended waits for what cannot come; the message says what for."""

    status = "FAILED_PRECONDITION"


class InternalError(StarloomError):
    """A defect of Starloom's showed where one job was handled: only that job fails. The message says what was handled."""


class InvalidTransition(StarloomError):
    """A fact does not fit the state: a defect. The message carries the stage's story."""


def tellable(text: str) -> str:
    """A text as others can be told it: cut at STATUS_TEXT_CHARACTERS_MAX, and what UTF-8 has no word for written out.

    Names of files that are no UTF-8 bring such into messages, as surrogates that stand alone.
    """
    if len(text) > limits.STATUS_TEXT_CHARACTERS_MAX:
        text = text[: limits.STATUS_TEXT_CHARACTERS_MAX] + " ... (cut)"
    return text.encode("utf-8", "backslashreplace").decode()
