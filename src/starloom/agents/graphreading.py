"""An ONNX file as what it asks of a device: its operators with their shapes' work, for inputs of given sizes.

Work is counted as is usual: a multiplication and an addition are two operations, convolutions and matrix products are
counted by their sums, everything else as one operation for each element of its outputs. Bytes are those of all inputs
and outputs, so what stays in a cache is counted too. What follows from weights alone is a weight: runtimes compute it once.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from starloom.dag.errors import InvalidInput, Problem
from starloom.devices.graphs import Graph, Operator

_CONVOLUTIONS: Final = frozenset({"Conv", "ConvInteger", "QLinearConv", "ConvTranspose"})
_PRODUCTS: Final = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "FusedMatMul"})
_QUANTISED: Final = frozenset({"QLinearConv", "QLinearMatMul"})
"""Their right side is the fourth input."""
_FREE: Final = frozenset({"Constant", "Identity"})
"""No runtime computes anything for these."""


class _Tensor(NamedTuple):
    """A value of the graph: its shape, None where inference cannot tell it, and the bytes of an element."""

    shape: tuple[int, ...] | None
    width: float
    weight: bool = False

    @property
    def elements(self) -> float:
        return float(prod(self.shape)) if self.shape is not None else 0.0


_UNKNOWN: Final = _Tensor(None, 0.0)


def read(path: Path, sizes: Mapping[str, int] | None = None) -> Graph:
    """The operators of an ONNX file. `sizes`: of its symbolic dimensions, by name (`batch`, `sequence`).

    Operators whose shapes depend on what is computed count without work; bodies of loops and branches count once.
    Raises InvalidInput for a file that is no ONNX graph, and where an input's dimension is not given.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise InvalidInput([Problem(str(path), f"is no ONNX file ({error}); give the model's graph")]) from error
    _sized(model.graph, sizes or {}, path)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return Graph(tuple(_operators(inferred.graph, {})))


def _sized(graph: Any, sizes: Mapping[str, int], path: Path) -> None:
    """Gives symbolic dimensions of inputs their sizes, in place."""
    weights = {each.name for each in graph.initializer}
    problems = []
    for value in graph.input:
        if value.name in weights:
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value"):
                continue
            # some exporters call every dimension that they do not know "?"
            name = dimension.dim_param.strip("?") or f"{value.name}.{axis}"
            if name in sizes:
                dimension.dim_value = sizes[name]
            else:
                problems.append(Problem(f"{path}: {value.name}", f"has no size on axis {axis}; give one for {name!r}"))
    if problems:
        raise InvalidInput(problems, "inputs whose sizes are not known")


def _operators(graph: Any, outer: Mapping[str, _Tensor]) -> Iterator[Operator]:
    tensors = {**outer, **_tensors(graph)}
    needed = _needed(graph)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _operators(body, tensors)
        if node.op_type in _FREE:
            continue
        if _follows_from_weights(node, tensors):
            tensors.update({name: tensors.get(name, _UNKNOWN)._replace(weight=True) for name in node.output})
        else:
            yield _operator(node, tensors, used=not needed.isdisjoint(node.output))


def _follows_from_weights(node: Any, tensors: Mapping[str, _Tensor]) -> bool:
    given = [tensors.get(name, _UNKNOWN) for name in node.input if name]
    bodies = any(each.graphs or each.HasField("g") for each in node.attribute)
    return bool(given) and not bodies and all(each.weight for each in given)


def _tensors(graph: Any) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        # inference gives sizes below zero where the inputs are smaller than a kernel
        known = kind.HasField("shape") and all(each.HasField("dim_value") and each.dim_value >= 0 for each in dims)
        shape = tuple(each.dim_value for each in dims) if known else None
        found[value.name] = _Tensor(shape, _width(kind.elem_type))
    weights = [(each.name, each) for each in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            weights += [(node.output[0], each.t) for each in node.attribute if each.name == "value"]
    for name, weight in weights:
        found[name] = _Tensor(tuple(weight.dims), _width(weight.data_type), weight=True)
    return found


def _needed(graph: Any) -> set[str]:
    """Values that the graph's outputs depend on. Nodes stand in an order in which they can run."""
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    needed.update(name for each in attribute.g.node for name in each.input)
    return needed


def _operator(node: Any, tensors: Mapping[str, _Tensor], used: bool) -> Operator:
    inputs = [tensors.get(name, _UNKNOWN) for name in node.input]
    outputs = [tensors.get(name, _UNKNOWN) for name in node.output]
    work = sum(each.elements for each in outputs)
    kind = node.op_type
    right = inputs[3] if node.op_type in _QUANTISED and len(inputs) > 3 else inputs[1] if len(inputs) > 1 else _UNKNOWN
    if node.op_type in _CONVOLUTIONS and right.shape is not None:
        kind, work = _convolution(node, inputs[0], right.shape, outputs[0])
    elif node.op_type in _PRODUCTS and inputs[0].shape and outputs:
        work = 2.0 * outputs[0].elements * _summed(node, inputs[0].shape)
    return Operator(
        kind=kind,
        flops=work,
        bytes=sum(each.elements * each.width for each in (*inputs, *outputs)),
        parameters=sum(each.elements for each in inputs if each.weight),
        used=used,
    )


def _convolution(node: Any, image: _Tensor, weight: tuple[int, ...], output: _Tensor) -> tuple[str, float]:
    """Its kind, with the kernel's size, and its operations. Weights are [out, in / groups, *kernel], of transposed ones
    [in, out / groups, *kernel]."""
    kernel = weight[2:]
    groups = next((each.i for each in node.attribute if each.name == "group"), 1)
    kind = f"{node.op_type} {'x'.join(map(str, kernel))}"
    if groups > 1:
        kind += " depthwise" if weight[1] == 1 else " grouped"
    if node.op_type == "ConvTranspose":
        return kind, 2.0 * image.elements * weight[1] * prod(kernel)
    return kind, 2.0 * output.elements * weight[1] * prod(kernel)


def _summed(node: Any, left: tuple[int, ...]) -> int:
    """Over how many products each element of the result is summed."""
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return left[0] if transposed else left[-1]


def _width(kind: int) -> float:
    """Bytes of an element of ONNX's data type; those of text are not known."""
    import onnx

    if kind in {onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING}:
        return 0.0
    packed: Iterable[int] = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    if kind in packed:
        return 0.5
    return float(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
