"""Gives out stages ahead of their upstreams, behind all that is ready: agents start them when they have what they await."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from starloom.agents.messages import Await
from starloom.dag import limits
from starloom.dag.conditions import comparison_key
from starloom.dag.constellation import Dependency
from starloom.dag.ids import FencingToken, StageId, TaskToken
from starloom.dag.stagestate import ENDED
from starloom.orchestrator.ahead import NO_ROOM, Ahead
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.dispatch import Dispatcher
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.lanes import Lane
from starloom.orchestrator.lineage import Fed, inputs_of
from starloom.orchestrator.placement import Move, Planner
from starloom.orchestrator.runs import Run
from starloom.orchestrator.sourcing import any_online, fits, input_of, moves_of
from starloom.orchestrator.state import Ledger, State

_AHEAD_NANOS: Final = round(limits.DELEGATED_SECONDS * NANOS)


class _Awaited(NamedTuple):
    """An upstream that is under way: its attempt, who has it, and all that leads from there to the stage."""

    upstream: StageId
    token: FencingToken
    maker: Member
    arcs: list[Dependency]


class Delegation:
    """Places what is expected to have ended within DELEGATED_SECONDS. The rest had better be decided on later."""

    def __init__(self, state: State, ledger: Ledger, ahead: Ahead, endings: Endings, dispatcher: Dispatcher) -> None:
        self._fleet: Fleet = state.fleet
        self._planner: Planner = state.planner
        self._ledger = ledger
        self._ahead = ahead
        self._endings = endings
        self._dispatcher = dispatcher

    def run(self) -> None:
        """Places all that can go ahead now; a chain or a layer at once."""
        self._ahead.serve(self._ledger.now, self._carefully)

    def _carefully(self, lane: Lane, run: Run, name: StageId) -> int | None:
        try:
            return self._place(lane, run, name)
        except Exception as error:
            self._endings.contain(run.job.id, f"the placement of {name}, ahead", error)
            return None

    def _place(self, lane: Lane, run: Run, name: StageId) -> int | None:
        """Places a stage; None if it is, or does not go ahead; NO_ROOM, or else when to look again."""
        job, now = run.job, self._ledger.now
        if name in run.held or name in run.waits or name in run.unsettled:
            return None
        if run.guide is not None and (until := run.guide.awaited_until(now)) is not None:
            return until
        awaited = self._awaited(run, name)
        if not awaited or _peers(awaited) > limits.DELEGATED_PEERS_MAX:
            # Each of several would tell it by a message of its own, where the orchestrator does by one.
            return None
        after = max(each.maker.assigned[TaskToken(job.id, each.upstream, each.token)].ends for each in awaited) - now
        if after > _AHEAD_NANOS:
            return now + after - _AHEAD_NANOS
        fed = inputs_of(job, name) if job.bindings[name] or len(awaited) < len(job.upstreams[name]) else ()
        holders = self._dispatcher.sourcing.holders(fed)
        candidates = self._dispatcher.candidates(lane, run, name)
        if not self._has_inputs(lane, awaited, fed) or not all(map(any_online, holders.values())) or not fits(fed):
            return None
        moves = [*moves_of(fed, holders), *(Move(0, maker) for maker in {each.maker: None for each in awaited})]
        want = self._dispatcher.want(lane, run, name, moves, ahead=max(0, after) / NANOS)
        choice = self._planner.choose(want, candidates)
        if choice is None:
            return NO_ROOM
        if choice.seconds > limits.DELEGATED_SECONDS or choice.candidate.member.name in want.avoid:
            return None
        place = choice.candidate.member
        peers = [each.maker for each in awaited if each.maker is not place]
        if len(peers) > limits.DELEGATED_PEERS_MAX or any((place.name, peer.name) in run.apart for peer in peers):
            return None
        if choice.finish > limits.DELEGATED_SECONDS:
            return now + max(1, round((choice.finish - limits.DELEGATED_SECONDS) * NANOS))
        inputs = [input_of(run, item, holders, place) for item in fed]
        self._dispatcher.assign(lane, run, name, inputs, choice, awaits=[_told(each) for each in awaited])
        return None

    def _awaited(self, run: Run, name: StageId) -> list[_Awaited]:
        """What a stage that may go ahead has to await; nothing if one of the attempts is not to be built on.

        That is one whose agent is not heard of, one whose end may add stages, or one whose outputs are to have
        copies: who awaits it would not know of them.
        """
        found: dict[StageId, _Awaited] = {}
        for arc in run.job.upstreams[name]:
            known = found.get(arc.upstream)
            if known is not None:
                known.arcs.append(arc)
                continue
            stage = run.job.stages[arc.upstream]
            if stage.status in ENDED:
                continue
            ((token, agent),) = stage.live.items()
            maker = self._fleet.members[agent]
            kind = self._fleet.kinds.get(stage.spec.kind)
            if kind is None or kind.grows or stage.spec.policy.replicate or arc.upstream in run.held:
                return []
            if maker.state is not AgentState.ONLINE or not maker.profile.address:
                return []
            found[arc.upstream] = _Awaited(arc.upstream, token, maker, [arc])
        return list(found.values())

    @staticmethod
    def _has_inputs(lane: Lane, awaited: Sequence[_Awaited], fed: Sequence[Fed]) -> bool:
        """Whether each input that the kind needs is there or will be; not of one that is to have more copies than now.

        By the time that the stage starts they are there, and its attempt would not know of them.
        """
        if lane.required:
            fills = {item.port for item in fed}.union(arc.input for each in awaited for arc in each.arcs)
            if not fills.issuperset(lane.required):
                return False
        return not any(map(_has_copies_to_come, fed))


def _peers(awaited: Sequence[_Awaited]) -> int:
    """How many attempts are with other agents than its own, wherever a stage is placed: at least so many."""
    return len(awaited) - max(Counter(each.maker.name for each in awaited).values()) if len(awaited) > 1 else 0


def _told(awaited: _Awaited) -> Await:
    """What an agent is told of an attempt that is awaited."""
    arcs, maker = awaited.arcs, awaited.maker
    return Await(
        upstream=awaited.upstream,
        token=awaited.token,
        agent=maker.name,
        address=maker.profile.address,
        feeds={arc.input: arc.output for arc in arcs if arc.output},
        holds=tuple(dict.fromkeys(comparison_key(arc.comparison) for arc in arcs if arc.comparison is not None)),
    )


def _has_copies_to_come(item: Fed) -> bool:
    stage = item.upstream
    return stage is not None and bool(stage.holders) and len(stage.holders) <= stage.spec.policy.replicate
