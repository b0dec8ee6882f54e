"""`starloom submit`, `jobs`, `get`, `cancel`, `explain` and `nodes`: what is asked of a running cluster."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from starloom.dag.errors import Conflict, InvalidInput, NotFound, Problem, StarloomError
from starloom.dag.facts import StreamOptions
from starloom.dag.values import Full
from starloom.orchestrator.cli import follow, patch
from starloom.orchestrator.cli.check import read_constellation
from starloom.orchestrator.cli.output import (
    Commands,
    Exit,
    Output,
    UsageError,
    add_command,
    count,
    error_fields,
    factor,
    seconds,
)

if TYPE_CHECKING:
    from starloom.dag.constellation import Constellation
    from starloom.dag.values import ValueRef
    from starloom.orchestrator.cli.feeding import Source
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.clientjob import AsyncJob
    from starloom.orchestrator.infos import JobInfo

Result = TypeVar("Result")


def add_parsers(commands: Commands) -> None:
    """Adds the commands of this module, and `watch`."""
    add_command(commands, "nodes", run_nodes, "the cluster's nodes")
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
    jobs = add_command(commands, "jobs", run_jobs, "the jobs that are kept, the newest first")
    jobs.add_argument("--limit", type=count, default=0, metavar="N", help="at most so many")
    follow.add_parsers(commands)
    get = add_command(commands, "get", run_get, "a job as it stands: its stages and outputs")
    get.add_argument("job", metavar="JOB", help="a job's id or key")
    get.add_argument("--output", metavar="NAME", help="only this declared output")
    get.add_argument("-o", dest="file", type=Path, metavar="FILE", help="with --output: write it to this file")
    get.add_argument("--revision", type=count, default=0, metavar="N", help="only the constellation as it was then")
    patch.add_parsers(commands)
    cancel = add_command(commands, "cancel", run_cancel, "stop a job, and wait until nothing of it runs")
    cancel.add_argument("job", metavar="JOB", help="a job's id or key")
    cancel.add_argument("--reason", default="", help="why, for those who look at the job later")
    explain = add_command(
        commands,
        "explain",
        run_explain,
        "what stages wait for, where their plan has them, and where private data keeps them",
    )
    explain.add_argument("job", metavar="JOB", help="a job's id or key")


def with_client(work: "Callable[[AsyncClient], Awaitable[Result]]") -> Result:
    """Runs asynchronous work with a client of the cluster that the environment or the state folder names."""
    from starloom.orchestrator.client import AsyncClient

    async def run() -> Result:
        async with AsyncClient() as client:
            return await work(client)

    return asyncio.run(run())


def run_submit(args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.feeding import read_sources
    from starloom.orchestrator.cli.files import read_inputs

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


def run_jobs(args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.views import job_row

    rows = [job_row(info) for info in with_client(lambda client: client.jobs(args.limit))]
    out.json({"jobs": rows})
    out.table(
        ("job", "status", "name", "key", "revision"),
        [(row["job"], row["status"], row["name"], row["key"], row["revision"]) for row in rows],
    )
    return Exit.DONE


def run_get(args: argparse.Namespace, out: Output) -> int:
    if args.file and not args.output:
        raise UsageError("-o needs --output NAME: which output is to be written")
    if args.revision:
        if args.output:
            raise UsageError("--revision shows a constellation, and --output a value; ask for one of them")
        return with_client(lambda client: patch.show_revision(client, args.job, args.revision, out))
    return with_client(lambda client: _get_output(client, args, out) if args.output else _get(client, args, out))


async def _get(client: "AsyncClient", args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.files import is_shown, output_json, output_text, shorter
    from starloom.orchestrator.cli.views import figures_text, job_row, stage_row
    from starloom.orchestrator.clientjob import job_failed

    info = await client.info(args.job)
    values = {name: await client.fetch(info.id, name, ref) for name, ref in info.outputs.items() if is_shown(ref)}
    failed = error_fields(job_failed(info)) if info.status == "failed" else None
    out.json(
        {
            **job_row(info),
            "error": failed,
            "plan": info.plan,
            "outputs": {name: output_json(ref, values.get(name)) for name, ref in info.outputs.items()},
            "stages": [stage_row(stage) for stage in info.stages],
            "patches": msgspec.to_builtins(info.patches),
        }
    )
    out.text(f"{info.id}  {info.name}  {info.status}{f': {info.error}' if info.error else ''}")
    _tell_degraded(info, out)
    out.table(
        ("stage", "kind", "status", "node", "tier", "target", "model", "tries", "queue", "transfer", "load", "run", ""),
        [
            (
                stage.name,
                stage.kind,
                stage.status,
                stage.node,
                stage.tier,
                f"{stage.target}{' (emulated)' if stage.emulated else ''}",
                ", ".join([*([f"as {stage.variant}"] if stage.variant else []), *stage.models]),
                stage.attempts,
                *(f"{part:.3f}" for part in msgspec.structs.astuple(stage.seconds)),
                stage.reason,
            )
            for stage in info.stages
        ],
    )
    for stage in info.stages:
        if stage.figures:
            out.text(f"{stage.name} measured {figures_text(stage.figures)}")
    for name, ref in info.outputs.items():
        out.text(f"{name}: {shorter(output_text(ref, values.get(name)))}")
    return Exit.DONE


async def _get_output(client: "AsyncClient", args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.files import output_json, output_text, save

    info = await client.info(args.job)
    ref: ValueRef | None = info.outputs.get(args.output)
    if ref is None:
        there = ", ".join(info.outputs) or "none"
        raise NotFound(f"job {info.id} has no output {args.output!r} (it is {info.status}); there so far: {there}")
    value = await client.fetch(info.id, args.output, ref)
    path = save(args.file, ref, value) if args.file else None
    out.json({"job": info.id, "output": args.output, "value": output_json(ref, value, path)})
    out.text(output_text(ref, value, path))
    return Exit.DONE


def run_cancel(args: argparse.Namespace, out: Output) -> int:
    return with_client(lambda client: _cancel(client, args, out))


async def _cancel(client: "AsyncClient", args: argparse.Namespace, out: Output) -> int:
    from starloom.dag.facts import JobStatus

    job = await client.job(args.job)
    stopped = await job.cancel(args.reason)
    out.json({"job": stopped.job, "status": stopped.status, "seconds": stopped.seconds})
    if stopped.status is JobStatus.CANCELLED:
        out.text(f"{stopped.job} is cancelled, after {stopped.seconds:.3f} s")
        return Exit.DONE
    out.note(f"{stopped.job} had {stopped.status} before it could be cancelled")
    return Exit.FAILED


def _tell_degraded(info: "JobInfo", out: Output) -> None:
    for how in info.degraded:
        out.text(f"degraded: {how}; no node that is left may run it as before")


def run_explain(args: argparse.Namespace, out: Output) -> int:
    from starloom.dag.stagestate import ENDED

    info = with_client(lambda client: client.info(args.job))
    waiting = [stage for stage in info.stages if stage.status not in ENDED]
    rows = [
        {
            "stage": stage.name,
            "status": stage.status,
            "node": stage.node,
            "waits_for": stage.reason,
            "planned": stage.planned,
            "grown_by": stage.grown_by,
        }
        for stage in waiting
    ]
    private = [stage for stage in info.stages if stage.private]
    kept = [{"stage": each.name, "node": each.node, "tier": each.tier, "why": each.private} for each in private]
    told = {"job": info.id, "status": info.status, "stuck": info.stuck, "degraded": list(info.degraded)}
    out.json({**told, "plan": info.plan, "stages": rows, "private": kept})
    out.text(f"{info.id} is {info.status}; {len(rows)} of {len(info.stages)} stages have not ended")
    if info.stuck:
        out.text(f"it cannot go on: {info.stuck}")
    _tell_degraded(info, out)
    if info.plan:
        out.text(f"its plan: {info.plan}")
    out.table(
        ("stage", "status", "node", "waits for", "grown by"),
        [(stage.name, stage.status, stage.node, stage.reason, stage.grown_by) for stage in waiting],
    )
    if planned := [stage for stage in waiting if stage.planned]:
        out.table(("stage", "where its plan has it"), [(stage.name, stage.planned) for stage in planned])
    if private:
        out.table(("stage", "tier", "why not elsewhere"), [(each.name, each.tier, each.private) for each in private])
    return Exit.DONE


def run_nodes(args: argparse.Namespace, out: Output) -> int:
    return with_client(lambda client: _nodes(client, out))


async def _nodes(client: "AsyncClient", out: Output) -> int:
    from starloom.orchestrator.cli.views import cluster_row

    show_cluster(cluster_row(await client.cluster(), client.address), out)
    return Exit.DONE


def show_cluster(row: Mapping[str, Any], out: Output) -> None:
    """Shows a cluster's nodes and orchestrator, given as `views.cluster_row` has them."""
    out.json(row)
    out.table(
        ("node", "tier", "targets", "state", "labels", "slots", "pid", "address"),
        [
            (
                node["name"],
                node["tier"],
                ", ".join(f"{name} (emulated)" if name in node["emulated"] else name for name in node["targets"]),
                node["state"],
                ", ".join(f"{name}={value}" for name, value in node["labels"].items()),
                node["slots"],
                node["pid"],
                node["address"],
            )
            for node in row["nodes"]
        ],
    )
    orchestrator = row["orchestrator"]
    out.text(f"orchestrator {orchestrator['address']}, process {orchestrator['pid']}, start {orchestrator['epoch']}")
