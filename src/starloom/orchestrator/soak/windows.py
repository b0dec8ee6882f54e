"""What a soak saw, window by window, and its verdict: what grew. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from starloom.orchestrator.soak import trends
from starloom.orchestrator.soak.sampling import Footprint
from starloom.orchestrator.soak.trends import Allowance
from starloom.orchestrator.statefolder import LOGS_NAME

FLAT: Final = "flat"
GROWS: Final = "grows"
TOO_SHORT: Final = "too short"
FAILED: Final = "failed"
_MIB = 1024 * 1024
_HOUR_SECONDS = 3_600
_JOBS = 1_000
_MARKS: Final = "▁▂▃▄▅▆▇█"


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from when a job was due until its client had what it gave: of `jobs` of one work."""

    p50: float
    p95: float
    jobs: int


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A few seconds of a soak. `at` is its end, in seconds since the load began; the rest is as of then, or of the window.

    `jobs` have ended since the load began. `late_ms` is by how much the load's own alarms rang late, at the median: how busy the
    machine is for anybody. `load` is its load average of a minute. `held_bytes` are values that the agents keep, and
    `arena_bytes` the shared memory of their arenas. `disk` is the bytes of each part of the state folder.
    """

    at: float
    jobs: int
    latency: dict[str, Latency]
    late_ms: float
    load: float
    processes: dict[str, Footprint]
    arena_bytes: int
    held_bytes: int
    disk: dict[str, int]


#: what allocators, caches and thread pools of a process do by themselves stays below
MEMORY: Final = Allowance(4.0, 0.02)
HANDLES: Final = Allowance(2)
ARENAS: Final = Allowance(16.0)
DISK: Final = Allowance(4.0, 0.1)
LOGS: Final = Allowance(0.0625)
LATENCY: Final = Allowance(10.0, 0.5)


class Measure(NamedTuple):
    """One figure of every window. `judged`: whether the soak fails where it grows."""

    what: str
    unit: str
    allowance: Allowance
    pick: Callable[[Window], float | None]
    judged: bool = True


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one figure did after the warm-up: medians of the last and the first third of that time; `ratio` over 1: it fell.

    `per_hour` goes on as the slope does, and lies between `low_per_hour` and `high_per_hour` by 95 %.
    """

    what: str
    ours: float
    peer: float
    peer_name: str = "first-third"
    ratio: float
    unit: str
    n: int
    rise: float
    allowed: float
    per_hour: float
    low_per_hour: float
    high_per_hour: float
    per_1000_jobs: float
    grows: bool
    judged: bool


def judged(windows: Sequence[Window], warm_up: float) -> list[Window]:
    """The windows that began after `warm_up` seconds."""
    return [window for before, window in pairwise(windows) if before.at >= warm_up]


def measures(windows: Sequence[Window]) -> Iterator[Measure]:
    """The figures of these windows, by what is in all of them."""
    for name in _common([window.processes for window in windows]):
        yield Measure(f"{name} memory", "MiB", MEMORY, partial(_memory, name))
        yield Measure(f"{name} handles", "", HANDLES, partial(_handles, name))
        yield Measure(f"{name} threads", "", HANDLES, partial(_threads, name))
    yield Measure("arenas", "MiB", ARENAS, lambda window: window.arena_bytes / _MIB)
    yield Measure("values held", "MiB", ARENAS, lambda window: window.held_bytes / _MIB)
    for part in _common([window.disk for window in windows]):
        yield Measure(f"disk {part}", "MiB", LOGS if part == LOGS_NAME else DISK, partial(_disk, part))
    for work in dict.fromkeys(work for window in windows for work in window.latency):
        yield Measure(f"{work} p50", "ms", LATENCY, partial(_p50, work))
        yield Measure(f"{work} p95", "ms", LATENCY, partial(_p95, work))
    yield Measure("alarms late", "ms", LATENCY, lambda window: window.late_ms, judged=False)
    yield Measure("load average", "", LATENCY, lambda window: window.load, judged=False)


def rows(windows: Sequence[Window]) -> list[Row]:
    """A row for each figure that has POINTS_MIN windows."""
    found = []
    jobs = windows[-1].jobs - windows[0].jobs if windows else 0
    for measure in measures(windows):
        points = series(measure, windows)
        if len(points) >= trends.POINTS_MIN:
            found.append(_row(measure, points, jobs))
    return found


def series(measure: Measure, windows: Sequence[Window]) -> list[trends.Point]:
    """The figure in each window that has it."""
    return [(window.at, figure) for window in windows if (figure := measure.pick(window)) is not None]


def verdict(rows: Sequence[Row], failures: int) -> str:
    """FAILED where jobs or processes did, else GROWS, TOO_SHORT or FLAT."""
    if failures:
        return FAILED
    if not rows:
        return TOO_SHORT
    return GROWS if any(row.grows and row.judged for row in rows) else FLAT


def picture(figures: Sequence[float], width: int) -> str:
    """A line of at most `width` marks, from the least figure to the greatest: each the mean of as many figures in a row."""
    if not figures:
        return ""
    size = -(-len(figures) // width)
    means = [sum(part) / len(part) for part in (figures[at : at + size] for at in range(0, len(figures), size))]
    low, high = min(means), max(means)
    if low == high:
        return _MARKS[0] * len(means)
    return "".join(_MARKS[round((mean - low) / (high - low) * (len(_MARKS) - 1))] for mean in means)


def _row(measure: Measure, points: Sequence[trends.Point], jobs: int) -> Row:
    found = trends.growth(points, measure.allowance)
    return Row(
        what=measure.what,
        ours=found.last,
        peer=found.first,
        ratio=found.first / found.last if found.last else 1.0,
        unit=measure.unit,
        n=len(points),
        rise=found.rise,
        allowed=found.allowed,
        per_hour=found.slope.per_second * _HOUR_SECONDS,
        low_per_hour=found.slope.low * _HOUR_SECONDS,
        high_per_hour=found.slope.high * _HOUR_SECONDS,
        per_1000_jobs=found.rise / jobs * _JOBS if jobs else 0.0,
        grows=found.grows,
        judged=measure.judged,
    )


def _memory(name: str, window: Window) -> float:
    return window.processes[name].memory_bytes / _MIB


def _handles(name: str, window: Window) -> float:
    return window.processes[name].handles


def _threads(name: str, window: Window) -> float:
    return window.processes[name].threads


def _disk(part: str, window: Window) -> float:
    return window.disk[part] / _MIB


def _p50(work: str, window: Window) -> float | None:
    return window.latency[work].p50 if work in window.latency else None


def _p95(work: str, window: Window) -> float | None:
    return window.latency[work].p95 if work in window.latency else None


def _common(parts: Sequence[Mapping[str, object]]) -> list[str]:
    return [name for name in (parts[0] if parts else ()) if all(name in part for part in parts)]
