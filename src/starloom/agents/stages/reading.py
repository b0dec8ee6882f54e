"""Text in a photograph: where its lines are, and what they say, by PP-OCRv6.

Finding is DB (Liao et al., 2020, arXiv:1911.08947), reading is CTC (Graves et al., 2006). Sizes, means and
thresholds are those that PaddleOCR and RapidOCR 3.10 use with these models.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages.image import Image, resize
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

MODEL = "ppocr-v6"
DETECT_FILE, ORIENT_FILE, RECOGNISE_FILE = "detect.onnx", "orient.onnx", "recognise.onnx"

SIZE_MULTIPLE = 32
"""Sides of the detector's input are multiples of this, in pixels."""
_PIXEL_MIN = 0.3
_SCORE_MIN = 0.5
_GROW_RATIO = 1.6
_SIDE_MIN = 3
"""Pixels of the detector's map; a shorter region is noise."""

LINE_HEIGHT = 48
"""Pixels of a line as the recogniser and the orientation model see it."""
_LINE_WIDTH_MIN = 320
_ORIENT_WIDTH = 192
_UPSIDE_DOWN_MIN = 0.9
_UPRIGHT_RATIO = 1.5
"""A region this many times as high as wide is a line on its side."""
_BATCH_LINES = 6

Quad = NDArray[np.float32]
"""float32 [4, 2]: x, y of the corners, clockwise from the top left, in pixels of the image."""


