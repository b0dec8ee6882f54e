"""Faces: the decoding of the network's maps by itself, and the network on photographs."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from starloom.agents.convert import centerface
from starloom.agents.modelstore import ModelStore
from starloom.agents.stages.faces import FILES, MODEL, decode_faces, network_input, overlap, suppress
from starloom.agents.stages.image import decode_image
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, StageError

Run = Callable[..., dict[str, Any]]
PHOTOGRAPHS = files("starloom.agents").joinpath("data", "calibration")


def photograph(name: str) -> NDArray[np.uint8]:
    return decode_image(PHOTOGRAPHS.joinpath(name).read_bytes())


def maps(rows: int, columns: int, faces: list[dict[str, Any]]) -> list[NDArray[np.float32]]:
    """What the network would give for these faces: each has `cell`, `score`, and `size` in input pixels."""
    heat, extent, offset, points = (np.zeros((1, n, rows, columns), np.float32) for n in (1, 2, 2, 10))
    for face in faces:
        row, column = face["cell"]
        height, width = face["size"]
        heat[0, 0, row, column] = face["score"]
        extent[0, :, row, column] = np.log(height / 4), np.log(width / 4)
        offset[0, :, row, column] = face.get("offset", (0, 0))
        points[0, :, row, column] = np.tile([0.25, 0.75], 5)
    return [heat, extent, offset, points]


def test_a_box_is_centred_on_its_cell_and_scaled_back() -> None:
    found = decode_faces(
        maps(20, 20, [{"cell": (10, 8), "score": 0.9, "size": (16, 8), "offset": (0.25, -0.5)}]), 0.5, (160, 160), 0.5
    )
    # Centre: (8 - 0.5 + 0.5) * 4 = 32 and (10 + 0.25 + 0.5) * 4 = 43 in the input, whose pixels are two of the image.
    assert found == [{"score": 0.9, "box": [56.0, 70.0, 72.0, 102.0], "landmarks": [[68.0, 78.0]] * 5}]


def test_faces_come_best_first_without_doubles_inside_the_image() -> None:
    found = decode_faces(
        maps(
            20,
            20,
            [
                {"cell": (2, 2), "score": 0.6, "size": (40, 40)},
                {"cell": (2, 3), "score": 0.7, "size": (40, 40)},
                {"cell": (15, 15), "score": 0.8, "size": (10, 10)},
                {"cell": (10, 5), "score": 0.4, "size": (10, 10)},
            ],
        ),
        1.0,
        (80, 80),
        0.5,
    )
    assert [face["score"] for face in found] == pytest.approx([0.8, 0.7])
    assert found[1]["box"][:2] == [0.0, 0.0]


def test_a_flood_of_candidates_is_bounded() -> None:
    crowd = maps(60, 60, [])
    crowd[0][:] = 0.9
    crowd[1][:] = np.log(0.5)
    assert len(decode_faces(crowd, 1.0, (240, 240), 0.5)) == limits.FACE_CANDIDATES_MAX


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 0, 0]], np.float64)
    assert overlap(boxes[0], boxes).tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0])
    assert overlap(boxes[3], boxes[3:]).tolist() == [0.0]
    assert suppress(boxes, 0.3) == [0, 2, 3]
    assert suppress(boxes, 0.5) == [0, 1, 2, 3]
    assert suppress(boxes[:0], 0.3) == []


def test_the_input_keeps_shapes_and_is_filled_up_with_black() -> None:
    image = np.full((100, 50, 3), 7, np.uint8)
    feed, scale = network_input(image, 640)
    assert scale == 1.0
    assert feed.shape == (1, 3, 128, 64)
    assert (feed[0, :, :100, :50] == 7).all()
    assert feed.sum() == 7 * 3 * 100 * 50
    feed, scale = network_input(image, 40)
    assert scale == 0.4
    assert feed.shape == (1, 3, 64, 32)


@pytest.mark.models
@pytest.mark.parametrize("target", FILES)
def test_the_astronaut_is_found(run_stage: Run, example_folder: Path, target: str) -> None:
    image = decode_image((example_folder / "photo.jpg").read_bytes())
    (face,) = run_stage("vision.faces", target, image=image)["faces"]
    assert face["score"] > 0.85
    left, top, right, bottom = face["box"]
    assert (170, 45) < (left, top) < (190, 70)
    assert (260, 165) < (right, bottom) < (285, 190)
    left_eye, right_eye, nose, left_mouth, right_mouth = face["landmarks"]
    assert left < left_eye[0] < nose[0] < right_eye[0] < right
    assert left_eye[1] < nose[1] < left_mouth[1] < bottom
    assert left_mouth[0] < right_mouth[0]


@pytest.mark.models
@pytest.mark.parametrize("name", ["astronaut.jpg", "astronaut-face.jpg", "astronaut-small.jpg"])
def test_the_int8_model_agrees_with_the_float_one(run_stage: Run, name: str) -> None:
    # Mirrored, as the INT8 model's ranges come from the photographs as they are.
    image = np.ascontiguousarray(photograph(name)[:, ::-1])
    (exact,), (rough,) = (run_stage("vision.faces", target, image=image)["faces"] for target in ("cpu", "npu"))
    assert overlap(np.array(exact["box"]), np.array([rough["box"]]))[0] > 0.9
    assert abs(exact["score"] - rough["score"]) < 0.08
    side = exact["box"][3] - exact["box"][1]
    assert np.abs(np.array(exact["landmarks"]) - np.array(rough["landmarks"])).max() < 0.05 * side


@pytest.mark.models
@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize("name", ["coffee.jpg", "rocket.jpg", "page.png", "grey"])
def test_no_face_is_seen_where_there_is_none(run_stage: Run, data_folder: Path, name: str, target: str) -> None:
    if name == "grey":
        image = np.full((200, 300, 3), 128, np.uint8)
    elif name == "page.png":
        image = decode_image((data_folder / "vision" / name).read_bytes())
    else:
        image = photograph(name)
    assert run_stage("vision.faces", target, image=image)["faces"] == []


@pytest.mark.models
def test_small_and_empty_images_have_no_faces(run_stage: Run) -> None:
    for shape in ((1, 1, 3), (1, 900, 3), (0, 10, 3)):
        assert run_stage("vision.faces", image=np.zeros(shape, np.uint8))["faces"] == []


@pytest.mark.models
@pytest.mark.parametrize(
    "params", [{"score_min": 0}, {"score_min": 1.5}, {"max_side": 31}, {"max_side": limits.VISION_SIDE_PIXELS_MAX + 1}]
)
def test_parameters_out_of_bounds_are_refused(run_stage: Run, params: dict[str, Any]) -> None:
    with pytest.raises(StageError, match=r"score_min .* must be above 0 .* max_side"):
        run_stage("vision.faces", params=params, image=np.zeros((10, 10, 3), np.uint8))


@pytest.mark.models
def test_the_int8_file_is_static_and_a_third_of_the_size(model_store: ModelStore) -> None:
    exact, rough = (model_store.file(MODEL, FILES[target]) for target in ("cpu", "npu"))
    assert rough.stat().st_size < exact.stat().st_size / 3
    operators = {node.op_type for node in onnx.load(rough).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert not operators & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "BatchNormalization"}


def test_another_graph_is_not_taken_for_centerface() -> None:
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [port], [port])
    with pytest.raises(InvalidInput, match="not CenterFace"):
        centerface.prepare(helper.make_model(graph))


def test_calibration_photographs_are_as_the_stage_would_feed_them() -> None:
    feeds = centerface.calibration_inputs()
    assert len(feeds) == 5
    for feed in feeds:
        assert feed.dtype == np.float32
        assert feed.shape[:2] == (1, 3)
        assert all(side % 32 == 0 for side in feed.shape[2:])


def test_a_batch_normalisation_is_folded_exactly() -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((3, 2, 2, 2)).astype(np.float32)
    normal = {
        "scale": rng.uniform(0.5, 2, 2),
        "shift": rng.standard_normal(2),
        "mean": rng.standard_normal(2),
        "variance": rng.uniform(0.5, 2, 2),
    }
    tensors = {"w": weights} | {name: value.astype(np.float32) for name, value in normal.items()}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["made"], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["made", *normal], ["y"], epsilon=1e-3),
    ]
    graph = helper.make_graph(
        nodes,
        "folded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 8, 10])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    feed = {"x": rng.standard_normal((1, 3, 4, 5)).astype(np.float32)}
    before = output_of(model, feed)
    centerface._fold_batch_normalisation(model)
    assert [node.op_type for node in model.graph.node] == ["ConvTranspose"]
    np.testing.assert_allclose(output_of(model, feed), before, rtol=1e-4, atol=1e-5)


def output_of(model: Any, feed: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, feed)
    found: NDArray[np.float32] = output
    return found
