"""Stages that may be given out ahead of upstreams that are under way, in the order in which they are to be looked at.

They are placed behind all that is ready. One that finds no room, or would end too far ahead, is looked at again once
there may be room, or when its time has come; whatever becomes ready meanwhile is placed as that. Nothing is lost
where one is forgotten: it becomes ready when its upstreams have ended.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from starloom.dag.ids import StageId
from starloom.dag.stagestate import StageStatus
from starloom.orchestrator.fleet import Fleet
from starloom.orchestrator.lanes import Lane, LaneKey, ReadyLanes
from starloom.orchestrator.lineage import Verdict, verdict
from starloom.orchestrator.runs import Run

NO_ROOM: Final = -1
Place = Callable[[Lane, Run, StageId], int | None]
"""Places a stage, or finds that it does not go ahead: None. NO_ROOM: no candidate of its lane has room; else when to look again."""

_Entry = tuple[int, int, Run, StageId]


class Ahead:
    """At most so many stages of all jobs at once."""

    def __init__(self, fleet: Fleet, lanes: ReadyLanes, most: int) -> None:
        self._fleet = fleet
        self._lanes = lanes
        self._most = most
        #: by priority, then in turn
        self._waiting: list[_Entry] = []
        #: by the time at which to look again, in monotonic nanoseconds
        self._later: list[_Entry] = []
        self._full: set[LaneKey] = set()
        self._fresh = False
        self._seq = 0

    def put(self, run: Run, stage: StageId) -> None:
        """A stage may go ahead; again is fine."""
        if stage in run.ahead or len(self._waiting) + len(self._later) >= self._most:
            return
        run.ahead.add(stage)
        self._fresh = True
        self._push(run, stage)

    def serve(self, now: int, place: Place) -> None:
        """Offers each stage that may find a place now."""
        while self._later and self._later[0][0] <= now:
            _, _, run, stage = heappop(self._later)
            self._fresh = True
            self._push(run, stage)
        if self._fleet.opened_ahead:
            self._full.clear()
        elif not self._fresh:
            return
        self._fresh = self._fleet.opened_ahead = False
        left: list[_Entry] = []
        while self._waiting:
            entry = heappop(self._waiting)
            if not self._serve_one(entry, place):
                left.append(entry)
        self._waiting = left

    def look_again(self, run: Run) -> None:
        """What of a job was put off for a time is looked at now: what it was put off for is no reason any more."""
        mine = [entry for entry in self._later if entry[2] is run]
        if not mine:
            return
        self._later = [entry for entry in self._later if entry[2] is not run]
        heapify(self._later)
        self._fresh = True
        for _, _, _, stage in mine:
            self._push(run, stage)

    def _push(self, run: Run, stage: StageId) -> None:
        self._seq += 1
        heappush(self._waiting, (-run.job.options.priority, self._seq, run, stage))

    def _serve_one(self, entry: _Entry, place: Place) -> bool:
        """False if the stage goes on waiting for room."""
        _, seq, run, name = entry
        stage = run.job.stages.get(name)
        if stage is None or run.closed or stage.status is not StageStatus.PENDING:
            run.ahead.discard(name)
            return True
        lane = self._lanes.lane_of(run, name)
        if lane.key in self._full:
            return False
        run.ahead.discard(name)
        if verdict(run.job, name) is not Verdict.AHEAD:
            return True
        again = place(lane, run, name)
        if again is None:
            return True
        run.ahead.add(name)
        if again == NO_ROOM:
            self._full.add(lane.key)
            return False
        heappush(self._later, (again, seq, run, name))
        return True
