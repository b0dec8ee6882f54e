"""`starloom faults`: what is broken on purpose on a live cluster, and whether jobs come out as if undisturbed."""

import argparse
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem
from starloom.devices.faults import LIVE, OF_ORCHESTRATOR
from starloom.orchestrator.cli import demo, inject, underplan
from starloom.orchestrator.cli.output import (
    Commands,
    Exit,
    Output,
    Parser,
    UsageError,
    add_command,
    add_family,
    count,
    seconds,
)

if TYPE_CHECKING:
    from starloom.orchestrator.trials.case import Outcome, Summary

PLANS: Final = {
    "kills": "kill -9 of each agent, of two and of the orchestrator, at each stage of the demonstration's job",
    "crashes": "a process dies at each named crash point, amid a small job or its submission",
}
COLUMNS: Final = ("killed", "at", "which had", "job", "outputs", "detected s", "recovered s", "job s", "verdict")
SUMMARY_COLUMNS: Final = ("killed", "cases", "held", "detected s", "most", "recovered s", "most", "job s", "most")


def add_parsers(commands: Commands) -> None:
    """Adds `faults`, with `list`, `inject`, `heal` and `run`."""
    family = add_family(commands, "faults", "break things on a live cluster, and see what becomes of its jobs")
    add_command(
        family, "list", run_list, "what can go wrong, what does on the cluster that runs, and the built-in plans"
    )
    inject.add_parsers(family)
    run = add_command(family, "run", run_plan, "carry out a plan on a cluster of its own, or on the one that runs")
    run.add_argument("plan", metavar="PLAN", help=f"a file, or one of: {', '.join(PLANS)}")
    run.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="a constellation; the demonstration's unless given"
    )
    run.add_argument("--input", action="append", default=[], metavar="NAME=VALUE", help="an input of that")
    run.add_argument("--seed", type=count, help="what the plan is drawn from; the plan's own, or 1")
    run.add_argument(
        "--cluster", action="store_true", help="on the cluster that `starloom up --faults-allowed` started"
    )
    run.add_argument(
        "--within",
        type=seconds,
        default=limits.TRIAL_SECONDS_MAX,
        metavar="TIME",
        help="the job has to end in so long (%(default)g s)",
    )
    _add_built_in(run)


def _add_built_in(run: Parser) -> None:
    run.add_argument("--quick", action="store_true", help="a few cases only, in less than a minute")
    run.add_argument(
        "--orchestrator",
        choices=("process", "actor"),
        default="process",
        help="where that runs: in a process under a supervisor, or in a detached actor of Ray (%(default)s)",
    )
    run.add_argument("--keep", type=Path, metavar="DIR", help="keep the cluster's state and logs in a new folder there")
    run.add_argument("--victim", action="append", default=[], metavar="NAME", help="only cases of this victim")
    run.add_argument("--stage", action="append", default=[], metavar="NAME", help="only cases at this stage or point")


def run_list(_args: argparse.Namespace, out: Output) -> int:
    """Says what faults and plans there are, and what stands."""
    kinds = [{"what": what, "about": about, "orchestrator": what in OF_ORCHESTRATOR} for what, about in LIVE.items()]
    out.table(("fault", "what happens"), [(kind["what"], kind["about"]) for kind in kinds])
    found = inject.standing(out)
    out.text("")
    for each in found or ():
        lasts = "until it is healed" if each.seconds is None else f"for {each.seconds:.1f} s"
        peer = f" with {each.peer}" if each.peer else ""
        out.text(f"stands: {each.id} of {each.node}{peer}, {lasts}, met {each.met} times")
    plans = []
    for plan, about in PLANS.items():
        cases = _module(plan).all_cases()
        victims = list(dict.fromkeys(case.victim for case in cases))
        stages = list(dict.fromkeys(case.stage for case in cases))
        plans.append({"plan": plan, "about": about, "victims": victims, "stages": stages, "cases": len(cases)})
        out.text(f"{plan}: {about}; {len(cases)} cases")
        out.text(f"  victims: {', '.join(victims)}")
        out.text(f"  at: {', '.join(stages)}")
    armed = None if found is None else inject.rows(found)
    out.json({"kinds": kinds, "armed": armed, "plans": plans})
    return Exit.DONE


