"""Which networks a new device profiles: those that tell most of all the others."""

from typing import Final

import numpy as np
import numpy.typing as npt

from starloom.dag.errors import InvalidInput
from starloom.orchestrator.planner.features import Floats
from starloom.orchestrator.planner.predict import NOISE_FLOOR, SAMPLES, Prior

Rows = npt.NDArray[np.int64]

CANDIDATES: Final = 1_000
"""Networks that are looked at: more are thinned out evenly."""

_AIMS: Final = 400
"""Networks whose prediction is to be bettered, likewise."""
MISFIT: Final = 0.1
"""Deviation of run times from the linear model, relative: without it only extremes are sampled, where models fail first."""
_NEAR: Final = 1.0
"""How far networks are apart whose misfit has little in common, in standard deviations of the features."""


def choose(prior: Prior, features: Floats, count: int = SAMPLES, first: int = 0, misfit: float = MISFIT) -> list[int]:
    """Rows of features [n, p], each the one that most lowers the mean variance of all predictions given those before.

    Greedy A-optimal design (Krause, Singh and Guestrin, 2008, on Gaussian processes) over the costs' prior and a smooth
    misfit. Deterministic; of more than CANDIDATES rows every so-manieth from `first` is looked at. Raises InvalidInput
    where there are fewer rows than asked for.
    """
    if not 0 < count <= len(features):
        raise InvalidInput(
            f"{count} samples of {len(features)} networks cannot be chosen; ask for 1 to {len(features)}"
        )
    candidates = _thinned(len(features), max(CANDIDATES, count), first)
    aims = _thinned(len(features), _AIMS, first)
    rows = np.concatenate([aims, candidates])
    told = features[rows] @ prior.mean
    relative = features[rows] / np.hypot(np.maximum(told, 0.0), NOISE_FLOOR)[:, None]
    covariance = prior.covariance + np.outer(prior.mean, prior.mean)
    shared = relative @ covariance @ relative.T + misfit**2 * _likeness(features, rows)
    chosen: list[int] = []
    for _ in range(count):
        total = np.diag(shared)[len(aims) :] + prior.noise**2
        gain = (shared[: len(aims), len(aims) :] ** 2).sum(axis=0) / total
        gain[np.isin(candidates, chosen)] = -1.0
        best = int(np.argmax(gain))
        chosen.append(int(candidates[best]))
        column = shared[:, len(aims) + best]
        shared = shared - np.outer(column, column) / total[best]
    return chosen


def _thinned(count: int, most: int, first: int) -> Rows:
    step = max(1, count // most)
    return np.arange(first % step, count, step)[:most]


def _likeness(features: Floats, rows: Rows) -> Floats:
    spread = features.std(axis=0)
    scaled = features[rows][:, spread > 0] / spread[spread > 0]
    norms = (scaled**2).sum(axis=1)
    apart = norms[:, None] + norms[None, :] - 2 * scaled @ scaled.T
    alike: Floats = np.exp(-np.maximum(apart, 0.0) / (2 * _NEAR**2))
    return alike
