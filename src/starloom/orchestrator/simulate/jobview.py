"""Jobs and their stages as the journal has them: what properties are judged by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starloom.dag import facts as f
from starloom.dag.constellation import Dependency, InputBinding, StageSpec
from starloom.dag.facts import AnyFact, JobStatus
from starloom.dag.ids import AgentId, FencingToken, StageId
from starloom.dag.patch import Difference, Patch, between
from starloom.dag.stagestate import StageStatus
from starloom.dag.values import JOB_STORE
from starloom.orchestrator.simulate.growth import Origin, Standing, taken_back
from starloom.orchestrator.simulate.patched import differing

_ENDS = {
    f.StageCommitted: StageStatus.SUCCEEDED,
    f.StageDefaulted: StageStatus.SUCCEEDED,
    f.StageSkipped: StageStatus.SKIPPED,
    f.StageCancelled: StageStatus.CANCELLED,
}


@dataclass(slots=True)
class StageView:
    """One stage, as the journal has it."""

    spec: StageSpec
    status: StageStatus = StageStatus.PENDING
    live: dict[FencingToken, AgentId] = field(default_factory=dict)
    started: set[FencingToken] = field(default_factory=set)
    #: what its attempt was given out ahead of, and what of that has no result yet
    ahead_of: dict[StageId, FencingToken] = field(default_factory=dict)
    awaits: dict[StageId, FencingToken] = field(default_factory=dict)
    over: set[FencingToken] = field(default_factory=set)
    #: the process that each attempt was given to
    process: dict[FencingToken, str] = field(default_factory=dict)
    #: who keeps the outputs that are neither inline nor in the job store, each with its process
    holders: dict[AgentId, str] = field(default_factory=dict)
    committed: FencingToken | None = None
    outputs: dict[str, str] = field(default_factory=dict)
    holds: dict[str, bool] = field(default_factory=dict)
    consumed: dict[str, f.Consumed] = field(default_factory=dict)
    #: it had a result, and is to have another
    again: bool = False
    failures: int = 0
    deaths: int = 0
    input_losses: int = 0

    def apply(self, fact: AnyFact) -> None:
        """What a fact of the stage makes of it."""

        def over(then: StageStatus) -> None:
            self.live.pop(getattr(fact, "token", None), None)  # type: ignore[arg-type]
            self.started &= self.live.keys()
            self.status = then
            if self.live:
                self.status = StageStatus.RUNNING if self.started else StageStatus.PLACED

        match fact:
            case f.StagePlaced():
                self.live[fact.token] = fact.agent
                self.process[fact.token] = fact.incarnation
                self.ahead_of, self.awaits = dict(fact.awaits), dict(fact.awaits)
                self.status = StageStatus.RUNNING if self.started else StageStatus.PLACED
            case f.StageStarted():
                self.status = StageStatus.RUNNING
                self.started.add(fact.token)
            case f.StageCommitted() | f.StageDefaulted() | f.StageSkipped() | f.StageCancelled():
                if isinstance(fact, f.StageCommitted) and _kept(fact) and fact.token in self.live:
                    self.holders = {self.live[fact.token]: self.process[fact.token]}
                self.live.clear()
                self.started.clear()
                self.status, self.again = _ENDS[type(fact)], False
                if not isinstance(fact, f.StageCancelled):
                    self.committed = fact.token
                    outputs: dict[str, Any] = getattr(fact, "outputs", {})
                    self.outputs = {name: ref.digest for name, ref in outputs.items()}
                    self.holds = getattr(fact, "holds", {})
                    self.consumed = getattr(fact, "consumed", {})
            case f.StageFailed():
                over(StageStatus.FAILED if fact.retry_seconds is None else StageStatus.PENDING)
                self.failures += 1
            case f.StageSuperseded():
                over(StageStatus.PENDING)
                self.deaths += fact.death
                self.input_losses += fact.input_lost
            case f.StageReopened():
                self.status, self.committed, self.again = StageStatus.PENDING, None, True
                self.outputs, self.holds, self.consumed, self.holders = {}, {}, {}, {}
            case f.OutputsHeld():
                self.holders[fact.agent] = fact.incarnation
            case f.OutputsGone():
                self.holders.pop(fact.agent, None)


class Given(NamedTuple):
    """What an attempt was given out with: its stage as it was, its variant, and all that led into it, at a revision."""

    revision: int
    spec: StageSpec
    arcs: Sequence[Dependency]
    bindings: Sequence[InputBinding]
    variant: str = ""


class JobView:
    """One job, as the journal has it."""

    def __init__(self, fact: f.JobSubmitted) -> None:
        self.submitted = fact
        self.status = JobStatus.RUNNING
        self.cancelled = False
        #: what it has to end as, once it is being cancelled
        self.ends = JobStatus.CANCELLED
        self.constellation = fact.constellation
        #: the patches of clients that were taken, what made each revision of the one before, and the constellation before the last
        self.patches: list[f.JobPatched] = []
        self.differences: list[Difference] = []
        self.before = fact.constellation
        #: what its stages have grown, as it stands, and where the stages that were grown come from
        self.growths: dict[StageId, Standing] = {}
        self.origins: dict[StageId, Origin] = {}
        self.stages = {name: StageView(spec) for name, spec in fact.constellation.stages.items()}
        self._index()
        self.live = 0
        #: its outputs, by name, once it has ended: their digests
        self.outputs: dict[str, str] = {}
        #: its events: offsets with lines
        self.events: list[tuple[int, bytes]] = []
        #: stages whose fate faults have changed for good: their budgets were used up, or what they give differs
        self.tainted: set[StageId] = set()
        #: stages with a result of when the job was being stopped: nothing followed from it
        self.unfollowed: set[StageId] = set()

    @property
    def revision(self) -> int:
        return self.submitted.revision + len(self.differences)

    def given(self, name: StageId) -> Given:
        """What an attempt of a stage is given out with now."""
        return Given(self.revision, self.stages[name].spec, self.upstreams[name], self.bindings[name])

    def patch(self, fact: f.JobPatched) -> None:
        """The job is another one from here on."""
        self.patches.append(fact)
        self._change(fact.difference)

    def grow(self, name: StageId, growth: f.Growth, asked: Patch | None) -> None:
        """So it is by a result of a stage, which asked for something."""
        back = self.standing(name)
        base, exact = taken_back(self.constellation, list(back.values())), self.exact(name)
        origin = self.origin(name)
        self._change(growth.difference)
        for each in back:
            self.growths.pop(each, None)
        whole = growth.difference if not back else between(base, self.constellation)
        self.growths[name] = Standing(asked, whole, self.revision, exact)
        for change in growth.difference.stages:
            if change.before is None:
                self.origins[change.stage] = Origin(name, origin.root, origin.generation + 1)

    def origin(self, name: StageId) -> Origin:
        """Where a stage comes from; one that was not grown from nowhere else."""
        return self.origins.get(name) or Origin(name, name, 0)

    def came_of(self, name: StageId) -> list[StageId]:
        """All stages that are there for what a stage has grown."""
        found = [name]
        for each in found:
            found += [other for other, origin in self.origins.items() if origin.by == each]
        return found[1:]

    def standing(self, name: StageId) -> dict[StageId, Standing]:
        """What would have to be taken back if a stage grew otherwise."""
        if name not in self.growths:
            return {}
        return {each: self.growths[each] for each in (name, *self.came_of(name)) if each in self.growths}

    def exact(self, name: StageId) -> bool:
        """Whether it is known to the letter what taking that back comes to: no client has changed the job since."""
        back = self.standing(name).values()
        last = self.patches[-1].revision if self.patches else 0
        return all(each.exact and each.revision > last for each in back)

    def end_waits(self, fact: f.StageCommitted) -> None:
        """A result is there: what awaited that attempt goes on, and what has started on another one as well."""
        for arc in self.downstreams[fact.stage]:
            stage = self.stages[arc.downstream]
            if stage.awaits.get(fact.stage) == fact.token or stage.started:
                stage.awaits.pop(fact.stage, None)

    def _change(self, difference: Difference) -> None:
        self.before, self.constellation = self.constellation, differing(self.constellation, difference)
        self.differences.append(difference)
        for change in difference.stages:
            stage = self.stages.get(change.stage)
            if change.after is None:
                for known in (self.stages, self.growths, self.origins):
                    known.pop(change.stage, None)
            elif stage is None:
                self.stages[change.stage] = StageView(change.after)
            else:
                stage.spec = change.after
                stage.failures = stage.deaths = stage.input_losses = 0
        self._index()

    def _index(self) -> None:
        self.upstreams: dict[StageId, list[Dependency]] = {name: [] for name in self.stages}
        self.downstreams: dict[StageId, list[Dependency]] = {name: [] for name in self.stages}
        self.bindings: dict[StageId, list[InputBinding]] = {name: [] for name in self.stages}
        for arc in self.constellation.dependencies:
            self.upstreams[arc.downstream].append(arc)
            self.downstreams[arc.upstream].append(arc)
        for binding in self.constellation.bindings:
            self.bindings[binding.downstream].append(binding)

    @property
    def ended(self) -> bool:
        return self.status not in (JobStatus.RUNNING, JobStatus.CANCELLING)


def _kept(fact: f.StageCommitted) -> bool:
    return any(ref.inline is None and ref.holder != JOB_STORE for ref in fact.outputs.values())
