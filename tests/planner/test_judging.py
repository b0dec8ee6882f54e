"""Random problems with all kinds of requirements: every plan holds, every contradiction is explained, and judges notice."""

import pytest

from starloom.orchestrator.bench.placing import judging, periods
from starloom.orchestrator.bench.placing.judging import EXPLAINED, PLANNED, amiss, judged, many, possible
from starloom.orchestrator.planner.explain import Conflict, explain
from starloom.orchestrator.planner.pacing import TooMuch
from starloom.orchestrator.planner.planning import Budget
from starloom.orchestrator.planner.planning import plan as find
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem
from starloom.orchestrator.planner.requirements import requirements
from starloom.orchestrator.planner.steady import pace


def _crowd() -> Problem:
    """Three stages apart on two nodes, and one that stands where it likes."""
    return problem(["a", "b", "c", "d"], [Place("x"), Place("y")], 1.0, apart=[0, 0, 0, -1])


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_cases_are_planned_or_explained(first: int) -> None:
    told = many(20, first, lambda _: None)
    assert told["wrong"] == []
    assert told[PLANNED] + told[EXPLAINED] == told["cases"] == 20
    assert told[PLANNED] >= 10
    assert told[EXPLAINED] >= 1


def test_periods_of_drawn_jobs_are_held_or_explained() -> None:
    """The 38th has a stage alone in variants, for which the period of its first was taken for a bound."""
    told = many(12, 28, lambda _: None, periods.judged)
    assert told["wrong"] == []
    assert told[PLANNED] + told[EXPLAINED] == told["cases"] == 12
    assert min(told[PLANNED], told[EXPLAINED]) >= 2


def test_what_models_leave_of_memory_is_looked_at_where_sums_do_not_show_that_none_holds_a_period() -> None:
    assert periods.judged(74) == (EXPLAINED, 0, "")
    # Of these, sums tell stages that take too much, and do not know that others do not fit without one of them.
    assert periods.judged(153) == (EXPLAINED, 1, "")


def test_stages_that_fit_a_period_and_more_than_it_takes_are_noticed() -> None:
    asked = problem(["a", "b", "c"], [Place("x")], 2.0)
    often = pace(asked, 5.0)
    assert periods.holds(asked, often) is False
    assert periods.amiss(asked, often, TooMuch((0, 1), True)) == "they are not shown to be too much"
    assert periods.amiss(asked, often, TooMuch((0, 1, 2), True)) == ""
    assert periods.amiss(asked, often._replace(every=4.0), TooMuch((0, 1, 2), True)) == "they are too much without a"


def test_what_two_reasons_rule_out_is_explained_by_both() -> None:
    assert judged(105) == (EXPLAINED, 2, "")


def test_a_case_that_is_bettered_by_single_ticks_comes_to_an_end() -> None:
    """CP-SAT took each tick of millions for a better plan, and looked at no limit meanwhile."""
    assert judged(624) == (PLANNED, 0, "")


def test_a_conflict_of_too_many_or_too_few_is_noticed() -> None:
    asked = _crowd()
    found = explain(asked)
    assert found is not None
    assert amiss(asked, found) == ""
    slots = next(each for each in requirements(asked, (), None) if each.kind == "slots")
    assert f"conflicts without '{slots.words}'" in amiss(asked, Conflict((*found.requirements, slots), ()))
    assert "is not shown to conflict" in amiss(asked, Conflict((), ()))


def test_what_is_possible_within_a_deadline_is_known() -> None:
    asked = problem(["a", "b"], [Place("x")], 2.0)
    assert [possible(asked, deadline) for deadline in (None, 4.0, 3.9)] == [True, True, False]
    assert possible(_crowd()) is False


def test_a_plan_that_does_not_hold_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(asked: Problem, budget: Budget, seed: int = 0, **more: object) -> Plan:
        return find(asked, budget, seed)._replace(makespan=-1.0)

    monkeypatch.setattr(judging, "plan", spoilt)
    verdict = judged(2)
    assert verdict.kind == judging.VIOLATION
    assert "the makespan is -1.0" in verdict.wrong
