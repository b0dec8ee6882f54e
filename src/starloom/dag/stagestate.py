"""The state of one stage: what `dag.transitions` changes, and what all else reads."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from starloom.dag import facts
from starloom.dag.constellation import StageSpec
from starloom.dag.facts import Fact
from starloom.dag.ids import AgentId, Attempt, FencingToken, StageId
from starloom.dag.values import JOB_STORE, ValueRef
from starloom.dag.variants import chosen

STORY_FACTS: Final = 20
"""The last facts of a stage that the message of an invalid transition tells."""

LIVE_MAX: Final = 2
"""Live tokens of a stage: its attempt's, and its copy's."""


class StageStatus(StrEnum):
    """pending: waits for upstreams, a place or a retry. placed: with an agent. running: started there."""

    PENDING = "pending"
    PLACED = "placed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"

    # An enum's own hash is computed in Python, and every fact looks its row up by the status.
    __hash__ = str.__hash__


ENDED: Final = frozenset({StageStatus.SUCCEEDED, StageStatus.SKIPPED, StageStatus.FAILED, StageStatus.CANCELLED})
ACTIVE: Final = frozenset({StageStatus.PLACED, StageStatus.RUNNING})


NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
NO_TIMING: Final = facts.Timing()
NO_TOKENS: Final[frozenset[FencingToken]] = frozenset()


class Outcome(NamedTuple):
    """What a stage's dependents go by: how it ended, its outputs, and which comparisons of them hold."""

    status: StageStatus
    outputs: Mapping[str, ValueRef]
    holds: Mapping[str, bool]


class Origin(NamedTuple):
    """Where a stage that was grown comes from: the stage that added it, the one that all began with, and how far from it."""

    by: StageId
    root: StageId
    generation: int


class Place(NamedTuple):
    """Where an attempt was given to."""

    token: FencingToken
    agent: AgentId
    incarnation: str
    target: str


class StageState:
    """One stage of a running job."""

    __slots__ = (
        "agent",
        "ahead_of",
        "attempt",
        "awaits",
        "committed",
        "consumed",
        "copies",
        "deadline_ran",
        "deadline_spent",
        "deaths",
        "degraded",
        "earlier",
        "elder",
        "emulated",
        "error",
        "failures",
        "figures",
        "former",
        "holders",
        "holds",
        "incarnation",
        "input_losses",
        "live",
        "models",
        "outputs",
        "published",
        "reason",
        "retry_seconds",
        "spec",
        "started",
        "status",
        "story",
        "target",
        "timing",
        "tries",
        "variant",
    )  # fmt: skip

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.status = StageStatus.PENDING
        #: the last attempt's number; never goes back
        self.attempt = Attempt(0)
        #: attempts that were placed; skips and defaults take a number as well, but are no tries
        self.tries = 0
        #: those of them that were copies of one that ran too long
        self.copies = 0
        #: tokens that may commit, with the agent each was given to: one, or two while a copy runs
        self.live: dict[FencingToken, AgentId] = {}
        #: those of them that have left their agent's queue
        self.started: frozenset[FencingToken] = NO_TOKENS
        #: upstreams that the attempt was given out ahead of, with the attempts of them that it goes by, and those of
        #: them that have no result yet
        self.ahead_of: Mapping[StageId, FencingToken] = NOTHING
        self.awaits: Mapping[StageId, FencingToken] = NOTHING
        #: the attempt that the last one is a copy of, while both are live
        self.elder: Place | None = None
        #: the token of the result, once there is one
        self.committed: FencingToken | None = None
        self.outputs: Mapping[str, ValueRef] = NOTHING
        self.holds: Mapping[str, bool] = NOTHING
        self.consumed: Mapping[str, facts.Consumed] = NOTHING
        #: the outcome that dependents were judged by last before the stage was reopened, until there is another
        self.former: Outcome | None = None
        #: that outcome, beside the one which came after it: until dependents are judged by this, they rest on that
        self.earlier: Outcome | None = None
        #: output ports whose bytes are in the job store
        self.published: frozenset[str] = frozenset()
        #: agents that keep the outputs which are neither inline nor in the job store, each with its process
        self.holders: Mapping[AgentId, str] = NOTHING
        self.failures = 0
        self.deaths = 0
        self.input_losses = 0
        #: seconds of its deadline that are known to have passed, and for how many of them an attempt ran
        self.deadline_spent = self.deadline_ran = 0.0
        #: of the last attempt that failed, until the stage succeeds, or is skipped for another reason
        self.error: facts.ErrorInfo | None = None
        #: how long the attempt after the last failure has to wait; None if no failure asks for that
        self.retry_seconds: float | None = None
        #: why the stage was skipped, superseded or reopened last
        self.reason = ""
        #: where the last attempt was placed: the agent, its process and the target
        self.agent = AgentId("")
        self.incarnation = ""
        self.target = ""
        self.emulated = False
        #: the variant that it runs in, from its first place on, and the one before it, if it had to be changed
        self.variant = self.degraded = ""
        self.timing = NO_TIMING
        self.figures: Mapping[str, float] = NOTHING
        self.models: tuple[str, ...] = ()
        #: the last facts, for the message of an invalid transition
        self.story: list[Fact] = []

    def __repr__(self) -> str:
        return f"<Stage {self.spec.id} {self.status} attempt={self.attempt} live={len(self.live)}>"

    @property
    def taken(self) -> StageSpec:
        """The stage as it is in its variant; as it was given while it has no place, or has no variants."""
        if not self.spec.variants:
            return self.spec
        return next((chosen(self.spec, each) for each in self.spec.variants if each.name == self.variant), self.spec)

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.status, self.outputs, self.holds)

    @property
    def held(self) -> tuple[ValueRef, ...]:
        """The outputs that only agents keep: neither inline nor in the job store."""
        return tuple(ref for ref in self.outputs.values() if ref.inline is None and ref.holder != JOB_STORE)

    def change(self, spec: StageSpec) -> None:
        """It is another stage from here on: what went wrong before does not count against it."""
        self.spec = spec
        self.variant = self.degraded = ""
        self.failures = self.deaths = self.input_losses = 0
        self.deadline_spent = self.deadline_ran = 0.0
        self.retry_seconds = None
        self.error = None
