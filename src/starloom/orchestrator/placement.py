"""Where a ready stage goes: the planner's interface, what was learned of runs, and the first planner."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from starloom.dag import limits
from starloom.dag.facts import Timing
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.kinds import KindSpec
from starloom.devices.node import Measured
from starloom.orchestrator.advice import Advised
from starloom.orchestrator.costs import Costs, Predicted
from starloom.orchestrator.fleet import Member
from starloom.orchestrator.paths import fetch_seconds


class Candidate(NamedTuple):
    """A node that may run the stage, and what it would compute on.

    `preferred`: on the kind's own tier, or the stage has preferences itself, which are asked then. `counts_seconds`: how
    much later its end there counts as, by those (`feasible.dislike_seconds`).
    """

    member: Member
    target: str
    preferred: bool = True
    counts_seconds: float = 0.0


class Move(NamedTuple):
    """A value that has to be fetched: its size, the node that holds it, None for the job store, and who else holds it."""

    size_bytes: int
    holder: Member | None
    others: Sequence[Member] = ()


class Want(NamedTuple):
    """One stage, as placement sees it. `avoid`: nodes that could not reach its inputs, or were lost with it.

    `anyway`: it goes to a node that is there, whatever that has. `ahead`: the seconds after which its upstreams are expected to have ended, for one that is placed ahead of them;
    None for one that is ready. `told`: the seconds of its run by its parameters; None where they do not tell. `advised`: where
    a plan has it, which is weighed if that is among the candidates.
    """

    job: JobId
    stage: StageId
    kind: KindSpec
    moves: Sequence[Move] = ()
    avoid: Collection[AgentId] = ()
    ahead: float | None = None
    anyway: bool = False
    told: float | None = None
    advised: Advised | None = None


class Choice(NamedTuple):
    """Where the stage goes, the seconds that it is expected to keep a slot there, and those until it has ended.

    `aside`: why that is not where it was advised, as a clause; empty if it is.
    """

    candidate: Candidate
    seconds: float
    finish: float = 0.0
    aside: str = ""


Key = tuple[int, float, int]
"""How places compare: whether one is to be avoided or is on another tier, when it ends the stage, what it has in hand."""


class Planner(Protocol):
    """Chooses places. Asked for one stage at a time, the most urgent first."""

    def choose(self, want: Want, candidates: Sequence[Candidate]) -> Choice | None:
        """A place among the candidates, ordered by name, that are open, or open ahead; None if no one is."""
        ...

    def expected_seconds(self, kind: KindSpec, node: AgentId, target: str, told: float | None = None) -> float:
        """Seconds that a run takes there, as far as is known; `told` as in Want."""
        ...

    def predicted(self, kind: KindSpec, node: AgentId, target: str, told: float | None = None) -> Predicted:
        """The same, with what is known of how far off they may be, and where they come from."""
        ...

    def meet(self, node: AgentId, measured: Measured | None) -> None:
        """Takes in what a node that joined tells of itself. Called as facts are applied, as `learn` is."""
        ...

    def learn(self, kind: str, node: AgentId, target: str, timing: Timing, told: float | None = None) -> None:
        """Takes in a run that was measured. Called as facts are applied, so a replay teaches the same."""
        ...


class EarliestFinish:
    """The node where the stage ends soonest: wait for a slot, fetch inputs, load models, run.

    Nodes that could not reach its inputs, or were lost with it, come last. Before others go nodes on the kind's own tier,
    where the stage has no preferences; where it has, an end at a place counts as so much later as they say, and the
    kind's own tier only decides between equal ones. A place that a plan advises is taken if it is one of those, and as
    long as no other ends the stage much sooner without the plan having foreseen that.
    Of equal nodes the one with the least in hand is taken, then the first by name: slots of one node share it.
    """

    def __init__(self) -> None:
        self.costs = Costs()

    def meet(self, node: AgentId, measured: Measured | None) -> None:
        """Takes in what a node tells of itself."""
        self.costs.meet(node, measured)

    def learn(self, kind: str, node: AgentId, target: str, timing: Timing, told: float | None = None) -> None:
        """Takes in a run that was measured."""
        self.costs.learn(kind, node, target, timing, told)

    def expected_seconds(self, kind: KindSpec, node: AgentId, target: str, told: float | None = None) -> float:
        """Seconds that a run takes there: measured there, or predicted, or hinted."""
        return self.costs.run_seconds(kind, node, target, told)

    def predicted(self, kind: KindSpec, node: AgentId, target: str, told: float | None = None) -> Predicted:
        """The same with bounds, and whether it ran there, or is predicted or hinted."""
        return self.costs.predicted(kind, node, target, told)

    def choose(self, want: Want, candidates: Sequence[Candidate]) -> Choice | None:
        """The open candidate that ends the stage soonest; None if no one is open."""
        costs, kind, told, moves, avoid = self.costs, want.kind, want.told, want.moves, want.avoid
        anyway, ahead, advised = want.anyway, want.ahead, want.advised
        best: Candidate | None = None
        planned: Choice | None = None
        best_key = planned_key = (0, 0.0, 0)
        best_seconds = best_finish = 0.0
        for candidate in candidates:
            member, target, preferred, counts = candidate
            if not (member.there if anyway else member.open if ahead is None else member.open_ahead):
                continue
            seconds = costs.run_seconds(kind, member.name, target, told)
            if not member.is_resident(kind):
                seconds += costs.load_seconds(kind)
            in_hand = member.in_hand
            if ahead is None:
                finish = seconds
                if in_hand >= member.slots:
                    finish += member.seconds / member.slots
            else:
                if not costs.known(kind, target):
                    seconds = max(seconds, limits.DELEGATED_UNKNOWN_SECONDS)
                finish = seconds + max(ahead, _busy_seconds(member))
            if moves:
                finish += transfer_seconds(moves, member)
            rank = 2 * (member.name in avoid) + (not preferred)
            key = (rank, finish + counts, in_hand)
            if best is None or key < best_key:
                best, best_key, best_seconds, best_finish = candidate, key, seconds, finish
            if advised is not None and member.name == advised.node and target == advised.target:
                planned, planned_key = Choice(candidate, seconds, finish), key
        if best is None:
            return None
        choice = Choice(best, best_seconds, best_finish)
        return choice if advised is None else _guided(advised, planned, planned_key, choice, best_key)


def _guided(advised: Advised, planned: Choice | None, planned_key: Key, best: Choice, best_key: Key) -> Choice:
    """The place that was advised, or the best of all and why it is that.

    What a plan gives away at one stage it means to win at others, so a place that ends a stage later than another does is
    taken as long as that is when the plan has it ended, or not much later. What is much is a share of the whole plan: what the
    place has in hand counts as if all of it went first, of which the plan has some go later.
    """
    if planned is None:
        return best._replace(aside="that had no room, or may not have it, when it was placed")
    if planned_key[0] > best_key[0]:
        return best._replace(
            aside="it could not reach its inputs there, was lost with it, or is usually on another tier"
        )
    later = planned_key[1] - best_key[1]
    if later > advised.slack and planned.finish - advised.finish > advised.slack:
        return best._replace(aside=f"that would have ended it {later:.2f} s later, and later than planned")
    return planned


def _busy_seconds(member: Member) -> float:
    """Seconds until a slot is free for what comes behind all that it has, delegated work included."""
    if len(member.assigned) < member.slots:
        return 0.0
    return (member.seconds + member.delegated_seconds) / member.slots


def transfer_seconds(moves: Sequence[Move], sink: Member) -> float:
    """Seconds to fetch values to a node, one after another; what lies there already takes none."""
    total = 0.0
    for move in moves:
        if move.holder is not sink and sink not in move.others:
            seconds = fetch_seconds(move.size_bytes, move.holder, sink)
            total += min([seconds, *(fetch_seconds(move.size_bytes, other, sink) for other in move.others)])
    return total
