"""The work that is measured, as graphs of stages that do nothing: the same for Starloom and for every peer."""

import random
from enum import StrEnum

import msgspec

LAYER_STAGES = 50
LAYER_UPSTREAMS = 3
LAYER_SEED = 1
JOB_STAGES = 3


class Form(StrEnum):
    """The form of a graph.

    WIDE: no dependencies. CHAIN: each stage takes the value of the one before. LAYERED: layers of
    LAYER_STAGES, where each stage takes LAYER_UPSTREAMS values of the layer before, drawn with LAYER_SEED. JOBS: many jobs,
    each a chain of JOB_STAGES.
    """

    WIDE = "wide"
    CHAIN = "chain"
    LAYERED = "layered"
    JOBS = "jobs"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work: `size` stages (of JOBS: jobs), on the first `workers` workers; 0: wherever they are placed.

    `value_bytes`: each stage reads the tensor of the one before and makes another of this size; 0: stages do nothing.
    `jobs`: as many such graphs at once, for whoever knows jobs.
    """

    form: Form
    size: int
    workers: int = 0
    value_bytes: int = 0
    jobs: int = 1


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Small jobs, chains of JOB_STAGES, at a steady pace: one is due every 1 / `per_second` s, for `seconds`."""

    per_second: float
    seconds: float

    @property
    def jobs(self) -> int:
        """How many jobs that makes."""
        return max(1, round(self.per_second * self.seconds))

    def due(self, job: int) -> float:
        """When a job is due, in seconds from the first one."""
        return job / self.per_second

    @property
    def graph(self) -> "Shape":
        """The graph of each job."""
        return shape(Work(form=Form.CHAIN, size=JOB_STAGES))


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A graph in topological order: for each stage the indexes of its upstreams, and the worker it is pinned to or None."""

    form: Form
    upstreams: tuple[tuple[int, ...], ...]
    workers: tuple[int | None, ...]
    value_bytes: int = 0

    @property
    def sinks(self) -> list[int]:
        """The stages that nothing waits for, by index."""
        waited_for = {upstream for upstreams in self.upstreams for upstream in upstreams}
        return [index for index in range(len(self.upstreams)) if index not in waited_for]


def shape(work: Work) -> Shape:
    """The graph of a piece of work; of JOBS all their graphs beside one another."""
    upstreams: list[tuple[int, ...]]
    match work.form:
        case Form.WIDE:
            upstreams = [()] * work.size
        case Form.CHAIN:
            upstreams = [_before(index, work.size) for index in range(work.size)]
        case Form.LAYERED:
            upstreams = _layered(work.size)
        case Form.JOBS:
            upstreams = [_before(index, JOB_STAGES) for index in range(work.size * JOB_STAGES)]
    workers = [index % work.workers if work.workers else None for index in range(len(upstreams))]
    return Shape(form=work.form, upstreams=tuple(upstreams), workers=tuple(workers), value_bytes=work.value_bytes)


def _before(index: int, length: int) -> tuple[int, ...]:
    return (index - 1,) if index % length else ()


def _layered(size: int) -> list[tuple[int, ...]]:
    drawn = random.Random(LAYER_SEED)
    layers = (range(index - LAYER_STAGES - index % LAYER_STAGES, index - index % LAYER_STAGES) for index in range(size))
    return [tuple(drawn.sample(before, LAYER_UPSTREAMS)) if before.start >= 0 else () for before in layers]
