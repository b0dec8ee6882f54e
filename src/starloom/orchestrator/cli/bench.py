"""`starloom bench`: Starloom beside others, in one run.

A benchmark is a line in BENCHES, and a module of that name in `orchestrator.bench` with `run(args, note)`,
which returns a `Report`. The soak has no peer, and is in `cli.soak`.
"""

import argparse
import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from starloom.dag.errors import InvalidInput, Problem, StarloomError
from starloom.orchestrator.cli import demo, soak
from starloom.orchestrator.cli.output import Commands, Exit, Output, Parser, add_command, add_family


class Bench(NamedTuple):
    """A benchmark: what it measures, how often unless told, its own arguments, and the modules that must be installed."""

    about: str
    repeat: int
    arguments: Callable[[Parser], object]
    needs: tuple[str, ...]


def _overhead(parser: Parser) -> None:
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="multiplies all sizes (default: 1)")
    parser.add_argument("--peers", default="", metavar="NAMES", help="beside whom, with commas; all unless given")
    parser.add_argument(
        "--rows", default="", metavar="NAMES", help="such as wide-1000,hop-two-agents; all unless given"
    )


def _transfer(parser: Parser) -> None:
    parser.add_argument("--sizes", default="", metavar="NAMES", help="such as 1MB,10MB; all of them unless given")


def _language(parser: Parser) -> None:
    parser.add_argument("--quality", action="store_true", help="how well the sizes answer, not how fast they are")
    parser.add_argument("--questions", type=int, metavar="N", help="only the first N held-out questions")


def _placement(parser: Parser) -> None:
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="the share of instances (default: 1)")
    parser.add_argument("--rows", default="", metavar="NAMES", help="such as 100-at-10ms,1000; all unless given")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="WfFormat executions, to plan them as well")
    parser.add_argument("--best", type=Path, metavar="FILE", help="the best plans known; those that ship unless given")
    parser.add_argument("--write-best", action="store_true", help="keep plans there that are better")


def _reality(parser: Parser) -> None:
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="WfFormat executions, to run them as well")
    parser.add_argument("--examples", type=Path, metavar="FOLDER", help="the examples; a checkout's own unless given")
    parser.add_argument("--works", default="", metavar="NAMES", help="such as demo,relay; all of them unless given")


BENCHES: Final = {
    "overhead": Bench(
        "what it costs to run stages that do nothing, beside dask, Ray, a raw stream and asyncio",
        9,
        _overhead,
        ("ray", "psutil", "distributed"),
    ),
    "transfer": Bench(
        "what it costs to pass a value from agent to agent on one host, beside Ray, a raw stream and memcpy",
        9,
        _transfer,
        ("ray", "psutil"),
    ),
    "placement": Bench(
        "how good plans are and how soon they are there, beside list schedulers and the best plans known",
        3,
        _placement,
        ("numba",),
    ),
    "tiers": Bench(
        "the demonstration's job where its constellation puts it, beside all of it on one tier",
        5,
        lambda _: None,
        demo.NEEDED,
    ),
    "reality": Bench(
        "how long jobs were predicted to take on an embedded cluster, beside how long they then took",
        5,
        _reality,
        demo.NEEDED,
    ),
    "uneven": Bench(
        "the demonstration's job on its plan, beside all of it on one tier, where tiers and links are as uneven as in the field",
        5,
        lambda _: None,
        demo.NEEDED,
    ),
    "replay": Bench(
        "how long an orchestrator reads before it serves, from a snapshot on, beside a replay of all facts",
        5,
        lambda _: None,
        (),
    ),
    "language": Bench(
        "the language family's sizes beside a bare loop, or with --quality beside the extractive answer",
        5,
        _language,
        ("onnxruntime", "tokenizers"),
    ),
}


def add_parsers(commands: Commands) -> None:
    """Adds `bench`, with one command for each benchmark."""
    family = add_family(commands, "bench", "measure Starloom beside others, in one run")
    for name, bench in BENCHES.items():
        parser = add_command(family, name, run_bench, bench.about)
        parser.add_argument(
            "--repeat", type=int, default=bench.repeat, metavar="N", help="repetitions (default: %(default)s)"
        )
        parser.set_defaults(bench=name)
        bench.arguments(parser)
    soak.add_parser(family)


def run_bench(args: argparse.Namespace, out: Output) -> int:
    """Measures, and shows the rows."""
    from starloom.orchestrator.bench import report
    from starloom.orchestrator.cli.cluster import ends_in_order

    if args.repeat < 1:
        raise InvalidInput([Problem("--repeat", f"is {args.repeat}; give at least 1")], "bad repetitions")
    if missing := [name for name in BENCHES[args.bench].needs if find_spec(name) is None]:
        raise StarloomError(f"{', '.join(missing)} not installed; run `pip install 'starloom[server,agent,bench]'`")
    with ends_in_order():
        found = importlib.import_module(f"{report.__package__}.{args.bench}").run(args, out.note)
    out.json(report.as_json(found))
    out.table(report.COLUMNS, [report.cells(row) for row in found.rows])
    out.text("")
    for line in report.lines(found):
        out.text(line)
    return Exit.DONE
