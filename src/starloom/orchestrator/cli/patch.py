"""`starloom patch`, and `starloom get --revision`: changes of a job, and how it was before them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from starloom.orchestrator.cli.check import read_file
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, count

if TYPE_CHECKING:
    from starloom.dag.patch import Patch
    from starloom.orchestrator.client import AsyncClient


def add_parsers(commands: Commands) -> None:
    """Adds `patch`."""
    patch = add_command(commands, "patch", run_patch, "change a job while it runs, all at once or not at all")
    patch.add_argument("job", metavar="JOB", help="a job's id or key")
    patch.add_argument("file", type=Path, metavar="PATCH", help="a patch as YAML or JSON")
    patch.add_argument("--if-revision", type=count, default=0, metavar="N", help="only if the job is at that revision")
    patch.add_argument("--restart", action="store_true", help="also stages that have started, which run again")
    patch.add_argument("--why", default="", help="why, for those who look at the job later")


def run_patch(args: argparse.Namespace, out: Output) -> int:
    from starloom.dag.patchdoc import load_patch
    from starloom.orchestrator.cli.jobs import with_client

    patch = load_patch(read_file(args.file, "patch"), place=str(args.file))
    patch = msgspec.structs.replace(
        patch,
        if_revision=args.if_revision or patch.if_revision,
        restart=args.restart or patch.restart,
        why=args.why or patch.why,
    )
    return with_client(lambda client: _patch(client, args.job, patch, out))


async def _patch(client: "AsyncClient", name: str, patch: "Patch", out: Output) -> int:
    job = await client.job(name)
    patched = await job.patch(patch)
    out.json(
        {
            "job": patched.job,
            "revision": patched.revision,
            "existing": patched.existing,
            "changes": list(patched.changes),
        }
    )
    out.text(f"{patched.job} is at revision {patched.revision}{' since before' if patched.existing else ''}")
    for line in patched.changes:
        out.text(line)
    return Exit.DONE


async def show_revision(client: "AsyncClient", name: str, revision: int, out: Output) -> int:
    """Shows a job's constellation as it was at a revision, and the patch that made it."""
    from starloom.dag.document import dump, to_json

    info = await client.info(name, revision)
    made = next((patch for patch in info.patches if patch.revision == revision), None)
    out.json(
        {
            "job": info.id,
            "status": info.status,
            "revision": info.revision,
            "shown": revision,
            "constellation": to_json(info.constellation) if info.constellation else None,
            "patch": msgspec.to_builtins(made),
        }
    )
    if made is not None:
        who = f" by {made.principal}" if made.principal else ""
        out.note(f"revision {revision}{who}{f' ({made.why})' if made.why else ''}: {', '.join(made.operations)}")
        for line in made.changes:
            out.note(line)
    if info.constellation is not None:
        out.text(dump(info.constellation).rstrip("\n"))
    return Exit.DONE
