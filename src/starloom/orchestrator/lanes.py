"""Ready stages, in the order in which they are to be placed.

A lane holds the ready stages of one kind with equal requirements and preferences, and as private as each other: they share their candidates, and when
no candidate has room, the lane is put aside as a whole until one has. Stages that share a node with others, or stand
apart from them, have lanes of their own, for each job and group. Between lanes, the job's priority
decides, then the jobs take turns (each served stage moves its job back by one), then within a job the
greatest upward rank, then the order of the constellation.
"""

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final

from starloom.dag import limits
from starloom.dag.constellation import Preference, Preferences, Private, Requirements, StageSpec
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.kinds import KindSpec
from starloom.dag.variants import ways_of
from starloom.orchestrator.feasible import dislike_seconds, may, misfits, targets_for
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.placement import Candidate
from starloom.orchestrator.runs import Run
from starloom.orchestrator.spreading import Apart

LaneKey = tuple[str, tuple[Any, ...], str, tuple[Any, ...], tuple[str, ...]]
"""A kind, what it requires, how private it is, what it prefers, and the group that it stands with or apart from."""
_NOTHING_PREFERRED: Final = Preferences()
Head = tuple[int, int, int]
Place = Callable[["Lane", "Run", StageId], bool]
"""Places a stage, or finds it another thing to wait for; False if no candidate of its lane has room."""


class Lane:
    """Ready stages that may go to the same places."""

    def __init__(
        self,
        key: LaneKey,
        seq: int,
        kind: str,
        requires: Requirements,
        private: Private | None,
        prefers: Preferences = _NOTHING_PREFERRED,
    ) -> None:
        self.key = key
        self.group = key[-1]
        self.seq = seq
        self.kind = kind
        self.requires = requires
        #: how far what the stages read and give may go
        self.private = private
        self.prefers = prefers
        self.blocked = False
        self.jobs: list[tuple[int, int, int, Run]] = []
        self.stages: dict[JobId, list[tuple[float, int, StageId]]] = {}
        self.spec = KindSpec(name=kind)
        #: the kind's inputs that need a value, and the values of parameters that are not given
        self.required: tuple[str, ...] = ()
        self.defaults: dict[str, Any] = {}
        self._candidates: tuple[Candidate, ...] = ()
        self._version = -1

    def candidates(self, fleet: Fleet) -> tuple[Candidate, ...]:
        """The nodes that may run these stages and are not lost, by name; more than once where several targets are weighed."""
        if self._version != fleet.version:
            self._version = fleet.version
            self.spec = fleet.kinds.get(self.kind, self.spec)
            self.required = tuple(name for name, port in self.spec.inputs.items() if not port.optional)
            self.defaults = {name: param.default for name, param in self.spec.params.items() if not param.required}
            self._candidates = tuple(self._find(fleet))
        return self._candidates

    def crowded(self, candidate: Candidate, apart: Apart, taken: Collection[str]) -> Candidate:
        """A candidate that counts as so much later if another that had better stand elsewhere is there."""
        profile, target = candidate.member.profile, candidate.target
        more = apart.spread.seconds if apart.zone(profile) in taken else 0.0
        return Candidate(
            candidate.member, target, True, dislike_seconds(profile, target, self.spec, self.prefers) + more
        )

    def misfits(self, member: Member) -> str:
        """Why a node may not run these stages; empty if it may, or is only lost."""
        offers = self.kind in member.offers
        return " and ".join(misfits(member.profile, offers, self.spec, self.requires, self.private))

    def _find(self, fleet: Fleet) -> list[Candidate]:
        found: list[Candidate] = []
        tier = None if self.requires.tiers else self.spec.tier
        for name in sorted(fleet.members):
            member = fleet.members[name]
            if member.state is not AgentState.LOST and may(
                member.profile, self.kind in member.offers, self.spec, self.requires, self.private
            ):
                found += self._on(member, tier in (None, member.profile.tier))
        return found

    def _on(self, member: Member, usual: bool) -> Iterator[Candidate]:
        """A node as a candidate, with each of the targets that are to be weighed."""
        profile, spec, prefers = member.profile, self.spec, self.prefers
        for target in targets_for(profile, spec, self.requires, prefers):
            if prefers:
                yield Candidate(member, target, True, dislike_seconds(profile, target, spec, prefers))
            else:
                yield Candidate(member, target, usual)