class DetectText(Stage):
    """Finds lines of text, in reading order: `[{"score": 0 to 1, "box": [[x, y] * 4]}]`."""

    spec = KindSpec(
        name="text.detect",
        about="Finds the lines of text in an image.",
        inputs={"image": Port(PortType.IMAGE)},
        outputs={"boxes": Port(PortType.JSON)},
        params={
            "min_side": Param(
                type="integer",
                default=736,
                about="pixels; an image with a shorter side is scaled up to it; small print needs it",
            ),
            "max_side": Param(type="integer", default=1600, about="pixels; the longer side is never scaled beyond it"),
        },
        models=(MODEL,),
        tier=Tier.EDGE,
        cost=Cost(run_seconds=0.5, load_seconds=0.3, memory_bytes=400 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, DETECT_FILE)

    def run(self, call: StageCall) -> Outputs:
        min_side, max_side = call.params["min_side"], call.params["max_side"]
        if not 0 <= min_side <= max_side or max_side < SIZE_MULTIPLE:
            raise StageError(
                f"text.detect: min_side {min_side} must be 0 to max_side {max_side}, and that at least {SIZE_MULTIPLE}"
            )
        image: Image = call.inputs["image"]
        if 0 in image.shape:
            return {"boxes": []}
        session = call.models.session(MODEL, DETECT_FILE)
        (probability,) = session.run({session.input_names[0]: detector_input(image, min_side, max_side)})
        found = find_regions(probability[0, 0], image.shape[1], image.shape[0])
        return {"boxes": [{"score": round(score, 4), "box": quad.tolist()} for score, quad in reading_order(found)]}


class RecogniseText(Stage):
    """Reads the lines of text that `text.detect` found: `text`, and `[{"text", "score", "box"}]` in the same order."""

    spec = KindSpec(
        name="text.recognise",
        about="Reads lines of text in an image.",
        inputs={"image": Port(PortType.IMAGE), "boxes": Port(PortType.JSON)},
        outputs={"text": Port(PortType.TEXT), "lines": Port(PortType.JSON)},
        params={"score_min": Param(type="number", default=0.5, about="lines with a lower score are left out; 0 to 1")},
        models=(MODEL,),
        tier=Tier.EDGE,
        cost=Cost(run_seconds=0.6, load_seconds=0.5, memory_bytes=500 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, ORIENT_FILE)
        models.session(MODEL, RECOGNISE_FILE)
        models.cached(MODEL, "characters", lambda: read_characters(models.path(MODEL, RECOGNISE_FILE)))

    def run(self, call: StageCall) -> Outputs:
        score_min = call.params["score_min"]
        if not 0 <= score_min <= 1:
            raise StageError(f"text.recognise: score_min {score_min} must be 0 to 1")
        image: Image = call.inputs["image"]
        quads = parse_boxes(call.inputs["boxes"], image.shape[1], image.shape[0])
        crops = self._turn(call, [crop_line(image, quad) for quad in quads])
        read = self._read(call, crops)
        lines = [
            {"text": text, "score": round(score, 4), "box": quad.tolist()}
            for (text, score), quad in zip(read, quads, strict=True)
            if text and score >= score_min
        ]
        return {"text": "\n".join(str(line["text"]) for line in lines), "lines": lines}

    def _turn(self, call: StageCall, crops: list[Image]) -> list[Image]:
        """The crops, those that are upside down turned round."""
        if not crops:
            return crops
        session = call.models.session(MODEL, ORIENT_FILE)
        turned = list(crops)
        for batch, width in batches(crops, _ORIENT_WIDTH, _ORIENT_WIDTH):
            (scores,) = session.run({session.input_names[0]: line_input([crops[i] for i in batch], width)})
            for index, (_, upside_down) in zip(batch, scores, strict=True):
                if upside_down > _UPSIDE_DOWN_MIN:
                    turned[index] = np.ascontiguousarray(crops[index][::-1, ::-1])
        return turned

    def _read(self, call: StageCall, crops: list[Image]) -> list[tuple[str, float]]:
        if not crops:
            return []
        session = call.models.session(MODEL, RECOGNISE_FILE)
        characters = call.models.cached(
            MODEL, "characters", lambda: read_characters(call.models.path(MODEL, RECOGNISE_FILE))
        )
        read = [("", 0.0)] * len(crops)
        done = 0
        for batch, width in batches(crops, _LINE_WIDTH_MIN, limits.TEXT_LINE_PIXELS_MAX):
            call.cancel.raise_if_cancelled()
            (probabilities,) = session.run({session.input_names[0]: line_input([crops[i] for i in batch], width)})
            for index, line in zip(batch, probabilities, strict=True):
                read[index] = decode_line(line, characters)
            done += len(batch)
            call.progress(done / len(crops))
        return read


def detector_input(image: Image, min_side: int, max_side: int) -> NDArray[np.float32]:
    """float32 [1, 3, height, width], BGR, -1 to 1, sides multiples of 32, the image stretched to fill it."""
    height, width = image.shape[:2]
    scale = min(max(1.0, min_side / min(height, width)), max_side / max(height, width))
    rows, columns = (max(1, round(side * scale / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (height, width))
    return _normalised(resize(image, columns, rows))[None]


def _normalised(image: Image) -> NDArray[np.float32]:
    bgr = image[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
    return bgr / np.float32(127.5) - np.float32(1)


def find_regions(probability: NDArray[np.float32], width: int, height: int) -> list[tuple[float, Quad]]:
    """Scores and corners of the lines of text, in pixels of an image of that size.

    `probability`: float32 [rows, columns], the detector's map. It is trained on lines shrunk towards
    their middle, so each region is the smallest rectangle around one, grown back by area * 1.6 / perimeter.
    """
    mask = cv2.dilate((probability > _PIXEL_MIN).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / probability.shape[1], height / probability.shape[0]], np.float32)
    found: list[tuple[float, Quad]] = []
    for index, contour in enumerate(contours):
        is_hole = hierarchy[0][index][3] != -1
        (centre, (across, down), angle) = cv2.minAreaRect(contour)
        if is_hole or min(across, down) < _SIDE_MIN:
            continue
        score = _mean_inside(probability, _corners(centre, across, down, angle))
        if score < _SCORE_MIN:
            continue
        grow = across * down * _GROW_RATIO / (across + down)
        corners = _corners(centre, across + grow, down + grow, angle)
        quad = np.clip(np.rint(clockwise(corners) * scale), 0, [width - 1, height - 1]).astype(np.float32)
        if min(np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[0] - quad[3])) > _SIDE_MIN:
            found.append((score, quad))
    found.sort(key=lambda each: -each[0])
    return found[: limits.TEXT_LINES_MAX]


def _corners(centre: Sequence[float], across: float, down: float, angle: float) -> Quad:
    return np.asarray(cv2.boxPoints((centre, (across, down), angle)), np.float32)


def _mean_inside(probability: NDArray[np.float32], corners: Quad) -> float:
    limit = [probability.shape[1] - 1, probability.shape[0] - 1]
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, limit).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, limit).astype(int)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, (corners - [left, top]).astype(np.int32)[None], 1)
    return float(cv2.mean(probability[top : bottom + 1, left : right + 1], inside)[0])


def clockwise(corners: Quad) -> Quad:
    """The four corners as top left, top right, bottom right, bottom left."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    top_left, bottom_left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    top_right, bottom_right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32)


def reading_order(found: Sequence[tuple[float, Quad]]) -> list[tuple[float, Quad]]:
    """Top to bottom, and left to right among regions whose middles are within half a height of the row's first."""
    rows: list[list[tuple[float, Quad]]] = []
    for region in sorted(found, key=lambda each: _middle(each[1])):
        quad = region[1]
        first = rows[-1][0][1] if rows else None
        if first is not None and _middle(quad) - _middle(first) < min(_height(quad), _height(first)) / 2:
            rows[-1].append(region)
        else:
            rows.append([region])
    return [region for row in rows for region in sorted(row, key=lambda each: float(each[1][:, 0].min()))]


