"""Whisper from a CTranslate2 checkpoint to two ONNX graphs, an encoder and a decoder with a key-value cache.

The architecture is that of Radford et al., "Robust Speech Recognition via Large-Scale Weak
Supervision" (2022): two convolutions and pre-norm transformer layers that read the mel spectrogram,
and pre-norm layers with cross-attention that write tokens; the output projection is the transposed
token embedding.

Encoder: `mel` float32 [1, mels, frames] -> `cross.N.key`, `cross.N.value` float32 [1, heads, ceil(frames / 2), head].
Decoder: `ids` int64 [1, steps], `past.N.key|value` float32 [1, heads, past, head] and the encoder's
outputs -> `logits` float32 [1, vocabulary] of the last step, `present.N.key|value` [1, heads, past + steps, head].

With `int8`, weights of matrix products are INT8 with one symmetric scale per output column, and their
left sides are quantised to UINT8 when they are computed (ONNX's DynamicQuantizeLinear and
MatMulInteger, which ONNX Runtime fuses). The embedding is kept once, as INT8: its columns are looked
up for the input, and its product gives the logits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from starloom.agents.convert import ctranslate2
from starloom.agents.convert.graphs import Graph, quantised
from starloom.dag.errors import InvalidInput, Problem

EPSILON = 1e-5
MASKED = -1e9

Variables = Mapping[str, NDArray[Any]]


def convert(source: Path, destination: Path) -> None:
    """Writes `encoder.onnx` and `decoder.onnx`, INT8, into the folder `destination`.

    `source` is CTranslate2's `model.bin` of a Whisper, or the folder that holds it. Equal input gives
    equal bytes. Raises InvalidInput if it is something else.
    """
    file = source / "model.bin" if source.is_dir() else source
    checkpoint = ctranslate2.read(file)
    if checkpoint.name != "WhisperSpec":
        raise InvalidInput(
            [Problem(file.name, f"holds a {checkpoint.name}, not a WhisperSpec")], "no Whisper to convert"
        )
    destination.mkdir(parents=True, exist_ok=True)
    onnx.save(build_encoder(checkpoint.variables), str(destination / "encoder.onnx"))
    onnx.save(build_decoder(checkpoint.variables), str(destination / "decoder.onnx"))


class _Graph(Graph):
    def __init__(self, variables: Variables, int8: bool) -> None:
        super().__init__()
        self._variables = variables
        self._int8 = int8

    def array(self, name: str) -> NDArray[Any]:
        """A variable of the checkpoint. Raises InvalidInput if it is not there."""
        try:
            return self._variables[name]
        except KeyError:
            raise InvalidInput([Problem(name, "is missing from the checkpoint")], "no Whisper to convert") from None

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar.{value}", np.array(value, np.float32))

    def variable(self, name: str) -> str:
        """A checkpoint's array as float32, stored as float16 where that is what the checkpoint holds."""
        array = self.array(name)
        if array.dtype != np.float16:
            return self.constant(name, array.astype(np.float32))
        return self.op("Cast", self.constant(name, array), to=TensorProto.FLOAT)

    def linear(self, x: str, name: str) -> str:
        """x [..., in] -> [..., out] with the checkpoint's weight [out, in] and bias [out]."""
        weight = self.array(f"{name}/weight").astype(np.float32).T
        if self._int8:
            integers, scales = quantised(weight)
            product = self.product_int8(
                x, self.constant(f"{name}/int8", integers), self.constant(f"{name}/scale", scales)
            )
        else:
            product = self.op("MatMul", x, self.constant(f"{name}/weight", weight))
        return self.op("Add", product, self.constant(f"{name}/bias", self.array(f"{name}/bias").astype(np.float32)))

    def norm(self, x: str, name: str) -> str:
        gamma = self.constant(f"{name}/gamma", self.array(f"{name}/gamma").astype(np.float32))
        beta = self.constant(f"{name}/beta", self.array(f"{name}/beta").astype(np.float32))
        return self.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=EPSILON)

    def feed_forward(self, x: str, layer: str) -> str:
        hidden = self.linear(self.norm(x, f"{layer}/ffn/layer_norm"), f"{layer}/ffn/linear_0")
        return self.op("Add", x, self.linear(self.op("Gelu", hidden), f"{layer}/ffn/linear_1"))

    def split_heads(self, x: str, heads: int) -> str:
        """[1, steps, width] -> [1, heads, steps, width / heads]."""
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])

    def attend(self, query: str, key: str, value: str, head: int, mask: str = "") -> str:
        """Scaled dot-product attention of [1, heads, steps, head] tensors -> [1, steps, width]."""
        scaled = self.op("Mul", query, self.scalar(head**-0.5))
        scores = self.op("MatMul", scaled, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        weights = self.op("Softmax", self.op("Add", scores, mask) if mask else scores, axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.op("Reshape", mixed, self.ints(0, 0, -1))

    def rename(self, value: str, name: str) -> None:
        self.output("Identity", [value], name)

    def size(self, value: str, axis: int) -> str:
        """The length of an axis, int64 scalar."""
        return self.op("Squeeze", self.op("Shape", value, start=axis, end=axis + 1))


def _sizes(variables: Variables, part: str) -> tuple[int, int]:
    """The number of layers and of heads of `encoder` or `decoder`."""
    try:
        heads = int(variables[f"{part}/num_heads"])
    except KeyError:
        raise InvalidInput(
            [Problem(f"{part}/num_heads", "is missing from the checkpoint")], "no Whisper to convert"
        ) from None
    layers = 0
    while f"{part}/layer_{layers}/ffn/linear_0/weight" in variables:
        layers += 1
    return layers, heads


def _cache(prefix: str, layers: int, heads: int, head: int, steps: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(f"{prefix}.{n}.{part}", TensorProto.FLOAT, [1, heads, steps, head])
        for n in range(layers)
        for part in ("key", "value")
    ]


def build_encoder(variables: Variables, *, int8: bool = True) -> onnx.ModelProto:
    """The encoder, and the decoder's projections of its result, as one graph. Raises InvalidInput."""
    graph = _Graph(variables, int8)
    layers, heads = _sizes(variables, "encoder")
    cross_layers, cross_heads = _sizes(variables, "decoder")
    width, mels = graph.array("encoder/conv1/weight").shape[:2]
    x = "mel"
    for conv, stride in (("encoder/conv1", 1), ("encoder/conv2", 2)):
        kernel, bias = graph.variable(f"{conv}/weight"), graph.variable(f"{conv}/bias")
        x = graph.op("Gelu", graph.op("Conv", x, kernel, bias, kernel_shape=[3], pads=[1, 1], strides=[stride]))
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    steps = graph.op("Shape", x, start=1, end=2)
    positions = graph.variable("encoder/position_encodings/encodings")
    x = graph.op("Add", x, graph.op("Slice", positions, graph.ints(0), steps, graph.ints(0)))
    for n in range(layers):
        layer = f"encoder/layer_{n}"
        mixed = graph.linear(graph.norm(x, f"{layer}/self_attention/layer_norm"), f"{layer}/self_attention/linear_0")
        query, key, value = (
            graph.split_heads(part, heads) for part in graph.ops("Split", mixed, outputs=3, axis=-1, num_outputs=3)
        )
        attended = graph.attend(query, key, value, width // heads)
        x = graph.op("Add", x, graph.linear(attended, f"{layer}/self_attention/linear_1"))
        x = graph.feed_forward(x, layer)
    x = graph.norm(x, "encoder/layer_norm")
    for n in range(cross_layers):
        pair = graph.linear(x, f"decoder/layer_{n}/attention/linear_1")
        for part, value in zip(
            ("key", "value"), graph.ops("Split", pair, outputs=2, axis=-1, num_outputs=2), strict=True
        ):
            graph.rename(graph.split_heads(value, cross_heads), f"cross.{n}.{part}")
    mel = helper.make_tensor_value_info("mel", TensorProto.FLOAT, [1, mels, "frames"])
    return graph.model(
        "whisper-encoder", [mel], _cache("cross", cross_layers, cross_heads, width // cross_heads, "context")
    )


def build_decoder(variables: Variables, *, int8: bool = True) -> onnx.ModelProto:
    """The decoder with its key-value cache as one graph. Raises InvalidInput."""
    graph = _Graph(variables, int8)
    layers, heads = _sizes(variables, "decoder")
    vocabulary, width = graph.array("decoder/embeddings/weight").shape
    past = graph.size("past.0.key", 2)
    total = graph.op("Add", past, graph.size("ids", 1))
    zero, one = graph.constant("zero", np.array(0, np.int64)), graph.constant("one", np.array(1, np.int64))
    steps = graph.op("Range", past, total, one)
    columns = graph.op("Unsqueeze", graph.op("Range", zero, total, one), graph.ints(0))
    seen = graph.op("LessOrEqual", columns, graph.op("Unsqueeze", steps, graph.ints(1)))
    mask = graph.op("Where", seen, graph.scalar(0.0), graph.scalar(MASKED))
    embedding = _Embedding(graph, int8)
    positions = graph.variable("decoder/position_encodings/encodings")
    x = graph.op("Add", embedding.look_up("ids"), graph.op("Gather", positions, steps, axis=0))
    for n in range(layers):
        x = _decoder_layer(graph, x, n, heads, width // heads, mask)
    last = graph.op(
        "Gather", graph.norm(x, "decoder/layer_norm"), graph.constant("last", np.array(-1, np.int64)), axis=1
    )
    graph.rename(embedding.logits(last), "logits")
    caches = (
        _cache(prefix, layers, heads, width // heads, dim) for prefix, dim in (("past", "past"), ("cross", "context"))
    )
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "steps"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, vocabulary])
    present = _cache("present", layers, heads, width // heads, "total")
    return graph.model("whisper-decoder", [ids, *(one for cache in caches for one in cache)], [logits, *present])


def _decoder_layer(graph: _Graph, x: str, n: int, heads: int, head: int, mask: str) -> str:
    """One layer: self-attention with the cache, cross-attention to the encoder's result, feed-forward."""
    layer = f"decoder/layer_{n}"
    mixed = graph.linear(graph.norm(x, f"{layer}/self_attention/layer_norm"), f"{layer}/self_attention/linear_0")
    query, key, value = (
        graph.split_heads(part, heads) for part in graph.ops("Split", mixed, outputs=3, axis=-1, num_outputs=3)
    )
    key = graph.op("Concat", f"past.{n}.key", key, axis=2)
    value = graph.op("Concat", f"past.{n}.value", value, axis=2)
    graph.rename(key, f"present.{n}.key")
    graph.rename(value, f"present.{n}.value")
    attended = graph.attend(query, key, value, head, mask)
    x = graph.op("Add", x, graph.linear(attended, f"{layer}/self_attention/linear_1"))
    query = graph.split_heads(
        graph.linear(graph.norm(x, f"{layer}/attention/layer_norm"), f"{layer}/attention/linear_0"), heads
    )
    attended = graph.attend(query, f"cross.{n}.key", f"cross.{n}.value", head)
    x = graph.op("Add", x, graph.linear(attended, f"{layer}/attention/linear_2"))
    return graph.feed_forward(x, layer)


class _Embedding:
    """The token embedding, kept once as [width, vocabulary]: read by column, and multiplied with for the logits."""

    def __init__(self, graph: _Graph, int8: bool) -> None:
        self._graph = graph
        weight = graph.array("decoder/embeddings/weight").astype(np.float32).T
        self._scale = ""
        if int8:
            integers, scales = quantised(weight)
            self._weight = graph.constant("embedding/int8", integers)
            self._scale = graph.constant("embedding/scale", scales)
        else:
            self._weight = graph.constant("embedding", weight)

    def look_up(self, ids: str) -> str:
        """ids [1, steps] -> float32 [1, steps, width]."""
        graph = self._graph
        rows = graph.op("Transpose", graph.op("Gather", self._weight, ids, axis=1), perm=[1, 2, 0])
        if not self._scale:
            return rows
        scale = graph.op("Unsqueeze", graph.op("Gather", self._scale, ids, axis=0), graph.ints(2))
        return graph.op("Mul", graph.op("Cast", rows, to=TensorProto.FLOAT), scale)

    def logits(self, x: str) -> str:
        """x [1, width] -> float32 [1, vocabulary]."""
        if not self._scale:
            return self._graph.op("MatMul", x, self._weight)
        return self._graph.product_int8(x, self._weight, self._scale)
