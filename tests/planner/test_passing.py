"""Rounds that overlap where nodes share up-links: values wait for each other there as well, and all of it is told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planner.test_uplinks import DSL, ROBOTS, WIFI, sent

from starloom.orchestrator.planner import check
from starloom.orchestrator.planner.passing import Passing
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Problem, Uplink, problem
from starloom.orchestrator.planner.rounds import simulate
from starloom.orchestrator.planner.steady import pace
from starloom.orchestrator.planner.uplinks import shared, timed


def passes(over: Passing, given: list[tuple[float, tuple[int, int], float]]) -> list[float]:
    """When each of the values has passed that are put on links, with so many bytes, at so many seconds."""
    left = sorted(enumerate(given), key=lambda each: each[1][0])
    found, now, following = [0.0] * len(given), 0.0, np.inf
    while left or following < np.inf:
        now = min(following, left[0][1][0] if left else np.inf)
        for number, _ in over.ended(now):
            found[number] = now
        while left and left[0][1][0] <= now:
            number, (_, pair, size) = left.pop(0)
            over.put(now, pair, (number, 0), size)
        following = over.shared(now)
    return found


def test_rounds_far_apart_take_what_the_plan_with_contention_says() -> None:
    what, made = sent(DSL)
    told = simulate(what, made, pace(what, 1_000.0, deviation=0.0), rounds=10)
    assert told.quantile(0.95) == pytest.approx(timed(what, made).makespan) == pytest.approx(42.0)


def test_rounds_that_overlap_wait_for_each_other_at_an_uplink() -> None:
    """A round keeps the line busy for 40 s: each 50 s they are apart but for their runs' deviation, each 30 s they pile up."""
    what, made = sent(DSL)
    loose = what._replace(uplinks=())
    for every, grows in ((50.0, False), (30.0, True)):
        often = pace(what, every, deviation=0.5)
        told, free = simulate(what, made, often), simulate(loose, made, often)
        assert (told.growth > 0.1) == grows
        assert free.growth < 0.1
        assert free.quantile(0.95) < 30.0 < 41.0 < told.quantile(0.95)


def test_a_link_with_more_that_wait_has_more_of_an_uplink_and_sends_them_in_turn() -> None:
    what, made = sent(DSL)
    # Of 5 bytes a second two thirds for the first link; with one left on each a half; and all for what is left.
    ends = passes(Passing(what, made.place), [(0.0, (0, 2), 20.0), (0.0, (0, 2), 20.0), (0.0, (1, 2), 20.0)])
    assert ends == pytest.approx([6.0, 12.0, 10.0])
    # What comes at 2 s finds 10 of 20 bytes gone.
    assert passes(Passing(what, made.place), [(0.0, (0, 2), 20.0), (2.0, (1, 2), 20.0)]) == pytest.approx([6.0, 8.0])


def test_a_slow_link_leaves_the_rest_and_a_radio_carries_both_ways() -> None:
    what, made = sent(Uplink("wide", (0, 1), 60.0, 60.0))
    # Each link has 50 bytes a second of its own.
    assert passes(Passing(what, made.place), [(0.0, (0, 2), 100.0)]) == pytest.approx([2.0])
    seconds = [[1.0, np.inf, np.inf], [np.inf, 1.0, np.inf], [np.inf, np.inf, 1.0]]
    free = problem("abc", ROBOTS, seconds, [(0, 1, 100.0), (1, 2, 100.0)], seconds_per_byte=0.02)
    radio = shared(free, (WIFI,))
    place = plan(radio, Budget(1)).place
    assert passes(Passing(radio, place), [(0.0, (0, 1), 100.0)]) == pytest.approx([20.0])
    # The one value takes the radio twice, so for the same rate it takes two of its three shares.
    assert passes(Passing(radio, place), [(0.0, (0, 1), 10.0), (0.0, (1, 2), 10.0)]) == pytest.approx([3.0, 3.0])


