"""How good plans are, and how soon they are there: beside published list schedulers and the best plans known."""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from starloom.dag.errors import Infeasible, InvalidInput, Problem
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.harness import Row
from starloom.orchestrator.bench.placing import best as known
from starloom.orchestrator.bench.placing import instances, judging, losses, periods, proofs, traces
from starloom.orchestrator.bench.placing.best import GAIN, Best
from starloom.orchestrator.bench.placing.instances import Instance
from starloom.orchestrator.bench.placing.peers import CLASSICS, PEERS, plans
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Plan
from starloom.orchestrator.planner.warming import warm_up

_MILLI = 1_000.0
_UNLIMITED: Final = 2**31 - 1
_SELDOM: Final = 3
_P95: Final = 95
_TRACES: Final = "traces"
_PACKAGES: Final = ("numpy", "numba", "ortools")
_LISTS: Final = ("unplanned", "worse_than_a_classic")
SEARCHING: Final = 0.85
"""The share of a plan's time after which its search is to end; the rest is for a last step, and for checking."""

BEST_KNOWN: Final = "best-known"

Some = TypeVar("Some")


class Timed(NamedTuple):
    """A set of instances by its size, and the seconds that each plan may take; `seldom`: fewer repetitions."""

    size: str
    seconds: float
    seldom: bool = False


ROWS: Final = {
    "100-at-10ms": Timed(instances.HUNDRED, 0.01),
    "100-at-100ms": Timed(instances.HUNDRED, 0.1),
    "1000": Timed(instances.THOUSAND, 0.2),
    "10000": Timed(instances.TEN_THOUSAND, 3.0, seldom=True),
}
"""The rows that figures are followed by."""

FURTHER: Final = {"small": Timed(instances.SMALL, 0.1), _TRACES: Timed(_TRACES, 0.1)}
"""Sets that have figures and no row."""

PROOFS, LOSS, RANDOM, PERIODS = "proofs", "loss", "random", "periods"
CHECKS: Final = (PROOFS, LOSS)
"""What is measured apart, without the best plans known."""

WHOLE: Final = (RANDOM, PERIODS)
"""And what takes so long that it is run where it is named only: some half an hour at scale 1."""


class PlanRow(Row, frozen=True, kw_only=True):
    """Starloom beside the best plans known: the mean, the 95th percentile and the worst of its objectives over theirs.

    `planner_ms`: the median of what a plan took, checking it included; `planner_worst_ms`: the most.
    """

    mean: float
    p95: float
    worst: float
    planner_ms: float
    planner_worst_ms: float


class Shot(NamedTuple):
    """One plan of ours: its objective in seconds, infinite if none was found, and the seconds that it took."""

    objective: float
    seconds: float


