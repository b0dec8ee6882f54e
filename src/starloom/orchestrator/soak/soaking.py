"""The soak itself: jobs at a steady rate, each begun when it is due however long others take, and a look at everybody each few seconds."""

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from starloom.dag.errors import StarloomError
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.soak import sampling
from starloom.orchestrator.soak.windows import Latency, Window
from starloom.orchestrator.soak.workload import CARRIED, ROTA, SMALL, WORKS, long_lived

ORCHESTRATOR: Final = "orchestrator"
CLIENT: Final = "client"
OPEN_SECONDS: Final = 20.0
"""The load that may be under way, in seconds of its rate: with more, the machine does not carry it."""
DRAIN_SECONDS: Final = 60.0
_TOLD_FAILURES = 5
_PERCENT_95 = 19
_TWENTIETHS = 20

Note = Callable[[str], None]


class Soaked(msgspec.Struct, frozen=True, kw_only=True):
    """What a soak saw: the windows, jobs that ended by work, and what went wrong, the first few in words.

    `left_bytes` are values that the agents still held when all jobs had ended.
    """

    windows: list[Window]
    jobs: dict[str, int]
    failures: int
    told: list[str]
    left_bytes: int


class Soak:
    """A load of `rate` jobs a second on a cluster with its state in `folder`. For one event loop, and one run."""

    def __init__(self, client: AsyncClient, folder: Path, rate: float, every: float, note: Note) -> None:
        self._client = client
        self._folder = folder
        self._rate = rate
        self._every = every
        self._note = note
        self._open: set[asyncio.Task[object]] = set()
        self._ended: Counter[str] = Counter()
        self._took: dict[str, list[float]] = {}
        self._late: list[float] = []
        self._pids: dict[str, int] = {}
        self._failures = 0
        self._told: list[str] = []
        self._windows: list[Window] = []

    async def run(self, seconds: float) -> Soaked:
        """Loads the cluster for `seconds`, waits until all its jobs have ended, and tells. Raises StarloomError if it is not there."""
        nodes = [str(node.name) for node in await self._client.nodes()]
        self._began = time.perf_counter()
        over = asyncio.Event()
        self._begin(self._guarded("the job with streams that lives as long", long_lived(self._client, over)))
        looking = asyncio.create_task(self._look(seconds))
        try:
            await self._load(nodes, seconds)
            await looking
            over.set()
            if self._open:
                _, late = await asyncio.wait(self._open, timeout=DRAIN_SECONDS)
                if late:
                    self._failed(f"{len(late)} jobs did not end within {DRAIN_SECONDS:g} s after the load")
        finally:
            for task in (looking, *self._open):
                task.cancel()
            await asyncio.gather(looking, *self._open, return_exceptions=True)
        return Soaked(
            windows=self._windows,
            jobs=dict(self._ended),
            failures=self._failures,
            told=self._told,
            left_bytes=await self._left(),
        )

    async def _load(self, nodes: Sequence[str], seconds: float) -> None:
        for number in range(int(seconds * self._rate)):
            due = self._began + number / self._rate
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
                self._late.append(time.perf_counter() - due)
            if len(self._open) > OPEN_SECONDS * self._rate:
                self._failed(
                    f"{len(self._open)} jobs are under way: this machine does not carry {self._rate:g} a second"
                )
                return
            self._begin(self._job(ROTA[number % len(ROTA)], nodes, number, due))

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _job(self, work: str, nodes: Sequence[str], number: int, due: float) -> None:
        if await self._guarded(f"job {number} ({work})", WORKS[work](self._client, nodes, number)):
            self._ended[work] += 1
            self._took.setdefault(work, []).append(time.perf_counter() - due)

    async def _guarded(self, what: str, work: Awaitable[None]) -> bool:
        """Whether it came out as it has to."""
        try:
            await work
        except StarloomError as error:
            self._failed(f"{what}: {error}")
            return False
        return True

    async def _look(self, seconds: float) -> None:
        """A window each few seconds, while the load lasts."""
        for number in range(1, int(seconds / self._every) + 1):
            await asyncio.sleep(max(0.0, self._began + number * self._every - time.perf_counter()))
            try:
                window = await self._window()
            except (OSError, StarloomError) as error:
                self._failed(f"after {number * self._every:g} s: {error}")
                continue
            self._windows.append(window)
            if number % 12 == 0:
                self._note(_line(window))

    async def _window(self) -> Window:
        info = await self._client.cluster()
        pids = {
            ORCHESTRATOR: info.pid,
            **{str(node.name): node.profile.pid for node in info.nodes},
            CLIENT: os.getpid(),
        }
        for name, pid in pids.items():
            if self._pids.setdefault(name, pid) != pid:
                self._failed(f"{name} was process {self._pids[name]}, and is process {pid} now")
        self._pids = pids
        took, self._took = self._took, {}
        late, self._late = self._late, []
        return Window(
            at=round(time.perf_counter() - self._began, 3),
            jobs=self._ended.total(),
            latency={work: _latency(took[work]) for work in (SMALL, CARRIED) if took.get(work)},
            late_ms=round(1_000 * statistics.median(late), 3) if late else 0.0,
            load=round(os.getloadavg()[0], 2),
            processes={name: sampling.footprint(pid) for name, pid in pids.items()},
            arena_bytes=sampling.arena_bytes(pids.values()),
            held_bytes=sum(node.load.held_bytes for node in info.nodes),
            disk={part.name: sampling.folder_bytes(part) for part in self._folder.iterdir() if part.is_dir()},
        )

    async def _left(self) -> int:
        """What agents hold once all jobs have ended: releases are on their way for a moment, and heartbeats tell of them."""
        left = 0
        deadline = time.perf_counter() + DRAIN_SECONDS
        with suppress(StarloomError):
            while time.perf_counter() < deadline:
                left = sum(node.load.held_bytes + node.load.running for node in await self._client.nodes())
                if not left:
                    break
                await asyncio.sleep(self._every / 10)
        if left:
            self._failed(f"agents hold {left} bytes, though no job is open")
        return left

    def _failed(self, what: str) -> None:
        self._failures += 1
        if len(self._told) < _TOLD_FAILURES:
            self._told.append(what)
            self._note(what)


def _latency(took: Sequence[float]) -> Latency:
    """Of at least one job, in seconds."""
    p95 = statistics.quantiles(took, n=_TWENTIETHS, method="inclusive")[_PERCENT_95 - 1] if len(took) > 1 else took[0]
    return Latency(p50=round(1_000 * statistics.median(took), 3), p95=round(1_000 * p95, 3), jobs=len(took))


def _line(window: Window) -> str:
    small = window.latency.get(SMALL)
    memory = ", ".join(f"{name} {each.memory_bytes / 1e6:.0f} MB" for name, each in window.processes.items())
    took = f", small ones in {small.p50:.0f} ms, 95 % within {small.p95:.0f} ms" if small else ""
    return f"{window.at:.0f} s: {window.jobs} jobs{took}; {memory}; load average {window.load:g}"
