"""A whole cluster on this machine: the orchestrator under its supervisor or in an actor, Ray, and an agent on each node.

with EmbeddedCluster(clusterfile.DEFAULT, folder) as cluster:
    with Client(cluster.address, cluster.token) as client:
        ...
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from starloom.agents import sharedmemory
from starloom.agents.agent import AgentConfig
from starloom.dag import limits
from starloom.dag.errors import DeadlineExceeded, InvalidInput, Problem, StarloomError, Unavailable
from starloom.orchestrator import statefolder
from starloom.orchestrator.actor import OrchestratorConfig
from starloom.orchestrator.clusterfile import ClusterSpec, NodeSpec
from starloom.orchestrator.infos import ClusterInfo
from starloom.orchestrator.raycluster import ActorSupervisor, RayCluster
from starloom.orchestrator.statefolder import ClusterRecord, FolderLock
from starloom.orchestrator.supervisor import MODULE, PATIENT, Patience, Serving, Supervisor

ONLINE: Final = "online"
_POLL_SECONDS = 0.05


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    """Where the start-up's time went, in seconds.

    orchestrator: from its process's start until it served, while Ray started. ray: until Ray was there.
    agents: from then until every node was online. total: all of it.
    """

    orchestrator: float
    ray: float
    agents: float
    total: float


class OrchestratorHost(StrEnum):
    """Who starts the orchestrator again: a supervisor that has it for a child, or Ray, whose detached actor it is then."""

    PROCESS = "process"
    ACTOR = "actor"


class EmbeddedCluster:
    """The cluster that `spec` describes, with its state in `folder`; use it as a context manager.

    `orchestrator` says where that runs, and `patience` how often its supervisor starts it again. `models_root` is the folder
    of the model store, the user's unless given, and `profiles_root` that of what agents have measured of this machine. Each
    agent computes with `threads` threads: they share one machine. Unless `load_ahead`, models are loaded by the stages that need them alone.
    With `faults_allowed`, whoever has the token may make things go wrong. With `plans_live`, jobs that run are planned as a
    whole, and their stages go where the plan has them, within what they may. After `start`: `address` and `token` for clients,
    `info` on the nodes, and `start_up`, what the start took. A process holds one at a time, as Ray has it.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        folder: Path,
        *,
        orchestrator: OrchestratorHost = OrchestratorHost.PROCESS,
        patience: Patience = PATIENT,
        models_root: str = "",
        profiles_root: str = "",
        threads: int = 1,
        load_ahead: bool = True,
        faults_allowed: bool = False,
        plans_live: bool = False,
    ) -> None:
        self.spec = spec
        self._plans_live = plans_live
        self._faults_allowed = faults_allowed
        self.folder = folder
        self.address = ""
        self.token = ""
        self.info: ClusterInfo | None = None
        self.start_up = StartUp(orchestrator=0.0, ray=0.0, agents=0.0, total=0.0)
        self._models_root = models_root
        self._profiles_root = profiles_root
        self._threads = threads
        self._load_ahead = load_ahead
        self._in_actor = orchestrator is OrchestratorHost.ACTOR
        self._patience = patience
        self._served_after = 0.0
        self._supervisor: Supervisor | ActorSupervisor | None = None
        names = tuple(node.name for node in spec.nodes)
        # One for each agent, and one for the orchestrator if it is there.
        self._ray = RayCluster(names, folder / statefolder.LOGS_NAME, workers=len(names) + self._in_actor)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything, and returns when every node is online.

        Raises Conflict if another process holds the folder, InvalidInput for nodes that this machine cannot have,
        Unavailable if a part does not start, and DeadlineExceeded, naming the nodes, after CLUSTER_READY_SECONDS.
        After an error nothing is left.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the agents, Ray and the orchestrator, in this order. May be called again."""
        self._stack.close()

    @property
    def failure(self) -> str:
        """Why the cluster cannot go on: the orchestrator was given up, or Ray has died; empty while all is well."""
        if self._supervisor is not None and self._supervisor.failure:
            return self._supervisor.failure
        # Ray brings agents back, but not itself, and the process that started it cannot start it again.
        died = self._ray.broken()
        return f"Ray's process {died} has died; `starloom up` starts all again, and its jobs go on" if died else ""

    def wait(self, seconds: float) -> bool:
        """Waits at most so long; returns whether the cluster cannot go on, for which `failure` gives the reason."""
        assert self._supervisor is not None, "the cluster was not started"
        return self._supervisor.ended.wait(seconds) or bool(self.failure)

    def _start(self) -> None:
        began = time.monotonic()
        statefolder.prepare(self.folder)
        self._stack.callback(FolderLock(self.folder).release)
        self._stack.callback(statefolder.forget_cluster, self.folder)
        self.token = statefolder.make_token(self.folder)

        def serving(record: Serving) -> None:
            self._served_after = self._served_after or time.monotonic() - began
            self._record(record)

        supervisor = self._supervisor = self._supervise(serving)
        self._stack.callback(supervisor.stop)
        if not self._in_actor:
            supervisor.start()
        # After Ray's end, since a killed agent removes no shared memory.
        self._stack.callback(sharedmemory.sweep)
        self._stack.callback(self._ray.stop)
        self._ray.start()
        ray_there = time.monotonic()
        if self._in_actor:
            supervisor.start()
        self.address = supervisor.wait_ready().address
        for node in self.spec.nodes:
            self._ray.host(self._config(node))
        self.info = self._await_nodes(supervisor)
        end = time.monotonic()
        self.start_up = StartUp(
            orchestrator=self._served_after, ray=ray_there - began, agents=end - ray_there, total=end - began
        )

    def _supervise(self, on_serving: Callable[[Serving], None]) -> Supervisor | ActorSupervisor:
        token_file = self.folder / statefolder.TOKEN_NAME
        if self._in_actor:
            config = OrchestratorConfig(
                folder=str(self.folder),
                token_file=str(token_file),
                faults_allowed=self._faults_allowed,
                plans_live=self._plans_live,
            )
            return ActorSupervisor(self._ray, config, on_serving)
        logs = self.folder / statefolder.LOGS_NAME
        said = {"--faults-allowed": self._faults_allowed, "--plans-live": self._plans_live}
        command = (*MODULE, *(option for option, given in said.items() if given))
        return Supervisor(
            self.folder, token_file, logs, on_serving=on_serving, command=command, patience=self._patience
        )

    def _config(self, node: NodeSpec) -> AgentConfig:
        return AgentConfig(
            name=node.name,
            tier=node.tier,
            targets=node.targets,
            labels=node.labels,
            uplinks=self.spec.uplinks_of(node),
            slots=node.slots,
            orchestrator=self.address,
            token=self.token,
            models_root=self._models_root,
            profiles_root=self._profiles_root,
            threads=self._threads,
            load_ahead=self._load_ahead,
            faults_allowed=self._faults_allowed,
        )

    def _record(self, serving: Serving) -> None:
        record = ClusterRecord(
            address=serving.address,
            token_file=str(self.folder / statefolder.TOKEN_NAME),
            pid=os.getpid(),
            orchestrator_pid=serving.pid,
            nodes=tuple(node.name for node in self.spec.nodes),
        )
        statefolder.write_cluster(self.folder, record)

    def _await_nodes(self, supervisor: Supervisor | ActorSupervisor) -> ClusterInfo:
        """Returns when every node is online."""
        from starloom.orchestrator.clientsync import Client

        wanted = {node.name for node in self.spec.nodes}
        deadline = time.monotonic() + limits.CLUSTER_READY_SECONDS
        with Client(self.address, self.token) as client:
            while True:
                try:
                    info = client.cluster()
                except Unavailable as error:
                    raise Unavailable(supervisor.failure or str(error)) from error
                missing = sorted(wanted - {node.name for node in info.nodes if node.state == ONLINE})
                if not missing:
                    return info
                if failures := self._ray.failures():
                    raise _not_started(failures)
                if supervisor.ended.wait(_POLL_SECONDS):
                    raise Unavailable(supervisor.failure or "the orchestrator was stopped while the nodes started")
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(
                        f"not online within CLUSTER_READY_SECONDS = {limits.CLUSTER_READY_SECONDS:g}: "
                        f"{', '.join(missing)}; see {self.folder / statefolder.LOGS_NAME}"
                    )


def _not_started(failures: Mapping[str, Exception]) -> StarloomError:
    """One error for all nodes that did not start: InvalidInput, with each problem, if that is all that is wrong."""
    problems = [
        Problem(f"nodes.{name}.{problem.place}", problem.what)
        for name, error in failures.items()
        if isinstance(error, InvalidInput)
        for problem in error.problems
    ]
    if all(isinstance(error, InvalidInput) for error in failures.values()):
        return InvalidInput(problems, "the cluster cannot be as it is described")
    return Unavailable("\n".join(f"node {name} did not start: {error}" for name, error in failures.items()))
