"""Plans: a portfolio of list schedulers, local search, CP-SAT, and the checker. Pure: time is asked of the caller."""

import math
from bisect import insort
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.dag.errors import Infeasible
from starloom.dag.errors import Problem as Trouble
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.contending import OUT, TIMING, WHOLE, Look, contended
from starloom.orchestrator.planner.decode import value_of
from starloom.orchestrator.planner.exact import exact
from starloom.orchestrator.planner.explain import Conflict, settle
from starloom.orchestrator.planner.halving import Halving, Start
from starloom.orchestrator.planner.prepared import Board, Prepared, board, copy, plan_of, prepare
from starloom.orchestrator.planner.problem import PROVEN, Indices, Place, Plan, Problem, problem, provable
from starloom.orchestrator.planner.requirements import Reasons, nowhere, part
from starloom.orchestrator.planner.windows import EFFORT as WINDOW_EFFORT
from starloom.orchestrator.planner.windows import improved

ITERATIONS = 2_000
RESCUE_EFFORT = 0.5
"""Least of CP-SAT's deterministic time for a plan that list schedulers did not find: any plan, that is slow at first."""

HARD_STAGES = 12
"""Of those for which lists find no place: as many are looked at for a conflict before all are."""

NO_PLAN = "no plan can keep all of this"
UNPROVEN = "no plan was found, which is no proof that there is none"

FEW_FROM = 1_500
"""Stages times places from which on local search earns more than the rest of the portfolio."""
STARTS_MAX = 16
"""Boards of list schedulers that are kept, the best ones."""
ITERATIONS_A_MOVE = 4
"""Of local search, for each move that is judged with contention."""
GAIN = 1e-9
"""The share by which a plan has to be better to count as better."""


class Budget(NamedTuple):
    """How long to look: at most so many `iterations` of the local search, and until `spent` says so. `gone`: the share of the time that is
    over, where searches have to share it; 0 where no time is told.

    `least`: iterations that are made even so, once for all searches, for a plan that is worth as much on a busy machine. `effort`: then CP-SAT's deterministic time, about seconds, on small jobs as a whole and on windows of larger ones;
    no longer than `effort_seconds`, of which on windows those are left that `gone` leaves. With `spent`, `gone` and those left as they are, the same problem, seed and
    budget give the same plan. The classics are always run.
    """

    iterations: int = ITERATIONS
    spent: Callable[[], bool] = lambda: False
    effort: float = 0.0
    effort_seconds: float = math.inf
    least: int = 0
    gone: Callable[[], float] = lambda: 0.0

    def left(self) -> float:
        """Seconds that are left for CP-SAT; infinite where it has no end."""
        return max(0.0, self.effort_seconds * (1 - self.gone())) if self.effort_seconds < math.inf else math.inf


