"""Snapshots in a run: a new process of the orchestrator begins with one now and then, of any fact that was journaled."""

from collections.abc import Sequence

import msgspec

from starloom.dag.facts import Fact
from starloom.orchestrator.image import Image, restore, take
from starloom.orchestrator.kept import KeptJobs
from starloom.orchestrator.placement import EarliestFinish
from starloom.orchestrator.state import State

TAKEN = 0.2
"""How likely a start finds one."""


def replayed(facts: Sequence[Fact]) -> State:
    """What facts lead to."""
    state = State(EarliestFinish())
    for fact in facts:
        state.apply(fact)
    return state


def over_snapshot(facts: Sequence[Fact]) -> State:
    """The same by way of the real image, as it is on the disk."""
    data = msgspec.json.encode(take(replayed(facts), KeptJobs()))
    state = State(EarliestFinish())
    restore(msgspec.json.decode(data, type=Image), state, KeptJobs())
    return state
