"""Plans of jobs of 100 stages whose busiest node is lost on the way: how soon there is a new one, and how good it is."""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.harness import percentile, summary
from starloom.orchestrator.bench.placing import instances
from starloom.orchestrator.planner.check import faults
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Plan, Problem
from starloom.orchestrator.planner.renewing import Event, renew

AT: Final = 0.4
"""When the node is lost, as a share of the makespan."""

SECONDS: Final = 0.03
"""After which a new plan's search ends; what is left is prepared before it, and checked after it."""

_FIRST_SECONDS: Final = 0.1
LONG_SECONDS: Final = 2.0
_LONG_SEEDS: Final = 2
_UNLIMITED: Final = 2**31 - 1
_MILLI: Final = 1_000.0
_P99: Final = 99


def run(repeat: int, scale: float, note: Callable[[str], None]) -> dict[str, Any]:
    """Loses the busiest node of each plan once a repetition: the milliseconds that renewing took, and how good plans are.

    `ratio`: objectives over the best found, by that and by searches that go on from it and from nothing for seconds.
    `hopeless`: where some stage has no place without the node, which is told instead.
    """
    taken: list[float] = []
    ratios: list[float] = []
    hopeless: list[str] = []
    for spec in instances.specs(instances.HUNDRED)[:: max(1, round(1 / scale))]:
        problem = instances.instance(spec).problem
        for seed in range(repeat):
            old = plan(problem, _for(_FIRST_SECONDS), seed)
            event = Event(AT * old.makespan, frozenset({busiest(problem, old)}))
            begin = time.perf_counter()
            try:
                new = renew(problem, old, event, _for(SECONDS), seed)
            except Infeasible:
                hopeless.append(f"{spec.name}, {seed}")
                continue
            taken.append(_MILLI * (time.perf_counter() - begin))
            assert not faults(new.problem, new.plan)
            best = _best(new.problem, new.plan)
            ratios.append(new.plan.objective / best)
            note(f"{spec.name}, {seed}: {taken[-1]:.1f} ms, {ratios[-1]:.3f} of the best found")
    if not taken:
        return {"renewed": 0, "hopeless": hopeless}
    return {
        "renewed": len(taken),
        "hopeless": hopeless,
        "median_ms": summary(taken).median,
        "p99_ms": percentile(taken, _P99),
        "worst_ms": max(taken),
        "mean_ratio": float(np.mean(ratios)),
        "worst_ratio": max(ratios),
    }


def busiest(problem: Problem, plan: Plan) -> str:
    """The node whose stages take most seconds, all together."""
    nodes = problem.arrays.node[plan.place]
    work = np.bincount(nodes, weights=plan.finish - plan.start, minlength=len(problem.nodes))
    return problem.nodes[int(np.argmax(work))]


def _best(left: Problem, found: Plan) -> float:
    """The best objective that some seconds of search find."""
    best = found
    for seed in range(_LONG_SEEDS):
        for warm in (best, None):
            other = plan(left, _for(LONG_SECONDS / 2 / _LONG_SEEDS), seed, warm)
            best = min(best, other, key=lambda each: each.objective)
    return best.objective


def _for(seconds: float) -> Budget:
    end = time.perf_counter() + seconds
    return Budget(_UNLIMITED, lambda: time.perf_counter() >= end)
