"""What rounds that follow each other take of each slot, link and memory: where a period cannot be less. Pure.

A resource that is busy for so many seconds of each round cannot be had more often than that, however rounds overlap; and
where no resource is busy all the time, work that is done oldest round first does not pile up.
"""

from typing import NamedTuple

import numpy as np

from starloom.dag import limits
from starloom.orchestrator.planner.problem import NO_MODEL, Flags, Floats, Indices, Problem, working
from starloom.orchestrator.planner.uplinks import carried

GRANTED = 1e-6
"""The share by which rounding may put a resource above what it may be busy."""


class Pace(NamedTuple):
    """How rounds follow each other.

    `every`: seconds from one to the next of the job that comes most often; 0 for as often as can be. `rate` [n]: rounds of the
    stage's job for each of those. `alone` [n]: a stage that takes one round's work after the other, as one that reads a
    stream does, whatever slots there are. `job` [n]: whose stage it is. `deviation` [n]: of a run's seconds, as a share.
    """

    every: float
    rate: Floats
    alone: Flags
    job: Indices
    deviation: Floats

    @property
    def cap(self) -> float:
        """Seconds of each round that a resource may be busy."""
        return self.every * limits.PLAN_LOAD_MAX

    @property
    def jobs(self) -> int:
        """How many jobs there are."""
        return int(self.job.max(initial=-1)) + 1

    def period(self, job: int) -> float:
        """Seconds from one round of this job to its next."""
        return self.every / float(self.rate[self.job == job].max())


def pace(problem: Problem, every: float, *, deviation: float = limits.PLAN_DEVIATION) -> Pace:
    """One job, each stage of which may run on as many slots as there are."""
    n = len(problem.stages)
    return Pace(every, np.ones(n), np.zeros(n, np.bool_), np.zeros(n, np.int32), np.full(n, deviation))


class Work(NamedTuple):
    """Seconds that each resource is busy for each round: a period is no less than the greatest of them.

    `places` [m]: of each slot of the place, shared evenly; of a target's variants all at the first. `links` [k, k]: from row to column, one value after the other. `memory` [k]:
    what working sets hold, times how long, over what models leave. `stages` [n]: of stages that are alone; else 0. `uplinks` [c]: of
    each channel of those that nodes share.
    """

    places: Floats
    links: Floats
    memory: Floats
    stages: Floats
    uplinks: Floats

    @property
    def period(self) -> float:
        """Seconds from one round to the next, at the least."""
        return max(float(each.max(initial=0.0)) for each in self)

    @property
    def least_period(self) -> float:
        """Seconds of the period at which the busiest resource is as full as it may be."""
        return self.period / limits.PLAN_LOAD_MAX

    def fits(self, cap: float) -> bool:
        """Whether nothing is busy for more than `cap` seconds a round, to rounding."""
        return self.period <= cap * (1 + GRANTED)


class Load(NamedTuple):
    """A resource, in words, and what it does for each round: the seconds that it is busy, and for which stages."""

    what: str
    kind: str
    seconds: float
    stages: tuple[int, ...]


def work(problem: Problem, place: Indices, pace: Pace) -> Work:
    """What rounds take with stages on these places [n], once all models are loaded."""
    arrays, k = problem.arrays, len(problem.nodes)
    runs = arrays.seconds[np.arange(len(place)), place] * pace.rate
    nodes = arrays.node[place]
    places = np.bincount(arrays.shares[place], weights=runs, minlength=len(problem.places)) / arrays.slots
    links = np.zeros((k, k))
    np.add.at(links, (nodes[arrays.upstream], nodes[arrays.downstream]), sending(problem, place) * rates(problem, pace))
    held = np.bincount(nodes, weights=runs * working(arrays, place), minlength=k)
    with np.errstate(divide="ignore", invalid="ignore"):
        memory = np.where(held > 0, held / room(problem, place), 0.0)
    uplinks = np.array([each.seconds for each in carried(problem, place, rates(problem, pace))])
    return Work(places, links, memory, np.where(pace.alone, runs, 0.0), uplinks)


def sending(problem: Problem, place: Indices) -> Floats:
    """[e]: seconds that each dependency's value keeps its link busy; how long the way is does not count."""
    arrays = problem.arrays
    a, b = arrays.node[place[arrays.upstream]], arrays.node[place[arrays.downstream]]
    # Of nothing, a link without end carries nothing: infinity times zero is no number.
    moves = arrays.size_bytes > 0
    return np.where(moves, arrays.size_bytes * np.where(moves, arrays.seconds_per_byte[a, b], 0.0), 0.0)


def rates(problem: Problem, pace: Pace) -> Floats:
    """[e]: how often each dependency carries a value, in rounds."""
    found: Floats = pace.rate[problem.arrays.upstream]
    return found


def room(problem: Problem, place: Indices) -> Floats:
    """[k]: bytes that the models of these places leave on each node; none left is 0."""
    arrays = problem.arrays
    held = arrays.resident.copy()
    has = np.flatnonzero(arrays.model != NO_MODEL)
    held[arrays.model[has], arrays.node[place[has]]] = True
    left: Floats = np.maximum(arrays.memory_bytes - arrays.weight_bytes @ held, 0.0)
    return left


def loads(problem: Problem, place: Indices, pace: Pace) -> list[Load]:
    """What is busy at all, the busiest first."""
    arrays, taken = problem.arrays, work(problem, place, pace)
    runs = arrays.seconds[np.arange(len(place)), place]
    nodes = arrays.node[place]
    found = [
        Load(
            str(problem.places[at]), "slots", float(taken.places[at]), _where((arrays.shares[place] == at) & (runs > 0))
        )
        for at in np.flatnonzero(taken.places)
    ]
    source, sink, sends = nodes[arrays.upstream], nodes[arrays.downstream], sending(problem, place) > 0
    for a, b in np.argwhere(taken.links > 0):
        here = (source == a) & (sink == b) & sends
        name = f"the link from {node(problem, a)} to {node(problem, b)}"
        senders = tuple(dict.fromkeys(arrays.upstream[here].tolist()))
        found.append(Load(name, "link", float(taken.links[a, b]), senders))
    over = carried(problem, place, rates(problem, pace))
    found += [Load(f"the up-link {each.name}", "uplink", each.seconds, each.stages) for each in over]
    for at in np.flatnonzero(taken.memory).tolist():
        holders = _where((nodes == at) & (working(arrays, place) > 0) & (runs > 0))
        found.append(Load(f"the memory of {node(problem, at)}", "memory", float(taken.memory[at]), holders))
    lonely = np.flatnonzero(taken.stages).tolist()
    found += [Load(problem.stages[stage], "stage", float(taken.stages[stage]), (stage,)) for stage in lonely]
    return sorted(found, key=lambda each: -each.seconds)


def node(problem: Problem, index: int) -> str:
    """What a node is called in words."""
    return problem.nodes[index] or "the job store"


def _where(flags: Flags) -> tuple[int, ...]:
    return tuple(np.flatnonzero(flags).tolist())
