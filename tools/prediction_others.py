"""What else predicts run times on a new device, beside what ships: `python -m tools.prediction_others [split] [samples]`.

`shipped`, and the same on samples drawn at random, or chosen without allowing for a misfit, or with counts of all operators alone (`plain`);
`logarithms`: costs of logarithms, not of times; `factors`: logarithms of the sources' times of the same networks, by five
principal components and ridge regression, its shrinkage chosen by leaving samples out; `corrected`: the shipped one, its
errors on the samples spread to networks whose errors on the sources go together. The last two read what sources took for
each network that is predicted, which a model that nobody ran does not have. Only medians, shares and ranks are compared.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from tools.prediction import TABLE, Score, Table, learned, mean, read, score, splits

from starloom.orchestrator.planner import predict
from starloom.orchestrator.planner.choosing import choose
from starloom.orchestrator.planner.features import Floats

_OFFSETS: Final = (0, 4, 9)
_FACTORS: Final = 5
_SHRINKAGE: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LEAST: Final = 1e-3


class Case(NamedTuple):
    """What an attempt may read: features [n, p]; the sources' costs and times [k, n]; the sampled rows and their times."""

    features: Floats
    sources: predict.Sources
    times: Floats
    samples: list[int]
    sampled: Floats


def shipped(case: Case) -> Floats:
    """By `planner.predict`."""
    device = predict.fit(predict.prior(case.sources), case.features[case.samples], case.sampled)
    return device.predict(case.features).seconds


def plain(case: Case) -> Floats:
    """The same without the columns of what outputs depend on: the constant and the counts."""
    few = slice(None, None, 8)
    counts = case.features[:, : 1 + (case.features.shape[1] - 1) // 2]
    sources = predict.learn(counts[few], case.times[:, few], case.sources.families)
    device = predict.fit(predict.prior(sources), counts[case.samples], case.sampled)
    return device.predict(counts).seconds


def logarithms(case: Case) -> Floats:
    """Bayesian linear regression of logarithms; the constant is free."""
    logs = np.log(np.maximum(case.times, _LEAST)).T
    costs = np.linalg.lstsq(case.features, logs, rcond=None)[0].T
    noise = np.abs(logs.T - costs @ case.features.T).mean()
    centre = costs.mean(axis=0)
    covariance = np.cov(costs.T) + np.diag((0.3 * np.abs(centre) + 0.02) ** 2)
    covariance[0, 0] += 100.0
    rows = case.features[case.samples]
    gain = covariance @ rows.T @ np.linalg.inv(rows @ covariance @ rows.T + noise**2 * np.eye(len(rows)))
    told: Floats = np.exp(case.features @ (centre + gain @ (np.log(case.sampled) - rows @ centre)))
    return told


def factors(case: Case) -> Floats:
    """Ridge regression onto principal components of the sources' logarithms."""
    logs = np.log(np.maximum(case.times, _LEAST))
    centred = logs - logs.mean(axis=1, keepdims=True)
    components = np.linalg.svd(centred, full_matrices=False)[2][:_FACTORS].T
    columns = components / components.std(axis=0)
    target = np.log(case.sampled)
    rows = columns[case.samples]

    def ridge(kept: Sequence[int], shrinkage: float, at: Floats) -> Floats:
        middle, level = rows[kept].mean(axis=0), target[kept].mean()
        near = rows[kept] - middle
        weights = np.linalg.solve(near.T @ near + shrinkage * np.eye(near.shape[1]), near.T @ (target[kept] - level))
        found: Floats = level + (at - middle) @ weights
        return found

    def left_out(shrinkage: float) -> float:
        every = range(len(rows))
        told = [ridge([each for each in every if each != one], shrinkage, rows[one]) for one in every]
        return float(((np.array(told) - target) ** 2).sum())

    best = min(_SHRINKAGE, key=left_out)
    told: Floats = np.exp(ridge(list(range(len(rows))), best, columns))
    return told


def corrected(case: Case) -> Floats:
    """The shipped one, corrected by how the sources' relative errors go together."""
    told = shipped(case)
    devices = [
        predict.fit(predict.prior(case.sources), case.features[case.samples], times[case.samples])
        for times in case.times
    ]
    errors = np.array(
        [times / device.predict(case.features).seconds - 1 for device, times in zip(devices, case.times, strict=True)]
    )
    errors = np.clip(errors, -0.5, 0.5)
    among = errors[:, case.samples].T @ errors[:, case.samples] / len(errors)
    across = errors.T @ errors[:, case.samples] / len(errors)
    noise = np.trace(among) / len(among)
    off = case.sampled / told[case.samples] - 1
    fixed: Floats = told * (1 + across @ np.linalg.solve(among + noise * np.eye(len(among)), off))
    return fixed


ATTEMPTS: Final[dict[str, tuple[str, Callable[[Case], Floats]]]] = {
    "shipped": ("chosen", shipped),
    "at random": ("random", shipped),
    "without misfit": ("extremes", shipped),
    "plain": ("chosen", plain),
    "logarithms": ("chosen", logarithms),
    "factors": ("chosen", factors),
    "corrected": ("chosen", corrected),
}


def samples(how: str, sources: predict.Sources, features: Floats, count: int, offset: int) -> list[int]:
    """Rows to sample."""
    if how == "random":
        return [int(row) for row in np.random.default_rng(offset).choice(len(features), count, replace=False)]
    if how == "extremes":
        return choose(predict.prior(sources), features, count, offset, misfit=0.0)
    return choose(predict.prior(sources), features, count, offset)


def scores(table: Table, split: str, count: int) -> dict[str, Score]:
    """The mean score of each attempt over devices left out and offsets."""
    features = table.features()
    costs = learned(table, features)
    found: dict[str, list[Score]] = {name: [] for name in ATTEMPTS}
    for offset in _OFFSETS:
        ready: dict[tuple[str, ...], list[int]] = {}
        for target, left in splits(split, table.devices):
            rows = [table.devices.index(each) for each in left]
            truth = table.milliseconds[table.devices.index(target)]
            for name, (how, attempt) in ATTEMPTS.items():
                if (how, *left) not in ready:
                    ready[how, *left] = samples(how, costs.only(rows), features, count, offset)
                kept = ready[how, *left]
                told = attempt(Case(features, costs.only(rows), table.milliseconds[rows], kept, truth[kept]))
                found[name].append(score(predict.Predictions(told, told, told, told), truth, kept))
    return {name: mean(each) for name, each in found.items()}


def main() -> int:
    """Prints a line an attempt."""
    split, count = [*sys.argv[1:], *("class", "10")[len(sys.argv) - 1 :]][:2]
    for name, each in scores(read(TABLE), split, int(count)).items():
        sys.stdout.write(f"{name:16} {100 * each.median:5.1f} % {100 * each.within:4.0f} % {each.rank:6.3f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
