"""The plan `crashes`: a small job for each named crash point, at which an orchestrator or an agent dies amid it.

The job has what any job has: an input in the job store, stages on two nodes that hand values on, outputs small and large.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from starloom.agents.crashpoints import REACHED, VARIABLE, CrashPoint
from starloom.dag import facts, limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.ids import JobId
from starloom.dag.values import PortType
from starloom.orchestrator.cluster import EmbeddedCluster, OrchestratorHost
from starloom.orchestrator.clusterfile import ClusterSpec, NodeSpec
from starloom.orchestrator.infos import Event
from starloom.orchestrator.supervisor import Patience
from starloom.orchestrator.trials.case import ORCHESTRATOR, Case, Kill, Outcome, judge
from starloom.orchestrator.trials.trial import LOOK_SECONDS, Note, Trial, unfinished

SUBMITTING: Final = "submitting"
RUNNING: Final = "running"
AN_AGENT: Final = "an agent"
CLUSTER: Final = ClusterSpec(nodes=(NodeSpec(name="near", tier=Tier.DEVICE), NodeSpec(name="far", tier=Tier.CLOUD)))
#: long enough for a point to be armed while it waits
_PAUSE_SECONDS: Final = 0.75
#: long enough for a process to begin, and to take a snapshot meanwhile
_SNAPSHOT_PAUSE_SECONDS: Final = 6.0
#: more than what travels inline
_VALUE_BYTES: Final = 4 * limits.INLINE_VALUE_BYTES_MAX
#: One that dies as often as here is given up otherwise.
_PATIENT: Final = Patience(quick_death=0.0)


class CrashCase(Case, frozen=True, kw_only=True):
    """Die at a point, armed while the job is submitted or while it runs."""

    moment: str

    @property
    def point(self) -> CrashPoint:
        return CrashPoint(self.stage)


def all_cases() -> list[CrashCase]:
    """Every point while a job runs; and those of the orchestrator that a submission comes by, at that.

    Those of a snapshot are armed at the submission, whose facts are the occasion to take one while the job runs.
    """
    submitting = [
        CrashPoint.VALUE_WRITTEN,
        CrashPoint.VALUE_NAMED,
        CrashPoint.BEFORE_APPEND,
        CrashPoint.BEFORE_FSYNC,
        CrashPoint.AFTER_FSYNC,
        CrashPoint.ACKNOWLEDGED,
        CrashPoint.ANSWERED,
        CrashPoint.PUBLISHED,
        CrashPoint.COMMANDED,
        *(point for point in CrashPoint if point.of_snapshot),
        # Stages are sent ahead: amid the job there is nothing more to accept.
        CrashPoint.ACCEPTED,
    ]
    running = [point for point in CrashPoint if not point.of_snapshot and point is not CrashPoint.ACCEPTED]
    return [_case(point, SUBMITTING) for point in submitting] + [_case(point, RUNNING) for point in running]


def quick_cases() -> list[CrashCase]:
    """Amid a submission, amid a commit, and an agent's unacknowledged report."""
    return [
        _case(CrashPoint.BEFORE_FSYNC, SUBMITTING),
        _case(CrashPoint.AFTER_FSYNC, RUNNING),
        _case(CrashPoint.REPORTED, RUNNING),
    ]


def _case(point: CrashPoint, moment: str) -> CrashCase:
    return CrashCase(victims=(AN_AGENT if point.of_agent else ORCHESTRATOR,), stage=point, moment=moment)


def run(folder: Path, host: OrchestratorHost, cases: Sequence[CrashCase], note: Note) -> tuple[float, list[Outcome]]:
    """Runs the cases on a cluster of two nodes, with its state in `folder`; see `Trial.run`."""
    points = folder.with_name("points")
    points.mkdir(parents=True)
    # Inherited by every process of the cluster; this one has looked for it before.
    os.environ[VARIABLE] = str(points)
    try:
        with EmbeddedCluster(CLUSTER, folder, orchestrator=host, patience=_PATIENT) as cluster:
            return asyncio.run(_Crashes(cluster, note, points).run(cases))
    finally:
        del os.environ[VARIABLE]


