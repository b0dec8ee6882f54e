"""Random patches of random jobs on a failing fleet: each is answered, none is half taken, and what it makes is what runs."""

from random import Random
from typing import Any

from hypothesis import HealthCheck, example, given, settings
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

from starloom.agents.messages import Revoked
from starloom.dag.constellation import Constellation, Dependency, Join, On, OutputBinding, Requirements, StageSpec, Tier
from starloom.dag.facts import JobPatched, JobStatus
from starloom.dag.ids import JobId, StageId
from starloom.dag.patch import (
    Add,
    AnyOperation,
    CancelStage,
    Move,
    Patch,
    Remove,
    Replace,
    ResumeStage,
    Rewire,
    SetOutputs,
)
from starloom.dag.validate import problems
from starloom.orchestrator.effects import Patched
from starloom.orchestrator.inputs import PatchJob

JOB = JobId("job")
STEPS = 120


class Patches(Chaos):
    """Trouble with patches in between."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        #: requests that no restart can have lost
        self.asked: set[int] = set()

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.15:
            self.patch()
        elif choice < 0.3:
            self.give_back()
        else:
            super().step()

    def restart(self) -> None:
        self.asked.clear()
        super().restart()

    def fail(self) -> None:
        """As before, but agents may still have attempts of stages that a patch removed."""
        if all(task.stage in self.world.job(task.job).stages for _, task in self.busy()):
            super().fail()

    def give_back(self) -> None:
        for agent, task in self.busy():
            if task in agent.revoking and self.random.random() < 0.7:
                self.report(agent, Revoked(task=task))

    def patch(self) -> None:
        job = self.world.job(JOB)
        before = job.constellation
        operations = [self.operation(before) for _ in range(self.random.randint(1, 3))]
        patch = Patch(
            operations=tuple(operations),
            restart=self.random.random() < 0.4,
            if_revision=self.random.choice((0, 0, 0, job.revision, 1)),
            id=self.random.choice(("", "", "one", "two")),
        )
        self.world.request += 1
        request = self.world.request
        self.asked.add(request)
        decision = self.world.handle(PatchJob(request=request, job=JOB, patch=patch))
        if not any(isinstance(fact, JobPatched) for fact in decision.facts):
            assert self.world.job(JOB).constellation == before
        assert problems(self.world.job(JOB).constellation, KINDS) == []

    def operation(self, constellation: Constellation) -> AnyOperation:
        names = list(constellation.stages)
        name, other = self.random.choice(names), self.random.choice(names)
        fresh = StageId(f"n{self.random.randint(0, 5)}")
        spec = StageSpec(id=fresh, kind="t.work", params={"seed": self.random.randint(0, 3)})
        on = self.random.choice((On.SUCCESS, On.COMPLETION))
        output = next(iter(KINDS[constellation.stages[other].kind].outputs))
        data: dict[str, Any] = (
            {"output": output, "input": f"from_{other}"} if output == "value" and self.random.random() < 0.7 else {}
        )
        tier = self.random.choice(list(Tier))
        return self.random.choice(
            (
                Add(stages=(spec,), dependencies=(Dependency(upstream=other, downstream=fresh, on=on, **data),)),
                Replace(stage=name, kind="t.work", params={"seed": self.random.randint(0, 3)}),
                Move(stage=name, requires=Requirements(tiers=(tier,) if self.random.random() < 0.5 else ())),
                CancelStage(stage=name),
                ResumeStage(stage=name),
                Remove(stage=name),
                Rewire(stage=name, waits=(Dependency(upstream=other, downstream=name, on=on),)),
                Rewire(stage=name, dependencies=(Dependency(upstream=other, downstream=name, on=on, **data),)),
                Rewire(stage=name, after=(), join=self.random.choice(list(Join))),
                SetOutputs(outputs={f"o-{other}": self.output(other, output)}),
            )
        )

    def output(self, stage: StageId, port: str) -> Any:
        return OutputBinding(upstream=stage, output=port) if self.random.random() < 0.8 else None

    def settle(self) -> None:
        self.calm()
        self.world.check_replay()
        for request in self.asked:
            assert request in self.world.answers, f"patch {request} was never answered"
        answers = [answer for answer in self.world.answers.values() if isinstance(answer, Patched)]
        revisions = {answer.revision for answer in answers if not answer.existing}
        assert revisions <= set(range(2, self.world.job(JOB).revision + 1))


def run(seed: int, joins: tuple[Join, ...], fickle: float) -> tuple[Patches, dict[str, bool]]:
    random = Random(seed)
    constellation = random_constellation(random, joins)
    failing = always_fails(constellation, random)
    chaos = Patches(random, constellation, failing, fickle=fickle)
    chaos.world.submit(constellation, job=JOB, max_parallel=random.choice((0, 0, 2)))
    for _ in range(STEPS):
        chaos.step()
    chaos.settle()
    return chaos, failing


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_was_patched_ends_as_if_it_had_been_submitted_so(seed: int) -> None:
    chaos, failing = run(seed, (Join.ALL,), 0.0)
    job = chaos.world.job(JOB)
    orderly = all(stage.join is Join.ALL for stage in job.constellation.stages.values())
    if orderly and job.status is JobStatus.SUCCEEDED and not poisoned(chaos.world, JOB):
        assert outcome(chaos.world, JOB) == outcome(undisturbed(job.constellation, failing), JOB)


@given(seed=st.integers(0, 2**32))
@example(seed=1525)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_results_rest_on_the_patched_constellation(seed: int) -> None:
    chaos, _ = run(seed, (Join.ALL, Join.ALL, Join.ANY), 0.5)
    if chaos.world.job(JOB).status is JobStatus.SUCCEEDED:
        check_consistent(chaos.world, JOB)
