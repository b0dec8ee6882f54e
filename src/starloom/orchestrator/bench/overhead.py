"""What Starloom adds to work that costs nothing, beside dask, Ray, a raw stream and bare asyncio."""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.harness import Contender, Row, Samples
from starloom.orchestrator.bench.ours import AGENTS, OURS, OursContender, open_ours
from starloom.orchestrator.bench.peers import PEERS, PeerContender, open_peers
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.bench.shapes import JOB_STAGES, Form, Pace, Work

_WIDE, _LARGE, _LAYERED, _CHAIN, _JOBS = 1_000, 10_000, 1_000, 100, 200
_CHAIN_MIN = 4
_SHORT_OF_CHAIN = 10
_GROWTH = (100, 1_000, 10_000, 20_000, 100_000)
_PER_SECOND, _SECONDS, _SECONDS_MIN = 100.0, 60.0, 1.0
_SELDOM = 3
_SCALE_MAX = limits.STAGES_PER_JOB_MAX / _LARGE
_PACKAGES: Final = ("dask", "distributed", "ray", "grpcio", "protobuf")
_MILLI = 1_000.0

ROWS: Final = (
    *("wide-1000", "wide-10000", "layered-1000", "chain-100-same-agent", "chain-100-two-agents"),
    *("hop-same-agent", "hop-two-agents", "jobs-at-once", "jobs-100-per-second", "growth"),
)
"""What can be measured, by the names that it has at scale 1."""

