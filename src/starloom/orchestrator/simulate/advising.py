"""Plans that are worth nothing: whatever they advise, every promise has to hold. None is made by the real planner.

And jobs with more that a plan may go against: groups of stages of which no two may share a node, deadlines of such
as have variants, and rounds of one job.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from starloom.dag.constellation import Requirements, Spread, StageSpec
from starloom.dag.ids import AgentId, StageId
from starloom.orchestrator.advice import Place, Planned, PlannedRounds, PlanWanted
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import KINDS, STREAMING
from starloom.orchestrator.simulate.private import has_labels
from starloom.orchestrator.simulate.workload import Work, varied

GIVEN: Final = 0.9
"""In so many of all advised runs plans are given; in the others nobody answers."""
GROUP_STAGES: Final = 3
"""Of a group that stands apart: each has a node also where some are not there when the job is submitted."""
NODES_GONE: Final = (AgentId("gone-1"), AgentId("gone-2"))
TARGETS: Final = ("cpu", "cpu", "cpu", "npu")
LATE_SECONDS: Final = (0.001, 0.001, 0.1, 3.0)


def apart(chance: Chance, given: Work) -> Work:
    """The same job, or one with a group of stages that stands apart; not of one with private data, which fewer nodes may have."""
    constellation = given.constellation
    if has_labels(constellation) or not chance.happens(0.7):
        return given
    stages = dict(constellation.stages)
    free = [name for name, spec in stages.items() if _may_stand_apart(spec)]
    for name in chance.sample(free, GROUP_STAGES):
        stages[name] = msgspec.structs.replace(stages[name], spread=Spread(group="apart"))
    return given._replace(constellation=msgspec.structs.replace(constellation, stages=stages))


def _may_stand_apart(spec: StageSpec) -> bool:
    """Of a group a copy might stand with another, and what streams, or grows, has its own say on where it stands."""
    alone = spec.kind not in STREAMING and not KINDS[spec.kind].grows and spec.policy.straggler is None
    return alone and spec.requires == Requirements()


def due(chance: Chance, given: Work, tiers: int) -> Work:
    """The same job, or one with a deadline for which plans choose among variants: its own, or some of these."""
    if given.options.deadline_seconds or not chance.happens(0.6):
        return given
    if not any(spec.variants for spec in given.constellation.stages.values()):
        given = varied(chance, given, tiers, 1.0)
    return given._replace(options=msgspec.structs.replace(given.options, deadline_seconds=chance.pick((20.0, 200.0))))


def again(chance: Chance, jobs: Sequence[Work]) -> list[Work]:
    """The same jobs, or the first of them twice, as rounds that are planned for a period."""
    if len(jobs) < 2 or not chance.happens(0.4):
        return list(jobs)
    constellation = msgspec.structs.replace(
        jobs[0].constellation,
        every_seconds=chance.pick((0.5, 5.0)),
        # With one of its own it would be planned by itself.
        deadline_seconds=jobs[0].options.deadline_seconds,
    )
    first = jobs[0]._replace(constellation=constellation)
    return [first, first, *jobs[2:]]


class Adviser:
    """Answers as a planner does at worst: late, twice, of another time, with what cannot be, or places drawn at random."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._gives = chance.happens(GIVEN)

    def answers(self, wanted: PlanWanted) -> Iterator[tuple[float, Planned]]:
        """What comes of a plan that is wanted, each after so many seconds."""
        chance = self._chance
        if not self._gives or chance.happens(0.1):
            return
        for _ in range(2 if chance.happens(0.2) else 1):
            yield chance.between(0, chance.pick(LATE_SECONDS)), self._drawn(wanted)

    def _drawn(self, wanted: PlanWanted) -> Planned:
        chance = self._chance
        number = wanted.number if chance.happens(0.9) else chance.below(wanted.number + 2)
        if chance.happens(0.1):
            return Planned(job=wanted.job, number=number, refusal="there is none", again=chance.happens(0.5))
        places = {
            name: self._place(wanted, wanted.constellation.stages.get(name))
            for name in (*wanted.constellation.stages, StageId("gone"))
            if chance.happens(0.8)
        }
        ends = 1e300 if chance.happens(0.05) else chance.between(0, 60)
        rounds = self._rounds(wanted) if wanted.rounds else None
        return Planned(job=wanted.job, number=number, places=places, ends=ends, method="drawn", rounds=rounds)

    def _rounds(self, wanted: PlanWanted) -> PlannedRounds:
        chance = self._chance
        busy = {node.profile.name: chance.pick((0.0, 0.3, 1e6)) for node in wanted.nodes}
        return PlannedRounds(holds=chance.happens(0.5), least=chance.between(0, 9), p95=chance.between(0, 9), busy=busy)

    def _place(self, wanted: PlanWanted, spec: StageSpec | None) -> Place:
        chance = self._chance
        # Whether it may be, or is the one that the stage has, is not looked at.
        variant = chance.pick(("", "none", *(each.name for each in spec.variants))) if spec and spec.variants else ""
        node = chance.pick((*(node.profile.name for node in wanted.nodes), *NODES_GONE))
        start = chance.between(-5, 30)
        # With a finish far off nothing counts as later than planned: such advice is followed wherever it can be.
        return Place(node, chance.pick(TARGETS), start, start + chance.pick((0.0, 1.0, 1_000.0)), variant)
