"""Faces in a photograph, by CenterFace (Xu et al., 2019, arXiv:1911.03599)."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages.image import Image, resize
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, GraphUse, KindSpec, Param
from starloom.dag.values import Port, PortType

MODEL = "centerface"
FILES = {"cpu": "model.onnx", "npu": "model.int8.onnx"}
"""The model's file for each target: float32 on a processor, static INT8 on an NPU."""

STRIDE = 4
"""Pixels of the network's input to one cell of its output, on each axis."""
SIZE_MULTIPLE = 32
"""Sides of the network's input are multiples of this, in pixels."""
_OVERLAP_MAX = 0.3

PARAMS: Final = {
    "score_min": Param(type="number", default=0.5, about="faces with a lower score are left out; above 0, at most 1"),
    "max_side": Param(
        type="integer",
        default=640,
        about="pixels; the longer side of what the network sees; more finds smaller faces",
    ),
}
"""What every kind that looks for faces is told by: `find_faces` reads them."""


class DetectFaces(Stage):
    """Finds faces: a score, a box and five landmarks (eyes, nose, corners of the mouth) for each."""

    spec = KindSpec(
        name="vision.faces",
        about="Finds the faces in an image.",
        inputs={"image": Port(PortType.IMAGE)},
        outputs={"faces": Port(PortType.JSON)},
        params=PARAMS,
        targets=("cpu", "npu"),
        models=(MODEL,),
        tier=Tier.DEVICE,
        cost=Cost(
            run_seconds=0.08,
            load_seconds=0.2,
            memory_bytes=150 * 1024 * 1024,
            graphs=tuple(
                GraphUse(model=MODEL, file=file, sizes={"batch": 1, "height": 256, "width": 640}, targets=(target,))
                for target, file in FILES.items()
            ),
        ),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, FILES[target], target=target)

    def run(self, call: StageCall) -> Outputs:
        return {"faces": find_faces(call, call.inputs["image"])}


def find_faces(call: StageCall, image: Image) -> list[dict[str, Any]]:
    """The faces in an image, by the call's parameters `score_min` and `max_side`, on its target. Raises StageError."""
    score_min, max_side = call.params["score_min"], call.params["max_side"]
    if not 0 < score_min <= 1 or not SIZE_MULTIPLE <= max_side <= limits.VISION_SIDE_PIXELS_MAX:
        raise StageError(
            f"score_min {score_min} must be above 0 and at most 1, max_side {max_side} from "
            f"{SIZE_MULTIPLE} to VISION_SIDE_PIXELS_MAX = {limits.VISION_SIDE_PIXELS_MAX}"
        )
    if 0 in image.shape:
        return []
    feed, scale = network_input(image, max_side)
    session = call.models.session(MODEL, FILES[call.target], target=call.target)
    maps = session.run({session.input_names[0]: feed})
    return decode_faces(maps, scale, image.shape[:2], score_min)


def network_input(image: Image, max_side: int) -> tuple[NDArray[np.float32], float]:
    """What the network takes, and the factor from pixels of `image` to pixels of it.

    float32 [1, 3, height, width], RGB, 0 to 255. The longer side is at most `max_side`; black fills
    the right and bottom up to a multiple of 32, so that the shape of a face is kept.
    """
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    scaled = resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
    rows, columns = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in scaled.shape[:2])
    feed = np.zeros((1, 3, rows, columns), np.float32)
    feed[0, :, : scaled.shape[0], : scaled.shape[1]] = scaled.transpose(2, 0, 1)
    return feed, scale


def decode_faces(
    maps: list[NDArray[Any]], scale: float, size: tuple[int, ...], score_min: float
) -> list[dict[str, Any]]:
    """Faces, best first, in pixels of an image of `size` (height, width), out of the FACE_CANDIDATES_MAX best places.

    `maps` are float32 [1, c, h, w]: score (1), log of height and width in cells (2), offset of the
    centre in cells, y then x (2), landmarks relative to the box, y then x five times (10).
    """
    heat, extent, offset, points = (np.asarray(each)[0] for each in maps)
    rows, columns = np.nonzero(heat[0] >= score_min)
    scores = heat[0, rows, columns]
    order = np.argsort(-scores, kind="stable")[: limits.FACE_CANDIDATES_MAX]
    rows, columns, scores = rows[order], columns[order], scores[order]
    heights, widths = np.exp(extent[:, rows, columns]) * STRIDE
    tops = (rows + offset[0, rows, columns] + 0.5) * STRIDE - heights / 2
    lefts = (columns + offset[1, rows, columns] + 0.5) * STRIDE - widths / 2
    boxes = np.stack([lefts, tops, lefts + widths, tops + heights], axis=1) / scale
    marks_y = (points[0::2, rows, columns] * heights + tops) / scale
    marks_x = (points[1::2, rows, columns] * widths + lefts) / scale
    limit = np.array([size[1], size[0], size[1], size[0]], np.float64)
    boxes = np.clip(boxes, 0, limit)
    return [
        {
            "score": round(float(scores[face]), 4),
            "box": [round(float(side), 1) for side in boxes[face]],
            "landmarks": [
                [round(float(x), 1), round(float(y), 1)]
                for x, y in zip(marks_x[:, face], marks_y[:, face], strict=True)
            ],
        }
        for face in suppress(boxes, _OVERLAP_MAX)
    ]


def suppress(boxes: NDArray[Any], overlap_max: float) -> list[int]:
    """Indices of `boxes` [n, 4] (x0, y0, x1, y1; best first) that overlap no better one by more than that IoU."""
    kept: list[int] = []
    alive = np.ones(len(boxes), bool)
    for index in range(len(boxes)):
        if alive[index]:
            kept.append(index)
            alive[index + 1 :] &= overlap(boxes[index], boxes[index + 1 :]) <= overlap_max
    return kept


def overlap(box: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of a box [4] with others [n, 4]: float64 [n], 0 where both are empty."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = (box[2] - box[0]) * (box[3] - box[1]) + areas - shared
    ratio: NDArray[np.float64] = np.divide(shared, union, out=np.zeros(len(others), np.float64), where=union > 0)
    return ratio
