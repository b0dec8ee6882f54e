"""What `starloom plan` is asked of: one job or several, how often each comes, and the problem of placing them."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from starloom.agents.catalog import Catalog
from starloom.dag import slo as promised
from starloom.dag.constellation import Constellation, Goal
from starloom.dag.errors import InvalidConstellation, InvalidInput, NotFound, Problem
from starloom.dag.kinds import KindSpec
from starloom.dag.objective import objective_problems, read, shorthand
from starloom.dag.quantities import read_bytes
from starloom.dag.validate import problems
from starloom.orchestrator import fleetfile
from starloom.orchestrator.cli.check import read_constellation
from starloom.orchestrator.planner.building import Built, build
from starloom.orchestrator.planner.chunks import chunked
from starloom.orchestrator.planner.joining import joined, named
from starloom.orchestrator.planner.pacing import PACED, Promise
from starloom.orchestrator.planner.promises import Answering
from starloom.orchestrator.planner.steady import Pace, pace


class Jobs(NamedTuple):
    """What is to be planned. `all`: by name. `one`: all of them as one. `pace`: of jobs that come again and again, else none."""

    all: dict[str, Constellation]
    one: Constellation
    built: Built
    pace: Pace | None
    chunks: bool
    answering: Answering | None

    @property
    def goals(self) -> list[Goal]:
        """What plans make small of one round."""
        return [goal for goal in self.one.objective if goal.by not in PACED]

    @property
    def promises(self) -> list[Promise]:
        """What is promised of each job, in order."""
        return [Promise(each.slo, each.deadline_seconds) for each in self.all.values()]


def read_jobs(args: argparse.Namespace) -> Jobs:
    """The jobs that the command line names, and the problem of placing them on the fleet.

    Raises InvalidInput, InvalidConstellation, NotFound for a stage to explain that there is none of.
    """
    given, wrong = [], []
    for file in args.file:
        constellation, faults = _said(args, read_constellation(file))
        given.append(constellation)
        wrong += [each for each in faults if each not in wrong]
    jobs = named(given)
    one = given[0] if len(given) == 1 else msgspec.structs.replace(joined(jobs), objective=given[0].objective)
    sizes, unread = _sizes(args.input_bytes, one.inputs)
    wrong += [*unread, *_together(args, jobs)]
    if args.soft and args.out is None:
        wrong.append(Problem("--soft", "says how --out writes; give --out FILE"))
    if wrong:
        raise InvalidInput(wrong, "the command line is not right")
    fleet = fleetfile.read_file(args.fleet)
    kinds = Catalog().kinds
    for file, each in zip(args.file, given, strict=True):
        if found := problems(each, kinds):
            raise InvalidConstellation(found, f"{file} is not valid")
    if args.explain is not None and args.explain not in one.stages:
        raise NotFound(f"{one.name} has no stage {args.explain!r}; it has {', '.join(sorted(one.stages))}")
    if untold := list(_untold(jobs, kinds)):
        raise InvalidInput(untold, "not all that is promised can be planned for")
    chunks, built = bool(given[0].rate), build(one, kinds, fleet, sizes)
    if not chunks:
        return Jobs(jobs, one, built, _pace(jobs, built), chunks, _answering(one, kinds, fleet, built))
    built, alone = chunked(one, kinds, fleet, built)
    often = pace(built.problem, 1.0 / given[0].rate)._replace(alone=alone)
    return Jobs(jobs, one, built, often, chunks, None)


def _said(args: argparse.Namespace, constellation: Constellation) -> tuple[Constellation, list[Problem]]:
    """The constellation with what the command line says in its place, and what is wrong with that."""
    more: dict[str, Any] = {}
    wrong: list[Problem] = []
    if args.objective is not None:
        goals, wrong = read(shorthand(args.objective), "--objective")
        more["objective"] = goals
        wrong += objective_problems(goals, "--objective")
    if args.every is not None:
        plain = args.every.replace(".", "", 1).isdecimal()
        every, fault = promised.read_every(float(args.every) if plain else args.every)
        more |= {"every_seconds": every, "rate": 0.0}
        wrong += [Problem("--every", fault)] if fault else []
    if args.rate is not None:
        rate, fault = promised.read_rate(args.rate)
        more |= {"rate": rate, "every_seconds": 0.0}
        wrong += [Problem("--rate", fault)] if fault else []
    if args.slo is not None:
        more["slo"], unread = promised.read(promised.shorthand(args.slo), "--slo")
        wrong += unread
        said = [part.partition("=")[0].strip() for part in args.slo.split(",")]
        wrong += [Problem(f"--slo.{name}", "is said twice") for name in promised.FIELDS if said.count(name) > 1]
    if args.every is not None and args.rate is not None:
        wrong.append(Problem("--rate", "is of the chunks of one job's streams, and --every of jobs; give one of them"))
    return msgspec.structs.replace(constellation, **more), wrong


def _together(args: argparse.Namespace, jobs: dict[str, Constellation]) -> list[Problem]:
    """What stands in the way of a plan of several jobs."""
    if len(jobs) == 1:
        return []
    found = [
        Problem(
            name, "does not say how often it comes; jobs share nodes over time: say `every: 100ms` in it, or --every"
        )
        for name, each in jobs.items()
        if not each.every_seconds
    ]
    if len({each.objective for each in jobs.values()}) > 1:
        found.append(Problem("--objective", "the jobs have different objectives; say which one their plan has"))
    if args.out is not None:
        found.append(
            Problem("--out", "writes one constellation, and there are several; plan one by itself to write it")
        )
    return found


def _untold(jobs: dict[str, Constellation], kinds: Mapping[str, KindSpec]) -> Iterator[Problem]:
    """Promises of answers of which no stage tells when they begin."""
    for name, job in jobs.items():
        costs = [kinds[spec.kind].cost for spec in job.stages.values()]
        told = {
            "first_token": any(cost.first_token_seconds for cost in costs) and not job.rate,
            "token": any(cost.token_seconds for cost in costs) and not job.rate,
        }
        for what in promised.to_json(job.slo):
            if not told.get(what, True):
                yield Problem(
                    f"{name}.slo.{what}",
                    "is of stages that write an answer, and no kind here tells when it does; leave it out",
                )


def _pace(jobs: dict[str, Constellation], built: Built) -> Pace | None:
    """How rounds of the jobs follow each other; None where nothing is said or asked of that."""
    asked = any(goal.by in PACED for each in jobs.values() for goal in each.objective)
    if not asked and not any(each.every_seconds for each in jobs.values()):
        return None
    if len(jobs) == 1:
        return pace(built.problem, next(iter(jobs.values())).every_seconds)
    least = min(each.every_seconds for each in jobs.values())
    prefixes = [
        number
        for name in built.problem.stages
        for number, job in enumerate(jobs)
        if name.removeprefix("input ").removeprefix("output ").rpartition(".")[0] == job
    ]
    job = np.array(prefixes, dtype=np.int32)
    every = np.array([each.every_seconds for each in jobs.values()])
    return pace(built.problem, least)._replace(job=job, rate=least / every[job])


def _answering(one: Constellation, kinds: Any, fleet: fleetfile.Fleet, built: Built) -> Answering | None:
    """When stages that write an answer have begun it, as their kinds say it; None where none does."""
    first, token = np.zeros((2, *built.problem.arrays.seconds.shape))
    speeds = {(node.node.name, target): speed for node in fleet.nodes for target, speed in node.speed.items()}
    speed = np.array([speeds.get((place.node, place.target), 1.0) for place in built.problem.places])
    for row, name in enumerate(built.stages):
        cost = kinds[one.stages[name].kind].cost
        first[row], token[row] = cost.first_token_seconds / speed, cost.token_seconds / speed
    return Answering(first, token) if first.any() or token.any() else None


def _sizes(given: list[str], inputs: Any) -> tuple[dict[str, int], list[Problem]]:
    """Bytes by input, and what is wrong with what was given."""
    found: dict[str, int] = {}
    wrong: list[Problem] = []
    for each in given:
        name, _, size = each.partition("=")
        if name not in inputs:
            wrong.append(Problem("--input-bytes", f"{name!r} is no input; there are {', '.join(inputs) or 'none'}"))
            continue
        if name in found:
            wrong.append(Problem(f"--input-bytes {name}", "is said twice"))
            continue
        try:
            found[name] = read_bytes(int(size) if size.isdecimal() else size)
        except ValueError as error:
            wrong.append(Problem(f"--input-bytes {name}", str(error)))
    return found, wrong
