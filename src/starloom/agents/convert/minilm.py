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
from onnx import TensorProto, helper

from starloom.agents.convert.graphs import Graph, quantised
from starloom.dag.errors import InvalidInput, Problem

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
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "steps"])
        for name in ("input_ids", "attention_mask")
    ]
    width = weights["embeddings.word_embeddings.weight"].shape[1]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])
    return graph.model("minilm", inputs, [output])


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


class _Graph(Graph):
    def __init__(self, weights: Weights, int8: bool) -> None:
        super().__init__()
        self._weights = weights
        self._int8 = int8

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar.{value}", np.array([value], np.float32))

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
        self.output("Div", [total, floor], "embedding")

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
            product = self.product_int8(
                x, self.constant(f"{name}.int8", integers), self.constant(f"{name}.scale", scales)
            )
        else:
            product = self.op("MatMul", x, self.constant(f"{name}.weight", weight))
        return self.op("Add", product, self.weight(f"{name}.bias"))
