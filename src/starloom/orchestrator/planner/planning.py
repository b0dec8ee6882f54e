"""Plans: a portfolio of list schedulers, then local search, then the checker. Pure: time is asked of the caller."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.dag.errors import Problem as Trouble
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.decode import value_of
from starloom.orchestrator.planner.prepared import Board, Prepared, board, copy, plan_of, prepare
from starloom.orchestrator.planner.problem import Place, Plan, Problem, problem
from starloom.orchestrator.planner.search import Search

ITERATIONS = 2_000
STEP_STAGES = 3_000
"""Stages times iterations of the local search between two looks at the time: about half a millisecond."""


class Budget(NamedTuple):
    """How long to look: at most so many `iterations` of the local search, and until `spent` says so.

    With `spent` left as it is, the same problem, seed and iterations give the same plan. The classics are always run.
    """

    iterations: int = ITERATIONS
    spent: Callable[[], bool] = lambda: False


class _Best:
    """The best board so far, and a second one to work on."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.work: Board = board(prepared)
        self.board: Board = board(prepared)
        self.value = np.inf
        self.method = ""
        self.stuck: dict[int, int] = {}

    def take(self, stage: int, method: str) -> None:
        """Keeps what is on the work board if it is better; `stage`: what found no place there, or -1."""
        if stage >= 0:
            self.stuck[stage] = self.stuck.get(stage, 0) + 1
            return
        value = value_of(self.prepared, self.work)
        if value < self.value:
            self.value, self.method = value, method
            copy(self.work, self.board)


def plan(problem: Problem, budget: Budget = Budget(), seed: int = 0, warm: Plan | None = None) -> Plan:  # noqa: B008
    """The best plan found, without a fault by `check.faults`.

    `warm`: a plan to begin with; places that it has and that are allowed no more are chosen anew. Raises Infeasible
    if a stage has no place, or if no plan was found that keeps all requirements; the latter is no proof.
    """
    prepared = prepare(problem)
    nowhere = np.flatnonzero(~prepared.allowed.any(axis=1))
    if len(nowhere):
        raise Infeasible(Trouble(f"stages.{problem.stages[i]}", "no place may have it") for i in nowhere)
    best = _Best(prepared)
    for made in _listings(prepared, budget, warm):
        best.take(listing.run(prepared, best.work, made), made.method)
    wrong: list[str] = []
    for found in _finished(problem, prepared, best, budget, seed):
        wrong = faults(problem, found)
        if not wrong:
            return found
    if wrong:
        raise Infeasible([Trouble("plan", fault) for fault in wrong], "a plan was made that does not hold")
    often = sorted(best.stuck, key=lambda stage: (-best.stuck[stage], stage))
    raise Infeasible(
        (Trouble(f"stages.{problem.stages[i]}", "no place was left for it beside the others") for i in often),
        "no plan was found",
    )


def _finished(problem: Problem, prepared: Prepared, best: _Best, budget: Budget, seed: int) -> Iterator[Plan]:
    """Plans to be given out, the best first: what local search makes of the best board, and that board."""
    if best.value == np.inf:
        return
    copy(best.board, best.work)
    search = Search(prepared, best.work, seed)
    step = max(1, STEP_STAGES // max(1, len(problem.stages)))
    left = budget.iterations
    while left > 0 and search.movable and not budget.spent():
        search.step(min(step, left))
        left -= step
    if search.value < best.value * (1 - 1e-9):
        yield plan_of(problem, prepared, search.best, "search")
    yield plan_of(problem, prepared, best.board, best.method)


def _listings(prepared: Prepared, budget: Budget, warm: Plan | None) -> Iterator[listing.Listing]:
    table = listing.Table(prepared)
    if warm is not None:
        yield warmed(table, warm)
    yield from listing.classics(table)
    for made in listing.portfolio(table):
        if budget.spent():
            return
        yield made


def warm_up() -> None:
    """Compiles the planner, or reads what was compiled before: seconds the first time on a machine, then a blink."""
    plan(problem(["a", "b"], [Place("a"), Place("b")], 1.0, [(0, 1, 1.0)]), Budget(iterations=1))


def warmed(table: listing.Table, warm: Plan) -> listing.Listing:
    """A listing in the order and at the places of a plan for the same stages."""
    wished = np.asarray(warm.place, dtype=np.int64)
    return table.listing("warm", -np.asarray(warm.start, dtype=np.float64))._replace(wished=wished)
