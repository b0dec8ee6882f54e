"""ONNX files as operators with their work: counts that are known from the shapes, and what cannot be told."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from starloom.agents.graphreading import read
from starloom.dag.errors import InvalidInput

FLOAT = TensorProto.FLOAT


def weight(name: str, *shape: int, kind: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.zeros(shape, kind), name)


def saved(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: list[str], weights: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three convolutions, a product, and one operator whose result nobody asks for."""
    return saved(
        tmp_path / "small.onnx",
        [
            helper.make_node("Conv", ["image", "w1"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["a", "w2"], ["b"], group=8, pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["b", "w3"], ["c"]),
            helper.make_node("Relu", ["a"], ["nobody"]),
            helper.make_node("Flatten", ["c"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w4"], ["out"]),
        ],
        {"image": ["batch", 3, 10, 10]},
        ["out"],
        [weight("w1", 8, 3, 3, 3), weight("w2", 8, 1, 3, 3), weight("w3", 4, 8, 1, 1), weight("w4", 400, 5)],
    )


def test_work_follows_from_shapes(small: Path) -> None:
    first, depthwise, point, relu, flatten, product = read(small, {"batch": 2}).operators
    pixels = 2 * 10 * 10
    assert (first.kind, first.flops, first.parameters) == ("Conv 3x3", 2 * pixels * 8 * 3 * 9, 8 * 3 * 9)
    assert first.bytes == 4 * (pixels * 3 + 8 * 3 * 9 + pixels * 8)
    assert (depthwise.kind, depthwise.flops) == ("Conv 3x3 depthwise", 2 * pixels * 8 * 9)
    assert (point.kind, point.flops) == ("Conv 1x1", 2 * pixels * 4 * 8)
    assert (product.kind, product.flops, product.parameters) == ("Gemm", 2 * 2 * 5 * 400, 2000)
    assert (relu.kind, relu.flops, relu.used) == ("Relu", pixels * 8, False)
    assert flatten.used
    assert read(small, {"batch": 1}).flops < read(small, {"batch": 2}).flops
    assert read(small, {"batch": 1}).parameters == 8 * 27 + 8 * 9 + 4 * 8 + 2000


def test_transposed_convolutions_and_quantised_products_are_counted_by_their_sums(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "other.onnx",
        [
            helper.make_node("ConvTranspose", ["image", "w"], ["big"], strides=[2, 2]),
            helper.make_node("DynamicQuantizeLinear", ["side"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w8"], ["out"]),
        ],
        {"image": [1, 6, 5, 5], "side": [7, 16]},
        ["big", "out"],
        [weight("w", 6, 4, 2, 2), weight("w8", 16, 3, kind=np.int8)],
    )
    bigger, _, product = read(path).operators
    assert (bigger.kind, bigger.flops) == ("ConvTranspose 2x2", 2 * 25 * 6 * 4 * 4)
    assert (product.kind, product.flops, product.bytes) == ("MatMulInteger", 2 * 7 * 3 * 16, 7 * 16 + 16 * 3 + 4 * 21)


def test_both_branches_count_once(tmp_path: Path) -> None:
    def branch(name: str) -> Any:
        node = helper.make_node("Tanh" if name == "then" else "Relu", ["x"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, FLOAT, [4])])

    test = numpy_helper.from_array(np.array(True), "test")
    node = helper.make_node("If", ["test"], ["out"], then_branch=branch("then"), else_branch=branch("else"))
    source = helper.make_node("Abs", ["input"], ["x"])
    path = saved(tmp_path / "if.onnx", [source, node], {"input": [4]}, ["out"], [test])
    found = read(path).operators
    assert sorted(each.kind for each in found) == ["Abs", "If", "Relu", "Tanh"]
    assert all(each.used for each in found)


def test_shapes_that_depend_on_values_count_without_work(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "free.onnx",
        [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Cast", ["places"], ["out"], to=FLOAT)],
        {"x": [4]},
        ["out"],
        [],
    )
    assert [(each.kind, each.flops) for each in read(path).operators] == [("NonZero", 0.0), ("Cast", 0.0)]


def test_weights_may_be_constants_of_the_graph(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=weight("w", 4, 3, 3, 3))
    conv = helper.make_node("Conv", ["x", "w"], ["out"])
    path = saved(tmp_path / "constant.onnx", [constant, conv], {"x": [1, 3, 8, 8]}, ["out"], [])
    (found,) = read(path).operators
    assert (found.kind, found.parameters, found.flops) == ("Conv 3x3", 108, 2 * 36 * 108)


def test_what_follows_from_weights_is_a_weight_and_no_work(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["half"], ["w"], to=FLOAT)
    product = helper.make_node("MatMul", ["x", "w"], ["out"])
    path = saved(
        tmp_path / "half.onnx", [cast, product], {"x": [2, 5]}, ["out"], [weight("half", 5, 3, kind=np.float16)]
    )
    (found,) = read(path).operators
    assert (found.kind, found.flops, found.parameters) == ("MatMul", 2 * 2 * 3 * 5, 15)


def test_dimensions_that_are_unknown_by_name_too_are_told_apart_by_place(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["out"])
    path = saved(tmp_path / "nameless.onnx", [node], {"x": ["?", 3, "?"]}, ["out"], [])
    assert read(path, {"x.0": 2, "x.2": 5}).flops == 30
    with pytest.raises(InvalidInput, match=r"'x\.0'") as caught:
        read(path)
    assert len(caught.value.problems) == 2


def test_inputs_smaller_than_a_kernel_give_no_work_below_zero(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["out"])
    path = saved(tmp_path / "little.onnx", [node], {"x": [1, 3, 2, 2]}, ["out"], [weight("w", 4, 3, 5, 5)])
    assert all(each.flops == 0 for each in read(path).operators)


def test_a_size_that_is_not_given_is_named(small: Path) -> None:
    with pytest.raises(InvalidInput, match="give one for 'batch'"):
        read(small)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("not a model")
    with pytest.raises(InvalidInput, match="is no ONNX file"):
        read(path)
