"""The state of one job, changed only by `apply(fact)`, by a table of transitions.

`TRANSITIONS` has a row for each (status, fact) that may meet; anything else is an InvalidTransition
that carries the stage's story. `JobState.validate` checks the invariants that the rows keep.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from starloom.dag import facts
from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.errors import InvalidTransition, NotFound
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, Attempt, FencingToken, Revision, StageId
from starloom.dag.patch import Difference
from starloom.dag.shape import Shape, constellation_at
from starloom.dag.values import JOB_STORE, ValueRef

_STORY_FACTS: Final = 20


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
JOB_ENDED: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
_NO_TIMING: Final = facts.Timing()
_NO_TOKENS: Final[frozenset[FencingToken]] = frozenset()


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
        "attempt",
        "committed",
        "consumed",
        "copies",
        "deadline_ran",
        "deadline_spent",
        "deaths",
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
        self.started: frozenset[FencingToken] = _NO_TOKENS
        #: the attempt that the last one is a copy of, while both are live
        self.elder: Place | None = None
        #: the token of the result, once there is one
        self.committed: FencingToken | None = None
        self.outputs: Mapping[str, ValueRef] = _NOTHING
        self.holds: Mapping[str, bool] = _NOTHING
        self.consumed: Mapping[str, facts.Consumed] = _NOTHING
        #: the outcome before the stage was reopened, until there is another
        self.former: Outcome | None = None
        #: output ports whose bytes are in the job store
        self.published: frozenset[str] = frozenset()
        #: agents that keep the outputs which are neither inline nor in the job store, each with its process
        self.holders: Mapping[AgentId, str] = _NOTHING
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
        self.timing = _NO_TIMING
        self.figures: Mapping[str, float] = _NOTHING
        self.models: tuple[str, ...] = ()
        #: the last facts, for the message of an invalid transition
        self.story: list[Fact] = []

    def __repr__(self) -> str:
        return f"<Stage {self.spec.id} {self.status} attempt={self.attempt} live={len(self.live)}>"

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
        self.failures = self.deaths = self.input_losses = 0
        self.deadline_spent = self.deadline_ran = 0.0
        self.retry_seconds = None
        self.error = None


class JobState:
    """A job: its constellation, the state of each stage, and the arcs indexed from both ends."""

    def __init__(self, submitted: facts.JobSubmitted) -> None:
        self.id = submitted.job
        self.key = submitted.key
        self.name = submitted.constellation.name
        self.principal = submitted.principal
        self.options = submitted.options
        self.inputs = submitted.inputs
        self.status = JobStatus.RUNNING
        self.revision: Revision = submitted.revision
        #: why it failed, or is being cancelled; and the class of the error that it fails with
        self.error = self.cause = ""
        #: what it ends as once nothing of it runs, while it is being cancelled
        self.ends = JobStatus.CANCELLED
        #: seconds of its deadline that are known to have passed
        self.deadline_spent = 0.0
        self.outputs: dict[str, ValueRef] = {}
        #: the patches that were taken, in order: the first made revision 2 of revision 1
        self.patches: list[facts.JobPatched] = []
        self.shape = Shape(submitted.constellation)
        self.stages = {stage: StageState(spec) for stage, spec in self.shape.specs.items()}
        self.upstreams = self.shape.upstreams
        self.downstreams = self.shape.downstreams
        self.bindings = self.shape.bindings
        #: arcs into a stage whose upstream has not ended; the stage is decided when none is left
        self.undecided = {stage: len(arcs) for stage, arcs in self.upstreams.items()}
        self.open_stages = len(self.stages)
        self.active_attempts = 0
        #: every agent that was given a stage, or keeps a replica
        self.agents: set[AgentId] = set()
        #: what stages changed of the job by their results, as it stands
        self.growths: dict[StageId, facts.Growth] = {}
        #: the stages that others added, and how many come of each that was not
        self.origins: dict[StageId, Origin] = {}
        self.grown: dict[StageId, int] = {}
        #: the last attempts of stages that a patch removed: one that comes under the same name counts on
        self._former_attempts: dict[StageId, Attempt] = {}

    @property
    def constellation(self) -> Constellation:
        """The constellation as it is now; after a patch it is made when it is asked for."""
        return self.shape.constellation

    @property
    def submitted(self) -> Constellation:
        """The constellation that the job was accepted with."""
        return self.shape.origin

    def constellation_at(self, revision: int) -> Constellation:
        """The constellation as it was at a revision. Raises NotFound if there was none."""
        first = self.revision - len(self.patches)
        if not first <= revision <= self.revision:
            raise NotFound(f"job {self.id} has no revision {revision}; it has {first} to {self.revision}")
        return constellation_at(self.submitted, (patch.difference for patch in self.patches[: revision - first]))

    @property
    def ended(self) -> bool:
        return self.status in JOB_ENDED

    @property
    def deadline_seconds(self) -> float:
        """Its deadline, from its acceptance on; 0 is none."""
        return self.options.deadline_seconds or self.shape.origin.deadline_seconds

    def apply(self, fact: Fact) -> None:
        """Changes the state by one fact. Raises InvalidTransition, with the story, if it does not fit."""
        match fact:
            case facts.StageFact() | facts.StageCancelled():
                growth = fact.growth if type(fact) is facts.StageCommitted else None
                if growth is not None:
                    self._expect_change(fact, growth.revision, growth.difference)
                self._apply_to_stage(fact)
                if growth is not None:
                    self._grow(fact.stage, growth)
            case facts.JobPatched():
                self._expect_change(fact, fact.revision, fact.difference)
                self._patch(fact)
            case facts.JobCancelRequested():
                self._expect(fact, self.status is JobStatus.RUNNING)
                self.status, self.ends, self.cause = JobStatus.CANCELLING, fact.ends, fact.cause
                who = f" by {fact.principal}" if fact.principal else ""
                why = f"cancelled{who}{f': {fact.reason}' if fact.reason else ''}"
                self.error = fact.reason if fact.ends is JobStatus.FAILED else why
            case facts.DeadlineSpent():
                self._expect(fact, self.status is JobStatus.RUNNING)
                self._spend(fact)
            case facts.JobEnded():
                self._expect(fact, not self.ended and fact.status in JOB_ENDED and not self.active_attempts)
                self.status, self.outputs = fact.status, fact.outputs
                self.error, self.cause = fact.error, fact.cause
            case _:
                self._expect(fact, False)

    def _expect(self, fact: Fact, fits: bool) -> None:
        if not fits:
            raise InvalidTransition(f"job {self.id} is {self.status}; {fact!r} does not fit")

    def _expect_change(self, fact: Fact, revision: Revision, difference: Difference) -> None:
        """Before anything of a fact is applied: a change that does not fit changes nothing, nor does a result that brings it."""
        self._expect(fact, self.status is JobStatus.RUNNING and revision == self.revision + 1)
        for change in difference.stages:
            stage = self.stages.get(change.stage)
            if (stage.spec if stage else None) != change.before or (stage and stage.live):
                raise InvalidTransition(f"job {self.id} has {stage}; {fact!r} does not fit")

    def _apply_to_stage(self, fact: facts.StageFact | facts.StageCancelled) -> None:
        stage = self.stages.get(fact.stage)
        if stage is None or self.ended:
            raise InvalidTransition(f"job {self.id} is {self.status} and has {stage}; {fact!r} does not fit")
        before, live = stage.status, len(stage.live)
        row = TRANSITIONS.get((before, type(fact)))
        if row is None:
            raise misfit(stage, fact, f"a stage that is {before} does not take it")
        row(stage, fact)
        if len(stage.story) == _STORY_FACTS:
            del stage.story[0]
        stage.story.append(fact)
        if type(fact) is facts.StagePlaced or type(fact) is facts.OutputsHeld:
            self.agents.add(fact.agent)
        self.active_attempts += len(stage.live) - live
        change = (stage.status in ENDED) - (before in ENDED)
        if change:
            self.open_stages -= change
            for dependency in self.downstreams[fact.stage]:
                self.undecided[dependency.downstream] -= change

    def origin(self, stage: StageId) -> Origin:
        """Where a stage comes from; one that was not grown is where others come from."""
        return self.origins.get(stage) or Origin(stage, stage, 0)

    def came_of(self, stage: StageId) -> list[StageId]:
        """The stages that a stage added, and those that these did, and so on. Takes time in the number of all grown stages."""
        added: dict[StageId, list[StageId]] = {}
        for name, origin in self.origins.items():
            added.setdefault(origin.by, []).append(name)
        found = list(added.get(stage, ()))
        for name in found:
            found += added.get(name, ())
        return found

    def _grow(self, stage: StageId, growth: facts.Growth) -> None:
        """The other half of a result: what it changes of the job, as a patch by the stage."""
        fact = facts.JobPatched(
            job=self.id,
            revision=growth.revision,
            difference=growth.difference,
            operations=growth.operations,
            principal=f"stage {stage}",
            digest=growth.digest,
        )
        for name in self.came_of(stage) if stage in self.growths else ():
            self.growths.pop(name, None)
        self._patch(fact)
        self.growths[stage] = growth
        origin = self.origin(stage)
        for change in growth.difference.stages:
            if change.before is None:
                self.origins[change.stage] = Origin(stage, origin.root, origin.generation + 1)
                self.grown[origin.root] = self.grown.get(origin.root, 0) + 1

    def _spend(self, fact: facts.DeadlineSpent) -> None:
        if not fact.stage:
            self.deadline_spent = fact.seconds
            return
        stage = self.stages.get(fact.stage)
        self._expect(fact, stage is not None and stage.status not in ENDED)
        if stage is not None:
            stage.deadline_spent, stage.deadline_ran = fact.seconds, fact.ran

    def _patch(self, fact: facts.JobPatched) -> None:
        difference = fact.difference
        for change in difference.stages:
            stage = self.stages.get(change.stage)
            if stage is None and change.after is not None:
                stage = self.stages[change.stage] = StageState(change.after)
                stage.attempt = self._former_attempts.pop(change.stage, stage.attempt)
                self.open_stages += 1
            elif stage is not None and change.after is not None:
                stage.change(change.after)
            elif stage is not None:
                del self.stages[change.stage], self.undecided[change.stage]
                self._former_attempts[change.stage] = stage.attempt
                self.open_stages -= stage.status not in ENDED
                self.growths.pop(change.stage, None)
                origin = self.origins.pop(change.stage, None)
                if origin is not None:
                    self.grown[origin.root] -= 1
        self.shape.apply(difference)
        for name in difference.touched:
            stage = self.stages.get(name)
            if stage is not None:
                self.undecided[name] = self._open_arcs(name)
                # Its time counts from when its dependencies hold, and they are others now.
                stage.deadline_spent = stage.deadline_ran = 0.0
        self.revision = fact.revision
        self.patches.append(fact)

    def count(self) -> None:
        """Makes what is counted over the stages anew, after these were put in place by hand."""
        self.undecided = {name: self._open_arcs(name) for name in self.stages}
        self.open_stages = sum(stage.status not in ENDED for stage in self.stages.values())
        self.active_attempts = sum(len(stage.live) for stage in self.stages.values())

    def _open_arcs(self, name: StageId) -> int:
        return sum(self.stages[arc.upstream].status not in ENDED for arc in self.upstreams[name])

    def declared(self) -> dict[str, ValueRef]:
        """The job's declared outputs that are there, by name."""
        found = {}
        for name, binding in self.shape.outputs.items():
            ref = self.stages[binding.upstream].outputs.get(binding.output)
            if ref is not None:
                found[name] = ref
        return found

    def validate(self) -> None:
        """Checks the invariants; raises AssertionError with what is broken. For tests and simulation."""
        for name, stage in self.stages.items():
            for what in _faults(stage):
                raise AssertionError(f"{name}: {stage!r}: {what}")
            waiting = self._open_arcs(name)
            assert self.undecided[name] == waiting, f"{name}: undecided {self.undecided[name]}, counted {waiting}"
        specs = {name: stage.spec for name, stage in self.stages.items()}
        assert specs == self.shape.specs, "the stages are not those of the constellation"
        assert self.undecided.keys() == specs.keys(), "undecided is of other stages"
        assert self.revision == 1 + len(self.patches), "the revision does not count the patches"
        assert self.open_stages == sum(s.status not in ENDED for s in self.stages.values()), "open_stages is off"
        assert self.active_attempts == sum(len(s.live) for s in self.stages.values()), "active_attempts is off"
        assert not self.ended or self.active_attempts == 0, "an ended job has live tokens"
        assert self.status is not JobStatus.SUCCEEDED or self.open_stages == 0, "a job succeeded with open stages"


