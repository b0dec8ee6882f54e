"""Plans where values meet on up-links: many plans made without contention, timed with it, and the best bettered by moves. Pure.

What makes plans takes links as free. So it is asked several times, each time with up-links so many times as slow as
they are, which draws together what sends much; and of all that is made that is taken which ends first with contention.
Where contention takes next to nothing, or there is time for no more than one search, that one has all of it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple, Protocol

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
    """A search with up-links `crowd` times as slow: up to which share of the iterations, and until which share of the time is over."""

    crowd: float
    share: float
    until: float


LOOKS: Final = (Look(1.0, 0.5, 0.35), Look(2.0, 0.25, 0.6), Look(4.0, 0.25, 0.8))
"""What is left is for moves. Searches that would begin too late are left out, but those of few stages, which take next to no time."""
APART: Final = LOOKS[-1]._replace(crowd=64.0)
"""Draws together what is connected at all, as far as it may be: a search from there is for where that does better than the others."""
OUT: Final = LOOKS[-1]._replace(crowd=math.inf)
"""Leaves out the nodes behind up-links, where others can do all: a list that reaches for them early does not come back."""
WHOLE: Final = Look(1.0, 1.0, 1.0)
TIMING: Final = 0.05
"""The share of all time that a search leaves for timing what it has made."""
SPARED: Final = 0.01
"""The share of the objective below which what contention adds is worth no search of its own."""
PROMISING: Final = 1.2
"""How many times as long as what was found the plan of a list may take from which a slowed search begins."""
FINALISTS: Final = 16
"""Plans of each that are timed with contention, at the most."""
TIMED_STAGES: Final = 1_600
"""Stages times plans of each that are timed."""
LEAST_TIMED: Final = 2
"""Plans of each that are timed as long as there is time."""
SAME: Final = 1e-9
"""The share by which rounding may set apart what is the same."""


class Course(Protocol):
    """Plans of a problem without up-links in the making."""

    def go_on(self, look: Look) -> bool:
        """Searches up to the iterations of a look, and until its time is over; whether it has made them all."""

    def best(self) -> Plan:
        """The best plan that was made until now."""

    def finals(self, look: Look) -> Iterator[Plan]:
        """Plans without a fault, the best first. Raises Infeasible where there is none."""


Begin = Callable[[Problem, Look], Course]
"""Begins with lists. Raises Infeasible where there is no plan."""
Late = Callable[[float], bool]
"""Whether that share of the time is over."""


def contended(problem: Problem, begin: Begin, late: Late, moves: int, seed: int) -> Plan:
    """The plan that takes least with contention of those that were made, without a fault; after so many moves, or until the time is over.

    It is called proven only if it takes no more than one that is proven to be the best without contention. The same for the same
    arguments, where `begin` and `late` are. Raises Infeasible as `begin` does.
    """
    made = _Made(problem, begin, late)
    made.look()
    found = sorted(made.met.values(), key=lambda each: each.objective)
    found.insert(0, _moved(problem, found[0], lambda: late(1.0), moves, seed))
    wrong: list[str] = []
    for each in found:
        wrong = faults(problem, each)
        if not wrong:
            return each
    raise Infeasible([Trouble("plan", fault) for fault in wrong], "a plan was made that does not hold")


class _Listed(NamedTuple):
    """A course, and what its best plan takes with contention."""

    objective: float
    course: Course
    look: Look


def _takes(listed: _Listed) -> float:
    return listed.objective


class _Made:
    """Plans that were made without contention, and timed with it."""

    def __init__(self, problem: Problem, begin: Begin, late: Late) -> None:
        self.met: dict[tuple[bytes, bytes], Plan] = {}
        """By their places and starts without contention."""
        self._problem = problem
        self._begin = begin
        self._late = late
        self._most = max(LEAST_TIMED, min(FINALISTS, TIMED_STAGES // max(1, len(problem.stages))))

    def look(self) -> None:
        """Searches with up-links as they are, and, where that is worth it, slowed."""
        first = LOOKS[0]
        course = self._begun(first)
        whole = course.go_on(first)
        if provable(self._problem):
            self._end(course, first)
            self._all_slower()
            return
        best = course.best()
        if self._meet(best, first).objective <= best.objective * (1 + SPARED):
            self._give_rest(course, first)
        elif not whole or self._late(first.until):
            self._give_rest(*self._likeliest(course, first))
        else:
            self._slower(course, first)

    def _begun(self, look: Look) -> Course:
        if look is OUT:
            return self._begin(_without(self._problem), look)
        return self._begin(_slowed(self._problem, look.crowd), look)

    def _give_rest(self, course: Course, look: Look) -> None:
        whole = look._replace(share=1.0, until=1.0)
        course.go_on(whole)
        self._end(course, whole)

    def _likeliest(self, course: Course, look: Look) -> tuple[Course, Look]:
        """Of a course and those that have no more than lists the one whose plan takes least with contention."""
        found = [_Listed(self._meet(course.best(), look).objective, course, look)]
        found += filter(None, map(self._listed, (LOOKS[-1], APART, OUT, *reversed(LOOKS[1:-1]))))
        return min(found, key=_takes)[1:]

    def _listed(self, look: Look) -> "_Listed | None":
        """A course that has no more than lists; None where there is no time for it, or no plan."""
        if self._late(look.until):
            return None
        with suppress(Infeasible):
            course = self._begun(look)
            return _Listed(self._meet(course.best(), look).objective, course, look)
        return None

    def _all_slower(self) -> None:
        for look in (*LOOKS[1:], APART, OUT):
            with suppress(Infeasible):
                course = self._begun(look)
                course.go_on(look)
                self._end(course, look)

    def _slower(self, course: Course, first: Look) -> None:
        """Searches with up-links slowed. Where the slowest promise nothing, the first course goes on in their stead."""
        least, slow, last = self._end(course, first), math.inf, LOOKS[-1]
        for look in LOOKS[1:-1]:
            if (other := self._listed(look)) is not None:
                other.course.go_on(look)
                slow = min(slow, self._end(other.course, look))
        # Of the slowest it is the one from which a search begins that takes least.
        listed = [each for each in (self._listed(last), self._listed(APART), self._listed(OUT)) if each is not None]
        best = min(listed, key=_takes, default=None)
        if best is not None and least <= min(slow, best.objective / PROMISING):
            more = first._replace(share=first.share + last.share, until=last.until)
            course.go_on(more)
            self._end(course, more)
        elif best is not None:
            best.course.go_on(best.look)
            self._end(best.course, best.look)

    def _end(self, course: Course, look: Look) -> float:
        """Times what a course has made, as much as there is time for; the least objective of it with contention."""
        least = math.inf
        for each in islice(course.finals(look), self._most):
            least = min(least, self._meet(each, look).objective)
            if self._late(look.until):
                break
        return least

    def _meet(self, plan: Plan, look: Look) -> Plan:
        """The plan as it is with contention. A proof holds with up-links as they are, where it takes no more than without."""
        key = plan.place.tobytes(), plan.start.tobytes()
        if key not in self.met:
            made = timed(self._problem, plan)
            holds = look.crowd == 1.0 and made.objective <= plan.objective * (1 + SAME)
            self.met[key] = made if holds else made._replace(method=made.method.removesuffix(PROVEN))
        return self.met[key]


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


def _without(problem: Problem) -> Problem:
    """The problem without up-links, and without the nodes behind them for stages that others may run."""
    arrays = problem.arrays
    behind = np.isin(arrays.node, sorted({node for each in problem.uplinks for node in each.nodes}))
    other = np.isfinite(arrays.seconds[:, ~behind]).any(axis=1) & ~arrays.started
    if not other.any():
        raise Infeasible([Trouble("plan", "all nodes are behind up-links")], "there is nothing to leave out")
    seconds = arrays.seconds.copy()
    seconds[np.ix_(other, behind)] = np.inf
    return problem._replace(arrays=arrays._replace(seconds=seconds), uplinks=())


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
