"""Text in a photograph: where its lines are, and what they say, by PP-OCRv6.

Finding is DB (Liao et al., 2020, arXiv:1911.08947), reading is CTC (Graves et al., 2006). Sizes, means and
thresholds are those that PaddleOCR and RapidOCR 3.10 use with these models.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages.image import Image, resize
from starloom.agents.stages.textlines import as_text
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, GraphUse, KindSpec, Param
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

_UNIT = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
_BEND_POINTS = 9
_BEND_MIN = 0.05
"""Share of a box's height; a line that leaves the straight by less is read as straight."""
_BEND_LENGTH_MIN = 4.0
"""A box fewer times as long as high has too little of a line to see a bend in."""

Quad = NDArray[np.float32]
"""float32 [4, 2]: x, y of the corners, clockwise from the top left, in pixels of the image."""


class Bend(NamedTuple):
    """How a line of a curled page runs inside its box.

    `middle`: where its middle is at 9 places from the box's left to its right, as shares of the box's
    height from the top. `height`: the line's own height as a share of the box's.
    """

    middle: tuple[float, ...]
    height: float


class Region(NamedTuple):
    """A line of text: how sure the detector is, 0 to 1, the corners of its box, and its bend unless it is straight."""

    score: float
    quad: Quad
    bend: Bend | None = None

    def plain(self) -> dict[str, Any]:
        """What `text.detect` gives for it."""
        bend = {"bend": {"middle": list(self.bend.middle), "height": self.bend.height}} if self.bend else {}
        return {"score": round(self.score, 4), "box": self.quad.tolist(), **bend}


DETECT_PARAMS: Mapping[str, Param] = {
    "min_side": Param(
        type="integer",
        default=736,
        about="pixels; an image with a shorter side is scaled up to it; small print needs it",
    ),
    "max_side": Param(type="integer", default=1600, about="pixels; the longer side is never scaled beyond it"),
}


DETECT_COST = Cost(
    run_seconds=0.5,
    load_seconds=0.3,
    memory_bytes=400 * 1024 * 1024,
    # a photograph twice as wide as high, as large as min_side has it
    graphs=(
        GraphUse(
            model=MODEL,
            file=DETECT_FILE,
            sizes={"DynamicDimension.0": 1, "DynamicDimension.1": 640, "DynamicDimension.2": 1600},
        ),
    ),
)


class DetectText(Stage):
    """Finds lines of text, in reading order: `[{"score": 0 to 1, "box": [[x, y] * 4]}]`, and `bend` where one is bent."""

    spec = KindSpec(
        name="text.detect",
        about="Finds the lines of text in an image.",
        inputs={"image": Port(PortType.IMAGE)},
        outputs={"boxes": Port(PortType.JSON)},
        params=dict(DETECT_PARAMS),
        models=(MODEL,),
        tier=Tier.EDGE,
        cost=DETECT_COST,
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, DETECT_FILE)

    def run(self, call: StageCall) -> Outputs:
        return {"boxes": [region.plain() for region in find_lines(call, self.spec.name)]}


