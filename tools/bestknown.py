"""Looks long for better plans of `bench placement`'s instances, and keeps them in its file of best plans known.

Starts from what is known and from nothing in turns, with another seed each time. Factor 1 takes some 10 minutes of a
core; plans are written after each instance, so that it may be stopped at any time.

    python tools/bestknown.py [--factor F] [--sizes small,100,1000,10000,traces] [--traces FOLDER] [--seed N]
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.placing import best, instances, traces
from starloom.orchestrator.bench.placing.best import Best
from starloom.orchestrator.bench.placing.instances import Instance
from starloom.orchestrator.bench.placing.peers import plans
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Plan

SECONDS: Final = {"small": 1.0, "100": 4.0, "traces": 4.0, "1000": 10.0, "10000": 30.0}
"""Of one instance, at factor 1."""

STARTS: Final = 4
UNLIMITED: Final = 2**31 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--sizes", default=",".join(SECONDS))
    parser.add_argument("--traces", type=Path, default=traces.folder())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kept = best.load()
    for size in args.sizes.split(","):
        for made in found(size, args.traces):
            told = improve(made, kept, args.factor * SECONDS[size], args.seed)
            sys.stdout.write(f"{made.name}: {told}\n")
            sys.stdout.flush()
            best.save(kept)


def found(size: str, folder: Path) -> Iterator[Instance]:
    """The instances of one size."""
    if size == "traces":
        yield from traces.instances(folder)
    else:
        yield from map(instances.instance, instances.specs(size))


def improve(made: Instance, kept: Best, seconds: float, seed: int) -> str:
    """Looks for so long, keeps what is better, and says what came of it."""
    known = kept.plan(made)
    before = known.objective if known else None
    for _, each in plans(made):
        known = offered(made, kept, each, known)
    for start in range(STARTS):
        begin = time.perf_counter()
        budget = Budget(UNLIMITED, lambda begin=begin: time.perf_counter() - begin >= seconds / STARTS)  # type: ignore[misc]
        try:
            each = plan(made.problem, budget, seed + start, known if start % 2 else None)
        except Infeasible:
            continue
        known = offered(made, kept, each, known)
    if known is None:
        return "no plan"
    gained = f", {before / known.objective - 1:.2%} better" if before else ""
    return f"{known.objective:.6g} s by {known.method}{gained}"


def offered(made: Instance, kept: Best, plan: Plan | None, known: Plan | None) -> Plan | None:
    """The better of two plans, which is kept."""
    return plan if plan is not None and kept.offer(made, plan) else known


if __name__ == "__main__":
    main()
