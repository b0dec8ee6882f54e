"""The state of one job, changed only by `apply(fact)`, by a table of transitions.

`TRANSITIONS` has a row for each (status, fact) that may meet; anything else is an InvalidTransition
that carries the stage's story. `JobState.validate` checks the invariants that the rows keep.
"""

from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from starloom.dag import facts
from starloom.dag.constellation import Constellation, Dependency, InputBinding, StageSpec
from starloom.dag.errors import InvalidTransition
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, Attempt, FencingToken, Revision, StageId
from starloom.dag.values import ValueRef

_STORY_FACTS: Final = 20


class StageStatus(StrEnum):
    """pending: waits for upstreams, a place or a retry. placed: with an agent. running: started there."""

    PENDING = "pending"
    PLACED = "placed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({StageStatus.SUCCEEDED, StageStatus.SKIPPED, StageStatus.FAILED, StageStatus.CANCELLED})
ACTIVE: Final = frozenset({StageStatus.PLACED, StageStatus.RUNNING})
JOB_ENDED: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class StageState:
    """One stage of a running job."""

    __slots__ = (
        "agent",
        "attempt",
        "committed",
        "consumed",
        "deaths",
        "error",
        "failures",
        "input_losses",
        "live",
        "models",
        "outputs",
        "published",
        "reason",
        "spec",
        "status",
        "story",
        "target",
        "timing",
    )  # fmt: skip

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.status = StageStatus.PENDING
        #: the last attempt's number; never goes back
        self.attempt = Attempt(0)
        #: tokens that may commit, with the agent each was given to
        self.live: dict[FencingToken, AgentId] = {}
        #: the token of the result, once there is one
        self.committed: FencingToken | None = None
        self.outputs: dict[str, ValueRef] = {}
        self.consumed: dict[str, facts.Consumed] = {}
        #: output ports whose bytes are in the job store
        self.published: frozenset[str] = frozenset()
        self.failures = 0
        self.deaths = 0
        self.input_losses = 0
        self.error: facts.ErrorInfo | None = None
        self.reason = ""
        self.agent = AgentId("")
        self.target = ""
        self.timing = facts.Timing()
        self.models: tuple[str, ...] = ()
        self.story: deque[Fact] = deque(maxlen=_STORY_FACTS)

    def __repr__(self) -> str:
        return f"<Stage {self.spec.id} {self.status} attempt={self.attempt} live={len(self.live)}>"


class JobState:
    """A job: its constellation, the state of each stage, and the arcs indexed from both ends."""

    def __init__(self, submitted: facts.JobSubmitted) -> None:
        self.id = submitted.job
        self.key = submitted.key
        self.principal = submitted.principal
        self.options = submitted.options
        self.inputs = submitted.inputs
        self.status = JobStatus.RUNNING
        self.revision: Revision = submitted.revision
        self.error = ""
        self.outputs: dict[str, ValueRef] = {}
        self.constellation: Constellation = submitted.constellation
        self.stages = {stage: StageState(spec) for stage, spec in self.constellation.stages.items()}
        self.upstreams: dict[StageId, list[Dependency]] = {stage: [] for stage in self.stages}
        self.downstreams: dict[StageId, list[Dependency]] = {stage: [] for stage in self.stages}
        self.bindings: dict[StageId, list[InputBinding]] = {stage: [] for stage in self.stages}
        for dependency in self.constellation.dependencies:
            self.upstreams[dependency.downstream].append(dependency)
            self.downstreams[dependency.upstream].append(dependency)
        for binding in self.constellation.bindings:
            self.bindings[binding.downstream].append(binding)
        #: arcs into a stage whose upstream has not ended; the stage is decided when none is left
        self.undecided = {stage: len(arcs) for stage, arcs in self.upstreams.items()}
        self.open_stages = len(self.stages)
        self.active_attempts = 0

    @property
    def ended(self) -> bool:
        return self.status in JOB_ENDED

    def apply(self, fact: Fact) -> None:
        """Changes the state by one fact. Raises InvalidTransition, with the story, if it does not fit."""
        match fact:
            case facts.JobCancelRequested():
                self._expect(fact, self.status is JobStatus.RUNNING)
                self.status = JobStatus.CANCELLING
            case facts.JobEnded():
                self._expect(fact, not self.ended)
                self.status, self.outputs, self.error = fact.status, fact.outputs, fact.error
            case facts.StageFact() | facts.StageCancelled():
                self._apply_to_stage(fact)
            case _:
                self._expect(fact, False)

    def _expect(self, fact: Fact, fits: bool) -> None:
        if not fits:
            raise InvalidTransition(f"job {self.id} is {self.status}; {fact!r} does not fit")

    def _apply_to_stage(self, fact: facts.StageFact | facts.StageCancelled) -> None:
        stage = self.stages.get(fact.stage)
        before = stage.status if stage else None
        row = TRANSITIONS.get((before, type(fact))) if before else None
        if stage is None or row is None:
            story = "\n  ".join(map(repr, stage.story)) if stage else "no such stage"
            raise InvalidTransition(
                f"job {self.id}, stage {fact.stage} is {before}; {fact!r} does not fit. Story:\n  {story}"
            )
        live = len(stage.live)
        row(stage, fact)
        stage.story.append(fact)
        self.active_attempts += len(stage.live) - live
        change = (stage.status in ENDED) - (before in ENDED)
        if change:
            self.open_stages -= change
            for dependency in self.downstreams[fact.stage]:
                self.undecided[dependency.downstream] -= change

    def validate(self) -> None:
        """Checks the invariants; raises AssertionError with what is broken. For tests and simulation."""
        for name, stage in self.stages.items():
            assert bool(stage.live) == (stage.status in ACTIVE), f"{name}: {stage!r} live tokens do not fit the status"
            assert (stage.committed is not None) == (stage.status in {StageStatus.SUCCEEDED, StageStatus.SKIPPED}), (
                stage
            )
            waiting = sum(self.stages[d.upstream].status not in ENDED for d in self.upstreams[name])
            assert self.undecided[name] == waiting, f"{name}: undecided {self.undecided[name]}, counted {waiting}"
        assert self.open_stages == sum(s.status not in ENDED for s in self.stages.values()), "open_stages is off"
        assert self.active_attempts == sum(len(s.live) for s in self.stages.values()), "active_attempts is off"
        assert not self.ended or self.active_attempts == 0, "an ended job has live tokens"


