"""`starloom validate`: what is wrong with a constellation, without a cluster."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from starloom.dag import limits
from starloom.dag.errors import InvalidConstellation, InvalidInput, Problem
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, problem_rows
from starloom.orchestrator.filebytes import read_at_most

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation


def add_parsers(commands: Commands) -> None:
    """Adds `validate`."""
    parser = add_command(commands, "validate", run_validate, "check a constellation, without a cluster")
    parser.add_argument("file", type=Path, metavar="FILE", help="a constellation as YAML or JSON")


def read_file(path: Path, what: str = "file", *, most: int = limits.DOCUMENT_BYTES_MAX) -> bytes:
    """The bytes of a file that the user named, `most` and one more if it has more. Raises InvalidInput if it cannot be read."""
    try:
        return read_at_most(path, most)
    except OSError as error:
        raise InvalidInput([Problem(str(path), error.strerror or str(error))], f"the {what} cannot be read") from error


def read_constellation(path: Path) -> "Constellation":
    """The constellation in a file. Raises InvalidInput for the file, InvalidConstellation for what is in it."""
    from starloom.dag.document import load

    return load(read_file(path, "constellation"), place=str(path))


def run_validate(args: argparse.Namespace, out: Output) -> int:
    """Checks against the kinds that ship and those of packages installed here."""
    from starloom.agents.catalog import Catalog
    from starloom.dag.validate import problems, warnings

    try:
        constellation = read_constellation(args.file)
    except InvalidConstellation as error:
        return out.error(error, file=str(args.file), valid=False, problems=problem_rows(error.problems), warnings=[])
    catalog = Catalog()
    found = problems(constellation, catalog.kinds)
    doubts = [*warnings(constellation, catalog.kinds), *catalog.problems]
    for doubt in doubts:
        out.note(f"warning: {doubt}")
    fields = {
        "file": str(args.file),
        "name": constellation.name,
        "stages": len(constellation.stages),
        "dependencies": len(constellation.dependencies),
        "valid": not found,
        "problems": problem_rows(found),
        "warnings": problem_rows(doubts),
    }
    if found:
        return out.error(InvalidConstellation(found, f"{args.file} is not valid"), **fields)
    out.json(fields)
    out.text(f"{args.file} is valid: {constellation.name}, {len(constellation.stages)} stages")
    return Exit.DONE
