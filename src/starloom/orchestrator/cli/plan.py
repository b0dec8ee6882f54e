"""`starloom plan`: where and when the stages of a constellation would run on a fleet, and why; without a cluster."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starloom.dag.errors import Infeasible, InvalidConstellation, InvalidInput, NotFound, Problem
from starloom.dag.quantities import read_bytes
from starloom.orchestrator.cli.check import read_constellation
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, count, factor

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.orchestrator.planner.building import Built
    from starloom.orchestrator.planner.goals import Asked, Found
    from starloom.orchestrator.planner.planning import Budget
    from starloom.orchestrator.planner.problem import Plan
    from starloom.orchestrator.planner.problem import Problem as PlannedProblem

_MILLIS: Final = 1000.0
_PICTURE_WIDTH: Final = 120


def add_parsers(commands: Commands) -> None:
    """Adds `plan`."""
    parser = add_command(commands, "plan", run_plan, "where and when stages would run on a fleet, and why")
    parser.add_argument("file", type=Path, metavar="FILE", help="a constellation as YAML or JSON")
    parser.add_argument("--fleet", type=Path, required=True, metavar="FLEET.yaml", help="nodes and links to plan for")
    parser.add_argument("--explain", metavar="STAGE", help="why a stage stands where it does, and what else would cost")
    parser.add_argument(
        "--losses", action="store_true", help="what would change if a node were lost, for each that is used"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the constellation with each stage bound to its place"
    )
    parser.add_argument(
        "--soft",
        action="store_true",
        help="with --out: let each stage prefer its place, and run elsewhere if that is lost or full",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="write the plan as a Gantt picture")
    parser.add_argument(
        "--input-bytes",
        action="append",
        default=[],
        metavar="NAME=BYTES",
        help="the size of a job input, such as photo=2MB",
    )
    parser.add_argument(
        "--objective",
        metavar="WHAT",
        help="what to make small, in place of the constellation's: latency, energy, price, or several, the most important "
        "first (price,latency), with the share that one may give up for the next (latency+10%%,price), or a weight for "
        "each (latency=1,energy=0.2)",
    )
    parser.add_argument(
        "--budget",
        type=factor,
        default=100.0,
        metavar="MS",
        help="milliseconds to look (default: 100); objectives in order choose among plans that each have their share, or what "
        "is needed for a plan worth choosing",
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the local search (default: 0)")


def run_plan(args: argparse.Namespace, out: Output) -> int:
    """Plans, and tells of the plan. Raises InvalidInput, InvalidConstellation, Infeasible, NotFound."""
    from starloom.orchestrator.cli.plantold import Told
    from starloom.orchestrator.planner import picture, planning, whatif

    constellation, built = _read(args)
    deadline = constellation.deadline_seconds
    # What is compiled at its first use is no part of planning.
    planning.warm_up()
    began = time.perf_counter()
    found = _found(args, constellation, built)
    told = Told(built, found, constellation.objective, deadline)
    answer = told.plan(time.perf_counter() - began, out)
    out.text(f"\n{picture.text(built.problem, found.plan, _PICTURE_WIDTH)}")
    _write(args, constellation, built, found.plan, out)
    again = _again(args, constellation, built)
    if args.explain is not None:
        stage = built.problem.stages.index(args.explain)
        answer["explain"] = told.explain(stage, whatif.alternatives(built.problem, found.plan, stage, again), out)
    if args.losses:
        answer["losses"] = told.losses(whatif.losses(built.problem, found.plan, again), out)
    out.json(answer)
    return Exit.DONE if found.ends_by(deadline) else Exit.FAILED


def _found(args: argparse.Namespace, constellation: "Constellation", built: "Built") -> "Found":
    """The plan that is given out. Raises Infeasible where it is shown that none holds, or none ends in time."""
    from starloom.dag import limits
    from starloom.orchestrator.planner import goals
    from starloom.orchestrator.planner.explain import Conflict, settle

    several = goals.tries(constellation.objective) > 1
    milliseconds = args.budget / goals.tries(constellation.objective)

    def looks() -> "Budget":
        return _looks(milliseconds, several)

    asked, deadline = _asked(args, constellation, built, looks().effort), constellation.deadline_seconds
    found = goals.find(built.problem, asked, _planned(args, built, looks))
    if found.ends_by(deadline) or built.problem.arrays.seconds.size > limits.PLAN_SETTLED_CHOICES_MAX:
        return found
    settled = settle(built.problem, built.excluded, deadline)
    if isinstance(settled, Conflict):
        told = [Problem("conflict", each.words) for each in settled.requirements]
        told += [Problem("enough would be", lift) for lift in settled.lifts]
        raise Infeasible(told, "no plan can keep all of this")
    made = goals.rated(built.problem, built.rates, settled) if settled is not None else found
    return goals.best([found, made], constellation.objective, deadline)


def _looks(milliseconds: float, several: bool) -> "Budget":
    """The time for one plan; of several, as an objective in order takes them, none has less than gives a plan worth choosing."""
    from starloom.dag import limits
    from starloom.orchestrator.planner.planning import Budget

    effort = milliseconds / _MILLIS
    least = limits.PLAN_TRY_ITERATIONS_MIN if several else 0
    return Budget(spent=_until(milliseconds), effort=effort, effort_seconds=effort, least=least)


def _asked(args: argparse.Namespace, constellation: "Constellation", built: "Built", effort: float) -> "Asked":
    from starloom.dag import limits
    from starloom.orchestrator.planner.goals import Asked

    effort = max(effort, limits.PLAN_LEAST_EFFORT_MIN)
    return Asked(built.rates, constellation.objective, constellation.deadline_seconds, effort, args.seed)


def _planned(
    args: argparse.Namespace, built: "Built", looks: "Callable[[], Budget]"
) -> "Callable[[PlannedProblem, Plan | None], Plan]":
    from starloom.orchestrator.planner import planning

    return lambda problem, warm: planning.plan(problem, looks(), args.seed, warm, built.excluded)


def _again(
    args: argparse.Namespace, constellation: "Constellation", built: "Built"
) -> "Callable[[PlannedProblem, Plan], Plan]":
    """Plans anew for the same objective, as long each time: what is asked is not hurried by the clock."""
    from starloom.dag import limits
    from starloom.orchestrator.planner import goals, planning

    several = goals.tries(constellation.objective) > 1
    looks = planning.Budget(limits.PLAN_TRY_ITERATIONS_MIN if several else planning.ITERATIONS)
    asked = _asked(args, constellation, built, 0.0)

    def planned(problem: "PlannedProblem", warm: "Plan | None") -> "Plan":
        return planning.plan(problem, looks, args.seed, warm)

    return lambda problem, before: goals.find(problem, asked, planned, before).plan


def _read(args: argparse.Namespace) -> "tuple[Constellation, Built]":
    """The constellation, and the problem of placing it on the fleet."""
    from starloom.agents.catalog import Catalog
    from starloom.dag.validate import problems
    from starloom.orchestrator import fleetfile
    from starloom.orchestrator.planner.building import build

    constellation = read_constellation(args.file)
    constellation, wrong = _with_objective(constellation, args.objective)
    sizes, unread = _sizes(args.input_bytes, constellation.inputs)
    wrong += unread
    if args.soft and args.out is None:
        wrong.append(Problem("--soft", "says how --out writes; give --out FILE"))
    if wrong:
        raise InvalidInput(wrong, "the command line is not right")
    fleet = fleetfile.read_file(args.fleet)
    kinds = Catalog().kinds
    if found := problems(constellation, kinds):
        raise InvalidConstellation(found, f"{args.file} is not valid")
    if args.explain is not None and args.explain not in constellation.stages:
        raise NotFound(f"{args.file} has no stage {args.explain!r}; it has {', '.join(sorted(constellation.stages))}")
    return constellation, build(constellation, kinds, fleet, sizes)


def _with_objective(constellation: "Constellation", said: str | None) -> "tuple[Constellation, list[Problem]]":
    """The constellation with the objective that the command line gives, if it gives one, and what is wrong with that."""
    import msgspec

    from starloom.dag.objective import objective_problems, read, shorthand

    if said is None:
        return constellation, []
    goals, wrong = read(shorthand(said), "--objective")
    return msgspec.structs.replace(constellation, objective=goals), [*wrong, *objective_problems(goals, "--objective")]


def _write(args: argparse.Namespace, constellation: "Constellation", built: "Built", plan: "Plan", out: Output) -> None:
    """The files that were asked for. Raises InvalidInput if one cannot be written."""
    from starloom.dag.document import dump
    from starloom.orchestrator.planner import picture
    from starloom.orchestrator.planner.building import pinned, preferred

    bound = preferred if args.soft else pinned
    texts: list[tuple[Path | None, Callable[[], str]]] = [
        (args.out, lambda: dump(bound(constellation, built, plan))),
        (args.picture, lambda: picture.svg(built.problem, plan, constellation.name)),
    ]
    for path, text in texts:
        if path is None:
            continue
        try:
            path.write_text(text(), "utf-8")
        except OSError as error:
            raise InvalidInput(
                [Problem(str(path), error.strerror or str(error))], "the file cannot be written"
            ) from error
        out.note(f"{path} is written")


def _until(milliseconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + milliseconds / _MILLIS
    return lambda: time.perf_counter() >= end


def _sizes(given: list[str], inputs: Any) -> tuple[dict[str, int], list[Problem]]:
    """Bytes by input, and what is wrong with what was given."""
    found: dict[str, int] = {}
    problems: list[Problem] = []
    for each in given:
        name, _, size = each.partition("=")
        if name not in inputs:
            problems.append(Problem("--input-bytes", f"{name!r} is no input; there are {', '.join(inputs) or 'none'}"))
            continue
        try:
            found[name] = read_bytes(int(size) if size.isdigit() else size)
        except ValueError as error:
            problems.append(Problem(f"--input-bytes {name}", str(error)))
    return found, problems
