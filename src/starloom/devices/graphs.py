"""What a model's graph asks of a device, as its file says before it has run there: operators with their work."""

from typing import NamedTuple


class Operator(NamedTuple):
    """One operator of a graph, for one run.

    `kind` names operators that do the same work a unit: ONNX's name, for convolutions with their kernel (`Conv 3x3`).
    `flops`: floating-point operations, a multiplication and an addition being two. `bytes`: read and written, weights
    included. `parameters`: numbers in its weights. `used`: an output of the graph depends on it; some runtimes leave
    out what is not.
    """

    kind: str
    flops: float = 0.0
    bytes: float = 0.0
    parameters: float = 0.0
    used: bool = True


class Graph(NamedTuple):
    """A graph's operators, in any order, for inputs of one size."""

    operators: tuple[Operator, ...]

    @property
    def flops(self) -> float:
        """Floating-point operations of one run."""
        return sum(operator.flops for operator in self.operators)

    @property
    def parameters(self) -> float:
        """Numbers in all weights."""
        return sum(operator.parameters for operator in self.operators)
