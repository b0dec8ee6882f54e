"""Looks long for better plans of `bench placement`'s instances, and keeps them in its file of best plans known.

The planner starts from what is known and from nothing in turns, with another seed each time. Then CP-SAT looks at the
whole of what has few stages, and at windows of the others: some stages that hang together or are neighbours on a
place may go anywhere, the rest stays where it is and may move in time. Plans are written after each instance, so that
it may be stopped at any time; what no instance has any more is dropped.

    python tools/bestknown.py [--factor F] [--sizes small,100,1000,10000,traces] [--traces FOLDER] [--seed N]
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from starloom.dag.errors import Infeasible
from starloom.orchestrator.bench.placing import best, instances, traces
from starloom.orchestrator.bench.placing.best import Best
from starloom.orchestrator.bench.placing.instances import Instance, digest
from starloom.orchestrator.bench.placing.peers import plans
from starloom.orchestrator.planner.exact import exact
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Plan, Problem

SECONDS: Final = {"small": 1.0, "traces": 2.0, "100": 3.5, "1000": 5.0, "10000": 15.0}
"""Of a core for one instance at factor 1, and as much again for CP-SAT: some 10 minutes in all."""

STARTS: Final = 4
STARTS_LARGE: Final = 2
"""For more stages than LARGE_MIN, whose search takes long to gain anything."""

LARGE_MIN: Final = 2_000
WHOLE_MAX: Final = 20
"""Stages of what CP-SAT looks at as a whole."""

WINDOWED_MAX: Final = 200
WINDOW: Final = 14
WINDOW_SECONDS: Final = 1.0
UNLIMITED: Final = 2**31 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--sizes", default=",".join(SECONDS))
    parser.add_argument("--traces", type=Path, default=traces.folder())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kept = best.load()
    if args.sizes == parser.get_default("sizes"):
        keep(kept, {digest(made.problem) for size in SECONDS for made in found(size, args.traces)})
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


def keep(kept: Best, digests: set[str]) -> None:
    """Drops all others."""
    for key in kept.known.keys() - digests:
        del kept.known[key]


def improve(made: Instance, kept: Best, seconds: float, seed: int) -> str:
    """Looks for so long, keeps what is better, and says what came of it."""
    known = kept.plan(made)
    before = known.objective if known else None
    for _, each in plans(made):
        known = offered(made, kept, each, known)
    starts = STARTS_LARGE if len(made.problem.stages) > LARGE_MIN else STARTS
    for start in range(starts):
        begin = time.process_time()
        budget = Budget(UNLIMITED, lambda begin=begin: time.process_time() - begin >= seconds / starts)  # type: ignore[misc]
        try:
            each = plan(made.problem, budget, seed + start, known if start % 2 else None)
        except Infeasible:
            continue
        known = offered(made, kept, each, known)
    if known is None:
        return "no plan"
    known = proved(made, kept, known, seconds, seed)
    gained = f", {before / known.objective - 1:.2%} better" if before else ""
    return f"{known.objective:.6g} s by {known.method}{gained}"


def proved(made: Instance, kept: Best, known: Plan, seconds: float, seed: int) -> Plan:
    """What CP-SAT makes of a plan."""
    n = len(made.problem.stages)
    if n <= WHOLE_MAX:
        proof = exact(made.problem, known, effort=10 * seconds, wall_seconds=10 * seconds, seed=seed)
        if proof.plan is not None:
            kept.offer(made, proof.plan, proven=proof.proven)
            return proof.plan
    draw, end = np.random.default_rng(seed), time.process_time() + seconds
    while n <= WINDOWED_MAX and time.process_time() < end:
        fixed = np.zeros(made.problem.arrays.seconds.shape, dtype=np.bool_)
        fixed[np.arange(n), known.place] = True
        fixed[window(made.problem, known, draw)] = True
        seconds_there = np.where(fixed, made.problem.arrays.seconds, np.inf)
        narrowed = made.problem._replace(arrays=made.problem.arrays._replace(seconds=seconds_there))
        proof = exact(narrowed, known, effort=WINDOW_SECONDS, wall_seconds=WINDOW_SECONDS)
        if proof.plan is not None and proof.plan.objective < known.objective:
            known = offered(made, kept, proof.plan._replace(method="windows"), known) or known
    return known


def window(problem: Problem, plan: Plan, draw: np.random.Generator) -> list[int]:
    """Stages around one that is drawn, of those that hang together in the job or follow each other on a place."""
    around: dict[int, list[int]] = {stage: [] for stage in range(len(plan.place))}
    pairs = list(zip(problem.arrays.upstream.tolist(), problem.arrays.downstream.tolist(), strict=True))
    for place in np.unique(plan.place):
        here = np.flatnonzero(plan.place == place)
        pairs += list(itertools.pairwise(here[np.argsort(plan.start[here], kind="stable")].tolist()))
    for one, other in pairs:
        around[one].append(other)
        around[other].append(one)
    found = [int(draw.integers(len(plan.place)))]
    while len(found) < WINDOW:
        near = sorted({other for stage in found for other in around[stage]} - set(found))
        if not near:
            break
        found.append(int(draw.choice(near)))
    return found


def offered(made: Instance, kept: Best, plan: Plan | None, known: Plan | None) -> Plan | None:
    """The better of two plans, which is kept."""
    return plan if plan is not None and kept.offer(made, plan) else known


if __name__ == "__main__":
    main()
