"""The state of one job, changed only by `apply(fact)`, by the table of `dag.transitions`.

`JobState.validate` checks the invariants that its rows keep.
"""

from typing import Final

from starloom.dag import facts, limits
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidTransition, NotFound
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, Attempt, Revision, StageId
from starloom.dag.patch import Difference
from starloom.dag.shape import Shape, constellation_at
from starloom.dag.stagestate import ENDED, NOTHING, STORY_FACTS, Origin, StageState
from starloom.dag.transitions import TRANSITIONS, faults, misfit
from starloom.dag.values import ValueRef

JOB_ENDED: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


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

    #: in which variants stages run that had others before, which no node could run any more
    degraded: tuple[str, ...] = ()

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
        before, live, variant = stage.status, len(stage.live), stage.variant
        row = TRANSITIONS.get((before, type(fact)))
        if row is None:
            raise misfit(stage, fact, f"a stage that is {before} does not take it")
        if type(fact) is facts.StagePlaced and fact.awaits:
            self._expect_awaited(stage, fact)
        row(stage, fact)
        if len(stage.story) == STORY_FACTS:
            del stage.story[0]
        stage.story.append(fact)
        if type(fact) is facts.StagePlaced or type(fact) is facts.OutputsHeld:
            self.agents.add(fact.agent)
        if variant and stage.variant != variant:
            self._degrade(f"{fact.stage} ran as {variant}, and does as {stage.variant}")
        self.active_attempts += len(stage.live) - live
        change = (stage.status in ENDED) - (before in ENDED)
        if change:
            self.open_stages -= change
            for dependency in self.downstreams[fact.stage]:
                self.undecided[dependency.downstream] -= change
                downstream = self.stages[dependency.downstream]
                if downstream.awaits and type(fact) is facts.StageCommitted:
                    _no_longer_awaits(downstream, fact)

    def _degrade(self, how: str) -> None:
        if len(self.degraded) < limits.DEGRADED_TOLD_MAX:
            self.degraded = (*self.degraded, how)

    def _expect_awaited(self, stage: StageState, fact: facts.StagePlaced) -> None:
        """An attempt goes ahead of attempts that are there."""
        for upstream, token in fact.awaits.items():
            if upstream not in self.stages or token not in self.stages[upstream].live:
                raise misfit(stage, fact, f"{upstream} has no live token {token} that it could await")

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
            for what in faults(stage):
                raise AssertionError(f"{name}: {stage!r}: {what}")
            for upstream, token in stage.awaits.items() if self.status is JobStatus.RUNNING else ():
                there = upstream in self.stages and token in self.stages[upstream].live
                assert there, f"{name}: {stage!r}: awaits {upstream}'s token {token}, which is not live"
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


def _no_longer_awaits(stage: StageState, fact: facts.StageCommitted) -> None:
    """An upstream has a result: by the awaited attempt; or by another, when what the awaited one gave is being read."""
    token = stage.awaits.get(fact.stage)
    if token is not None and (token == fact.token or stage.started):
        left = {upstream: awaited for upstream, awaited in stage.awaits.items() if upstream != fact.stage}
        stage.awaits = left or NOTHING