class RecogniseText(Stage):
    """Reads the lines of text that `text.detect` found: `text`, and `[{"text", "score", "box", "index"}]` in the same order.

    `index` is the line's place among the boxes. Of `parts` stages that share one image, the `part`-th reads
    every `parts`-th line, and one with `only` those that it names; `text.merge` puts their lines together.
    """

    spec = KindSpec(
        name="text.recognise",
        about="Reads lines of text in an image.",
        inputs={"image": Port(PortType.IMAGE), "boxes": Port(PortType.JSON)},
        outputs={"text": Port(PortType.TEXT), "lines": Port(PortType.JSON)},
        params={
            "score_min": Param(type="number", default=0.5, about="lines with a lower score are left out; 0 to 1"),
            "part": Param(type="integer", default=1, about="which share of the lines to read; 1 to parts"),
            "parts": Param(type="integer", default=1, about="among how many stages the lines are divided"),
            "only": Param(type="array", about="the lines to read, by their place among the boxes; else by part"),
        },
        models=(MODEL,),
        tier=Tier.EDGE,
        cost=Cost(
            run_seconds=0.6,
            load_seconds=0.5,
            memory_bytes=500 * 1024 * 1024,
            # four lines of usual length
            graphs=(
                GraphUse(model=MODEL, file=ORIENT_FILE, sizes={"x.0": 4, "x.2": LINE_HEIGHT, "x.3": _ORIENT_WIDTH}),
                GraphUse(
                    model=MODEL,
                    file=RECOGNISE_FILE,
                    sizes={"DynamicDimension.0": 4, "DynamicDimension.1": 1040},
                ),
            ),
        ),
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, ORIENT_FILE)
        models.session(MODEL, RECOGNISE_FILE)
        models.cached(MODEL, "characters", lambda: read_characters(models.path(MODEL, RECOGNISE_FILE)))

    def run(self, call: StageCall) -> Outputs:
        score_min, part, parts = (call.params[name] for name in ("score_min", "part", "parts"))
        if not 0 <= score_min <= 1 or not 1 <= part <= parts:
            raise StageError(
                f"text.recognise: score_min {score_min} must be 0 to 1, and part {part} from 1 to parts = {parts}"
            )
        image: Image = call.inputs["image"]
        found = parse_boxes(call.inputs["boxes"], image.shape[1], image.shape[0])
        places = chosen_lines(call.params["only"], len(found), part, parts)
        regions = [found[place] for place in places]
        crops = self._turn(call, [crop_line(image, region.quad, region.bend) for region in regions])
        read = self._read(call, crops)
        lines = [
            {"text": text, "score": round(score, 4), "box": region.quad.tolist(), "index": place}
            for place, (text, score), region in zip(places, read, regions, strict=True)
            if text and score >= score_min
        ]
        return as_text(lines)

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


def find_lines(call: StageCall, kind: str) -> list[Region]:
    """The lines of text in the call's image, in reading order, as its `min_side` and `max_side` have it."""
    min_side, max_side = call.params["min_side"], call.params["max_side"]
    if not 0 <= min_side <= max_side or not SIZE_MULTIPLE <= max_side <= limits.VISION_SIDE_PIXELS_MAX:
        raise StageError(
            f"{kind}: min_side {min_side} must be 0 to max_side {max_side}, and that from {SIZE_MULTIPLE} to "
            f"VISION_SIDE_PIXELS_MAX = {limits.VISION_SIDE_PIXELS_MAX}"
        )
    image: Image = call.inputs["image"]
    if 0 in image.shape:
        return []
    session = call.models.session(MODEL, DETECT_FILE)
    (probability,) = session.run({session.input_names[0]: detector_input(image, min_side, max_side)})
    return reading_order(find_regions(probability[0, 0], image.shape[1], image.shape[0]))


def chosen_lines(only: Any, count: int, part: int, parts: int) -> list[int]:
    """Which of so many lines to read. Raises StageError for a place that there is not."""
    if only is None:
        return list(range(part - 1, count, parts))
    if wrong := [place for place in only if type(place) is not int or not 0 <= place < count]:
        raise StageError(f"text.recognise: only names {wrong[:5]}, and there are {count} boxes, from 0 on")
    return list(only)


