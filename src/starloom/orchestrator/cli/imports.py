"""`starloom import`: constellations from the files of others, without a cluster."""

import argparse
import json
from pathlib import Path
from typing import Final

from starloom.dag import limits
from starloom.dag.errors import InvalidConstellation, InvalidInput, Problem
from starloom.orchestrator.cli.check import read_file
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, add_family, factor, problem_rows

_ABOUT: Final = {
    "wfformat": "a WfFormat 1.5 execution as a constellation of synthetic stages",
    "ufo": "a UFO³ TaskConstellation as a constellation of synthetic stages",
}


def add_parsers(commands: Commands) -> None:
    """Adds `import`, with one command for each format."""
    family = add_family(commands, "import", "make a constellation of a file of another format")
    for name, about in _ABOUT.items():
        parser = add_command(family, name, run_import, about)
        parser.add_argument("file", type=Path, metavar="FILE", help="a JSON file")
        parser.add_argument(
            "--out", type=Path, metavar="FILE", help="write the constellation there; JSON if it ends so, else YAML"
        )
        parser.add_argument("--scale", type=factor, default=1.0, metavar="F", help="multiplies all run times (1)")
        parser.add_argument(
            "--bytes-scale", type=factor, default=1.0, metavar="F", help="multiplies sizes of files and memory (1)"
        )
        parser.add_argument("--sleep", action="store_true", help="stages sleep, where they would keep a core busy")
        parser.set_defaults(format=name)


def run_import(args: argparse.Namespace, out: Output) -> int:
    """Reads, checks against the kinds that ship, and writes."""
    from starloom.agents.catalog import Catalog
    from starloom.dag.document import dump, to_json
    from starloom.dag.validate import validate
    from starloom.orchestrator.imports import ufo, wfformat
    from starloom.orchestrator.imports.reading import Scale

    scale = Scale(args.scale, args.bytes_scale, args.sleep)
    try:
        data = read_file(args.file, most=limits.IMPORT_BYTES_MAX)
        read = wfformat.read if args.format == "wfformat" else ufo.read
        found = read(data, scale, place=str(args.file))
        validate(found.constellation, Catalog(points=()).kinds)
    except (InvalidInput, InvalidConstellation) as error:
        return out.error(error, file=str(args.file), problems=problem_rows(error.problems))
    for doubt in found.doubts:
        out.note(f"warning: {doubt}")
    constellation = found.constellation
    if args.out is None:
        out.json(to_json(constellation))
        out.text(dump(constellation).rstrip("\n"))
        return Exit.DONE
    as_json = args.out.suffix == ".json"
    _write(args.out, json.dumps(to_json(constellation), indent=1) + "\n" if as_json else dump(constellation))
    stages, dependencies = len(constellation.stages), len(constellation.dependencies)
    out.json(
        {
            "file": str(args.out),
            "name": constellation.name,
            "stages": stages,
            "dependencies": dependencies,
            "warnings": problem_rows(found.doubts),
        }
    )
    out.text(f"{args.out}: {constellation.name}, {stages} stages, {dependencies} dependencies")
    return Exit.DONE


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidInput([Problem(str(path), error.strerror or str(error))], "the file cannot be written") from error
