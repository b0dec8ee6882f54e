"""Random constellations on a failing fleet: every accepted job ends, with the outputs of an undisturbed run."""

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.orchestrator.harness import KINDS, FakeAgent, World, node

from starloom.agents.messages import Failed, InputLost, Report, Started
from starloom.dag.constellation import (
    Comparison,
    Constellation,
    Dependency,
    Join,
    On,
    OnFailure,
    OutputBinding,
    Policy,
    Requirements,
    Retry,
    StageSpec,
    Straggler,
    Tier,
)
from starloom.dag.facts import ErrorInfo, Fact, JobStatus, StageCommitted, StagePlaced, StageSuperseded
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.dag.job import JobState
from starloom.dag.stagestate import ENDED, StageStatus
from starloom.dag.validate import problems
from starloom.orchestrator.effects import Decision, Stopped
from starloom.orchestrator.inputs import AgentHeartbeat, AgentReports, Input
from starloom.orchestrator.lineage import Verdict, verdict
from starloom.orchestrator.placement import EarliestFinish
from starloom.orchestrator.state import State

TIERS = (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)
STEPS_OF_TROUBLE = 120
EXPLAINED_EVERY = 5


def random_constellation(random: Random, joins: tuple[Join, ...] = (Join.ALL,)) -> Constellation:
    """A valid constellation of up to 30 stages with conditions, policies and requirements."""
    count = random.randint(1, 30)
    stages: dict[StageId, StageSpec] = {}
    dependencies: list[Dependency] = []
    names = [StageId(f"s{index}") for index in range(count)]
    for index, name in enumerate(names):
        kind = random.choice(("t.work", "t.blob", "t.blob", "t.judge"))
        policy = Policy(
            retry=Retry(times=random.randint(0, 2)),
            on_failure=OnFailure.DEFAULT
            if kind != "t.blob" and random.random() < 0.2
            else random.choice((OnFailure.FAIL, OnFailure.SKIP, OnFailure.SKIP)),
        )
        if policy.on_failure is OnFailure.DEFAULT:
            policy = Policy(retry=policy.retry, on_failure=OnFailure.DEFAULT, defaults={"value": {"score": 0}})
        if random.random() < 0.3:
            policy = msgspec.structs.replace(policy, straggler=Straggler(factor=1.0, after_seconds=0.2))
        stages[name] = StageSpec(
            id=name,
            kind=kind,
            params={"seed": index} if kind == "t.work" else {"score": index % 3} if kind == "t.judge" else {},
            requires=Requirements(tiers=(random.choice(TIERS),) if random.random() < 0.2 else ()),
            policy=policy,
            join=random.choice(joins),
        )
        upstreams = random.sample(names[:index], min(index, random.randint(0, 3)))
        dependencies.extend([_arc(random, stages, upstream, name) for upstream in upstreams])
    outputs = {}
    for name in random.sample(names, random.randint(0, min(3, count))):
        outputs[f"o-{name}"] = OutputBinding(upstream=name, output=next(iter(KINDS[stages[name].kind].outputs)))
    return Constellation(name="random", stages=stages, dependencies=tuple(dependencies), outputs=outputs)


def _arc(random: Random, stages: dict[StageId, StageSpec], upstream: StageId, downstream: StageId) -> Dependency:
    kinds = stages[upstream].kind, stages[downstream].kind
    blobs = [kind == "t.blob" for kind in kinds]
    port = "data" if blobs[0] else "value"
    with_data = blobs[0] == blobs[1] and random.random() < 0.8
    names = {"output": port, "input": f"from_{upstream}"} if with_data else {}
    on = random.choice((On.SUCCESS, On.SUCCESS, On.COMPLETION))
    comparison = None
    if kinds[0] == "t.judge" and random.random() < 0.5:
        on = On.COMPARISON
        comparison = Comparison(output="value", path="score", operator=">=", value=random.randint(0, 2))
    return Dependency(upstream=upstream, downstream=downstream, on=on, comparison=comparison, **names)


def always_fails(constellation: Constellation, random: Random) -> dict[str, bool]:
    """Stages that fail in every attempt, as a property of the constellation, so that runs can be compared."""
    return {name: True for name in constellation.stages if random.random() < 0.04}


