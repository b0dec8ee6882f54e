"""What runs teach after the profile: drift, changes and outliers; and the terms beside a graph's own time."""

import numpy as np
import pytest

from starloom.dag.errors import InvalidInput
from starloom.orchestrator.planner import terms
from starloom.orchestrator.planner.online import SURPRISES, updated
from starloom.orchestrator.planner.predict import Device, Prior, fit

PRIOR = Prior(np.array([0.4, 0.3, 0.3]), np.diag([0.04, 0.03, 0.03]), 0.03)
COSTS = np.array([0.02, 0.01, 0.03])


def runs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features, and seconds with 3 % noise."""
    generator = np.random.default_rng(seed)
    features = np.hstack([np.ones((count, 1)), generator.uniform(0.2, 2.0, (count, 2))])
    return features, features @ COSTS * (1 + 0.03 * generator.standard_normal(count))


@pytest.fixture
def device() -> Device:
    return fit(PRIOR, *runs(10, 1))


def error(device: Device, factor: float = 1.0) -> float:
    """Median, relative."""
    features, _ = runs(200, 9)
    return float(np.median(np.abs(device.predict(features).seconds / (features @ COSTS * factor) - 1)))


def test_runs_sharpen_the_prediction_and_intervals_hold(device: Device) -> None:
    held, before = [], error(device)
    for row, seconds in zip(*runs(400, 2), strict=True):
        told = device.predict(row[None, :])
        held.append(told.low[0] <= seconds <= told.high[0])
        device = updated(device, row, seconds)
    assert error(device) <= max(before, 0.02)
    assert 0.85 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_a_change_of_speed_is_followed_within_a_few_runs(device: Device, factor: float) -> None:
    features, seconds = runs(60, 3)
    for row, each in zip(features[:40], seconds[:40], strict=True):
        device = updated(device, row, each)
    for row, each in zip(features[40 : 40 + SURPRISES + 2], seconds[40:], strict=False):
        device = updated(device, row, each * factor)
    assert error(device, factor) < 0.08


def test_slow_drift_is_followed(device: Device) -> None:
    features, seconds = runs(200, 4)
    for index, (row, each) in enumerate(zip(features, seconds, strict=True)):
        device = updated(device, row, each * (1 + 0.003 * index))
    assert error(device, 1.6) < 0.05


def test_one_run_far_off_moves_little_and_does_not_count_as_a_change(device: Device) -> None:
    for row, seconds in zip(*runs(50, 5), strict=True):
        device = updated(device, row, seconds)
    row = np.array([1.0, 1.0, 1.0])
    moved = updated(device, row, 10 * float(row @ COSTS))
    assert moved.surprises == 1
    assert error(moved) < error(device) + 0.05
    assert updated(moved, row, float(row @ moved.mean)).surprises == 0


def test_costs_that_no_run_touched_stay_as_sure_as_they_were(device: Device) -> None:
    row = np.array([1.0, 1.0, 0.0])
    other = np.array([0.0, 0.0, 1.0])
    before = float(other @ device.covariance @ other)
    for _ in range(2000):
        device = updated(device, row, float(row @ COSTS))
    assert float(other @ device.covariance @ other) < 10 * before
    assert np.isfinite(device.covariance).all()
    assert np.linalg.eigvalsh(device.covariance).min() > -1e-12


def test_a_run_of_no_time_is_refused(device: Device) -> None:
    with pytest.raises(InvalidInput, match="leave it out"):
        updated(device, np.ones(3), 0.0)


def test_terms_are_found_again() -> None:
    assert terms.load([1e6, 2e6, 8e6], [1.1, 1.2, 1.8]) == pytest.approx((1.0, 1e-7))
    assert terms.prefill([10, 100, 200], [0.2, 1.1, 2.1]) == pytest.approx((0.1, 0.01))
    shape = terms.Decode(0.05, 1e-4)
    prompts, answers = [10, 10, 500], [5, 100, 20]
    times = [shape.seconds(*each) for each in zip(prompts, answers, strict=True)]
    assert terms.decode(prompts, answers, times) == pytest.approx(shape)


def test_decode_sums_up_the_tokens_before_each() -> None:
    assert terms.Decode(0.0, 1.0).seconds(10, 3) == 10 + 11 + 12
    assert terms.Prefill(0.5, 0.01).seconds(100) == pytest.approx(1.5)
    assert terms.Load(0.5, 1e-8).seconds(1e8) == pytest.approx(1.5)


def test_no_term_is_below_zero() -> None:
    falling = terms.load([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert falling.per_byte == 0.0
    assert falling.fixed > 0
    steep = terms.load([1.0, 2.0], [0.1, 2.0])
    assert steep.fixed == 0.0


def test_one_measured_load_gives_what_fits_it() -> None:
    assert terms.load([4.0], [2.0]).seconds(4.0) == pytest.approx(2.0)


@pytest.mark.parametrize("seconds", [[], [0.0], [1.0, 2.0]])
def test_times_that_do_not_fit_are_refused(seconds: list[float]) -> None:
    with pytest.raises(InvalidInput):
        terms.load([1.0], seconds)
