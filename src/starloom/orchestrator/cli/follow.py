"""`starloom watch`, and how a job is followed live: a table on a terminal, else a line for each event."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from starloom.dag import facts
from starloom.dag.errors import JobFailed, StarloomError
from starloom.dag.job import JobState
from starloom.dag.stagestate import ACTIVE, StageState, StageStatus
from starloom.dag.values import PortType
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, count
from starloom.orchestrator.cli.views import event_line, event_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.clientjob import AsyncJob
    from starloom.orchestrator.infos import Event, NodeInfo

_ROWS_MAX: Final = 30
"""A table that is longer would not fit a screen: then only stages that run are listed."""


def add_parsers(commands: Commands) -> None:
    """Adds `watch`."""
    parser = add_command(commands, "watch", run_watch, "follow a job until it ends, event by event")
    parser.add_argument("job", metavar="JOB", help="a job's id or key")
    parser.add_argument(
        "--port", metavar="NAME", help="only this declared output: wait for it, or print its chunks as they come"
    )
    parser.add_argument(
        "--after", type=count, default=0, metavar="OFFSET", help="only events after this offset, or chunks from it on"
    )


def run_watch(args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.jobs import with_client

    return with_client(lambda client: _watch(client, args, out))


async def _watch(client: "AsyncClient", args: argparse.Namespace, out: Output) -> int:
    job = await client.job(args.job)
    if args.port:
        return await _watch_port(job, args, out)
    ended: facts.JobEnded | None = None
    async for event in job.events(args.after):
        out.json(event_row(event))
        out.text(event_line(event))
        ended = event.fact if isinstance(event.fact, facts.JobEnded) else ended
    status = ended.status if ended else (await job.status()).status
    if status is facts.JobStatus.SUCCEEDED:
        return Exit.DONE
    return out.error(await end_error(job))


async def _watch_port(job: "AsyncJob", args: argparse.Namespace, out: Output) -> int:
    from starloom.orchestrator.cli.files import output_json, output_text

    port: str = args.port
    if (port_type := await job.chunk_type(port)) is not None:
        return await _watch_chunks(job, port, port_type, args.after, out)
    async for name, value in job.stream():
        if name == port:
            ref = (await job.status()).outputs[name]
            out.json({"job": job.id, "port": name, "value": output_json(ref, value)})
            out.text(output_text(ref, value))
            return Exit.DONE
    raise JobFailed(f"job {job.id} ended without the output {port!r}: its stage was skipped")


async def _watch_chunks(job: "AsyncJob", port: str, port_type: PortType, first: int, out: Output) -> int:
    from starloom.orchestrator.cli.files import chunk_json, chunk_text

    async for item in job.chunks(port, first):
        row = {"job": job.id, "port": port, "offset": item.offset, "generation": item.generation, "at": item.at}
        out.json({**row, "value": chunk_json(port_type, item)})
        out.text(chunk_text(port_type, item))
    return Exit.DONE


async def end_error(job: "AsyncJob") -> StarloomError:
    """The error that stands for a job's end without success."""
    try:
        await job.result()
    except StarloomError as error:
        return error
    raise AssertionError("the job succeeded")


async def follow(job: "AsyncJob", progress: "Progress") -> None:
    """Shows the job's events as they come, until it ends."""
    with progress:
        async for event in job.events():
            progress.show(event)


class Progress:
    """A job's progress on standard error. Show it events in order, inside `with`; `nodes` tell of tiers and targets."""

    def __init__(self, out: Output, nodes: "Iterable[NodeInfo]" = ()) -> None:
        self._console: Console = out.console(err=True)
        self._out = out
        self._profiles = {node.name: node.profile for node in nodes}
        self._began: dict[str, float] = {}
        self._job: JobState | None = None
        self._live: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=8, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: "Event") -> None:
        """Takes one event in."""
        if self._live is None:
            self._out.note(event_line(event))
        elif isinstance(event.fact, facts.JobSubmitted):
            self._job = JobState(event.fact)
        elif self._job is not None:
            self._job.apply(event.fact)
            if isinstance(event.fact, facts.StageStarted):
                self._began[event.fact.stage] = time.monotonic()

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        for column in ("stage", "status", "node", "tier", "target", "attempt", "seconds"):
            table.add_column(column)
        if self._job is None:
            return table
        stages = list(self._job.stages.values())
        counts = Counter(stage.status for stage in stages)
        table.title = f"{self._job.id}  {self._job.status}  " + ", ".join(f"{n} {s}" for s, n in counts.items())
        shown = stages if len(stages) <= _ROWS_MAX else [stage for stage in stages if stage.status in ACTIVE]
        for stage in shown[:_ROWS_MAX]:
            table.add_row(*self._cells(stage))
        return table

    def _cells(self, stage: StageState) -> tuple[str, ...]:
        profile = self._profiles.get(stage.agent)
        target = profile.target(stage.target) if profile else None
        return (
            stage.spec.id,
            stage.status,
            stage.agent,
            profile.tier if profile else "",
            f"{stage.target}{' (emulated)' if target and target.emulated else ''}",
            str(stage.attempt or ""),
            self._seconds(stage),
        )

    def _seconds(self, stage: StageState) -> str:
        """What the stage took, or has taken so far; or why it failed."""
        match stage.status:
            case StageStatus.SUCCEEDED:
                return f"{sum(msgspec.structs.astuple(stage.timing)):.3f}"
            case StageStatus.RUNNING if stage.spec.id in self._began:
                return f"{time.monotonic() - self._began[stage.spec.id]:.1f}"
            case _:
                return stage.error.message if stage.error else ""
