"""The work that is measured, as graphs of stages that do nothing: the same for Starloom and for every peer."""

from enum import StrEnum

import msgspec

LAYER_STAGES = 50
LAYER_UPSTREAMS = 3
JOB_STAGES = 3


class Form(StrEnum):
    """The form of a graph.

    WIDE: no dependencies. CHAIN: each stage takes the value of the one before. LAYERED: layers of
    LAYER_STAGES, where each stage takes LAYER_UPSTREAMS values of the layer before. JOBS: many jobs,
    each a chain of JOB_STAGES.
    """

    WIDE = "wide"
    CHAIN = "chain"
    LAYERED = "layered"
    JOBS = "jobs"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work: `size` stages (of JOBS: jobs), on the first `workers` workers; 0: wherever they are placed.

    `value_bytes`: each stage reads the tensor of the one before and makes another of this size; 0: stages do nothing.
    """

    form: Form
    size: int
    workers: int = 0
    value_bytes: int = 0


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
            upstreams = [_layered(index) for index in range(work.size)]
        case Form.JOBS:
            upstreams = [_before(index, JOB_STAGES) for index in range(work.size * JOB_STAGES)]
    workers = [index % work.workers if work.workers else None for index in range(len(upstreams))]
    return Shape(form=work.form, upstreams=tuple(upstreams), workers=tuple(workers), value_bytes=work.value_bytes)


def _before(index: int, length: int) -> tuple[int, ...]:
    return (index - 1,) if index % length else ()


def _layered(index: int) -> tuple[int, ...]:
    layer, place = divmod(index, LAYER_STAGES)
    first = (layer - 1) * LAYER_STAGES
    # Steps without a common factor with LAYER_STAGES spread the upstreams over the whole layer.
    return tuple(first + (place + 17 * step) % LAYER_STAGES for step in range(LAYER_UPSTREAMS)) if layer else ()