class Chaos:
    """Drives a world by random events."""

    def __init__(
        self, random: Random, constellation: Constellation, failing: dict[str, bool], fickle: float = 0.0
    ) -> None:
        self.random = random
        self.constellation = constellation
        self.failing = failing
        #: how likely an attempt gives something else than the one before
        self.fickle = fickle
        self.world = World(
            node("cloud", Tier.CLOUD), node("device", Tier.DEVICE), node("edge-1"), node("edge-2"), delegate=True
        )
        self.sent: list[tuple[FakeAgent, Report]] = []
        self.committed: set[TaskToken] = set()
        self.live: set[TaskToken] = set()
        self.transient_failures: dict[tuple[JobId, StageId], int] = {}
        self.jobs = self.decisions = 0
        #: what the facts alone tell, one after another
        self.shadow = State(EarliestFinish())
        for fact in self.world.facts:
            self.shadow.apply(fact)
        self.world.watch = self.check

    def check(self, decision: Decision) -> None:
        """Every commit comes from a live token, once."""
        for fact in decision.facts:
            self.follow(fact)
        self.decisions += 1
        for job in () if self.decisions % EXPLAINED_EVERY else self.world.coordinator._state.open.values():
            self.check_reasons(job)

    def check_reasons(self, job: JobState) -> None:
        """Whatever is open has something that it waits for."""
        for name, stage in job.stages.items():
            waits = self.world.coordinator.waits_for(job.id, name)
            assert bool(waits) == (stage.status not in ENDED), f"{name}: {stage!r} waits for {waits!r}"

    def follow(self, fact: Fact) -> None:
        if isinstance(fact, StagePlaced):
            wanted = Verdict.AHEAD if fact.awaits else Verdict.RUN
            assert verdict(self.shadow.jobs[fact.job], fact.stage) is wanted
            task = TaskToken(fact.job, fact.stage, fact.token)
            assert task not in self.live
            assert task not in self.committed
            self.live.add(task)
        elif isinstance(fact, StageCommitted):
            task = TaskToken(fact.job, fact.stage, fact.token)
            assert task in self.live
            self.live.discard(task)
            self.committed.add(task)
        elif isinstance(fact, StageSuperseded):
            self.live.discard(TaskToken(fact.job, fact.stage, fact.token))
        self.shadow.apply(fact)

    def step(self) -> None:
        """One random event."""
        events: list[tuple[int, Any]] = [
            (20, self.finish),
            (12, self.hurry),
            (8, self.arrive),
            (8, self.start),
            (4, self.fail),
            (4, self.lose_input),
            (5, self.repeat),
            (3, self.burst),
            (1, self.misread),
            (1, self.other_job),
            (1, self.cancel_other),
            (3, self.die),
            (3, self.silence),
            (4, self.reconnect),
            (3, self.forget),
            (2, self.restart),
            (12, self.pass_time),
        ]
        event = self.random.choices([event for _, event in events], [weight for weight, _ in events])[0]
        event()
        self.world.acknowledge_cancels()

    def busy(self) -> list[tuple[FakeAgent, TaskToken]]:
        """The attempts that agents have and that wait for no others."""
        return [
            (agent, task)
            for agent in self.world.agents.values()
            for task, assign in agent.tasks.items()
            if agent.connected and self.world.may_start(assign)
        ]

    def report(self, agent: FakeAgent, report: Report) -> None:
        self.sent.append((agent, report))
        self.world.report(agent, report)

    def finish(self) -> None:
        if busy := self.busy():
            self.complete(*self.random.choice(busy))

    def complete(self, agent: FakeAgent, task: TaskToken) -> None:
        """What really becomes of an attempt: missing inputs are lost, a stage that always fails fails."""
        assign = self.world.whole(agent.tasks[task])
        for item in assign.inputs:
            if item.ref.inline is not None or not item.address:
                continue
            holder = self.world.agents[item.ref.holder]
            if not holder.connected or (task.job, item.ref.digest) not in holder.held:
                lost = InputLost(
                    task=task, upstreams=(item.consumed.upstream,), reason="not there", gone=holder.connected
                )
                self.report(agent, lost)
                return
        if task.stage in self.failing:
            self.report(agent, _failure(task))
        else:
            salt = str(task.token) if self.random.random() < self.fickle else ""
            self.report(agent, agent.result(assign, salt))

    def hurry(self) -> None:
        """An attempt finishes, and others may read what it gave before its report arrives."""
        busy = [(agent, task) for agent, task in self.busy() if task.stage not in self.failing]
        if busy:
            agent, task = self.random.choice(busy)
            report = agent.unsent[task] = agent.result(self.world.whole(agent.tasks.pop(task)))
            self.world.made[task] = report

    def arrive(self) -> None:
        """A report that was on its way arrives."""
        for agent in self.world.agents.values():
            if agent.connected and agent.unsent:
                task = self.random.choice(list(agent.unsent))
                self.report(agent, agent.unsent.pop(task))
                return

    def start(self) -> None:
        if busy := self.busy():
            agent, task = self.random.choice(busy)
            self.report(agent, Started(task=task))

    def fail(self) -> None:
        """A transient failure, no more often than the stage's policy forgives."""
        if busy := self.busy():
            agent, task = self.random.choice(busy)
            times = self.transient_failures.get((task.job, task.stage), 0)
            if times < self.world.stage(task.job, task.stage).spec.policy.retry.times:
                self.transient_failures[task.job, task.stage] = times + 1
                self.report(agent, Failed(task=task, error=ErrorInfo(message="for now", transient=True)))

    def lose_input(self) -> None:
        busy = [(agent, task) for agent, task in self.busy() if self.world.whole(agent.tasks[task]).inputs]
        if busy:
            agent, task = self.random.choice(busy)
            upstreams = tuple({item.consumed.upstream for item in self.world.whole(agent.tasks[task]).inputs})
            lost = InputLost(task=task, upstreams=upstreams, reason="chaos", gone=self.random.random() < 0.5)
            self.report(agent, lost)

    def repeat(self) -> None:
        """Old reports come again, out of order."""
        for agent, report in self.random.sample(self.sent, min(len(self.sent), 3)):
            self.world.handle(AgentReports(agent=agent.name, incarnation=agent.incarnation, reports=(report,)))

    def burst(self) -> None:
        """Much comes at once, in one batch."""
        inputs: list[Input] = []
        for agent, task in self.random.sample(busy := self.busy(), min(len(busy), 6)):
            assign = self.world.whole(agent.tasks.pop(task))
            reports = (Started(task=task), agent.result(assign) if task.stage not in self.failing else _failure(task))
            self.sent.extend((agent, report) for report in reports)
            inputs.append(AgentReports(agent=agent.name, incarnation=agent.incarnation, reports=reports))
        there = [agent for agent in self.world.agents.values() if agent.connected]
        inputs.extend([AgentHeartbeat(agent=agent.name, incarnation=agent.incarnation) for agent in there])
        self.random.shuffle(inputs)
        self.world.handle(*inputs)

    def misread(self) -> None:
        """A result that rests on something else than its inputs."""
        busy = [(agent, task) for agent, task in self.busy() if self.world.whole(agent.tasks[task]).inputs]
        if busy:
            agent, task = self.random.choice(busy)
            report = agent.result(self.world.whole(agent.tasks[task]))
            port = self.random.choice(sorted(report.consumed))
            wrong = msgspec.structs.replace(report.consumed[port], digest="wrong")
            self.report(agent, msgspec.structs.replace(report, consumed={**report.consumed, port: wrong}))

    def other_job(self) -> None:
        self.jobs += 1
        self.world.ask_submit(random_constellation(self.random), job=f"other-{self.jobs}", priority=self.jobs % 2)

    def cancel_other(self) -> None:
        if self.jobs:
            self.world.cancel(f"other-{self.random.randint(1, self.jobs)}")

    def die(self) -> None:
        """An agent's process dies; another one takes its place."""
        name = self.random.choice(sorted(self.world.agents))
        if self.random.random() < 0.5:
            self.world.goodbye(name, "killed")
        self.world.join(self.world.agents[name].profile)

    def silence(self) -> None:
        self.world.silence(self.random.choice(sorted(self.world.agents)))

    def reconnect(self) -> None:
        agent = self.world.agents[self.random.choice(sorted(self.world.agents))]
        self.world.hello(agent)

    def forget(self) -> None:
        """An agent has to drop what it holds."""
        self.world.agents[self.random.choice(sorted(self.world.agents))].held.clear()

    def restart(self) -> None:
        self.world.restart(hello=self.random.random() < 0.7)

    def pass_time(self) -> None:
        self.world.advance(self.random.choice((0.05, 0.3, 1.0, 4.0)))

    def calm(self) -> None:
        """The trouble is over: all agents are there, and whatever they have ends."""
        for agent in self.world.agents.values():
            self.world.hello(agent)
        for _ in range(1_000):
            self.world.acknowledge_cancels()
            busy = self.busy()
            for agent, task in busy:
                if task in agent.tasks and self.world.may_start(agent.tasks[task]):
                    self.complete(agent, task)
            for agent in self.world.agents.values():
                for task in tuple(agent.unsent):
                    # One report may end the job of others, which are forgotten with it.
                    if task in agent.unsent:
                        self.report(agent, agent.unsent.pop(task))
            if not self.world.coordinator._state.open:
                return
            self.world.advance(0.5)
        stuck = {
            (name, stage.spec.id): (stage.status.value, self.world.coordinator.waits_for(name, stage.spec.id))
            for name, state in self.world.coordinator._state.open.items()
            for stage in state.stages.values()
            if stage.status not in ENDED
        }
        raise AssertionError(f"jobs do not end; waiting: {stuck}")


