"""One run: nodes, orchestrator, clients and faults, put together."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from starloom.agents.channel import Channel, Frame
from starloom.agents.core import AgentCore
from starloom.agents.messages import Assign, Hello, Load, Outcome, Report
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Bound
from starloom.dag import limits
from starloom.dag.facts import Fact
from starloom.dag.ids import AgentId, Epoch, JobId
from starloom.dag.values import Full, ValueRef
from starloom.devices.faults import NO_FAULTS, FaultKind, FaultPlan
from starloom.devices.node import NodeProfile
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.simulate import workload
from starloom.orchestrator.simulate.advising import Adviser, again, apart, due
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.clients import Client
from starloom.orchestrator.simulate.daemon import Orchestrator
from starloom.orchestrator.simulate.disk import Disk
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.loop import SECOND, START, Chance, Chances, Loop
from starloom.orchestrator.simulate.many import SomeOfMany
from starloom.orchestrator.simulate.misbehaviour import Misbehaviour
from starloom.orchestrator.simulate.model import KINDS
from starloom.orchestrator.simulate.network import Network, Stream
from starloom.orchestrator.simulate.private import labelled
from starloom.orchestrator.simulate.properties import PROPERTIES
from starloom.orchestrator.simulate.property import Property
from starloom.orchestrator.simulate.snapshot import over_snapshot
from starloom.orchestrator.simulate.streamwork import streamed
from starloom.orchestrator.simulate.trouble import Trouble
from starloom.orchestrator.state import State

BYTES_PER_SECOND = 50e6
RUN_SECONDS_MAX = 20.0
FEW_NODES = 200
"""With more, the planner looks at some of them for each stage, and jobs come once all are there."""
ALL_THERE_SECONDS = 2.5
GRACE_SECONDS = 25.0
"""How long a run goes on after the last job: leases lapse, agents come back and are told what to forget."""
STUCK_SECONDS = 90.0
"""After the last fault something is journaled at least so often while jobs are open, or never again."""
WATCH_SECONDS = 5.0


@dataclass(frozen=True)
class Setup:
    """What a run is made of. `stages` is per job. `advised`: plans drawn at random are given for jobs that run."""

    nodes: int = 10
    stages: int = 30
    jobs: int = 1
    plan: FaultPlan = NO_FAULTS
    advised: bool = False

    @property
    def quiet_seconds(self) -> float:
        """After how long faults end."""
        if not self.plan.faults:
            return 0.0
        return self.plan.quiet_after_seconds or min(60.0, 12.0 + self.stages * self.jobs * 0.1)


@dataclass(frozen=True)
class Parts:
    """The real objects that a run is made with; tests put others in, to see that they are found out."""

    coordinator: Callable[[Epoch], Coordinator] = Coordinator
    core: Callable[[AgentId, int, Container[str]], AgentCore] = AgentCore
    channel: Callable[[], Channel[Any, Any]] = Channel
    orchestrator: Callable[["World", Epoch], Orchestrator] = Orchestrator
    snapshot: Callable[[Sequence[Fact]], State] = over_snapshot
    buffer: Callable[[Bound, Sequence[tuple[str, Full]]], StreamBuffer] = StreamBuffer
    adviser: Callable[[Chance], Adviser] = Adviser
    properties: Sequence[type[Property]] = PROPERTIES


def usual(setup: Setup) -> Parts:
    """What a run is made with unless others are put in."""

    def coordinator(epoch: Epoch) -> Coordinator:
        return Coordinator(epoch, None if setup.nodes <= FEW_NODES else SomeOfMany(), guided=setup.advised)

    return Parts(coordinator=coordinator)


def _works(drawn: Chance, chances: Chances, setup: Setup, tiers: int) -> list[workload.Work]:
    """What each client has to do, on so many tiers."""
    concerns = ("deadlines", "plain jobs", "stream jobs", "private jobs", "variants")
    late, even, flows, shut, ways = map(chances.of, concerns)
    jobs = [
        workload.varied(
            ways, labelled(shut, workload.hurried(late, streamed(flows, workload.plain(even, work)))), tiers
        )
        for work in [workload.work(drawn, setup.stages, f"job-{index}", tiers) for index in range(setup.jobs)]
    ]
    if setup.advised:
        jobs = [due(chances.of("plans' deadlines"), work, tiers) for work in jobs]
        jobs = again(chances.of("rounds"), jobs)
    # A patch that moves one of a group may be impossible for that, which the model of patches does not know of.
    if setup.advised and all(fault.what is not FaultKind.CLIENT_PATCHES for fault in setup.plan.faults):
        jobs = [apart(chances.of("groups"), work) for work in jobs]
    return jobs


class World:
    """Everything of one run."""

    def __init__(self, seed: int, setup: Setup, parts: Parts | None = None) -> None:
        self.setup = setup
        self.parts = parts or usual(setup)
        self.loop = Loop()
        self.chances = Chances(seed)
        self.trouble = Trouble(setup.plan, self.chances, setup.quiet_seconds)
        self.network = Network(self.loop, self.chances.of("network"), self.trouble.fires)
        self.disk = Disk(self.chances.of("disk"))
        self.judge = Judge(self, self.parts.properties)
        self.adviser = self.parts.adviser(self.chances.of("advice"))
        self.kinds = tuple(KINDS.values())
        self._chance = self.chances.of("world")
        drawn = self.chances.of("workload")
        profiles = workload.nodes(drawn, setup.nodes)
        self._profiles = {profile.name: profile for profile in profiles}
        self.names = tuple(self._profiles)
        self.tiers = {profile.name: profile.tier for profile in profiles}
        self.slots = {profile.name: profile.slots for profile in profiles}
        tiers = min(len(workload.TIERS), setup.nodes)
        jobs = _works(drawn, self.chances, setup, tiers)
        self.clients = [Client(self, f"c{index}", work, tiers) for index, work in enumerate(jobs)]
        self.processes: dict[AgentId, AgentProcess] = {}
        self._by_address: dict[str, AgentProcess] = {}
        self._starts: dict[AgentId, int] = {}
        #: orchestrators that live, the newest last
        self.orchestrators: list[Orchestrator] = []
        self._streams: dict[Stream, Orchestrator] = {}
        self.slowness: dict[AgentId, float] = {}
        self.misbehaviour = Misbehaviour(self)
        #: the digests that names of early values stand for
        self.truths: dict[str, str] = {}
        self._over = False
        self._waiting = len(self.clients)

    @property
    def current(self) -> Orchestrator:
        """The newest orchestrator, dead or alive."""
        return self.orchestrators[-1]

    # -- the run

    def run(self) -> None:
        """Until all jobs have ended and all is quiet, or until something is wrong."""
        self.trouble.begin(self)
        self._start_orchestrator()
        for name in self.names:
            self.loop.after(self._chance.between(0, 0.5), partial(self._start_agent, name))
        chance = self.chances.of("clients")
        for index, client in enumerate(self.clients):
            start = chance.between(0.5, 1.0 + index * 0.5) + (ALL_THERE_SECONDS if len(self.names) > FEW_NODES else 0)
            self.loop.after(start, client.submit, client)
            if self.trouble.fires(FaultKind.CLIENT_CANCELS):
                self.loop.after(start + chance.between(0.1, 10), client.cancel, client)
        self.loop.after(WATCH_SECONDS, self._watch)
        violations = self.judge.violations
        step = self.loop.step
        while not self._over and not violations and step():
            pass
        if not violations:
            self.judge.end()

    def client_moved(self, client: Client) -> None:
        """A client has got further; with the last one done the run ends soon."""
        if all(each.done for each in self.clients):
            end = max(self.loop.now, self.trouble.quiet_at) + round(GRACE_SECONDS * SECOND)
            self.loop.at(end, self._finish)

    def _finish(self) -> None:
        self._over = True

    def _watch(self) -> None:
        last = max(self.judge.moved, self.trouble.quiet_at, START)
        if self.loop.now - last > STUCK_SECONDS * SECOND:
            self._over = True
        self.loop.after(WATCH_SECONDS, self._watch)

    # -- the orchestrator

    def _start_orchestrator(self) -> None:
        orchestrator = self.parts.orchestrator(self, self.disk.open())
        self.orchestrators.append(orchestrator)
        orchestrator.start()

    def orchestrator_died(self, dead: Orchestrator) -> None:
        """Its streams break; whoever started it starts another."""
        for stream in [stream for stream, server in self._streams.items() if server is dead]:
            process = self.processes.get(stream.agent)
            stream.up.open = False
            if process is not None:
                stream.send_down(partial(process.over, stream))
            del self._streams[stream]
        for client in self.clients:
            client.server_died(dead)
        if dead is self.current:
            self.loop.after(self._chance.between(0.05, 2.0), partial(self.replace, dead))

    def replace(self, old: Orchestrator) -> None:
        """Starts another orchestrator, whether or not the old one has died."""
        if old is self.current:
            self._start_orchestrator()
            self.orchestrators = [each for each in self.orchestrators if each.alive]

    def server(self) -> Orchestrator | None:
        """Who answers at the orchestrator's address."""
        for orchestrator in reversed(self.orchestrators):
            if orchestrator.alive and orchestrator.listening:
                return orchestrator
        return None

    def answer(self, stream: Stream, process: AgentProcess, hello: Hello) -> None:
        """An agent's hello arrives, at the orchestrator or at one that does not know that it was replaced."""
        servers = [each for each in self.orchestrators if each.alive and each.listening]
        if not servers:
            stream.send_down(partial(process.over, stream))
            return
        server = servers[-1]
        if len(servers) > 1 and self._chance.happens(0.4):
            server = servers[0]
        self._streams[stream] = server
        stream.up.receiver = server
        self.loop.at(self.loop.now, partial(server.hub.hello, stream, process, hello), server)

    def reports(self, stream: Stream, agent: AgentId, frame: Frame[Report]) -> None:
        """Reports arrive."""
        server = self._streams.get(stream)
        if server is not None:
            server.hub.reports(stream, agent, frame)

    def heartbeat(self, stream: Stream, agent: AgentId, load: Load, acknowledged: int) -> None:
        """A heartbeat arrives."""
        server = self._streams.get(stream)
        if server is not None:
            server.hub.heartbeat(stream, agent, load, acknowledged)

    def goodbye(self, stream: Stream, agent: AgentId) -> None:
        """A goodbye arrives."""
        server = self._streams.get(stream)
        if server is not None:
            server.hub.goodbye(stream, agent, "it was stopped")

    def stream_over(self, stream: Stream, agent: AgentId) -> None:
        """Word arrives that a stream has ended at the agent's side."""
        server = self._streams.pop(stream, None)
        if server is not None:
            server.hub.over(stream, agent)

    # -- agents

    def _start_agent(self, name: AgentId) -> None:
        if name in self.processes:
            return
        number = self._starts[name] = self._starts.get(name, 0) + 1
        # Now and then the new process listens where the old one did.
        port = number if number == 1 or not self._chance.happens(0.3) else number - 1
        profile: NodeProfile = msgspec.structs.replace(self._profiles[name], address=f"{name}:{port}", pid=number)
        process = self.processes[name] = AgentProcess(self, profile, f"{name}-{number}")
        self._by_address[profile.address] = process
        process.dial()

    def agent_dies(self, name: AgentId, back_after: float, noticed: bool) -> None:
        """An agent's process is killed; another is started later."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.alive = False
        for link in (*process.peering.streams, *process.streams.links):
            link.cut()
        for stream in tuple(self.network.streams.get(name, ())):
            stream.down.open = False
            if noticed:
                stream.send_up(partial(self.stream_over, stream, name))
        self.loop.after(back_after, partial(self._start_agent, name))

    def agent_leaves(self, name: AgentId, back_after: float) -> None:
        """An agent is stopped in order."""
        process = self.processes.get(name)
        if process is not None:
            process.runner.leaving = True
            process.runner.carry_out(process.core.cancel_all())
            process.leave()
            self.agent_dies(name, back_after, noticed=True)

    def break_stream(self, name: AgentId) -> None:
        """The streams of an agent break; each end learns of it in its own time."""
        process = self.processes.get(name)
        for link in (*process.peering.streams, *process.streams.links) if process is not None else ():
            link.cut()
        for stream in tuple(self.network.streams.get(name, ())):
            server = self._streams.pop(stream, None)
            stream.cut()
            if process is not None:
                self.loop.after(self._chance.between(0, 0.5), partial(process.over, stream), process)
            if server is not None:
                self.loop.after(self._chance.between(0, 0.5), partial(server.hub.over, stream, name), server)

    def answers(self, process: AgentProcess, address: str) -> AgentProcess | None:
        """The process at an address, if another gets through to it."""
        there = self._by_address.get(address)
        if there is None or not there.alive or there.frozen_until > self.loop.now:
            return None
        return there if self.network.reaches(process.name, there.name) else None

    def transfer_seconds(self, process: AgentProcess, address: str, ref: ValueRef) -> float:
        """How long a fetch takes, or until it is given up."""
        holder = self._by_address.get(address)
        if not self.network.reaches(process.name, holder.name if holder is not None else None):
            return limits.TRANSFER_STALL_SECONDS
        return 2 * self.network.latency(process.name) + ref.bytes / BYTES_PER_SECOND

    def has(self, process: AgentProcess, address: str, digest: str, job: JobId) -> bool | None:
        """Whether a value is where it is asked for; None if nobody answers there."""
        if self.trouble.fires(FaultKind.FETCH_FAILS):
            return None
        if not address:
            return digest in self.disk.values if self._store_answers(process) else None
        holder = self.answers(process, address)
        return None if holder is None else digest in holder.holder.held.get(job, ())

    def truth(self, digest: str) -> str:
        """The digest that a name stands for; any other as it is."""
        return self.truths.get(digest, digest)

    def hashed(self, early: Outcome) -> Outcome:
        """The outcome that follows an early one."""
        refs = {
            port: replace(early.outputs[port], digest=self.truth(early.outputs[port].digest)) for port in early.late
        }
        return replace(early, outputs=early.outputs | refs, late=())

    def put(self, process: AgentProcess, digests: Sequence[str]) -> bool:
        """Brings values to the job store; False if that has to be tried again."""
        if not self._store_answers(process) or self.disk.full:
            return False
        self.disk.values.update(digests)
        return True

    def _store_answers(self, process: AgentProcess) -> bool:
        server = self.server()
        return server is not None and server.frozen_until <= self.loop.now and self.network.reaches(process.name, None)

    # -- runs

    def run_seconds(self, process: AgentProcess, assign: Assign) -> float:
        """How long a run takes there."""
        seconds: float = assign.params["seconds"] * assign.params["pace"]
        slow = self.slowness.get(process.name, 1.0)
        return min(seconds * process.chance.between(0.7, 1.5) * slow, RUN_SECONDS_MAX)
