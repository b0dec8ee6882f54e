"""What Starloom adds to work that costs nothing, beside dask, Ray, a raw stream and bare asyncio."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.harness import Contender, Row, Samples
from starloom.orchestrator.bench.ours import AGENTS, OURS, open_ours
from starloom.orchestrator.bench.peers import PEERS, open_peers
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.bench.shapes import JOB_STAGES, Form, Work

_WIDE, _LAYERED, _CHAIN, _JOBS = 1_000, 1_000, 100, 200
_CHAIN_MIN = 4
_SHORT_OF_CHAIN = 10
_PACKAGES: Final = ("dask", "distributed", "ray", "grpcio", "protobuf")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The works of one run. `short` are the chains whose time is taken off, so that only further hops are counted."""

    wide: Work
    layered: Work
    jobs: Work
    same: Work
    two: Work
    short_same: Work
    short_two: Work

    @property
    def works(self) -> list[Work]:
        return [self.wide, self.layered, self.jobs, self.same, self.short_same, self.two, self.short_two]


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises InvalidInput for arguments that are not right, StarloomError if a contender fails."""
    names = _peers(args.peers)
    plan = make_plan(args.scale)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as folder:
        note(f"starting {OURS}: an orchestrator and {AGENTS} agents; and {', '.join(names)}")
        with open_ours(Path(folder) / "cluster") as ours, open_peers(names, Path(folder)) as peers:
            contenders: Sequence[Contender[Work]] = [ours, *peers]
            samples = harness.alternate(contenders, plan.works, args.repeat, note=note)
    return Report(
        bench="overhead",
        rows=rows(plan, samples, names),
        repeat=args.repeat,
        notes=_notes(plan, names),
        machine=before,
        versions=versions(_PACKAGES),
    )


def make_plan(scale: float) -> Plan:
    """The works at a scale. Raises InvalidInput for one that makes jobs larger than allowed, or none."""
    if not 0 < scale <= limits.STAGES_PER_JOB_MAX / _WIDE:
        most = limits.STAGES_PER_JOB_MAX / _WIDE
        raise InvalidInput([Problem("--scale", f"is {scale:g}; give a number over 0, at most {most:g}")], "bad scale")
    length = max(_CHAIN_MIN, round(_CHAIN * scale))
    short = max(1, length // _SHORT_OF_CHAIN)
    return Plan(
        wide=Work(form=Form.WIDE, size=max(1, round(_WIDE * scale))),
        layered=Work(form=Form.LAYERED, size=max(1, round(_LAYERED * scale))),
        jobs=Work(form=Form.JOBS, size=max(1, round(_JOBS * scale))),
        same=Work(form=Form.CHAIN, size=length, workers=1),
        two=Work(form=Form.CHAIN, size=length, workers=2),
        short_same=Work(form=Form.CHAIN, size=short, workers=1),
        short_two=Work(form=Form.CHAIN, size=short, workers=2),
    )


def rows(plan: Plan, samples: Samples[Work], peers: Sequence[str]) -> list[Row]:
    """The rows, by the names that figures are followed by; a work's size stands in its name."""

    def taken(work: Work) -> harness.Pick:
        return lambda name: samples.get((name, work), ())

    def hops(long: Work, short: Work) -> harness.Pick:
        further = long.size - short.size
        return lambda name: [
            1_000 * (whole - beginning) / further
            for whole, beginning in zip(samples.get((name, long), ()), samples.get((name, short), ()), strict=True)
        ]

    def rate(name: str) -> list[float]:
        return [plan.jobs.size / seconds for seconds in samples.get((name, plan.jobs), ())]

    return [
        *harness.rows(f"wide-{plan.wide.size}", "s", OURS, peers, taken(plan.wide)),
        *harness.rows(f"layered-{plan.layered.size}", "s", OURS, peers, taken(plan.layered)),
        *harness.rows(f"chain-{plan.same.size}-same-agent", "s", OURS, peers, taken(plan.same)),
        *harness.rows(f"chain-{plan.two.size}-two-agents", "s", OURS, peers, taken(plan.two)),
        *harness.rows("hop-same-agent", "ms", OURS, peers, hops(plan.same, plan.short_same)),
        *harness.rows("hop-two-agents", "ms", OURS, peers, hops(plan.two, plan.short_two)),
        *harness.rows("jobs-100-per-second", "jobs/s", OURS, peers, rate, more_is_better=True),
    ]


def _peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or list(PEERS)
    problems = [Problem("--peers", f"{name!r} is none of {', '.join(PEERS)}") for name in names if name not in PEERS]
    if problems:
        raise InvalidInput(problems, "no such peer")
    return list(dict.fromkeys(names))


def _notes(plan: Plan, names: Sequence[str]) -> list[str]:
    further = plan.same.size - plan.short_same.size
    notes = f"""
        {OURS}: {AGENTS} agents of one slot on this machine; every job is journaled with fsync, which no peer does
        hop: what each of {further} further stages adds to a chain; on grpc-stream it is one message, one way
        jobs: {plan.jobs.size} of {JOB_STAGES} stages, handed in at once by one client; peers get all these stages as one graph
        all contenders are up all the time and take turns; figures are medians, in brackets the quartiles
    """
    return [line.strip() for line in notes.strip().splitlines()] + [f"{name}: {PEERS[name].about}" for name in names]