def _faults(stage: StageState) -> Iterator[str]:
    s = StageStatus
    succeeded = stage.status is s.SUCCEEDED
    if bool(stage.live) != (stage.status in ACTIVE) or len(set(stage.live.values())) < len(stage.live):
        yield f"live tokens {stage.live} do not fit the status"
    if not stage.started <= stage.live.keys() or bool(stage.started) != (stage.status is s.RUNNING):
        yield f"started tokens {list(stage.started)} do not fit the status"
    if (len(stage.live) == LIVE_MAX) != (stage.elder is not None) or len(stage.live) > LIVE_MAX:
        yield f"live tokens {stage.live} do not fit the elder {stage.elder}"
    if (stage.committed is not None) != (stage.status in {s.SUCCEEDED, s.SKIPPED}):
        yield f"committed {stage.committed} does not fit the status"
    if not succeeded and (stage.outputs or stage.holds or stage.consumed or stage.published or stage.holders):
        yield "has outputs without success"
    if not stage.published <= stage.outputs.keys():
        yield f"published {sorted(stage.published)}, which are no outputs"
    if stage.holders and not stage.held:
        yield f"{', '.join(stage.holders)} keep outputs of which there are none"
    if stage.former is not None and stage.status in {s.SUCCEEDED, s.SKIPPED}:
        yield "keeps a former outcome beside its own"
    tokens = [*stage.live, *filter(None, [stage.committed])]
    if any(token.attempt > stage.attempt for token in tokens):
        yield f"has a token beyond attempt {stage.attempt}"
    if not 0 <= stage.tries <= stage.attempt:
        yield f"{stage.tries} tries in {stage.attempt} attempts"