class _Starts:
    """The best boards of listings, and one to work on."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.work: Board = board(prepared)
        self.stuck: dict[int, int] = {}
        self._best: list[Start] = []

    def take(self, stage: int, method: str) -> None:
        """Keeps what is on the work board if it is among the best and like no other; `stage`: what found no place, or -1."""
        if stage >= 0:
            self.stuck[stage] = self.stuck.get(stage, 0) + 1
            return
        value = value_of(self.prepared, self.work)
        if any(abs(value - start.value) <= GAIN * value for start in self._best):
            return
        if len(self._best) < STARTS_MAX:
            kept = board(self.prepared)
        elif value < self._best[-1].value:
            kept = self._best.pop().board
        else:
            return
        copy(self.work, kept)
        insort(self._best, Start(value, kept, method), key=lambda start: start.value)

    @property
    def least(self) -> float:
        """The best objective; infinite where there is none."""
        return self._best[0].value if self._best else math.inf

    def all(self) -> list[Start]:
        """The best first."""
        return list(self._best)


def plan(
    problem: Problem,
    budget: Budget = Budget(),  # noqa: B008
    seed: int = 0,
    warm: Plan | None = None,
    reasons: Reasons = (),
) -> Plan:
    """The best plan found, without a fault by `check.faults`.

    `warm`: a plan to begin with; places that it has and that are allowed no more are chosen anew. `reasons`: for each
    stage, why it may not have places. Raises Infeasible: NO_PLAN with a smallest set of requirements that conflict, or
    UNPROVEN, where a large job has no plan that was found, and no conflict.
    """
    if not problem.uplinks:
        course = _Course(problem, lambda _: budget, WHOLE, seed, warm, reasons)
        course.go_on(WHOLE)
        return next(course.finals(WHOLE))

    def late(share: float) -> bool:
        return budget.spent() or budget.gone() >= share

    def begun(free: Problem, look: Look) -> _Course:
        return _Course(free, lambda each: _within(free, budget, each), look, seed, warm, reasons)

    return contended(problem, begun, late, budget.iterations // ITERATIONS_A_MOVE, seed)


def _within(problem: Problem, budget: Budget, look: Look) -> Budget:
    """What of a budget is for a look at a problem."""
    until, first = look.until - TIMING, look.crowd == 1.0
    # What one search makes is enough for all together.
    least = budget.least if first else 0
    return budget._replace(
        iterations=max(int(budget.iterations * look.share), least),
        spent=lambda: budget.spent() or budget.gone() >= until,
        gone=lambda: budget.gone() / until,
        # Proofs and windows are of links as they are, with all to themselves, and windows worth no time where other searches wait.
        effort=budget.effort if first and (look.share == 1.0 or provable(problem)) else 0.0,
        effort_seconds=budget.effort_seconds * (1.0 if provable(problem) else until),
        least=least,
    )


class _Course:
    """Plans in the making, as if links were free of contention: lists at first, then local search as long as it goes on."""

    def __init__(
        self,
        problem: Problem,
        within: Callable[[Look], Budget],
        look: Look,
        seed: int,
        warm: Plan | None,
        reasons: Reasons,
    ) -> None:
        """`within`: the budget of a look. Raises Infeasible as `plan` does."""
        if ruled_out := nowhere(problem, reasons):
            raise Infeasible([Trouble(f"stages.{problem.stages[i]}", text) for i, text in ruled_out.items()], NO_PLAN)
        self._problem = problem
        self._within = within
        self._seed = seed
        self._prepared = prepare(problem)
        starts = _Starts(self._prepared)
        if self._prepared.allowed.any(axis=1).all():
            _list(self._prepared, starts, within(look), warm)
        self._starts = starts.all()
        self._rescued: Plan | None = None
        if not self._starts and look is OUT:
            raise Infeasible([Trouble("plan", "none was found without the nodes behind up-links")], UNPROVEN)
        if not self._starts:
            self._rescued = _rescued(problem, self._prepared, starts.stuck, within(look), seed, reasons)
        self._search: Halving | None = None
        if self._starts and not self._prepared.started.all():
            self._search = Halving(self._prepared, self._starts, seed)

    def go_on(self, look: Look) -> bool:
        """Local search up to the iterations of a look, and until its time is over; whether it has made them all."""
        if self._search is None:
            return True
        budget = self._within(look)
        most = budget.iterations
        # The rest of the time is for the proof.
        if budget.effort > 0 and provable(self._problem):
            most = min(most, ITERATIONS)
        return self._search.go_on(most, budget.spent, budget.least)

    def best(self) -> Plan:
        """The best plan that was made until now, which may have faults."""
        return self._rescued or next(self._made())

    def finals(self, look: Look) -> Iterator[Plan]:
        """Plans without a fault: the best that was found, with what CP-SAT makes of it, then others that differ from it.

        One at the least. Raises Infeasible.
        """
        if self._rescued is not None:
            yield self._rescued
            return
        wrong: list[str] = []
        first = True
        for found in self._made():
            wrong = faults(self._problem, found)
            if wrong:
                continue
            best = _polished(self._problem, found, self._within(look), self._seed) if first else found
            yield best
            if not (np.array_equal(best.place, found.place) and np.array_equal(best.start, found.start)):
                yield found
            first = False
        if first:
            raise Infeasible([Trouble("plan", fault) for fault in wrong], "a plan was made that does not hold")

    def _made(self) -> Iterator[Plan]:
        """What local search has made of the starts, then the starts themselves, the best first."""
        for found in self._search.found() if self._search is not None else ():
            if found.value < self._starts[0].value * (1 - GAIN):
                yield plan_of(self._problem, self._prepared, found.best, "search")
        for start in self._starts:
            yield plan_of(self._problem, self._prepared, start.board, start.method)


def _rescued(
    problem: Problem, prepared: Prepared, stuck: dict[int, int], budget: Budget, seed: int, reasons: Reasons
) -> Plan:
    """A plan by CP-SAT where list schedulers found none. Raises Infeasible, with the proof if there is one."""
    hard = np.flatnonzero(~prepared.allowed.any(axis=1)).tolist()
    hard += sorted(stuck, key=lambda stage: (-stuck[stage], stage))
    found = None
    # A conflict of few is soon shown, and is one of all.
    for most in (HARD_STAGES, limits.PLAN_SETTLED_CHOICES_MAX // max(1, len(problem.places))):
        stages = _around(prepared, hard, most)
        # Of what a job is given and gives, which comes last, no reason speaks.
        said = [reasons[stage] if stage < len(reasons) else {} for stage in stages] if reasons else ()
        found = settle(part(problem, stages), said)
        if isinstance(found, Conflict):
            raise Infeasible(found.told(), NO_PLAN)
        if found is not None and len(stages) == len(problem.stages):
            return _polished(problem, found, budget._replace(effort=max(budget.effort, RESCUE_EFFORT)), seed)
    told = [Trouble(f"stages.{problem.stages[i]}", "no place was left for it beside the others") for i in hard]
    raise Infeasible(told, UNPROVEN)


def _around(prepared: Prepared, hard: list[int], most: int) -> Indices:
    """At most so many stages: those, with who shares groups with them, then who has the fewest places. By index."""
    first = list(hard)
    for groups in (prepared.together, prepared.apart):
        first += np.flatnonzero((groups >= 0) & np.isin(groups, groups[hard])).tolist()
    first += np.argsort(prepared.allowed.sum(axis=1), kind="stable").tolist()
    return np.sort(list(dict.fromkeys(first))[:most]).astype(np.int32)


def _polished(problem: Problem, found: Plan, budget: Budget, seed: int) -> Plan:
    """What CP-SAT makes of a valid plan."""
    if not provable(problem):
        rounds = int(budget.effort / WINDOW_EFFORT)
        return improved(problem, found, rounds, seed, spent=budget.spent, left=budget.left)
    if budget.effort <= 0 or budget.effort_seconds <= 0:
        return found
    proof = exact(problem, found, effort=budget.effort, wall_seconds=budget.effort_seconds, seed=seed)
    if proof.plan is None or faults(problem, proof.plan):
        return found
    best = min(found, proof.plan, key=lambda each: each.objective)
    return best._replace(method=f"{best.method}{PROVEN}") if proof.proven else best


def _list(prepared: Prepared, starts: _Starts, budget: Budget, warm: Plan | None) -> None:
    """Runs the listings that there is time for; all, and seats given out beforehand, as long as there is no plan."""
    table = listing.Table(prepared)
    if warm is not None:
        made = warmed(table, warm)
        starts.take(listing.run(prepared, starts.work, made), made.method)
    for made in listing.classics(table):
        starts.take(listing.run(prepared, starts.work, made), made.method)
    _take_more(starts, listing.telling(table), budget)
    if not starts.all() or prepared.seconds.size <= FEW_FROM:
        _take_more(starts, listing.others(table), budget)
    if not starts.all() and (seated := listing.seated(table, starts.work)) is not None:
        starts.take(listing.run(prepared, starts.work, seated), seated.method)


def _take_more(starts: _Starts, listings: Iterator[listing.Listing], budget: Budget) -> None:
    for made in listings:
        if starts.all() and budget.spent():
            return
        # A node alone whose work takes longer than the best plan gives no better one.
        if made.least <= starts.least:
            starts.take(listing.run(starts.prepared, starts.work, made), made.method)


def warm_up() -> None:
    """Compiles the planner, or reads what was compiled before: seconds the first time on a machine, then a blink."""
    plan(problem(["a", "b"], [Place("a"), Place("b")], 1.0, [(0, 1, 1.0)]), Budget(iterations=1))


def warmed(table: listing.Table, warm: Plan) -> listing.Listing:
    """A listing in the order and at the places of a plan for the same stages."""
    wished = np.asarray(warm.place, dtype=np.int64)
    return table.listing("warm", -np.asarray(warm.start, dtype=np.float64))._replace(wished=wished)