def detector_input(image: Image, min_side: int, max_side: int) -> NDArray[np.float32]:
    """float32 [1, 3, height, width], BGR, -1 to 1, sides multiples of 32, the image stretched to fill it."""
    height, width = image.shape[:2]
    scale = min(max(1.0, min_side / min(height, width)), max_side / max(height, width))
    rows, columns = (max(1, round(side * scale / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (height, width))
    return _normalised(resize(image, columns, rows))[None]


def _normalised(image: Image) -> NDArray[np.float32]:
    bgr = image[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
    return bgr / np.float32(127.5) - np.float32(1)


def find_regions(probability: NDArray[np.float32], width: int, height: int) -> list[Region]:
    """The lines of text in an image of that size, the surest first, at most TEXT_LINES_MAX.

    `probability`: float32 [rows, columns], the detector's map. It is trained on lines shrunk towards
    their middle, so each region is the smallest rectangle around one, grown back by area * 1.6 / perimeter.
    """
    mask = cv2.dilate((probability > _PIXEL_MIN).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / probability.shape[1], height / probability.shape[0]], np.float32)
    found: list[Region] = []
    for index, contour in enumerate(contours):
        is_hole = hierarchy[0][index][3] != -1
        (centre, (across, down), angle) = cv2.minAreaRect(contour)
        if is_hole or min(across, down) < _SIDE_MIN:
            continue
        score = _mean_inside(probability, contour)
        if score < _SCORE_MIN:
            continue
        grow = across * down * _GROW_RATIO / (across + down)
        corners = _corners(centre, across + grow, down + grow, angle)
        quad = np.clip(np.rint(clockwise(corners) * scale), 0, [width - 1, height - 1]).astype(np.float32)
        if min(np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[0] - quad[3])) > _SIDE_MIN:
            found.append(Region(score, quad, find_bend(mask, contour, quad / scale)))
    found.sort(key=lambda region: -region.score)
    return found[: limits.TEXT_LINES_MAX]


def _corners(centre: Sequence[float], across: float, down: float, angle: float) -> Quad:
    return np.asarray(cv2.boxPoints((centre, (across, down), angle)), np.float32)


def find_bend(mask: NDArray[Any], contour: NDArray[Any], quad: Quad) -> Bend | None:
    """The bend of the region inside `contour` of `mask`, whose grown box is `quad`, all in the map's pixels; or None.

    A cubic is fitted to the region's pixels in the box's own coordinates. The smallest rectangle around a
    bent line is too high for it, so it shows parts of the neighbouring lines, which the recogniser reads too.
    """
    length, thickness = np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[0] - quad[3])
    if length < _BEND_LENGTH_MIN * thickness:
        return None
    inside, row_span, column_span = _filled(contour)
    rows, columns = np.nonzero(inside & mask[row_span, column_span])
    points = np.stack([columns + column_span.start, rows + row_span.start], axis=1).astype(np.float32)
    along, below = cv2.perspectiveTransform(points[None], cv2.getPerspectiveTransform(quad, _UNIT))[0].T
    places = np.linspace(0.0, 1.0, _BEND_POINTS)
    start, end = float(along.min()), float(along.max())
    if end - start < 0.5:
        return None
    # Beyond the region's ends a cubic runs away, so it is held at its last value.
    middle = np.polyval(np.polyfit(along, below, 3), np.clip(places, start, end))
    if np.abs(middle - 0.5).max() < _BEND_MIN:
        return None
    own = len(points) / (length * thickness) / (end - start) * (1 + _GROW_RATIO)
    return Bend(tuple(round(float(place), 4) for place in np.clip(middle, 0, 1)), round(min(float(own), 1.0), 4))


def _filled(contour: NDArray[Any]) -> tuple[NDArray[np.uint8], slice, slice]:
    """1 inside the contour: uint8 [h, w], for those rows and columns of the map."""
    left, top, across, down = cv2.boundingRect(contour)
    inside = np.zeros((down, across), np.uint8)
    cv2.drawContours(inside, [contour - [left, top]], 0, 1, cv2.FILLED)
    return inside, slice(top, top + down), slice(left, left + across)


def _mean_inside(probability: NDArray[np.float32], contour: NDArray[Any]) -> float:
    """By the region itself, not its rectangle: of that, a bent line fills too little to pass for sure."""
    inside, rows, columns = _filled(contour)
    return float(cv2.mean(probability[rows, columns], inside)[0])


