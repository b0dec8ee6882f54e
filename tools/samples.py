"""Writes the graphs that agents profile themselves with, and what each asks: `python -m tools.samples`.

They are small files whose weights are made at loading, of one value each: only shapes matter. A change makes what agents
have kept, and the reference's seconds, stale: run `python -m tools.samples --reference` on the quiet reference machine then.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from starloom.agents import samples
from starloom.agents.graphreading import read
from starloom.agents.selfprofile import measure
from starloom.devices.demand import demand

FLOAT: Final = TensorProto.FLOAT
OPSET: Final = 17
IR_VERSION: Final = 9
_HELD: Final = 1e-3
_ROUNDS: Final = 3_000
FOLDER: Final = Path(__file__).resolve().parents[1] / "src" / "starloom" / "agents" / "data" / "samples"


class Maker:
    """A graph in the making: `nodes`, and weights that are filled at loading."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.last = "x"
        self._count = 0

    def name(self) -> str:
        """A new one."""
        self._count += 1
        return f"v{self._count}"

    def weight(self, *shape: int, value: float = 0.01, kind: Any = np.float32) -> str:
        """A weight of that shape, all of one value."""
        sizes, made = self.name(), self.name()
        self.weights.append(numpy_helper.from_array(np.array(shape, np.int64), sizes))
        fill = numpy_helper.from_array(np.array([value], kind))
        self.nodes.append(helper.make_node("ConstantOfShape", [sizes], [made], value=fill))
        return made

    def scalar(self, value: Any, kind: Any = np.float32) -> str:
        """One number."""
        name = self.name()
        self.weights.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def add(self, kind: str, *more: str, **attributes: Any) -> str:
        """An operator on what came last, and on these; it comes last from then on."""
        self.last = self.node(kind, [self.last, *more], **attributes)
        return self.last

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """An operator on these."""
        made = self.name()
        self.nodes.append(helper.make_node(kind, inputs, [made], **attributes))
        return made

    def conv(self, given: int, made: int, kernel: int, group: int = 1) -> None:
        """A convolution that keeps the image's size."""
        weight = self.weight(made, given // group, kernel, kernel)
        self.add("Conv", weight, group=group, pads=[kernel // 2] * 4)

    def model(self, shape: Sequence[int], result: Sequence[int]) -> Any:
        """The model of what was added, from `x` of a shape to a result of a shape."""
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "sample",
            [helper.make_tensor_value_info("x", FLOAT, shape)],
            [helper.make_tensor_value_info("y", FLOAT, result)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def convolutions() -> Any:
    """Few channels, a larger image."""
    m = Maker()
    m.conv(3, 24, 3)
    m.add("Relu")
    m.conv(24, 24, 3)
    return m.model([1, 3, 64, 64], [1, 24, 64, 64])


def deep() -> Any:
    """Many channels, a small image."""
    m = Maker()
    m.conv(96, 96, 3)
    return m.model([1, 96, 20, 20], [1, 96, 20, 20])


def pointwise() -> Any:
    """Convolutions that look at one pixel."""
    m = Maker()
    m.conv(64, 128, 1)
    m.add("Relu")
    m.conv(128, 64, 1)
    return m.model([1, 64, 56, 56], [1, 64, 56, 56])


def depthwise() -> Any:
    """Convolutions of one channel each."""
    m = Maker()
    m.conv(64, 64, 3, 64)
    m.add("Relu")
    m.conv(64, 64, 5, 64)
    return m.model([1, 64, 64, 64], [1, 64, 64, 64])


def mobile() -> Any:
    """A block of a small network for images."""
    m = Maker()
    m.conv(24, 96, 1)
    m.add("Relu")
    m.conv(96, 96, 3, 96)
    m.add("Relu")
    m.conv(96, 24, 1)
    m.add("Add", "x")
    return m.model([1, 24, 56, 56], [1, 24, 56, 56])


def products() -> Any:
    """Matrix products with many rows: reading a prompt."""
    m = Maker()
    m.add("MatMul", m.weight(256, 512))
    m.add("Relu")
    m.add("MatMul", m.weight(512, 256))
    return m.model([192, 256], [192, 256])


def row() -> Any:
    """Products with one row, which read as many weights as they compute: writing an answer."""
    m = Maker()
    for _ in range(3):
        m.add("MatMul", m.weight(1024, 1024, value=0.001))
    return m.model([1, 1024], [1, 1024])


def attention() -> Any:
    """A layer of a transformer."""
    m = Maker()
    heads, steps, width = 4, 64, 32
    query = m.node("Reshape", [m.node("MatMul", ["x", m.weight(128, 128)]), m.scalar([steps, heads, width], np.int64)])
    key = m.node("Reshape", [m.node("MatMul", ["x", m.weight(128, 128)]), m.scalar([steps, heads, width], np.int64)])
    query = m.node("Transpose", [query], perm=[1, 0, 2])
    m.last = m.node("MatMul", [query, m.node("Transpose", [key], perm=[1, 2, 0])])
    m.add("Mul", m.scalar(width**-0.5))
    m.add("Softmax", axis=-1)
    m.add("MatMul", query)
    m.add("Transpose", perm=[1, 0, 2])
    m.add("Reshape", m.scalar([steps, heads * width], np.int64))
    m.add("Add", "x")
    m.add("LayerNormalization", m.weight(128, value=1.0), m.weight(128, value=0.0), axis=-1)
    m.add("MatMul", m.weight(128, 256))
    m.add("Erf")
    m.add("MatMul", m.weight(256, 128))
    return m.model([64, 128], [64, 128])


def integers() -> Any:
    """Products of whole numbers, scaled as a network quantised at run time has them."""
    m = Maker()
    for given, made in ((256, 512), (512, 256)):
        whole, scale, zero = m.name(), m.name(), m.name()
        m.nodes.append(helper.make_node("DynamicQuantizeLinear", [m.last], [whole, scale, zero]))
        weight = m.weight(given, made, value=1, kind=np.int8)
        product = m.node("MatMulInteger", [whole, weight, zero, m.scalar(0, np.int8)])
        m.last = m.node("Cast", [product], to=FLOAT)
        m.add("Mul", m.node("Mul", [scale, m.scalar(0.01)]))
    return m.model([96, 256], [96, 256])


def quantised() -> Any:
    """Convolutions of whole numbers, as a network quantised beforehand has them."""
    m = Maker()
    scale, zero, byte = m.scalar(0.05), m.scalar(0, np.int8), m.scalar(0.01)
    for given, made, kernel in ((32, 96, 1), (96, 32, 1), (32, 32, 3)):
        weight = m.node("DequantizeLinear", [m.weight(made, given, kernel, kernel, value=1, kind=np.int8), byte, zero])
        m.add("QuantizeLinear", scale, zero)
        m.add("DequantizeLinear", scale, zero)
        m.add("Conv", weight, pads=[kernel // 2] * 4)
    m.add("QuantizeLinear", scale, zero)
    m.add("DequantizeLinear", scale, zero)
    return m.model([1, 32, 56, 56], [1, 32, 56, 56])


def elements() -> Any:
    """What is done to each number, and moves more bytes than it computes."""
    m = Maker()
    m.add("Sigmoid")
    m.add("Transpose", perm=[1, 0])
    m.add("Mul", m.node("Transpose", ["x"], perm=[1, 0]))
    m.add("Softmax", axis=-1)
    m.add("Add", m.weight(640, 640))
    return m.model([640, 640], [640, 640])


def large() -> Any:
    """Images that no cache holds."""
    m = Maker()
    m.conv(8, 8, 1)
    m.add("Add", "x")
    m.conv(8, 8, 3, 8)
    return m.model([1, 8, 480, 480], [1, 8, 480, 480])


def many() -> Any:
    """Many operators that do next to nothing."""
    m = Maker()
    for index in range(120):
        m.add(("Tanh", "Neg", "Abs", "Softplus")[index % 4])
    return m.model([8], [8])


MAKERS: Final[tuple[Callable[[], Any], ...]] = (
    pointwise,
    convolutions,
    products,
    large,
    elements,
    depthwise,
    integers,
    many,
    row,
    quantised,
    attention,
    deep,
    mobile,
)
"""The most telling first: they are measured in this order, as long as there is time."""


def made() -> dict[str, bytes]:
    """The files, by name."""
    return {maker.__name__: maker().SerializeToString(deterministic=True) for maker in MAKERS}


def costs(demands: Any, seconds: Any) -> Any:
    """Seconds [p] of each column, none below zero: least squares of relative errors, held a little to equal shares.

    A dozen samples tell ten columns only roughly; what nodes measure, and then run, goes on from there.
    """
    features = demands / demands.mean(axis=0) / seconds[:, None]
    equal = seconds.mean() / features.shape[1]
    square = features.T @ features + _HELD / equal**2 * np.eye(features.shape[1])
    aim = features.sum(axis=0) + _HELD / equal
    found = np.full(features.shape[1], equal)
    for _ in range(_ROUNDS):
        for column in range(len(found)):
            others = square[column] @ found - square[column, column] * found[column]
            found[column] = max(0.0, (aim[column] - others) / square[column, column])
    return found


def table(folder: Path, seconds: Sequence[float]) -> bytes:
    """`samples.json` for the files in a folder."""
    demands = tuple(demand(read(folder / f"{maker.__name__}.onnx")) for maker in MAKERS)
    scaled = np.array(demands) / np.mean(demands, axis=0)
    told = costs(np.array(demands), np.array(seconds))
    off = scaled @ told / np.array(seconds) - 1.0
    found = samples.Samples(
        digest=samples.digest([(folder / f"{maker.__name__}.onnx").read_bytes() for maker in MAKERS]),
        names=tuple(maker.__name__ for maker in MAKERS),
        demands=demands,
        reference=tuple(seconds),
        costs=tuple(float(f"{each:.4g}") for each in told),
        noise=round(float(np.sqrt(np.mean(off**2))), 4),
    )
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def main() -> int:
    """Writes the files and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", action="store_true", help="measure this machine, as the reference")
    args = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name, data in made().items():
        (FOLDER / f"{name}.onnx").write_bytes(data)
    kept = FOLDER / samples.TABLE_NAME
    if args.reference:
        names = [maker.__name__ for maker in MAKERS]
        found = measure("CPUExecutionProvider", names, rounds=50, budget_seconds=60.0)
        seconds = [float(f"{each:.4g}") for each in found]
    else:
        seconds = list(msgspec.json.decode(kept.read_bytes())["reference"])
    kept.write_bytes(table(FOLDER, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
