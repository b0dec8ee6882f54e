"""Run times of models on a device that ran only a few: a Bayesian linear model over features of their graphs.

A device's seconds are `features @ costs`, each off by noise that grows with the run time. Devices that were measured
before (sources) give the distribution that costs come from, relative to how fast the device is as a whole; a few
samples of the new one give its speed and its costs, by conjugate updates (Bishop, "Pattern Recognition and Machine
Learning", 2006, 3.3), reweighted so that outliers count less (Student's t as a mixture of normals: Lange, Little and
Taylor, 1989). Costs add in seconds, not in logarithms: docs/placement.md (Prediction) has what was tried and measured.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from starloom.dag.errors import InvalidInput, Problem
from starloom.orchestrator.planner.features import Floats

SAMPLES: Final = 10
"""Networks that a device profiles when it joins."""

NOISE_FLOOR: Final = 0.3
"""Noise is relative to the run time and this share of a typical one: short runs are measured less exactly."""

FREEDOM: Final = 4.0
"""Degrees of freedom of the noise: outliers among samples of shared machines are common."""

_SPREAD: Final = 0.6
"""How far a cost may lie from what the sources' costs tell, as a share of it."""
_SPREAD_LEAST: Final = 0.1
"""The same for costs that are nothing on the sources, as a share of a typical run time."""
_SPEED_VARIANCE: Final = 1.0
"""Variance of the device's speed about the one that its samples' median tells."""
_NOISE_WEIGHT: Final = 0.5
"""What the sources' noise counts for beside the device's own samples, in samples."""
_SHORTEST: Final = 0.02
"""No run is predicted to be shorter than this share of a typical one."""
_ROUNDS: Final = 8
_HELD: Final = 0.92
"""Share of the sources' runs that intervals for 90 % are made to hold: a new device is less like them than they are."""
_MULTIPLIER: Final = 2.13
"""Deviations to the bounds of 90 % of Student's t with FREEDOM degrees, until sources tell a better number."""


class Sources(NamedTuple):
    """What k measured devices tell of p costs.

    `costs` [k, p]: of each device, as shares of its typical run time. `noise` [k]: relative. `weight` [k]: of each
    device, those of one family together as much as any other family; they sum to 1.
    """

    costs: Floats
    noise: Floats
    weight: Floats
    families: tuple[str, ...]

    def only(self, devices: Sequence[int]) -> "Sources":
        """Those devices alone, weighted anew."""
        families = tuple(self.families[device] for device in devices)
        return Sources(self.costs[list(devices)], self.noise[list(devices)], _weights(families), families)

    def without(self, family: str) -> "Sources":
        """The devices of other families."""
        return self.only([device for device, each in enumerate(self.families) if each != family])


class Prior(NamedTuple):
    """Costs of a device that has run nothing, as shares of its typical run time: mean [p], covariance [p, p].

    `noise`: relative. `multiplier`: deviations from the prediction to the bounds of the 90 % interval.
    """

    mean: Floats
    covariance: Floats
    noise: float
    multiplier: float = _MULTIPLIER


class Predictions(NamedTuple):
    """Seconds [n]: expected, their standard deviations, and the bounds that hold 90 % of runs."""

    seconds: Floats
    deviation: Floats
    low: Floats
    high: Floats


class Device(NamedTuple):
    """A device's costs in seconds: mean [p], covariance [p, p]; `typical`: seconds of a typical run; `noise`: relative.

    `surprises`: of the newest runs so many were far off on one side (`online`).
    """

    mean: Floats
    covariance: Floats
    typical: float
    noise: float
    multiplier: float
    surprises: int = 0

    def predict(self, features: Floats) -> Predictions:
        """Seconds of networks with these features [n, p]."""
        told = features @ self.mean
        variance = _spread(features, self.covariance) + self.noise**2 * _size(told, self.typical) ** 2
        seconds = np.maximum(told, _SHORTEST * self.typical)
        deviation = np.sqrt(variance)
        reach = self.multiplier * deviation
        return Predictions(seconds, deviation, np.maximum(seconds - reach, 0.0), seconds + reach)


def learn(features: Floats, seconds: Floats, families: Sequence[str]) -> Sources:
    """Costs of k devices from n networks' features [n, p] and their seconds [k, n].

    `families` [k]: devices of one name are kin (batch sizes on one GPU), and count as one. Raises InvalidInput where
    shapes do not fit or a time is not above zero.
    """
    _check(features, seconds, families)
    fitted = [_fit_source(features, row) for row in seconds]
    typical = features.mean(axis=0)
    costs = np.array([costs / (typical @ costs) for costs, _ in fitted])
    return Sources(costs, np.array([noise for _, noise in fitted]), _weights(families), tuple(families))


def prior(sources: Sources) -> Prior:
    """Where a further device's costs may lie, by these sources: their mean, their covariance, and some freedom."""
    mean = sources.weight @ sources.costs
    apart = (sources.costs - mean) * np.sqrt(sources.weight)[:, None]
    freedom = np.diag((_SPREAD * (np.abs(mean) + _SPREAD_LEAST)) ** 2)
    return Prior(mean, apart.T @ apart + freedom, float(np.exp(sources.weight @ np.log(sources.noise))))


