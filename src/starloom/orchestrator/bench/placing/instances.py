"""Instances: a job on a network, with or without requirements, by name; the sets that the benchmark plans."""

import hashlib
import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from starloom.dag.constellation import Tier
from starloom.orchestrator.bench.placing import requirements
from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.bench.placing.jobs import SHAPES, Job, job
from starloom.orchestrator.bench.placing.networks import NETWORKS, Network, network
from starloom.orchestrator.planner.problem import Floats, Problem, problem

_DIGEST_BYTES = 12
_FIT = (0.7, 1.4)
_NOTHING = (0.0, -1.0, np.inf)
"""No seconds and no flag, no group or model, no limit."""


class Spec(NamedTuple):
    """What an instance is drawn from; the same gives the same numbers. `ratio`: communication to computation.

    The ratio is what a mean transfer between two nodes takes, without its latency, over what a mean stage takes.
    """

    shape: str
    network: str
    stages: int
    nodes: int
    ratio: float
    constrained: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        kept = "-constrained" if self.constrained else ""
        return f"{self.shape}-{self.stages}-on-{self.network}-{self.nodes}-ccr-{self.ratio:g}{kept}-{self.seed}"


class Instance(NamedTuple):
    """A problem with the tier of each of its nodes; none where its network has no tiers."""

    name: str
    problem: Problem
    tiers: tuple[Tier, ...]


def instance(spec: Spec) -> Instance:
    """The instance of a spec."""
    seeds = (list(SHAPES).index(spec.shape), list(NETWORKS).index(spec.network), spec.stages, spec.nodes, spec.seed)
    made = job(spec.shape, spec.stages, Draws(0, *seeds))
    on = network(spec.network, spec.nodes, Draws(1, *seeds))
    return placed(spec.name, made, on, spec.ratio, spec.constrained, Draws(2, *seeds))


def placed(name: str, made: Job, on: Network, ratio: float, constrained: bool, draws: Draws) -> Instance:
    """A job on a network, its transfers scaled to a ratio of communication to computation."""
    seconds = made.work[:, None] / on.speed[None, :] * draws.uniform(*_FIT, len(made.work), len(on.speed))
    scale = ratio / natural_ratio(made, on)
    more = requirements.drawn(made, on, seconds, draws) if constrained else {}
    return Instance(
        name,
        problem(
            [f"stage-{index}" for index in range(len(made.work))],
            on.places,
            more.pop("seconds", seconds),
            [(up, down, float(size * scale)) for (up, down), size in zip(made.edges, made.size, strict=True)],
            latency=on.latency,
            seconds_per_byte=on.per_byte,
            tiers=[list(Tier).index(tier) for tier in on.tiers],
            **more,
        ),
        on.tiers,
    )


def natural_ratio(made: Job, on: Network) -> float:
    """Communication to computation of a job on a network as they are; 1 if nothing is moved."""
    moved = _mean(made.size) * _mean(on.per_byte[on.per_byte > 0]) if len(made.size) else 0.0
    return moved / (_mean(made.work) * _mean(1 / on.speed)) or 1.0


def _mean(numbers: Floats) -> float:
    # Summed exactly: NumPy's order of additions differs from machine to machine.
    return math.fsum(numbers) / len(numbers)


_OF_VARIANTS: Final = ("variant", "shares", "variants")


def digest(problem: Problem) -> str:
    """What tells a problem from others: of all its numbers, bit by bit; names do not count.

    Arrays that ask for nothing do not count either, so that digests stay when problems learn to ask for more; nor does how
    many variants there are where no stage has more than one.
    """
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    arrays = problem.arrays._asdict()
    if not arrays["variant"].any():
        arrays = {name: values for name, values in arrays.items() if name not in _OF_VARIANTS}
        arrays["working_bytes"] = arrays["working_bytes"][:, 0]
    for name, values in arrays.items():
        if not np.isin(values, _NOTHING).all():
            found.update(f"{name} {values.dtype.str} {values.shape} ".encode())
            # Which of two zeros it is counts for nothing.
            found.update((values + 0.0 if values.dtype == np.float64 else values).tobytes())
    return found.hexdigest()


SMALL, HUNDRED, THOUSAND, TEN_THOUSAND = "small", "100", "1000", "10000"

_MIXES: Final = {
    SMALL: [("uneven", 4, 1.0, False), ("tiered", 6, 1.0, True)],
    HUNDRED: [
        ("uneven", 8, 0.3, False),
        ("uneven", 20, 5.0, False),
        ("tiered", 16, 1.0, False),
        ("tiered", 50, 5.0, False),
        ("tiered", 12, 1.0, True),
        ("tiered", 30, 0.1, True),
    ],
    THOUSAND: [("uneven", 20, 5.0, False), ("tiered", 100, 1.0, True)],
    TEN_THOUSAND: [],
}
_STAGES: Final = {SMALL: 13, HUNDRED: 100, THOUSAND: 1_000}
_LARGEST: Final = [
    Spec("layered", "uneven", 10_000, 20, 1.0),
    Spec("montage", "tiered", 10_000, 50, 1.0),
    Spec("epigenomics", "uneven", 10_000, 50, 5.0),
    Spec("cameras", "tiered", 10_000, 50, 0.5, constrained=True),
    Spec("tree", "tiered", 10_000, 100, 5.0),
    Spec("fork", "tiered", 10_000, 500, 0.1),
]


def specs(size: str) -> list[Spec]:
    """The set of instances of one size."""
    if size == TEN_THOUSAND:
        return list(_LARGEST)
    return [
        Spec(shape, kind, _STAGES[size], nodes, ratio, constrained)
        for shape in SHAPES
        for kind, nodes, ratio, constrained in _MIXES[size]
    ]


def every() -> Iterator[Spec]:
    """All specs, the small ones first."""
    for size in _MIXES:
        yield from specs(size)
