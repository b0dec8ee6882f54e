"""Regions of lines, and how readers share them; `test_growth_live` reads a whole page by them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from starloom.agents.stages.reading import chosen_lines
from starloom.agents.stages.regions import regions_of, shared
from starloom.agents.stages.textregions import Region
from starloom.dag.errors import StageError

Run = Callable[..., dict[str, Any]]


def line(left: float, top: float, width: float = 300, height: float = 20) -> Region:
    right, bottom = left + width, top + height
    return Region(1.0, np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32))


def test_lines_that_stand_together_are_a_region() -> None:
    lines = [line(0, 0), line(0, 25), line(500, 27), line(0, 48), line(500, 52), line(0, 90), line(0, 120, height=90)]
    assert regions_of(lines) == [[0, 1, 3], [2, 4], [5], [6]]
    assert regions_of([]) == []


def test_a_line_between_two_others_joins_them() -> None:
    assert regions_of([line(0, 0), line(0, 50), line(0, 25)]) == [[0, 1, 2]]


def test_a_line_on_its_side_has_the_height_of_its_letters() -> None:
    assert regions_of([line(0, 0, 20, 300), line(25, 0, 20, 300), line(100, 0, 20, 300)]) == [[0, 1], [2]]


def test_regions_share_readers_where_there_are_more() -> None:
    regions = [[0, 3], [1], [2, 4], [5]]
    assert shared(regions, 8) == [[0, 3], [1], [2, 4], [5]]
    assert shared(regions, 3) == [[0, 3, 5], [1], [2, 4]]
    assert shared(regions, 1) == [[0, 1, 2, 3, 4, 5]]
    assert shared([], 4) == []


def test_lines_by_their_places() -> None:
    assert chosen_lines(None, 5, 2, 2) == [1, 3]
    assert chosen_lines([4, 0], 5, 1, 1) == [4, 0]
    for wrong in ([5], [-1], [True], ["0"], [0.5]):
        with pytest.raises(StageError, match="only names"):
            chosen_lines(wrong, 5, 1, 1)


def test_no_text_is_read_without_any_reader(run_stage: Run) -> None:
    blank = np.zeros((0, 40, 3), np.uint8)
    assert run_stage("text.read", image=blank) == {"text": "", "lines": [], "boxes": []}
    with pytest.raises(StageError, match="readers is 0; give 1 to TEXT_LINES_MAX"):
        run_stage("text.read", image=blank, params={"readers": 0})
    with pytest.raises(StageError, match=r"text\.read: min_side"):
        run_stage("text.read", image=blank, params={"min_side": -1})