def small_job(number: int, pause_seconds: float) -> Constellation:
    """The job, with large values that no job of another number has."""
    near, far = (Requirements(node=node.name) for node in CLUSTER.nodes)
    graph = Graph("crash-trial")
    first = graph.stage("first", "basic.echo", data=graph.input("data", PortType.BYTES), require=near)
    pause = graph.stage("pause", "basic.sleep", params={"seconds": pause_seconds}, require=near)
    params = {"size": _VALUE_BYTES, "seed": number}
    made = graph.stage("made", "basic.make_bytes", params=params, require=far, inputs={"after": pause["value"]})
    last = graph.stage("last", "basic.echo", data=made["data"], require=near)
    graph.output("first", first["data"])
    graph.output("last", last["data"])
    graph.output("pause", pause["value"])
    return graph.build()


class _Crashes(Trial):
    def __init__(self, cluster: EmbeddedCluster, note: Note, points: Path) -> None:
        super().__init__(cluster, note)
        self._points = points
        self._number = 0

    async def prepare(self) -> float:
        for _ in CLUSTER.nodes:
            _, seconds = await self.undisturbed(small_job(0, 0.0), _inputs(0))
        return seconds

    async def disturb(self, case: Case) -> Outcome:
        assert isinstance(case, CrashCase)
        self._number += 1
        info = await self.everybody()
        begin = len(self.watch.events)
        inputs = _inputs(self._number)
        if case.moment == SUBMITTING:
            self._arm(case)
        pause = _SNAPSHOT_PAUSE_SECONDS if case.point.of_snapshot else _PAUSE_SECONDS
        job = await self.submit(small_job(self._number, pause), inputs)
        if case.moment == RUNNING:
            await self.watch.until(partial(_pauses, job), begin)
            self._arm(case)
            if case.point is CrashPoint.BOOTED:
                os.kill(info.pid, signal.SIGKILL)
        reached = await self._reached(case, job, begin)
        if reached is None:
            return unfinished(case, "no process came to the point")
        if case.point in (CrashPoint.SNAPSHOT_HALF, CrashPoint.SNAPSHOT_WRITTEN):
            # Who died there is the process beside it: the next orchestrator is to begin with what that one left.
            os.kill(info.pid, signal.SIGKILL)
        incarnations = {str(node.name): node.incarnation for node in info.nodes}
        kill = Kill(unix_nanos=reached, moment=case.moment, incarnations=incarnations)
        seen = await self.over(case, job, kill, begin)
        # What the job gives is its own, so that its values are new to the job store: the comparison comes after it.
        expected, _ = await self.undisturbed(small_job(self._number, 0.0), inputs)
        return judge(case, job, seen, kill, await self.digests(job), expected)

    def _arm(self, case: CrashCase) -> None:
        (self._points / case.point).touch()

    async def _reached(self, case: CrashCase, job: JobId, begin: int) -> int | None:
        """When a process died, in unix nanoseconds; None where the job ended before."""
        armed = self._points / case.point
        reached = armed.with_name(f"{armed.name}{REACHED}")
        while not reached.exists():
            if any(isinstance(e.fact, facts.JobEnded) and e.fact.job == job for e in self.watch.events[begin:]):
                armed.unlink(missing_ok=True)
                return None
            await asyncio.sleep(LOOK_SECONDS)
        nanos = reached.stat().st_ctime_ns
        reached.unlink()
        return nanos


def _inputs(number: int) -> dict[str, bytes]:
    return {"data": number.to_bytes(8, "little") * (_VALUE_BYTES // 8)}


def _pauses(job: JobId, event: Event) -> bool:
    return isinstance(event.fact, facts.StageStarted) and event.fact.job == job and event.fact.stage == "pause"