def run_plan(args: argparse.Namespace, out: Output) -> int:
    """Carries a plan out; the exit code is 1 where a promise did not hold."""
    if args.plan not in PLANS:
        if not Path(args.plan).exists():
            what = f"there is no plan and no file {args.plan!r}; plans are {', '.join(PLANS)}"
            raise InvalidInput([Problem("PLAN", what)], "no such plan")
        if args.quick or args.victim or args.stage:
            raise UsageError(f"--quick, --victim and --stage are for {' and '.join(PLANS)}; a file has its own")
        return underplan.run_file(args, out, _folder)
    if args.file or args.input or args.cluster or args.seed is not None:
        raise UsageError(
            f"{args.plan} has a job and a cluster of its own; give neither FILE, --input, --cluster nor --seed"
        )
    from starloom.orchestrator.cli.cluster import ends_in_order
    from starloom.orchestrator.cluster import OrchestratorHost
    from starloom.orchestrator.demo import pull_models
    from starloom.orchestrator.trials.trial import chosen

    plan = _module(args.plan)
    cases = chosen(plan.quick_cases() if args.quick else plan.all_cases(), args.victim, args.stage)
    demo.require_extras()
    if args.plan == "kills":
        pull_models(out.note)
    with ends_in_order(), _folder(args.keep) as folder:
        out.note("starting a cluster")
        host = OrchestratorHost(args.orchestrator)
        undisturbed, outcomes = plan.run(folder / "cluster", host, cases, out.note)
    return _show(args.plan, undisturbed, outcomes, out)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A new folder, which stays where it is to be kept."""
    if keep is not None:
        demo.make_folder(keep)
        yield Path(tempfile.mkdtemp(prefix="starloom-faults-", dir=keep))
        return
    with tempfile.TemporaryDirectory(prefix="starloom-faults-") as folder:
        yield Path(folder)


def _module(plan: str) -> Any:
    """The module of a plan's name, with `all_cases`, `quick_cases` and `run`."""
    return importlib.import_module(f"starloom.orchestrator.trials.{plan}")


def _show(plan: str, undisturbed: float, outcomes: "Sequence[Outcome]", out: Output) -> int:
    from starloom.orchestrator.trials.case import BROKEN, HELD, summaries

    found = summaries(outcomes)
    held = all(outcome.verdict == HELD for outcome in outcomes)
    out.json(
        {
            "plan": plan,
            "seed": 0,
            "planned": len(outcomes),
            "injected": sum(bool(outcome.moment) for outcome in outcomes),
            "recovered": sum(outcome.verdict == HELD for outcome in outcomes),
            "lost": sum(outcome.status != "succeeded" for outcome in outcomes),
            "duplicated": sum(outcome.duplicated for outcome in outcomes),
            "detect_seconds": found[-1].detect_seconds and found[-1].detect_seconds[0],
            "recover_seconds": found[-1].recover_seconds and found[-1].recover_seconds[0],
            "undisturbed_seconds": undisturbed,
            "verdict": HELD if held else BROKEN,
            "summary": msgspec.to_builtins(found),
            "cases": msgspec.to_builtins(outcomes),
        }
    )
    out.table(COLUMNS, [_cells(outcome) for outcome in outcomes])
    out.text("")
    out.table(SUMMARY_COLUMNS, [_summary_cells(summary) for summary in found])
    out.text(
        f"\n{sum(outcome.verdict == HELD for outcome in outcomes)} of {len(outcomes)} cases held; seconds from the kill "
        f"on, medians and the most; undisturbed the job takes {undisturbed:.2f} s"
    )
    return Exit.DONE if held else Exit.FAILED


def _cells(outcome: "Outcome") -> Sequence[str]:
    return (
        outcome.victim,
        outcome.stage,
        outcome.moment,
        outcome.status,
        "equal" if outcome.equal else "differ",
        _figure(outcome.detect_seconds),
        _figure(outcome.recover_seconds),
        _figure(outcome.job_seconds),
        outcome.verdict,
    )


def _summary_cells(summary: "Summary") -> Sequence[str]:
    cells = [summary.group, str(summary.cases), str(summary.held)]
    for spread in (summary.detect_seconds, summary.recover_seconds, summary.job_seconds):
        cells += [_figure(value) for value in spread or (None, None)]
    return cells


def _figure(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
