"""Moves of a stage to another place, with those that share its node, drawn: for search that judges whole plans."""

from typing import Final

import numpy as np

from starloom.orchestrator.planner.prepared import Prepared
from starloom.orchestrator.planner.problem import Indices, Problem

_NEAR: Final = 0.5
"""How often a stage moves to where one is that it sends to or reads from."""


class Moves:
    """What may move where. `none`: whether no stage may stand anywhere else."""

    def __init__(self, problem: Problem, prepared: Prepared) -> None:
        self._prepared = prepared
        movable = (prepared.allowed.sum(axis=1) > 1) & ~prepared.started
        self._movers = np.flatnonzero(movable).astype(np.int32)
        self._places = [np.flatnonzero(row) for row in prepared.allowed]
        ends = np.concatenate([problem.arrays.upstream, problem.arrays.downstream])
        others = np.concatenate([problem.arrays.downstream, problem.arrays.upstream])
        self._near = [others[ends == stage] for stage in range(len(problem.stages))]
        together = problem.arrays.together
        self._groups = [
            np.flatnonzero(together == group).tolist() if group >= 0 else [stage]
            for stage, group in enumerate(together.tolist())
        ]

    @property
    def none(self) -> bool:
        return not len(self._movers)

    def elsewhere(self, place: Indices, draw: np.random.Generator) -> Indices:
        """Places [n] with one stage moved, and with it those that share its node; the same where it cannot be."""
        if self.none:
            return place
        allowed, node_of = self._prepared.allowed, self._prepared.node
        stage = int(self._movers[draw.integers(len(self._movers))])
        theirs = self._places[stage]
        # What sends or reads is a good neighbour.
        near = place[self._near[stage]] if draw.random() < _NEAR else theirs
        near = near[allowed[stage, near]]
        at = int(near[draw.integers(len(near))]) if len(near) else int(theirs[draw.integers(len(theirs))])
        moved, node = place.copy(), node_of[at]
        moved[stage] = at
        for other in self._groups[stage]:
            if other != stage:
                there = self._places[other][node_of[self._places[other]] == node]
                moved[other] = there[self._prepared.seconds[other, there].argmin()]
        return moved