def _middle(quad: Quad) -> float:
    return float(quad[:, 1].mean())


def _height(quad: Quad) -> float:
    return float(np.linalg.norm(quad[0] - quad[3]))


def parse_boxes(boxes: Any, width: int, height: int) -> list[Quad]:
    """The corners in what `text.detect` gives, moved inside the image. Raises StageError for anything else."""
    if not isinstance(boxes, list):
        raise StageError(f"text.recognise: boxes is {type(boxes).__name__} instead of a list, as text.detect gives it")
    if len(boxes) > limits.TEXT_LINES_MAX:
        raise StageError(f"text.recognise: {len(boxes)} boxes are over TEXT_LINES_MAX = {limits.TEXT_LINES_MAX}")
    quads = []
    for index, each in enumerate(boxes):
        try:
            quad = np.array(each["box"], np.float32)
        except (TypeError, ValueError, KeyError) as error:
            raise StageError(f"text.recognise: boxes[{index}] has no readable `box`: {error!r}") from error
        if quad.shape != (4, 2) or not np.isfinite(quad).all():
            raise StageError(f"text.recognise: boxes[{index}].box must be four [x, y] in pixels, not {each['box']!r}")
        quads.append(np.clip(quad, 0, [width, height]).astype(np.float32))
    return quads


def crop_line(image: Image, quad: Quad) -> Image:
    """The region as an upright rectangle, uint8 [h, w, 3]; a line on its side is turned left, so that it runs across."""
    width = max(1, int(max(np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[2] - quad[3]))))
    height = max(1, int(max(np.linalg.norm(quad[0] - quad[3]), np.linalg.norm(quad[1] - quad[2]))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(quad, target)
    warped = cv2.warpPerspective(
        image, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )
    crop = cast(Image, warped)
    return np.ascontiguousarray(np.rot90(crop)) if height >= _UPRIGHT_RATIO * width else crop


def batches(crops: Sequence[Image], width_min: int, width_max: int) -> Iterator[tuple[list[int], int]]:
    """Indices of crops of like width, with the width in pixels that the widest has at 48 pixels of height."""
    widths = [-(-LINE_HEIGHT * crop.shape[1] // crop.shape[0]) for crop in crops]
    order = sorted(range(len(crops)), key=lambda index: widths[index])
    for start in range(0, len(order), _BATCH_LINES):
        batch = order[start : start + _BATCH_LINES]
        yield batch, min(max(width_min, widths[batch[-1]]), width_max)


def line_input(crops: Sequence[Image], width: int) -> NDArray[np.float32]:
    """float32 [n, 3, 48, width], BGR, -1 to 1; a narrower line keeps its shape, and grey (0) fills the rest."""
    feed = np.zeros((len(crops), 3, LINE_HEIGHT, width), np.float32)
    for row, crop in zip(feed, crops, strict=True):
        columns = min(width, -(-LINE_HEIGHT * crop.shape[1] // crop.shape[0]))
        scaled = cv2.resize(crop, (columns, LINE_HEIGHT), interpolation=cv2.INTER_LINEAR)
        row[:, :, :columns] = _normalised(cast(Image, scaled))
    return feed


def decode_line(probabilities: NDArray[np.float32], characters: Sequence[str]) -> tuple[str, float]:
    """The most likely text of one line and the mean probability of its characters.

    `probabilities`: float32 [steps, characters]. Greedy CTC: repeats are one character, index 0 is none.
    """
    best = probabilities.argmax(axis=1)
    written = best != 0
    written[1:] &= best[1:] != best[:-1]
    if not written.any():
        return "", 0.0
    text = "".join(characters[index] for index in best[written]).strip()
    return text, float(probabilities.max(axis=1)[written].mean())


def read_characters(path: str) -> list[str]:
    """The recogniser's characters by index, from the metadata of its file: none (0), the listed ones, the space.

    Raises StageError if the file has no such list.
    """
    import onnx

    properties = onnx.load(path, load_external_data=False).metadata_props
    listed = next((each.value for each in properties if each.key == "character"), None)
    if listed is None:
        raise StageError(f"text.recognise: {RECOGNISE_FILE} of {MODEL} lists no characters; pull the model again")
    return ["", *listed.splitlines(), " "]
