"""The model as an ONNX graph in the layout that Hugging Face's Optimum gives a decoder, built by hand: no torch in it.

Inputs input_ids, attention_mask, position_ids, past_key_values.N.{key,value}; outputs logits, present.N.{key,value}.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
MASKED = -1e9


class Graph:
    """A graph being built: every call adds a node and gives the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, value: Any, name: str = "") -> str:
        self.count += 1
        name = name or f"c{self.count}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def __call__(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        self.count += 1
        out = out or f"n{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{op}_{self.count}", **attributes))
        return out

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))


def rounded(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 of [rows, columns] with a scale for each row, [rows, 1]; a row is about integers times scale."""
    scales = np.maximum(np.abs(matrix).max(-1, keepdims=True), 1e-8) / 127
    return np.rint(matrix / scales).astype(np.int8), scales.astype(np.float32)


class Builder:
    """One model's graph. `weights` have Hugging Face's names; `small` stores them as INT8, a scale for each row.

    Only what is stored is INT8: ONNX Runtime turns it into float32 once, as it loads. With activations in INT8,
    even scaled token by token, a rounding that falls the other way moves logits by 0.2, so that
    incremental decoding would not equal the full pass.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]], *, small: bool = False
    ) -> None:
        self.config, self.weights, self.graph, self.small = config, weights, Graph(), small
        self.cosine = self.sine = self.bias = ""

    def build(self) -> onnx.ModelProto:
        layers = self.config["num_hidden_layers"]
        self._positions()
        self._mask()
        hidden = self._embedded("model.embed_tokens.weight")
        for layer in range(layers):
            hidden = self._layer(hidden, layer)
        hidden = self._norm(hidden, "model.norm.weight")
        self._linear(hidden, "model.embed_tokens.weight", "lm_head.weight", "logits")
        return self._model(layers)

    def _model(self, layers: int) -> onnx.ModelProto:
        heads, size, vocabulary = (self.config[k] for k in ("num_key_value_heads", "head_dim", "vocab_size"))
        value = helper.make_tensor_value_info
        batch, seq = "batch_size", "sequence_length"
        inputs = [
            value("input_ids", TensorProto.INT64, [batch, seq]),
            value("attention_mask", TensorProto.INT64, [batch, "total_sequence_length"]),
            value("position_ids", TensorProto.INT64, [batch, seq]),
        ]
        outputs = [value("logits", TensorProto.FLOAT, [batch, seq, vocabulary])]
        for layer in range(layers):
            for part in ("key", "value"):
                past = [batch, heads, "past_sequence_length", size]
                inputs.append(value(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, past))
                present = [batch, heads, "total_sequence_length", size]
                outputs.append(value(f"present.{layer}.{part}", TensorProto.FLOAT, present))
        made = helper.make_graph(self.graph.nodes, "language", inputs, outputs, self.graph.initializers)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="starloom")
        model.ir_version = 8
        onnx.checker.check_model(model)
        return model

    def _positions(self) -> None:
        """cosine and sine, [batch, 1, seq, head_dim]."""
        graph, size = self.graph, self.config["head_dim"]
        half = self.config["rope_theta"] ** (-np.arange(0, size, 2, dtype=np.float32) / size)
        frequencies = graph.constant(np.concatenate((half, half)).astype(np.float32)[None, None, None])
        positions = graph("Unsqueeze", graph("Cast", "position_ids", to=TensorProto.FLOAT), graph.ints(1, 3))
        angles = graph("Mul", positions, frequencies)
        self.cosine, self.sine = graph("Cos", angles), graph("Sin", angles)

    def _mask(self) -> None:
        """What is added to scores, [batch, 1, 1, seq, total]: keys ahead of the query and padding are masked."""
        graph = self.graph
        one, nought = graph.constant(np.array(1, np.int64)), graph.constant(np.array(0, np.int64))
        total = graph("Gather", graph("Shape", "attention_mask"), one)
        length = graph("Gather", graph("Shape", "input_ids"), one)
        keys = graph("Range", nought, total, one)
        queries = graph("Unsqueeze", graph("Range", graph("Sub", total, length), total, one), graph.ints(1))
        causal = graph("LessOrEqual", keys, queries)
        kept = graph("Unsqueeze", graph("Cast", "attention_mask", to=TensorProto.BOOL), graph.ints(1, 2, 3))
        self.bias = graph("Where", graph("And", causal, kept), graph.number(0.0), graph.number(MASKED))

    def _norm(self, hidden: str, name: str) -> str:
        graph = self.graph
        mean = graph("ReduceMean", graph("Mul", hidden, hidden), axes=[-1], keepdims=1)
        spread = graph("Sqrt", graph("Add", mean, graph.number(self.config["rms_norm_eps"])))
        return graph("Mul", graph("Div", hidden, spread), graph.constant(self.weights[name], name))

    def _embedded(self, name: str) -> str:
        graph, table = self.graph, self.weights[name]
        if not self.small:
            return graph("Gather", graph.constant(table, name), "input_ids")
        integers, scales = (
            graph.constant(one, called) for one, called in zip(rounded(table), (name, f"{name}.scales"), strict=True)
        )
        rows = graph("Cast", graph("Gather", integers, "input_ids"), to=TensorProto.FLOAT)
        return graph("Mul", rows, graph("Gather", scales, "input_ids"))

    def _linear(self, hidden: str, name: str, called: str = "", out: str = "") -> str:
        graph, matrix, called = self.graph, self.weights[name], called or name
        if not self.small:
            return graph("MatMul", hidden, graph.constant(matrix.T, called), out=out)
        integers, scales = rounded(matrix)
        floats = graph("Cast", graph.constant(integers.T, called), to=TensorProto.FLOAT)
        whole = graph("Mul", floats, graph.constant(scales.T, f"{called}.scales"))
        return graph("MatMul", hidden, whole, out=out)

    def _heads(self, flat: str, count: int) -> str:
        graph = self.graph
        split = graph("Reshape", flat, graph.ints(0, 0, count, self.config["head_dim"]))
        return graph("Transpose", split, perm=[0, 2, 1, 3])

    def _rotated(self, heads: str) -> str:
        graph, half = self.graph, self.config["head_dim"] // 2
        first = graph("Slice", heads, graph.ints(0), graph.ints(half), graph.ints(3))
        second = graph("Slice", heads, graph.ints(half), graph.ints(2 * half), graph.ints(3))
        turned = graph("Concat", graph("Neg", second), first, axis=3)
        return graph("Add", graph("Mul", heads, self.cosine), graph("Mul", turned, self.sine))

    def _attention(self, hidden: str, layer: int) -> str:
        graph, config = self.graph, self.config
        at = f"model.layers.{layer}.self_attn"
        count, kept, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        query = self._rotated(self._heads(self._linear(hidden, f"{at}.q_proj.weight"), count))
        key = self._rotated(self._heads(self._linear(hidden, f"{at}.k_proj.weight"), kept))
        value = self._heads(self._linear(hidden, f"{at}.v_proj.weight"), kept)
        key = graph("Concat", f"past_key_values.{layer}.key", key, axis=2, out=f"present.{layer}.key")
        value = graph("Concat", f"past_key_values.{layer}.value", value, axis=2, out=f"present.{layer}.value")
        # [batch, kept, group, seq, size]: the queries of a group share their key and value.
        query = graph("Mul", query, graph.number(size**-0.5))
        query = graph("Reshape", query, graph.ints(0, kept, count // kept, -1, size))
        turned = graph("Unsqueeze", graph("Transpose", key, perm=[0, 1, 3, 2]), graph.ints(2))
        scores = graph("Add", graph("MatMul", query, turned), self.bias)
        mixed = graph("MatMul", graph("Softmax", scores, axis=-1), graph("Unsqueeze", value, graph.ints(2)))
        mixed = graph("Reshape", mixed, graph.ints(0, count, -1, size))
        flat = graph("Reshape", graph("Transpose", mixed, perm=[0, 2, 1, 3]), graph.ints(0, 0, count * size))
        return self._linear(flat, f"{at}.o_proj.weight")

    def _layer(self, hidden: str, layer: int) -> str:
        graph, at = self.graph, f"model.layers.{layer}"
        normed = self._norm(hidden, f"{at}.input_layernorm.weight")
        hidden = graph("Add", hidden, self._attention(normed, layer))
        normed = self._norm(hidden, f"{at}.post_attention_layernorm.weight")
        gate = self._linear(normed, f"{at}.mlp.gate_proj.weight")
        up = self._linear(normed, f"{at}.mlp.up_proj.weight")
        inner = graph("Mul", graph("Mul", gate, graph("Sigmoid", gate)), up)
        return graph("Add", hidden, self._linear(inner, f"{at}.mlp.down_proj.weight"))