def test_uplinks_that_are_wide_change_nothing() -> None:
    what, made = sent(Uplink("wide", (0, 1), 1e9, 1e9))
    often = pace(what, 3.0, deviation=0.3)
    told, free = simulate(what, made, often), simulate(what._replace(uplinks=()), made, often)
    assert np.allclose(told.seconds, free.seconds)
    assert np.allclose(told.start, free.start)


def plainly(what: Problem, given: list[tuple[float, tuple[int, int], float]]) -> list[float]:
    """The same in plain loops: rates are raised together, each link's by how many values it has, until its own link or a way is full."""
    ways = [(uplink, outward) for uplink in what.uplinks for outward in ((True,) if uplink.half else (True, False))]
    room = [uplink.up if outward else uplink.down for uplink, outward in ways]
    times = {pair: [check.passes(uplink, *pair, outward) for uplink, outward in ways] for _, pair, _ in given}
    own = {pair: 1 / float(what.arrays.seconds_per_byte[pair]) for pair in times}
    order = sorted(range(len(given)), key=lambda each: given[each][0])
    left, ends, now = [size for *_, size in given], [0.0] * len(given), 0.0
    while any(left):
        waits = {pair: [i for i in order if given[i][1] == pair and given[i][0] <= now and left[i]] for pair in times}
        waits = {pair: those for pair, those in waits.items() if those}
        speed, free = dict.fromkeys(waits, 0.0), set(waits)
        while free:
            used = [sum(times[pair][way] * speed[pair] for pair in waits) for way in range(len(ways))]
            grows = [sum(times[pair][way] * len(waits[pair]) for pair in free) for way in range(len(ways))]
            steps = [(room[way] - used[way]) / grows[way] for way in range(len(ways)) if grows[way]]
            step = max(0.0, min([*steps, *((own[pair] - speed[pair]) / len(waits[pair]) for pair in free)]))
            for pair in free:
                speed[pair] += step * len(waits[pair])
            full = [
                way for way in range(len(ways)) if grows[way] and used[way] + step * grows[way] > room[way] * (1 - 1e-9)
            ]
            free -= {
                pair for pair in free if speed[pair] > own[pair] * (1 - 1e-9) or any(times[pair][way] for way in full)
            }
        moments = [now + left[those[0]] / speed[pair] for pair, those in waits.items()]
        after = min([*moments, *(at for at, *_ in given if at > now)])
        for pair, those in waits.items():
            left[those[0]] -= speed[pair] * (after - now)
            if left[those[0]] <= 1e-9:
                left[those[0]], ends[those[0]] = 0.0, after
        now = after
    return ends


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([(0, 1), (0, 3), (1, 3), (2, 3), (1, 2)]), st.integers(1, 9))
    ),
    st.integers(0, 1_000),
)
def test_values_pass_when_a_plain_simulation_has_them(
    values: list[tuple[int, tuple[int, int], int]], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    rates = draw.uniform(0.5, 4.0, 6).tolist()
    uplinks = (
        Uplink("a", (0, 1), *rates[:2]),
        Uplink("b", (0, 1, 2), *rates[2:4]),
        Uplink("c", (0, 2), rates[4], rates[4], True),
    )
    free = problem(
        "abcd",
        [Place(f"n{node}") for node in range(4)],
        1.0,
        [(0, 1, 1.0), (0, 3, 1.0), (1, 3, 1.0), (2, 3, 1.0), (1, 2, 1.0)],
    )
    what = shared(
        free._replace(arrays=free.arrays._replace(seconds_per_byte=1 / draw.uniform(0.5, 4.0, (4, 4)))), uplinks
    )
    given = [(float(at), pair, float(size)) for at, pair, size in values]
    place = np.arange(4, dtype=np.int32)
    assert passes(Passing(what, place), given) == pytest.approx(plainly(what, given), rel=1e-6)
