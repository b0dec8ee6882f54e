"""What a device's costs are after a further run: a Kalman filter that forgets, and notices that the device has changed.

Devices slow down as a whole when they get warm or busy, so speed may drift with each run (a random walk), and what a
run's features say something of is forgotten in that direction only: costs that no run has touched stay as they are
(directional forgetting, Kulhavy, 1987). A run far off counts less (Huber, 1964), unless others were far off alike.
"""

from typing import Final

import numpy as np

from starloom.dag.errors import InvalidInput
from starloom.orchestrator.planner.features import Floats
from starloom.orchestrator.planner.predict import NOISE_FLOOR, Device

FAR: Final = 2.5
"""Deviations from which on a run is a surprise."""

SURPRISES: Final = 3
"""So many in a row, all slower or all faster, are a change of the device's speed, which is then open again."""

_DRIFT: Final = 0.01
"""Standard deviation of what speed changes between two runs, relative."""
_FORGETTING: Final = 0.995
_NOISE_SHARE: Final = 0.03
"""What one run counts for in the noise."""


def updated(device: Device, features: Floats, seconds: float) -> Device:
    """The device after a run of a network with these features [p]. Raises InvalidInput for a time not above zero."""
    if not (np.isfinite(seconds) and seconds > 0):
        raise InvalidInput(f"a run cannot have taken {seconds} s; leave it out")
    speed = np.outer(device.mean, device.mean)
    covariance = device.covariance + _DRIFT**2 * speed
    told = float(features @ device.mean)
    size = float(np.hypot(max(told, 0.0), NOISE_FLOOR * device.typical))
    off = seconds - told
    noise = (device.noise * size) ** 2
    surprises = _surprises(device.surprises, off, float(features @ covariance @ features) + noise)
    if abs(surprises) == SURPRISES:
        covariance = covariance + speed
        surprises = 0
    covariance = _forgotten(covariance, features)
    reach = covariance @ features
    unsure = float(features @ reach)
    far = abs(off) / (FAR * float(np.sqrt(unsure + noise)))
    total = unsure + noise * max(1.0, far) ** 2
    mean = device.mean + reach * (off / total)
    covariance = covariance - np.outer(reach, reach) / total
    left = (
        min((seconds - float(features @ mean)) ** 2, FAR**2 * noise) + float(features @ covariance @ features)
    ) / size**2
    spread = (1 - _NOISE_SHARE) * device.noise**2 + _NOISE_SHARE * left
    return device._replace(mean=mean, covariance=covariance, noise=float(np.sqrt(spread)), surprises=surprises)


def _surprises(before: int, off: float, variance: float) -> int:
    """Runs in a row that were far off on one side: above zero slower, below it faster than told."""
    if abs(off) <= FAR * float(np.sqrt(variance)):
        return 0
    side = 1 if off > 0 else -1
    return before + side if before * side > 0 else side


def _forgotten(covariance: Floats, features: Floats) -> Floats:
    reach = covariance @ features
    return covariance + (1 / _FORGETTING - 1) * np.outer(reach, reach) / float(features @ reach)
