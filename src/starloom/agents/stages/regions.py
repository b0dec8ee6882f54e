"""Reads all the text in an image by as many stages as it has regions of text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starloom.agents.growing import Growing
from starloom.agents.stage import Grown, Models, Outputs, Stage, StageCall
from starloom.agents.stages.reading import DETECT_COST, DETECT_FILE, DETECT_PARAMS, MODEL, find_lines
from starloom.agents.stages.textregions import Region
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import StageError
from starloom.dag.kinds import KindSpec, Param
from starloom.dag.values import Port, PortType

_NEAR_HEIGHTS = 0.3
"""Lines of one region are nearer to each other than this many of their heights; their boxes reach beyond the letters."""


class ReadText(Stage):
    """Finds the lines of text in an image, and adds a `text.recognise` for each region of them, and a `text.merge`.

    What reads `text` or `lines` reads those of the whole image, in reading order. `boxes` are as `text.detect` has them.
    """

    spec = KindSpec(
        name="text.read",
        about="Reads the text in an image: finds its regions, and adds a reader for each.",
        inputs={"image": Port(PortType.IMAGE)},
        outputs={"text": Port(PortType.TEXT), "lines": Port(PortType.JSON), "boxes": Port(PortType.JSON)},
        params={
            **DETECT_PARAMS,
            "readers": Param(type="integer", default=16, about="at most so many; more regions are shared among them"),
            "score_min": Param(type="number", default=0.5, about="lines with a lower score are left out; 0 to 1"),
        },
        models=(MODEL,),
        tier=Tier.EDGE,
        grows=True,
        cost=DETECT_COST,
    )

    def load(self, models: Models, target: str) -> None:
        models.session(MODEL, DETECT_FILE)

    def run(self, call: StageCall) -> Outputs | Grown:
        most = call.params["readers"]
        if not 1 <= most <= limits.TEXT_LINES_MAX:
            raise StageError(f"text.read: readers is {most}; give 1 to TEXT_LINES_MAX = {limits.TEXT_LINES_MAX}")
        lines = find_lines(call, self.spec.name)
        grow = Growing(call)
        readers = [
            grow.stage(
                "text.recognise",
                {"only": places, "score_min": call.params["score_min"]},
                image=grow.fed("image"),
                boxes=grow.own("boxes"),
            )
            for places in shared(regions_of(lines), most)
        ]
        if readers:
            whole = readers[0]
            if len(readers) > 1:
                parts = {f"part-{index}": reader["lines"] for index, reader in enumerate(readers)}
                whole = grow.stage("text.merge", inputs=parts)
            for port in ("text", "lines"):
                grow.redirect(port, whole[port])
        return grow.result({"text": "", "lines": [], "boxes": [line.plain() for line in lines]})


def shared(regions: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """The lines of each region, or those of several together, so that there are at most so many lists."""
    return [
        sorted(line for region in regions[start::most] for line in region) for start in range(min(most, len(regions)))
    ]


def regions_of(lines: Sequence[Region]) -> list[list[int]]:
    """The places of lines that stand together, region by region, in the order of their first lines."""
    left = list(range(len(lines)))
    if not left:
        return []
    near = _near(np.stack([line.quad for line in lines]))
    found: list[list[int]] = []
    seen: set[int] = set()
    for first in left:
        if first in seen:
            continue
        seen.add(first)
        region = [first]
        for line in region:
            others = [int(other) for other in np.flatnonzero(near[line]) if int(other) not in seen]
            seen.update(others)
            region += others
        found.append(sorted(region))
    return found


def _near(quads: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool [n, n]: whether the boxes around the corners, float32 [n, 4, 2], are nearer than the lower one's height."""
    low, high = quads.min(axis=1), quads.max(axis=1)
    sides = np.linalg.norm(quads - np.roll(quads, 1, axis=1), axis=2)
    heights = sides.min(axis=1)
    reach = _NEAR_HEIGHTS * np.minimum(heights[:, None], heights[None, :])
    gaps = np.maximum(low[:, None] - high[None, :], low[None, :] - high[:, None])
    near: NDArray[np.bool_] = (gaps < reach[:, :, None]).all(axis=2)
    return near
