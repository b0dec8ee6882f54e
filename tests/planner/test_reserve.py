"""By when a plan's stages have ended, though runs take longer than predicted."""

import math

import numpy as np
import pytest

from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Problem, problem
from starloom.orchestrator.planner.reserve import BOUND, latest


def late(made: Problem, share: float = 0.2) -> tuple[float, float]:
    """When a plan has it end, and by what that may be late where runs are off by a share."""
    found = plan(made, Budget(iterations=20))
    return found.makespan, latest(made, found, share * made.arrays.seconds) - found.makespan


def test_a_chain_is_late_by_the_root_of_the_sum_of_squares() -> None:
    chain = problem(list("abcd"), [Place("x")], 1.0, [(0, 1, 0.0), (1, 2, 0.0), (2, 3, 0.0)])
    assert late(chain) == pytest.approx((4.0, BOUND * 0.2 * 2.0))
    assert late(chain, 0.0)[1] == pytest.approx(0.0)
    assert late(problem(["a"], [Place("x")], 1.0)) == pytest.approx((1.0, BOUND * 0.2))


def test_what_waits_for_a_slot_is_late_with_what_had_it() -> None:
    alone = problem(list("abcd"), [Place("x", slots=4)], 1.0)
    assert late(alone)[1] == pytest.approx(BOUND * 0.2)
    in_turn = problem(list("abcd"), [Place("x", slots=2)], 1.0)
    assert late(in_turn)[1] == pytest.approx(BOUND * 0.2 * math.sqrt(2))


def test_of_what_is_waited_for_that_counts_which_is_done_last() -> None:
    """A short run is off by much, but the long one beside it is what the last stage waits for."""
    nodes = [Place("x"), Place("y")]
    made = problem(list("abc"), nodes, [[1.0, np.inf], [np.inf, 9.0], [np.inf, 1.0]], [(0, 2, 0.0), (1, 2, 0.0)])
    found = plan(made, Budget(iterations=20))
    off = np.array([[0.5, 0.0], [0.0, 0.3], [0.0, 0.4]])
    assert latest(made, found, off) == pytest.approx(10.0 + BOUND * 0.5)
    # Unless its value is on the way for longer.
    slow = made._replace(arrays=made.arrays._replace(latency=np.array([[0.0, 12.0], [0.0, 0.0]])))
    found = plan(slow, Budget(iterations=20))
    assert found.makespan == pytest.approx(14.0)
    assert latest(slow, found, off) == pytest.approx(14.0 + BOUND * math.hypot(0.5, 0.4))


def test_what_is_late_before_the_last_stage_counts_where_it_is_the_latest() -> None:
    made = problem(list("ab"), [Place("x"), Place("y")], [[4.9, np.inf], [np.inf, 5.0]])
    found = plan(made, Budget(iterations=20))
    assert latest(made, found, np.array([[1.0, 0.0], [0.0, 0.1]])) == pytest.approx(4.9 + BOUND)


def test_nothing_is_late_where_nothing_is_left() -> None:
    nothing = problem([], [Place("x")], np.zeros((0, 1)))
    found = plan(problem(["a"], [Place("x")], 1.0), Budget(iterations=0))
    empty = found._replace(
        place=found.place[:0], start=found.start[:0], finish=found.finish[:0], loads=found.loads[:0], makespan=0.0
    )
    assert latest(nothing, empty, np.zeros((0, 1))) == 0.0
