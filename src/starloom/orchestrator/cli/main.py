"""The `starloom` command: reads the command line, runs one command, and turns errors into messages and exit codes."""

import os
import sys
from collections.abc import Sequence
from typing import Final

from starloom import __version__
from starloom.dag.errors import StarloomError
from starloom.orchestrator.cli import bench, check, cluster, faults, fsck, imports, jobs, models, plan, simulate
from starloom.orchestrator.cli.output import Exit, Output, Parser

FAMILIES: Final = (cluster, jobs, check, plan, imports, fsck, simulate, faults, models, bench)
"""The modules that have commands, in the order in which the help lists them."""


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(prog="starloom", description="Run constellations of stages across device, edge and cloud nodes.")
    top.add_argument("--version", action="version", version=f"starloom {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for family in FAMILIES:
        family.add_parsers(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 bad input or usage, 3 not reachable."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    out = Output(as_json="--json" in arguments)
    # gRPC tells of every connection that goes away; what matters of it comes as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        args = parser().parse_args(arguments)
        return int(args.run(args, out))
    except StarloomError as error:
        return out.error(error)
    except SystemExit as ended:
        # argparse ends the process after --help and --version.
        return int(ended.code or 0)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more; the interpreter would fail once again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except OSError as error:
        out.note(f"starloom: {error}")
        out.json({"error": {"type": type(error).__name__, "message": str(error), "problems": []}})
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