def _failure(task: TaskToken) -> Failed:
    return Failed(task=task, error=ErrorInfo(message="always"))


def undisturbed(constellation: Constellation, failing: dict[str, bool]) -> World:
    """The same job without any trouble."""
    quiet = Chaos(Random(0), constellation, failing)
    quiet.world.submit(constellation, job="job")
    quiet.calm()
    return quiet.world


def outcome(world: World, job: JobId) -> Any:
    """What must be the same with and without trouble."""
    state = world.job(job)
    values = {name: ref.digest for name, ref in state.outputs.items()}
    if state.status is JobStatus.FAILED:
        return state.status
    return state.status, values, {name: stage.status for name, stage in state.stages.items()}


def check_consistent(world: World, job: JobId) -> None:
    """In the end every result rests on the results that counted in the end, and every skip has its reason."""
    state = world.job(job)
    for name, stage in state.stages.items():
        for port, consumed in stage.consumed.items():
            upstream = state.stages[consumed.upstream]
            read = {a.input: a.output for a in state.upstreams[name] if a.upstream == consumed.upstream and a.output}
            assert upstream.outputs[read[port]].digest == consumed.digest, f"{name}.{port} rests on an old result"
        expected = Verdict.SKIP if stage.status is StageStatus.SKIPPED and stage.error is None else Verdict.RUN
        assert verdict(state, name) is expected, f"{name} is {stage.status} against its conditions"


