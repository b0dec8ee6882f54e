"""How long an orchestrator reads before it serves: from a snapshot on, beside a replay of all facts."""

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

from starloom.dag import facts as f
from starloom.dag import limits
from starloom.dag.constellation import Constellation, Dependency, StageSpec
from starloom.dag.facts import Fact, JobStatus
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.values import PortType, ValueRef
from starloom.orchestrator import snapshots
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.harness import Row
from starloom.orchestrator.bench.report import Note, Report, machine
from starloom.orchestrator.coordinator import Coordinator
from starloom.orchestrator.journal import Journal

OURS: Final = "snapshot"
PEER: Final = "all-facts"
_OPEN, _TRIES, _WIDTH = 10_000, 7, 10
_ENDED_JOBS, _ENDED_STAGES = 66, 1_000
_AGENT: Final = AgentId("n0")
_NULL: Final = ValueRef(type=PortType.JSON, bytes=4, digest="0" * 64, inline=b"null")
_TIMES: Final = f.Timing(queue=0.01, run=0.02)


class _Starts:
    """Starts on journals, by the names of these: of each one folder with a snapshot, or one without."""

    def __init__(self, name: str, folders: dict[str, Path]) -> None:
        self.name = name
        self._folders = folders

    def does(self, work: str) -> bool:
        return work in self._folders

    def seconds(self, work: str) -> float:
        """From opening the journal until the first decision; as the orchestrator's process, without the collector."""
        gc.collect()
        gc.disable()
        try:
            began = time.perf_counter()
            journal = Journal.open(self._folders[work])
            with closing(journal):
                found = snapshots.newest(journal.reader)
                coordinator = Coordinator(journal.epoch)
                coordinator.adopt(found.state)
                coordinator.replay(_noted(journal, found))
                coordinator.boot(1)
                return time.perf_counter() - began
        finally:
            gc.enable()


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures."""
    before = machine()
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as made:
        works = {f"open-{_OPEN}": list(_retried()), f"open-{_OPEN}-after-ended": list(_after_ended())}
        contenders = [_Starts(name, _write(Path(made) / name, works, name == OURS, note)) for name in (OURS, PEER)]
        counts = {name: len(facts) for name, facts in works.items()}
        works.clear()
        samples = harness.alternate(contenders, list(counts), args.repeat, note=note)
    rows: list[Row] = []
    for work in counts:
        rows += harness.rows(work, "s", OURS, [PEER], lambda name, work=work: samples.get((name, work), ()))  # type: ignore[misc]
    return Report(bench="replay", rows=rows, repeat=args.repeat, notes=_notes(counts), machine=before)


def _notes(counts: dict[str, int]) -> list[str]:
    facts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return [
        f"facts: {facts}; {OURS}: the last {limits.SNAPSHOT_FACTS:,} of them came after the snapshot, as many as may",
        f"{_OPEN:,} open stages: each was tried {_TRIES} times; after-ended: {_ENDED_JOBS} jobs of {_ENDED_STAGES:,} stages ended before",
        "the time is from opening the journal until the orchestrator has decided for the first time",
    ]


def _noted(journal: Journal, found: snapshots.Restored) -> Iterator[Fact]:
    for record in journal.replay(found.offset):
        fact = record.fact
        found.kept.note(fact, record.unix_nanos)
        yield fact


def _write(folder: Path, works: dict[str, list[Fact]], with_snapshot: bool, note: Note) -> dict[str, Path]:
    """One journal for each work, in a folder of that name."""
    folders = {}
    for name, facts in works.items():
        note(f"writing {len(facts):,} facts of {name}")
        folders[name] = folder / name
        with closing(Journal.open(folders[name])) as journal:
            end = len(facts) - limits.SNAPSHOT_FACTS if with_snapshot else len(facts)
            _append(journal, facts[:end])
            if with_snapshot:
                snapshots.make(journal.folder)
                _append(journal, facts[end:])
    return folders


def _append(journal: Journal, facts: Sequence[Fact]) -> None:
    left = iter(facts)
    while part := list(islice(left, limits.EVENTS_PER_READ_MAX)):
        journal.append(part, time.time_ns())


def _begun() -> Iterator[Fact]:
    yield f.EpochStarted(epoch=Epoch(1))
    yield f.AgentJoined(agent=_AGENT, incarnation="i1", profile={"name": _AGENT, "tier": "edge"})


def _submitted(job: JobId, count: int) -> Fact:
    """Stages in chains, side by side."""
    names = [StageId(f"s{number}") for number in range(count)]
    arcs = tuple(
        Dependency(upstream=upstream, downstream=downstream, output="value", input="value")
        for upstream, downstream in zip(names, names[_WIDTH:], strict=False)
    )
    stages = {name: StageSpec(id=name, kind="basic.noop") for name in names}
    return f.JobSubmitted(job=job, constellation=Constellation(name="work", stages=stages, dependencies=arcs))


def _retried() -> Iterator[Fact]:
    """An open job whose stages were all tried again and again."""
    job = JobId("open")
    yield from _begun()
    yield _submitted(job, _OPEN)
    error = f.ErrorInfo(message="not yet", transient=True, node=_AGENT)
    for attempt in range(1, _TRIES + 1):
        token = FencingToken(Epoch(1), Attempt(attempt))
        for number in range(_OPEN):
            stage = StageId(f"s{number}")
            yield f.StagePlaced(job=job, stage=stage, token=token, agent=_AGENT, incarnation="i1")
            yield f.StageStarted(job=job, stage=stage, token=token)
            yield f.StageFailed(job=job, stage=stage, token=token, error=error, retry_seconds=0.1)


def _after_ended() -> Iterator[Fact]:
    """Jobs that have ended, and are kept for their answers, before an open one."""
    yield from _begun()
    token = FencingToken(Epoch(1), Attempt(1))
    for number in range(_ENDED_JOBS):
        job = JobId(f"ended-{number}")
        yield _submitted(job, _ENDED_STAGES)
        for index in range(_ENDED_STAGES):
            stage = StageId(f"s{index}")
            consumed = (
                {"value": f.Consumed(StageId(f"s{index - _WIDTH}"), token, _NULL.digest)} if index >= _WIDTH else {}
            )
            yield f.StagePlaced(job=job, stage=stage, token=token, agent=_AGENT, incarnation="i1")
            yield f.StageStarted(job=job, stage=stage, token=token)
            yield f.StageCommitted(
                job=job, stage=stage, token=token, outputs={"value": _NULL}, consumed=consumed, timing=_TIMES
            )
        yield f.JobEnded(job=job, status=JobStatus.SUCCEEDED)
    yield _submitted(JobId("open"), _OPEN)
