"""Bugs of labels for the simulator to find."""

from collections.abc import Sequence
from typing import Any

import msgspec

from starloom.agents.messages import Assign
from starloom.dag.ids import Epoch
from starloom.dag.privacy import NO_LABELS
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.inputs import Input
from starloom.orchestrator.placement import Candidate


class PlacesAnywhere(Coordinator):
    """What is private is no reason to be no candidate."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        plain = self._lanes.lane
        self._lanes.lane = (  # type: ignore[method-assign]
            lambda kind, requires, private, *more: plain(kind, requires, None, *more)
        )


class ReplicatesAnywhere(Coordinator):
    """Replicas go where nobody asks what is in them."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        plain = self._replicas._placement.choose

        def place(run: Any, *args: Any) -> Any:
            labels, run.labels = run.labels, NO_LABELS
            try:
                return plain(run, *args)
            finally:
                run.labels = labels

        self._replicas._placement.choose = place  # type: ignore[method-assign, assignment]


class TellsPrivately(Coordinator):
    """Agents are not told to keep what is private."""

    def handle(self, inputs: Sequence[Input], now: int) -> Decision:
        decision = super().handle(inputs, now)
        decision.commands[:] = [
            (agent, msgspec.structs.replace(each, private=False) if isinstance(each, Assign) else each)
            for agent, each in decision.commands
        ]
        return decision


class LabelsOnce(Coordinator):
    """What patches and growth make of labels is not looked at."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch)
        self._changing.relabel = lambda run: None  # type: ignore[method-assign]


class FollowsAnywhere(Coordinator):
    """Where a plan has a stage it may run."""

    def __init__(self, epoch: Epoch) -> None:
        super().__init__(epoch, guided=True)
        plain = self._lanes.candidates

        def candidates(lane: Any, run: Any, stage: Any) -> Sequence[Candidate]:
            found = plain(lane, run, stage)
            advice = run.guide.places.get(stage) if run.guide is not None else None
            member = self._state.fleet.members.get(advice.node) if advice is not None else None
            return [*found, Candidate(member, "cpu")] if member is not None else found

        self._lanes.candidates = candidates  # type: ignore[method-assign]
