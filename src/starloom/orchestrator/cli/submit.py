"""`starloom submit`: hands a job in, feeds its input streams, and follows it to its end if that is wanted."""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starloom.dag.errors import Conflict, InvalidInput, Problem, StarloomError
from starloom.dag.facts import StreamOptions
from starloom.dag.values import Full
from starloom.orchestrator.cli import follow
from starloom.orchestrator.cli.check import read_constellation
from starloom.orchestrator.cli.output import Commands, Exit, Output, UsageError, add_command, count, factor, seconds

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.orchestrator.cli.feeding import Source
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.clientjob import AsyncJob
    from starloom.orchestrator.infos import JobInfo


def add_parsers(commands: Commands) -> None:
    """Adds the command."""
    submit = add_command(commands, "submit", run_submit, "hand in a job")
    submit.add_argument("file", type=Path, metavar="FILE", help="a constellation as YAML or JSON")
    submit.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a job input: text or JSON as it is, or the path of a file",
    )
    submit.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="feed an input stream from a file, or from standard input (-), and close it at the end",
    )
    submit.add_argument(
        "--rate",
        type=factor,
        default=1.0,
        metavar="X",
        help="how many times as fast as real time to feed sound and video; 0 is as fast as it is taken",
    )
    submit.add_argument(
        "--full",
        choices=[str(full) for full in Full],
        default="",
        help="what becomes of what is fed faster than it is read, if not as the input says",
    )
    submit.add_argument("--spool", action="store_true", help="what is fed is on disk before it is acknowledged")
    submit.add_argument("--watch", action="store_true", help="follow the job to its end, and print its outputs")
    submit.add_argument("--key", default="", help="your own name for the job; the same again gives the same job")
    submit.add_argument("--priority", type=int, default=0, help="a greater one goes first")
    submit.add_argument("--max-parallel", type=count, default=0, metavar="N", help="stages that may run at once")
    submit.add_argument(
        "--deadline", type=seconds, default=0.0, metavar="TIME", help="fail the job after so long, as 30s or 5m"
    )
    submit.add_argument("--output-dir", type=Path, metavar="DIR", help="with --watch: write the outputs to files there")


def run_submit(args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.feeding import read_sources
    from starloom.orchestrator.cli.files import read_inputs
    from starloom.orchestrator.cli.jobs import with_client

    if (args.spool or args.full) and not args.stream:
        raise UsageError("--spool and --full are of streams that are fed: name one with --stream")
    if args.output_dir and not args.watch:
        raise UsageError("--output-dir needs --watch: without it nothing waits for the outputs")
    constellation = read_constellation(args.file)
    inputs: Mapping[str, Any] = {}
    sources: Sequence[Source] = ()
    wrong: list[InvalidInput] = []
    try:
        inputs = read_inputs(constellation, args.input)
    except InvalidInput as error:
        wrong.append(error)
    try:
        sources = read_sources(constellation, args.stream)
    except InvalidInput as error:
        wrong.append(error)
    if wrong:
        told = [problem for error in wrong for problem in error.problems]
        raise InvalidInput([*_problems(constellation), *told], wrong[0].what)
    return with_client(lambda client: _submit(client, args, out, constellation, inputs, sources))


def _problems(constellation: "Constellation") -> list[Problem]:
    """What else is wrong with a job whose inputs are, as far as a cluster is there to ask."""
    from starloom.orchestrator.cli.jobs import with_client

    try:
        return with_client(lambda client: client.problems(constellation))
    except StarloomError:
        return []


async def _submit(
    client: "AsyncClient",
    args: argparse.Namespace,
    out: Output,
    what: "Constellation",
    inputs: Mapping[str, Any],
    sources: "Sequence[Source]",
) -> int:
    options = (args.key, args.priority, args.max_parallel)
    asked = StreamOptions(full=Full(args.full) if args.full else None, spool=args.spool)
    streams = {source.name: asked for source in sources}
    job = await client.submit(what, inputs, *options, deadline_seconds=args.deadline, streams=streams)
    feeds = [asyncio.create_task(_feed(job, source, args.rate, out)) for source in sources]
    following = asyncio.create_task(_follow(client, job, args, out))
    try:
        # What cannot be read ends the command at once: the job would wait for it for ever.
        await asyncio.wait([following, *feeds], return_when=asyncio.FIRST_EXCEPTION)
        for feed in feeds:
            if feed.done():
                feed.result()
        return await following
    finally:
        for task in (following, *feeds):
            task.cancel()
        await asyncio.gather(following, *feeds, return_exceptions=True)


async def _follow(client: "AsyncClient", job: "AsyncJob", args: argparse.Namespace, out: Output) -> int:
    """Tells of a job that was handed in, or follows it to its end."""
    if not args.watch:
        info = await job.status()
        out.json(
            {"job": job.id, "status": info.status, "revision": job.revision, "existing": job.existing, "outputs": {}}
        )
        out.text(
            f"{job.id} {'was there before' if job.existing else 'is accepted'}; follow it with `starloom watch {job.id}`"
        )
        return Exit.DONE
    out.note(f"job {job.id}")
    try:
        await follow.follow(job, follow.Progress(out))
    except asyncio.CancelledError:
        out.note(f"job {job.id} goes on; `starloom watch {job.id}` follows it, `starloom cancel {job.id}` stops it")
        raise
    return await _finish(client, job, out, args.output_dir)


async def _feed(job: "AsyncJob", source: "Source", rate: float, out: Output) -> None:
    """Feeds a stream. A job that needs no more of it, or has failed, says so itself."""
    from starloom.orchestrator.cli.feeding import feed

    try:
        count = await feed(job, source, rate)
        out.note(f"{source.name}: {count} chunks")
    except Conflict as error:
        out.note(f"{source.name}: {error}")


async def _finish(client: "AsyncClient", job: "AsyncJob", out: Output, folder: Path | None) -> int:
    """Tells how a job ended, with its outputs."""
    from starloom.orchestrator.cli.files import is_shown, output_json, output_text, save_all, shorter

    info = await job.status()
    wanted = {name: ref for name, ref in info.outputs.items() if folder or is_shown(ref)}
    values = {name: await client.fetch(job.id, name, ref) for name, ref in wanted.items()}
    paths = save_all(folder, {name: (ref, values[name]) for name, ref in wanted.items()}) if folder else {}
    row = {
        "job": job.id,
        "status": info.status,
        "revision": info.revision,
        "existing": job.existing,
        "outputs": {name: output_json(ref, values.get(name), paths.get(name)) for name, ref in info.outputs.items()},
        "seconds": (info.ended_unix_nanos - info.submitted_unix_nanos) / 1e9,
    }
    if info.plan:
        out.text(f"its plan: {info.plan}")
    if planned := [stage for stage in info.stages if stage.planned]:
        out.table(("stage", "where its plan has it"), [(stage.name, stage.planned) for stage in planned])
    for name, ref in info.outputs.items():
        out.text(f"{name}: {shorter(output_text(ref, values.get(name), paths.get(name)))}")
    if error := await _end_error(job, info):
        return out.error(error, **row)
    out.json(row)
    return Exit.DONE


async def _end_error(job: "AsyncJob", info: "JobInfo") -> StarloomError | None:
    from starloom.dag.facts import JobStatus

    return None if info.status in (JobStatus.SUCCEEDED, JobStatus.RUNNING) else await follow.end_error(job)
