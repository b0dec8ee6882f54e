"""Text in a photograph: where its lines are, and what they say, by PP-OCRv6.

Finding is DB (Liao et al., 2020, arXiv:1911.08947), reading is CTC (Graves et al., 2006). Sizes, means and
thresholds are those that PaddleOCR and RapidOCR 3.10 use with these models.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages.image import Image, resize
from starloom.agents.stages.textlines import as_text
from starloom.agents.stages.textregions import Region, crop_line, find_regions, parse_boxes, reading_order
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, GraphUse, KindSpec, Param
from starloom.dag.values import Port, PortType

MODEL = "ppocr-v6"
DETECT_FILE, ORIENT_FILE, RECOGNISE_FILE = "detect.onnx", "orient.onnx", "recognise.onnx"

SIZE_MULTIPLE = 32
"""Sides of the detector's input are multiples of this, in pixels."""
LINE_HEIGHT = 48
"""Pixels of a line as the recogniser and the orientation model see it."""
_LINE_WIDTH_MIN = 320
_ORIENT_WIDTH = 192
_UPSIDE_DOWN_MIN = 0.9
_BATCH_LINES = 6

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
