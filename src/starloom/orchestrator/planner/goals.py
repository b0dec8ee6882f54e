"""Plans for more than time: each measure as a penalty in seconds, plans at several weights, and the best by the goals.

Energy, price and what is lost of quality are sums over stages and their places and over values and their links, so that they fit a problem's
penalties, and every way to plan takes them in. Goals in order are met by choosing among plans between the fastest and
that which takes least: no plan in between is missed for the order alone, but only some of them are looked at. Of a small
job that which takes least within a deadline is proven as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

from starloom.dag.constellation import Goal, Measure
from starloom.dag.errors import Infeasible
from starloom.orchestrator.planner.bills import Bill, Rates, best_variants, bill, costs, least, loading, no_worse
from starloom.orchestrator.planner.check import penalty
from starloom.orchestrator.planner.frugal import frugal
from starloom.orchestrator.planner.problem import PROVEN, Plan, Problem, provable
from starloom.orchestrator.planner.uplinks import timed

SHARES: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1_000.0)
"""What all that the fastest plan takes counts at each weight, in times its seconds."""

SAME: Final = 1e-9
"""The share by which rounding may set apart what is the same."""

MILLIONTHS: Final = 1e-5
"""The share by which ticks may, in which least is proven."""

Planned = Callable[[Problem, Plan | None], Plan]
"""Plans a problem, beginning with a plan. Raises Infeasible."""


class Found(NamedTuple):
    """`problem`: with penalties that weigh the measures, which `priced` minimises. `plan`: as the problem without them has it.

    `bound`: seconds below which no plan's objective was shown to be, to some millionths, without these penalties and of the variants
    that this one is of; 0 where nothing was.
    """

    problem: Problem
    priced: Plan
    plan: Plan
    bill: Bill
    bound: float = 0.0

    def value(self, measure: Measure) -> float:
        """What the plan takes of a measure; of latency, the seconds with what is disliked."""
        return {
            Measure.LATENCY: self.plan.objective,
            Measure.ENERGY: self.bill.joules,
            Measure.PRICE: self.bill.price,
            Measure.QUALITY: self.bill.loss,
        }[measure]

    def ends_by(self, deadline: float) -> bool:
        """Whether it ends in time, to rounding; in any case where `deadline` is 0."""
        return not deadline or self.plan.makespan <= deadline * (1 + SAME)


class Asked(NamedTuple):
    """What is asked of a plan: `rates` tell what it takes, `goals` what is to be small, `deadline` seconds, 0 for none.

    `effort`: CP-SAT's deterministic time for the least within a deadline, where the job is small enough; with `seed`.
    """

    rates: Rates
    goals: Sequence[Goal] = ()
    deadline: float = 0.0
    effort: float = 0.0
    seed: int = 0

    @property
    def weights(self) -> Mapping[Measure, float]:
        """Seconds for a unit of each measure but latency, where the goals are weighed; nothing where they are in order."""
        weights = {goal.by: goal.weight for goal in self.goals if goal.weight}
        seconds = weights.pop(Measure.LATENCY, 1.0)
        return {measure: weight / seconds for measure, weight in weights.items()}

    @property
    def others(self) -> list[Measure]:
        """The measures but latency that goals in order name."""
        return _others(self.goals)


def weighed(problem: Problem, rates: Rates, weights: Mapping[Measure, float]) -> Problem:
    """The problem with so many seconds of penalty for each joule, and for each of what prices are in."""
    penalties, byte_penalties = problem.arrays.penalty, problem.arrays.byte_penalty
    for measure, weight in weights.items():
        if measure is not Measure.LATENCY and weight:
            by_place, by_byte = costs(problem, rates, measure)
            penalties, byte_penalties = penalties + weight * by_place, byte_penalties + weight * by_byte
    return problem._replace(arrays=problem.arrays._replace(penalty=penalties, byte_penalty=byte_penalties))


def tries(goals: Sequence[Goal], *, fallback: bool = False) -> int:
    """How many plans `find` has made at the most. `fallback`: it may have to take worse variants to end in time."""
    others = _others(goals)
    more = tries(_quality_first(goals)) if fallback and not _names_quality(goals) else 0
    more += tries(goals) if more and _named_beside(goals) else 0
    return 1 + len(SHARES) * (len(others) + (len(others) > 1)) + more


def find(problem: Problem, asked: Asked, planned: Planned, warm: Plan | None = None) -> Found:
    """The best plan by the goals of those that were made, and of these of those that end in time if there are any.

    Of a small job (`provable`) the plan that takes least in time is looked for as well. Where no goal
    is quality, each stage has its best variant, and a worse one only where there is no plan in time else: then no more is
    lost than need be. The same for the same arguments, where `planned` is. Raises Infeasible as that does.
    """
    best_only = None if _names_quality(asked.goals) else best_variants(problem, asked.rates)
    if best_only is None:
        return _find(problem, asked, planned, warm)
    with suppress(Infeasible):
        found = _find(best_only, asked, planned, warm)
        if found.ends_by(asked.deadline):
            return found
    return _losing(problem, asked, planned, warm)


def _losing(problem: Problem, asked: Asked, planned: Planned, warm: Plan | None) -> Found:
    """The best plan of those that lose least of quality, where all stages' best variants have none in time."""
    goals = _quality_first(asked.goals)
    found = _find(problem, asked._replace(goals=goals), planned, warm)
    if not _named_beside(asked.goals):
        return found
    # What was looked for first is quality: what the goals name is looked for among plans of these variants.
    alike, each = no_worse(problem, asked.rates, found.plan.place), [found]
    with suppress(Infeasible):
        each.append(_find(alike, asked, planned, found.plan))
    chosen = best(each, goals, asked.deadline)
    # That no plan loses less may be proven, and that no other variants that lose as little take less is not.
    return chosen._replace(plan=chosen.plan._replace(method=_unproven(chosen)), bound=found.bound)


