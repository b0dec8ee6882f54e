"""CenterFace for the face stage: one float32 graph, and one in static INT8 for NPUs.

The published graph declares ten images of 32 x 32 pixels and opset 9. Here it takes images of any
multiple of 32, in opset 17, with each batch normalisation folded into the transposed convolution
before it. The INT8 graph is QDQ: unsigned activations, signed weights, one scale per output channel,
ranges by minimum and maximum over the calibration photographs of this package. The last layers, which
make the maps, stay in float32.
"""

import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from starloom.agents.stages.faces import network_input
from starloom.agents.stages.image import decode_image
from starloom.dag.errors import InvalidInput, Problem

_SOURCE_FILE = "centerface.onnx"
_OPSET = 17
_INPUT = "image"
_OUTPUTS = {"537": "score", "538": "extent", "539": "offset", "540": "landmarks"}
_CALIBRATION_SIDE = 512
"""Pixels of the longer side of a calibration photograph, as the network sees it."""


def convert(source: Path, destination: Path) -> None:
    """Writes `model.onnx` and `model.int8.onnx` into `destination`, from `centerface.onnx` in `source`.

    Both: image float32 [batch, 3, height, width], RGB, 0 to 255, sides multiples of 32; score, extent,
    offset and landmarks float32 [batch, 1 | 2 | 2 | 10, height / 4, width / 4]. Raises InvalidInput if
    the source is another graph.
    """
    model = prepare(onnx.load(source / _SOURCE_FILE))
    onnx.save(model, destination / "model.onnx")
    with tempfile.TemporaryDirectory() as folder:
        simplified = Path(folder) / "simplified.onnx"
        quant_pre_process(destination / "model.onnx", simplified, skip_symbolic_shape=True)
        quantise(simplified, destination / "model.int8.onnx")


def prepare(published: ModelProto) -> ModelProto:
    """The published graph with free sizes, plain names and no batch normalisation."""
    found = {output.name for output in published.graph.output}
    if found != set(_OUTPUTS) or len(published.graph.node) == 0:
        raise InvalidInput(
            [Problem(_SOURCE_FILE, f"has outputs {sorted(found)} instead of {sorted(_OUTPUTS)}")], "not CenterFace"
        )
    model = version_converter.convert_version(published, _OPSET)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    image = next(each.name for each in graph.input if each.name not in weights)
    _fold_batch_normalisation(model)
    names = {image: _INPUT, **_OUTPUTS}
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}.{index}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    channels = {output.name: output.type.tensor_type.shape.dim[1].dim_value for output in graph.output}
    inputs = [_port(_INPUT, ["batch", 3, "height", "width"])]
    outputs = [_port(new, ["batch", channels[old], "rows", "columns"]) for old, new in _OUTPUTS.items()]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    prepared = helper.make_graph(list(graph.node), "centerface", inputs, outputs, kept)
    result = helper.make_model(prepared, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="starloom")
    result.ir_version = 8
    onnx.checker.check_model(result)
    return result


def _port(name: str, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _fold_batch_normalisation(model: ModelProto) -> None:
    """Puts each batch normalisation into the transposed convolution that feeds it, in place.

    With s = scale / sqrt(variance + epsilon): weights * s, and a bias of shift - mean * s.
    """
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    kept: list[NodeProto] = []
    for node in graph.node:
        maker = makers.get(node.input[0])
        if node.op_type != "BatchNormalization" or maker is None or maker.op_type != "ConvTranspose":
            kept.append(node)
            continue
        scale, shift, mean, variance = (weights[name] for name in node.input[1:5])
        epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        name = maker.input[1]
        folded = (weights[name] * factor[None, :, None, None]).astype(np.float32)
        next(tensor for tensor in graph.initializer if tensor.name == name).CopyFrom(
            numpy_helper.from_array(folded, name)
        )
        graph.initializer.append(numpy_helper.from_array((shift - mean * factor).astype(np.float32), f"{name}.bias"))
        maker.input.append(f"{name}.bias")
        maker.output[0] = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def quantise(model: Path, destination: Path) -> None:
    """Writes the static INT8 form of `model`: QDQ, U8S8, per channel, ranges from the calibration photographs."""
    graph = onnx.load(model).graph
    outputs = {output.name for output in graph.output}
    makers = {name: node for node in graph.node for name in node.output}
    last = [makers[name] for name in outputs]
    last += [makers[name] for node in last if node.op_type == "Sigmoid" for name in node.input]
    quantize_static(
        model,
        destination,
        _Photographs(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv", "Relu", "Add"],
        nodes_to_exclude=[node.name for node in last],
    )


class _Photographs(CalibrationDataReader):  # type: ignore[misc]
    """The calibration photographs, in the order of their names, as the stage would feed them."""

    def __init__(self) -> None:
        self._feeds: Iterator[NDArray[np.float32]] = iter(calibration_inputs())

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else {_INPUT: feed}


def calibration_inputs() -> list[NDArray[np.float32]]:
    """float32 [1, 3, height, width] of each photograph in `agents/data/calibration`, by name."""
    folder = resources.files("starloom.agents").joinpath("data/calibration")
    files = sorted((each for each in folder.iterdir() if each.name.endswith(".jpg")), key=lambda each: each.name)
    return [network_input(decode_image(each.read_bytes()), _CALIBRATION_SIDE)[0] for each in files]
