"""Runs with advice: whatever plans say, every promise holds, and without them nothing is as it would not have been."""

import json
from typing import Any

import msgspec
import pytest

from starloom.dag import limits
from starloom.dag.stagestate import StageStatus
from starloom.devices.faults import ALL_FAULTS, NO_FAULTS, FaultKind, FaultPlan
from starloom.orchestrator.advice import Planned, PlanWanted
from starloom.orchestrator.cli import main as cli
from starloom.orchestrator.guide import Guide
from starloom.orchestrator.planner.live import advise
from starloom.orchestrator.simulate import runs
from starloom.orchestrator.simulate.advising import Adviser
from starloom.orchestrator.simulate.world import Parts, Setup, World, usual

#: Jobs have groups that stand apart only where no client changes them.
UNCHANGED = FaultPlan(
    name="unchanged",
    faults=tuple(fault for fault in ALL_FAULTS.faults if fault.what is not FaultKind.CLIENT_PATCHES),
)


class Followed:
    """How often stages were given out by advice, aside of it, and without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by = self.aside = self.lesser = self.rounds = 0
        plain = Guide.placed

        def placed(guide: Guide, stage: Any, aside: str, now: int) -> None:
            if stage in guide.places:
                self.by += not aside
                self.aside += bool(aside)
                self.lesser += bool(guide.variant(stage))
                self.rounds += guide.series is not None
            plain(guide, stage, aside, now)

        monkeypatch.setattr(Guide, "placed", placed)


@pytest.mark.parametrize(("plan", "first"), [(ALL_FAULTS, 1), (ALL_FAULTS, 101), (UNCHANGED, 1), (UNCHANGED, 101)])
def test_every_property_holds_whatever_is_advised(plan: FaultPlan, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(monkeypatch)
    # Their jobs are brief: of these too what would stand in line waits for the first plan.
    monkeypatch.setattr(limits, "PLAN_FIRST_WORK_SECONDS_MIN", 0.0)
    monkeypatch.setattr(limits, "PLAN_KNOWN_SHARE", 0.0)
    for seed in range(first, first + 40):
        result = runs.run(seed, Setup(nodes=5, stages=15, jobs=2, plan=plan, advised=True))
        assert result.violations == (), f"seed {seed}"
    assert followed.by > 20
    assert followed.aside > 20
    assert followed.rounds > 10


def test_variants_are_taken_by_advice_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(monkeypatch)
    monkeypatch.setattr(limits, "PLAN_KNOWN_SHARE", 0.0)
    monkeypatch.setattr(limits, "PLAN_LIVE_WORK_SECONDS_MIN", 0.0)
    placed = 0
    for seed in range(1, 41):
        world = World(seed, Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS, advised=True))
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
        placed += sum(given.variant.startswith("less") for given in world.judge.placed.values())
    assert followed.lesser > 10
    assert placed > 10


def test_groups_stand_apart_and_follow_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(monkeypatch)
    apart = 0
    for seed in range(1, 41):
        world = World(seed, Setup(nodes=5, stages=15, jobs=2, plan=NO_FAULTS, advised=True))
        world.run()
        assert world.judge.violations == []
        for job in world.judge.jobs.values():
            group = [stage for stage in job.stages.values() if stage.spec.spread is not None]
            apart += sum(stage.status is StageStatus.SUCCEEDED for stage in group)
    assert apart > 30
    assert followed.by > 20


def test_advice_changes_a_run_and_its_seed_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    setup = Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS)
    plain, advised = ([runs.run(seed, each).digest for seed in (1, 2, 3)] for each in (setup, _advised(setup)))
    assert plain != advised
    for option, digests in ((), plain), (("--planner", "drawn"), advised):
        command = ["simulate", "--seed", "3", "--nodes", "5", "--stages", "15", "--jobs", "2", "--json", *option]
        assert cli.main(command) == 0
        assert json.loads(capsys.readouterr().out)["digest"] == digests[2]


def _advised(setup: Setup) -> Setup:
    return Setup(nodes=setup.nodes, stages=setup.stages, jobs=setup.jobs, plan=setup.plan, advised=True)


class Planner(Adviser):
    """The real one, as quick as it usually is."""

    def answers(self, wanted: PlanWanted) -> Any:
        seen = msgspec.json.decode(msgspec.json.encode(wanted), type=PlanWanted)
        yield 0.05, advise(seen, iterations=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_planner_knows_what_to_say_of_every_job_whatever_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is told of is always a problem that it can plan, or one of which it says why there is no plan."""
    refused: list[str] = []
    answers = 0
    monkeypatch.setattr(limits, "PLAN_KNOWN_SHARE", 0.0)

    class Watched(Planner):
        def answers(self, wanted: PlanWanted) -> Any:
            nonlocal answers
            for seconds, planned in super().answers(wanted):
                answers += 1
                if planned.refusal:
                    refused.append(planned.refusal)
                assert not planned.nonsense()
                _fits(wanted, planned)
                yield seconds, planned

    followed = Followed(monkeypatch)
    setup = Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS, advised=True)
    for seed in range(1, 31):
        world = World(seed, setup, Parts(coordinator=usual(setup).coordinator, adviser=Watched))
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
    assert answers > 50
    assert followed.by > followed.aside
    assert all("no place" in each or "cannot be" in each for each in refused), refused


def _fits(wanted: PlanWanted, planned: Planned) -> None:
    """It plans what waits, on nodes that take something."""
    takes = {node.profile.name for node in wanted.nodes if node.takes}
    for name, place in planned.places.items():
        assert name not in wanted.standing
        assert place.node in takes
