"""The streams of one agent: starts stages with stream ports, serves what they produce, and forgets it with its job."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from starloom.agents.execution import Execution, ModelsFactory, StageLookup, failure
from starloom.agents.messages import Assign, Await
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.flow import Flow
from starloom.agents.streams.hub import Hub
from starloom.agents.streams.inlet import Inlet, LocalSource, Source
from starloom.agents.streams.loops import Loops
from starloom.agents.streams.records import Bound, Credit, ReadOpen, StreamBatch, StreamName, WriteOpen
from starloom.agents.streams.remote import Carrier, RemoteSource
from starloom.agents.streams.running import StreamRun, Submit
from starloom.agents.streams.watching import Watch
from starloom.agents.transfer import Transfer
from starloom.agents.workers import Began, Ended
from starloom.dag import limits
from starloom.dag.errors import Cancelled, InvalidInput, Problem, StreamGone
from starloom.dag.ids import AgentId, JobId, TaskToken
from starloom.dag.kinds import KindSpec
from starloom.dag.streams import has_streams
from starloom.dag.values import Full

_log = logging.getLogger(__name__)

JOB_STORE_READER = "job"
"""Who reads a declared output stream to write it to the job store; readers that are stages have a dot in their names."""

Deliver = Callable[[Sequence[Began[TaskToken] | Ended[TaskToken]]], None]


class Streams:
    """One agent's streams: `dataservice.StreamSource`. All methods are for the agent's event loop."""

    def __init__(
        self,
        agent: AgentId,
        stages: StageLookup,
        models: ModelsFactory,
        transfer: Transfer,
        store_address: str,
        incarnation: str,
    ) -> None:
        #: the kinds whose attempts run here: those with a stream port
        self.kinds = frozenset(name for name, kind in stages.kinds.items() if has_streams(kind))
        self._agent = agent
        self._stages = stages
        self._models = models
        self._transfer = transfer
        self._store_address = store_address
        self._incarnation = incarnation
        self._loops = Loops(f"{agent}-streams")
        self._hub = Hub()
        self._watch = Watch()

    def begin(self, execution: Execution, submit: Submit, deliver: Deliver) -> None:
        """Starts an attempt; `deliver` is told when it has begun and ended, as by a worker. It computes by `submit`."""
        self._loops.to_streams(self._begin, execution, submit, deliver)

    async def read(self, wish: ReadOpen, told: AsyncIterator[Credit | None]) -> AsyncIterator[StreamBatch]:
        """Batches of one of this agent's streams, for another agent: as `dataservice.StreamSource` says."""
        if wish.incarnation not in ("", self._incarnation):
            # It would be waited for as one that is yet to begin.
            raise StreamGone(f"{self._agent} was started anew since, and has no stream of the process before")
        reading = await self._loops.on_streams(self._hub.open(wish))
        wrong: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def listen() -> None:
            async for credit in told:
                if credit is None:
                    self._loops.to_streams(reading.close)
                else:
                    await self._loops.on_streams(_apply(reading.credit, credit))

        listening = asyncio.create_task(listen())
        listening.add_done_callback(partial(_pass_error, wrong))
        try:
            while True:
                coming = asyncio.ensure_future(self._loops.on_streams(reading.next()))
                try:
                    await asyncio.wait((coming, wrong), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                if wrong.done():
                    wrong.result()
                batch = coming.result()
                yield batch
                if batch.end is not None:
                    return
        finally:
            listening.cancel()

    def forget(self, job: JobId) -> None:
        """Forgets a job's streams."""
        if self._loops.started:
            self._loops.to_streams(self._hub.release, job)

    async def stop(self, seconds: float) -> bool:
        """Ends the thread of stream stages; whether it ended within `seconds`."""
        return await self._loops.stop(seconds)

    def _begin(self, execution: Execution, submit: Submit, deliver: Deliver) -> None:
        task = asyncio.ensure_future(self._run(execution, submit))
        key = execution.assign.task
        self._loops.to_agent(deliver, [Began(key, time.monotonic_ns())])

        def ended(done: asyncio.Task[Any]) -> None:
            result = done.result() if not done.cancelled() else Cancelled("the agent is stopping")
            self._loops.to_agent(deliver, [Ended(key, time.monotonic_ns(), result)])

        task.add_done_callback(ended)
        # A cancel may come from another thread, and may have come already.
        execution.cancel.on_cancel(lambda: self._loops.to_streams(task.cancel))

    async def _run(self, execution: Execution, submit: Submit) -> Any:
        assign = execution.assign
        spec = self._stages.kinds[assign.kind]
        feeds = {port: (awaited, output) for awaited in assign.awaits for port, output in awaited.streams.items()}
        if unknown := [port for port in feeds if spec.input_port(port) is None]:
            problems = [
                Problem(f"stages.{assign.task.stage}.in.{port}", f"{spec.name} has no such input port")
                for port in unknown
            ]
            return failure(InvalidInput(problems, "a stage's inputs do not fit"), self._agent)
        if execution.cancel.cancelled:
            # Its job may have been forgotten already: a stream that begins after that would be kept for ever.
            return Cancelled("the attempt was cancelled")
        flows = self._open_flows(assign, spec)
        inlets = {port: self._inlet(assign, spec, awaited, port, output) for port, (awaited, output) in feeds.items()}
        run = StreamRun(execution, self._stages, self._models, self._agent, flows, inlets, submit)
        carriers = [self._carry(assign, spec, port, run) for port in flows if port in assign.publish]
        self._watch.add(run)
        try:
            return await run.run(partial(_carried, carriers))
        finally:
            self._watch.remove(run)
            for carrier in carriers:
                carrier.cancel()

    def _open_flows(self, assign: Assign, spec: KindSpec) -> dict[str, Flow]:
        flows: dict[str, Flow] = {}
        for name, port in spec.outputs.items():
            if not port.stream:
                continue
            readers = [(reader.reader, reader.full) for reader in assign.readers if reader.port == name]
            if name in assign.publish:
                readers.append((JOB_STORE_READER, Full.BLOCK))
            bound = Bound(chunks=port.chunks or limits.STREAM_BUFFER_CHUNKS)
            flows[name] = Flow(StreamBuffer(bound, readers), self._watch.arm)
            self._hub.add(_name(assign, name), flows[name])
        return flows

    def _carry(self, assign: Assign, spec: KindSpec, port: str, run: StreamRun) -> Future[None]:
        """Begins to write a declared output to the job store; where that takes it no more, the attempt fails at once."""
        wish = WriteOpen(_name(assign, port), spec.outputs[port].type)
        carrier = Carrier(self._loops, self._hub, self._transfer, self._store_address, wish, JOB_STORE_READER)
        carrying = self._loops.on_agent(carrier.run())

        def ended(done: Future[None]) -> None:
            if not done.cancelled() and isinstance(error := done.exception(), Exception):
                self._loops.to_streams(run.fail, error)

        carrying.add_done_callback(ended)
        return carrying

    def _inlet(self, assign: Assign, spec: KindSpec, awaited: Await, port: str, output: str) -> Inlet:
        declared = spec.input_port(port)
        assert declared is not None, "the ports were checked"
        name = StreamName(assign.task.job, awaited.upstream, awaited.token, output)
        reader, attempt = f"{assign.task.stage}.{port}", assign.task.token.attempt
        wish = ReadOpen(name, reader, Credit(), declared.full, attempt, awaited.incarnation)
        source: Source
        if awaited.upstream and awaited.agent == self._agent:
            source = LocalSource(self._hub, wish)
        else:
            # The streams of a job are with the orchestrator alone, which comes back.
            patience = limits.INPUT_PATIENCE_SECONDS if awaited.upstream else inf
            address = awaited.address or self._store_address
            source = RemoteSource(self._loops, self._transfer, address, wish, patience)
        return Inlet(port, declared.type, source, awaited.upstream, awaited.agent)


def _name(assign: Assign, port: str) -> StreamName:
    return StreamName(assign.task.job, assign.task.stage, assign.task.token, port)


async def _apply(credit: Callable[[Credit], None], told: Credit) -> None:
    credit(told)


async def _carried(carriers: Sequence[Future[None]]) -> None:
    for carrier in carriers:
        await asyncio.wrap_future(carrier)


def _pass_error(wrong: asyncio.Future[None], listening: asyncio.Task[None]) -> None:
    if not listening.cancelled() and (error := listening.exception()) is not None and not wrong.done():
        wrong.set_exception(error)
        # It may be that nobody asks for it any more.
        with suppress(Exception):
            wrong.exception()
