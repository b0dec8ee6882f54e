"""The process on a node that runs stages: its core, runtime, data service and session, put together."""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from starloom.agents import selfprofile
from starloom.agents.catalog import Catalog
from starloom.agents.core import AgentCore
from starloom.agents.dataservice import DataServer
from starloom.agents.execution import CountedModels, StageLookup
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.faultstages import DisturbedStages
from starloom.agents.holder import Holder
from starloom.agents.link import Link
from starloom.agents.messages import Command, Hello, Load, Report, Welcome
from starloom.agents.modelstore import ModelStore
from starloom.agents.neighbours import Neighbours
from starloom.agents.peers import Peers
from starloom.agents.probe import LoadMeter, probe, provider_of
from starloom.agents.runtime import Runtime
from starloom.agents.selfprofile import Means, Profiling
from starloom.agents.sharedmemory import open_arena
from starloom.agents.stage import CancelToken
from starloom.agents.streams.runner import Streams
from starloom.agents.transfer import Transfer
from starloom.dag import limits
from starloom.dag.errors import Fenced, InvalidInput, Problem
from starloom.dag.ids import AgentId, Epoch
from starloom.dag.kinds import Batch, KindSpec
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import SharedUplink
from starloom.devices.node import Measured, NodeProfile

if TYPE_CHECKING:
    from starloom.agents.sessions import SessionPool

_log = logging.getLogger(__name__)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's place and means.

    `orchestrator` is its address, `host:port`. `slots` are stages that run at once, 0 for one per core;
    `threads` those of one ONNX Runtime session. `models_root` is the model store, empty for the user's.
    `kinds` names what it offers, empty for all that can run here. `host` is where its data service listens.
    `arena_bytes` bounds its shared memory, 0 for none. `verify_shared`: whether what is read in others' is hashed again.
    `load_ahead`: whether models are loaded while attempts that need them wait,
    `batches`: whether attempts of kinds that say so share a call. `measures`: whether it profiles its targets and reads its
    models' graphs, once on a machine, and keeps that in `profiles_root`, empty for the user's cache. `faults_allowed`: whoever has the token may make things go wrong in it.
    """

    name: str
    tier: str
    orchestrator: str
    token: str
    targets: tuple[str, ...] = ("cpu",)
    labels: dict[str, str] = {}
    uplinks: tuple[SharedUplink, ...] = ()
    slots: int = 0
    host: str = "127.0.0.1"
    models_root: str = ""
    threads: int = 1
    kinds: tuple[str, ...] = ()
    arena_bytes: int = limits.AGENT_ARENA_BYTES_MAX
    verify_shared: bool = False
    load_ahead: bool = True
    batches: bool = True
    measures: bool = True
    profiles_root: str = ""
    faults_allowed: bool = False


class ModelPool:
    """The agent's session pool, made when a stage first asks for a model, since ONNX Runtime takes a while to import."""

    def __init__(self, root: str, threads: int) -> None:
        self._root = Path(root) if root else None
        self._threads = threads
        self._guard = Lock()
        self._pool: SessionPool | None = None

    def __call__(self, cancel: CancelToken, target: str) -> CountedModels:
        """The models of one call; raises StageError for an unknown target."""
        with self._guard:
            if self._pool is None:
                from starloom.agents.sessions import SessionPool

                self._pool = SessionPool(ModelStore(self._root), limits.AGENT_SESSIONS_MAX, self._threads)
        return self._pool.for_call(cancel, target)

    def resident(self) -> tuple[str, ...]:
        """The kinds whose models are loaded, by name."""
        return self._pool.resident_kinds() if self._pool is not None else ()


