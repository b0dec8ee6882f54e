"""Ray on this machine: one local cluster that hosts each agent in an actor, and the orchestrator if it is to.

Nothing else imports Ray.

Ray is imported when the cluster starts, because it reads its settings from the environment then, and
because the import takes time that only those who start a cluster should pay.
"""

import os
import secrets
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import psutil

from starloom.agents.agent import Agent, AgentConfig
from starloom.agents.rayhost import HostActor
from starloom.dag import limits
from starloom.dag.errors import Unavailable
from starloom.orchestrator.actor import OrchestratorConfig, OrchestratorGuest, read_serving
from starloom.orchestrator.statefolder import writing
from starloom.orchestrator.supervisor import LOG_NAME, ORCHESTRATOR_NAME, Serving

LOOPBACK: Final = "127.0.0.1"
_PROCESSES: Final = ("gcs_server", "raylet")
#: no node can have this name
_ORCHESTRATOR_ACTOR: Final = "starloom:orchestrator"
_WATCH_SECONDS = 0.1
_LOOK_SECONDS = 0.02
_KILL_SECONDS = 2.0
_TOKEN_BYTES = 32
_TUNABLES: Final = "GLIBC_TUNABLES"
_NICENESS: Final = "RAY_worker_niceness"
_COPIES: Final = "glibc.cpu.x86_non_temporal_threshold"
#: a socket's path has at most 107 characters, of which Ray's own part takes 64
_FOLDER_CHARACTERS_MAX = 43


