"""What stands in the way of a plan: enough of it that there is none, and nothing that could be left out."""

import functools
from typing import Any

import numpy as np
import pytest

from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.placing.cases import ANY, Case, Shape, feasible, infeasible
from starloom.orchestrator.bench.placing.judging import BUDGET, amiss, only, possible
from starloom.orchestrator.planner import planning
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.explain import Conflict, explain, settle
from starloom.orchestrator.planner.planning import plan
from starloom.orchestrator.planner.problem import Place, Plan, problem

SMALL = Shape(stages=(2, 8), nodes=(2, 4))
PLACES = [Place("phone"), Place("edge"), Place("cloud")]
PHONE, EDGE, CLOUD = range(3)


def assert_smallest(case: Case, conflict: Conflict | None) -> None:
    assert conflict is not None
    assert amiss(case.problem, conflict) == ""


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_every_contradiction_is_explained_by_no_more_than_it_takes(first: int) -> None:
    for seed in range(first, first + 50):
        case = infeasible(seed, SMALL)
        assert_smallest(case, explain(case.problem, case.reasons))


def test_what_can_be_planned_has_no_conflict() -> None:
    for seed in range(60):
        case = feasible(seed, SMALL)
        assert explain(case.problem, case.reasons) is None, seed
    assert explain(problem([], PLACES, np.zeros((0, 3)))) is None


def explained(reasons: Any = (), deadline: float | None = None, **more: Any) -> tuple[str, tuple[str, ...]]:
    given: dict[str, Any] = {"stages": ["see", "tell"], "places": PLACES, "seconds": 2.0} | more
    seconds = np.broadcast_to(np.asarray(given["seconds"], dtype=float), (len(given["stages"]), 3)).copy()
    for stage, said in enumerate(reasons):
        for places in said.values():
            seconds[stage, list(places)] = np.inf
    conflict = explain(problem(**(given | {"seconds": seconds})), reasons, deadline)
    assert conflict is not None
    return str(conflict), conflict.lifts


def test_reasons_that_leave_no_place_are_told() -> None:
    text, lifts = explained([{"is private": [CLOUD], "has no accelerator": [PHONE, EDGE], "is slow": [PHONE]}, {}])
    assert text == "see may not have cloud: is private; see may not have phone, edge: has no accelerator"
    assert lifts == ("see on cloud", "see on edge")


def test_a_place_that_nothing_is_said_of_is_told_too() -> None:
    text, lifts = explained([{"is private": [CLOUD]}], seconds=[[np.inf, np.inf, 1.0], [1.0] * 3])
    assert text == "see may not have cloud: is private; see can run only on cloud"
    assert lifts[0] == "see on cloud"
    text, _ = explained(seconds=[[np.inf] * 3, [1.0] * 3])
    assert text == "see can run nowhere"
    text, _ = explained(available=[0.0, 0.0, np.inf], seconds=[[np.inf, np.inf, 1.0], [1.0] * 3])
    assert text == "see can run nowhere"


def test_a_place_that_runs_nothing_is_nobody_s_wish() -> None:
    text, lifts = explained([{"pinned": [EDGE]}] * 2, apart=0, seconds=[[1.0, 1.0, np.inf]] * 2)
    assert text == "see may not have edge: pinned; tell may not have edge: pinned; see, tell stand on different nodes"
    assert lifts[:2] == ("see on edge", "tell on edge")


def test_where_the_job_s_inputs_lie_is_nobody_s_wish_either() -> None:
    # The last place is the job store, as of a fleet where every stage may stand on every node.
    store = [[1.0, 1.0, np.inf], [1.0, 1.0, np.inf], [np.inf, np.inf, 0.0]]
    given = {"stages": ["see", "tell", "input photo"], "seconds": store, "dependencies": [(2, 0, 1.0), (0, 1, 1.0)]}
    text, lifts = explained([{}, {}], 2.2, **given, seconds_per_byte=np.full((3, 3), 0.25))
    assert text == "all ends within 2.2 s"
    assert lifts == ("2.25 s instead of 2.2 s",)


def test_groups_that_cannot_be_are_told() -> None:
    text, lifts = explained([{"pinned": [EDGE, CLOUD]}, {"is private": [PHONE]}], together=0)
    assert "see, tell share a node" in text
    assert "without this: see, tell share a node" in lifts
    assert "tell on phone" in lifts
    text, _ = explained([{"pinned": [EDGE, CLOUD]}] * 2, apart=0)
    assert "see, tell stand on different nodes" in text


def test_memory_that_is_short_is_told_with_how_much_would_do() -> None:
    text, lifts = explained([{"pinned": [EDGE, CLOUD]}], working_bytes=[7, 1], memory_bytes=[5, 10, 10])
    assert text == "see may not have edge, cloud: pinned; phone has 5 bytes of memory"
    assert lifts[1] == "phone with 7 bytes of memory"


