"""`starloom plan`: where and when the stages of a constellation would run on a fleet, and why; without a cluster."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starloom.dag.errors import Infeasible, InvalidInput, Problem
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, count, factor

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.orchestrator.cli.planjobs import Jobs
    from starloom.orchestrator.cli.planpaced import ToldPaced
    from starloom.orchestrator.planner.building import Built
    from starloom.orchestrator.planner.goals import Asked, Found
    from starloom.orchestrator.planner.planning import Budget
    from starloom.orchestrator.planner.problem import Plan
    from starloom.orchestrator.planner.problem import Problem as PlannedProblem
    from starloom.orchestrator.planner.steady import Pace

_MILLIS: Final = 1000.0
_PICTURE_WIDTH: Final = 120


def add_parsers(commands: Commands) -> None:
    """Adds `plan`."""
    parser = add_command(commands, "plan", run_plan, "where and when stages would run on a fleet, and why")
    parser.add_argument(
        "file", type=Path, nargs="+", metavar="FILE", help="a constellation as YAML or JSON; several share the nodes"
    )
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
    _add_goals(parser)
    parser.add_argument(
        "--budget",
        type=factor,
        default=100.0,
        metavar="MS",
        help="milliseconds to look (default: 100); objectives in order choose among plans that each have their share, or what "
        "is needed for a plan worth choosing",
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the local search (default: 0)")


def _add_goals(parser: argparse.ArgumentParser) -> None:
    """What is wanted of the plan."""
    parser.add_argument(
        "--objective",
        metavar="WHAT",
        help="what to make small, in place of the constellation's: latency, energy, price, period, p95, quality, or several, the most important "
        "first (price,latency), with the share that one may give up for the next (latency+10%%,price), or a weight for "
        "each (latency=1,energy=0.2)",
    )
    parser.add_argument(
        "--every",
        metavar="TIME",
        help="how often each job is handed in, as 100ms, in place of the constellation's: the plan holds that period, and "
        "tells what limits it and how long rounds take",
    )
    parser.add_argument(
        "--rate",
        type=factor,
        metavar="CHUNKS",
        help="chunks a second of the job's streams, in place of the constellation's: each is a round, likewise",
    )
    parser.add_argument(
        "--slo",
        metavar="WHAT",
        help="what is promised of each round: p50, p95, p99, first_token, token, as p95=250ms,token=60ms",
    )


def run_plan(args: argparse.Namespace, out: Output) -> int:
    """Plans, and tells of the plan. Raises InvalidInput, InvalidConstellation, Infeasible, NotFound."""
    import msgspec

    from starloom.orchestrator.cli.planjobs import read_jobs
    from starloom.orchestrator.cli.plantold import Told
    from starloom.orchestrator.planner import contending, pacing, picture, planning, whatif

    jobs = read_jobs(args)
    # What is made small of all rounds is chosen by `planner.pacing`; all else is of one of them.
    constellation, built = msgspec.structs.replace(jobs.one, objective=tuple(jobs.goals)), jobs.built
    deadline = constellation.deadline_seconds
    # What is compiled at its first use is no part of planning.
    planning.warm_up()
    if jobs.pace is not None:
        pacing.warm_up()
    if built.problem.uplinks:
        contending.warm_up()
    began = time.perf_counter()
    rounds = _rounds(args, jobs)
    found = _found(args, constellation, built) if rounds is None else rounds.chosen.best.found
    seconds = time.perf_counter() - began
    told = Told(built, found, jobs.one.objective, deadline, jobs.pace)
    answer = told.plan(seconds, out)
    if rounds is not None:
        answer["rounds"] = rounds.tell(bool(jobs.pace and jobs.pace.every), out)
    out.text(f"\n{picture.text(built.problem, found.plan, _PICTURE_WIDTH)}")
    _write(args, jobs.one, built, found.plan, out)
    again = _again(args, constellation, built) if jobs.pace is None else _paced_again(args, jobs, jobs.pace)
    if args.explain is not None:
        stage = built.problem.stages.index(args.explain)
        answer["explain"] = told.explain(stage, whatif.alternatives(built.problem, found.plan, stage, again), out)
    if args.losses:
        answer["losses"] = told.losses(whatif.losses(built.problem, found.plan, again), out)
    out.json(answer)
    return Exit.DONE if found.ends_by(deadline) and (rounds is None or rounds.kept) else Exit.FAILED


def _rounds(args: argparse.Namespace, jobs: "Jobs") -> "ToldPaced | None":
    """The plan of jobs that come again and again; nothing where they do not."""
    from starloom.orchestrator.cli.planpaced import ToldPaced
    from starloom.orchestrator.planner import goals, pacing

    if jobs.pace is None:
        return None
    tries = goals.tries(jobs.goals)

    def looks() -> "Budget":
        return _looks(args.budget / tries, tries > 1)

    asked = _asked(args, jobs.one, jobs.built, looks().effort)
    planned = _planned(args, jobs.built, looks)
    chosen = pacing.find_paced(jobs.built.problem, asked, jobs.pace, planned, jobs.promises, jobs.answering)
    return ToldPaced(jobs.built.problem, chosen, list(jobs.all), jobs.chunks)


def _found(args: argparse.Namespace, constellation: "Constellation", built: "Built") -> "Found":
    """The plan that is given out. Raises Infeasible where it is shown that none holds, or none ends in time."""
    from starloom.dag import limits
    from starloom.orchestrator.planner import goals
    from starloom.orchestrator.planner.explain import Conflict, settle
    from starloom.orchestrator.planner.planning import NO_PLAN
    from starloom.orchestrator.planner.requirements import nowhere
    from starloom.orchestrator.planner.uplinks import timed

    count = _tries(constellation, built)
    several, milliseconds = count > 1, args.budget / count

    def looks() -> "Budget":
        return _looks(milliseconds, several)

    asked, deadline = _asked(args, constellation, built, looks().effort), constellation.deadline_seconds
    settles = bool(deadline) and built.problem.arrays.seconds.size <= limits.PLAN_SETTLED_CHOICES_MAX
    # What no place may have, whatever the time, is told of each stage.
    settles = settles and not nowhere(built.problem, built.excluded)
    try:
        found = goals.find(built.problem, asked, _planned(args, built, looks))
    except Infeasible:
        # This conflict knows of no deadline, and neither does what it tells to be enough.
        settled = settle(built.problem.free, built.excluded, deadline) if settles else None
        if isinstance(settled, Conflict):
            raise Infeasible(settled.told(), NO_PLAN) from None
        raise
    if not settles or found.ends_by(deadline):
        return found
    settled = settle(built.problem.free, built.excluded, deadline)
    if isinstance(settled, Conflict):
        raise Infeasible(settled.told(), NO_PLAN)
    made = goals.rated(built.problem, built.rates, timed(built.problem, settled)) if settled is not None else found
    return goals.best([found, made], constellation.objective, deadline)


def _tries(constellation: "Constellation", built: "Built") -> int:
    """How many plans may have to be made: where a deadline may ask for worse variants, those that choose among them too."""
    from starloom.orchestrator.planner import goals

    fallback = bool(built.variants and constellation.deadline_seconds)
    return goals.tries(constellation.objective, fallback=fallback)


def _looks(milliseconds: float, several: bool) -> "Budget":
    """The time for one plan; of several, as an objective in order takes them, none has less than gives a plan worth choosing."""
    from starloom.dag import limits
    from starloom.orchestrator.planner.planning import Budget

    effort = milliseconds / _MILLIS
    least = limits.PLAN_TRY_ITERATIONS_MIN if several else 0
    gone = _clock(milliseconds)
    return Budget(spent=lambda: gone() >= 1, gone=gone, effort=effort, effort_seconds=effort, least=least)


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

    several = _tries(constellation, built) > 1
    looks = planning.Budget(limits.PLAN_TRY_ITERATIONS_MIN if several else planning.ITERATIONS)
    asked = _asked(args, constellation, built, 0.0)

    def planned(problem: "PlannedProblem", warm: "Plan | None") -> "Plan":
        return planning.plan(problem, looks, args.seed, warm)

    return lambda problem, before: goals.find(problem, asked, planned, before).plan


def _paced_again(args: argparse.Namespace, jobs: "Jobs", pace: "Pace") -> "Callable[[PlannedProblem, Plan], Plan]":
    """The same for jobs that come again and again: another plan is for the same period, and the same promises."""
    from starloom.dag import limits
    from starloom.orchestrator.planner import goals, pacing, planning

    several = goals.tries(jobs.goals) > 1
    looks = planning.Budget(limits.PLAN_TRY_ITERATIONS_MIN if several else planning.ITERATIONS)
    asked = _asked(args, jobs.one, jobs.built, 0.0)

    def paced(problem: "PlannedProblem", before: "Plan") -> "Plan":
        def planned(changed: "PlannedProblem", warm: "Plan | None") -> "Plan":
            return planning.plan(changed, looks, args.seed, before if warm is None else warm)

        chosen = pacing.find_paced(problem, asked, pace, planned, jobs.promises, jobs.answering)
        return chosen.best.found.plan

    return paced


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


def _clock(milliseconds: float) -> Callable[[], float]:
    """Which share of so many milliseconds from now is over."""
    begin, seconds = time.perf_counter(), milliseconds / _MILLIS
    return lambda: (time.perf_counter() - begin) / seconds if seconds else 1.0
