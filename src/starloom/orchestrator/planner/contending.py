"""Plans where values meet on up-links: many plans made without contention, timed with it, and the best bettered by moves. Pure.

What makes plans takes links as free. So it is asked several times, each time with up-links so many times as slow as
they are, which draws together what sends much; and of all that is made that is taken which ends first with contention.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.dag.errors import Problem as Trouble
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.moving import Moves
from starloom.orchestrator.planner.prepared import board, plan_of, prepare
from starloom.orchestrator.planner.problem import PROVEN, Place, Plan, Problem, Uplink, problem, provable
from starloom.orchestrator.planner.uplinks import passers, shared, timed


class Look(NamedTuple):
    """A search with up-links `crowd` times as slow: with which share of the iterations, and until which share of the time is over."""

    crowd: float
    share: float
    until: float


LOOKS: Final = (Look(1.0, 0.5, 0.4), Look(2.0, 0.25, 0.6), Look(4.0, 0.25, 0.8))
"""What is left is for moves. Searches that would begin too late are left out, but those of few stages, which take next to no time."""
TIMING: Final = 0.1
"""The share of all time that a search leaves for timing what it has made."""
FINALISTS: Final = 16
"""Plans of each that are timed with contention, at the most."""
TIMED_STAGES: Final = 1_600
"""Stages times plans of each that are timed."""
LEAST_TIMED: Final = 2
"""Plans of each that are timed in any case."""
SAME: Final = 1e-9
"""The share by which rounding may set apart what is the same."""

Finals = Callable[[Problem, Look], Iterator[Plan]]
"""Plans of a problem without up-links, the best first. Raises Infeasible where there is none."""


def contended(problem: Problem, finals: Finals, late: Callable[[float], bool], moves: int, seed: int) -> Plan:
    """The plan that takes least with contention of those that were made, without a fault; after so many moves, or until the time is over.

    `late`: whether that share of the time is. It is called proven only if it takes no more than one that is proven to be the best without
    contention. The same for the same arguments, where `finals` and `late` are. Raises Infeasible as `finals` does.
    """
    found: list[Plan] = []
    most = max(LEAST_TIMED, min(FINALISTS, TIMED_STAGES // max(1, len(problem.stages))))
    for look in LOOKS:
        if found and late(look.until) and not provable(problem):
            continue
        try:
            made = islice(finals(_slowed(problem, look.crowd), look), most)
            for count, each in enumerate(made, 1):
                found.append(_met(problem, each, proven=look.crowd == 1.0))
                if count >= LEAST_TIMED and late(look.until):
                    break
        except Infeasible:
            if not found:
                raise
    found.sort(key=lambda each: each.objective)
    found.insert(0, _moved(problem, found[0], lambda: late(1.0), moves, seed))
    wrong: list[str] = []
    for each in found:
        wrong = faults(problem, each)
        if not wrong:
            return each
    raise Infeasible([Trouble("plan", fault) for fault in wrong], "a plan was made that does not hold")


def warm_up() -> None:
    """Compiles what only up-links need, or reads what was compiled before."""
    free = problem(["a", "b"], [Place("a"), Place("b")], 1.0, [(0, 1, 1.0)])
    start = np.array([0.0, 2.0])
    plan = Plan(np.arange(2, dtype=np.int32), start, start + 1, np.zeros(2, dtype=np.bool_), 3.0, 0.0, "warm")
    timed(shared(free, (Uplink("both", (0,), 1.0, 1.0),)), plan)


def _slowed(problem: Problem, crowd: float) -> Problem:
    """The problem without up-links, but so many times as slow where one is passed."""
    arrays = problem.arrays
    slower = arrays.seconds_per_byte.copy()
    for each in passers(problem):
        # What passes several is slower once.
        slower[each.source, each.sink] = crowd * arrays.seconds_per_byte[each.source, each.sink]
    return problem._replace(arrays=arrays._replace(seconds_per_byte=slower), uplinks=())


def _met(problem: Problem, plan: Plan, *, proven: bool) -> Plan:
    """The plan as it is with contention. A proof holds if it is `proven` with up-links as they are, and takes no more than without."""
    made = timed(problem, plan)
    holds = proven and made.objective <= plan.objective * (1 + SAME)
    return made if holds else made._replace(method=made.method.removesuffix(PROVEN))


def _moved(problem: Problem, best: Plan, spent: Callable[[], bool], moves: int, seed: int) -> Plan:
    """Moves a stage, with those that share its node, to another place, and keeps what is no worse with contention."""
    free = problem.free
    prepared = prepare(free)
    table, made, where = listing.Table(prepared), board(prepared), Moves(free, prepared)
    draw = np.random.default_rng(seed)
    if best.method.endswith(PROVEN) or where.none:
        return best
    for _ in range(moves):
        if spent():
            break
        place = where.elsewhere(best.place, draw)
        order = table.listing("moved", -best.start)._replace(wished=place.astype(np.int64))
        if listing.run(prepared, made, order) >= 0 or not np.array_equal(made.place, place):
            continue
        plan = plan_of(free, prepared, made, "moved")
        # With others on its way it is no sooner.
        if plan.objective > best.objective:
            continue
        met = timed(problem, plan)
        if met.objective <= best.objective:
            best = met if met.objective < best.objective * (1 - SAME) else met._replace(method=best.method)
    return best