def test_memory_counts_models_that_are_kept() -> None:
    more: dict[str, Any] = {"models": ["m", "o"], "model": [0, 1], "weight_bytes": [4, 5], "working_bytes": [1, 2]}
    text, lifts = explained([{"pinned": [EDGE, CLOUD]}] * 2, **more, memory_bytes=[9, 20, 20])
    assert "phone has 9 bytes of memory" in text
    # The greater one runs first, before the other's model is there: 5 + 2, then 5 + 4 + 1.
    assert "phone with 10 bytes of memory" in lifts


def test_an_order_that_memory_does_not_allow_is_told() -> None:
    """The big one may run before the other's model is there; not after, which is what it has to do."""
    more: dict[str, Any] = {"models": ["m"], "model": [0, -1], "weight_bytes": [4], "working_bytes": [1, 8]}
    pinned = [{"pinned": [EDGE, CLOUD]}] * 2
    text, lifts = explained(pinned, **more, memory_bytes=[10, 20, 20], dependencies=[(0, 1, 1.0)])
    assert "phone has 10 bytes of memory" in text
    assert "phone with 12 bytes of memory" in lifts
    free = problem(["see", "tell"], PLACES, [[2.0, np.inf, np.inf]] * 2, **more, memory_bytes=[10, 20, 20])
    assert explain(free, pinned) is None


def test_stages_that_run_and_cannot_are_told() -> None:
    text, lifts = explained([{"it runs": [EDGE, CLOUD]}] * 2, started=True)
    assert "phone runs one stage at a time" in text
    assert "phone with 2 slots" in lifts
    text, _ = explained(started=[False, True], dependencies=[(0, 1, 1.0)])
    assert text == "tell runs already, and has its input from see"


def test_nodes_without_a_link_are_told() -> None:
    latency = np.zeros((3, 3))
    latency[PHONE, CLOUD] = np.inf
    pins = [{"pinned": [EDGE, CLOUD]}, {"asks for a GPU": [PHONE, EDGE]}]
    text, lifts = explained(pins, latency=latency, dependencies=[(0, 1, 1.0)])
    assert "tell reads what see gives, and not all nodes are linked" in text
    assert any(lift in lifts for lift in ("see on edge", "see on cloud"))


def test_a_deadline_that_is_too_short_is_told_with_what_would_do() -> None:
    text, lifts = explained([{"pinned": [EDGE, CLOUD]}] * 2, deadline=3.0)
    assert "all ends within 3 s" in text
    assert "4 s instead of 3 s" in lifts
    what = problem(["see", "tell"], PLACES, [[2.0, np.inf, np.inf]] * 2)
    assert explain(what, deadline=4.0) is None


@pytest.mark.parametrize(("seed", "kept"), [(1541, True), (5931, True), (3121, False)])
def test_a_deadline_that_literals_do_not_settle_in_time_is_settled_all_the_same(seed: int, kept: bool) -> None:
    case = feasible(seed, ANY)
    first = plan(case.problem, BUDGET, seed, reasons=case.reasons)
    deadline = first.makespan * float(np.random.default_rng([seed, 2]).uniform(0.3, 1.2))
    found = settle(case.problem, case.reasons, deadline, effort=0.1)
    if kept:
        assert isinstance(found, Plan)
        assert faults(case.problem, found) == []
        assert found.makespan <= deadline < first.makespan
    else:
        assert isinstance(found, Conflict)
        assert amiss(case.problem, found, deadline) == ""


def test_what_there_is_no_time_for_is_told_as_untried_and_is_a_conflict_all_the_same() -> None:
    some = 0
    for seed in range(10):
        case = infeasible(seed, SMALL)
        for whole in (0.0, 0.02):
            found = explain(case.problem, case.reasons, whole=whole)
            assert found is not None
            assert possible(only(case.problem, found.requirements)) is False
            if not whole:
                assert (found.untried, found.lifts) == (len(found.requirements), ())
            elif not found.untried:
                assert_smallest(case, found)
                some += 1
    assert some
    what = problem(["see", "tell"], PLACES, [[2.0, np.inf, np.inf]] * 2)
    cut = explain(what, deadline=3.0, whole=0.0)
    assert cut is not None
    assert possible(only(what, cut.requirements), 3.0) is False
    assert f"{cut.untried} requirements were not tried" in str(cut.told()[-1])
    smallest = explain(what, deadline=3.0)
    assert smallest is not None
    assert "not smallest" not in [each.place for each in smallest.told()]


def test_who_asks_for_a_plan_is_told_of_what_was_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "settle", functools.partial(settle, whole=0.0))
    with pytest.raises(Infeasible) as caught:
        plan(problem(["a", "b", "c", "d"], [Place("x"), Place("y")], 1.0, apart=[0, 0, 0, -1]), BUDGET)
    assert caught.value.problems[-1].place == "not smallest"


def test_where_more_than_one_conflict_is_left_no_lift_is_promised() -> None:
    _, lifts = explained([{"a": [PHONE], "b": [EDGE, CLOUD]}] * 2)
    assert lifts == ()


def test_the_same_question_has_the_same_answer() -> None:
    for seed in range(10):
        case = infeasible(seed, SMALL)
        assert explain(case.problem, case.reasons) == explain(case.problem, case.reasons)
