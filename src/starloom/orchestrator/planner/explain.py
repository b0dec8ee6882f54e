"""Why there is no plan: requirements that cannot all be kept, none too many, and what would lift that."""

import math
from typing import Any, NamedTuple

import numpy as np
from ortools.sat.python import cp_model

from starloom.dag import limits
from starloom.dag.errors import Problem as Trouble
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.exact import Search, fitted, longest, read, solving
from starloom.orchestrator.planner.holding import hold
from starloom.orchestrator.planner.model import Model
from starloom.orchestrator.planner.problem import NO_MODEL, Plan, Problem, working
from starloom.orchestrator.planner.requirements import Reasons, Requirement, bare, keeping, requirements, shut, unlinked
from starloom.orchestrator.planner.ticks import Ticks, heads, tails, ticked
from starloom.orchestrator.planner.timing import retimed

EFFORT = 1.0
"""CP-SAT's deterministic time for each question that is put to it, about seconds."""

GLANCE = 0.1
"""The share of it after which what a deadline is in is asked firmly: of 26 stages behind literals it took 6 s, and firmly 0.2 s."""

QUESTION = 1e-4
"""What a question counts beside, for each stage and place: to set one up takes time too, of which CP-SAT knows nothing."""

IN_MODEL = ("memory", "store", "slots", "together", "apart")
"""The kinds of requirement that the model itself knows."""


class Conflict(NamedTuple):
    """`requirements`: any plan breaks one of them, and without any one of them there is a plan for the others.

    But for `untried` of them, of which there was no time to show that. `lifts`: for those that stand in the way alone, what would
    be enough instead; none where more conflicts are left, or nobody had the time to ask.
    """

    requirements: tuple[Requirement, ...]
    lifts: tuple[str, ...]
    untried: int = 0

    def __str__(self) -> str:
        return "; ".join(requirement.words for requirement in self.requirements)

    def told(self) -> list[Trouble]:
        """All of it, each with what it is."""
        found = [Trouble("conflict", requirement.words) for requirement in self.requirements]
        if self.untried:
            what = "requirement was" if self.untried == 1 else "requirements were"
            rest = "not tried, or not to the end, in the time that there is for it; what conflicts may be fewer"
            found.append(Trouble("not smallest", f"{self.untried} {what} {rest}"))
        return [*found, *(Trouble("enough would be", lift) for lift in self.lifts)]


def explain(
    problem: Problem,
    reasons: Reasons = (),
    deadline: float | None = None,
    *,
    effort: float = EFFORT,
    whole: float = limits.PLAN_EXPLAINED_EFFORT_MAX,
) -> Conflict | None:
    """A smallest set of requirements that conflict; nothing where there is a plan, or `effort` does not show there is none.

    Smallest: none of them can be left out, but for those that are told untried. There may be others, of fewer. `deadline`: seconds by which all must end.
    The same for the same arguments.
    """
    found = settle(problem, reasons, deadline, effort=effort, whole=whole)
    return found if isinstance(found, Conflict) else None


def settle(
    problem: Problem,
    reasons: Reasons = (),
    deadline: float | None = None,
    *,
    effort: float = EFFORT,
    whole: float = limits.PLAN_EXPLAINED_EFFORT_MAX,
) -> Plan | Conflict | None:
    """Some valid plan, however slow, or why there is none, as `explain` says it; nothing where `effort` shows neither.

    `effort`: for each question; `whole`: for all of them together, but for the first, whether there is a conflict.
    """
    if not problem.stages:
        return None
    left = bare(problem, shut(problem, reasons), timed=deadline is not None)
    ticks = fitted(left) if deadline is not None else ticked(left, 1.0)
    if ticks is None:
        return None
    asked = _Asked(problem, reasons, deadline, effort, ticks)
    core = asked.core()
    if not isinstance(core, list):
        return core
    asked.rest, untried = whole - asked.spent, 0
    for requirement in tuple(core):
        fewer = [other for other in core if other is not requirement]
        shown = asked.infeasible(fewer)
        if shown:
            core = fewer
        untried += shown is None
    return Conflict(tuple(core), tuple(text for requirement in core if (text := asked.lift(requirement))), untried)


