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
from starloom.orchestrator.planner.problem import Plan, Problem

ITERATIONS = 2_000


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
    if best.value < np.inf:
        found = plan_of(problem, prepared, best.board, best.method)
        wrong = faults(problem, found)
        if not wrong:
            return found
        raise Infeasible([Trouble("plan", fault) for fault in wrong], "a plan was made that does not hold")
    often = sorted(best.stuck, key=lambda stage: (-best.stuck[stage], stage))
    raise Infeasible(
        (Trouble(f"stages.{problem.stages[i]}", "no place was left for it beside the others") for i in often),
        "no plan was found",
    )


def _listings(prepared: Prepared, budget: Budget, warm: Plan | None) -> Iterator[listing.Listing]:
    table = listing.Table(prepared)
    if warm is not None:
        yield warmed(table, warm)
    yield from listing.classics(table)
    for made in listing.portfolio(table):
        if budget.spent():
            return
        yield made


def warmed(table: listing.Table, warm: Plan) -> listing.Listing:
    """A listing in the order and at the places of a plan for the same stages."""
    wished = np.asarray(warm.place, dtype=np.int32)
    return table.listing("warm", -np.asarray(warm.start, dtype=np.float64))._replace(wished=wished)
