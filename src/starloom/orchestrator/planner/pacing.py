"""Plans of jobs that come again and again: the period held, then what was promised of rounds, then the goals. Pure.

A plan that is fast for one round may keep one slot too busy for the next. So plans are made that keep everything busy for at most
some shares of the period, down to the least that any placement can; rounds of each are simulated, and the best is chosen. Where no
goal is quality, each stage has its best variant, and a worse one only where the period or a promise is not kept else.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.dag.constellation import Goal, Measure, Slo
from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner import listing
from starloom.orchestrator.planner.balance import Balanced, balanced, taking, within
from starloom.orchestrator.planner.bills import best_variants, bill, costs
from starloom.orchestrator.planner.check import faults, penalty
from starloom.orchestrator.planner.filling import overfull
from starloom.orchestrator.planner.goals import Asked, Found, Planned, find, rank
from starloom.orchestrator.planner.levelling import levelled
from starloom.orchestrator.planner.lowering import lowered
from starloom.orchestrator.planner.moving import Moves
from starloom.orchestrator.planner.passing import Passing
from starloom.orchestrator.planner.prepared import board, plan_of, prepare
from starloom.orchestrator.planner.problem import Indices, Place, Plan, Problem, Uplink, problem, provable
from starloom.orchestrator.planner.promises import Answering, Kept, kept
from starloom.orchestrator.planner.rounds import Rounds, simulate
from starloom.orchestrator.planner.steady import GRANTED, Pace, Work, pace, work
from starloom.orchestrator.planner.uplinks import shared, timed

SHARES: Final = (1.0, 0.85, 0.7)
"""Of what a resource may be busy: emptier queues are shorter, and cost the round itself."""

MOVES: Final = 400
"""Moves of a stage to another place that local search sets out, at each share."""

PACED: Final = (Measure.PERIOD, Measure.P95)
"""What only rounds that follow each other have; all else is of one of them."""
_SAME: Final = 1e-9
_DEAR: Final = 10.0
"""How many times the seconds of a plan the least step in quality counts, where it comes first."""


class Promise(NamedTuple):
    """What is promised of each round of a job; its deadline in seconds, 0 for none."""

    slo: Slo = Slo()
    deadline: float = 0.0


class Paced(NamedTuple):
    """A plan, what its rounds keep busy, the rounds that were simulated, and how each promise was kept, by job.

    `pace`: with the period that it was simulated at. `overfull`: what is busier than it may be, as the checker says it.
    """

    found: Found
    work: Work
    pace: Pace
    rounds: Rounds
    kept: tuple[Kept, ...]
    overfull: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is busier than it may be."""
        return not self.overfull

    @property
    def missed(self) -> float:
        """By how much promises are not kept, in shares of rounds, added up; 0 where all are."""
        return sum(max(0.0, each.share - each.attained) for each in self.kept)

    def value(self, measure: Measure) -> float:
        """What the plan takes of a measure."""
        if measure is Measure.PERIOD:
            return self.work.least_period
        return self.rounds.quantile(0.95) if measure is Measure.P95 else self.found.value(measure)


class Chosen(NamedTuple):
    """The best of the plans that were made, and what is known of the least period of all placements.

    `none`: whether CP-SAT has shown that no plan holds the period, though sums alone may not show it.
    """

    best: Paced
    least: Balanced
    tried: int
    none: bool = False


def find_paced(
    problem: Problem,
    asked: Asked,
    pace: Pace,
    planned: Planned,
    promises: Sequence[Promise] = (),
    answering: Answering | None = None,
) -> Chosen:
    """The best plan of jobs that follow each other as `pace` says; with `every` 0, as often as can be.

    `promises`: of each job. The same for the same arguments, where `planned` is. Raises Infeasible as that does: a period that no
    placement holds is no reason to.
    """
    named = any(goal.by is Measure.QUALITY for goal in asked.goals)
    best_only = None if named else best_variants(problem, asked.rates)
    made: list[Found] = []
    if best_only is not None:
        with suppress(Infeasible):
            chosen = _find_paced(best_only, asked, pace, planned, promises, answering)
            if chosen.best.holds and not chosen.best.missed and chosen.best.found.ends_by(asked.deadline):
                return chosen
            made = [chosen.best.found]
    return _find_paced(problem, asked, pace, planned, promises, answering, made)


