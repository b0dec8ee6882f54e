"""ONNX graphs in the making, as the converters of checkpoints write them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
# The oldest IR version that has opset 20, so that every ONNX Runtime with Gelu reads the files.
IR_VERSION = 9


class Graph:
    """Nodes and constants in the making; a value is its name. Equal calls in the same order give equal bytes."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._quantised: dict[str, list[str]] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; returns that."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """A node with several outputs; returns these."""
        names = [f"{kind}.{len(self._nodes)}.{n}" for n in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """An array by its name; the first of a name counts."""
        self._constants.setdefault(name, numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(f"ints.{'.'.join(map(str, values))}", np.array(values, np.int64))

    def product_int8(self, x: str, weight: str, scale: str) -> str:
        """x [..., in], quantised to UINT8 as a whole, by an INT8 weight [in, out] with scales [out]: float32 [..., out]."""
        # Products of one tensor share its quantised form.
        if x not in self._quantised:
            self._quantised[x] = self.ops("DynamicQuantizeLinear", x, outputs=3)
        integers, x_scale, zero = self._quantised[x]
        product = self.op("Cast", self.op("MatMulInteger", integers, weight, zero), to=TensorProto.FLOAT)
        return self.op("Mul", product, self.op("Mul", x_scale, scale))

    def output(self, kind: str, inputs: Sequence[str], name: str) -> None:
        """A node whose output is one of the model's, by its name."""
        self._nodes.append(helper.make_node(kind, list(inputs), [name]))

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The checked model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="starloom"
        )
        onnx.checker.check_model(model)
        return model


def quantised(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 of a weight [in, out] and float32 scales [out]: weight is about integers * scales, within scale / 2."""
    peak = np.abs(weight).max(axis=0)
    scales = np.where(peak > 0, peak / 127, 1).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales
