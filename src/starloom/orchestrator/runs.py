"""What is kept of open jobs beside their state: ranks, turns and waits. Made anew after a restart, never journaled."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from starloom.agents.messages import Failed, Finished, InputLost
from starloom.dag.constellation import StageSpec
from starloom.dag.errors import StarloomError
from starloom.dag.expectation import run_seconds
from starloom.dag.ids import AgentId, FencingToken, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Difference, Patch
from starloom.dag.privacy import labels_in
from starloom.orchestrator.agenda import Agenda
from starloom.orchestrator.colocated import Group, groups_in
from starloom.orchestrator.spreading import Apart, apart_in
from starloom.orchestrator.streams import Streams

if TYPE_CHECKING:
    from starloom.orchestrator.clocks import Clock
    from starloom.orchestrator.guide import Guide
    from starloom.orchestrator.lanes import Lane


PLAN_AWAITED: Final = "for its job's first plan"
"""Why a stage waits that is to be placed by that."""
VARIANT_OPEN: Final = "others of its job, behind which its variant may still be chosen for the deadline"
"""Why a stage waits that would only stand in line, and keep the variant with which it was given out."""


class BackOff(NamedTuple):
    """A stage's wait until a time, in monotonic nanoseconds."""

    until: int
    why: str


class Silence(NamedTuple):
    """A stage's wait for word of agents that hold its inputs: the first that is heard of, or lost, ends it."""

    agents: tuple[AgentId, ...]


@dataclass(slots=True)
class Asked:
    """A patch that was asked for. While it settles: the attempts that agents were asked to give back."""

    patch: Patch
    digest: str
    principal: str
    requests: list[int]
    deadline: int = 0
    revoked: dict[TaskToken, AgentId] = field(default_factory=dict)


@dataclass(slots=True)
class Copying:
    """What is known of the copies of one result, beside those that facts tell of."""

    token: FencingToken
    #: of one copy
    size_bytes: int
    #: who was asked for a copy and has not answered, and who could not make one
    agents: dict[AgentId, None] = field(default_factory=dict)
    unable: dict[AgentId, None] = field(default_factory=dict)
    #: whose loss would concern it
    known: dict[AgentId, None] = field(default_factory=dict)
    #: whether it is looked at after a while, and how often that was
    waits: bool = False
    failures: int = 0


class Early(NamedTuple):
    """A report that cannot be judged before another stage has its result: who sent it, and the process."""

    agent: AgentId
    incarnation: str
    report: Finished | Failed | InputLost