def poisoned(world: World, job: JobId) -> bool:
    """Whether trouble itself used up a stage's bounds."""
    return any(
        stage.error is not None
        and ("at the death of" in stage.error.message or "could not be had" in stage.error.message)
        for stage in world.job(job).stages.values()
    )


@pytest.mark.parametrize("block", range(4))
@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_jobs_end_as_if_undisturbed(block: int, seed: int) -> None:
    random = Random(seed * 4 + block)
    constellation = random_constellation(random)
    assert not problems(constellation, KINDS)
    failing = always_fails(constellation, random)
    chaos = Chaos(random, constellation, failing)
    job = chaos.world.submit(constellation, job="job", max_parallel=random.choice((0, 0, 1, 3)))
    for _ in range(STEPS_OF_TROUBLE):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if not poisoned(chaos.world, job):
        assert outcome(chaos.world, job) == outcome(undisturbed(constellation, failing), JobId("job"))


def plain(constellation: Constellation) -> Constellation:
    """The same with stages that go on by success alone, all of which may go ahead of their upstreams."""
    stages = {
        name: msgspec.structs.replace(
            spec, policy=msgspec.structs.replace(spec.policy, on_failure=OnFailure.FAIL, defaults={})
        )
        for name, spec in constellation.stages.items()
    }
    arcs = tuple(
        msgspec.structs.replace(arc, on=On.SUCCESS) if arc.on is On.COMPLETION else arc
        for arc in constellation.dependencies
    )
    return msgspec.structs.replace(constellation, stages=stages, dependencies=arcs)


@pytest.mark.parametrize("fickle", [0.0, 0.3])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_goes_ahead_ends_as_if_undisturbed(fickle: float, seed: int) -> None:
    random = Random(seed)
    constellation = plain(random_constellation(random))
    chaos = Chaos(random, constellation, {}, fickle=fickle)
    job = chaos.world.submit(constellation, job="job")
    for _ in range(STEPS_OF_TROUBLE):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if chaos.world.job(job).status is JobStatus.SUCCEEDED:
        check_consistent(chaos.world, job)
    if not fickle and not poisoned(chaos.world, job):
        assert outcome(chaos.world, job) == outcome(undisturbed(constellation, {}), JobId("job"))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_results_are_consistent_though_attempts_differ(seed: int) -> None:
    random = Random(seed)
    constellation = random_constellation(random, (Join.ALL, Join.ALL, Join.ANY))
    chaos = Chaos(random, constellation, always_fails(constellation, random), fickle=0.5)
    job = chaos.world.submit(constellation, job="job")
    for _ in range(STEPS_OF_TROUBLE):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if chaos.world.job(job).status is JobStatus.SUCCEEDED:
        check_consistent(chaos.world, job)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_cancelled_job_stops_whatever_happens(seed: int) -> None:
    random = Random(seed)
    constellation = random_constellation(random)
    chaos = Chaos(random, constellation, {})
    world = chaos.world
    job = world.submit(constellation, job="job")
    for _ in range(random.randint(0, 20)):
        chaos.step()
    ended_before = world.job(job).ended
    request = world.cancel(job)
    for _ in range(random.randint(0, 20)):
        chaos.step()
    chaos.calm()
    world.check_replay()
    if not ended_before:
        assert world.job(job).status is JobStatus.CANCELLED
    # A restart forgets who asked: their call has ended with the old process.
    answer = world.answers.get(request)
    assert answer is None or (isinstance(answer, Stopped) and answer.status == world.job(job).status)
    assert answer is not None or world.epoch > 1