def clockwise(corners: Quad) -> Quad:
    """The four corners as top left, top right, bottom right, bottom left."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    top_left, bottom_left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    top_right, bottom_right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32)


def reading_order(found: Sequence[Region]) -> list[Region]:
    """Top to bottom, and left to right among regions whose middles are within half a height of the row's first."""
    rows: list[list[Region]] = []
    for region in sorted(found, key=lambda each: _middle(each.quad)):
        quad = region.quad
        first = rows[-1][0].quad if rows else None
        if first is not None and _middle(quad) - _middle(first) < min(_height(quad), _height(first)) / 2:
            rows[-1].append(region)
        else:
            rows.append([region])
    return [region for row in rows for region in sorted(row, key=lambda each: float(each.quad[:, 0].min()))]


def _middle(quad: Quad) -> float:
    return float(quad[:, 1].mean())


def _height(quad: Quad) -> float:
    return float(np.linalg.norm(quad[0] - quad[3]))


def parse_boxes(boxes: Any, width: int, height: int) -> list[Region]:
    """The regions in what `text.detect` gives, moved inside the image. Raises StageError for anything else."""
    if not isinstance(boxes, list):
        raise StageError(f"text.recognise: boxes is {type(boxes).__name__} instead of a list, as text.detect gives it")
    if len(boxes) > limits.TEXT_LINES_MAX:
        raise StageError(f"text.recognise: {len(boxes)} boxes are over TEXT_LINES_MAX = {limits.TEXT_LINES_MAX}")
    regions = []
    for index, each in enumerate(boxes):
        try:
            quad = np.array(each["box"], np.float32)
            bend = _parse_bend(each.get("bend"))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StageError(f"text.recognise: boxes[{index}] cannot be read: {error!r}") from error
        if quad.shape != (4, 2) or not np.isfinite(quad).all():
            raise StageError(f"text.recognise: boxes[{index}].box must be four [x, y] in pixels, not {each['box']!r}")
        regions.append(Region(1.0, np.clip(quad, 0, [width, height]).astype(np.float32), bend))
    return regions


def _parse_bend(bend: Any) -> Bend | None:
    if bend is None:
        return None
    middle, height = tuple(float(place) for place in bend["middle"]), float(bend["height"])
    if len(middle) != _BEND_POINTS or not all(0 <= place <= 1 for place in middle) or not 0 < height <= 1:
        raise ValueError(f"bend must have {_BEND_POINTS} places and a height from 0 to 1")
    return Bend(middle, height)


def crop_line(image: Image, quad: Quad, bend: Bend | None = None) -> Image:
    """The region as an upright rectangle, uint8 [h, w, 3], straightened if it has a bend.

    A line on its side is turned left, so that it runs across.
    """
    width = max(1, int(max(np.linalg.norm(quad[0] - quad[1]), np.linalg.norm(quad[2] - quad[3]))))
    height = max(1, int(max(np.linalg.norm(quad[0] - quad[3]), np.linalg.norm(quad[1] - quad[2]))))
    if bend is not None:
        return _straightened(image, quad, bend, width, max(1, round(height * bend.height)))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(quad, target)
    warped = cv2.warpPerspective(
        image, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )
    crop = cast(Image, warped)
    return np.ascontiguousarray(np.rot90(crop)) if height >= _UPRIGHT_RATIO * width else crop


def _straightened(image: Image, quad: Quad, bend: Bend, width: int, height: int) -> Image:
    """The bent line, uint8 [height, width, 3]: each column is taken around the line's middle there."""
    along = np.arange(width) / width
    middle = np.interp(along, np.linspace(0.0, 1.0, _BEND_POINTS), bend.middle)
    below = middle[None] + (np.arange(height)[:, None] / height - 0.5) * bend.height
    places = np.stack([np.broadcast_to(along, below.shape), below], axis=-1).astype(np.float32)
    columns, rows = cv2.split(cv2.perspectiveTransform(places, cv2.getPerspectiveTransform(_UNIT, quad)))
    bent = cv2.remap(image, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return cast(Image, bent)


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
