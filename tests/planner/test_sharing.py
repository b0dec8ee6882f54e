"""Plans played through where all places share one machine's cores."""

import numpy as np
import pytest

from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.planning import plan
from starloom.orchestrator.planner.problem import Floats, Place, Plan, Problem, problem
from starloom.orchestrator.planner.sharing import Shared


def planned(made: Problem, *places: int) -> Plan:
    """The stages at these places, in their order, each as soon as its upstreams have ended."""
    seconds = made.arrays.seconds.copy()
    seconds[~np.eye(len(made.places), dtype=bool)[list(places)]] = np.inf
    return plan(made._replace(arrays=made.arrays._replace(seconds=seconds)))


def apart(*seconds: float) -> Problem:
    """Stages without dependencies, and a place for each."""
    names = [str(number) for number in range(len(seconds))]
    return problem(names, [Place(name) for name in names], np.tile(np.array(seconds)[:, None], len(seconds)))


def replay(made: Problem, before: Plan, cores: float, processor: Floats) -> Plan:
    """Played through; `processor` [n], on whichever place."""
    return Shared(made, cores, np.tile(processor[:, None], len(made.places))).replay(before)


def test_cores_that_suffice_change_nothing() -> None:
    made = apart(1.0, 2.0)
    before = planned(made, 0, 1)
    after = replay(made, before, 2.0, np.array([1.0, 2.0]))
    assert after.finish.tolist() == before.finish.tolist() == [1.0, 2.0]


def test_more_stages_than_cores_get_an_equal_share_each() -> None:
    made = apart(1.0, 1.0, 2.0)
    after = replay(made, planned(made, 0, 1, 2), 2.0, np.array([1.0, 1.0, 2.0]))
    # Three at two thirds of a core until 1.5; then the last has a core to itself for the second that is left.
    assert after.finish.tolist() == pytest.approx([1.5, 1.5, 2.5])
    assert after.makespan == pytest.approx(2.5)


def test_what_waits_wants_no_core() -> None:
    made = apart(1.0, 1.0, 1.0)
    after = replay(made, planned(made, 0, 1, 2), 1.0, np.array([0.0, 0.25, 0.25]))
    assert after.finish.tolist() == pytest.approx([1.0, 1.25, 1.25])


def test_a_place_runs_as_many_as_it_has_slots_in_the_order_of_the_plan() -> None:
    made = problem(["first", "second", "third"], [Place("one", slots=2)], np.ones((3, 1)))
    after = replay(made, planned(made, 0, 0, 0), 2.0, np.ones(3))
    assert sorted(after.start.tolist()) == pytest.approx([0.0, 0.0, 1.0])
    assert after.makespan == pytest.approx(2.0)


def test_inputs_come_over_links_and_what_takes_no_time_takes_no_slot() -> None:
    made = problem(
        ["make", "read", "end"],
        [Place("a"), Place("b")],
        [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]],
        [(0, 1, 10.0), (1, 2, 0.0)],
        latency=0.5,
        seconds_per_byte=0.1,
    )
    after = replay(made, planned(made, 0, 1, 1), 1.0, np.array([1.0, 1.0, 0.0]))
    assert after.start.tolist() == pytest.approx([0.0, 2.5, 3.5])
    assert after.finish.tolist() == pytest.approx([1.0, 3.5, 3.5])


def test_loading_wants_a_core_too() -> None:
    made = problem(
        ["load", "work"], [Place("a"), Place("b")], np.ones((2, 2)), models=["m"], model=[0, -1], load_seconds=1.0
    )
    after = replay(made, planned(made, 0, 1), 1.0, np.array([1.0, 1.0]))
    assert after.finish.tolist() == pytest.approx([3.0, 2.0])


def test_a_better_plan_lets_what_can_wait_wait_for_a_slot_beside_the_longest_path() -> None:
    # Two of a second that nobody waits for, and one of two seconds before another: by itself the plan spreads them.
    made = problem(
        ["long", "last", "a", "b"],
        [Place("x", slots=2), Place("y", slots=2)],
        np.outer([2, 1, 1, 1], [1, 1]),
        [(0, 1, 0.0)],
    )
    processor = np.tile(np.array([2.0, 1.0, 1.0, 1.0])[:, None], 2)
    shared = Shared(made, 2.0, processor)
    spread = planned(made, 0, 0, 1, 1)
    assert shared.replay(spread).makespan == pytest.approx(3.5)
    better = shared.better(spread)
    assert shared.replay(better).makespan == pytest.approx(3.0)
    assert faults(made, better) == []


def test_a_better_plan_stays_where_stages_may_be_and_their_models_are() -> None:
    made = problem(
        ["seen", "said", "free"],
        [Place("x"), Place("y")],
        [[1.0, np.inf], [1.0, 0.5], [1.0, 1.0]],
        models=["m"],
        model=[-1, 0, -1],
        load_seconds=1.0,
        resident=[[True, False]],
    )
    before = planned(made, 0, 0, 0)
    better = Shared(made, 2.0, np.ones((3, 2))).better(before)
    assert better.place.tolist() == [0, 0, 1]
    assert Shared(made, 2.0, np.ones((3, 2))).better(better) is better
