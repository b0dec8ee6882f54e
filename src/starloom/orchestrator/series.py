"""Jobs that come again and again: the plan for their period, by which each of them is placed from its acceptance on.

Jobs of one constellation that says `every` are rounds of a series. A plan is made for the period, once for all of them, and
renewed now and then; a single round may be over before a plan of its own would be there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.orchestrator.advice import Place, Planned, PlannedRounds, cells
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.fleet import Member
from starloom.orchestrator.runs import Run

_AGAIN = round(limits.PLAN_AGAIN_SECONDS * NANOS)
_ANSWER = round(limits.PLAN_ANSWER_SECONDS * NANOS)
_EVERY = round(limits.PLAN_EVERY_SECONDS * NANOS)
_RENEW = round(limits.PLAN_ROUNDS_SECONDS * NANOS)


@dataclass(slots=True)
class Series:
    """A constellation whose jobs come again and again, and the plan for its period, as far as there is one. Times in monotonic nanoseconds."""

    constellation: Constellation
    #: rounds that have not ended
    runs: dict[JobId, Run] = field(default_factory=dict)
    #: when the last one was accepted
    last: int = 0
    #: whether a plan is wanted, and before when it is not asked for
    wanted: bool = True
    due: int = 0
    #: of the last plan that was asked for: its number, for which of the rounds, and when
    number: int = 0
    carrier: JobId | None = None
    asked: int = 0
    pending: bool = False
    #: of the plan that holds: its places, in seconds from a round's acceptance, when it was asked for, and what it tells
    places: dict[StageId, Place] = field(default_factory=dict)
    made: int = 0
    ends: float = 0.0
    rounds: PlannedRounds | None = None
    refusal: str = ""

    @property
    def every(self) -> float:
        """Seconds from one round to the next."""
        return self.constellation.every_seconds

    def begin(self, number: int, carrier: JobId, now: int) -> None:
        """A plan is asked for, with one of the rounds."""
        self.number, self.carrier = number, carrier
        self.asked, self.pending, self.wanted = now, True, False
        self.due = now + _EVERY

    def take(self, given: Planned, now: int) -> bool:
        """An answer came; whether there is another plan than before."""
        self.pending = False
        self.refusal = given.refusal or given.nonsense()
        if self.refusal:
            # Run times become known with the rounds, so that later there may be one.
            self.wanted, self.due = True, now + _AGAIN
            return False
        self.places, self.made, self.ends, self.rounds = given.places, self.asked, given.ends, given.rounds
        return True

    def give_up(self, now: int) -> None:
        """None has come."""
        self.pending, self.wanted, self.due = False, True, now + _AGAIN
        self.refusal = f"it did not come within PLAN_ANSWER_SECONDS = {limits.PLAN_ANSWER_SECONDS:g} s"

    def told(self, now: int) -> str:
        """The plan in a line."""
        if not self.places:
            return f"there is none: {self.refusal}" if self.refusal else "it is being made" if self.pending else ""
        last = f"; the last is none: {self.refusal}" if self.refusal else ""
        return f"{self.foretold()}, by a plan of {(now - self.made) / NANOS:.2f} s ago{last}"

    def foretold(self) -> str:
        """What the plan says of rounds, as a clause."""
        what, rounds = f"a round every {self.every:g} s", self.rounds
        if rounds is None:
            return f"{what} is planned for"
        if not rounds.holds:
            return f"{what} cannot be held: the least that was found is {rounds.least:.3g} s"
        return f"{what} can be held, and 95 % end within {rounds.p95:.2f} s"


class AllSeries:
    """The series of which rounds are open, or were lately."""

    def __init__(self) -> None:
        self._known: dict[str, list[Series]] = {}
        self._of: dict[JobId, Series] = {}
        self._asked: dict[int, Series] = {}

    def join(self, run: Run, now: int, nodes: int, *, resumed: bool = False) -> Series | None:
        """A job begins, or is taken up again: the series that it is a round of; None if of none, or if that is not planned on so many nodes."""
        origin = run.job.shape.origin
        if not origin.every_seconds or not _may(run, nodes):
            return None
        alike = self._known.setdefault(origin.name, [])
        found = next((each for each in alike if each.constellation == origin), None)
        fresh = found is None
        if found is None:
            found = Series(origin)
            alike.append(found)
        elif not found.pending and now - found.made >= _RENEW:
            found.wanted = True
        if resumed:
            # Nodes have a while to say hello first.
            found.due = max(found.due, now + _EVERY)
        found.runs[run.job.id], found.last = run, now
        self._of[run.job.id] = found
        if fresh:
            # Not before it has a round: without one it would be the oldest itself.
            self._forget_old()
        return found

    def leave(self, job: JobId) -> None:
        """A job has ended."""
        series = self._of.pop(job, None)
        if series is not None:
            del series.runs[job]

    def fleet_changed(self) -> None:
        """Nodes came or went: what was planned for them is planned anew."""
        for series in self._all():
            series.wanted = True

    def due(self, now: int) -> Iterator[tuple[Series, Run]]:
        """Those of which a plan is to be asked for, each with a round of it. Plans that have not come are given up."""
        for series in [each for each in self._asked.values() if each.asked + _ANSWER <= now]:
            del self._asked[series.number]
            series.give_up(now)
        for series in self._all():
            if series.wanted and series.runs and not series.pending and series.due <= now:
                yield series, next(iter(series.runs.values()))

    @property
    def next_due(self) -> int | None:
        """When one is to be asked for next."""
        return min((each.due for each in self._all() if each.wanted and each.runs and not each.pending), default=None)

    @property
    def next_late(self) -> int | None:
        """When one that was asked for is given up."""
        return min((each.asked + _ANSWER for each in self._asked.values()), default=None)

    @property
    def pending(self) -> int:
        """How many plans were asked for and have not come."""
        return len(self._asked)

    def begin(self, series: Series, number: int, run: Run, now: int) -> None:
        """A plan of it is asked for, with one of the rounds."""
        series.begin(number, run.job.id, now)
        self._asked[number] = series

    def answered(self, given: Planned) -> Series | None:
        """Of which series this plan was asked for; only once."""
        series = self._asked.get(given.number)
        if series is None or series.carrier != given.job:
            return None
        return self._asked.pop(given.number)

    def taken(self, series: Series, members: Mapping[AgentId, Member], now: int) -> dict[AgentId, float]:
        """Of each node the share of its slots' time, up to 1, that all but this series' own rounds take.

        Of other series that is what their plans take of each period; of what else runs, what is left of it beside the time
        until the plan is renewed.
        """
        found: dict[AgentId, float] = {}
        for name, member in members.items():
            others = sum(work.seconds for task, work in member.assigned.items() if not self._counts(task.job, series))
            found[name] = others / member.slots / limits.PLAN_ROUNDS_SECONDS
        for each in self._all():
            alive = each.runs or now - each.last <= _RENEW
            if each is not series and alive and each.rounds is not None:
                for name, seconds in each.rounds.busy.items():
                    if name in found:
                        found[name] += seconds / each.every
        return {name: min(1.0, share) for name, share in found.items()}

    def _counts(self, job: JobId, mine: Series) -> bool:
        """Whether what a job has in hand is counted otherwise."""
        series = self._of.get(job)
        return series is not None and (series is mine or series.rounds is not None)

    def _all(self) -> Iterator[Series]:
        return (each for alike in self._known.values() for each in alike)

    def _forget_old(self) -> None:
        idle = sorted((each for each in self._all() if not each.runs and not each.pending), key=lambda each: each.last)
        for series in idle[: max(0, sum(1 for _ in self._all()) - limits.PLAN_SERIES_MAX)]:
            alike = self._known[series.constellation.name]
            alike[:] = [each for each in alike if each is not series]
            if not alike:
                del self._known[series.constellation.name]


def _may(run: Run, nodes: int) -> bool:
    job, stages = run.job, run.job.shape.origin.stages
    return (
        0 < len(stages) <= limits.PLAN_ROUNDS_STAGES_MAX
        and cells(stages.values(), nodes) <= limits.PLAN_ROUNDS_CELLS_MAX
        and not job.options.max_parallel
        # The plan for the period knows the constellation's alone.
        and job.deadline_seconds == job.shape.origin.deadline_seconds
        and not run.streams.groups
    )