def _find_paced(
    problem: Problem,
    asked: Asked,
    pace: Pace,
    planned: Planned,
    promises: Sequence[Promise],
    answering: Answering | None,
    known: Sequence[Found] = (),
) -> Chosen:
    """The same with all variants alike. `known`: plans that were made."""
    plain = asked._replace(goals=[goal for goal in asked.goals if goal.by not in PACED])
    first = find(problem, plain, planned)
    effort = max(asked.effort, limits.PLAN_LEAST_EFFORT_MIN)
    search = _Looking(problem, plain, pace)
    level = search.level(first.plan.place, 0.0)
    # What sums alone allow may not stand: stages apart, a battery. CP-SAT has to begin with what does.
    begin = level if search.stood(level) is not None else first.plan.place
    least = balanced(problem, pace, begin, effort=effort, seed=asked.seed)
    stood = [search.stood(place) for place in (level, least.place) if place is not None]
    made = [first, *known, *(each for each in stood if each is not None and not faults(problem, each.plan))]
    at = pace
    if not pace.every:
        at = pace._replace(every=min(work(problem, each.plan.place, pace).least_period for each in made))
    if not at.every:
        # What takes no time comes as often as one likes; any period will do.
        at = at._replace(every=1.0)
    said = promises or [Promise()] * pace.jobs
    if known or not _enough(problem, first, at, asked, said):
        begun = list(made)
        for share in SHARES:
            made += search.lowered(begun, share * at.cap)
            made += search.below(made, share * at.cap, effort)
    kinds = {tuple(each.plan.place.tolist()): each for each in made}
    judged = [_judged(problem, each, at, said, answering, asked) for each in kinds.values()]
    none = bool(pace.every) and search.none >= at.cap
    return Chosen(choose(judged, asked.goals, asked.deadline), least, len(judged), none)


def judged(problem: Problem, asked: Asked, pace: Pace, place: Indices, promises: Sequence[Promise]) -> Paced | None:
    """What rounds are like with stages on these places [n]; None where they cannot stand there together."""
    found = _Looking(problem, asked, pace).stood(place)
    if found is None or faults(problem, found.plan):
        return None
    return _judged(problem, found, pace, promises, None, asked)


def warm_up() -> None:
    """Compiles what only periods need, or reads what was compiled before."""
    free, place = problem(["a", "b"], [Place("a"), Place("b")], 1.0, [(0, 1, 1.0)]), np.arange(2, dtype=np.int32)
    small = shared(free, (Uplink("both", (0,), 1.0, 1.0),))
    levelled(small, prepare(small), pace(small, 0.0), place, 0.0)
    Passing(small, place).shared(0.0)


def choose(judged: Sequence[Paced], goals: Sequence[Goal], deadline: float = 0.0) -> Paced:
    """What holds the period, or comes nearest; of that what keeps most promises; of that the best by the goals.

    Quality comes before all of these, unless one of them is that.
    """
    over = min(max(0.0, each.work.period / each.pace.cap - 1 - limits.PLAN_LOAD_MAX * _SAME) for each in judged)
    left = [each for each in judged if each.holds] or [
        each for each in judged if each.work.period / each.pace.cap - 1 <= over * (1 + _SAME) + _SAME
    ]
    missed = min(each.missed for each in left)
    left = [each for each in left if each.missed <= missed + _SAME]
    left = [each for each in left if each.found.ends_by(deadline)] or left
    if not any(goal.by is Measure.QUALITY for goal in goals):
        reach = min(each.value(Measure.QUALITY) for each in left)
        left = [each for each in left if each.value(Measure.QUALITY) <= reach + _SAME]
    for goal in goals:
        if not goal.weight:
            reach = min(each.value(goal.by) for each in left)
            left = [each for each in left if each.value(goal.by) <= reach * (1 + goal.within + _SAME)]
    weights = {Measure.LATENCY: 1.0} | {goal.by: goal.weight for goal in goals if goal.weight}
    after = (Measure.LATENCY, Measure.P95, Measure.PERIOD)
    return min(
        left,
        key=lambda each: (sum(by * each.value(it) for it, by in weights.items()), *(each.value(by) for by in after)),
    )