def _find(problem: Problem, asked: Asked, planned: Planned, warm: Plan | None) -> Found:
    first = _found(problem, asked.rates, asked.weights, planned, warm)
    cheap, proven, fastest = _least(problem, asked, first)
    found = [first, *([cheap] if cheap else [])]
    # What is proven to take least, and then to be the fastest, needs no others to choose from.
    for measures in [] if proven and fastest and _ends_there(asked.goals) else _together(asked.others):
        before = first
        for share in SHARES:
            if weights := _weights(first, measures, share):
                before = _found(problem, asked.rates, weights, planned, before.priced)
                found.append(before)
    named = _named(problem, best(found, asked.goals, asked.deadline), asked, cheap if proven else None)
    # What is weighed is another problem, and what takes least is proven of another measure.
    shown = not asked.weights and first.priced.method.endswith(PROVEN)
    return named._replace(bound=first.priced.objective if shown else 0.0)


def best(found: Sequence[Found], goals: Sequence[Goal], deadline: float = 0.0) -> Found:
    """Of several plans the best: of those that end in time, those within reach of the least, goal by goal; or by weights."""
    left = [each for each in found if each.ends_by(deadline)] or list(found)
    if not _names_quality(goals):
        reach = min(each.value(Measure.QUALITY) for each in left)
        left = [each for each in left if each.value(Measure.QUALITY) <= reach + SAME]
    if any(goal.weight for goal in goals):
        return min(left, key=lambda each: rank(each, goals))
    for goal in goals:
        reach = min(each.value(goal.by) for each in left)
        left = [each for each in left if each.value(goal.by) <= reach * (1 + goal.within + SAME)]
    last = (Measure.LATENCY, Measure.ENERGY, Measure.PRICE, Measure.QUALITY)
    order = [*(goal.by for goal in goals if goal.within), *last]
    return min(left, key=lambda each: [each.value(measure) for measure in order])


def rank(found: Found, goals: Sequence[Goal], deadline: float = 0.0) -> tuple[float, ...]:
    """How good a plan is, the less the better: what ends in time first, then by weights, or by each measure in turn.

    Quality comes before all that is named, unless it is named itself.
    """
    first = 0.0 if found.ends_by(deadline) else 1.0, 0.0 if _names_quality(goals) else found.value(Measure.QUALITY)
    if any(goal.weight for goal in goals):
        weights = {Measure.LATENCY: 1.0} | {goal.by: goal.weight for goal in goals}
        return *first, sum(weight * found.value(by) for by, weight in weights.items())
    return *first, *(found.value(goal.by) for goal in goals), found.value(Measure.LATENCY)


def rated(problem: Problem, rates: Rates, plan: Plan) -> Found:
    """A plan of the problem, and what it takes."""
    return Found(problem, plan, plan, bill(problem, rates, plan))