class Agent:
    """One agent. `start` makes it ready, `run` lasts until `stop`; it dials the orchestrator for as long.

    `stages` are those of this machine, unless others are given. `profile` is there after `start`.
    """

    def __init__(self, config: AgentConfig, stages: StageLookup | None = None) -> None:
        self.config = config
        self.incarnation = secrets.token_hex(8)
        self._stages = stages
        self._kinds: tuple[KindSpec, ...] = ()
        self._profile: NodeProfile | None = None
        self._holder = Holder()
        self._faults = faults = FaultLayer(store_address=config.orchestrator) if config.faults_allowed else None
        self._link = Link(config.orchestrator, config.token, self, faults)
        self._transfer = Transfer(config.token, faults)
        self._peers = Peers(config.token, faults)
        self._data: DataServer | None = None
        self._runtime: Runtime | None = None
        self._models: ModelPool | None = None
        self._meter = LoadMeter()
        self._profiling: Profiling | None = None
        #: whether what was measured since the last hello is still to be told
        self._untold = False
        #: the links as they were last told to this orchestrator
        self._links_told: dict[str, MeasuredLink] | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Agent {self.config.name} {self.incarnation}>"

    @property
    def profile(self) -> NodeProfile:
        """What the agent says of its node."""
        assert self._profile is not None, "the agent has not started"
        return self._profile

    @property
    def runtime(self) -> Runtime:
        """What runs its stages."""
        assert self._runtime is not None, "the agent has not started"
        return self._runtime

    @property
    def connected(self) -> asyncio.Event:
        """Set while there is a session."""
        return self._link.connected

    async def start(self) -> None:
        """Probes, serves its values, and begins to dial. Raises InvalidInput for a configuration that cannot be."""
        config = self.config
        stages, self._kinds = await asyncio.to_thread(self._find_kinds)
        arena = self._holder.arena = await asyncio.to_thread(open_arena, config.arena_bytes)
        if self._faults is not None:
            stages = DisturbedStages(stages, self._faults)
        models = self._models = ModelPool(config.models_root, config.threads)
        name, store = AgentId(config.name), config.orchestrator
        streams = Streams(name, stages, models, self._transfer, store, self.incarnation)
        data = self._data = DataServer(
            self._holder,
            config.token,
            config.host,
            arena=arena,
            awaits=self._peers,
            streams=streams,
            faults=self._faults,
        )
        try:
            address = await data.start()
            self._profile = await asyncio.to_thread(self._probe, address)
            means = await asyncio.to_thread(self._find_means) if config.measures else None
        except BaseException:
            await self._end_data()
            raise
        self._runtime = Runtime(
            AgentCore(self._profile.name, self._profile.slots, streams.kinds, self._loading(), self._batching()),
            stages,
            models,
            self._holder,
            self._transfer,
            config.orchestrator,
            self._tell,
            Neighbours(self._transfer, config.verify_shared, faults=self._faults),
            self._peers,
            streams,
        )
        self._dialing = asyncio.create_task(self._link.run(), name=f"{config.name}-link")
        if means is not None:
            loop = asyncio.get_running_loop()
            self._profiling = Profiling(means, partial(self._from_thread, loop))
            self._profiling.start()

    def _probe(self, address: str) -> NodeProfile:
        """What this node has, with its values at `address`."""
        config = self.config
        kinds = tuple(kind.name for kind in self._kinds)
        return probe(
            config.name, config.tier, config.targets, config.labels, config.slots, kinds, address, config.uplinks
        )

    async def run(self) -> None:
        """Lasts until `stop`. Raises what the orchestrator refuses the agent for: Unauthenticated or InvalidInput."""
        dialing = self._dialing
        assert dialing is not None, "the agent has not started"
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait([dialing, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if dialing.done() and not self._stopped.is_set():
            error = dialing.exception()
            await self.stop()
            if error is not None:
                raise error

    async def stop(self) -> None:
        """Cancels what runs, says goodbye, and lets everything go. A second call does nothing."""
        dialing, self._dialing = self._dialing, None
        if dialing is None:
            return
        self._stopped.set()
        if self._profiling is not None:
            await asyncio.to_thread(self._profiling.stop)
        await self.runtime.stop()
        connected = self.connected.is_set()
        self._link.leave("the agent was stopped")
        if connected:
            await asyncio.wait([dialing], timeout=limits.AGENT_STOP_SECONDS)
        dialing.cancel()
        await asyncio.gather(dialing, return_exceptions=True)
        await self._transfer.close()
        await self._end_data()

    async def _end_data(self) -> None:
        if self._data is not None:
            await self._data.stop()
        if self._holder.arena is not None:
            self._holder.arena.close()

    def hello(self, session: str, received: int, kept: Sequence[Report]) -> Hello:
        """For the link: who this is and what it holds."""
        self._untold = False
        self._links_told = None
        core = self.runtime.core
        return Hello(
            agent=self.profile.name,
            incarnation=self.incarnation,
            profile=self.profile,
            kinds=self._kinds,
            session=session,
            received=received,
            held=core.held(kept),
            jobs=tuple(dict.fromkeys([*core.jobs, *self._holder.jobs])),
            epoch_seen=core.epoch_seen,
        )

    def welcomed(self, welcome: Welcome) -> None:
        """For the link: refuses an orchestrator that another has replaced."""
        core = self.runtime.core
        if not core.admit(welcome.epoch):
            raise Fenced(f"the orchestrator is of epoch {welcome.epoch}, but epoch {core.epoch_seen} was heard before")
        _log.info("%s: session %s, epoch %d", self.config.name, welcome.session, welcome.epoch)

    def commands(self, commands: Sequence[Command], sender_epoch: Epoch) -> None:
        """For the link: what the orchestrator wants."""
        self.runtime.commands(commands, sender_epoch)

    def _tell(self, report: Report) -> None:
        self._link.send(report, self.runtime.core.more_to_come)

    def load(self) -> Load:
        """For the link: what a heartbeat tells."""
        core = self.runtime.core
        load = self._meter.measure(core.queued, core.running, self._holder.held_bytes, core.stale_refused)
        measured = self.profile.measured if self._untold else None
        self._untold = False
        resident = self._models.resident() if self._models is not None else ()
        links = self.runtime.links.told(time.monotonic())
        changed = links if links != self._links_told else None
        self._links_told = links
        return msgspec.structs.replace(load, resident=resident, measured=measured, links=changed)

    def _find_means(self) -> Means | None:
        """What it profiles with; takes over what is kept from earlier starts. None where that cannot be had."""
        config, profile = self.config, self.profile
        providers = {target.name: provider_of(target.name) for target in profile.targets}
        try:
            folder = Path(config.profiles_root) if config.profiles_root else selfprofile.default_folder()
            store = ModelStore(Path(config.models_root) if config.models_root else None)
            means = Means(folder, providers, config.threads, self._kinds, store)
            self._profile = msgspec.structs.replace(profile, measured=selfprofile.kept(means))
        # A user without a home, or whatever else: an agent works as well without.
        except Exception as error:
            _log.warning("%s: its profile cannot be kept: %s", config.name, error)
            return None
        return means

    def _from_thread(self, loop: asyncio.AbstractEventLoop, measured: Measured) -> None:
        loop.call_soon_threadsafe(self._learned, measured)

    def _learned(self, measured: Measured) -> None:
        """The next heartbeat or hello tells of it."""
        self._profile = msgspec.structs.replace(self.profile, measured=measured)
        self._untold = True

    def _loading(self) -> frozenset[str]:
        """The kinds whose models are loaded ahead."""
        return frozenset(kind.name for kind in self._kinds if kind.models and self.config.load_ahead)

    def _batching(self) -> dict[str, Batch]:
        """The kinds whose attempts share a call."""
        return {kind.name: kind.batch for kind in self._kinds if kind.batch is not None and self.config.batches}

    def _find_kinds(self) -> tuple[StageLookup, tuple[KindSpec, ...]]:
        """The stages, and the kinds of them that are offered."""
        if self._stages is not None:
            stages, offered = self._stages, self._stages.kinds
        else:
            stages = catalog = Catalog()
            offered, problems = catalog.usable()
            for problem in (*catalog.problems, *problems):
                _log.warning("%s: %s", self.config.name, problem)
        wanted = self.config.kinds or tuple(offered)
        unknown = [Problem("kinds", f"{name!r} cannot run here") for name in wanted if name not in offered]
        if unknown:
            raise InvalidInput(unknown, f"agent {self.config.name} cannot offer what it is configured to")
        return stages, tuple(offered[name] for name in wanted)
