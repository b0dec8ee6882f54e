"""Finds jobs in which every stage that has not ended waits for what cannot come, and ends them after a grace."""

from typing import Final

from starloom.dag import limits
from starloom.dag.errors import Stuck
from starloom.dag.facts import JobStatus
from starloom.dag.ids import JobId
from starloom.dag.stagestate import ENDED
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.endings import Endings
from starloom.orchestrator.fleet import AgentState
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.runs import Run
from starloom.orchestrator.state import Ledger, State
from starloom.orchestrator.views import waits_for

_LOOK_NANOS: Final = round(limits.STUCK_LOOK_SECONDS * NANOS)
_GRACE_NANOS: Final = round(limits.STUCK_GRACE_SECONDS * NANOS)


class Watchdog:
    """Looks at the open jobs from time to time. A restart gives all of them the whole grace again."""

    def __init__(self, state: State, ledger: Ledger, lanes: ReadyLanes, endings: Endings) -> None:
        self._fleet = state.fleet
        self._ledger = ledger
        self._lanes = lanes
        self._endings = endings
        self._next = 0
        #: since when a job has been found to be stuck, at each look
        self._since: dict[JobId, int] = {}

    @property
    def next_time(self) -> int | None:
        """When it looks next; None while no job is open."""
        return self._next if self._endings.runs else None

    def look(self) -> None:
        """Ends the jobs that have been stuck for the grace. While no agent is heard of, nobody is to blame, and no time counts."""
        now = self._ledger.now
        if now < self._next or not self._endings.runs:
            return
        self._next = now + _LOOK_NANOS
        found: dict[JobId, int] = {}
        for run in tuple(self._endings.runs.values()) if self._hears() else ():
            since = self._since.get(run.job.id, now)
            try:
                if not self._is_stuck(run):
                    continue
                if now - since < _GRACE_NANOS:
                    found[run.job.id] = since
                    continue
                error = f"stuck for {(now - since) / NANOS:.0f} s: {self._why(run)}"
                self._endings.stop(run, error, JobStatus.FAILED, Stuck.__name__)
            except Exception as broken:
                self._endings.contain(run.job.id, "its being stuck", broken)
        self._since = found

    def stuck(self, job: JobId) -> str:
        """Why no stage of an open job can go on, and when it fails for that; empty if one can."""
        run = self._endings.runs.get(job)
        if run is None or not self._is_stuck(run):
            return ""
        if not self._hears():
            return f"{self._why(run)}; no agent is heard of, so that no time counts"
        left = max(0, self._since.get(job, self._ledger.now) + _GRACE_NANOS - self._ledger.now) / NANOS
        return f"{self._why(run)}; it fails in {left:.0f} s unless that changes"

    def _hears(self) -> bool:
        """Whether any agent is heard of."""
        return any(member.state is AgentState.ONLINE for member in self._fleet.members.values())

    def _is_stuck(self, run: Run) -> bool:
        """Nothing of the job is with an agent, waits for a time or for a patch, or has a node that it might get a place on.

        What is neither ready nor waits for a time waits for upstreams, and these are all stuck as well.
        """
        job = run.job
        if job.status is not JobStatus.RUNNING or job.active_attempts or run.waits or run.held or run.patches:
            return False
        lanes = self._lanes
        return not any(lanes.candidates(lanes.lane_of(run, name), run, name) for name in run.queued)

    def _why(self, run: Run) -> str:
        waiting = [name for name, stage in run.job.stages.items() if stage.status not in ENDED]
        ready = [name for name in waiting if name in run.queued] or waiting
        now = self._ledger.now
        shown = "; ".join(
            f"{name} waits for {waits_for(run.job, run, name, self._lanes, self._fleet, now)}"
            for name in ready[: limits.STUCK_STAGES_SHOWN]
        )
        more = len(ready) - limits.STUCK_STAGES_SHOWN
        others = f"; and {more} more stages" if more > 0 else ""
        return f"each of the {len(waiting)} stages that have not ended waits for what cannot come: {shown}{others}"