class RayCluster:
    """A Ray cluster of one process tree, for the nodes named; `logs` is the folder of the agents' logs.

    `workers` are processes to start ahead, one for each node unless given. Ray allows one at a time in a process.
    """

    def __init__(
        self,
        nodes: tuple[str, ...],
        logs: Path,
        workers: int = 0,
        object_store_bytes: int = limits.RAY_OBJECT_STORE_BYTES,
    ) -> None:
        self._nodes = nodes
        self._workers = max(1, workers or len(nodes))
        self._logs = logs
        self._object_store_bytes = object_store_bytes
        self._folder: Path | None = None
        self._ours = False
        self._watched: dict[str, psutil.Process] = {}
        self._actors: dict[str, Any] = {}
        self._ready: dict[Any, str] = {}
        self._orchestrator: Any = None

    def start(self) -> None:
        """Starts Ray, and no agent yet.

        Raises Unavailable if Ray does not come up, or runs in this process already; nothing is left then.
        """
        others = {child.pid for child in psutil.Process().children()}
        for left in reversed(range(limits.RAY_STARTS_MAX)):
            try:
                self._init()
                break
            except Unavailable:
                ours = self._ours
                if ours:
                    # Ray forgets the processes of a start that failed, and they write to the folder until they end.
                    _kill([child for child in psutil.Process().children() if child.pid not in others])
                    self.stop()
                # Seen on a quiet machine too, once in some ten runs of all tests: its processes do not find each other.
                if not ours or not left:
                    raise
        self._watched = {child.name(): child for child in psutil.Process().children() if child.name() in _PROCESSES}

    def _init(self) -> None:
        self._folder = folder = _short_folder()
        os.environ.update(settings(folder))
        import ray
        from ray._private import worker

        if ray.is_initialized():
            raise Unavailable("Ray runs in this process already; one process holds one embedded cluster")
        self._ours = True
        # Whatever it is told, Ray prints on standard output, which is others', that a worker has died.
        worker._worker_logs_enabled = False
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with patient_start():
                ray.init(
                    address="local",
                    _node_ip_address=LOOPBACK,
                    include_dashboard=False,
                    # Ray starts as many workers ahead as there are CPUs.
                    num_cpus=self._workers,
                    resources={resource(node): 1 for node in self._nodes},
                    object_store_memory=self._object_store_bytes,
                    log_to_driver=False,
                    configure_logging=False,
                    _temp_dir=str(folder),
                )
        except Exception as error:
            raise Unavailable(f"Ray did not start: {error}") from error
        finally:
            # Ray puts a handler of its own there, which would leave the orchestrator running.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)

    def broken(self) -> str:
        """The name of a process that Ray cannot do without and that has died; empty while all is well."""
        return next((name for name, process in self._watched.items() if not _runs(process)), "")

    def host(self, config: AgentConfig) -> None:
        """Starts an agent's actor on its node, and does not wait for it. Ray starts it again as often as it dies."""
        import ray

        actor = ray.remote(HostActor).options(
            name=config.name,
            num_cpus=0,
            resources={resource(config.name): 1},
            max_restarts=-1,
        )
        handle: Any = actor.remote(config, str(self._logs / f"agent-{config.name}.log"), Agent)
        self._actors[config.name] = handle
        self._ready[handle.ready.remote()] = config.name

    def host_orchestrator(self, config: OrchestratorConfig) -> Any:
        """Starts the orchestrator's actor; returns a reference to its readiness. Ray starts it again as often as it dies.

        It is detached: where the cluster is one of many machines, it stays when the driver ends.
        """
        import ray

        actor = ray.remote(HostActor).options(
            name=_ORCHESTRATOR_ACTOR, num_cpus=0, max_restarts=-1, lifetime="detached"
        )
        self._orchestrator = actor.remote(config, str(self._logs / LOG_NAME), OrchestratorGuest)
        return self._orchestrator.ready.remote()

    def await_ready(self, reference: Any) -> None:
        """Waits for a readiness. Raises Unavailable with why there is none."""
        import ray

        try:
            ray.get(reference, timeout=limits.ORCHESTRATOR_READY_SECONDS)
        except Exception as error:
            raise Unavailable(f"the orchestrator did not start: {getattr(error, 'cause', None) or error}") from error

    def failures(self) -> dict[str, Exception]:
        """What agents failed with at their start, by node; those that are still starting are left out."""
        import ray

        done, _ = ray.wait(list(self._ready), num_returns=len(self._ready), timeout=0)
        found: dict[str, Exception] = {}
        for reference in done:
            try:
                ray.get(reference)
            # Ray raises what the actor raised, of any class, with its own trace around it.
            except Exception as error:
                found[self._ready[reference]] = getattr(error, "cause", None) or error
        return found

    def stop(self) -> None:
        """Stops the agents in order, the orchestrator if it is here, then Ray; leaves no process and no file of Ray's.

        May be called again.
        """
        if self._ours:
            import ray

            try:
                if ray.is_initialized():
                    # In this order, so that the agents' goodbyes are heard.
                    self._end(list(self._actors.values()))
                    self._end([self._orchestrator] if self._orchestrator is not None else [])
            finally:
                self._ours, self._actors, self._ready, self._watched = False, {}, {}, {}
                self._orchestrator = None
                ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _end(self, actors: list[Any]) -> None:
        import ray

        goodbyes = [actor.stop.remote() for actor in actors]
        if not goodbyes:
            return
        said, _ = ray.wait(goodbyes, num_returns=len(goodbyes), timeout=limits.STOP_GRACE_SECONDS)
        for actor in actors:
            ray.kill(actor)
        # Ray's own end leaves its workers to the machine's first process, which in a container may never collect them.
        for goodbye in said:
            with suppress(ray.exceptions.RayError, ProcessLookupError):
                _await_end(ray.get(goodbye))


