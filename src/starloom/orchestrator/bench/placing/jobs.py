"""Jobs of any size in shapes that are met: random layers, forks, trees, four published workflows, and cameras.

The workflows keep who reads whom and which tasks are heavy, as they are described in Juve et al., "Characterizing and
profiling scientific workflows" (2013), and for BLAST in the WfCommons collection; the numbers are drawn here.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np

from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.planner.problem import Floats

STAGES_MIN: Final = 12
"""What the largest of the shapes needs to be itself."""


class Job(NamedTuple):
    """`work` [n]: in seconds of a node of speed 1. `edges` [e]: upstream, downstream. `size` [e]: of what moves along each."""

    work: Floats
    edges: tuple[tuple[int, int], ...]
    size: Floats


class _Sketch:
    """Stages as they are added: how heavy they and their outputs are, as factors."""

    def __init__(self, stages: int, draws: Draws) -> None:
        self.stages = stages
        self.draws = draws
        self.work: list[float] = []
        self.size: list[float] = []
        self.edges: list[tuple[int, int]] = []

    @property
    def room(self) -> int:
        """How many stages are still to be added."""
        return self.stages - len(self.work)

    def add(self, reads: Iterable[int] = (), work: float = 1.0, size: float = 1.0) -> int:
        """One stage behind those that it reads."""
        stage = len(self.work)
        self.work.append(work)
        self.size.append(size)
        self.edges += [(up, stage) for up in dict.fromkeys(reads)]
        return stage

    def tail(self, last: int) -> None:
        """What room is left, as a chain behind the last stage."""
        while self.room:
            last = self.add([last], 0.3)


def job(shape: str, stages: int, draws: Draws) -> Job:
    """A job of exactly so many stages, STAGES_MIN or more, in one of SHAPES. All who read a stage read the same bytes."""
    sketch = _Sketch(stages, draws)
    SHAPES[shape](sketch)
    work = np.array(sketch.work) * draws.heavy(stages)
    size = np.array(sketch.size) * draws.heavy(stages)
    return Job(work, tuple(sketch.edges), size[[up for up, _ in sketch.edges]])


def _layered(sketch: _Sketch) -> None:
    """Layers of uneven width; a stage reads up to four of the layer above it."""
    most = min(int(np.sqrt(sketch.stages) * sketch.draws.between(1.0, 4.0)), sketch.stages // 4)
    above: list[int] = []
    while sketch.room:
        count = min(sketch.room, 1 + sketch.draws.below(most))
        above = [sketch.add(sketch.draws.some(above, 1 + sketch.draws.below(4))) for _ in range(count)]


def _fork(sketch: _Sketch) -> None:
    """Forks and joins, one behind the other."""
    head = sketch.add()
    most = max(3, sketch.stages // 4)
    while sketch.room:
        count = min(max(1, sketch.room - 1), 2 + sketch.draws.below(most))
        branches = [sketch.add([head]) for _ in range(count)]
        if sketch.room:
            head = sketch.add(branches, 0.5)


def _tree(sketch: _Sketch) -> None:
    """A reduction: each stage joins two to four of those that are left, the first that were made."""
    leaves = max(2, sketch.stages * 5 // 8)
    queue = [sketch.add() for _ in range(leaves)]
    while sketch.room and len(queue) > 1:
        arity = min(len(queue), 2 + sketch.draws.below(3))
        queue = [*queue[arity:], sketch.add(queue[:arity])]
    if sketch.room:
        sketch.tail(sketch.add(queue))


def _montage(sketch: _Sketch) -> None:
    """Montage: images are projected, neighbours compared, their backgrounds fitted, corrected, and all are added up."""
    images = max(2, (sketch.stages - 6) // 4)
    pairs = sketch.stages - 6 - 2 * images
    projected = [sketch.add(work=1.5, size=2.0) for _ in range(images)]
    differences = []
    for index in range(pairs):
        first = index % images
        other = (first + 1 + sketch.draws.below(3)) % images
        differences.append(sketch.add([projected[first], projected[other]], 0.5, 0.2))
    model = sketch.add([sketch.add(differences, 2.0, 0.1)], 3.0, 0.1)
    corrected = [sketch.add([image, model], 0.5, 2.0) for image in projected]
    table = sketch.add(corrected, 1.0, 0.1)
    mosaic = sketch.add([table, *corrected], 6.0, 4.0)
    sketch.tail(sketch.add([mosaic], 1.0, 0.5))


def _epigenomics(sketch: _Sketch) -> None:
    """Epigenomics: lanes that are split into chunks, each a chain of four whose last is heavy, merged, and indexed."""
    lanes = []
    while sketch.room >= 9:
        chunks = min((sketch.room - 5) // 4, 2 + sketch.draws.below(12))
        split = sketch.add(work=0.7)
        mapped = []
        for _ in range(chunks):
            at = split
            for work, size in ((0.4, 0.7), (0.2, 0.7), (0.2, 0.5), (6.0, 0.5)):
                at = sketch.add([at], work, size)
            mapped.append(at)
        lanes.append(sketch.add(mapped))
    sketch.tail(sketch.add(lanes, 2.0))


def _seismology(sketch: _Sketch) -> None:
    """Seismology: many deconvolutions, and one stage that reads them all."""
    sketch.add([sketch.add() for _ in range(sketch.stages - 1)], 2.0)


def _blast(sketch: _Sketch) -> None:
    """BLAST: a query is split, searched for in a database by heavy stages, and put together twice."""
    split = sketch.add(work=0.5)
    searches = [sketch.add([split], 4.0, 0.5) for _ in range(sketch.stages - 3)]
    sketch.add(searches, 0.3)
    sketch.add(searches, 0.3)


def _cameras(sketch: _Sketch) -> None:
    """Cameras at a crossing: of each frame, objects are found and named; what all cameras see is fused and followed."""
    cameras = 2 + sketch.draws.below(3)
    track: list[int] = []
    while sketch.room:
        seen = []
        for _ in range(cameras):
            crops = 1 + sketch.draws.below(3)
            if sketch.room < 4 + crops:
                break
            decoded = sketch.add([sketch.add(work=0.1, size=3.0)], 0.4, 6.0)
            found = sketch.add([decoded], 3.0, 1.0)
            seen.append(sketch.add([sketch.add([found], 1.0, 0.2) for _ in range(crops)], 0.1, 0.2))
        if not seen:
            sketch.tail(track[-1])
        elif sketch.room:
            track = [sketch.add([*seen, *track], 0.8, 0.3)]


SHAPES: Final[Mapping[str, Callable[[_Sketch], None]]] = {
    "layered": _layered,
    "fork": _fork,
    "tree": _tree,
    "montage": _montage,
    "epigenomics": _epigenomics,
    "seismology": _seismology,
    "blast": _blast,
    "cameras": _cameras,
}