def _least(problem: Problem, asked: Asked, first: Found) -> tuple[Found | None, bool, bool]:
    """Of a small job what takes least of the first measure that is none of time, in time; whether that is proven.

    And whether it is as fast as it was found, with no value on an up-link put off by others.
    """
    in_time, small = first.ends_by(asked.deadline), provable(problem)
    weights = _weights(first, asked.others[:1], 1.0) or asked.weights
    # What is weighed is no sum of costs alone, and what is fast needs no other plan, as long as it ends in time.
    if not small or asked.effort <= 0 or (in_time and not (asked.others and weights)):
        return None, False, False
    latest = asked.deadline or math.inf
    if asked.others and asked.goals[0].by is Measure.LATENCY and in_time:
        latest = min(latest, first.value(Measure.LATENCY) * (1 + asked.goals[0].within))
    # What is disliked counts as seconds do, which come after what takes least.
    priced = weighed(_unpriced(problem) if asked.others else problem, asked.rates, weights)
    loads = np.zeros_like(problem.arrays.load_seconds)
    for measure, weight in weights.items():
        loads += weight * loading(problem, asked.rates, measure)
    made = frugal(priced.free, latest, loads, first.priced, effort=asked.effort, seed=asked.seed)
    if made.plan is None:
        return None, False, False
    # What others on an up-link put off may come too late: then there may be another in time, that takes more.
    plan = timed(problem, made.plan)
    in_time, fastest = plan.makespan <= latest * (1 + SAME), plan.makespan <= made.plan.makespan * (1 + SAME)
    return _as_found(problem, asked.rates, priced, plan), made.proven and in_time, fastest


def _names_quality(goals: Sequence[Goal]) -> bool:
    return any(goal.by is Measure.QUALITY for goal in goals)


def _named_beside(goals: Sequence[Goal]) -> bool:
    """Whether anything but seconds is to be small."""
    return any(goal.by is not Measure.LATENCY for goal in goals)


def _quality_first(goals: Sequence[Goal]) -> list[Goal]:
    """The goals in order behind quality; of weighed ones the one that weighs most first."""
    others = sorted(goals, key=lambda goal: -goal.weight)
    return [Goal(by=Measure.QUALITY), *(Goal(by=goal.by, within=goal.within) for goal in others)]


def _ends_there(goals: Sequence[Goal]) -> bool:
    """Whether goals in order end with the first measure that is none of time, or with seconds after it."""
    order = [goal.by for goal in goals]
    if order[:1] == [Measure.LATENCY]:
        return len(order) <= 2
    return len(_others(goals)) == 1 and not goals[0].within


def _unpriced(problem: Problem) -> Problem:
    """The problem without any penalty but those that forbid."""
    arrays = problem.arrays
    return problem._replace(
        arrays=arrays._replace(
            penalty=np.where(np.isfinite(arrays.penalty), 0.0, arrays.penalty),
            byte_penalty=np.where(np.isfinite(arrays.byte_penalty), 0.0, arrays.byte_penalty),
            crowding=np.where(np.isfinite(arrays.crowding), 0.0, arrays.crowding),
        )
    )


def _named(problem: Problem, found: Found, asked: Asked, proof: Found | None) -> Found:
    """With a method that calls proven what is: a weight's best plan is not the best by goals in order."""
    if asked.weights:
        # Penalties leave out what loading takes: with nothing to load, none of all plans can be better.
        whole = found.value(Measure.LATENCY) + sum(by * found.value(each) for each, by in asked.weights.items())
        proven = whole <= found.priced.objective * (1 + MILLIONTHS)
        return found if proven else found._replace(plan=found.plan._replace(method=_unproven(found)))
    if not asked.others:
        return found
    method, first = _unproven(found), asked.goals[0]
    if first.by in asked.others and not first.within and found.ends_by(asked.deadline):
        # Nothing takes less than each stage by itself does.
        bound = max(least(problem, asked.rates, first.by), proof.value(first.by) if proof else 0.0)
        method += PROVEN if found.value(first.by) <= bound * (1 + MILLIONTHS) else ""
    return found._replace(plan=found.plan._replace(method=method))


def _unproven(found: Found) -> str:
    return found.plan.method.removesuffix(PROVEN)


def _others(goals: Sequence[Goal]) -> list[Measure]:
    return [goal.by for goal in goals if goal.by is not Measure.LATENCY and not goal.weight]


def _weights(first: Found, measures: Sequence[Measure], share: float) -> dict[Measure, float]:
    """At which all that the first plan takes of each measure counts so many times its seconds."""
    values = {measure: first.value(measure) for measure in measures}
    weights = {each: share * first.plan.objective / value for each, value in values.items() if value > 0}
    # What takes next to nothing would count without end, and no place could be had at that price.
    return {each: weight for each, weight in weights.items() if math.isfinite(weight)}


def _found(
    problem: Problem, rates: Rates, weights: Mapping[Measure, float], planned: Planned, warm: Plan | None
) -> Found:
    asked = weighed(problem, rates, weights)
    return _as_found(problem, rates, asked, planned(asked, warm))


def _as_found(problem: Problem, rates: Rates, asked: Problem, priced: Plan) -> Found:
    plain = priced._replace(penalty=penalty(problem, priced))
    return Found(asked, priced, plain, bill(problem, rates, plain))


def _together(measures: Sequence[Measure]) -> list[Sequence[Measure]]:
    return [*([measure] for measure in measures), *([measures] if len(measures) > 1 else [])]
