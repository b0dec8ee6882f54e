"""Features of models' graphs, from which run times are predicted: what each kind of operator does, summed up.

Run time on one device is close to a sum over operators: with counts of operators alone, networks of NAS-Bench-201 are
told to within what measuring them twice differs by (docs/placement.md, Prediction). Where graphs differ in their
shapes, operations and bytes tell more than counts; columns that say the same as one before are left out.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from starloom.dag.errors import InvalidInput, Problem
from starloom.devices.graphs import Graph

Floats = npt.NDArray[np.float64]

CONSTANT: Final = "constant"
"""The first column: what a run takes whatever the graph."""

_MEASURES: Final = ("count", "flops", "bytes", "used")
_SAME: Final = 1e-9


class Vocabulary(NamedTuple):
    """The columns of feature matrices, learned from graphs of sources.

    `columns`: kind of operator and measure (`count`, `flops`, `bytes`, `used`: those that an output depends on).
    `scale`: the mean of each over the graphs that it was learned from, so that columns have one size.
    """

    columns: tuple[tuple[str, str], ...]
    scale: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of `matrix`, the constant first."""
        return (CONSTANT, *(f"{kind} {measure}" for kind, measure in self.columns))

    def matrix(self, graphs: Sequence[Graph]) -> Floats:
        """Features [graphs, columns + 1]. Operators of kinds that are not in the vocabulary count nothing."""
        table = _table(graphs, self.columns)
        return np.hstack([np.ones((len(graphs), 1)), table / np.asarray(self.scale)])

    def unknown(self, graph: Graph) -> tuple[str, ...]:
        """Kinds of the graph's operators that the vocabulary has no column for, sorted: predictions miss them."""
        return tuple(sorted({operator.kind for operator in graph.operators} - {kind for kind, _ in self.columns}))


def vocabulary(graphs: Sequence[Graph]) -> Vocabulary:
    """Columns that tell these graphs apart: every kind and measure that differs among them, and no two alike.

    Raises InvalidInput without two graphs that differ.
    """
    kinds = sorted({operator.kind for graph in graphs for operator in graph.operators})
    wanted = tuple((kind, measure) for measure in _MEASURES for kind in kinds)
    if not wanted:
        raise InvalidInput([Problem("graphs", "have no operators; give those of the networks that were measured")])
    table = _table(graphs, wanted)
    scale = table.mean(axis=0)
    kept: list[int] = []
    for column in range(len(wanted)):
        values = table[:, column] / scale[column] if scale[column] else table[:, column]
        alike = (np.abs(values - table[:, other] / scale[other]).max() <= _SAME for other in kept)
        if np.ptp(values) > _SAME and not any(alike):
            kept.append(column)
    if not kept:
        raise InvalidInput([Problem("graphs", "do not differ; give at least two networks of different operators")])
    return Vocabulary(tuple(wanted[column] for column in kept), tuple(float(scale[column]) for column in kept))


def _table(graphs: Sequence[Graph], columns: Sequence[tuple[str, str]]) -> Floats:
    """Sums [graphs, columns], unscaled."""
    index = {column: place for place, column in enumerate(columns)}
    table = np.zeros((len(graphs), len(columns)))
    for row, graph in enumerate(graphs):
        for operator in graph.operators:
            amounts = (1.0, operator.flops, operator.bytes, 1.0 if operator.used else 0.0)
            for measure, amount in zip(_MEASURES, amounts, strict=True):
                place = index.get((operator.kind, measure))
                if place is not None:
                    table[row, place] += amount
    return table
