"""Random problems with all kinds of requirements, planned and judged: plans by the checker, conflicts by what they say.

A conflict is right if what it names cannot be kept, which CP-SAT shows, and all of it but any one requirement can, which
a plan shows that the checker passes. A problem is explained if it can be planned once all that its conflicts name is
dropped: it may have more than one.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, NamedTuple

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.placing.cases import Case, Shape, feasible, infeasible
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.exact import Search, exact, fitted
from starloom.orchestrator.planner.explain import Conflict, explain, settle
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Plan, Problem
from starloom.orchestrator.planner.requirements import Reasons, Requirement, requirements

CASES: Final = 10_000
BUDGET: Final = Budget(iterations=100)
USUAL: Final = Shape(variants=0.3)
MIDDLE: Final = Shape(stages=(16, 60), nodes=(4, 12), variants=0.3)
SMALL: Final = Shape(stages=(2, 10), nodes=(2, 5), variants=0.3)

_KINDS: Final = 10
_IMPOSSIBLE: Final = (0, 5)
_WITH_DEADLINE: Final = 1
_LARGER: Final = 2
"""Which of each _KINDS cases are what."""

_DEADLINES: Final = (0.3, 1.2)
"""As shares of the makespan that was found first."""

_SETTLE_EFFORT: Final = 4.0
_SHOW_EFFORTS: Final = (4.0, 60.0)
"""CP-SAT's deterministic time for each thing to be shown; more where the first shows neither."""

_CONFLICTS_MAX: Final = 50
_ROUNDING: Final = 1e-4

PLANNED, EXPLAINED, UNEXPLAINED, VIOLATION = "planned", "explained", "unexplained", "violation"


class Verdict(NamedTuple):
    """What became of a case, how many conflicts it had, and what is wrong with the answer; nothing if that is right."""

    kind: str
    conflicts: int = 0
    wrong: str = ""


def many(
    count: int, first: int, note: Callable[[str], None], judge: Callable[[int], Verdict] | None = None
) -> dict[str, Any]:
    """Judges so many cases from an index on: how many of each kind, conflicts, and what was wrong, with its index.

    `judge`: of one case, `judged` unless given.
    """
    kinds: Counter[str] = Counter({PLANNED: 0, EXPLAINED: 0, UNEXPLAINED: 0, VIOLATION: 0})
    conflicts, wrong = 0, []
    for index in range(first, first + count):
        verdict = (judge or judged)(index)
        kinds[verdict.kind] += 1
        conflicts += verdict.conflicts
        if verdict.wrong:
            wrong.append(f"{index}: {verdict.wrong}")
            note(wrong[-1])
    return {"cases": count, **kinds, "conflicts": conflicts, "wrong": wrong}


def judged(index: int) -> Verdict:
    """The verdict on one case. Of ten two have contradictions, one has a deadline, and one is larger."""
    kind = index % _KINDS
    if kind in _IMPOSSIBLE:
        return _verdict(infeasible(index, SMALL), index, None)
    case = feasible(index, MIDDLE if kind == _LARGER else USUAL)
    share = float(np.random.default_rng([index, 2]).uniform(*_DEADLINES)) if kind == _WITH_DEADLINE else None
    verdict = _verdict(case, index, share)
    # There is a plan: all stages one after the other at the places that the case was drawn around.
    if share is None and verdict.kind != PLANNED:
        return verdict._replace(kind=VIOLATION, wrong=f"there is a plan; {verdict.wrong or 'it was not found'}")
    return verdict


def _verdict(case: Case, seed: int, share: float | None) -> Verdict:
    try:
        found = plan(case.problem, BUDGET, seed, reasons=case.reasons)
    except Infeasible:
        return _explained(case.problem, case.reasons, None)
    if wrong := faults(case.problem, found):
        return Verdict(VIOLATION, 0, "; ".join(wrong))
    if share is None or found.makespan <= (deadline := share * found.makespan):
        return Verdict(PLANNED)
    sooner = settle(case.problem, case.reasons, deadline, effort=_SETTLE_EFFORT)
    if not isinstance(sooner, Plan):
        return _explained(case.problem, case.reasons, deadline)
    if wrong := faults(case.problem, sooner):
        return Verdict(VIOLATION, 0, "; ".join(wrong))
    if sooner.makespan > deadline * (1 + _ROUNDING):
        return Verdict(VIOLATION, 0, f"a plan of {sooner.makespan} s was given for a deadline of {deadline} s")
    return Verdict(PLANNED)


