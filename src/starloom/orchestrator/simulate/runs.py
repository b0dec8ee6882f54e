"""Many seeds, in several processes, and what they come to together."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Final

from starloom.dag.errors import StarloomError
from starloom.dag.facts import JobStatus
from starloom.orchestrator.simulate.judge import Violation
from starloom.orchestrator.simulate.world import Setup, World
from starloom.orchestrator.withparent import die_with_parent

PROCESSES_MAX: Final = 16
SEEDS_AT_ONCE: Final = 8
VIOLATIONS_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Result:
    """One seed's run. `digest` is of its journal; `faults` counts those that happened, by name."""

    seed: int
    jobs: int
    succeeded: int
    facts: int
    events: int
    virtual_seconds: float
    digest: str
    faults: dict[str, int]
    violations: tuple[Violation, ...]


@dataclass(slots=True)
class Sum:
    """What the runs of all seeds come to. `digest` is over those of the seeds, in their order."""

    seeds: int
    jobs: int
    succeeded: int
    facts: int
    events: int
    virtual_seconds: float
    wall_seconds: float
    digest: str
    faults: dict[str, int]
    failed: list[Result]


def run(seed: int, setup: Setup) -> Result:
    """One seed. An error that the coordinator raises is a violation as well."""
    world = World(seed, setup)
    try:
        world.run()
    # Whatever the parts under test raise is what the run was to find.
    except Exception as error:
        world.judge.violated("nothing is raised", f"{type(error).__name__}: {error}")
    journal = hashlib.sha256()
    for line in world.disk.lines:
        journal.update(line)
        journal.update(b"\n")
    jobs = world.judge.jobs.values()
    return Result(
        seed=seed,
        jobs=len(jobs),
        succeeded=sum(job.status is JobStatus.SUCCEEDED for job in jobs),
        facts=len(world.disk.lines),
        events=world.loop.events,
        virtual_seconds=world.loop.seconds,
        digest=journal.hexdigest(),
        faults={str(what): count for what, count in sorted(world.trouble.counts.items())},
        violations=tuple(world.judge.violations),
    )


def run_all(first: int, count: int, setup: Setup, told: Callable[[Result], None] = lambda result: None) -> Sum:
    """The seeds from `first` on; `told` gets each as it ends, in order."""
    began = time.monotonic()
    total = Sum(count, 0, 0, 0, 0, 0.0, 0.0, "", {}, [])
    digests = hashlib.sha256()
    for result in _results(range(first, first + count), setup):
        told(result)
        digests.update(result.digest.encode())
        total.jobs += result.jobs
        total.succeeded += result.succeeded
        total.facts += result.facts
        total.events += result.events
        total.virtual_seconds += result.virtual_seconds
        for name, times in result.faults.items():
            total.faults[name] = total.faults.get(name, 0) + times
        if result.violations:
            total.failed.append(result)
        total.digest = result.digest
    if count > 1:
        total.digest = digests.hexdigest()
    total.wall_seconds = time.monotonic() - began
    return total


def _results(seeds: range, setup: Setup) -> Iterator[Result]:
    processes = min(len(seeds), len(os.sched_getaffinity(0)), PROCESSES_MAX)
    if processes < 2:
        yield from map(partial(run, setup=setup), seeds)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), die_with_parent, (os.getpid(),)) as pool:
        at_once = max(1, min(SEEDS_AT_ONCE, len(seeds) // (2 * processes)))
        try:
            yield from pool.map(partial(run, setup=setup), seeds, chunksize=at_once)
        except BrokenProcessPool as error:
            raise StarloomError(
                "a process of the simulation was killed; give it more memory, or fewer nodes"
            ) from error
