"""Gives ready stages to agents."""

from collections.abc import Sequence
from typing import Final

from starloom.agents.messages import Assign, Await, Input
from starloom.dag import limits
from starloom.dag.expectation import told_seconds
from starloom.dag.facts import StagePlaced
from starloom.dag.ids import FencingToken, StageId, TaskToken
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.ahead import Ahead
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import Fleet, Member, Work
from starloom.orchestrator.lanes import Lane, ReadyLanes
from starloom.orchestrator.lineage import Fed, Verdict, comparisons_of, inputs_of, verdict
from starloom.orchestrator.placement import Candidate, Choice, Move, Planner, Want
from starloom.orchestrator.planwanted import left_seconds
from starloom.orchestrator.propagation import Propagation
from starloom.orchestrator.runs import PLAN_AWAITED, VARIANT_OPEN, Run, Waits
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.sourcing import Holders, Sourcing, any_online, input_of, moves_of
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.streams import pending
from starloom.orchestrator.worth import is_open

_LINE: Final = round(0.25 * limits.DELEGATED_SECONDS * NANOS)
"""So soon a stage is looked at again that is not to stand in line: most of what stands there is left then. In nanoseconds."""
Spare = dict[int, list[Candidate]]
"""Those that had a free slot when a lane was first looked at, by its number."""


