"""An attempt in its simulated agent's process, as `agents.work` has it."""

from enum import Enum, auto

from starloom.agents.messages import Assign
from starloom.orchestrator.simulate.fetching import InputFetches
from starloom.orchestrator.simulate.loop import Timer
from starloom.orchestrator.simulate.streamrun import StreamRun


class Doing(Enum):
    """What becomes of an attempt at the moment."""

    FETCH = auto()
    WAIT = auto()
    RUN = auto()
    PUBLISH = auto()
    HASH = auto()
    STREAM = auto()


class Work:
    """One attempt that is fetched, run or published."""

    __slots__ = (
        "accepted",
        "assign",
        "began",
        "cancelled",
        "doing",
        "fetches",
        "fetching",
        "step",
        "stream",
        "timed_out",
        "timer",
    )

    def __init__(self, assign: Assign) -> None:
        self.assign = assign
        self.accepted = self.fetching = self.began = 0
        self.cancelled = self.timed_out = False
        self.doing = Doing.WAIT
        self.fetches: InputFetches | None = None
        #: the present step's end, and the end of its patience
        self.step: Timer | None = None
        self.timer: Timer | None = None
        self.stream: StreamRun | None = None