class ReadyLanes:
    """All lanes, and which of them may be served."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lanes: dict[LaneKey, Lane] = {}
        self._awake: dict[int, Lane] = {}
        self._parked: dict[JobId, Run] = {}
        self._regrouped: dict[JobId, Run] = {}
        self._seq = 0
        self._version = -1
        self._clock = 0
        #: whether the last round ended with stages that may have a place now
        self.cut = False

    def lane_of(self, run: Run, stage: StageId) -> Lane:
        """The lane of a stage."""
        return self._lane_for(run, stage, self.spec_of(run, stage))

    def _lane_for(self, run: Run, stage: StageId, spec: StageSpec) -> Lane:
        return self.lane(spec.kind, spec.requires, run.labels.levels.get(stage), spec.prefers, run.group_key(stage))

    def spec_of(self, run: Run, stage: StageId) -> StageSpec:
        """A stage as it is in its variant: while it is in a lane, in that of the lane; else the one that it has, or the best that a node may run."""
        spec = run.job.stages[stage].spec
        if not spec.variants:
            return spec
        known = run.taken.get(stage)
        return known if known is not None and stage in run.queued else self._take(run, stage)

    def _take(self, run: Run, stage: StageId) -> StageSpec:
        """Its own variant, if some node may run that; else the best of those that one may; else its own, or the best.

        Of one that had no place, and names none, its own is what a plan has it in for the job's deadline.
        """
        state = run.job.stages[stage]
        ways = self._ways(run, stage)
        planned = run.guide.variant(stage) if run.guide is not None and not state.spec.variant else ""
        first = state.variant or planned
        ways.sort(key=lambda each: each.variants[0].name != first)
        fit = (way for way in ways if self.candidates(self._lane_for(run, stage, way), run, stage))
        found = run.taken[stage] = next(fit, ways[0])
        return found

    def _ways(self, run: Run, stage: StageId) -> list[StageSpec]:
        return ways_of(run.job.stages[stage].spec, run.job.shape.origin.least_quality)

    def varied(self, run: Run, stages: Collection[StageId]) -> None:
        """Stages are to have other variants: those that are ready are so in the lanes of these."""
        moved = [name for name in stages if name in run.queued]
        run.queued.difference_update(moved)
        self.forget(run, set(moved))
        for name in moved:
            self.push(run, name)

    def _in_any_variant(self, run: Run, stage: StageId) -> Iterator[Member]:
        """The nodes that may run a stage in some variant, whatever its group leaves it; some more than once.

        Not those of the variant that it would have now: that hangs on the nodes of its group, and so on this.
        """
        for way in self._ways(run, stage):
            yield from (each.member for each in self._lane_for(run, stage, way).candidates(self._fleet))

    def moved(self, lane: Lane, run: Run, stage: StageId) -> bool:
        """Whether a stage that was taken out of a lane is to run in another variant than when it came there; then it is in the lane of that."""
        if not run.job.stages[stage].spec.variants or self.lane_of(run, stage) is lane:
            return False
        self.push(run, stage)
        return True

    def candidates(self, lane: Lane, run: Run, stage: StageId) -> Sequence[Candidate]:
        """The nodes that may run a stage of a lane, as far as its group, or those that it stands apart from, leave them."""
        found = lane.candidates(self._fleet)
        if run.spread and (apart := run.spread.get(stage)) is not None:
            return self._apart(apart, lane, run, stage)
        group = run.colocated.get(stage) if run.colocated else None
        if group is None:
            return found

        def nodes(name: StageId) -> set[AgentId]:
            return {member.name for member in self._in_any_variant(run, name)}

        return group.narrowed(run.job, found, self._fleet, nodes)

    def _apart(self, apart: Apart, lane: Lane, run: Run, stage: StageId) -> Sequence[Candidate]:
        if apart.spread.seconds:
            taken = apart.taken(run.job, self._fleet, stage)
            return [lane.crowded(each, apart, taken) for each in lane.candidates(self._fleet)]

        def zones(name: StageId) -> list[str]:
            return apart.zones(member.profile for member in self._in_any_variant(run, name))

        return apart.narrowed(run.job, stage, lane.candidates(self._fleet), self._fleet, zones)

    def lane(
        self,
        kind: str,
        requires: Requirements,
        private: Private | None,
        prefers: Preferences = _NOTHING_PREFERRED,
        group: tuple[str, ...] = (),
    ) -> Lane:
        """The lane for a kind with requirements and preferences, and for how far its data may go."""
        labels = tuple(sorted(requires.labels.items())) if requires.labels else ()
        attributes = tuple(sorted(requires.attributes.items())) if requires.attributes else ()
        preferred = _key_of(prefers) if prefers else ()
        required = (requires.tiers, requires.target, requires.node, requires.memory_bytes, labels, attributes)
        key = (kind, required, private or "", preferred, group)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= limits.READY_LANES_KEPT:
                self._forget_empty()
            self._seq += 1
            lane = self._lanes[key] = Lane(key, self._seq, kind, requires, private, prefers)
        return lane

    def push(self, run: Run, stage: StageId) -> None:
        """A stage is ready; again is fine. `run.queued` without it takes it out again. One that is held stays out."""
        if stage in run.queued or stage in run.held:
            return
        run.queued.add(stage)
        run.taken.pop(stage, None)
        self._enter(self.lane_of(run, stage), run, stage)

    def drop(self, run: Run) -> None:
        """The job has ended: its stages are out, even of lanes that nothing is served from."""
        run.queued.clear()
        for lane in run.lanes.values():
            del lane.stages[run.job.id]
            lane.jobs = [entry for entry in lane.jobs if entry[3] is not run]
            heapify(lane.jobs)
        run.lanes.clear()
        run.parked.clear()
        self._parked.pop(run.job.id, None)
        self._regrouped.pop(run.job.id, None)

    def forget(self, run: Run, stages: Set[StageId]) -> None:
        """Stages are no longer what they were: whatever lane knows them is not theirs any more. Each entry is looked up."""
        for lane in run.lanes.values():
            heap = lane.stages[run.job.id]
            kept = [entry for entry in heap if entry[2] not in stages]
            if len(kept) < len(heap):
                heap[:] = kept
                heapify(heap)

    def wake(self, run: Run) -> None:
        """Stages of the job that stand with others, or apart, may have other nodes than before: their lanes are looked at again."""
        self._regrouped[run.job.id] = run

    def _enter(self, lane: Lane, run: Run, stage: StageId) -> None:
        heap = lane.stages.get(run.job.id)
        if heap is None:
            heap = lane.stages[run.job.id] = []
            run.lanes[lane.seq] = lane
            self._join(lane, run)
        heappush(heap, (-run.rank.get(stage, 0.0), run.order[stage], stage))
        if not lane.blocked:
            self._awake[lane.seq] = lane

    def _join(self, lane: Lane, run: Run) -> None:
        """The job takes its place in a lane, behind those whose turn it is."""
        run.tag = max(run.tag, self._clock)
        heappush(lane.jobs, (-run.job.options.priority, run.tag, run.seq, run))

    def serve(self, place: Place) -> None:
        """Hands out ready stages, the most urgent first, until none is left or none of their candidates has room.

        After PLACEMENTS_PER_DECISION of them it is `cut`: what was decided on goes to agents before the rest is placed.
        """
        self._wake()
        left = limits.PLACEMENTS_PER_DECISION
        while self._awake and left:
            heads: list[tuple[Head, int, Lane]] = []
            for lane in tuple(self._awake.values()):
                self._offer(heads, lane)
            while heads and left:
                known, _, lane = heappop(heads)
                head = self._head(lane)
                if head == known:
                    self._serve_one(lane, place)
                    left -= 1
                self._offer(heads, lane)
        self.cut = bool(self._awake)

    def _offer(self, heads: list[tuple[Head, int, Lane]], lane: Lane) -> None:
        head = None if lane.blocked else self._head(lane)
        if head is None:
            self._awake.pop(lane.seq, None)
        else:
            heappush(heads, (head, lane.seq, lane))

    def _serve_one(self, lane: Lane, place: Place) -> None:
        run = lane.jobs[0][3]
        entry = heappop(lane.stages[run.job.id])
        stage = entry[2]
        run.queued.discard(stage)
        if place(lane, run, stage):
            self._clock = max(self._clock, run.tag)
            run.tag = self._clock + 1
            return
        run.queued.add(stage)
        heappush(lane.stages[run.job.id], entry)
        lane.blocked = True
        for candidate in lane.candidates(self._fleet):
            candidate.member.blocked[lane.seq] = lane

    def _head(self, lane: Lane) -> Head | None:
        """The most urgent job of a lane, after jobs that are done with it or may have no more are out of it."""
        while lane.jobs:
            priority, tag, seq, run = lane.jobs[0]
            heap = lane.stages[run.job.id]
            while heap and heap[0][2] not in run.queued:
                heappop(heap)
            if not heap:
                heappop(lane.jobs)
                del lane.stages[run.job.id], run.lanes[lane.seq]
            elif run.full:
                heappop(lane.jobs)
                run.parked.append(lane)
                self._parked[run.job.id] = run
            elif tag < run.tag:
                heapreplace(lane.jobs, (priority, run.tag, seq, run))
            else:
                return priority, tag, seq
        return None

    def _wake(self) -> None:
        """Lanes that were put aside come back if a candidate may have room, jobs if they may have more attempts."""
        if self._version != self._fleet.version:
            self._version = self._fleet.version
            for lane in self._lanes.values():
                lane.blocked = False
                if lane.stages:
                    self._awake[lane.seq] = lane
        for member in self._fleet.opened.values():
            if member.open:
                for lane in member.blocked.values():
                    lane.blocked = False
                    self._awake[lane.seq] = lane
                member.blocked.clear()
        self._fleet.opened.clear()
        for run in self._regrouped.values():
            for lane in run.lanes.values():
                if lane.group:
                    lane.blocked = False
                    self._awake[lane.seq] = lane
        self._regrouped.clear()
        for run in [run for run in self._parked.values() if not run.full]:
            del self._parked[run.job.id]
            for lane in run.parked:
                self._join(lane, run)
                if not lane.blocked:
                    self._awake[lane.seq] = lane
            run.parked.clear()

    def _forget_empty(self) -> None:
        empty = [key for key, lane in self._lanes.items() if not lane.stages]
        for key in empty:
            self._awake.pop(self._lanes.pop(key).seq, None)


def _key_of(prefers: Preferences) -> tuple[Any, ...]:
    return tuple(map(_said, prefers.prefer)), tuple(map(_said, prefers.avoid))


def _said(said: Preference) -> tuple[Any, ...]:
    labels, attributes = (tuple(sorted(each.items())) for each in (said.labels, said.attributes))
    return said.tiers, said.target, labels, attributes, said.node, said.seconds