def _enough(problem: Problem, first: Found, pace: Pace, asked: Asked, promises: Sequence[Promise]) -> bool:
    """Whether the plan that is best for one round holds the period, and nothing was said of more."""
    if any(goal.by in PACED for goal in asked.goals) or any(each.slo != Slo() for each in promises):
        return False
    return work(problem, first.plan.place, pace).fits(pace.cap)


def _judged(
    problem: Problem,
    found: Found,
    pace: Pace,
    promises: Sequence[Promise],
    answering: Answering | None,
    asked: Asked,
) -> Paced:
    place = found.plan.place
    runs = problem.arrays.seconds[np.arange(len(place)), place]
    rounds = simulate(problem, found.plan, pace, seed=asked.seed)
    held = tuple(
        each
        for job, said in enumerate(promises)
        for each in kept(rounds, said.slo, job, said.deadline, answering, place, runs)
    )
    return Paced(found, work(problem, place, pace), pace, rounds, held, tuple(overfull(problem, place, pace)))


class _Looking:
    """Looks for plans that keep everything busy for no more than some seconds a round."""

    def __init__(self, problem: Problem, asked: Asked, pace: Pace) -> None:
        self.problem, self.asked, self.pace = problem, asked, pace
        self.prepared = prepare(problem)
        loss = np.where(self.prepared.allowed, costs(problem, asked.rates, Measure.QUALITY)[0], np.inf)
        #: [n, m] what each variant lacks beyond the best that its stage may have
        self.lacks = np.where(self.prepared.allowed, loss - loss.min(axis=1, initial=np.inf, keepdims=True), 0.0)
        self.table = listing.Table(self.prepared)
        self.plain = self.table.listing("placed", self.table.upward)
        self.board = board(self.prepared)
        #: seconds a round for which something is busy in any plan, as CP-SAT has shown
        self.none = 0.0
        self.moves = Moves(problem, self.prepared)

    def stood(self, place: Indices) -> Found | None:
        """The plan with stages on these places [n]; nothing where they cannot stand there together."""
        wished = self.plain._replace(wished=place.astype(np.int64))
        if listing.run(self.prepared, self.board, wished) >= 0 or not np.array_equal(self.board.place, place):
            return None
        return self._found(plan_of(self.problem, self.prepared, self.board, "moved"))

    def below(self, made: Sequence[Found], cap: float, effort: float) -> list[Found]:
        """Plans that keep everything busy for no more than `cap` seconds a round, or come nearer than those that were made."""
        best = min(made, key=lambda each: self._value(each, cap))
        goals = [goal for goal in self.asked.goals if not goal.weight]
        timed = not self.asked.weights and (not goals or goals[0].by in (Measure.LATENCY, Measure.QUALITY))
        if timed and provable(self.problem):
            exact = [self._exact(best, cap, price, effort) for price in self._prices(best)]
            found = [each for each in exact if each is not None]
        else:
            found = [self._moved(best, cap)]
        return [each for each in found if not faults(self.problem, each.plan)]

    def lowered(self, made: Sequence[Found], cap: float) -> list[Found]:
        """The best plan as those that were made, but in variants that keep everything busy for no more than `cap` seconds a round."""
        if not self.lacks.any():
            return []
        allowed = self.prepared.allowed
        places = [lowered(self.problem, allowed, self.lacks, self.pace, each.plan.place, cap) for each in made]
        stood = [self.stood(place) for place in {tuple(place.tolist()): place for place in places}.values()]
        sound = [each for each in stood if each is not None and not faults(self.problem, each.plan)]
        return [min(sound, key=lambda each: self._value(each, cap))] if sound else []

    def _prices(self, best: Found) -> list[float]:
        """Seconds that what a variant lacks of 1 counts: for the best that hold the period, for some between, and for the fastest."""
        steps = np.diff(np.unique(self.lacks))
        steps = steps[steps > _SAME]
        if not len(steps):
            return [0.0]
        return [_DEAR * best.plan.objective / float(steps.min()), best.plan.objective / float(steps.sum()), 0.0]

    def _exact(self, best: Found, cap: float, price: float, effort: float) -> Found | None:
        """The fastest plan that holds, with a penalty for what each variant lacks beyond the best of its stage."""
        arrays = self.problem.arrays
        priced = self.problem._replace(arrays=arrays._replace(penalty=arrays.penalty + price * self.lacks))
        hint = best.plan._replace(penalty=penalty(priced, best.plan))
        plan, proven = within(priced, self.pace, cap, hint, effort=effort, seed=self.asked.seed)
        if plan is None and proven:
            self.none = max(self.none, cap)
        return None if plan is None else self._found(plan._replace(penalty=penalty(self.problem, plan)))

    def level(self, place: Indices, cap: float) -> Indices:
        """Places of the least busy bottleneck that is found, or of none busier than `cap`."""
        return levelled(self.problem, self.prepared, self.pace, place, cap, self.asked.seed)

    def _found(self, plan: Plan) -> Found:
        plan = timed(self.problem, plan)
        return Found(self.problem, plan, plan, bill(self.problem, self.asked.rates, plan))

    def _value(self, found: Found, cap: float) -> tuple[float, ...]:
        return (self._over(found.plan.place, cap), *rank(found, self.asked.goals, self.asked.deadline))

    def _over(self, place: Indices, cap: float) -> float:
        """By which share of `cap` the busiest is busier than that."""
        over = work(self.problem, place, self.pace).period / cap - 1 if cap else 0.0
        return over if over > _SAME else 0.0

    def _moved(self, best: Found, cap: float) -> Found:
        """Moves a stage, with those that share its node, to another place, and keeps what is no worse."""
        draw = np.random.default_rng(self.asked.seed)
        value = self._value(best, cap)
        for _ in range(MOVES):
            place = self.moves.elsewhere(best.plan.place, draw)
            # Most moves are worse in what is summed up at once, and need not be set out.
            if self._over(place, cap) > value[0]:
                continue
            found = self.stood(place)
            if found is not None and (now := self._value(found, cap)) <= value:
                best, value = found, now
        return best