Latencies = Mapping[str, Sequence[float]]
"""The seconds that jobs at a pace took, by contender."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The works of one run. `short` are the chains whose time is taken off, so that only further hops are counted.

    `growth` is for Starloom alone: graphs of growing sizes, the largest as several jobs.
    """

    wide: Work
    large: Work
    layered: Work
    jobs: Work
    same: Work
    two: Work
    short_same: Work
    short_two: Work
    pace: Pace
    growth: tuple[Work, ...]
    rows: tuple[str, ...] = ROWS

    @property
    def works(self) -> list[Work]:
        """What everybody does, as often as was asked for."""
        by_row = {
            "wide-1000": [self.wide],
            "layered-1000": [self.layered],
            "jobs-at-once": [self.jobs],
            "chain-100-same-agent": [self.same],
            "hop-same-agent": [self.same, self.short_same],
            "chain-100-two-agents": [self.two],
            "hop-two-agents": [self.two, self.short_two],
        }
        return list(dict.fromkeys(work for row, works in by_row.items() if row in self.rows for work in works))


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises InvalidInput for arguments that are not right, StarloomError if a contender fails."""
    names = _chosen("--peers", args.peers, list(PEERS), "peer")
    rows_wanted = _chosen("--rows", args.rows, list(ROWS), "row")
    plan = make_plan(args.scale, rows_wanted)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as folder:
        note(f"starting {OURS}: an orchestrator and {AGENTS} agents; and {', '.join(names)}")
        with open_ours(Path(folder) / "cluster") as ours, open_peers(names, Path(folder)) as peers:
            samples = _measure(plan, [ours, *peers], args.repeat, note)
            figures: dict[str, Any] = {}
            latencies: dict[str, Sequence[float]] = {}
            if "jobs-100-per-second" in plan.rows:
                latencies = at_pace(plan.pace, [ours, *peers], note)
                figures["memory"] = _memory(plan.pace, ours)
            if "growth" in plan.rows:
                figures["growth"] = growth(plan.growth, ours, args.repeat, note)
    return Report(
        bench="overhead",
        rows=rows(plan, samples, names) + pace_rows(latencies, names),
        repeat=args.repeat,
        notes=_notes(plan, names, figures),
        machine=before,
        versions=versions(_PACKAGES),
        figures=figures,
    )


def make_plan(scale: float, rows: Sequence[str] = ROWS) -> Plan:
    """The works at a scale. Raises InvalidInput for one that makes jobs larger than allowed, or none."""
    if not 0 < scale <= _SCALE_MAX:
        raise InvalidInput(
            [Problem("--scale", f"is {scale:g}; give a number over 0, at most {_SCALE_MAX:g}")], "bad scale"
        )
    length = max(_CHAIN_MIN, round(_CHAIN * scale))
    short = max(1, length // _SHORT_OF_CHAIN)
    return Plan(
        wide=Work(form=Form.WIDE, size=max(1, round(_WIDE * scale))),
        large=Work(form=Form.WIDE, size=max(1, round(_LARGE * scale))),
        layered=Work(form=Form.LAYERED, size=max(1, round(_LAYERED * scale))),
        jobs=Work(form=Form.JOBS, size=max(1, round(_JOBS * scale))),
        same=Work(form=Form.CHAIN, size=length, workers=1),
        two=Work(form=Form.CHAIN, size=length, workers=2),
        short_same=Work(form=Form.CHAIN, size=short, workers=1),
        short_two=Work(form=Form.CHAIN, size=short, workers=2),
        pace=Pace(per_second=_PER_SECOND, seconds=max(_SECONDS_MIN, _SECONDS * scale)),
        growth=tuple(_grown(max(1, round(size * min(scale, 1.0)))) for size in _GROWTH),
        rows=tuple(rows),
    )


def _grown(stages: int) -> Work:
    jobs = -(-stages // limits.STAGES_PER_JOB_MAX)
    return Work(form=Form.LAYERED, size=stages // jobs, jobs=jobs)


def _measure(
    plan: Plan, contenders: Sequence[Contender[Work]], repeat: int, note: Note
) -> dict[tuple[str, Work], list[float]]:
    samples = harness.alternate(contenders, plan.works, repeat, note=note)
    if "wide-10000" in plan.rows:
        note(f"{plan.large.size} stages, wide")
        samples |= harness.alternate(contenders, [plan.large], max(1, repeat // _SELDOM), warm_ups=0, note=note)
    return samples


def at_pace(pace: Pace, contenders: Sequence[OursContender | PeerContender], note: Note) -> dict[str, Sequence[float]]:
    """What jobs at a pace took, of whoever takes them so; one contender after another, each after a second that does not count."""
    found = {}
    for contender in contenders:
        if contender.paced:
            note(f"{contender.name}: {pace.per_second:g} jobs a second, for {pace.seconds:g} s")
            contender.latencies(Pace(per_second=pace.per_second, seconds=_SECONDS_MIN))
            found[contender.name] = contender.latencies(pace)
    return found


def growth(works: Sequence[Work], ours: Contender[Work], repeat: int, note: Note) -> dict[str, Any]:
    """The median seconds by stages, and how steeply they grow; the larger the graph, the fewer repetitions."""
    points = []
    for work in works:
        stages = work.size * work.jobs
        note(f"{stages} stages in layers, as {work.jobs} job{'s' * (work.jobs > 1)}")
        times = max(1, repeat // _SELDOM) if work.jobs == 1 else 1
        points.append((stages, statistics.median([ours.seconds(work) for _ in range(times)])))
    return {"seconds": {str(stages): seconds for stages, seconds in points}, "slope": harness.slope(points)}


def rows(plan: Plan, samples: Samples[Work], peers: Sequence[str]) -> list[Row]:
    """The rows, by the names that figures are followed by; a work's size stands in its name."""

    def taken(work: Work) -> harness.Pick:
        return lambda name: samples.get((name, work), ())

    def hops(long: Work, short: Work) -> harness.Pick:
        further = long.size - short.size
        return lambda name: [
            _MILLI * (whole - beginning) / further
            # Without its short chain a long one was measured for itself.
            for whole, beginning in zip(samples.get((name, long), ()), samples.get((name, short), ()), strict=False)
        ]

    def rate(name: str) -> list[float]:
        return [plan.jobs.size / seconds for seconds in samples.get((name, plan.jobs), ())]

    return [
        *harness.rows(f"wide-{plan.wide.size}", "s", OURS, peers, taken(plan.wide)),
        *harness.rows(f"wide-{plan.large.size}", "s", OURS, peers, taken(plan.large)),
        *harness.rows(f"layered-{plan.layered.size}", "s", OURS, peers, taken(plan.layered)),
        *harness.rows(f"chain-{plan.same.size}-same-agent", "s", OURS, peers, taken(plan.same)),
        *harness.rows(f"chain-{plan.two.size}-two-agents", "s", OURS, peers, taken(plan.two)),
        *harness.rows("hop-same-agent", "ms", OURS, peers, hops(plan.same, plan.short_same)),
        *harness.rows("hop-two-agents", "ms", OURS, peers, hops(plan.two, plan.short_two)),
        *harness.rows("jobs-at-once", "jobs/s", OURS, peers, rate, more_is_better=True),
    ]


