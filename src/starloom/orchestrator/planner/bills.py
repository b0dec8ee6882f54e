"""What a plan takes beside time: joules, money and quality, added up stage by stage and value by value; and what keeps each place busy."""

from typing import NamedTuple

import numpy as np

from starloom.dag.constellation import Measure
from starloom.orchestrator.planner.problem import Floats, Indices, Plan, Problem


class Rates(NamedTuple):
    """What a second and a byte take.

    `watts`, `price` [m]: of each second that a stage keeps a slot of the place. `joules_per_byte`, `price_per_byte` [k, k]:
    from row to column, zero on the diagonal. `loss` [n, v]: what each variant of a stage lacks of a quality of 1.
    """

    watts: Floats
    price: Floats
    joules_per_byte: Floats
    price_per_byte: Floats
    loss: Floats = np.zeros((1, 1))

    @property
    def any(self) -> bool:
        """Whether anything takes joules or money."""
        return any(bool(each.any()) for each in (self.watts, self.price, self.joules_per_byte, self.price_per_byte))


class Bill(NamedTuple):
    """`joules`, `price`: of all stages and links. `stage_joules`, `stage_price` [n]. `drawn` [k]: joules of each node's stages.

    `work` [m]: seconds that one job after another keeps each slot of a place busy, once all models are loaded. `stage_loss`
    [n]: what the variant of each stage lacks of a quality of 1.
    """

    joules: float
    price: float
    stage_joules: Floats
    stage_price: Floats
    drawn: Floats
    work: Floats
    stage_loss: Floats

    @property
    def loss(self) -> float:
        """What all stages lack of a quality of 1."""
        return float(self.stage_loss.sum())

    @property
    def period(self) -> float:
        """Seconds from one job to the next, at the least, where many follow each other: what the busiest place does for one."""
        return float(self.work.max(initial=0.0))


def bill(problem: Problem, rates: Rates, plan: Plan) -> Bill:
    """What a plan takes. A stage pays for as long as it keeps a slot, loading included; a value for each byte on a link."""
    arrays = problem.arrays
    kept, nodes = plan.finish - plan.start, arrays.node[plan.place]
    joules, price = kept * rates.watts[plan.place], kept * rates.price[plan.place]
    source, sink = nodes[arrays.upstream], nodes[arrays.downstream]
    moved = float((arrays.size_bytes * rates.joules_per_byte[source, sink]).sum())
    egress = float((arrays.size_bytes * rates.price_per_byte[source, sink]).sum())
    drawn = np.bincount(nodes, weights=joules, minlength=len(problem.nodes)).astype(np.float64)
    runs = arrays.seconds[np.arange(len(plan.place)), plan.place]
    busy = arrays.shares[plan.place]
    work: Floats = np.bincount(busy, weights=runs, minlength=len(problem.places)) / arrays.slots
    lacks = _loss(problem, rates)[np.arange(len(plan.place)), plan.place]
    return Bill(float(joules.sum()) + moved, float(price.sum()) + egress, joules, price, drawn, work, lacks)


def costs(problem: Problem, rates: Rates, measure: Measure) -> tuple[Floats, Floats]:
    """[n, m] what a stage takes there and [k, k] a byte on the way, in the measure's unit. What loading takes is left out.

    Who comes to load a model is no matter of one stage and one place.
    """
    by_second, by_byte = _by(rates, measure)
    if measure is Measure.QUALITY:
        return _loss(problem, rates), by_byte
    seconds = problem.arrays.seconds
    return np.where(np.isfinite(seconds), seconds, 0.0) * by_second[None, :], by_byte


def loading(problem: Problem, rates: Rates, measure: Measure) -> Floats:
    """[w, m]: what loading a model at a place takes, in the measure's unit; 0 where it cannot be loaded."""
    seconds = problem.arrays.load_seconds
    return np.where(np.isfinite(seconds), seconds, 0.0) * _by(rates, measure)[0][None, :]


def least(problem: Problem, rates: Rates, measure: Measure) -> float:
    """Less than this no plan takes: each stage where it takes least, nothing loaded or moved."""
    arrays = problem.arrays
    takes = np.where(np.isfinite(arrays.seconds), costs(problem, rates, measure)[0], np.inf)
    return float(takes.min(axis=1, initial=np.inf).sum())


def _loss(problem: Problem, rates: Rates) -> Floats:
    """[n, m]: what a stage's variant at each place lacks of a quality of 1."""
    arrays = problem.arrays
    return np.broadcast_to(rates.loss, (len(problem.stages), int(arrays.variant.max(initial=0)) + 1))[:, arrays.variant]


def best_variants(problem: Problem, rates: Rates) -> Problem | None:
    """The problem with no variant but the best that each stage can have anywhere; nothing where there are no others."""
    arrays = problem.arrays
    able = np.isfinite(arrays.seconds) & np.isfinite(arrays.penalty)
    loss = np.where(able, _loss(problem, rates), np.inf)
    worse = able & (loss > loss.min(axis=1, initial=np.inf, keepdims=True))
    if not worse.any():
        return None
    return problem._replace(arrays=arrays._replace(seconds=np.where(worse, np.inf, arrays.seconds)))


def no_worse(problem: Problem, rates: Rates, place: Indices) -> Problem:
    """The problem with no variant of a stage that lacks more than that of its place [n]."""
    arrays, loss = problem.arrays, _loss(problem, rates)
    worse = loss > loss[np.arange(len(place)), place][:, None]
    return problem._replace(arrays=arrays._replace(seconds=np.where(worse, np.inf, arrays.seconds)))


def _by(rates: Rates, measure: Measure) -> tuple[Floats, Floats]:
    if measure is Measure.QUALITY:
        return np.zeros_like(rates.watts), np.zeros_like(rates.joules_per_byte)
    if measure is Measure.ENERGY:
        return rates.watts, rates.joules_per_byte
    return rates.price, rates.price_per_byte
