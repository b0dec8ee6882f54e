"""`starloom simulate`: the real coordinator and agent cores in virtual time, with faults drawn from a seed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starloom.dag.errors import InvalidInput, Problem
from starloom.orchestrator.cli.check import read_file
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, count

if TYPE_CHECKING:
    from starloom.devices.faults import FaultPlan
    from starloom.orchestrator.simulate.runs import Result
    from starloom.orchestrator.simulate.world import Setup

NODES_MAX: Final = 100_000
JOBS_MAX: Final = 1_000
SEEDS_MAX: Final = 10_000_000
TOLD_EVERY: Final = 100
SHOWN_MAX: Final = 12
DRAWN: Final = "drawn"


def add_parsers(commands: Commands) -> None:
    """Adds `simulate`."""
    parser = add_command(commands, "simulate", run_simulate, "run jobs in virtual time, with faults drawn from a seed")
    parser.add_argument("--seed", type=count, help="the first seed; the plan's, or 1")
    parser.add_argument("--seeds", type=count, default=1, help="how many seeds, from the first on (1)")
    parser.add_argument("--nodes", type=count, default=10, help="nodes (10)")
    parser.add_argument("--stages", type=count, default=50, help="stages of each job (50)")
    parser.add_argument("--jobs", type=count, default=1, help="jobs (1)")
    parser.add_argument("--faults", default="all", metavar="PLAN", help="all, none, or a plan as YAML or JSON (all)")
    parser.add_argument(
        "--planner",
        choices=("none", DRAWN),
        default="none",
        help="drawn: advise placement by plans drawn at random, late, old or impossible; no promise may rest on them (%(default)s)",
    )


def read_plan(name: str) -> "FaultPlan":
    """A built-in plan, or that in a file. Raises InvalidInput."""
    from starloom.devices import faultdoc
    from starloom.devices.faults import ALL_FAULTS, NO_FAULTS, simulated_problems

    for plan in (ALL_FAULTS, NO_FAULTS):
        if name == plan.name:
            return plan
    plan = faultdoc.read_plan(read_file(Path(name), "fault plan"), name)
    if problems := simulated_problems(plan):
        raise InvalidInput(problems, f"{name} cannot be simulated")
    return plan


def _somebody(plan: "FaultPlan", nodes: int) -> None:
    """Raises InvalidInput for faults that would meet none of so many simulated nodes."""
    from starloom.orchestrator.simulate.loop import Chance
    from starloom.orchestrator.simulate.trouble import candidates
    from starloom.orchestrator.simulate.workload import nodes as simulated

    # What is drawn is how much each node has, not how it is called or where it stands.
    tiers = {profile.name: profile.tier for profile in simulated(Chance(""), nodes)}
    problems = [
        Problem(f"faults.{index}", f"meets no node; there are {', '.join(list(tiers)[:SHOWN_MAX])}")
        for index, fault in enumerate(plan.faults)
        if not candidates(fault, tiers)
    ]
    if problems:
        raise InvalidInput(problems, "the fault plan does not fit")


def run_simulate(args: argparse.Namespace, out: Output) -> int:
    """Runs the seeds; a property that does not hold is told with the command that shows it again."""
    from starloom.orchestrator.simulate.runs import VIOLATIONS_SHOWN, run_all

    setup = _setup(args)
    seed = next(each for each in (args.seed, setup.plan.seed, 1) if each is not None)
    done = 0

    def told(result: "Result") -> None:
        nonlocal done
        done += 1
        if done % TOLD_EVERY == 0 and args.seeds > TOLD_EVERY:
            out.note(f"{done} of {args.seeds} seeds")
        for row in _rows(result, args):
            out.note(_text(row))

    total = run_all(seed, args.seeds, setup, told)
    violations = [row for result in total.failed for row in _rows(result, args)]
    out.json(
        {
            "seed": seed,
            "seeds": total.seeds,
            "nodes": args.nodes,
            "stages": args.stages,
            "plan": setup.plan.name or args.faults,
            "jobs": total.jobs,
            "succeeded": total.succeeded,
            "violations": violations[:VIOLATIONS_SHOWN],
            "failing_seeds": [result.seed for result in total.failed],
            "facts": total.facts,
            "events": total.events,
            "faults": dict(sorted(total.faults.items())),
            "virtual_seconds": round(total.virtual_seconds, 3),
            "wall_seconds": round(total.wall_seconds, 3),
            "digest": total.digest,
        }
    )
    out.text(
        f"{total.seeds} seeds, {total.jobs} jobs, {total.succeeded} succeeded, {sum(total.faults.values())} faults, "
        f"{total.virtual_seconds:.0f} virtual seconds in {total.wall_seconds:.1f} s; digest {total.digest[:16]}"
    )
    if not violations:
        out.text("every property holds")
        return Exit.DONE
    out.text(f"{len(total.failed)} seeds break a property")
    return Exit.FAILED


def _setup(args: argparse.Namespace) -> "Setup":
    """What is to be simulated. Raises InvalidInput."""
    from starloom.dag.limits import STAGES_PER_JOB_MAX
    from starloom.orchestrator.simulate.world import Setup

    bounds = {"seeds": SEEDS_MAX, "nodes": NODES_MAX, "stages": STAGES_PER_JOB_MAX, "jobs": JOBS_MAX}
    wrong = [
        Problem(f"--{name}", f"is {getattr(args, name)}; use 1 to {most}")
        for name, most in bounds.items()
        if not 1 <= getattr(args, name) <= most
    ]
    if wrong:
        raise InvalidInput(wrong, "the command line is not right")
    plan = read_plan(args.faults)
    _somebody(plan, args.nodes)
    return Setup(nodes=args.nodes, stages=args.stages, jobs=args.jobs, plan=plan, advised=args.planner == DRAWN)


def _rows(result: "Result", args: argparse.Namespace) -> list[dict[str, Any]]:
    again = (
        f"starloom simulate --seed {result.seed} --nodes {args.nodes} --stages {args.stages} "
        f"--jobs {args.jobs} --faults {args.faults}" + (f" --planner {DRAWN}" if args.planner == DRAWN else "")
    )
    return [
        {
            "seed": result.seed,
            "property": found.property,
            "what": found.what,
            "job": found.job,
            "stage": found.stage,
            "seconds": round(found.seconds, 6),
            "story": list(found.story),
            "replay": again,
        }
        for found in result.violations
    ]


def _text(row: dict[str, Any]) -> str:
    where = "/".join(filter(None, (row["job"], row["stage"])))
    lines = [f"seed {row['seed']}: {row['property']}: {where}{': ' if where else ''}{row['what']}"]
    lines += [f"    {line}" for line in row["story"]]
    return "\n".join([*lines, f"    again: {row['replay']}"])