class ActorSupervisor:
    """The orchestrator on `folder` in an actor of a Ray cluster that has started; stands where a `Supervisor` would.

    Ray starts it again, for ever; this only watches which process serves. `on_serving` is called, from a thread, each
    time another one does.
    """

    def __init__(self, ray: RayCluster, config: OrchestratorConfig, on_serving: Callable[[Serving], None]) -> None:
        self.failure = ""
        self.ended = Event()
        self._ray = ray
        self._config = config
        self._folder = Path(config.folder)
        self._on_serving = on_serving
        self._ready: Any = None
        self._thread = Thread(target=self._watch, name="orchestrator-watch", daemon=True)

    def start(self) -> None:
        """Starts the actor, and does not wait for it."""
        # It would name the port of another cluster, from before.
        (self._folder / ORCHESTRATOR_NAME).unlink(missing_ok=True)
        self._ready = self._ray.host_orchestrator(self._config)
        self._thread.start()

    def wait_ready(self) -> Serving:
        """Waits until the orchestrator serves. Raises Unavailable if it cannot be started."""
        self._ray.await_ready(self._ready)
        serving = read_serving(self._folder)
        assert serving is not None, "it serves once this is written"
        return serving

    def stop(self) -> None:
        """Ends watching; the actor itself ends with its cluster. May be called again."""
        self.ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        known: Serving | None = None
        while not self.ended.wait(_WATCH_SECONDS):
            serving = read_serving(self._folder)
            if serving is not None and serving != known:
                known = serving
                self._on_serving(serving)


@contextmanager
def patient_start() -> Iterator[None]:
    """Gives a starting Ray RAY_PORT_SECONDS to know its node: its own 30 s are in no setting, and too few under load."""
    from ray._private import services

    real: Any = services.get_node

    def patiently(*args: Any) -> Any:
        deadline = time.monotonic() + limits.RAY_PORT_SECONDS
        while True:
            try:
                return real(*args)
            except RuntimeError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK_SECONDS)

    services.get_node = patiently
    try:
        yield
    finally:
        services.get_node = real


def _kill(processes: list[psutil.Process]) -> None:
    mine = [process for process in processes if _runs(process) and process.name() in _PROCESSES]
    for process in mine:
        process.kill()
    psutil.wait_procs(mine, timeout=_KILL_SECONDS)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _await_end(pid: int) -> None:
    """Waits for a process's end, which Ray has been asked for, and brings it about where Ray is too broken for that."""
    process = os.pidfd_open(pid)
    try:
        if not select.select([process], [], [], _KILL_SECONDS)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], limits.STOP_GRACE_SECONDS)
    finally:
        os.close(process)


def resource(node: str) -> str:
    """The custom resource that pins an actor to its node."""
    return f"starloom-{node}"


@cache
def _token() -> str:
    # One for the life of this process, in which Ray reads its token only once.
    return secrets.token_hex(_TOKEN_BYTES)


def settings(folder: Path) -> dict[str, str]:
    """Ray's environment: authenticated, silent, on loopback only. Writes the token's file."""
    token_file = folder / "ray-token"
    with writing(token_file, "TMPDIR"):
        token_file.write_text(_token(), "ascii")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its own 30 s were not enough on a busy machine, and a second start in the same process fails.
        "RAY_gcs_server_port_wait_time_s": str(limits.RAY_PORT_SECONDS),
        # Without it Ray takes 127.0.0.1 for a mistake, and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Its own 15, unless the user chose it, is a 28th of everybody else's share: agents waited for whatever else wanted a processor.
        _NICENESS: os.environ.get(_NICENESS, "0"),
        _TUNABLES: tunables(os.environ.get(_TUNABLES, "")),
    }


def tunables(given: str) -> str:
    """What glibc is to be told in the agents' processes, beside what is `given`: it reads that when a process starts.

    It writes past the caches only what is larger than three quarters of the last one, which virtual machines are told as that
    of the whole host. A value that does not fit there was read from memory before it was written over, for nothing.
    """
    return given if _COPIES in given else f"{given}:{_COPIES}={limits.COPY_PAST_CACHES_BYTES_MIN}".lstrip(":")


def _short_folder() -> Path:
    """A new folder for this user alone, with a path short enough for the sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="starloom-"))
    if len(str(folder)) <= _FOLDER_CHARACTERS_MAX:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="starloom-", dir="/tmp"))