def pace_rows(latencies: Latencies, peers: Sequence[str]) -> list[Row]:
    """The rows of jobs at a pace: their median latency under the name that is followed, and two percentiles."""

    def milliseconds(name: str) -> list[float]:
        return [_MILLI * seconds for seconds in latencies.get(name, ())]

    def late(percent: int) -> harness.Pick:
        return lambda name: [harness.percentile(milliseconds(name), percent)] if latencies.get(name) else []

    return [
        *harness.rows("jobs-100-per-second", "ms", OURS, peers, milliseconds),
        *harness.rows("jobs-100-per-second-p95", "ms", OURS, peers, late(95)),
        *harness.rows("jobs-100-per-second-p99", "ms", OURS, peers, late(99)),
    ]


def _memory(pace: Pace, ours: OursContender) -> dict[str, Any]:
    """Resident MB before the jobs, at half of them, and after them."""
    orchestrator, agent = zip(*ours.memory, strict=True)
    return {"jobs": pace.jobs, "orchestrator_mb": orchestrator, "agent_mb": agent}


def _chosen(place: str, text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    problems = [Problem(place, f"{name!r} is none of {', '.join(known)}") for name in names if name not in known]
    if problems:
        raise InvalidInput(problems, f"no such {what}")
    return list(dict.fromkeys(names))


def _notes(plan: Plan, names: Sequence[str], figures: Mapping[str, Any]) -> list[str]:
    further = plan.same.size - plan.short_same.size
    notes = f"""
        {OURS}: {AGENTS} agents of one slot on this machine; every job is journaled with fsync before it is accepted, and so is each result before anybody is told; jobs go on after the death of any process
        hop: what each of {further} further stages adds to a chain; on grpc-stream it is one message, one way, so that a round trip is twice that
        jobs at once: {plan.jobs.size} of {JOB_STAGES} stages, handed in at once by one client; peers get all these stages as one graph
        jobs at a pace: of {JOB_STAGES} stages in a row, {plan.pace.jobs} in all; from when a job was due until its client knew that it had ended; one contender after another
        all contenders are up all the time and take turns; figures are medians, in brackets the quartiles
    """
    told = [line.strip() for line in notes.strip().splitlines()] + [f"{name}: {PEERS[name].about}" for name in names]
    if memory := figures.get("memory"):
        for who in ("orchestrator", "agent"):
            before, half, after = memory[f"{who}_mb"]
            told.append(
                f"memory of the {who}: {before:.0f} MB, {half:.0f} MB after half of the jobs, {after:.0f} MB after all"
            )
    if grown := figures.get("growth"):
        seconds = ", ".join(f"{int(stages):,}: {took:.3g} s" for stages, took in grown["seconds"].items())
        told.append(f"stages in layers: {seconds}; slope {grown['slope']:.2f} of the logarithms")
        told.append(
            f"more than STAGES_PER_JOB_MAX = {limits.STAGES_PER_JOB_MAX:,} stages are several jobs, handed in at once"
        )
    return told
