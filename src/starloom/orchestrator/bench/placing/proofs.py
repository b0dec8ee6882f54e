"""How many plans of small jobs are proven to be the best there are, within seconds."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from starloom.orchestrator.bench.harness import percentile, summary
from starloom.orchestrator.bench.placing import instances
from starloom.orchestrator.bench.placing.cases import Shape, feasible
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import PROVEN, Problem

SECONDS: Final = 2.0
SPENT: Final = 1.9
"""The seconds after which CP-SAT is to stop: it takes a while to."""

SHAPE: Final = Shape(stages=(10, 15), nodes=(3, 8))
DRAWN: Final = 200
_MILLI: Final = 1_000.0
_P95: Final = 95


def run(scale: float, note: Callable[[str], None]) -> dict[str, Any]:
    """Plans each, and tells how many are proven within SECONDS, of which kinds, what that took, and which are not."""
    figures: dict[str, Any] = {}
    for kind, problems in _kinds(scale).items():
        taken, missed = [], []
        for name, problem in problems:
            begin = time.perf_counter()
            found = plan(problem, Budget(effort=SECONDS, effort_seconds=SPENT))
            seconds = time.perf_counter() - begin
            taken.append(_MILLI * seconds)
            if not found.method.endswith(PROVEN) or seconds > SECONDS:
                missed.append(name)
                note(f"not proven within {SECONDS:g} s: {name}, {seconds:.2f} s")
        if taken:
            figures[kind] = {
                "plans": len(taken),
                "proven": len(taken) - len(missed),
                "median_ms": summary(taken).median,
                "p95_ms": percentile(taken, _P95),
                "worst_ms": max(taken),
                "missed": missed,
            }
    return figures


def _kinds(scale: float) -> dict[str, Iterator[tuple[str, Problem]]]:
    specs = instances.specs(instances.SMALL)[:: max(1, round(1 / scale))]
    drawn = range(max(1, round(DRAWN * scale)))
    return {
        "constrained": ((spec.name, instances.instance(spec).problem) for spec in specs if spec.constrained),
        "free": ((spec.name, instances.instance(spec).problem) for spec in specs if not spec.constrained),
        "drawn": ((f"case {seed}", feasible(seed, SHAPE).problem) for seed in drawn),
    }