Row = Callable[[StageState, "facts.StageFact | facts.StageCancelled"], None]


def misfit(stage: StageState, fact: Fact, why: str) -> InvalidTransition:
    """The error for a fact that does not fit a stage's state."""
    story = "\n  ".join(map(repr, stage.story)) or "nothing yet"
    return InvalidTransition(f"{stage!r}: {why}; {fact!r} does not fit. Its story:\n  {story}")


def _place(stage: StageState, fact: facts.StagePlaced) -> None:
    if fact.copy:
        raise misfit(stage, fact, "there is nothing that it would be a copy of")
    _take_number(stage, fact)
    stage.tries += 1
    stage.live[fact.token] = fact.agent
    stage.status = StageStatus.PLACED
    stage.agent, stage.incarnation, stage.target = fact.agent, fact.incarnation, fact.target
    stage.retry_seconds = None


def _copy(stage: StageState, fact: facts.StagePlaced) -> None:
    if not fact.copy or len(stage.live) != 1 or fact.agent in stage.live.values():
        raise misfit(stage, fact, "it has an attempt, and gets only a copy of that, elsewhere")
    (token,) = stage.live
    _take_number(stage, fact)
    stage.tries += 1
    stage.copies += 1
    stage.live[fact.token] = fact.agent
    stage.elder = Place(token, stage.agent, stage.incarnation, stage.target)
    stage.agent, stage.incarnation, stage.target = fact.agent, fact.incarnation, fact.target