class Run:
    """An open job, as it is being worked on."""

    def __init__(self, job: JobState, kinds: Mapping[str, KindSpec], seq: int) -> None:
        self.job = job
        self.seq = seq
        self.order = {stage: index for index, stage in enumerate(job.stages)}
        #: seconds from a stage's start to the end of the job, by hints, if nothing else ran
        self.rank = upward_ranks(job, kinds)
        #: ports of each stage that are outputs of the job
        self.publish: dict[StageId, tuple[str, ...]] = {}
        self._declare()
        #: what of it streams
        self.streams = Streams(job, kinds)
        #: how far what its stages read and give may go
        self.labels = labels_in(job.shape, kinds)[0]
        #: those of its stages that share a node
        self.colocated: dict[StageId, Group] = groups_in(job)
        #: those that are spread
        self.spread: dict[StageId, Apart] = apart_in(job)
        #: those that have variants, each as it is in the one that it has or would have now
        self.taken: dict[StageId, StageSpec] = {}
        #: the plan that its stages are placed by, if it is worth one
        self.guide: Guide | None = None
        #: this job's turn among those of its priority
        self.tag = 0
        self.closed = False
        #: stages in a lane
        self.queued: set[StageId] = set()
        #: stages that may be given out ahead of their upstreams, and wait for room
        self.ahead: set[StageId] = set()
        #: reports of how attempts ended that await upstreams: they count once those have results
        self.early: dict[StageId, Early] = {}
        #: upstreams, by stages, whose attempts' agents cannot be asked by those that await them
        self.unasked: dict[StageId, dict[StageId, None]] = {}
        #: pending stages whose upstreams let them run, and which wait for a time or for nodes that hold inputs
        self.waits: dict[StageId, BackOff | Silence] = {}
        #: what is left of the deadlines of stages whose dependencies hold, and of the job's own, without a name
        self.clocks: dict[StageId, Clock] = {}
        #: lanes that have stages of this job, by their number
        self.lanes: dict[int, Lane] = {}
        #: those of them whose stages wait for its max_parallel
        self.parked: list[Lane] = []
        #: stages that failed on what is made again, and try once more then: what of, and why they failed
        self.unsettled: dict[StageId, str] = {}
        #: how often a stage could not reach its inputs since they were made
        self.unreachable: dict[StageId, int] = {}
        #: nodes where a stage could not reach its inputs, or that were lost with it
        self.avoid: dict[StageId, set[AgentId]] = {}
        #: results that their holders bring to the job store: whether they are there, None while they are on their way
        self.relays: dict[StageId, tuple[FencingToken, bool | None]] = {}
        #: readers that could not reach a holder, each with the holder
        self.apart: set[tuple[AgentId, AgentId]] = set()
        #: results that other nodes are to keep copies of
        self.copying: dict[StageId, Copying] = {}
        #: agents that may keep something for it, beside those that facts tell of
        self.keepers: dict[AgentId, None] = {}
        #: requests to cancel it that are not answered, each with its time
        self.askers: list[tuple[int, int]] = []
        #: patches that were asked for: the first is being settled, the others wait
        self.patches: deque[Asked] = deque()
        #: stages that a settling patch touches: they are neither placed nor skipped before it is decided
        self.held: dict[StageId, None] = {}
        #: answers to patches that were refused, by their ids, the oldest first
        self.refusals: dict[str, tuple[str, StarloomError]] = {}

    def __repr__(self) -> str:
        return f"<Run of {self.job.id}: queued={len(self.queued)} waits={len(self.waits)}>"

    @property
    def full(self) -> bool:
        """Whether the job has as many active attempts as its options allow.

        Those are not counted that wait for one of their group, which waits for others: it would wait for ever.
        """
        bound = self.job.options.max_parallel
        return 0 < bound <= self.job.active_attempts and bound <= self.job.active_attempts - self.streams.stalled(
            self.job
        )

    def group_key(self, stage: StageId) -> tuple[str, ...]:
        """The job and the group, of a stage that stands with others, or apart from them."""
        if self.colocated and (group := self.colocated.get(stage)) is not None:
            return (self.job.id, group.name)
        if self.spread and (apart := self.spread.get(stage)) is not None:
            return (self.job.id, "apart", apart.spread.group)
        return ()

    def to_publish(self, stage: StageId) -> tuple[str, ...]:
        """The ports whose bytes the job store has to have; also of outputs that the stage's growth led away from it."""
        ports = self.publish.get(stage, ())
        growth = self.job.growths.get(stage)
        if growth is None:
            return ports
        ends = (change.before for change in growth.stands.outputs.values())
        return tuple(
            dict.fromkeys([*ports, *(end.output for end in ends if end is not None and end.upstream == stage)])
        )

    def patched(self, difference: Difference, kinds: Mapping[str, KindSpec]) -> None:
        """A patch was taken: what is kept of stages that changed begins anew. Ranks are not passed on to upstreams."""
        changed = [change.stage for change in difference.stages]
        for stage in changed:
            self.order.setdefault(stage, len(self.order))
            self.queued.discard(stage)
            for kept in (self.waits, self.unsettled, self.unreachable, self.avoid, self.taken):
                kept.pop(stage, None)
        for stage in difference.touched:
            self.clocks.pop(stage, None)
        self.streams = Streams(self.job, kinds)
        self.colocated = groups_in(self.job)
        self.spread = apart_in(self.job)
        if difference.outputs:
            self.publish.clear()
            self._declare()
        rank_stages(self.job, kinds, self.rank, {stage for stage in changed if stage in self.job.stages})

    def relabel(self, kinds: Mapping[str, KindSpec]) -> list[StageId]:
        """Finds the labels anew; the stages that may run elsewhere than before."""
        self.colocated, self.spread = groups_in(self.job), apart_in(self.job)
        before, self.labels = self.labels.levels, labels_in(self.job.shape, kinds)[0]
        now = self.labels.levels
        return [name for name in {**before, **now} if before.get(name) != now.get(name)]

    def _declare(self) -> None:
        for binding in self.job.shape.outputs.values():
            ports = self.publish.get(binding.upstream, ())
            if binding.output not in ports:
                self.publish[binding.upstream] = (*ports, binding.output)


