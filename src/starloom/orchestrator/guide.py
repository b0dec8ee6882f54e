"""What is kept of an open job's plan: the places that it advises, when it was asked for, and what became of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.ids import AgentId, StageId
from starloom.orchestrator.advice import Advised, Place, Planned
from starloom.orchestrator.clocks import NANOS
from starloom.orchestrator.series import Series

_ANSWER = round(limits.PLAN_ANSWER_SECONDS * NANOS)


@dataclass(frozen=True, slots=True)
class Advice:
    """Where a plan has a stage, and from when until when; `made`: when that was asked for. In monotonic nanoseconds.

    `variant`: a lesser one that it is to have for the job's deadline; empty for the best.
    """

    node: AgentId
    target: str
    start: int
    finish: int
    made: int
    variant: str = ""

    def place(self, now: int) -> Place:
        """The same in seconds from now."""
        return Place(self.node, self.target, (self.start - now) / NANOS, (self.finish - now) / NANOS, self.variant)

    def __str__(self) -> str:
        return f"{self.node} ({self.target}){f' as {self.variant}' if self.variant else ''}"


class Stood(NamedTuple):
    """A stage was given out by, or aside of, a plan that was so old. `aside`: why not where it says; empty if it is."""

    age_seconds: float
    aside: str


@dataclass(slots=True)
class Guide:
    """The plan of one job, as far as there is one. Made anew after a restart, never journaled.

    `began`: when the job was accepted, or taken up again if it was `resumed`. `holds`: until when its stages had better not go
    ahead of their upstreams, or stand in line, if the first plan is not there before; 0 if they may.
    `hurries`: whether it has a deadline, and stages that have variants: plans may choose lesser ones for it. `series`: of which it is a
    round, and is placed by the plan for its period.
    """

    began: int
    resumed: bool = False
    holds: int = 0
    hurries: bool = False
    series: Series | None = None
    places: dict[StageId, Advice] = field(default_factory=dict)
    #: of a job that was taken up again, until its first plan: lesser variants that stages had which are alike
    alike: dict[StageId, str] = field(default_factory=dict)
    #: of stages with advice that were given out
    stood: dict[StageId, Stood] = field(default_factory=dict)
    #: how many stages had advice when they were placed, and how many went where it said
    advised_count: int = 0
    followed_count: int = 0
    #: of the last plan that was asked for: its number, when, of which stages, and whether there is no answer yet
    number: int = 0
    asked: int = 0
    asked_of: Mapping[StageId, StageSpec] = field(default_factory=dict)
    pending: bool = False
    #: when it was last looked at whether there is anything to plan
    looked: int = 0
    #: why another one is wanted, empty if none is; and before when it is not asked for
    wanted: str = ""
    due: int = 0
    #: of the last plan: when all ends by it, from when it is, what found it, and why it was made
    ends: int = 0
    made: int = 0
    method: str = ""
    why: str = ""
    #: how many plans there were, and in how many seconds from `began` the first had all ended
    count: int = 0
    first_seconds: float = 0.0
    #: why there is no plan, of the last that was asked for
    refusal: str = ""

    def advised(self, stage: StageId, now: int) -> Advised | None:
        """What the plan says of a stage; None if it says nothing."""
        found = self.places.get(stage)
        if found is None:
            return None
        slack = limits.PLAN_ASIDE_SECONDS + limits.PLAN_ASIDE_SHARE * (self.ends - self.made) / NANOS
        return Advised(found.node, found.target, (found.finish - now) / NANOS, slack)

    def variant(self, stage: StageId) -> str:
        """The variant that the plan has a stage in for the job's deadline, or period; empty for the best.

        After a restart, until there is a plan again, that which the last stage like it had.
        """
        found = self.places.get(stage) if self.hurries or self.series is not None else None
        return found.variant if found is not None else self.alike.get(stage, "")

    def look(self, ends: int) -> int:
        """When to plan anew, whatever goes as planned, where the job's deadline `ends` then."""
        share = round(limits.PLAN_LOOK_SHARE * max(0, ends - self.looked))
        return self.looked + max(share, round(limits.PLAN_EVERY_SECONDS * NANOS))

    def after_seconds(self, stage: StageId, now: int) -> float:
        """In how many seconds the plan has a stage start, below 0 where that has passed; 0 if it says nothing."""
        found = self.places.get(stage)
        if found is None:
            return 0.0
        return min(max((found.start - now) / NANOS, -limits.PLAN_ORDER_SECONDS_MAX), limits.PLAN_ORDER_SECONDS_MAX)

    def awaited_until(self, now: int) -> int | None:
        """Until when stages had better not go ahead, or stand in line, for the first plan may still come; None if they may."""
        # After a restart the planner may be on its way: then another plan is wanted at once.
        if self.count or (self.refusal and not self.resumed) or not (self.pending or self.wanted):
            return None
        return self.holds if now < self.holds else None

    def placed(self, stage: StageId, aside: str, now: int) -> None:
        """A stage was given out; `aside`: why it is not where it was advised, empty if it is."""
        advice = self.places.get(stage)
        if advice is None:
            return
        self.advised_count += 1
        self.followed_count += not aside
        self.stood[stage] = Stood((now - advice.made) / NANOS, aside)

    def take(self, given: Planned, stages: Mapping[StageId, StageSpec]) -> list[StageId]:
        """A plan is there, or none; the stages that are to have other variants than before. `stages`: the job's, as they are now.

        What it says of a stage that has changed, or was added, since it was asked for is no advice on that.
        """
        self.pending = False
        self.refusal = given.refusal or given.nonsense()
        if given.again and self.asked - self.began < _ANSWER:
            return []
        before = {name: self.variant(name) for name in {**given.places, **self.alike}} if self.hurries else {}
        self.alike.clear()
        if self.refusal:
            return [name for name, variant in before.items() if self.variant(name) != variant]
        self.forget([name for name in self.places if name not in stages])
        for name, place in given.places.items():
            if name in stages and stages[name] == self.asked_of.get(name):
                start, finish = (self.asked + round(seconds * NANOS) for seconds in (place.start, place.finish))
                self.places[name] = Advice(place.node, place.target, start, finish, self.asked, place.variant)
                self.stood.pop(name, None)
        self.made, self.ends = self.asked, self.asked + round(given.ends * NANOS)
        self.method = given.method
        self.count += 1
        if self.count == 1:
            self.first_seconds = (self.ends - self.began) / NANOS
        return [name for name, variant in before.items() if self.variant(name) != variant]

    def follow(self, series: Series, stages: Mapping[StageId, StageSpec]) -> list[StageId]:
        """The series has a plan; the stages that are to have other variants than before. `stages`: the job's, as they are now.

        Of a stage that was given out what was said of it stays, and of one that has changed nothing is said.
        """
        plan = {
            name: place
            for name, place in series.places.items()
            if name not in self.stood and name in stages and stages[name] == series.constellation.stages.get(name)
        }
        changed = [name for name, place in plan.items() if self.variant(name) != place.variant]
        for name, place in plan.items():
            start, finish = (self.began + round(seconds * NANOS) for seconds in (place.start, place.finish))
            self.places[name] = Advice(place.node, place.target, start, finish, series.made, place.variant)
        self.made, self.ends = self.began, self.began + round(series.ends * NANOS)
        self.count, self.first_seconds = 1, series.ends
        return changed

    def give_up(self, refusal: str) -> None:
        """No plan has come."""
        self.pending, self.refusal = False, refusal
        self.alike.clear()

    def forget(self, stages: Iterable[StageId]) -> None:
        """Stages are gone, or not what they were when the plan was asked for: it says nothing of them any more."""
        for name in stages:
            self.places.pop(name, None)
            self.stood.pop(name, None)
            self.alike.pop(name, None)

    def drifts(self, stage: StageId, now: int, share: float, seconds: float) -> bool:
        """Whether the end of a stage is off its plan by more than both bounds: a share of the plan, and seconds."""
        advice = self.places.get(stage)
        if advice is None:
            return False
        return abs(now - advice.finish) > max(share * (self.ends - self.made), seconds * NANOS)

    def told(self, now: int, waiting: Iterable[StageId]) -> str:
        """The plan in a line, while its job runs. `waiting`: the stages that have no variant yet."""
        if self.series is not None:
            return self.series.told(now)
        if not self.count:
            return f"there is none: {self.refusal}" if self.refusal else "it is being made" if self.pending else ""
        left, age = max(0, self.ends - now) / NANOS, (now - self.made) / NANOS
        again = f"; made {self.count} times, last because {self.why}" if self.count > 1 else ""
        last = f"; the last is none: {self.refusal}" if self.refusal else ""
        count = sum(bool(self.variant(name)) for name in waiting)
        stages = f"{count} stage{'s' if count > 1 else ''} to come in lesser variants for its deadline"
        lesser = f", with {stages}" if count else ""
        return f"all ends in {left:.2f} s{lesser}, by a plan of {age:.2f} s ago{again}{last}"

    def outcome(self, now: int) -> str:
        """What the first plan had said, beside what the job then took; empty if there was none."""
        if not self.count:
            return ""
        took = (now - self.began) / NANOS
        went = f"{self.followed_count} of {self.advised_count} stages with a plan went where it said"
        if self.series is not None:
            return f"{self.series.foretold()}; it took {took:.2f} s, and {went}"
        since = "the restart" if self.resumed else "its acceptance"
        plans = "" if self.count == 1 else f", {self.count} plans in all"
        first = f"the first plan had all end {self.first_seconds:.2f} s after {since}, and it took {took:.2f} s"
        return f"{first}; {went}{plans}"

    def of_stage(self, stage: StageId, now: int) -> str:
        """Where the plan has a stage and how old it is, or was when the stage was given out; and why that is elsewhere, if it is."""
        advice = self.places.get(stage)
        if advice is None:
            return ""
        where, stood = str(advice), self.stood.get(stage)
        if stood is None:
            return f"{where}, by a plan of {(now - advice.made) / NANOS:.2f} s ago"
        if not stood.aside:
            return f"{where}, where it went by a plan of {stood.age_seconds:.2f} s before"
        return f"{where} by a plan of {stood.age_seconds:.2f} s before, but {stood.aside}"
