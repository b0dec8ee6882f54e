"""`starloom jobs`, `get`, `cancel`, `explain` and `nodes`: what is asked of a running cluster."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from starloom.dag.errors import NotFound
from starloom.orchestrator.cli import follow, patch, submit
from starloom.orchestrator.cli.output import (
    Commands,
    Exit,
    Output,
    UsageError,
    add_command,
    count,
    error_fields,
)

if TYPE_CHECKING:
    from starloom.dag.values import ValueRef
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.infos import JobInfo

Result = TypeVar("Result")


def add_parsers(commands: Commands) -> None:
    """Adds the commands of this module, and of those that it shares a cluster with: `submit`, `watch` and `patch`."""
    add_command(commands, "nodes", run_nodes, "the cluster's nodes")
    submit.add_parsers(commands)
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
