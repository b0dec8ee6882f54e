"""MiniLM sentence embeddings from safetensors to one ONNX graph, with mean pooling and unit length built in.

The architecture is BERT (Devlin et al., 2018), post-norm, with the sizes of Wang et al., "MiniLM" (2020),
pooled as Reimers and Gurevych's "Sentence-BERT" (2019) does: the mean of the last layer over the tokens
of the mask, divided by its L2 norm.

Graph: `input_ids`, `attention_mask` int64 [batch, steps] -> `embedding` float32 [batch, width]. A mask is
1 on a text's tokens and 0 on padding; a text's embedding does not depend on the padding beside it, but for
the rounding of INT8, whose scale is that of the whole batch.

With `int8`, weights of matrix products are INT8 with one symmetric scale per output column, their left
sides are quantised to UINT8 when they are computed (DynamicQuantizeLinear and MatMulInteger, which ONNX
Runtime fuses), and the word embeddings are INT8 with a scale per word.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from starloom.dag.errors import InvalidInput, Problem

OPSET = 20
# The oldest IR version that has opset 20, so that every ONNX Runtime with Gelu reads the file.
IR_VERSION = 9
EPSILON = 1e-12
HEAD_WIDTH = 32
MASKED = -1e4
SHORTEST_NORM = 1e-12

Weights = Mapping[str, NDArray[np.float32]]

_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}


def convert(source: Path, destination: Path) -> None:
    """Writes `model.onnx`, INT8, into the folder `destination`.

    `source` is the model's `model.safetensors`, or the folder that holds it. Equal input gives equal
    bytes. Raises InvalidInput if it is something else.
    """
    weights = read_safetensors(source / "model.safetensors" if source.is_dir() else source)
    destination.mkdir(parents=True, exist_ok=True)
    onnx.save(build(weights), str(destination / "model.onnx"))


def read_safetensors(file: Path) -> dict[str, NDArray[np.float32]]:
    """The floating-point tensors of a safetensors file as float32, by name.

    The format is the safetensors project's: a little-endian uint64 length, that many bytes of JSON with
    each tensor's dtype, shape and offsets, then the bytes. Raises InvalidInput for anything else.
    """
    data = file.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        header: dict[str, dict[str, Any]] = json.loads(data[8 : 8 + length])
        return {
            name: _tensor(data, 8 + length, entry)
            for name, entry in header.items()
            if name != "__metadata__" and entry["dtype"].startswith("F")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = Problem(file.name, f"is no readable safetensors file: {error!r}; get the model again")
        raise InvalidInput([problem], "no MiniLM to convert") from error


def _tensor(data: bytes, start: int, entry: Mapping[str, Any]) -> NDArray[np.float32]:
    first, last = entry["data_offsets"]
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if last - first != prod(entry["shape"]) * dtype.itemsize or not 0 <= first <= last <= len(data) - start:
        raise ValueError(f"offsets {first} to {last} do not hold {entry['shape']} of {dtype}")
    flat = np.frombuffer(data, dtype, prod(entry["shape"]), start + first)
    return flat.reshape(entry["shape"]).astype(np.float32)


def build(weights: Weights, int8: bool = True) -> onnx.ModelProto:
    """The checked graph of BERT's `weights`, under their names in the transformers library.

    Raises InvalidInput, listing every weight that is missing.
    """
    layers = 0
    while f"encoder.layer.{layers}.output.dense.weight" in weights:
        layers += 1
    _check(weights, layers)
    graph = _Graph(weights, int8)
    hidden = graph.embed()
    mask = graph.additive_mask()
    for n in range(layers):
        hidden = graph.layer(hidden, mask, f"encoder.layer.{n}")
    graph.pool(hidden)
    return graph.model(width=weights["embeddings.word_embeddings.weight"].shape[1])


def _check(weights: Weights, layers: int) -> None:
    parts = (
        *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        *("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    )
    names = [f"embeddings.{what}_embeddings.weight" for what in ("word", "position", "token_type")]
    modules = ["embeddings.LayerNorm", *(f"encoder.layer.{n}.{part}" for n in range(layers) for part in parts)]
    names += [f"{module}.{half}" for module in modules for half in ("weight", "bias")]
    missing = [Problem(name, "is missing from the weights") for name in names if name not in weights]
    if not layers:
        missing.append(Problem("encoder.layer.0", "is missing: there is no layer at all"))
    if missing:
        raise InvalidInput(missing, "no MiniLM to convert")


class _Graph:
    """Nodes and constants in the making; a value is its name."""

    def __init__(self, weights: Weights, int8: bool) -> None:
        self._weights = weights
        self._int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._quantised: dict[str, list[str]] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        names = [f"{kind}.{len(self._nodes)}.{n}" for n in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(f"ints.{'.'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar.{value}", np.array(value, np.float32))

    def embed(self) -> str:
        """The normalised sum of word, position and segment embeddings, [batch, steps, width]."""
        steps = self.op("Shape", "input_ids", start=1, end=2)
        places = self.weight("embeddings.position_embeddings.weight")
        positions = self.op("Slice", places, self.ints(0), steps, self.ints(0))
        # Every token is of the first segment.
        segment = self.constant("segment", self._weights["embeddings.token_type_embeddings.weight"][0])
        total = self.op("Add", self.words(), self.op("Add", positions, segment))
        return self.norm(total, "embeddings.LayerNorm")

    def words(self) -> str:
        name = "embeddings.word_embeddings.weight"
        if not self._int8:
            return self.op("Gather", self.weight(name), "input_ids")
        integers, scales = quantised(self._weights[name].T)
        rows = self.op("Gather", self.constant(f"{name}.int8", integers.T), "input_ids")
        scale = self.op("Gather", self.constant(f"{name}.scale", scales[:, None]), "input_ids")
        return self.op("Mul", self.op("Cast", rows, to=TensorProto.FLOAT), scale)

    def additive_mask(self) -> str:
        """0 on tokens and a large negative number on padding, float32 [batch, 1, 1, steps]."""
        mask = self.op("Cast", self.op("Unsqueeze", "attention_mask", self.ints(1, 2)), to=TensorProto.FLOAT)
        return self.op("Mul", self.op("Sub", self.scalar(1.0), mask), self.scalar(MASKED))

    def layer(self, x: str, mask: str, name: str) -> str:
        self_attention = f"{name}.attention.self"
        query, key, value = (
            self.heads(self.linear(x, f"{self_attention}.{part}")) for part in ("query", "key", "value")
        )
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        scaled = self.op("Add", self.op("Mul", scores, self.scalar(HEAD_WIDTH**-0.5)), mask)
        mixed = self.op("MatMul", self.op("Softmax", scaled, axis=-1), value)
        joined = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, 0, -1))
        attended = self.op("Add", x, self.linear(joined, f"{name}.attention.output.dense"))
        x = self.norm(attended, f"{name}.attention.output.LayerNorm")
        inner = self.op("Gelu", self.linear(x, f"{name}.intermediate.dense"))
        return self.norm(self.op("Add", x, self.linear(inner, f"{name}.output.dense")), f"{name}.output.LayerNorm")

    def heads(self, x: str) -> str:
        """[batch, steps, width] -> [batch, heads, steps, HEAD_WIDTH]."""
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, -1, HEAD_WIDTH)), perm=[0, 2, 1, 3])

    def pool(self, hidden: str) -> None:
        mask = self.op("Cast", self.op("Unsqueeze", "attention_mask", self.ints(2)), to=TensorProto.FLOAT)
        total = self.op("ReduceSum", self.op("Mul", hidden, mask), self.ints(1), keepdims=0)
        # The mean's divisor cancels in the division by the norm.
        norm = self.op("ReduceL2", total, self.ints(1), keepdims=1)
        floor = self.op("Max", norm, self.scalar(SHORTEST_NORM))
        self._nodes.append(helper.make_node("Div", [total, floor], ["embedding"]))

    def weight(self, name: str) -> str:
        return self.constant(name, self._weights[name])

    def norm(self, x: str, name: str) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)

    def linear(self, x: str, name: str) -> str:
        """[..., in] -> [..., out], with the weight [out, in] and bias [out] of that name."""
        weight = self._weights[f"{name}.weight"].T
        if self._int8:
            integers, scales = quantised(weight)
            product = self.product(x, self.constant(f"{name}.int8", integers), self.constant(f"{name}.scale", scales))
        else:
            product = self.op("MatMul", x, self.constant(f"{name}.weight", weight))
        return self.op("Add", product, self.weight(f"{name}.bias"))

    def product(self, x: str, weight: str, scale: str) -> str:
        # Query, key and value read one tensor: it is quantised once.
        if x not in self._quantised:
            self._quantised[x] = self.ops("DynamicQuantizeLinear", x, outputs=3)
        integers, x_scale, zero = self._quantised[x]
        product = self.op("Cast", self.op("MatMulInteger", integers, weight, zero), to=TensorProto.FLOAT)
        return self.op("Mul", product, self.op("Mul", x_scale, scale))

    def model(self, width: int) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "steps"])
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])
        graph = helper.make_graph(self._nodes, "minilm", inputs, [output], list(self._constants.values()))
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
