"""Text in images: boxes, bends, crops and decoding by themselves, and the networks on real and drawn pages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from starloom.agents.modelstore import ModelStore
from starloom.agents.stages import reading, textregions
from starloom.agents.stages.image import decode_image, resize
from starloom.agents.stages.textregions import Bend, Region
from starloom.dag import limits
from starloom.dag.errors import StageError

Run = Callable[..., dict[str, Any]]

PAGE = (
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "unambiguously as either object or background. Here,",
    "the markers are found at the two extreme parts of the",
    "histogram of grey values:",
    ">>> markers = np.zeros_like(coins)",
)


def read(run_stage: Run, image: NDArray[np.uint8]) -> list[str]:
    boxes = run_stage("text.detect", image=image)["boxes"]
    outputs = run_stage("text.recognise", image=image, boxes=boxes)
    lines = [str(line["text"]) for line in outputs["lines"]]
    assert outputs["text"] == "\n".join(lines)
    return lines


def drawn(text: str, size: tuple[int, int] = (120, 620)) -> NDArray[np.uint8]:
    """A line of text in black on white, uint8 [height, width, 3]."""
    image = np.full((*size, 3), 255, np.uint8)
    cv2.putText(image, text, (30, size[0] // 2 + 15), cv2.FONT_HERSHEY_SIMPLEX, 1.3, (0, 0, 0), 2, cv2.LINE_AA)
    return image


def turned(image: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """The image turned about its middle on a white square that holds it whole."""
    side = int(np.hypot(*image.shape[:2])) + 20
    middle = (image.shape[1] / 2, image.shape[0] / 2)
    transform = np.asarray(cv2.getRotationMatrix2D(middle, degrees, 1.0), np.float64)
    transform[:, 2] += side / 2 - np.array(middle)
    result = cv2.warpAffine(image, transform, (side, side), borderValue=(255, 255, 255), flags=cv2.INTER_CUBIC)
    return np.asarray(result, np.uint8)


def box(left: float, top: float, right: float, bottom: float) -> NDArray[np.float32]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


@pytest.mark.models
def test_the_photographed_page_is_read_whole(run_stage: Run, example_folder: Path) -> None:
    assert tuple(read(run_stage, decode_image((example_folder / "photo.jpg").read_bytes()))) == PAGE


@pytest.mark.models
@pytest.mark.parametrize("scale", [1, 2])
def test_at_least_six_lines_of_the_small_page_are_read(run_stage: Run, data_folder: Path, scale: int) -> None:
    page = decode_image((data_folder / "vision" / "page.png").read_bytes())
    lines = read(run_stage, resize(page, page.shape[1] * scale, page.shape[0] * scale))
    assert sum(line in lines for line in PAGE) >= 6
    assert [line for line in lines if line in PAGE] == [line for line in PAGE if line in lines]


@pytest.mark.models
def test_lines_shared_among_stages_come_together_in_their_order(run_stage: Run, example_folder: Path) -> None:
    image = decode_image((example_folder / "photo.jpg").read_bytes())
    boxes = run_stage("text.detect", image=image)["boxes"]
    parts = {
        f"part-{part}": run_stage("text.recognise", image=image, boxes=boxes, params={"part": part, "parts": 3})[
            "lines"
        ]
        for part in (3, 1, 2)
    }
    merged = run_stage("text.merge", **parts)
    assert tuple(merged["text"].split("\n")) == PAGE
    assert [line["index"] for line in merged["lines"]] == list(range(len(PAGE)))
    assert [line["text"] for line in parts["part-2"]] == [PAGE[1], PAGE[4]]


@pytest.mark.parametrize("value", [{}, [1], [{"text": "a"}], [{"index": 1, "text": 2}], "text"])
def test_what_is_no_lines_is_not_merged(run_stage: Run, value: Any) -> None:
    with pytest.raises(StageError, match="input lines holds no lines"):
        run_stage("text.merge", lines=value)


@pytest.mark.models
def test_a_part_that_is_none_is_refused(run_stage: Run) -> None:
    with pytest.raises(StageError, match="part 3 from 1 to parts = 2"):
        run_stage("text.recognise", image=drawn("x"), boxes=[], params={"part": 3, "parts": 2})


@pytest.mark.models
@pytest.mark.parametrize("degrees", [0, 10, -15, 90, -90, 180, 172])
def test_a_rotated_line_is_read(run_stage: Run, degrees: float) -> None:
    assert read(run_stage, turned(drawn("Platform 7 to Utrecht"), degrees)) == ["Platform 7 to Utrecht"]


@pytest.mark.models
def test_two_columns_are_read_row_by_row(run_stage: Run) -> None:
    image = np.full((220, 800, 3), 255, np.uint8)
    for text, place in (("Bread", (40, 80)), ("2.40", (560, 84)), ("Cheese", (40, 160)), ("5.10", (560, 164))):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 1.3, (20, 20, 20), 2, cv2.LINE_AA)
    assert read(run_stage, image) == ["Bread", "2.40", "Cheese", "5.10"]


@pytest.mark.models
def test_white_on_dark_and_grey_noise(run_stage: Run) -> None:
    assert read(run_stage, 255 - drawn("Mind the gap")) == ["Mind the gap"]
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    assert read(run_stage, noise) == []


@pytest.mark.models
@pytest.mark.parametrize("shape", [(200, 300, 3), (1, 1, 3), (1, 700, 3), (0, 10, 3), (10, 0, 3)])
def test_an_empty_image_has_no_text(run_stage: Run, shape: tuple[int, ...]) -> None:
    assert read(run_stage, np.full(shape, 255, np.uint8)) == []


@pytest.mark.models
def test_lines_below_the_least_score_are_left_out(run_stage: Run) -> None:
    image = drawn("Platform 7")
    boxes = run_stage("text.detect", image=image)["boxes"]
    assert run_stage("text.recognise", image=image, boxes=boxes, params={"score_min": 1.0}) == {"text": "", "lines": []}
    with pytest.raises(StageError, match=r"score_min 2 must be 0 to 1"):
        run_stage("text.recognise", image=image, boxes=boxes, params={"score_min": 2})


@pytest.mark.models
@pytest.mark.parametrize(
    "params",
    [
        {"min_side": -1},
        {"min_side": 900, "max_side": 800},
        {"min_side": 0, "max_side": 31},
        {"max_side": limits.VISION_SIDE_PIXELS_MAX + 1},
    ],
)
def test_detection_refuses_sides_out_of_bounds(run_stage: Run, params: dict[str, int]) -> None:
    with pytest.raises(StageError, match=r"text.detect: min_side .* VISION_SIDE_PIXELS_MAX"):
        run_stage("text.detect", params=params, image=np.zeros((10, 10, 3), np.uint8))


@pytest.mark.models
def test_characters_are_in_the_recogniser_itself(model_store: ModelStore) -> None:
    characters = reading.read_characters(str(model_store.file(reading.MODEL, reading.RECOGNISE_FILE)))
    assert len(characters) == 18_710
    assert (characters[0], characters[-1]) == ("", " ")
    with pytest.raises(StageError, match="lists no characters"):
        reading.read_characters(str(model_store.file(reading.MODEL, reading.ORIENT_FILE)))


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (None, "is NoneType instead of a list"),
        ({}, "is dict instead of a list"),
        ([1], r"boxes\[0\] cannot be read"),
        ([{"score": 1}], r"boxes\[0\] cannot be read: KeyError"),
        ([{"box": "abc"}], r"boxes\[0\] cannot be read: ValueError"),
        ([{"box": [[0, 0], [1, 0], [1, 1]]}], "must be four"),
        ([{"box": [[0, 0], [1, 0], [1, 1], [0, None]]}], "must be four|cannot be read"),
        ([{"box": box(0, 0, 1, 1), "bend": 3}], "cannot be read: TypeError"),
        ([{"box": box(0, 0, 1, 1), "bend": {"middle": [0.5] * 8, "height": 1}}], "bend must have 9 places"),
        ([{"box": box(0, 0, 1, 1), "bend": {"middle": [0.5] * 9, "height": 0}}], "bend must have 9 places"),
        ([{"box": box(0, 0, 1, 1)}] * (limits.TEXT_LINES_MAX + 1), "over TEXT_LINES_MAX"),
    ],
)
def test_boxes_that_cannot_be_read_are_named(boxes: Any, reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        textregions.parse_boxes(boxes, 100, 100)


def test_boxes_are_moved_inside_the_image() -> None:
    (region,) = textregions.parse_boxes([{"box": [[-5, -5], [200, 0], [200, 90], [0, 90]]}], 100, 50)
    assert region.quad.tolist() == [[0, 0], [100, 0], [100, 50], [0, 50]]
    assert region.bend is None


def test_what_detection_gives_is_read_back_the_same() -> None:
    bend = Bend(tuple(0.4 + 0.01 * n for n in range(9)), 0.6)
    regions = [Region(1.0, box(1, 2, 90, 12), bend), Region(1.0, box(1, 20, 90, 32))]
    again = textregions.parse_boxes([region.plain() for region in regions], 100, 50)
    assert [region.bend for region in again] == [bend, None]
    assert [region.quad.tolist() for region in again] == [region.quad.tolist() for region in regions]


def test_a_region_is_grown_back_around_its_middle() -> None:
    probability = np.zeros((64, 160), np.float32)
    probability[20:30, 20:140] = 0.9
    (region,) = textregions.find_regions(probability, 320, 128)
    assert 0.75 < region.score <= 0.9
    assert region.bend is None
    left, top = region.quad[0]
    right, bottom = region.quad[2]
    # Twice the map's pixels, grown by 1.6 * 10 * 120 / 130 of them, half of it on each side.
    assert (left, right) == (pytest.approx(25, abs=4), pytest.approx(295, abs=4))
    assert (top, bottom) == (pytest.approx(25, abs=4), pytest.approx(75, abs=4))


def test_faint_small_and_hollow_regions_are_left_out() -> None:
    probability = np.zeros((64, 160), np.float32)
    probability[5:15, 5:100] = 0.4
    probability[40, 40] = 0.9
    assert textregions.find_regions(probability, 160, 64) == []


def test_a_bent_line_is_measured_and_straightened() -> None:
    columns = np.arange(20, 300)
    curve = 60 + 18 * ((columns - 160) / 140) ** 2
    probability = np.zeros((128, 320), np.float32)
    image = np.zeros((128, 320, 3), np.uint8)
    for column, middle in zip(columns, curve, strict=True):
        probability[round(middle) - 4 : round(middle) + 5, column] = 1.0
        image[round(middle) - 2 : round(middle) + 3, column] = 255
    (region,) = textregions.find_regions(probability, 320, 128)
    assert region.bend is not None
    assert region.bend.middle[4] < region.bend.middle[1] < region.bend.middle[0] + 0.01
    assert 0.3 < region.bend.height < 0.8
    bent, straight = textregions.crop_line(image, region.quad), textregions.crop_line(image, region.quad, region.bend)
    assert straight.shape[0] < bent.shape[0]

    def rows_that_hold_the_line(crop: NDArray[np.uint8]) -> int:
        middle = crop[:, crop.shape[1] // 8 : -crop.shape[1] // 8, 0]
        return int((middle > 128).any(axis=1).sum())

    assert rows_that_hold_the_line(straight) <= 9
    assert rows_that_hold_the_line(bent) >= 15


@pytest.mark.parametrize("turn", range(4))
def test_corners_are_put_in_order(turn: int) -> None:
    corners = np.array([[10, 12], [90, 2], [95, 30], [12, 40]], np.float32)
    assert textregions.clockwise(np.roll(corners, turn, axis=0)).tolist() == corners.tolist()


def test_reading_order_is_by_rows_and_then_from_the_left() -> None:
    placed = [box(200, 14, 260, 34), box(10, 10, 90, 30), box(10, 50, 90, 70), box(100, 44, 180, 66)]
    ordered = textregions.reading_order([Region(1.0, quad) for quad in placed])
    assert [region.quad[0].tolist() for region in ordered] == [[10, 10], [200, 14], [10, 50], [100, 44]]
    assert textregions.reading_order([]) == []


def test_crops_run_across() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[10:90, 40:50] = 255
    upright = textregions.crop_line(image, box(38, 8, 52, 92))
    assert upright.shape[1] > upright.shape[0]
    assert textregions.crop_line(image, box(5, 5, 5, 5)).shape == (1, 1, 3)


def test_batches_hold_lines_of_like_width_and_every_line_once() -> None:
    rng = np.random.default_rng(2)
    crops = [np.zeros((24, int(width), 3), np.uint8) for width in rng.integers(5, 4000, 20)]
    seen: list[int] = []
    for batch, width in reading.batches(crops, 320, limits.TEXT_LINE_PIXELS_MAX):
        seen += batch
        assert 320 <= width <= limits.TEXT_LINE_PIXELS_MAX
        feed = reading.line_input([crops[n] for n in batch], width)
        assert feed.shape == (len(batch), 3, reading.LINE_HEIGHT, width)
    assert sorted(seen) == list(range(20))
    assert list(reading.batches([], 320, 3200)) == []


def test_ctc_drops_repeats_and_blanks() -> None:
    characters = ["", "a", "b", " "]
    steps = [1, 1, 0, 1, 2, 3, 3, 2, 0]
    probabilities = np.full((len(steps), 4), 0.01, np.float32)
    probabilities[np.arange(len(steps)), steps] = 0.8
    text, score = reading.decode_line(probabilities, characters)
    assert text == "aab b"
    assert score == pytest.approx(0.8)
    assert reading.decode_line(probabilities[2:3], characters) == ("", 0.0)