class _Asked:
    """The problem without its requirements, which is `bared`, and each of them behind a literal."""

    def __init__(self, problem: Problem, reasons: Reasons, deadline: float | None, effort: float, bared: Ticks) -> None:
        self.problem, self.deadline, self.effort = problem, deadline, effort
        #: deterministic time that there is for all further questions, and that has gone
        self.rest, self.spent = math.inf, 0.0
        self.requirements = requirements(problem, reasons, deadline)
        # Set where requirements behind literals have shown nothing in time: what a deadline is in is asked firmly from then on.
        self.hard = False
        self.left = bared.problem
        self.model, self.literals = _model(bared, self.requirements)
        for requirement, literal in zip(self.requirements, self.literals, strict=True):
            self._ask(self.model, requirement, literal)

    def _ask(self, model: Model, requirement: Requirement, literal: Any) -> None:
        cp, arrays = model.cp, self.problem.arrays
        if requirement.kind == "places":
            for use, mode in zip(model.uses[requirement.which], model.modes[requirement.which], strict=True):
                if mode.place in requirement.places:
                    cp.add_implication(literal, use.negated())
        elif requirement.kind == "link":
            source, sink = int(arrays.upstream[requirement.which]), int(arrays.downstream[requirement.which])
            for a, b in np.argwhere(unlinked(self.problem, requirement.which)).tolist():
                if a in model.on[source] and b in model.on[sink]:
                    cp.add_bool_or([literal.negated(), model.on[source][a].negated(), model.on[sink][b].negated()])
            if arrays.started[sink]:
                cp.add(model.end[source] <= 0).only_enforce_if(literal)
        elif requirement.kind == "deadline" and self.deadline is not None:
            cp.add(model.makespan <= model.ticks.within(self.deadline)).only_enforce_if(literal)

    def solve(self, kept: list[Requirement], share: float = 1.0) -> tuple[Any, Any]:
        """The solver's status with these requirements, and the solver, by a share of the effort."""
        indices = {requirement: index for index, requirement in enumerate(self.requirements)}
        self.model.cp.clear_assumptions()
        self.model.cp.add_assumptions([self.literals[indices[requirement]] for requirement in kept])
        return self._run(self.model, share)

    def _run(self, model: Model, share: float, *, any_will_do: bool = False) -> tuple[Any, Any]:
        if self.rest <= 0:
            return cp_model.UNKNOWN, None
        solver = solving(min(share * self.effort, self.rest), math.inf, 0)
        solver.parameters.stop_after_first_solution = any_will_do
        status = solver.solve(model.cp)
        self._count(solver.response_proto.deterministic_time)
        return status, solver

    def _count(self, took: float) -> None:
        took += QUESTION * self.problem.arrays.seconds.size
        self.rest, self.spent = self.rest - took, self.spent + took

    def core(self) -> list[Requirement] | Plan | None:
        """Some requirements that conflict, or a plan; nothing where neither is known."""
        status, solver = self.solve(self.requirements)
        if status == cp_model.INFEASIBLE:
            which = set(solver.sufficient_assumptions_for_infeasibility())
            asked = zip(self.requirements, self.literals, strict=True)
            return [requirement for requirement, literal in asked if literal.index in which]
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return self._valid(read(self.model, solver, "any"))
        status, plan = self._firm(self.requirements)
        if plan is not None:
            return self._valid(plan)
        return self.requirements if status == cp_model.INFEASIBLE else None

    def infeasible(self, kept: list[Requirement]) -> bool | None:
        """Whether there is no plan with these requirements; None where that is not shown."""
        if not _timed(kept):
            return _shown(self.solve(kept)[0])
        known_hard = self.hard
        status = cp_model.UNKNOWN if known_hard else self.solve(kept, GLANCE)[0]
        if status == cp_model.UNKNOWN:
            status, _ = self._firm(kept)
        if status == cp_model.UNKNOWN and not known_hard:
            status, _ = self.solve(kept)
        return _shown(status)

    def _firm(self, kept: list[Requirement]) -> tuple[Any, Plan | None]:
        """The status of a model in which they hold from the start, with nothing in it that ends beyond the deadline; a plan.

        It is made anew for each question, which only the hardest are worth: those that a deadline makes hard.
        """
        if self.deadline is None or not _timed(kept) or self.rest <= 0:
            return cp_model.UNKNOWN, None
        self.hard = True
        ticks = fitted(keeping(self.left, kept))
        search = None if ticks is None else Search(ticks, None, ticks.within(self.deadline))
        if search is None or search.empty:
            self._count(0.0)
            return cp_model.INFEASIBLE, None
        for requirement in kept:
            if requirement.kind == "link":
                self._ask(search.model, requirement, search.model.cp.new_constant(1))
        status, solver = self._run(search.model, 1.0, any_will_do=True)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return status, None
        return status, read(search.model, solver, "any")

    def _valid(self, plan: Plan) -> Plan | None:
        found = retimed(self.problem, plan)
        return None if faults(self.problem, found) else found

    def lift(self, requirement: Requirement) -> str:
        """What to have instead of a requirement, all others kept; empty where that does not help."""
        others = [other for other in self.requirements if other is not requirement]
        goal = self._goal(requirement)
        if goal is not None:
            self.model.cp.minimize(goal)
        status, solver = self.solve(others)
        self.model.cp.clear_objective()
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return ""
        return self._instead(requirement, solver, None if goal is None else int(solver.value(goal)))

    def _goal(self, requirement: Requirement) -> Any:
        if requirement.kind == "deadline":
            return self.model.makespan
        return self.model.capacities.get((requirement.kind, requirement.which))

    def _instead(self, requirement: Requirement, solver: Any, least: int | None) -> str:
        problem, index = self.problem, requirement.which
        if requirement.kind == "deadline" and least is not None:
            return f"{least * self.model.ticks.tick:.6g} s instead of {self.deadline:g} s"
        if requirement.kind == "memory" and least is not None:
            size = _held(problem, read(self.model, solver, ""), index)
            return f"{problem.nodes[index]} with {math.ceil(size)} bytes of memory"
        if requirement.kind == "store" and least is not None:
            place = read(self.model, solver, "").place
            takes = problem.arrays.charge[np.arange(len(place)), place][problem.arrays.node[place] == index].sum()
            return f"{problem.nodes[index]} with {takes:.6g} J"
        if requirement.kind == "slots" and least is not None:
            return f"{problem.places[index]} with {least} slots"
        if requirement.kind == "places":
            place = read(self.model, solver, "").place[index]
            return f"{problem.stages[index]} on {problem.places[place]}"
        return f"without this: {requirement.words}"


