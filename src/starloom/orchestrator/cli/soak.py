"""`starloom bench soak`: minutes of a steady load on a cluster of this machine, and what of it grows."""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starloom.dag.errors import InvalidInput, Problem, Unavailable
from starloom.orchestrator.cli import demo
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, factor, seconds

if TYPE_CHECKING:
    from starloom.orchestrator.soak.soaking import Soaked
    from starloom.orchestrator.soak.windows import Row, Window

SECONDS: Final = 600.0
RATE: Final = 20.0
EVERY_SECONDS: Final = 5.0
WARM_UP_JOBS: Final = 9_000
"""After so many FINISHED_JOBS_KEPT are kept, EVENTS_IN_MEMORY_BYTES_MAX are full, and the journal has come to its size."""
_RATE_MAX: Final = 1_000.0
_EVERY_MIN: Final = 0.1
_PICTURE_MARKS: Final = 40
_COLUMNS: Final = (
    "what",
    "first third",
    "last third",
    "unit",
    "rise",
    "allowed",
    "per hour (95 %)",
    "per 1,000 jobs",
    "",
    "",
)


def add_parser(family: Commands) -> None:
    """Adds `bench soak`."""
    parser = add_command(
        family, "soak", run_soak, "what grows in minutes of a steady load: memory, handles, disk, latency"
    )
    parser.add_argument(
        "--seconds", type=seconds, default=SECONDS, metavar="S", help="how long to judge (default: 600)"
    )
    parser.add_argument("--rate", type=factor, default=RATE, metavar="N", help="jobs a second (default: 20)")
    parser.add_argument(
        "--every", type=seconds, default=EVERY_SECONDS, metavar="S", help="seconds of a window (default: 5)"
    )
    parser.add_argument(
        "--warm-up",
        type=seconds,
        metavar="S",
        help=f"how long before, without judging (default: {WARM_UP_JOBS} jobs, which fill what is bounded by number)",
    )


def run_soak(args: argparse.Namespace, out: Output) -> int:
    """Soaks a cluster of three nodes, and judges. Fails where something grows, a job goes wrong or a process dies."""
    from starloom.orchestrator.bench.report import machine
    from starloom.orchestrator.cli.cluster import ends_in_order
    from starloom.orchestrator.soak import windows
    from starloom.orchestrator.soak.sampling import PROC

    _check(args)
    demo.require_extras()
    if not (PROC / "self" / "status").exists():
        raise Unavailable("a soak reads what processes take from /proc, which is not there; run it on Linux")
    warm_up = WARM_UP_JOBS / args.rate if args.warm_up is None else args.warm_up
    before = machine()
    with tempfile.TemporaryDirectory(prefix="starloom-soak-") as folder, ends_in_order():
        soaked = _soak(args, warm_up + args.seconds, Path(folder) / "cluster", out)
    kept = windows.judged(soaked.windows, warm_up)
    rows = windows.rows(kept)
    found = windows.verdict(rows, soaked.failures)
    out.json(_as_json(args, warm_up, before, soaked, rows, found))
    _tell(kept, rows, out)
    jobs = ", ".join(f"{number} {work}" for work, number in soaked.jobs.items())
    out.text("")
    out.text(f"{found}: {sum(soaked.jobs.values())} jobs ({jobs}); {args.seconds:g} s after {warm_up:g} s of warm-up")
    for what in soaked.told:
        out.text(f"failed: {what}")
    out.text(
        f"{before.cores} cores, {before.system}, Python {before.python}; load average before: {before.load_before:g}"
    )
    return Exit.DONE if found == windows.FLAT else Exit.FAILED


def _check(args: argparse.Namespace) -> None:
    problems = []
    if not 0 < args.rate <= _RATE_MAX:
        problems.append(Problem("--rate", f"is {args.rate:g}; give a number over 0, at most {_RATE_MAX:g}"))
    if not _EVERY_MIN <= args.every <= args.seconds:
        problems.append(
            Problem("--every", f"is {args.every:g} s; give {_EVERY_MIN:g} s to the {args.seconds:g} s of --seconds")
        )
    if problems:
        raise InvalidInput(problems, "no such soak")


def _soak(args: argparse.Namespace, lasts: float, folder: Path, out: Output) -> "Soaked":
    from starloom.dag.constellation import Tier
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.cluster import EmbeddedCluster
    from starloom.orchestrator.clusterfile import ClusterSpec, NodeSpec
    from starloom.orchestrator.soak.soaking import Soak

    out.note(f"starting a cluster of {len(Tier)} nodes; then {args.rate:g} jobs a second for {lasts:g} s")
    spec = ClusterSpec(nodes=tuple(NodeSpec(name=f"soak-{tier}", tier=tier, slots=2) for tier in Tier))

    async def soak(address: str, token: str) -> "Soaked":
        async with AsyncClient(address, token) as client:
            return await Soak(client, folder, args.rate, args.every, out.note).run(lasts)

    with EmbeddedCluster(spec, folder) as cluster:
        return asyncio.run(soak(cluster.address, cluster.token))


def _as_json(
    args: argparse.Namespace, warm_up: float, before: Any, soaked: "Soaked", rows: Sequence["Row"], found: str
) -> dict[str, Any]:
    import msgspec

    return {
        "bench": "soak",
        "verdict": found,
        "seconds": args.seconds,
        "rate": args.rate,
        "every": args.every,
        "warm_up": warm_up,
        "rows": msgspec.to_builtins(rows),
        **msgspec.to_builtins(soaked),
        "machine": msgspec.to_builtins(before),
    }


def _tell(kept: Sequence["Window"], rows: Sequence["Row"], out: Output) -> None:
    from starloom.orchestrator.soak import windows

    pictures = {
        measure.what: windows.picture([figure for _, figure in windows.series(measure, kept)], _PICTURE_MARKS)
        for measure in windows.measures(kept)
    }
    out.table(
        _COLUMNS,
        [
            (
                row.what,
                f"{row.peer:.2f}",
                f"{row.ours:.2f}",
                row.unit,
                f"{row.rise:+.2f}",
                f"{row.allowed:.2f}" if row.judged else "",
                f"{row.per_hour:+.1f} ({row.low_per_hour:+.1f} to {row.high_per_hour:+.1f})",
                f"{row.per_1000_jobs:+.3f}",
                pictures[row.what],
                "grows" if row.grows else "",
            )
            for row in rows
        ],
    )