def _start(stage: StageState, fact: facts.StageStarted) -> None:
    _require_live(stage, fact)
    if fact.token in stage.started:
        raise misfit(stage, fact, f"token {fact.token} has started before")
    stage.started |= {fact.token}
    stage.status = StageStatus.RUNNING


def _commit(stage: StageState, fact: facts.StageCommitted) -> None:
    stage.agent = _require_live(stage, fact)
    if stage.elder is not None and stage.elder.token == fact.token:
        stage.incarnation = stage.elder.incarnation
    _settle(stage, StageStatus.SUCCEEDED)
    stage.committed = fact.token
    stage.outputs, stage.consumed, stage.holds = fact.outputs, fact.consumed, fact.holds
    stage.published = frozenset(fact.published)
    stage.holders = {stage.agent: stage.incarnation} if stage.held else _NOTHING
    stage.timing, stage.models, stage.figures = fact.timing, fact.models, fact.figures
    stage.target, stage.emulated = fact.target, fact.emulated
    stage.error, stage.reason = None, ""


def _fail(stage: StageState, fact: facts.StageFailed) -> None:
    if stage.live:
        _give_up(stage, fact)
    stage.failures += 1
    stage.error, stage.retry_seconds = fact.error, fact.retry_seconds
    if not stage.live:
        stage.status = StageStatus.PENDING if fact.retry_seconds is not None else StageStatus.FAILED