class Measured(NamedTuple):
    """An instance: the best objective known now, whether it had been known before, and what everybody found, by name."""

    name: str
    best: float
    before: bool
    ours: dict[str, list[Shot]]
    peers: dict[str, float]


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises InvalidInput for arguments that are not right, and for a best plan that does not hold."""
    wanted = _chosen(args.rows)
    if not 0 < args.scale <= 1:
        raise InvalidInput([Problem("--scale", f"is {args.scale:g}; give a number over 0, at most 1")], "bad scale")
    before = machine()
    timed = [row for row in wanted if row in ROWS or row in FURTHER]
    best = known.load(args.best or known.FILE)
    note("compiling")
    begin = time.perf_counter()
    warm_up()
    compiling = time.perf_counter() - begin
    measured, improved = [], []
    for made, each in _works(timed, args.scale, args.traces or traces.folder()):
        note(made.name)
        found, better = measure(made, each, args.repeat, best)
        measured.append(found)
        if better:
            improved.append(better)
            note(f"better than the best known: {better}")
    if args.write_best:
        known.save(best, args.best or known.FILE)
    figures = {
        "sets": sets(measured),
        "improved": improved,
        "unplanned": [each.name for each in measured if any(math.isinf(s.objective) for s in _shots(each))],
        "worse_than_a_classic": worse_than_classics(measured),
        "compiling_seconds": compiling,
        "checks": _checks(wanted, args.scale, args.repeat, note),
        "instances": [_told(each) for each in measured],
    }
    return Report(
        bench="placement",
        rows=rows(measured),
        repeat=args.repeat,
        notes=_notes(measured, figures),
        machine=before,
        versions=versions(_PACKAGES),
        figures=figures,
    )


def measure(made: Instance, timed: dict[str, Timed], repeat: int, best: Best) -> tuple[Measured, dict[str, Any] | None]:
    """Plans one instance by everybody, offers what is better to the best known, and tells if it was."""
    before = best.plan(made)
    peers, ours = {}, {}
    found: list[Plan] = []
    for name, each in plans(made):
        if each is not None:
            peers[name] = each.objective
            found.append(each)
    for row, how in timed.items():
        shots = [
            planned(made, how.seconds, seed) for seed in range(max(1, repeat // _SELDOM) if how.seldom else repeat)
        ]
        ours[row] = [Shot(each.objective if each else math.inf, seconds) for each, seconds in shots]
        found += [each for each, _ in shots if each is not None]
    better = None
    least = min(found, key=lambda each: each.objective, default=None)
    if least is not None and best.offer(made, least) and before is not None:
        better = {"name": made.name, "before": before.objective, "now": least.objective, "method": least.method}
    now = min((each.objective for each in (before, least) if each is not None), default=math.inf)
    return Measured(made.name, now, before is not None, ours, peers), better


def planned(made: Instance, seconds: float, seed: int) -> tuple[Plan | None, float]:
    """Our plan, checked, or None if there was none, and the seconds until it was there."""
    begin = time.perf_counter()
    budget = Budget(_UNLIMITED, lambda: time.perf_counter() - begin >= SEARCHING * seconds)
    try:
        found = plan(made.problem, budget, seed)
    except Infeasible:
        found = None
    return found, time.perf_counter() - begin


def rows(measured: Sequence[Measured]) -> list[Row]:
    """Of each row that was measured one beside the best known, and one beside each peer that had a plan.

    Figures are objectives over the best known's, their means; beside a peer only instances count that it has a plan for.
    """
    found: list[Row] = []
    for row in ROWS:
        here = [each for each in measured if row in each.ours]
        if (own := ratios(here, row)) is None:
            continue
        low_high = harness.summary(own["ratios"])
        found.append(
            PlanRow(
                **_row(row, own["mean"], 1.0, BEST_KNOWN, len(own["ratios"])),
                ours_spread=(low_high.low, low_high.high),
                peer_spread=(1.0, 1.0),
                **{name: own[name] for name in ("mean", "p95", "worst", "planner_ms", "planner_worst_ms")},
            )
        )
        found += [made for peer in PEERS if (made := _beside(row, peer, here)) is not None]
    return found


def _beside(row: str, peer: str, measured: Iterable[Measured]) -> Row | None:
    both = [each for each in measured if peer in each.peers]
    own = ratios(both, row)
    if own is None:
        return None
    theirs = [each.peers[peer] / each.best for each in both]
    mine, others = harness.summary(own["ratios"]), harness.summary(theirs)
    return Row(
        **_row(row, own["mean"], math.fsum(theirs) / len(theirs), peer, len(both)),
        ours_spread=(mine.low, mine.high),
        peer_spread=(others.low, others.high),
    )


def _row(row: str, ours: float, peer: float, name: str, n: int) -> dict[str, Any]:
    return {
        "what": row,
        "ours": ours,
        "peer": peer,
        "peer_name": name,
        "ratio": peer / ours,
        "unit": "of best known",
        "n": n,
    }


def ratios(measured: Iterable[Measured], row: str) -> dict[str, Any] | None:
    """How our objectives stand to the best known, and what plans took; None where there is none. Dead ends count as none."""
    shots = [(each, shot) for each in measured for shot in each.ours.get(row, ()) if math.isfinite(shot.objective)]
    if not shots:
        return None
    found = [shot.objective / each.best for each, shot in shots]
    taken = [_MILLI * shot.seconds for _, shot in shots]
    return {
        "ratios": found,
        "mean": math.fsum(found) / len(found),
        "p95": harness.percentile(found, _P95),
        "worst": max(found),
        "planner_ms": harness.summary(taken).median,
        "planner_worst_ms": max(taken),
        "n": len(found),
    }


def sets(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """The same figures by row and by set, and by whether there are requirements."""
    found = {}
    for row in (*ROWS, *FURTHER):
        here = [each for each in measured if row in each.ours]
        parts = {
            row: here,
            f"{row}, constrained": [each for each in here if "-constrained" in each.name],
            f"{row}, free": [each for each in here if "-constrained" not in each.name],
        }
        for name, part in parts.items():
            if own := ratios(part, row):
                del own["ratios"]
                found[name] = own
    return found


def worse_than_classics(measured: Iterable[Measured]) -> list[str]:
    """The instances where some plan of ours was worse than the best of the classics."""
    return [
        each.name
        for each in measured
        if (peers := [each.peers[name] for name in CLASSICS if name in each.peers])
        and max(shot.objective for shot in _shots(each)) > min(peers) * (1 + GAIN)
    ]


def _checks(wanted: Sequence[str], scale: float, repeat: int, note: Note) -> dict[str, dict[str, Any]]:
    does: dict[str, Callable[[], dict[str, Any]]] = {
        PROOFS: lambda: proofs.run(scale, note),
        LOSS: lambda: losses.run(repeat, scale, note),
        RANDOM: lambda: judging.many(max(1, round(judging.CASES * scale)), 0, note),
        PERIODS: lambda: judging.many(max(1, round(periods.CASES * scale)), 0, note, periods.judged),
    }
    return {name: do() for name, do in does.items() if name in wanted}


def _works(wanted: Sequence[str], scale: float, folder: Path) -> Iterator[tuple[Instance, dict[str, Timed]]]:
    everything = ROWS | FURTHER
    by_size: dict[str, dict[str, Timed]] = {}
    for row in wanted:
        by_size.setdefault(everything[row].size, {})[row] = everything[row]
    for size, timed in by_size.items():
        for made in _instances(size, scale, folder):
            yield made, timed


def _instances(size: str, scale: float, folder: Path) -> Iterator[Instance]:
    if size == _TRACES:
        yield from _share(list(traces.instances(folder)), scale)
    else:
        yield from map(instances.instance, _share(instances.specs(size), scale))


def _share(these: Sequence[Some], scale: float) -> list[Some]:
    """As many as the scale says, spread over all, one at least if there are any."""
    count = min(len(these), max(1, round(len(these) * scale)))
    return [these[index * len(these) // count] for index in range(count)]


def _chosen(text: str) -> list[str]:
    usual = [*ROWS, *FURTHER, *CHECKS]
    known_rows = [*usual, *WHOLE]
    names = [name.strip() for name in text.split(",") if name.strip()] or usual
    problems = [
        Problem("--rows", f"{name!r} is none of {', '.join(known_rows)}") for name in names if name not in known_rows
    ]
    if problems:
        raise InvalidInput(problems, "no such row")
    return list(dict.fromkeys(names))


def _shots(measured: Measured) -> list[Shot]:
    return [shot for shots in measured.ours.values() for shot in shots]


def _told(each: Measured) -> dict[str, Any]:
    ours = {row: [_finite(shot.objective) for shot in shots] for row, shots in each.ours.items()}
    return {"name": each.name, "best": _finite(each.best), "known": each.before, "ours": ours, "peers": each.peers}


def _counted(figure: Any) -> str:
    """A figure, some by name, or a list, in one line."""
    if isinstance(figure, dict):
        return ", ".join(f"{name} {_counted(each)}" for name, each in figure.items())
    if isinstance(figure, list):
        return "; ".join(map(str, figure)) or "none"
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _notes(measured: Sequence[Measured], figures: dict[str, Any]) -> list[str]:
    notes = """
        figures are objectives over the best known of each instance, their means; in brackets the quartiles
        a plan's time has everything in it: preparing, searching, checking; compiling is apart
        peers are the compiled list schedulers, with what the planner knows of slots, models and memory; a dead end of theirs does not count
    """
    told = [line.strip() for line in notes.strip().splitlines()] + [f"{name}: {about}" for name, about in PEERS.items()]
    for name, own in figures["sets"].items():
        told.append(
            f"{name}: mean {own['mean']:.3f}, p95 {own['p95']:.3f}, worst {own['worst']:.3f} of the best known, "
            f"{own['planner_ms']:.1f} ms at the median, {own['planner_worst_ms']:.1f} at most, n = {own['n']}"
        )
    for name, check in figures["checks"].items():
        told += [f"{name}: {what}: {_counted(figure)}" for what, figure in check.items()]
    new = sum(not each.before for each in measured)
    told.append(
        f"{len(measured)} instances, {new} of them without a best known plan; compiling: {figures['compiling_seconds']:.1f} s"
    )
    told += [f"{what.replace('_', ' ')}: {', '.join(figures[what]) or 'none'}" for what in _LISTS]
    told += [f"improved: {each['name']}, {each['before']:.6g} to {each['now']:.6g} s" for each in figures["improved"]]
    return told
