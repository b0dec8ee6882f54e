"""Regions of an image that hold a line of text: found in the detector's map, ordered, and cut out upright.

By DB (Liao et al., 2020, arXiv:1911.08947); thresholds are those that PaddleOCR and RapidOCR 3.10 use with PP-OCRv6.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from starloom.agents.stages.image import Image
from starloom.dag import limits
from starloom.dag.errors import StageError

_PIXEL_MIN = 0.3
_SCORE_MIN = 0.5
_GROW_RATIO = 1.6
_SIDE_MIN = 3
"""Pixels of the detector's map; a shorter region is noise."""
_UPRIGHT_RATIO = 1.5
"""A region this many times as high as wide is a line on its side."""

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
