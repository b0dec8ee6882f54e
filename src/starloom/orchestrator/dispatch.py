"""Gives ready stages to agents."""

from collections.abc import Sequence

from starloom.agents.messages import Assign, Input
from starloom.dag.facts import ErrorInfo, StagePlaced
from starloom.dag.ids import AgentId, FencingToken, StageId, TaskToken
from starloom.dag.values import JOB_STORE
from starloom.orchestrator.fleet import AgentState, Fleet, Work
from starloom.orchestrator.lanes import Lane, ReadyLanes
from starloom.orchestrator.lineage import Fed, Verdict, comparisons_of, inputs_of, verdict
from starloom.orchestrator.placement import Choice, Move, Planner, Want
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger, State


class Dispatcher:
    """Places ready stages, as long as some node has room for them."""

    def __init__(self, state: State, ledger: Ledger, lanes: ReadyLanes, waits: Waits, settler: Settler) -> None:
        self._fleet: Fleet = state.fleet
        self._planner: Planner = state.planner
        self._ledger = ledger
        self._lanes = lanes
        self._waits = waits
        self._settler = settler

    def run(self) -> None:
        """Places all that can be placed now."""
        self._lanes.serve(self._place)

    def copy(self, run: Run, name: StageId) -> bool:
        """Gives a running stage's copy to a node that has a free slot and nothing of the stage; False if there is none now."""
        job = run.job
        stage = job.stages[name]
        lane = self._lanes.lane(stage.spec.kind, stage.spec.requires)
        shunned = {*stage.live.values(), *run.avoid.get(name, ())}
        free = [
            candidate
            for candidate in lane.candidates(self._fleet)
            if candidate.member.name not in shunned
            and candidate.member.open
            and len(candidate.member.assigned) < candidate.member.slots
        ]
        if not free or run.full or verdict(job, name) is not Verdict.RUN:
            return False
        fed = inputs_of(job, name)
        if set(lane.required).difference(item.port for item in fed) or not all(map(self._is_there, fed)):
            return False
        choice = self._planner.choose(Want(job.id, name, lane.spec, self._moves(fed)), free)
        if choice is None:
            return False
        self._assign(lane, run, name, fed, choice, copy=True)
        return True

    def _is_there(self, item: Fed) -> bool:
        """Whether a value can be fetched now."""
        if item.ref.inline is not None or item.ref.holder == JOB_STORE or item.upstream is None:
            return True
        holder = self._fleet.members.get(AgentId(item.ref.holder))
        return holder is not None and holder.holds(item.upstream.incarnation) and holder.state is AgentState.ONLINE

    def _moves(self, fed: Sequence[Fed]) -> Sequence[Move]:
        return [
            Move(item.ref.bytes, self._fleet.members.get(AgentId(item.ref.holder)))
            for item in fed
            if item.ref.inline is None
        ]

    def _place(self, lane: Lane, run: Run, name: StageId) -> bool:
        """Places a stage, or finds what else it waits for; False if no candidate has room."""
        job = run.job
        candidates = lane.candidates(self._fleet)
        # Before its inputs are looked at: there may be many, and none is made again for a stage without a place.
        if not any(candidate.member.open for candidate in candidates):
            return False
        fed: Sequence[Fed] = inputs_of(job, name) if job.upstreams[name] or job.bindings[name] else ()
        if lane.required and not self._has_inputs(lane, run, name, fed):
            return True
        moves: Sequence[Move] = ()
        if any(item.ref.inline is None for item in fed):
            if not self._inputs_are_there(run, name, fed):
                return True
            moves = self._moves(fed)
        choice = self._planner.choose(Want(job.id, name, lane.spec, moves, run.avoid.get(name, ())), candidates)
        if choice is None:
            return False
        self._assign(lane, run, name, fed, choice)
        return True

    def _has_inputs(self, lane: Lane, run: Run, name: StageId, fed: Sequence[Fed]) -> bool:
        """Whether each input that the kind needs has a value; the stage fails if not, for no other place would help."""
        missing = set(lane.required).difference(item.port for item in fed)
        if not missing:
            return True
        stage = run.job.stages[name]
        ports = ", ".join(sorted(missing))
        message = f"input {ports} has no value: its upstream gave none; {lane.kind} needs one"
        token = FencingToken(self._ledger.epoch, stage.attempt)
        self._settler.fail(run, name, token, ErrorInfo(message=message, cause="InputUnavailable"))
        self._settler.drain()
        return False

    def _inputs_are_there(self, run: Run, name: StageId, fed: Sequence[Fed]) -> bool:
        """Whether every value can be fetched; one that is gone is made again, and of a silent holder word is waited for."""
        silent: AgentId | None = None
        gone: dict[StageId, str] = {}
        for item in fed:
            ref = item.ref
            if ref.inline is not None or ref.holder == JOB_STORE or item.upstream is None:
                continue
            holder = self._fleet.members.get(AgentId(ref.holder))
            if holder is None or not holder.holds(item.upstream.incarnation):
                gone[item.consumed.upstream] = (
                    f"{ref.holder}, which held its output {item.port}, was lost; {name} needs it"
                )
            elif holder.state is AgentState.SUSPECT:
                silent = holder.name
        for upstream, reason in gone.items():
            self._settler.reopen(run, upstream, reason)
        if gone:
            self._settler.drain()
            return False
        if silent is not None:
            self._waits.for_agent(run, name, silent)
            return False
        return True

    def _assign(
        self, lane: Lane, run: Run, name: StageId, fed: Sequence[Fed], choice: Choice, *, copy: bool = False
    ) -> None:
        job = run.job
        stage = job.stages[name]
        candidate, seconds = choice
        member = candidate.member
        token = self._ledger.next_token(stage)
        task = TaskToken(job.id, name, token)
        self._ledger.record(
            StagePlaced(
                job=job.id,
                stage=name,
                token=token,
                agent=member.name,
                incarnation=member.incarnation,
                target=candidate.target,
                copy=copy,
            )
        )
        self._fleet.expect(member.name, task, Work(seconds, _fetches(fed)))
        params = stage.spec.params
        self._ledger.send(
            member.name,
            Assign(
                task=task,
                kind=lane.kind,
                params={**lane.defaults, **params} if lane.defaults else params,
                inputs=tuple(self._input(item) for item in fed),
                target=candidate.target,
                timeout_seconds=stage.spec.policy.timeout_seconds,
                priority=job.options.priority,
                publish=run.to_publish(name),
                comparisons=comparisons_of(job, name),
            ),
        )

    def _input(self, item: Fed) -> Input:
        address = ""
        if item.ref.inline is None and item.ref.holder != JOB_STORE:
            address = self._fleet.members[AgentId(item.ref.holder)].profile.address
        return Input(port=item.port, ref=item.ref, consumed=item.consumed, address=address)


def _fetches(fed: Sequence[Fed]) -> dict[StageId, FencingToken]:
    return {
        item.consumed.upstream: item.consumed.token
        for item in fed
        if item.ref.inline is None and item.consumed.token is not None
    }
