"""Random jobs with stages that grow, on a failing fleet: grown once, the same with and without trouble, and replayed alike."""

from random import Random

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.orchestrator.harness import KINDS
from tests.orchestrator.test_coordinator_property import (
    Chaos,
    always_fails,
    check_consistent,
    outcome,
    poisoned,
    random_constellation,
    undisturbed,
)
from tests.orchestrator.test_patch_property import Patches

from starloom.dag.constellation import Constellation, Join, StageSpec
from starloom.dag.facts import Fact, JobStatus, StageCommitted
from starloom.dag.ids import JobId, StageId
from starloom.dag.validate import problems

JOB = JobId("job")
STEPS = 120


def growing(random: Random, joins: tuple[Join, ...]) -> Constellation:
    """A random constellation of which most plain stages grow, by workers or by rounds."""
    found = random_constellation(random, joins)
    stages: dict[StageId, StageSpec] = {}
    for name, spec in found.stages.items():
        grows = spec.kind == "t.work" and random.random() < 0.9
        params = random.choice(({"adds": 1}, {"adds": 3}, {"rounds": 1}, {"rounds": 3}, {}))
        stages[name] = msgspec.structs.replace(spec, kind="t.grow", params=params) if grows else spec
    grown = msgspec.structs.replace(found, stages=stages)
    assert not problems(grown, KINDS)
    return grown


class Growths(Chaos):
    """Trouble, in which every result and its growth are looked at."""

    def follow(self, fact: Fact) -> None:
        super().follow(fact)
        if isinstance(fact, StageCommitted) and fact.growth is not None:
            job = self.shadow.jobs[fact.job]
            job.validate()
            assert job.revision == fact.growth.revision
            assert problems(job.constellation, KINDS) == []
            fresh = [change.stage for change in fact.growth.difference.stages if change.before is None]
            assert all(name.startswith(fact.stage.partition("-")[0]) for name in fresh)

    def fail(self) -> None:
        """As before, but agents may still have attempts of stages that were taken back."""
        if all(task.stage in self.world.job(task.job).stages for _, task in self.busy()):
            super().fail()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_grows_ends_as_if_undisturbed(seed: int) -> None:
    random = Random(seed)
    constellation = growing(random, (Join.ALL,))
    failing = always_fails(constellation, random)
    chaos = Growths(random, constellation, failing)
    chaos.world.submit(constellation, job=JOB, max_parallel=random.choice((0, 0, 2)))
    for _ in range(STEPS):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if not poisoned(chaos.world, JOB):
        assert outcome(chaos.world, JOB) == outcome(undisturbed(constellation, failing), JOB)
    grown = [fact for fact in chaos.world.facts if isinstance(fact, StageCommitted) and fact.growth is not None]
    assert len({(fact.job, fact.stage) for fact in grown}) == len(grown), "a recompute grew twice"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_growth_is_consistent_though_attempts_differ(seed: int) -> None:
    random = Random(seed)
    constellation = growing(random, (Join.ALL, Join.ALL, Join.ANY))
    chaos = Growths(random, constellation, always_fails(constellation, random), fickle=0.4)
    chaos.world.submit(constellation, job=JOB)
    for _ in range(STEPS):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if chaos.world.job(JOB).status is JobStatus.SUCCEEDED:
        check_consistent(chaos.world, JOB)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_growth_and_patches_of_people_meet(seed: int) -> None:
    random = Random(seed)
    constellation = growing(random, (Join.ALL, Join.ALL, Join.ANY))
    chaos = Patches(random, constellation, always_fails(constellation, random), fickle=0.2)
    chaos.world.submit(constellation, job=JOB)
    for _ in range(STEPS):
        chaos.step()
    chaos.settle()
    if chaos.world.job(JOB).status is JobStatus.SUCCEEDED:
        check_consistent(chaos.world, JOB)