Row = Callable[[StageState, "facts.StageFact | facts.StageCancelled"], None]


def _place(stage: StageState, fact: facts.StagePlaced) -> None:
    if fact.token.attempt <= stage.attempt:
        raise InvalidTransition(f"{stage!r}: attempt {fact.token.attempt} was used; attempts only count up")
    stage.attempt = fact.token.attempt
    stage.live[fact.token] = fact.agent
    stage.status = StageStatus.PLACED
    stage.agent, stage.target = fact.agent, fact.target


def _start(stage: StageState, fact: facts.StageStarted) -> None:
    _require_live(stage, fact)
    stage.status = StageStatus.RUNNING


def _commit(stage: StageState, fact: facts.StageCommitted) -> None:
    stage.agent = _require_live(stage, fact)
    _settle(stage, StageStatus.SUCCEEDED)
    stage.committed = fact.token
    stage.outputs, stage.consumed = fact.outputs, fact.consumed
    stage.published = frozenset(fact.published)
    stage.timing, stage.models, stage.target = fact.timing, fact.models, fact.target
    stage.error = None


def _fail(stage: StageState, fact: facts.StageFailed) -> None:
    if stage.live:
        _require_live(stage, fact)
        del stage.live[fact.token]
    stage.failures += 1
    stage.error = fact.error
    if not stage.live:
        stage.status = StageStatus.PENDING if fact.retry_seconds is not None else StageStatus.FAILED


def _default(stage: StageState, fact: facts.StageDefaulted) -> None:
    _settle(stage, StageStatus.SUCCEEDED)
    stage.attempt = max(stage.attempt, fact.token.attempt)
    stage.committed, stage.outputs, stage.consumed = fact.token, fact.outputs, {}


def _skip(stage: StageState, fact: facts.StageSkipped) -> None:
    _settle(stage, StageStatus.SKIPPED)
    stage.attempt = max(stage.attempt, fact.token.attempt)
    stage.committed, stage.reason = fact.token, fact.reason


def _supersede(stage: StageState, fact: facts.StageSuperseded) -> None:
    _require_live(stage, fact)
    del stage.live[fact.token]
    stage.deaths += fact.death
    stage.input_losses += fact.input_lost
    if not stage.live:
        stage.status = StageStatus.PENDING


def _reopen(stage: StageState, fact: facts.StageReopened) -> None:
    _settle(stage, StageStatus.PENDING)
    stage.committed, stage.outputs, stage.consumed, stage.published = None, {}, {}, frozenset()


def _cancel(stage: StageState, fact: facts.StageCancelled) -> None:
    _settle(stage, StageStatus.CANCELLED)


def _settle(stage: StageState, status: StageStatus) -> None:
    stage.live.clear()
    stage.status = status


def _require_live(stage: StageState, fact: facts.StageFact) -> AgentId:
    if fact.token not in stage.live:
        raise InvalidTransition(f"{stage!r}: token {fact.token} is not live; {fact!r} does not fit")
    return stage.live[fact.token]


def _table() -> Mapping[tuple[StageStatus, type[Fact]], Row]:
    s = StageStatus
    rows: dict[tuple[StageStatus, type[Fact]], Callable[..., None]] = {
        (s.PENDING, facts.StagePlaced): _place,
        (s.PENDING, facts.StageSkipped): _skip,
        (s.PENDING, facts.StageFailed): _fail,
        (s.PENDING, facts.StageCancelled): _cancel,
        (s.PLACED, facts.StageStarted): _start,
        (s.SUCCEEDED, facts.StageReopened): _reopen,
        (s.SKIPPED, facts.StageReopened): _reopen,
        (s.FAILED, facts.StageDefaulted): _default,
        (s.FAILED, facts.StageSkipped): _skip,
    }
    for active in (s.PLACED, s.RUNNING):
        rows[active, facts.StageCommitted] = _commit
        rows[active, facts.StageFailed] = _fail
        rows[active, facts.StageSuperseded] = _supersede
        rows[active, facts.StageCancelled] = _cancel
    return MappingProxyType(rows)


TRANSITIONS: Final = _table()
