"""`starloom faults run FILE.yaml`: a job under a plan of faults, and whether it comes out as if undisturbed."""

import argparse
import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import InvalidInput
from starloom.orchestrator.cli import demo
from starloom.orchestrator.cli.check import read_constellation, read_file
from starloom.orchestrator.cli.output import Exit, Output

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.devices.faults import FaultPlan
    from starloom.orchestrator.trials.planning import Planned
    from starloom.orchestrator.trials.survival import Survival

COLUMNS: Final = ("fault", "what", "of", "at s", "healed s", "met", "detected s", "recovered s", "")


@dataclass(frozen=True)
class Work:
    """What is run: a constellation with its inputs, under a plan with its seed; `within`: seconds that it has to end in."""

    plan: "FaultPlan"
    seed: int
    what: "Constellation"
    inputs: Mapping[str, Any]
    within: float = limits.TRIAL_SECONDS_MAX


def read_live_plan(path: Path) -> "FaultPlan":
    """The plan in a file. Raises InvalidInput, also for what can only be simulated."""
    from starloom.devices.faultdoc import read_plan
    from starloom.devices.faults import live_problems

    plan = read_plan(read_file(path, "fault plan"), str(path))
    if problems := live_problems(plan):
        raise InvalidInput(problems, f"{path} cannot be carried out")
    return plan


def run_file(args: argparse.Namespace, out: Output, folder: Callable[[Path | None], Any]) -> int:
    """Carries the plan of a file out; the exit code is 1 where a promise did not hold. `folder` gives one for the cluster."""
    work = _work(args, out)
    with _cluster(args, out, folder) as (address, token):
        row, survival, planned = asyncio.run(survive(address, token, work, out.note))
    show(row, survival, planned, out)
    return Exit.DONE if survival.verdict == "held" else Exit.FAILED


def _work(args: argparse.Namespace, out: Output) -> Work:
    from starloom.orchestrator.cli.files import read_inputs
    from starloom.orchestrator.demo import PHOTO, QUESTION, constellation, example, pull_models

    plan = read_live_plan(Path(args.plan))
    seed = seed_of(plan, args.seed)
    if args.file is not None:
        what = read_constellation(args.file)
        return Work(plan, seed, what, read_inputs(what, args.input), args.within)
    demo.require_extras()
    pull_models(out.note)
    inputs = {"audio": example() / QUESTION, "image": example() / PHOTO}
    return Work(plan, seed, constellation(), inputs, args.within)


def seed_of(plan: "FaultPlan", given: int | None) -> int:
    """The seed that was given, else the plan's, else 1."""
    return given if given is not None else 1 if plan.seed is None else plan.seed


@contextmanager
def _cluster(args: argparse.Namespace, out: Output, folder: Callable[[Path | None], Any]) -> Iterator[tuple[str, str]]:
    """The running cluster's address and token, or those of one that is started for this."""
    from starloom.orchestrator.cli.cluster import ends_in_order
    from starloom.orchestrator.clientlink import find_cluster

    if args.cluster:
        yield find_cluster()
        return
    demo.require_extras()
    from starloom.orchestrator.cluster import EmbeddedCluster, OrchestratorHost
    from starloom.orchestrator.clusterfile import DEFAULT

    with ends_in_order(), folder(args.keep) as place:
        out.note("starting a cluster")
        host = OrchestratorHost(args.orchestrator)
        with EmbeddedCluster(DEFAULT, place / "cluster", orchestrator=host, faults_allowed=True) as cluster:
            yield cluster.address, cluster.token


async def survive(
    address: str, token: str, work: Work, note: Callable[[str], None]
) -> "tuple[dict[str, Any], Survival, tuple[Planned, ...]]":
    """Runs the work undisturbed and under its plan; returns what JSON has of it, what became of it, and what was planned."""
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.trials.injector import Injector
    from starloom.orchestrator.trials.underplan import UnderPlan

    async with AsyncClient(address, token) as client:
        under = UnderPlan(client, Injector(token), note, work.within)
        planned = await under.prepare(work.plan, work.seed, work.what)
        expected, seconds = await under.undisturbed(work.what, work.inputs)
        note(f"undisturbed the job takes {seconds:.2f} s; {len(planned)} faults are planned from seed {work.seed}")
        survival = await under.disturbed(work.what, work.inputs, planned, expected)
    row = {
        "plan": work.plan.name,
        "seed": work.seed,
        **msgspec.to_builtins(survival),
        "undisturbed_seconds": seconds,
        "plans": msgspec.to_builtins(planned),
    }
    return row, survival, planned


def show(row: dict[str, Any], survival: "Survival", planned: "tuple[Planned, ...]", out: Output) -> None:
    """Says what became of the faults and the job."""
    out.json(row)
    tell(survival, row["seed"], row["undisturbed_seconds"], out)


def tell(survival: "Survival", seed: int, undisturbed: float, out: Output) -> None:
    """The same for people."""
    cells = [
        (
            *(seen.id, seen.what, seen.node or "several", _figure(seen.at_seconds), _figure(seen.healed_seconds)),
            "-" if seen.met is None else str(seen.met),
            *(_figure(seen.detect_seconds), _figure(seen.recover_seconds)),
            "recovered" if seen.recovered else seen.why or "the job had ended before",
        )
        for seen in survival.faults
    ]
    out.table(COLUMNS, cells)
    out.text(
        f"\n{survival.injected} of {survival.planned} planned faults (seed {seed}) happened, {survival.recovered} were "
        f"recovered from; the job {survival.status} after {survival.job_seconds:.2f} s, undisturbed {undisturbed:.2f} s; its "
        f"outputs are {'equal' if survival.equal else 'not those of an undisturbed run'}"
    )
    out.text("\n".join([survival.verdict, *(f"  {what}" for what in survival.what)]))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