def held_by_none(pace: Pace, least: Balanced) -> bool:
    """Whether it is shown that no placement holds the period."""
    return bool(pace.every) and least.bound > pace.cap * (1 + GRANTED)


class TooMuch(NamedTuple):
    """Stages that take too much for a period, wherever they stand. `smallest`: of all of them but any one a placement that holds it is known."""

    stages: tuple[int, ...]
    smallest: bool


def conflict(problem: Problem, pace: Pace, least: Balanced, effort: float) -> TooMuch | None:
    """A smallest set of stages that take too much for the period, wherever they stand; none where that is not shown.

    Smallest: without any of them the rest is not shown to be too much. What is left out is tried in halves, for most of many stages can be left
    out at once; at PLAN_SETTLED_CHOICES_MAX choices of all tries together it is given up, and none is told.
    """
    if least.place is None or not held_by_none(pace, least):
        return None
    core = [stage for stage in range(len(problem.stages)) if problem.arrays.seconds[stage].max() > 0]
    blocks, left, smallest = [core], limits.PLAN_SETTLED_CHOICES_MAX, True
    while blocks:
        block = blocks.pop(0)
        fewer = [stage for stage in core if stage not in block]
        left -= len(fewer) * len(problem.places)
        if left < 0:
            return None
        rest = balanced(problem, pace, least.place, of=fewer, effort=effort)
        if held_by_none(pace, rest):
            core = fewer
        elif len(block) > 1:
            half = len(block) // 2
            blocks += [block[:half], block[half:]]
        else:
            # What sums leave out, as the memory of models, may keep these from fitting too.
            place = rest.place
            smallest &= place is not None and work(taking(problem, fewer), place, pace).fits(pace.cap)
    return TooMuch(tuple(core), smallest)