def _explained(problem: Problem, reasons: Reasons, deadline: float | None) -> Verdict:
    """Drops one conflict after the other until there is a plan."""
    for count in range(_CONFLICTS_MAX):
        if count and possible(problem, deadline):
            return Verdict(EXPLAINED, count)
        conflict = explain(problem, reasons, deadline, effort=_SETTLE_EFFORT, whole=math.inf)
        if conflict is None:
            return Verdict(UNEXPLAINED, count, "no conflict was shown")
        if wrong := amiss(problem, conflict, deadline):
            return Verdict(VIOLATION, count, wrong)
        asked = requirements(problem, reasons, deadline)
        problem = only(problem, [each for each in asked if each not in conflict.requirements])
        reasons = _unsaid(reasons, conflict)
        if any(each.kind == "deadline" for each in conflict.requirements):
            deadline = None
    return Verdict(UNEXPLAINED, _CONFLICTS_MAX, "there is still no plan")


def _unsaid(reasons: Reasons, conflict: Conflict) -> Reasons:
    """What is said of places without what a conflict names: other reasons may rule out the same places."""
    words = {(each.which, each.words) for each in conflict.requirements if each.kind == "places"}
    return [
        {
            text: places
            for text, places in said.items()
            if not any(i == stage and w.endswith(f": {text}") for i, w in words)
        }
        for stage, said in enumerate(reasons)
    ]


def amiss(problem: Problem, conflict: Conflict, deadline: float | None = None) -> str:
    """What is wrong with a conflict, in words; empty if it is one and no requirement of it can be left out."""
    named = conflict.requirements
    if possible(only(problem, named), _within(named, deadline)) is not False:
        return f"is not shown to conflict: {conflict}"
    for left_out in named:
        rest = [each for each in named if each is not left_out]
        if not possible(only(problem, rest), _within(rest, deadline)):
            return f"conflicts without '{left_out.words}': {conflict}"
    return ""


def possible(problem: Problem, deadline: float | None = None) -> bool | None:
    """Whether there is a plan, by a plan or by proof, that ends within the deadline; None where neither was found."""
    hint = None
    with suppress(Infeasible):
        hint = plan(problem, BUDGET)
    if hint is not None and not faults(problem, hint) and (deadline is None or hint.makespan <= deadline):
        return True
    return next(
        (shown for effort in _SHOW_EFFORTS if (shown := _shown(problem, hint, deadline, effort)) is not None), None
    )


def _shown(problem: Problem, hint: Plan | None, deadline: float | None, effort: float) -> bool | None:
    if deadline is None:
        proof = exact(problem, hint, effort=effort)
        return True if proof.plan is not None else (False if proof.proven else None)
    ticks = fitted(problem)
    if ticks is None:
        return False
    # Far sooner shown than the least makespan.
    proof = Search(ticks, None, ticks.within(deadline)).run(effort, math.inf, 0)
    if proof.plan is not None and proof.plan.makespan <= deadline * (1 + _ROUNDING):
        return True
    return False if proof.proven and proof.plan is None else None


def only(what: Problem, kept: Collection[Requirement]) -> Problem:
    """The problem with no requirements but these, and nothing to pay."""
    arrays = what.arrays
    has = {(requirement.kind, requirement.which) for requirement in kept}
    seconds = arrays.seconds.copy()
    least = np.where(np.isfinite(seconds), seconds, np.inf).min(axis=1, keepdims=True)
    has_it = arrays.variant[None, :] < arrays.variants[:, None]
    seconds = np.where(np.isfinite(seconds) | ~has_it, seconds, np.where(np.isfinite(least), least, 1.0))
    for requirement in kept:
        if requirement.kind == "places":
            seconds[requirement.which, list(requirement.places)] = np.inf
    unlinked = ~np.isfinite(arrays.latency).all() | arrays.started[arrays.downstream]
    edges = ~unlinked | np.array([("link", edge) in has for edge in range(len(arrays.upstream))], dtype=bool)
    return what._replace(
        arrays=arrays._replace(
            seconds=seconds,
            penalty=np.zeros_like(arrays.penalty),
            byte_penalty=np.zeros_like(arrays.byte_penalty),
            slots=_where(has, "slots", arrays.slots, len(seconds))[arrays.shares],
            memory_bytes=_where(has, "memory", arrays.memory_bytes, np.inf),
            store=_where(has, "store", arrays.store, np.inf),
            together=_groups(has, "together", arrays.together),
            apart=_groups(has, "apart", arrays.apart),
            upstream=arrays.upstream[edges],
            downstream=arrays.downstream[edges],
            size_bytes=arrays.size_bytes[edges],
        )
    )


def _where(has: Collection[tuple[str, int]], kind: str, values: Any, otherwise: float) -> Any:
    kept = np.array([(kind, index) in has for index in range(len(values))], dtype=bool)
    return np.where(kept, values, otherwise).astype(values.dtype)


def _groups(has: Collection[tuple[str, int]], kind: str, groups: Any) -> Any:
    kept = np.array([(kind, group) in has for group in groups.tolist()], dtype=bool)
    return np.where(kept, groups, -1).astype(groups.dtype)


def _within(named: Collection[Requirement], deadline: float | None) -> float | None:
    return deadline if any(each.kind == "deadline" for each in named) else None
