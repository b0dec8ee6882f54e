"""`starloom plan`: where and when the stages of a constellation would run on a fleet, and why; without a cluster."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starloom.dag.errors import InvalidConstellation, InvalidInput, NotFound, Problem
from starloom.dag.quantities import read_bytes
from starloom.orchestrator.cli.check import read_constellation
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, count, factor

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.orchestrator.planner.building import Built
    from starloom.orchestrator.planner.problem import Plan
    from starloom.orchestrator.planner.problem import Problem as PlannedProblem
    from starloom.orchestrator.planner.whatif import Alternative, Loss

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
        "--budget", type=factor, default=100.0, metavar="MS", help="milliseconds to look (default: 100)"
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the local search (default: 0)")


def run_plan(args: argparse.Namespace, out: Output) -> int:
    """Plans, and tells of the plan. Raises InvalidInput, InvalidConstellation, Infeasible, NotFound."""
    from starloom.orchestrator.planner import bound, picture, planning, prepared, whatif

    constellation, built = _read(args)
    problem = built.problem
    # What is compiled at its first use is no part of planning.
    planning.warm_up()
    began = time.perf_counter()
    budget = args.budget / _MILLIS
    looks = planning.Budget(spent=_until(args.budget), effort=budget, effort_seconds=budget)
    plan = planning.plan(problem, looks, args.seed, reasons=built.excluded)
    seconds = time.perf_counter() - began

    def again(changed: "PlannedProblem", before: "Plan") -> "Plan":
        return planning.plan(changed, planning.Budget(), args.seed, before)

    least = bound.lower_bound(prepared.prepare(problem))
    told: dict[str, Any] = {
        "placement": _placement(built, plan),
        "makespan": plan.makespan,
        "penalty": plan.penalty,
        "lower_bound": least,
        "gap": plan.objective / least - 1 if least > 0 else 0.0,
        "planner_seconds": seconds,
        "method": plan.method,
    }
    _tell(built, plan, least, seconds, out)
    out.text(f"\n{picture.text(problem, plan, _PICTURE_WIDTH)}")
    _write(args, constellation, built, plan, out)
    if args.explain is not None:
        stage = problem.stages.index(args.explain)
        told["explain"] = _explain(built, plan, stage, whatif.alternatives(problem, plan, stage, again), out)
    if args.losses:
        told["losses"] = _losses(plan, whatif.losses(problem, plan, again), out)
    out.json(told)
    return Exit.DONE


def _read(args: argparse.Namespace) -> "tuple[Constellation, Built]":
    """The constellation, and the problem of placing it on the fleet."""
    from starloom.agents.catalog import Catalog
    from starloom.dag.validate import problems
    from starloom.orchestrator import fleetfile
    from starloom.orchestrator.planner.building import build

    if args.soft and args.out is None:
        raise InvalidInput(
            [Problem("--soft", "says how --out writes; give --out FILE")], "the command line is not right"
        )
    constellation = read_constellation(args.file)
    fleet = fleetfile.read_file(args.fleet)
    kinds = Catalog().kinds
    if found := problems(constellation, kinds):
        raise InvalidConstellation(found, f"{args.file} is not valid")
    if args.explain is not None and args.explain not in constellation.stages:
        raise NotFound(f"{args.file} has no stage {args.explain!r}; it has {', '.join(sorted(constellation.stages))}")
    return constellation, build(constellation, kinds, fleet, _sizes(args.input_bytes, constellation.inputs))


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


def _sizes(given: list[str], inputs: Any) -> dict[str, int]:
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
    if problems:
        raise InvalidInput(problems, "the command line is not right")
    return found


def _placement(built: "Built", plan: "Plan") -> dict[str, dict[str, Any]]:
    places = built.problem.places
    return {
        name: {
            "node": places[plan.place[index]].node,
            "target": places[plan.place[index]].target,
            "start": float(plan.start[index]),
            "finish": float(plan.finish[index]),
            "loads": bool(plan.loads[index]),
        }
        for index, name in enumerate(built.stages)
    }


def _tell(built: "Built", plan: "Plan", least: float, seconds: float, out: Output) -> None:
    from starloom.orchestrator.planner.whatif import part

    rows = []
    for stage in sorted(range(len(built.stages)), key=lambda each: (plan.start[each], each)):
        made = part(built.problem, plan, stage)
        place = built.problem.places[plan.place[stage]]
        times = [
            f"{value:.3f}" for value in (plan.start[stage], plan.finish[stage], made.transfer, made.load, made.run)
        ]
        rows.append([built.stages[stage], place.node, place.target, *times, made.last])
    out.table(["STAGE", "NODE", "TARGET", "START", "FINISH", "FETCH", "LOAD", "RUN", "AFTER"], rows)
    gap = f"{plan.objective / least - 1:.1%} above" if least > 0 else "no better than"
    out.text(
        f"\nthe job ends after {plan.makespan:.3f} s, {gap} a lower bound of {least:.3f} s; "
        f"found by {plan.method} in {seconds * _MILLIS:.0f} ms"
    )


def _explain(built: "Built", plan: "Plan", stage: int, others: "list[Alternative]", out: Output) -> dict[str, Any]:
    places, disliked = built.problem.places, built.disliked[stage]
    rows = []
    for each in others:
        chosen = ["chosen"] if each.place == plan.place[stage] else []
        here = "; ".join([*chosen, *disliked.get(each.place, ())])
        told = each.excluded or f"{each.objective:.3f} s"
        more = "" if each.objective is None else f"{each.objective - plan.objective:+.3f} s"
        rows.append([str(places[each.place]), told, more, here])
    excluded = {str(places[place]): fault for fault, barred in built.excluded[stage].items() for place in barred}
    rows += [[name, "excluded", "", f"{name} {fault}"] for name, fault in excluded.items()]
    name, private = built.stages[stage], built.private.get(built.stages[stage], "")
    out.text("")
    out.table(["PLACE", "JOB ENDS AFTER", "DIFFERENCE", "WHY"], rows, title=f"{name}, elsewhere:")
    if private:
        out.text(f"{name}: {private}")
    return {
        "stage": name,
        "private": private,
        "alternatives": [
            {
                "place": str(places[each.place]),
                "objective": each.objective,
                "excluded": each.excluded,
                "disliked": list(disliked.get(each.place, ())),
            }
            for each in others
        ],
        "excluded": excluded,
    }


def _losses(plan: "Plan", losses: "list[Loss]", out: Output) -> list[dict[str, Any]]:
    rows = []
    for each in losses:
        told = each.excluded or f"{each.objective:.3f} s"
        more = "" if each.objective is None else f"{each.objective - plan.objective:+.3f} s"
        rows.append([each.node, len(each.stages), told, more])
    out.text("")
    out.table(["WITHOUT", "STAGES MOVE", "JOB ENDS AFTER", "DIFFERENCE"], rows)
    return [each._asdict() for each in losses]
