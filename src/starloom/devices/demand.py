"""What a run asks of a device as a few numbers, small enough to be told with a node's profile: operators by what they do.

Kinds of operators are many, and a device is profiled with a dozen graphs, so they are put together by what makes them slow:
arithmetic of one sort each, memory, and how many there are. `planner.features` has a column for each kind, and wants more.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from starloom.devices.graphs import Graph, Operator

Demand = tuple[float, ...]
"""One number a column of COLUMNS."""

COLUMNS: Final = (
    "calls",
    "operators",
    "convolutions",
    "pointwise",
    "depthwise",
    "products",
    "integers",
    "near bytes",
    "far bytes",
    "memory bytes",
)
"""Runs of a graph and operators, in ones; floating-point operations of k x k convolutions, those of 1 x 1, those of one
channel each, of matrix products, of whole-number products, in ones; and bytes of all operators, by what may hold them."""

NEAR_BYTES: Final = 2 * 1024 * 1024
FAR_BYTES: Final = 8 * 1024 * 1024
"""An operator whose inputs and outputs have no more may find them in its core's own cache, or in that which cores share;
those of a larger one come from memory. Orders of magnitude, taken for all processors."""

_INTEGERS: Final = ("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul")
_PRODUCTS: Final = ("MatMul", "Gemm", "FusedMatMul", "LSTM", "GRU", "RNN")
_VIEWS: Final = frozenset(
    {"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Shape", "Identity", "If", "Loop", "Dropout", "Range"}
)
"""They give what they are given, or next to nothing; counted among the operators alone."""
_DEQUANTISE: Final = "DequantizeLinear"
_DIGITS: Final = 4


def demand(graph: Graph) -> Demand:
    """Of one run. Where values are made whole numbers and back, products between are whole-number ones, as runtimes fuse them."""
    quantised = any(operator.kind == _DEQUANTISE for operator in graph.operators)
    sums = dict.fromkeys(COLUMNS, 0.0)
    sums["calls"] = 1.0
    for operator in graph.operators:
        if not operator.used or (quantised and operator.kind == _DEQUANTISE):
            continue
        sums["operators"] += 1.0
        column = _column(operator, quantised)
        if column:
            sums[column] += operator.flops
        if column or operator.kind not in _VIEWS:
            sums[_held(operator.bytes)] += operator.bytes
    return tuple(sums.values())


def together(parts: Iterable[tuple[float, Sequence[float]]]) -> Demand:
    """The sum of demands, each so many times, to four digits: it is told, and kept, and known no better."""
    sums = [0.0] * len(COLUMNS)
    for times, part in parts:
        for place, amount in enumerate(part):
            sums[place] += times * amount
    return tuple(float(f"{amount:.{_DIGITS}g}") for amount in sums)


def _held(size: float) -> str:
    return "near bytes" if size <= NEAR_BYTES else "far bytes" if size <= FAR_BYTES else "memory bytes"


def _column(operator: Operator, quantised: bool) -> str:
    """The column of arithmetic that an operator counts in; empty for one that mostly moves bytes."""
    name, _, kernel = operator.kind.partition(" ")
    if name in _INTEGERS:
        return "integers"
    if name in _PRODUCTS:
        return "integers" if quantised else "products"
    if name not in ("Conv", "ConvTranspose"):
        return ""
    if kernel.endswith("depthwise"):
        return "depthwise"
    if quantised:
        return "integers"
    return "pointwise" if set(kernel.split("x")) == {"1"} else "convolutions"
