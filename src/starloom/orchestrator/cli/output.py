"""What a command says, and where: results on standard output, progress and errors on standard error.

A module of commands has `add_parsers(commands)`, which calls `add_command` for each of its commands:

    def add_parsers(commands: Commands) -> None:
        parser = add_command(commands, "nodes", run_nodes, "the cluster's nodes")

    def run_nodes(args: argparse.Namespace, out: Output) -> int: ...    # the exit code

With `--json`, standard output holds one JSON object, or JSON lines where a command streams, and
nothing else. Modules of commands import what is heavy (gRPC, rich, numpy) inside their functions.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TextIO

from starloom.dag.errors import (
    Conflict,
    InvalidInput,
    JobFailed,
    NotFound,
    Problem,
    StarloomError,
    Unauthenticated,
    Unavailable,
)
from starloom.dag.quantities import read_seconds

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS: Final = 160
"""The width of what is written where no terminal gives one."""


_COUNT_DIGITS_MAX: Final = 9


class Exit(IntEnum):
    """What the command's exit code says."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    UNREACHABLE = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class UsageError(InvalidInput):
    """The command line itself is wrong; `usage` is the command's usage line."""

    def __init__(self, message: str, usage: str = "") -> None:
        super().__init__([Problem("", message)], "the command line is not right")
        self.usage = usage

    def __str__(self) -> str:
        return f"{self.usage}starloom: {self.problems[0].what}"


def exit_code(error: StarloomError) -> Exit:
    """The exit code that stands for an error."""
    match error:
        case InvalidInput() | NotFound() | Conflict() | Unauthenticated():
            return Exit.BAD_INPUT
        case Unavailable():
            return Exit.UNREACHABLE
        case _:
            return Exit.FAILED


def problem_rows(problems: Iterable[Problem]) -> list[dict[str, str]]:
    """Problems as JSON has them."""
    return [{"place": problem.place, "what": problem.what} for problem in problems]


def error_fields(error: StarloomError) -> dict[str, Any]:
    """An error as JSON has it: type, message, and problems (of an error without any, an empty list); a job's also the cause."""
    problems = error.problems if isinstance(error, InvalidInput | JobFailed) else ()
    cause = {"cause": error.cause} if isinstance(error, JobFailed) and error.cause else {}
    return {"type": type(error).__name__, "message": str(error), "problems": problem_rows(problems), **cause}


class Output:
    """One command's output. The streams are looked up at each use, so that tests can replace them."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def json(self, value: Mapping[str, Any]) -> None:
        """Writes one JSON object on one line to standard output, with `--json` only."""
        if self.as_json:
            self._write(sys.stdout, json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":")))

    def text(self, text: str) -> None:
        """Writes a line for people to standard output, without `--json` only."""
        if not self.as_json:
            self._write(sys.stdout, text)

    def note(self, text: str) -> None:
        """Writes a line of progress to standard error."""
        self._write(sys.stderr, text)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
        """Writes a table for people to standard output, without `--json` only."""
        if self.as_json:
            return
        from rich.table import Table

        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row))
        console = self.console()
        # Written by hand: rich ends the process where nobody reads any more.
        with console.capture() as rendered:
            console.print(table, end="")
        self._write(sys.stdout, rendered.get().rstrip("\n"))

    def console(self, *, err: bool = False) -> "Console":
        """A rich console on standard output, or on standard error; it takes text as it is, without markup."""
        from rich.console import Console

        stream = sys.stderr if err else sys.stdout
        width = None if stream.isatty() else PIPED_COLUMNS
        return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)

    def error(self, error: StarloomError, **fields: Any) -> int:
        """Says an error, and returns its exit code. `fields` stand beside it in the JSON object."""
        self.note(str(error) if isinstance(error, UsageError) else f"starloom: {error}")
        self.json({**fields, "error": error_fields(error)})
        return exit_code(error)

    @staticmethod
    def _write(stream: TextIO, line: str) -> None:
        # File names may hold what is no text, and a terminal may not have every letter.
        encoding = stream.encoding or "utf-8"
        stream.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def count(text: str) -> int:
    """An argument that is a whole number of at least 0; for the `type` of `add_argument`."""
    if not text.isascii() or not text.isdecimal() or len(text) > _COUNT_DIGITS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def seconds(text: str) -> float:
    """An argument that is a duration, as `30`, `5s` or `2m`; for the `type` of `add_argument`."""
    try:
        return read_seconds(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def factor(text: str) -> float:
    """An argument that is a number of at least 0; for the `type` of `add_argument`."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return found


Run = Callable[[argparse.Namespace, Output], int]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of ending the process."""

    def error(self, message: str) -> Any:
        raise UsageError(message, self.format_usage())


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]
else:
    Commands = Any


def add_command(commands: Commands, name: str, run: Run, about: str) -> Parser:
    """Adds a command that `run` carries out, with its `--json`; returns its parser, for further arguments."""
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, and nothing else")
    parser.set_defaults(run=run)
    return parser


def add_family(commands: Commands, name: str, about: str) -> Commands:
    """Adds a command that only has commands of its own, such as `models`; returns where to add them."""
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    return parser.add_subparsers(dest=f"{name}_command", metavar="COMMAND", required=True)
