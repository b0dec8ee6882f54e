"""Asks for the plans of jobs that come again and again, and has their rounds follow what comes."""

from collections.abc import Callable, Iterator

from starloom.dag.ids import JobId
from starloom.orchestrator.advice import Planned
from starloom.orchestrator.lanes import ReadyLanes
from starloom.orchestrator.planwanted import rounds_wanted
from starloom.orchestrator.runs import Run
from starloom.orchestrator.series import AllSeries, Series
from starloom.orchestrator.state import Ledger, State


class RoundPlans:
    """The part of `Guiding` for jobs whose constellations say `every`. `defect` is told of what cannot be, with the job."""

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        lanes: ReadyLanes,
        numbers: Iterator[int],
        defect: Callable[[JobId, Exception], None],
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._lanes = lanes
        self._numbers = numbers
        self._defect = defect
        self._series = AllSeries()

    @property
    def next_due(self) -> int | None:
        """When a plan is to be asked for."""
        return self._series.next_due

    @property
    def next_late(self) -> int | None:
        """When one that was asked for is given up."""
        return self._series.next_late

    @property
    def pending(self) -> int:
        """How many plans were asked for and have not come."""
        return self._series.pending

    def join(self, run: Run, *, resumed: bool = False) -> Series | None:
        """A job begins, or is taken up again: the series that it is a round of, if any."""
        return self._series.join(run, self._ledger.now, len(self._state.fleet.members), resumed=resumed)

    def leave(self, job: JobId) -> None:
        """A job has ended."""
        self._series.leave(job)

    def fleet_changed(self) -> None:
        """Nodes came or went."""
        self._series.fleet_changed()

    def ask(self, most: int) -> None:
        """Asks for the plans that are wanted and due, so that no more than so many are asked for at a time."""
        now, fleet = self._ledger.now, self._state.fleet
        for series, run in list(self._series.due(now)):
            if self.pending >= most:
                return
            number = next(self._numbers)
            series.wanted = False
            try:
                taken = self._series.taken(series, fleet.members, now)
                wanted = rounds_wanted(run, series, taken, self._state, number)
            except Exception as error:
                self._defect(run.job.id, error)
                continue
            if wanted is not None:
                self._series.begin(series, number, run, now)
                self._ledger.decision.plans.append(wanted)

    def take(self, given: Planned) -> bool:
        """Whether this is the plan of a series, or says that there is none; its rounds follow it as far as they have not been placed."""
        series = self._series.answered(given)
        if series is None:
            return False
        if series.take(given, self._ledger.now):
            for run in list(series.runs.values()):
                try:
                    if run.guide is not None:
                        self._lanes.varied(run, run.guide.follow(series, run.job.shape.specs))
                except Exception as error:
                    self._defect(run.job.id, error)
        return True
