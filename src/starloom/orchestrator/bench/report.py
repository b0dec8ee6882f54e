"""What a benchmark found, for people and as JSON."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from starloom.orchestrator.bench.harness import Row

Note = Callable[[str], None]
"""Says a line of progress."""

COLUMNS: Final = ("what", "ours", "quartiles", "beside", "theirs", "quartiles", "unit", "ratio", "n")
_DIGITS = 3


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured: the cores that this process may use, and how busy they were before (load average, 1 min)."""

    cores: int
    system: str
    python: str
    load_before: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Rows, how many repetitions they rest on, what else must be known to read them, and the versions of what was run."""

    bench: str
    rows: Sequence[Row]
    repeat: int
    notes: Sequence[str]
    machine: Machine
    versions: dict[str, str] = {}
    figures: dict[str, Any] = {}
    """What was measured that nobody is beside of."""


def machine() -> Machine:
    """This machine."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        load_before=round(os.getloadavg()[0], 2),
    )


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the packages named that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table under COLUMNS; quartiles stand in brackets."""
    return (
        row.what,
        figure(row.ours),
        spread(row.ours_spread),
        row.peer_name,
        figure(row.peer),
        spread(row.peer_spread),
        row.unit,
        f"{figure(row.ratio)}x",
        str(row.n),
    )


def figure(value: float) -> str:
    """A number with three digits that count, and no exponent."""
    return f"{float(f'{value:.{_DIGITS}g}'):,.10g}"


def spread(quartiles: tuple[float, float]) -> str:
    """Two quartiles in brackets."""
    return f"[{figure(quartiles[0])} to {figure(quartiles[1])}]"


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON object."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def lines(report: Report) -> list[str]:
    """What stands below the table."""
    place = report.machine
    packages = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return [
        *report.notes,
        f"{place.cores} cores, {place.system}, Python {place.python}; load average before: {place.load_before:g}",
        *([packages] if packages else []),
    ]
