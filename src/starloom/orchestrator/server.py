"""One orchestrator: the services on one port, the engine behind them, and the folder that it all lies in.

<folder>/journal/    the facts
<folder>/values/     job inputs and declared outputs
<folder>/streams/    chunks of declared output streams, and of input streams that are spooled
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from starloom.agents import crashpoints, faultservice
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.dataservice import DataService, add_data_service
from starloom.agents.faultlayer import FaultLayer, LostReplies
from starloom.agents.status import TokenCheck, server_options
from starloom.dag import limits
from starloom.dag.errors import Conflict, InvalidInput, NotFound, Problem, Unavailable
from starloom.dag.ids import Epoch, JobId
from starloom.dag.values import ValueRef
from starloom.devices.faults import FaultKind
from starloom.orchestrator.control import ControlService
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.engine import Engine, Outlets
from starloom.orchestrator.hub import Hub
from starloom.orchestrator.jobstore import JobStore, Upload
from starloom.orchestrator.journal import Journal
from starloom.orchestrator.spool import Spools
from starloom.orchestrator.streamhost import StreamHost
from starloom.v1 import control_pb2_grpc, session_pb2_grpc

_log = logging.getLogger(__name__)

_ASKS = tuple(f"/starloom.v1.ControlService/{name}" for name in ("Submit", "PatchJob", "CancelJob"))
"""Calls that change something: that their answer is lost must change nothing twice."""

JOURNAL_NAME = "journal"
VALUES_NAME = "values"
STREAMS_NAME = "streams"


class PortTaken(Conflict):
    """The address is in use, or none of this machine's."""


class Orchestrator:
    """Serves clients and agents on `host:port` (0: any free port) from `start` to `stop`.

    `token` is what every call has to carry; with `faults_allowed` whoever has it may make things go wrong here. With
    `plans_live` jobs that run are planned as a whole, in a process of its own. Several in one process need folders of
    their own.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        *,
        faults_allowed: bool = False,
        plans_live: bool = False,
    ) -> None:
        self._plans_live = plans_live
        self._faults_allowed = faults_allowed
        self._folder = folder
        self._host = host
        self._port = port
        self._token = token
        self._journal: Journal | None = None
        self._engine: Engine | None = None
        self._hub: Hub | None = None
        self._server: aio.Server | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.address = ""

    def __repr__(self) -> str:
        return f"<Orchestrator {self.address or 'stopped'} {str(self._folder)!r}>"

    @property
    def engine(self) -> Engine:
        """The loop, while it is started."""
        if self._engine is None:
            raise Unavailable("the orchestrator is not started")
        return self._engine

    @property
    def epoch(self) -> Epoch:
        """Counts the starts on this folder; 0 before `start`."""
        return self._journal.epoch if self._journal else Epoch(0)

    async def start(self) -> str:
        """Replays the journal and serves; returns `host:port`.

        Raises Conflict if another process has the folder, JournalDamaged, PortTaken.
        """
        store = await asyncio.to_thread(JobStore, self._folder / VALUES_NAME)
        spools = await asyncio.to_thread(Spools, self._folder / STREAMS_NAME)
        self._journal = await asyncio.to_thread(Journal.open, self._folder / JOURNAL_NAME)
        if crashpoints.ON:
            _log.warning("%s is set, for trials: processes die where a file in that folder says", crashpoints.VARIABLE)
        reach(CrashPoint.BOOTED)
        try:
            await self._start(self._journal, store, spools)
        except BaseException:
            await self.stop()
            raise
        return self.address

    def make_room(self) -> bool:
        """Gives the room back that is set aside on the disk; returns False if there was none."""
        return self._journal is not None and self._journal.make_room()

    async def _start(self, journal: Journal, store: JobStore, spools: Spools) -> None:
        engine = Engine(
            journal, store, Coordinator(journal.epoch, guided=self._plans_live), plans_live=self._plans_live
        )
        hub = Hub(journal.epoch, engine.post)
        engine.failed.add_done_callback(lambda _: hub.close())
        self._hub, self._engine = hub, engine
        interceptors: list[aio.ServerInterceptor] = [TokenCheck(self._token)]  # type: ignore[type-arg]
        faults = FaultLayer((FaultKind.DISK_FULL, FaultKind.REPLY_LOST)) if self._faults_allowed else None
        if faults is not None:
            _log.warning("faults are allowed: whoever has the token may make things go wrong")
            interceptors += [LostReplies(faults, prefix) for prefix in _ASKS]
            journal.disk_full = faults.disk_full
        server = self._server = aio.server(interceptors=interceptors, options=server_options())
        if faults is not None:
            faultservice.add_to(server, faults)
        values, streams = StoredValues(store, engine), StreamHost(spools, engine)
        control_pb2_grpc.add_ControlServiceServicer_to_server(ControlService(engine, store), server)  # type: ignore[no-untyped-call]
        session_pb2_grpc.add_SessionServiceServicer_to_server(hub, server)  # type: ignore[no-untyped-call]
        add_data_service(server, DataService(values, values, streams=streams, stream_sink=streams))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        # Bound before the replay, so that a taken port is told at once and costs no epoch's work.
        try:
            port = server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            raise PortTaken(
                f"the orchestrator cannot listen on {self._host}:{self._port}: {error}; "
                "stop what listens there, or give another port"
            ) from error
        await engine.start(Outlets(hub.send, hub.forget, streams.noted, streams.forget))
        await asyncio.to_thread(spools.adopt, frozenset(engine.coordinator.jobs))
        await server.start()
        self.address = f"{self._host}:{port}"
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Ends all calls, carries out what has come in, and gives the folder back. May be called again."""
        server, self._server = self._server, None
        if self._hub is not None:
            self._hub.close()
        if server is not None:
            await self._health.enter_graceful_shutdown()
            await server.stop(None)
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()
        self.address = ""

    async def failed(self) -> None:
        """Returns never while all is well; raises what ended the loop: the process has to end as well."""
        await asyncio.shield(self.engine.failed)


class StoredValues:
    """The job store as the Data service reads and writes it; small values of jobs are known from their references."""

    def __init__(self, store: JobStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine

    async def read(self, job: JobId, digest: str, offset: int) -> AsyncIterator[bytes]:
        """The value's bytes, in chunks. Raises NotFound, or InvalidInput for an offset beyond its end."""
        size = self._store.size(digest)
        inline = self._inline(job, digest) if size is None else None
        end = size if inline is None else len(inline)
        if end is None:
            raise NotFound(f"value {digest[:12]} of job {job} is not in the job store, or not any more")
        if offset > end:
            raise InvalidInput([Problem("offset", f"is {offset}, beyond the value's {end} bytes")])
        while offset < end:
            count = min(end - offset, limits.CHUNK_BYTES)
            if inline is not None:
                yield inline[offset : offset + count]
            else:
                yield await asyncio.to_thread(self._store.read, digest, offset, count)
            offset += count

    async def put(self, ref: ValueRef, chunks: AsyncIterator[bytes]) -> ValueRef:
        """Stores a value durably; see `jobstore.Upload`."""
        upload = await asyncio.to_thread(Upload, self._store, ref)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(upload.write, chunk)
            return await asyncio.to_thread(upload.commit)
        finally:
            await asyncio.to_thread(upload.close)

    def _inline(self, job: JobId, digest: str) -> bytes | None:
        state = self._engine.coordinator.jobs.get(job)
        if state is None:
            return None
        refs = [*state.inputs.values(), *state.outputs.values(), *state.declared().values()]
        return next((ref.inline for ref in refs if ref.digest == digest and ref.inline is not None), None)
