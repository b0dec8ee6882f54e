"""Where the inputs of a stage come from, and what is done where they cannot be had."""

from collections.abc import Sequence
from typing import Final

import msgspec

from starloom.agents.messages import Input, Source
from starloom.dag import limits
from starloom.dag.facts import ErrorInfo
from starloom.dag.ids import AgentId, FencingToken, StageId
from starloom.dag.values import JOB_STORE
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.lanes import Lane
from starloom.orchestrator.lineage import Fed
from starloom.orchestrator.placement import Move
from starloom.orchestrator.propagation import Propagation
from starloom.orchestrator.relays import relayed
from starloom.orchestrator.replicas import nearest
from starloom.orchestrator.runs import Run, Waits
from starloom.orchestrator.settle import Settler
from starloom.orchestrator.state import Ledger

Holders = dict[str, list[Member]]
"""Who has each value that only agents have, by input port."""
_INPUT_BYTES: Final = 384
"""About what an input takes in a message beside its names and its value, digests and all."""


class Sourcing:
    """Finds who has the inputs of stages that are to be placed."""

    def __init__(self, fleet: Fleet, ledger: Ledger, waits: Waits, settler: Settler, propagation: Propagation) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._waits = waits
        self._settler = settler
        self._propagation = propagation

    def holders(self, fed: Sequence[Fed]) -> Holders:
        """Who has each value that only agents have, of those whose processes may still be there."""
        return {
            item.port: self._fleet.having(item.upstream.holders)
            for item in fed
            if item.ref.inline is None and item.ref.holder != JOB_STORE and item.upstream is not None
        }

    def complete(self, lane: Lane, run: Run, name: StageId, there: set[str]) -> bool:
        """Whether each input that the kind needs is there; the stage fails if not, for no other place would help."""
        missing = set(lane.required) - there
        if not missing:
            return True
        ports = ", ".join(sorted(missing))
        message = f"input {ports} has no value: its upstream gave none; {lane.kind} needs one"
        self._fail(run, name, message, "InputUnavailable")
        return False

    def fits(self, run: Run, name: StageId, fed: Sequence[Fed]) -> bool:
        """Whether its inputs fit into one message; the stage fails if not, for it cannot be given to any agent."""
        if fits(fed):
            return True
        limit = f"ASSIGN_INPUTS_BYTES_MAX = {limits.ASSIGN_INPUTS_BYTES_MAX} bytes"
        message = f"its {len(fed)} inputs are more than the {limit} of a message; gather them in several stages"
        self._fail(run, name, message, "InvalidInput")
        return False

    def find(self, run: Run, name: StageId, fed: Sequence[Fed]) -> Holders | None:
        """Who can give each value that only agents have.

        None if one cannot be had: one that is gone is made again, and of silent holders the first word is waited for.
        """
        found = self.holders(fed)
        silent: list[AgentId] = []
        gone: dict[StageId, str] = {}
        for item in fed:
            holders = found.get(item.port)
            if holders is None or item.upstream is None:
                continue
            if not holders:
                known = ", ".join(item.upstream.holders) or item.ref.holder
                gone[item.consumed.upstream] = f"{known}, which held its output {item.port}, was lost; {name} needs it"
            elif not any_online(holders):
                silent += [holder.name for holder in holders]
        for upstream, reason in gone.items():
            self._propagation.reopen(run, upstream, reason, lost=True)
        if gone:
            self._propagation.drain()
            return None
        if silent:
            self._waits.for_agents(run, name, silent)
            return None
        return found

    def _fail(self, run: Run, name: StageId, message: str, cause: str) -> None:
        """A stage that has not been given out fails."""
        token = FencingToken(self._ledger.epoch, run.job.stages[name].attempt)
        self._settler.fail(run, name, token, ErrorInfo(message=message, cause=cause))
        self._propagation.drain()


def input_of(run: Run, item: Fed, holders: Holders, member: Member) -> Input:
    """Fetched from the holder that is best for the place, which is the place itself if it has a copy, else from another.

    Where the place could not reach any of them, from the job store, once it is there.
    """
    known = holders.get(item.port)
    if not known:
        return Input(port=item.port, ref=item.ref, consumed=item.consumed)
    best, *others = nearest(known, member)
    consumed = item.consumed
    if best is not member and relayed(
        run, consumed.upstream, consumed.token, member.name, [holder.name for holder in known]
    ):
        at_store = msgspec.structs.replace(item.ref, holder=JOB_STORE)
        return Input(port=item.port, ref=at_store, consumed=consumed, others=_sources([best, *others]))
    ref = item.ref if item.ref.holder == best.name else msgspec.structs.replace(item.ref, holder=best.name)
    return Input(port=item.port, ref=ref, consumed=consumed, address=best.profile.address, others=_sources(others))


def fits(fed: Sequence[Fed]) -> bool:
    """Whether an assignment with these inputs fits into one message. One that does not would break each session of its agent."""
    sizes = (_INPUT_BYTES + len(item.port) + len(item.consumed.upstream) + len(item.ref.inline or b"") for item in fed)
    return sum(sizes) <= limits.ASSIGN_INPUTS_BYTES_MAX


def any_online(holders: Sequence[Member]) -> bool:
    """Whether one of them is heard of."""
    return any(holder.state is AgentState.ONLINE for holder in holders)


def moves_of(fed: Sequence[Fed], holders: Holders) -> list[Move]:
    """What has to be brought to wherever the stage is placed, as planners count it."""
    found = []
    for item in fed:
        known = holders.get(item.port)
        if item.ref.inline is None:
            found.append(Move(item.ref.bytes, known[0], known[1:]) if known else Move(item.ref.bytes, None))
    return found


def _sources(members: Sequence[Member]) -> tuple[Source, ...]:
    return tuple(Source(agent=member.name, address=member.profile.address) for member in members)