def _model(ticks: Ticks, asked: list[Requirement]) -> tuple[Model, list[Any]]:
    """Without bounds: whatever a requirement costs in time, there is time enough."""
    bounds = heads(ticks, ticks.modes), tails(ticks, ticks.modes)
    keys = [(what.kind, what.which) for what in asked if what.kind in IN_MODEL]
    made = Model(ticks, ticks.modes, bounds, longest(ticks), keys)
    hold(made)
    others = [made.given.get((what.kind, what.which)) for what in asked]
    return made, [made.cp.new_bool_var("") if literal is None else literal for literal in others]


def _shown(status: Any) -> bool | None:
    return None if status == cp_model.UNKNOWN else bool(status == cp_model.INFEASIBLE)


def _timed(kept: list[Requirement]) -> bool:
    return any(each.kind == "deadline" for each in kept)


def _held(problem: Problem, plan: Plan, node: int) -> float:
    """The most bytes that a node holds at one time."""
    arrays, most = problem.arrays, 0.0
    here = np.flatnonzero((arrays.node[plan.place] == node) & (plan.finish > plan.start))
    for stage in here:
        begun = here[plan.start[here] <= plan.start[stage]]
        runs = begun[plan.finish[begun] > plan.start[stage]]
        models = arrays.resident[:, node].copy()
        models[arrays.model[begun][arrays.model[begun] != NO_MODEL]] = True
        most = max(most, float(working(arrays, plan.place)[runs].sum() + arrays.weight_bytes[models].sum()))
    return most
