"""Run times on devices left out: that they are told as well as is claimed, and that nothing leaks or drifts."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from tools.prediction import (
    SAMPLE,
    Score,
    Table,
    class_of,
    evaluate,
    family,
    graph,
    learned,
    mean,
    prepared,
    read,
    splits,
)

from starloom.dag.errors import InvalidInput
from starloom.devices.graphs import Graph, Operator
from starloom.orchestrator.planner import predict
from starloom.orchestrator.planner.choosing import choose
from starloom.orchestrator.planner.features import vocabulary

SKIP_ALL = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


Told = Callable[[str, int], Score]


@pytest.fixture(scope="module")
def table() -> Table:
    return read(SAMPLE)


@pytest.fixture(scope="module")
def told(table: Table) -> Told:
    """The mean score of a split, with so many samples."""
    return cache(lambda split, count: mean(list(evaluate(table, split, count).values())))


@pytest.mark.parametrize("split", ["class", "kin", "help"])
def test_ten_samples_tell_a_device_left_out(told: Told, split: str) -> None:
    found = told(split, 10)
    assert found.median <= 0.06
    assert found.rank >= 0.94
    assert found.within >= 0.80
    assert found.covered >= 0.85


@pytest.mark.parametrize("count", [10, 50])
@pytest.mark.parametrize("split", ["class", "kin"])
def test_intervals_hold_about_what_they_promise(told: Told, split: str, count: int) -> None:
    assert 0.85 <= told(split, count).covered <= 0.95


def test_more_samples_tell_more(told: Told) -> None:
    few, many = told("class", 3), told("class", 50)
    assert many.median < few.median
    assert many.rank > few.rank


def test_what_was_not_sampled_is_not_read(table: Table) -> None:
    features = table.features()
    target, sources = next(splits("class", table.devices))
    prior, samples = prepared(table, features, learned(table, features), sources, 10, 0)
    row = table.devices.index(target)
    others = np.setdiff1d(np.arange(len(features)), samples)
    spoilt = table.milliseconds.copy()
    spoilt[row, others] = 1e6
    other = table._replace(milliseconds=spoilt)
    again, same = prepared(other, features, learned(other, features), sources, 10, 0)
    assert samples == same
    np.testing.assert_array_equal(prior.mean, again.mean)
    assert prior.multiplier == again.multiplier
    assert target not in sources
    assert all(class_of(each) != class_of(target) for each in sources)


def test_kin_are_left_out_together(table: Table) -> None:
    for target, sources in splits("kin", table.devices):
        assert family(target) not in {family(each) for each in sources}
    assert family("titan_rtx_1") != family("titanx_1") != family("titanxp_1")


def test_samples_are_chosen_the_same_each_time_and_no_one_twice(table: Table) -> None:
    features = table.features()
    prior = predict.prior(learned(table, features))
    first = choose(prior, features, 20)
    assert first == choose(prior, features, 20)
    assert len(set(first)) == 20
    assert first[:10] == choose(prior, features, 10)


def test_chosen_samples_tell_costs_better_than_most(table: Table) -> None:
    features = table.features()
    prior = predict.prior(learned(table, features))

    relative = features / np.hypot(features @ prior.mean, predict.NOISE_FLOOR)[:, None]

    def uncertain(rows: list[int]) -> float:
        told = np.linalg.inv(prior.covariance) + relative[rows].T @ relative[rows] / prior.noise**2
        return float(np.einsum("ij,jk,ik->", relative, np.linalg.inv(told), relative))

    others = [uncertain(list(range(first, first + 10))) for first in range(0, 600, 10)]
    assert uncertain(choose(prior, features, 10)) < np.median(others)


def test_seconds_and_milliseconds_give_the_same_prediction(table: Table) -> None:
    features = table.features()
    target, sources = next(splits("kin", table.devices))
    prior, samples = prepared(table, features, learned(table, features), sources, 10, 0)
    times = table.milliseconds[table.devices.index(target), samples]
    slow = predict.fit(prior, features[samples], times).predict(features)
    quick = predict.fit(prior, features[samples], times / 1e3).predict(features)
    np.testing.assert_allclose(quick.seconds * 1e3, slow.seconds, rtol=1e-6)
    np.testing.assert_allclose(quick.high * 1e3, slow.high, rtol=1e-6)


def test_one_sample_in_ten_that_is_far_off_changes_little(table: Table) -> None:
    features = table.features()
    prior, samples = prepared(
        table, features, learned(table, features), [each for each in table.devices if family(each) != "silver"], 10, 0
    )
    times = table.milliseconds[table.devices.index("silver_4210r")]
    disturbed = times[samples].copy()
    disturbed[4] *= 5
    calm = predict.fit(prior, features[samples], times[samples]).predict(features)
    told = predict.fit(prior, features[samples], disturbed).predict(features)
    assert np.median(np.abs(told.seconds / calm.seconds - 1)) < 0.15


def test_no_prediction_is_below_zero(table: Table) -> None:
    features = table.features()
    costs = learned(table, features)
    for target, sources in splits("class", table.devices):
        prior, samples = prepared(table, features, costs, sources, 3, 0)
        times = table.milliseconds[table.devices.index(target), samples]
        told = predict.fit(prior, features[samples], times).predict(features)
        assert (told.seconds > 0).all()
        assert (told.low >= 0).all()
        assert (told.low <= told.seconds).all()
        assert (told.seconds <= told.high).all()


def test_one_family_gives_no_multiplier_of_its_own(table: Table) -> None:
    features = table.features()
    rows = [index for index, each in enumerate(table.devices) if family(each) == "silver"]
    costs = learned(table, features).only(rows)
    plain = predict.prior(costs)
    assert predict.calibrated(costs, features, table.milliseconds[rows], [1, 2, 3]).multiplier == plain.multiplier


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        ([[1.0, 0.0]], "not above zero"),
        ([[1.0, float("nan")]], "not above zero"),
        ([[1.0]], "shape"),
    ],
)
def test_bad_run_times_are_refused(seconds: list[list[float]], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        predict.learn(np.ones((2, 1)), np.array(seconds), ["a"])


def test_no_sources_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one device"):
        predict.learn(np.ones((2, 1)), np.ones((0, 2)), [])


@pytest.mark.parametrize("count", [0, 3])
def test_samples_that_are_not_there_are_refused(count: int) -> None:
    prior = predict.Prior(np.ones(1), np.eye(1), 0.1)
    with pytest.raises(InvalidInput, match="ask for 1 to 2"):
        choose(prior, np.ones((2, 1)), count)


def test_vocabulary_keeps_what_tells_graphs_apart() -> None:
    one = Graph((Operator("Conv 3x3", 10, 4), Operator("Relu", 1, 2)))
    two = Graph((Operator("Conv 3x3", 20, 8), Operator("Conv 3x3", 10, 4, used=False), Operator("Relu", 1, 2)))
    words = vocabulary([one, two])
    assert words.names == ("constant", "Conv 3x3 count", "Conv 3x3 flops", "Conv 3x3 used")[: len(words.names)]
    assert "Conv 3x3 bytes" not in words.names
    np.testing.assert_allclose(words.matrix([one, two])[:, 1], [1 / 1.5, 2 / 1.5])
    assert words.unknown(Graph((Operator("Gemm"), Operator("Relu"), Operator("Conv 3x3")))) == ("Gemm", "Relu")


@pytest.mark.parametrize("graphs", [[], [Graph(())], [Graph((Operator("Relu"),))] * 2])
def test_graphs_that_do_not_differ_have_no_vocabulary(graphs: list[Graph]) -> None:
    with pytest.raises(InvalidInput, match="graphs"):
        vocabulary(graphs)


def test_cells_are_read_with_what_their_output_depends_on() -> None:
    assert [each.used for each in graph(SKIP_ALL).operators] == [True] * 6
    cell = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|"
    assert graph(cell).operators == (
        Operator("nor_conv_3x3", used=False),
        Operator("avg_pool_3x3", used=False),
        Operator("skip_connect"),
    )