def fit(prior: Prior, features: Floats, seconds: Floats) -> Device:
    """A device by its samples: features [n, p], seconds [n]. Raises InvalidInput without any, or for a bad time."""
    _check(features, seconds[None, :], ("device",))
    told = np.maximum(features @ prior.mean, _SHORTEST)
    typical = float(np.exp(np.median(np.log(seconds / told))))
    expected = typical * prior.mean
    speed = _SPEED_VARIANCE * np.outer(prior.mean, prior.mean)
    precision = _inverse(typical**2 * (prior.covariance + speed))
    mean, variance = expected, prior.noise**2
    trust: Floats = np.ones(len(seconds))
    covariance: Floats = typical**2 * prior.covariance
    for _ in range(_ROUNDS):
        weight = trust / (variance * _size(features @ mean, typical) ** 2)
        covariance = _inverse(precision + (features * weight[:, None]).T @ features)
        mean = covariance @ (precision @ expected + features.T @ (weight * seconds))
        told = features @ mean
        error = ((seconds - told) ** 2 + _spread(features, covariance)) / _size(told, typical) ** 2
        variance = float((_NOISE_WEIGHT * prior.noise**2 + trust @ error) / (_NOISE_WEIGHT + len(seconds)))
        trust = _trust(np.sqrt(error / variance))
    return Device(mean, covariance, typical, float(np.sqrt(variance)), prior.multiplier)


def calibrated(sources: Sources, features: Floats, seconds: Floats, samples: Sequence[int]) -> Prior:
    """The prior with the multiplier by which 90 % intervals hold: each source in turn is the new device.

    `features` [n, p] and `seconds` [k, n] of the sources' networks, `samples` the rows that the new device profiles. A source
    is predicted from other families and its own samples, and its other rows tell how many deviations they are off by:
    conformal prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005) with devices as the unit.
    """
    whole = prior(sources)
    if len(set(sources.families)) < 2:
        return whole
    rows = np.setdiff1d(np.arange(len(features)), samples)
    off, weights = [], []
    for index, family in enumerate(sources.families):
        device = fit(prior(sources.without(family)), features[list(samples)], seconds[index, list(samples)])
        told = device.predict(features[rows])
        off.append(np.abs(seconds[index, rows] - told.seconds) / told.deviation)
        weights.append(np.full(len(rows), sources.weight[index] / len(rows)))
    ratios, weight = np.concatenate(off), np.concatenate(weights)
    order = np.argsort(ratios)
    place = min(int(np.searchsorted(np.cumsum(weight[order]), _HELD)), len(order) - 1)
    return whole._replace(multiplier=float(ratios[order[place]]))


def _fit_source(features: Floats, seconds: Floats) -> tuple[Floats, float]:
    """Costs [p], as shares of the median run, and relative noise of a device that ran many: robust least squares."""
    seconds = seconds / np.median(seconds)
    size = _size(seconds, 1.0)
    trust: Floats = np.ones(len(seconds))
    costs: Floats = np.zeros(features.shape[1])
    noise = 0.0
    for _ in range(_ROUNDS):
        weight = trust / size**2
        weighted = features * weight[:, None]
        costs = _inverse(weighted.T @ features + 1e-3 * np.eye(features.shape[1])) @ (weighted.T @ seconds)
        told = features @ costs
        size = _size(told, 1.0)
        error = np.abs(seconds - told) / size
        noise = max(1.4826 * float(np.median(error)), 1e-4)
        trust = _trust(error / noise)
    return costs, noise


def _size(told: Floats, typical: float) -> Floats:
    """What noise is relative to."""
    size: Floats = np.hypot(np.maximum(told, 0.0), NOISE_FLOOR * typical)
    return size


def _trust(deviations: Floats) -> Floats:
    """What a run counts for that is so many deviations off: the weight of Student's t."""
    trust: Floats = (FREEDOM + 1) / (FREEDOM + deviations**2)
    return trust


def _inverse(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _spread(features: Floats, covariance: Floats) -> Floats:
    """Variance of what is told for each row."""
    spread: Floats = np.einsum("ij,jk,ik->i", features, covariance, features)
    return spread


def _weights(families: Sequence[str]) -> Floats:
    each: Floats = np.array([1.0 / sum(other == family for other in families) for family in families])
    whole: Floats = each / each.sum()
    return whole


def _check(features: Floats, seconds: Floats, families: Sequence[str]) -> None:
    problems = []
    if not len(families):
        problems.append(Problem("families", "there are none; give at least one device that was measured"))
    if features.ndim != 2 or seconds.shape != (len(families), len(features)) or not len(features):
        problems.append(
            Problem("seconds", f"has the shape {seconds.shape}; give one row a device, one column a row of features")
        )
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        problems.append(Problem("seconds", "has times that are not above zero; leave those runs out"))
    if problems:
        raise InvalidInput(problems, "run times that nothing can be predicted from")