class Dispatcher:
    """Places ready stages, as long as some node has room for them."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        lanes: ReadyLanes,
        ahead: Ahead,
        waits: Waits,
        endings: Endings,
        settler: Settler,
        propagation: Propagation,
    ) -> None:
        self._fleet: Fleet = state.fleet
        self._planner: Planner = state.planner
        self._ledger = ledger
        self._lanes = lanes
        self._ahead = ahead
        self._waits = waits
        self._endings = endings
        self._settler = settler
        self.sourcing = Sourcing(self._fleet, ledger, waits, settler, propagation)

    def run(self) -> None:
        """Places all that can be placed now."""
        self._lanes.serve(self._carefully)

    def _carefully(self, lane: Lane, run: Run, name: StageId) -> bool:
        try:
            return self._place(lane, run, name)
        except Exception as error:
            self._endings.contain(run.job.id, f"the placement of {name}", error)
            return True

    def copy(self, run: Run, name: StageId, spare: Spare) -> bool:
        """Gives a running stage's copy to a node that has a free slot and nothing of the stage; False if there is none now.

        `spare` is empty at first, and passed on from copy to copy within one decision.
        """
        job = run.job
        stage = job.stages[name]
        lane = self._lanes.lane_of(run, name)
        shunned = {*stage.live.values(), *run.avoid.get(name, ())}
        known = spare.get(lane.seq)
        if known is None:
            candidates = self._lanes.candidates(lane, run, name)
            known = spare[lane.seq] = [each for each in candidates if _has_slot(each.member)]
        free = [each for each in known if each.member.name not in shunned and _has_slot(each.member)]
        if self._variant(run, name) != stage.variant:
            # No node is left for the variant that runs, and a copy in another one is none.
            return False
        if not free or run.full or verdict(job, name) is not Verdict.RUN:
            return False
        fed = inputs_of(job, name)
        holders = self.sourcing.holders(fed)
        if set(lane.required).difference(item.port for item in fed) or not all(map(any_online, holders.values())):
            return False
        told = told_seconds(stage.taken, lane.spec)
        choice = self._planner.choose(Want(job.id, name, lane.spec, moves_of(fed, holders), told=told), free)
        if choice is None:
            return False
        inputs = [input_of(run, item, holders, choice.candidate.member) for item in fed]
        self.assign(lane, run, name, inputs, choice, copy=True)
        return True

    def candidates(self, lane: Lane, run: Run, name: StageId) -> Sequence[Candidate]:
        """The nodes that a stage of a lane may go to, by name."""
        return self._lanes.candidates(lane, run, name)

    def follow(self, lane: Lane, run: Run, name: StageId) -> bool:
        """Places a stage that streams with others which are under way, wherever a node is there; False if none is."""
        return self._place(lane, run, name, anyway=True)

    def _place(self, lane: Lane, run: Run, name: StageId, *, anyway: bool = False) -> bool:
        """Places a stage, or finds what else it waits for; False if no candidate has room, or, `anyway`, is there."""
        job = run.job
        if self._lanes.moved(lane, run, name):
            return True
        candidates = self.candidates(lane, run, name)
        # Before its inputs are looked at: there may be many, and none is made again for a stage without a place.
        if name in run.streams.groups and run.streams.verdict(job, name) not in (Verdict.RUN, Verdict.AHEAD):
            return True
        if not any(candidate.member.there if anyway else candidate.member.open for candidate in candidates):
            return False
        fed: Sequence[Fed] = inputs_of(job, name) if job.upstreams[name] or job.bindings[name] else ()
        streamed: set[str] = run.streams.ports(name) if name in run.streams.groups else set()
        if lane.required and not self.sourcing.complete(lane, run, name, {*streamed, *(item.port for item in fed)}):
            return True
        if fed and not self.sourcing.fits(run, name, fed):
            return True
        moves: Sequence[Move] = ()
        holders: Holders = {}
        if any(item.ref.inline is None for item in fed):
            found = self.sourcing.find(run, name, fed)
            if found is None:
                return True
            holders = found
            moves = moves_of(fed, holders)
        if anyway:
            producers = run.streams.producers(job, name)
            moves = [*moves, *(Move(0, self._fleet.members[agent]) for agent in producers)]
        choice = self._planner.choose(self.want(lane, run, name, moves, anyway=anyway), candidates)
        if choice is None:
            return False
        member = choice.candidate.member
        if not anyway and self._awaits_plan(run, name, member):
            return True
        inputs = [input_of(run, item, holders, member) for item in fed if item.port not in streamed]
        awaits = run.streams.awaits(job, name, holders, self._fleet) if streamed else ()
        self.assign(lane, run, name, inputs, choice, awaits=awaits)
        return True

    def _awaits_plan(self, run: Run, name: StageId, member: Member) -> bool:
        """Has a stage that would only stand in line wait for its job's first plan, which may have it elsewhere.

        One whose variant a plan may choose for the job's deadline waits for that in any case, and later, where its job
        has stood in line for a while there, until less of that is left: with its place it has its variant for good.
        """
        guide, now = run.guide, self._ledger.now
        if guide is None:
            return False
        chooses = guide.hurries and is_open(run, run.job.stages[name])
        until, why = guide.awaited_until(now), PLAN_AWAITED
        if member.in_hand < member.slots and not (chooses and until is not None):
            return False
        if until is None and chooses and self._in_line(run, member) > limits.DELEGATED_SECONDS:
            until, why = now + _LINE, VARIANT_OPEN
        if until is None:
            return False
        self._waits.until(run, name, until, why)
        return True

    def _in_line(self, run: Run, member: Member) -> float:
        """In about how many seconds an agent without a free slot has done what it has of a job."""
        now = self._ledger.now
        if member.in_hand <= member.slots:
            # Nothing stands in line: the first slot that is free again is for the next.
            under_way = (work for task, work in member.assigned.items() if task not in member.delegated)
            return min((left_seconds(work, now) for work in under_way), default=0.0)
        mine = [
            (run.job.stages[task.stage], task, work) for task, work in member.assigned.items() if task.job == run.job.id
        ]
        left = (left_seconds(work, now) if task.token in stage.started else work.seconds for stage, task, work in mine)
        return sum(left) / member.slots

    def assign(
        self,
        lane: Lane,
        run: Run,
        name: StageId,
        inputs: Sequence[Input],
        choice: Choice,
        *,
        copy: bool = False,
        awaits: Sequence[Await] = (),
    ) -> None:
        """Gives a new attempt of a stage to the chosen node; what only awaited that may go ahead of it then."""
        job = run.job
        stage = job.stages[name]
        tokens = {awaited.upstream: awaited.token for awaited in awaits if awaited.upstream}
        candidate = choice.candidate
        member = candidate.member
        token = self._ledger.next_token(stage)
        task = TaskToken(job.id, name, token)
        if run.guide is not None and not copy:
            run.guide.placed(name, choice.aside, self._ledger.now)
        self._ledger.record(
            StagePlaced(
                job=job.id,
                stage=name,
                token=token,
                agent=member.name,
                incarnation=member.incarnation,
                target=candidate.target,
                copy=copy,
                variant=self._variant(run, name),
                awaits={upstream: each for upstream, each in tokens.items() if each in job.stages[upstream].live},
            )
        )
        ends = self._ledger.now + round(choice.finish * NANOS)
        self._fleet.expect(
            member.name, task, Work(choice.seconds, {**_fetches(inputs), **tokens} if inputs else tokens, ends)
        )
        self._ledger.send(member.name, self._assignment(lane, run, task, inputs, candidate.target, awaits))
        if name in run.streams.groups:
            for each in pending(job, run.streams.groups[name]):
                self._settler.decide(run, each)
        if not copy and not lane.spec.grows:
            self._offer_downstreams(run, name)

    def _assignment(
        self,
        lane: Lane,
        run: Run,
        task: TaskToken,
        inputs: Sequence[Input],
        target: str,
        awaits: Sequence[Await],
    ) -> Assign:
        """What the agent of an attempt is told."""
        job, name = run.job, task.stage
        stage = job.stages[name]
        params = stage.taken.params
        return Assign(
            task=task,
            kind=lane.kind,
            params={**lane.defaults, **params} if lane.defaults else params,
            inputs=tuple(inputs),
            awaits=tuple(awaits),
            target=target,
            timeout_seconds=stage.spec.policy.timeout_seconds,
            priority=job.options.priority,
            after_seconds=run.guide.after_seconds(name, self._ledger.now) if run.guide is not None else 0.0,
            publish=run.to_publish(name),
            comparisons=comparisons_of(job, name),
            readers=run.streams.readers(job, name),
            private=run.labels.given(name) is not None,
        )

    def want(
        self,
        lane: Lane,
        run: Run,
        name: StageId,
        moves: Sequence[Move],
        *,
        ahead: float | None = None,
        anyway: bool = False,
    ) -> Want:
        """A stage as placement sees it."""
        return Want(
            run.job.id,
            name,
            lane.spec,
            moves,
            run.avoid.get(name, ()),
            ahead,
            anyway,
            told_seconds(self._lanes.spec_of(run, name), lane.spec),
            run.guide.advised(name, self._ledger.now) if run.guide is not None else None,
        )

    def _variant(self, run: Run, name: StageId) -> str:
        spec = self._lanes.spec_of(run, name)
        return spec.variants[0].name if spec.variants else ""

    def _offer_downstreams(self, run: Run, name: StageId) -> None:
        """What only awaited that a stage is given out may go ahead now."""
        job = run.job
        for arc in job.downstreams[name]:
            downstream = arc.downstream
            if downstream in run.streams.groups:
                continue
            if job.stages[downstream].status is StageStatus.PENDING and verdict(job, downstream) is Verdict.AHEAD:
                self._ahead.put(run, downstream)


def _has_slot(member: Member) -> bool:
    return member.open and member.in_hand < member.slots


def _fetches(inputs: Sequence[Input]) -> dict[StageId, FencingToken]:
    return {
        item.consumed.upstream: item.consumed.token
        for item in inputs
        if item.ref.inline is None and item.consumed.token is not None
    }
