"""What this machine has, measured and not declared: for the agent's profile and its heartbeats."""

import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import psutil

from starloom.agents.messages import Load
from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.ids import AgentId
from starloom.devices.links import SharedUplink
from starloom.devices.node import NodeProfile, Target

_CGROUP = Path("/sys/fs/cgroup")


def probe(
    name: str,
    tier: str,
    targets: Iterable[str] = ("cpu",),
    labels: Mapping[str, str] | None = None,
    slots: int = 0,
    kinds: Iterable[str] = (),
    address: str = "",
    uplinks: Iterable[SharedUplink] = (),
) -> NodeProfile:
    """The node's profile; without `slots`, one for each whole core. `labels`, `uplinks`: what no machine can tell of itself.

    Raises InvalidInput for an unknown tier, and for a target that this agent cannot compute on.
    """
    problems = []
    if tier not in list(Tier):
        problems.append(Problem("tier", f"is {tier!r}; choose one of {', '.join(Tier)}"))
    found, unknown = _targets(targets)
    problems += unknown
    if problems:
        raise InvalidInput(problems, f"agent {name} cannot be what it is configured as")
    cores = usable_cores()
    return NodeProfile(
        name=AgentId(name),
        tier=Tier(tier),
        targets=found,
        cores=cores,
        memory_bytes=usable_memory_bytes(),
        slots=slots or max(1, int(cores)),
        providers=_providers(),
        labels=dict(labels or {}),
        kinds=tuple(kinds),
        address=address,
        pid=os.getpid(),
        uplinks=tuple(uplinks),
        details={
            "python": platform.python_version(),
            "machine": platform.machine(),
            "onnxruntime": _version("onnxruntime"),
        },
    )


def usable_cores(cgroup: Path = _CGROUP) -> float:
    """Processors that this process may use, counting its affinity and its cgroup's quota."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota = _numbers(cgroup / "cpu.max")
    if len(quota) < 2:
        quota = _numbers(cgroup / "cpu/cpu.cfs_quota_us") + _numbers(cgroup / "cpu/cpu.cfs_period_us")
    if len(quota) == 2 and quota[0] > 0 and quota[1] > 0:
        return min(allowed, quota[0] / quota[1])
    return allowed


def usable_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """The machine's memory, or what its cgroup allows where that is less."""
    found = int(psutil.virtual_memory().total)
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        for limit in _numbers(cgroup / file):
            found = min(found, limit)
    return found


class LoadMeter:
    """Measures this process from one heartbeat to the next."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._wall = time.monotonic()
        self._busy = time.process_time()

    def measure(self, queued: int, running: int, held_bytes: int, stale_refused: int) -> Load:
        """The load since the last call; `cpu_fraction` 1.0 is one core kept busy."""
        wall, busy = time.monotonic(), time.process_time()
        fraction = (busy - self._busy) / max(wall - self._wall, 1e-3)
        self._wall, self._busy = wall, busy
        with self._process.oneshot():
            memory, handles = self._process.memory_info().rss, self._process.num_fds()
        return Load(
            queued=queued,
            running=running,
            held_bytes=held_bytes,
            cpu_fraction=round(fraction, 4),
            memory_bytes=memory,
            file_handles=handles,
            stale_refused=stale_refused,
        )


def _targets(names: Iterable[str]) -> tuple[tuple[Target, ...], list[Problem]]:
    # ONNX Runtime takes a while to import; only an agent that starts needs it.
    from starloom.agents.sessions import BACKENDS

    found, problems = [], []
    for name in names:
        backend = BACKENDS.get(name)
        if backend is None:
            problems.append(Problem("targets", f"{name!r} cannot be computed on here; there are {', '.join(BACKENDS)}"))
        else:
            note = f"computed by {backend.provider}" if backend.emulated else ""
            found.append(Target(name=name, emulated=backend.emulated, note=note))
    if not found and not problems:
        problems.append(Problem("targets", "are empty; name at least cpu"))
    return tuple(found), problems


def provider_of(target: str) -> str:
    """ONNX Runtime's execution provider for a target of the profile."""
    from starloom.agents.sessions import BACKENDS

    return BACKENDS[target].provider


def _providers() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a cgroup's file; none where it is missing or says `max`."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
