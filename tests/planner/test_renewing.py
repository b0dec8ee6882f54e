"""What is left of a plan after a loss or a slow-down, and when a new plan is worth its moves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem
from starloom.orchestrator.planner.renewing import Event, remaining, renew

BUDGET = Budget(50)


def chain(**more: object) -> tuple[Problem, Plan]:
    """a (2 s), b (2 s), c (2 s) one after the other; a and b on edge-1, c on edge-2."""
    made = problem(
        ["a", "b", "c"],
        [Place("edge-1"), Place("edge-2"), Place("edge-3")],
        [[2, 4, 6], [2, 4, 6], [4, 2, 6]],
        [(0, 1, 0.0), (1, 2, 0.0)],
        **more,  # type: ignore[arg-type]
    )
    return made, plan(made, BUDGET)


def test_what_has_ended_stays_and_what_runs_goes_on() -> None:
    made, old = chain()
    assert old.place.tolist() == [0, 0, 1]
    left = remaining(made, old, Event(now=3.0))
    assert left.arrays.started.tolist() == [False, True, False]
    assert left.arrays.seconds[0].tolist() == [0.0, np.inf, np.inf]
    assert left.arrays.seconds[1].tolist() == [1.0, np.inf, np.inf]
    renewed = renew(made, old, Event(now=3.0), BUDGET)
    assert renewed.kept
    assert renewed.moved == ()
    assert renewed.plan.makespan == pytest.approx(old.makespan - 3.0)


def test_what_a_lost_node_held_is_computed_again_if_it_is_needed() -> None:
    made, old = chain()
    renewed = renew(made, old, Event(now=3.0, lost=frozenset({"edge-1"})), BUDGET)
    # a's output is gone with b's run: both begin again on the next best.
    assert renewed.plan.place.tolist() == [1, 1, 1]
    assert renewed.moved == ("a", "b")
    assert renewed.plan.makespan == pytest.approx(4 + 4 + 2)
    late = renew(made, old, Event(now=5.0, lost=frozenset({"edge-1"})), BUDGET)
    # c runs, and has its inputs.
    assert late.moved == ()
    assert late.plan.makespan == pytest.approx(1.0)


def test_a_slow_down_moves_what_has_not_started_if_it_is_worth_it() -> None:
    made, old = chain()
    slow = Event(now=3.0, slowed={"edge-2": 1.5})
    assert renew(made, old, slow, BUDGET).kept
    slow = Event(now=3.0, slowed={"edge-2": 5.0})
    renewed = renew(made, old, slow, BUDGET)
    assert renewed.moved == ("c",)
    assert renewed.plan.makespan == pytest.approx(1 + 4)
    dear = renew(made, old, slow, BUDGET, move_seconds=100.0)
    assert dear.kept
    assert renew(made, old, slow, BUDGET, least_share=0.9).kept


def test_models_that_were_loaded_need_no_load_but_where_the_node_is_lost() -> None:
    loading = {"models": ["m"], "model": [0, 0, -1], "load_seconds": [[1, 1, 1]], "weight_bytes": [0]}
    made, old = chain(**loading)
    assert old.loads.tolist() == [True, False, False]
    assert remaining(made, old, Event(now=3.5)).arrays.resident.tolist() == [[True, False, False]]
    lost = remaining(made, old, Event(now=3.5, lost=frozenset({"edge-1"})))
    assert not lost.arrays.resident.any()


def test_a_stage_without_a_place_is_infeasible() -> None:
    made, old = chain()
    with pytest.raises(Infeasible, match=r"stages\.c"):
        renew(made, old, Event(now=3.0, lost=frozenset({"edge-1", "edge-2", "edge-3"})), BUDGET)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_renewed_plan_is_valid_and_nothing_that_stands_moves(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(2, 12)), data.draw(st.integers(2, 4))
    seconds = data.draw(st.lists(st.integers(1, 9), min_size=n * m, max_size=n * m))
    arcs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=2 * n))
    made = problem(
        [f"s{i}" for i in range(n)],
        [Place(f"n{i}", slots=data.draw(st.integers(1, 2))) for i in range(m)],
        np.reshape(seconds, (n, m)),
        [(a, b, 1.0) for a, b in sorted(set(arcs)) if a < b],
        latency=0.5,
    )
    old = plan(made, BUDGET)
    now = data.draw(st.floats(0, 1)) * old.makespan
    lost = frozenset({"n0"}) if data.draw(st.booleans()) else frozenset()
    event = Event(now, lost, {"n1": data.draw(st.sampled_from([1.0, 3.0]))})
    renewed = renew(made, old, event, BUDGET)
    assert faults(renewed.problem, renewed.plan) == []
    stands = (renewed.problem.arrays.started) | (np.nanmin(renewed.problem.arrays.seconds, axis=1) == 0)
    assert (renewed.plan.place[stands] == old.place[stands]).all()
    if renewed.kept:
        assert (renewed.plan.place == old.place).all()