def _default(stage: StageState, fact: facts.StageDefaulted) -> None:
    _take_number(stage, fact)
    _settle(stage, StageStatus.SUCCEEDED)
    stage.committed, stage.outputs, stage.holds = fact.token, fact.outputs, fact.holds


def _skip(stage: StageState, fact: facts.StageSkipped) -> None:
    _take_number(stage, fact)
    if stage.status is StageStatus.PENDING:
        stage.error = None
    _settle(stage, StageStatus.SKIPPED)
    stage.committed, stage.reason = fact.token, fact.reason


def _supersede(stage: StageState, fact: facts.StageSuperseded) -> None:
    _give_up(stage, fact)
    stage.deaths += fact.death
    stage.input_losses += fact.input_lost
    stage.reason = fact.reason
    if not stage.live:
        stage.status = StageStatus.PENDING


def _reopen(stage: StageState, fact: facts.StageReopened) -> None:
    _require_committed(stage, fact)
    stage.former = stage.outcome
    stage.status, stage.committed, stage.reason = StageStatus.PENDING, None, fact.reason
    stage.outputs = stage.holds = stage.consumed = _NOTHING
    stage.published = frozenset()
    stage.deadline_spent = stage.deadline_ran = 0.0
    stage.holders = _NOTHING


def _hold(stage: StageState, fact: facts.OutputsHeld) -> None:
    _require_committed(stage, fact)
    stage.holders = {**stage.holders, fact.agent: fact.incarnation}


def _miss(stage: StageState, fact: facts.OutputsGone) -> None:
    _require_committed(stage, fact)
    stage.holders = {agent: process for agent, process in stage.holders.items() if agent != fact.agent}


def _cancel(stage: StageState, fact: facts.StageCancelled) -> None:
    _settle(stage, StageStatus.CANCELLED)


def _give_up(stage: StageState, fact: facts.StageFact) -> None:
    """One of the stage's attempts is over; the other one goes on, if there is one."""
    _require_live(stage, fact)
    del stage.live[fact.token]
    if fact.token in stage.started:
        stage.started -= {fact.token}
    if stage.elder is not None and stage.elder.token != fact.token:
        _, stage.agent, stage.incarnation, stage.target = stage.elder
    stage.elder = None
    if stage.live:
        stage.status = StageStatus.RUNNING if stage.started else StageStatus.PLACED


def _settle(stage: StageState, status: StageStatus) -> None:
    stage.live.clear()
    stage.started, stage.elder = _NO_TOKENS, None
    stage.status, stage.former = status, None


def _take_number(stage: StageState, fact: facts.StageFact) -> None:
    if fact.token.attempt <= stage.attempt:
        raise misfit(stage, fact, f"attempt {fact.token.attempt} was used; attempts only count up")
    stage.attempt = fact.token.attempt


def _require_committed(stage: StageState, fact: facts.StageFact) -> None:
    if fact.token != stage.committed:
        raise misfit(stage, fact, f"its result is of {stage.committed}")


def _require_live(stage: StageState, fact: facts.StageFact) -> AgentId:
    if fact.token not in stage.live:
        raise misfit(stage, fact, f"token {fact.token} is not live")
    return stage.live[fact.token]


def _table() -> Mapping[tuple[StageStatus, type[Fact]], Row]:
    s = StageStatus
    rows: dict[tuple[StageStatus, type[Fact]], Callable[..., None]] = {
        (s.PENDING, facts.StagePlaced): _place,
        (s.PENDING, facts.StageSkipped): _skip,
        (s.PENDING, facts.StageFailed): _fail,
        (s.PENDING, facts.StageCancelled): _cancel,
        (s.PLACED, facts.StageStarted): _start,
        (s.RUNNING, facts.StageStarted): _start,
        (s.RUNNING, facts.StagePlaced): _copy,
        (s.SUCCEEDED, facts.StageReopened): _reopen,
        (s.SUCCEEDED, facts.OutputsHeld): _hold,
        (s.SUCCEEDED, facts.OutputsGone): _miss,
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
