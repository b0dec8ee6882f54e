"""Finds the streams of jobs for those who read and write them, and lets them go with their jobs."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Final

from starloom.agents.streams.records import (
    Credit,
    How,
    ReadOpen,
    RunningDigest,
    StreamBatch,
    StreamEnd,
    StreamName,
    WriteOpen,
)
from starloom.dag.constellation import Constellation
from starloom.dag.errors import Conflict, Fenced, InvalidInput, NotFound, Problem
from starloom.dag.facts import Fact, JobEnded, JobSubmitted, StreamOptions
from starloom.dag.ids import JobId, StageId
from starloom.dag.job import JobState
from starloom.dag.streams import input_streams, open_inputs
from starloom.dag.values import Full, Port
from starloom.orchestrator.engine import Engine
from starloom.orchestrator.jobstreams import FedStream, JobStream, Parts, Requests, SpooledStream
from starloom.orchestrator.spool import NOBODY, Spools

IN: Final = "in"
OUT: Final = "out"
_Key = tuple[JobId, str, str, str]


class StreamHost:
    """The streams of one orchestrator's jobs. For its event loop."""

    def __init__(self, spools: Spools, engine: Engine) -> None:
        self._spools = spools
        self._engine = engine
        self._streams: dict[_Key, asyncio.Task[JobStream]] = {}
        #: jobs that were accepted since the start: nobody has fed them before
        self._fresh: set[JobId] = set()

    async def read(self, wish: ReadOpen, requests: Requests) -> AsyncIterator[StreamBatch]:
        """What a reader wants of a stream. Raises NotFound, StreamGone."""
        stream = await self._find(wish.stream)
        async for batch in stream.read(wish, requests):
            yield batch

    async def write(self, wish: WriteOpen, parts: Parts) -> AsyncIterator[Credit]:
        """Takes a stream in. Raises NotFound, Fenced for a token that is not live, Conflict for a job that has ended."""
        stream = await self._find(wish.stream, wish)
        async for credit in stream.write(wish, parts):
            yield credit

    def noted(self, facts: Sequence[Fact]) -> None:
        """What was journaled."""
        for fact in facts:
            if isinstance(fact, JobSubmitted):
                self._fresh.add(fact.job)
            elif isinstance(fact, JobEnded):
                self._fresh.discard(fact.job)
                for key in [key for key in self._streams if key[0] == fact.job]:
                    opening = self._streams[key]
                    if opening.done() and not opening.cancelled() and opening.exception() is None:
                        opening.result().ring()

    def forget(self, jobs: Iterable[JobId]) -> None:
        """The jobs are not kept any more, nor is what they streamed. In a thread."""
        gone = set(jobs)
        self._spools.drop(gone)
        self._engine.call_soon(partial(self._forget, gone))

    def _forget(self, gone: set[JobId]) -> None:
        for key in [key for key in self._streams if key[0] in gone]:
            del self._streams[key]

    async def _find(self, name: StreamName, wish: WriteOpen | None = None) -> JobStream:
        job = self._engine.coordinator.find(name.job)
        constellation = job.constellation
        if name.stage:
            return await self._output(job, name.stage, name.port)
        port = constellation.inputs.get(name.port)
        if port is not None and port.stream:
            if wish is not None:
                _check_type(wish, port)
            return await self._input(job, name.port, constellation)
        output = constellation.outputs.get(name.port)
        if output is None or wish is not None:
            known = ", ".join(input_streams(constellation)) or "none"
            what = (
                f"no output {name.port!r}"
                if wish is None
                else f"no input stream {name.port!r}; its input streams: {known}"
            )
            raise NotFound(f"job {job.id} has {what}")
        return await self._output(job, output.upstream, output.output)

    async def _output(self, job: JobState, stage: StageId, port: str) -> JobStream:
        if stage not in job.stages:
            raise NotFound(f"job {job.id} has no stage {stage!r}")
        kind = self._engine.coordinator.kinds.get(job.stages[stage].spec.kind)
        spec = kind.outputs.get(port) if kind is not None else None
        if spec is None or not spec.stream:
            raise NotFound(f"job {job.id}: {stage}.{port} is no stream")
        key = (job.id, OUT, stage, port)
        return await self._opened(key, partial(self._open_output, job, stage, port))

    async def _input(self, job: JobState, name: str, constellation: Constellation) -> JobStream:
        if name not in open_inputs(constellation, job.options.streams):
            raise NotFound(f"job {job.id}: the optional input stream {name!r} was not opened when it was submitted")
        return await self._opened((job.id, IN, name, ""), partial(self._open_input, job, name, constellation))

    async def _opened(self, key: _Key, open_it: partial[JobStream]) -> JobStream:
        opening = self._streams.get(key)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._streams[key] = asyncio.create_task(asyncio.to_thread(open_it))
        return await asyncio.shield(opening)

    def _open_output(self, job: JobState, stage: StageId, port: str) -> JobStream:
        """In a thread: a spool that is there is read through."""
        spool = self._spools.open(job.id, OUT, stage, port)
        return SpooledStream(spool, partial(self._check_writer, job, stage), partial(self._over, job), durable=False)

    def _open_input(self, job: JobState, name: str, constellation: Constellation) -> JobStream:
        """In a thread, too."""
        options = job.options.streams.get(name, StreamOptions())
        over = partial(self._over, job)
        if options.spool:
            spool = self._spools.open(job.id, IN, name)
            return SpooledStream(spool, partial(self._check_open, job, name), over, durable=True)
        readers = [f"{each.downstream}.{each.input}" for each in constellation.bindings if each.source == name]
        closed = self._spools.open(job.id, IN, name).end if self._spools.there(job.id, IN, name) else None
        marker = partial(self._spools.open, job.id, IN, name)
        fresh = job.id in self._fresh
        full = options.full or constellation.inputs[name].full or Full.BLOCK
        return FedStream(name, full, readers, over, marker, fresh=fresh, closed=closed)

    def _check_writer(self, job: JobState, name: StageId, wish: WriteOpen) -> None:
        stage = job.stages.get(name)
        token = wish.stream.token
        if job.ended or stage is None or (token not in stage.live and token != stage.committed):
            raise Fenced(f"job {job.id}: {name}'s token {token} is not live; nothing is taken from it")

    def _check_open(self, job: JobState, name: str, wish: WriteOpen) -> None:
        if wish.stream.token != NOBODY:
            raise InvalidInput([Problem("stream", f"input {name} is fed by clients, which have no token")])
        if job.ended:
            raise Conflict(f"input {name} takes no more: job {job.id} has {job.status}")

    def _over(self, job: JobState) -> StreamEnd | None:
        """The end of what has none of its own, once the job has ended."""
        times = self._engine.kept.times(job.id)
        if times is not None and not times.ended:
            return None
        what = f"job {job.id} has {job.status}{f': {job.error}' if job.error else ''}"
        return StreamEnd(How.CANCELLED, 0, 0, RunningDigest().hex(), what)


def _check_type(wish: WriteOpen, port: Port) -> None:
    if wish.type is not port.type:
        raise InvalidInput([Problem("open.type", f"is {wish.type}, but {wish.stream.port} is a stream of {port.type}")])
