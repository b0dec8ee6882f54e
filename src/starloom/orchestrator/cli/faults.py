"""`starloom faults`: what is broken on purpose on a live cluster of its own, and whether jobs come out as if undisturbed."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from starloom.orchestrator.cli import demo
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, add_family

if TYPE_CHECKING:
    from starloom.orchestrator.trials.case import Case, Outcome, Summary

KILLS: Final = "kills"
PLANS: Final = {
    KILLS: "kill -9 of each agent, of two and of the orchestrator, at each stage of the demonstration's job",
}
QUICK: Final = (
    (("mic-speaker",), "hear"),
    (("orchestrator",), "transcribe"),
    (("edge-1", "edge-2"), "read_odd"),
)
"""The cases of `--quick`: the loss of an input's holder, of who decides, and of a whole tier."""
COLUMNS: Final = ("killed", "at", "which had", "job", "outputs", "detected s", "recovered s", "job s", "verdict")
SUMMARY_COLUMNS: Final = ("killed", "cases", "held", "detected s", "most", "recovered s", "most", "job s", "most")


def add_parsers(commands: Commands) -> None:
    """Adds `faults`, with `list` and `run`."""
    family = add_family(commands, "faults", "break things on a live cluster, and see what becomes of its jobs")
    add_command(family, "list", run_list, "the plans, with their cases")
    run = add_command(family, "run", run_plan, "carry out a plan on a cluster of its own")
    run.add_argument("plan", choices=tuple(PLANS), metavar="PLAN", help=f"one of: {', '.join(PLANS)}")
    run.add_argument("--quick", action="store_true", help="a few cases only, in less than a minute")
    run.add_argument("--victim", action="append", default=[], metavar="NAME", help="only cases of this victim")
    run.add_argument("--stage", action="append", default=[], metavar="NAME", help="only cases at this stage")


def run_list(_args: argparse.Namespace, out: Output) -> int:
    """Says what plans there are."""
    cases = _cases()
    victims = list(dict.fromkeys(case.victim for case in cases))
    stages = list(dict.fromkeys(case.stage for case in cases))
    row = {"plan": KILLS, "about": PLANS[KILLS], "victims": victims, "stages": stages, "cases": len(cases)}
    out.json({"plans": [row]})
    out.text(f"{KILLS}: {PLANS[KILLS]}; {len(cases)} cases")
    out.text(f"  victims: {', '.join(victims)}")
    out.text(f"  stages: {', '.join(stages)}")
    return Exit.DONE


def run_plan(args: argparse.Namespace, out: Output) -> int:
    """Carries a plan out; the exit code is 1 where a promise did not hold."""
    from starloom.orchestrator.cli.cluster import ends_in_order
    from starloom.orchestrator.clusterfile import DEFAULT
    from starloom.orchestrator.demo import PHOTO, QUESTION, constellation, example, pull_models
    from starloom.orchestrator.trials import kills
    from starloom.orchestrator.trials.case import Case

    cases = [Case(victims=victims, stage=stage) for victims, stage in QUICK] if args.quick else _cases()
    cases = kills.chosen(cases, args.victim, args.stage)
    demo.require_extras()
    pull_models(out.note)
    inputs = {"audio": example() / QUESTION, "image": example() / PHOTO}
    with ends_in_order(), tempfile.TemporaryDirectory(prefix="starloom-faults-") as folder:
        out.note(f"starting a cluster of {len(DEFAULT.nodes)} nodes")
        undisturbed, outcomes = kills.run(DEFAULT, Path(folder) / "cluster", constellation(), inputs, cases, out.note)
    return _show(args.plan, undisturbed, outcomes, out)


def _cases() -> "list[Case]":
    from starloom.orchestrator.clusterfile import DEFAULT
    from starloom.orchestrator.demo import constellation
    from starloom.orchestrator.trials import kills

    return kills.all_cases([node.name for node in DEFAULT.nodes], list(constellation().stages))


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