class Waits:
    """Stages that wait for a time, or for word from nodes that hold inputs."""

    def __init__(self) -> None:
        self._times: Agenda[tuple[Run, StageId]] = Agenda(_waits)
        self._agents: dict[AgentId, dict[tuple[Run, StageId], None]] = {}

    @property
    def next_time(self) -> int | None:
        """When the next back-off ends; a little early if that stage no longer waits."""
        return self._times.next_time

    def until(self, run: Run, stage: StageId, time: int, why: str) -> None:
        """The stage waits until a time."""
        run.waits[stage] = BackOff(time, why)
        self._times.put(time, (run, stage))

    def planned(self, run: Run) -> list[StageId]:
        """The stages that waited for their job's first plan; they wait no longer."""
        found = [name for name, wait in run.waits.items() if isinstance(wait, BackOff) and wait.why is PLAN_AWAITED]
        for name in found:
            del run.waits[name]
        return found

    def for_agents(self, run: Run, stage: StageId, agents: Iterable[AgentId]) -> None:
        """The stage waits until one of the agents is heard of, or lost."""
        run.waits[stage] = silence = Silence(tuple(dict.fromkeys(agents)))
        for agent in silence.agents:
            self._agents.setdefault(agent, {})[run, stage] = None

    def due(self, now: int) -> Iterator[tuple[Run, StageId]]:
        """The stages whose back-off is over; they wait no longer."""
        for run, stage in self._times.due(now):
            del run.waits[stage]
            yield run, stage

    def heard(self, agent: AgentId) -> Iterator[tuple[Run, StageId]]:
        """The stages that waited for an agent; they wait no longer."""
        for run, stage in self._agents.pop(agent, ()):
            wait = run.waits.get(stage)
            if isinstance(wait, Silence) and agent in wait.agents and not run.closed:
                del run.waits[stage]
                yield run, stage


def _waits(entry: tuple[Run, StageId], time: int) -> bool:
    run, stage = entry
    wait = run.waits.get(stage)
    return isinstance(wait, BackOff) and wait.until == time and not run.closed


def upward_ranks(job: JobState, kinds: Mapping[str, KindSpec]) -> dict[StageId, float]:
    """For each stage the hinted seconds of the longest way from its start to an end of the job."""
    ranks: dict[StageId, float] = {}
    if job.shape.dependency_count:
        open_arcs = {stage: len(arcs) for stage, arcs in job.downstreams.items()}
        _rank(job, kinds, ranks, open_arcs)
    return ranks


def rank_stages(
    job: JobState, kinds: Mapping[str, KindSpec], ranks: dict[StageId, float], stages: Collection[StageId]
) -> None:
    """Ranks some stages anew, by the ranks that the others have."""
    if job.shape.dependency_count:
        _rank(job, kinds, ranks, {s: sum(arc.downstream in stages for arc in job.downstreams[s]) for s in stages})


def _rank(
    job: JobState, kinds: Mapping[str, KindSpec], ranks: dict[StageId, float], open_arcs: dict[StageId, int]
) -> None:
    """Ranks the stages of `open_arcs`, each once none of its arcs into another of them is open."""
    done = [stage for stage, count in open_arcs.items() if count == 0]
    for stage in done:
        spec = job.stages[stage].spec
        kind = kinds.get(spec.kind)
        below = max((ranks.get(arc.downstream, 0.0) for arc in job.downstreams[stage]), default=0.0)
        # Kinds without a hint still count: of two chains the longer one goes first.
        ranks[stage] = below + max(run_seconds(spec, kind) if kind else 0.0, _LEAST_SECONDS)
        for arc in job.upstreams[stage]:
            if arc.upstream in open_arcs:
                open_arcs[arc.upstream] -= 1
                if open_arcs[arc.upstream] == 0:
                    done.append(arc.upstream)


_LEAST_SECONDS = 1e-4
