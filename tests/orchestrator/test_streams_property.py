"""Random constellations with streams on a failing fleet: every job ends as if undisturbed, and no reader outlives its producer."""

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.orchestrator.harness import KINDS, FakeAgent
from tests.orchestrator.test_coordinator_property import STEPS_OF_TROUBLE, Chaos, check_consistent, outcome, poisoned

from starloom.agents.messages import InputLost, Started
from starloom.dag.constellation import Constellation, Dependency, On, OnFailure, OutputBinding, Policy, Retry, StageSpec
from starloom.dag.facts import Fact, JobStatus, StagePlaced
from starloom.dag.ids import JobId, StageId, TaskToken
from starloom.dag.validate import problems
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.lineage import Verdict
from starloom.orchestrator.streams import Streams

GIVES_STREAM = ("t.ticks", "t.twice")
VALUES = {"t.work": "value", "t.sum": "value", "t.ticks": "count"}


def streaming_constellation(random: Random) -> Constellation:
    """A valid constellation of up to 12 stages, most of which stream into each other."""
    count = random.randint(2, 12)
    stages: dict[StageId, StageSpec] = {}
    arcs: list[Dependency] = []
    for index in range(count):
        name = StageId(f"s{index}")
        streams = [each for each, spec in stages.items() if spec.kind in GIVES_STREAM]
        kind = random.choice(("t.ticks", "t.twice", "t.twice", "t.sum", "t.work") if streams else ("t.ticks", "t.work"))
        wanted = {"t.twice": 1, "t.sum": random.randint(1, 2)}.get(kind, 0)
        into = [
            Dependency(
                upstream=upstream,
                downstream=name,
                output="ticks",
                input="ticks" if kind == "t.twice" else f"from_{upstream}",
            )
            for upstream in random.sample(streams, min(wanted, len(streams)))
        ]
        policy = Policy(
            retry=Retry(times=random.randint(0, 2)), on_failure=random.choice((OnFailure.FAIL, OnFailure.SKIP))
        )
        params = {"seed": index} if kind == "t.work" else {}
        trial = {**stages, name: StageSpec(id=name, kind=kind, params=params, policy=policy)}
        more = []
        for upstream in random.sample(sorted(stages), min(len(stages), random.randint(0, 2))):
            value = VALUES.get(stages[upstream].kind)
            carries = value is not None and kind in ("t.work", "t.ticks", "t.twice") and random.random() < 0.7
            output, port = (value, f"x_{upstream}") if carries and value else ("", "")
            on = On.COMPLETION if not carries and random.random() < 0.3 else On.SUCCESS
            more.append(Dependency(upstream=upstream, downstream=name, on=on, output=output, input=port))
        for found in (into + more, into):
            if not problems(Constellation(name="random", stages=trial, dependencies=(*arcs, *found)), KINDS):
                stages, arcs = trial, [*arcs, *found]
                break
    outputs = {}
    for name in random.sample(sorted(stages), random.randint(0, min(3, len(stages)))):
        outputs[f"o-{name}"] = OutputBinding(upstream=name, output=next(iter(KINDS[stages[name].kind].outputs)))
    return Constellation(name="random", stages=stages, dependencies=tuple(arcs), outputs=outputs)


class StreamChaos(Chaos):
    """Readers start while their producers run; they end after them, and may lack chunks."""

    def __init__(self, random: Random, constellation: Constellation, fickle: float = 0.0) -> None:
        super().__init__(random, constellation, {}, fickle=fickle)
        self.world.reads_all = True

    def check(self, decision: Decision) -> None:
        super().check(decision)
        for job in self.world.coordinator._state.open.values():
            if job.status is not JobStatus.RUNNING:
                continue
            streams = Streams(job, KINDS)
            for name, arcs in streams.into.items():
                stage = job.stages[name]
                for arc in arcs:
                    upstream = job.stages[arc.upstream]
                    awaited = stage.awaits.get(arc.upstream)
                    assert awaited is None or awaited in upstream.live, f"{name} outlives {arc.upstream}"

    def follow(self, fact: Fact) -> None:
        job = self.shadow.jobs.get(fact.job) if isinstance(fact, StagePlaced) else None
        streams = Streams(job, KINDS) if job is not None else None
        if not isinstance(fact, StagePlaced) or job is None or streams is None or fact.stage not in streams.groups:
            super().follow(fact)
            return
        wanted = Verdict.AHEAD if fact.awaits else Verdict.RUN
        assert streams.verdict(job, fact.stage) is wanted
        self.live.add(TaskToken(fact.job, fact.stage, fact.token))
        self.shadow.apply(fact)

    def connected(self) -> list[tuple[FakeAgent, TaskToken]]:
        return [(agent, task) for agent in self.world.agents.values() if agent.connected for task in agent.tasks]

    def start(self) -> None:
        if found := self.connected():
            agent, task = self.random.choice(found)
            self.report(agent, Started(task=task))

    def lose_input(self) -> None:
        """Chunks of a stream are gone, or its agent cannot be reached."""
        found = [(agent, task) for agent, task in self.connected() if any(a.streams for a in agent.tasks[task].awaits)]
        if found:
            agent, task = self.random.choice(found)
            upstreams = [each.upstream for each in agent.tasks[task].awaits if each.streams and each.upstream]
            lost = tuple(self.random.sample(upstreams, 1))
            self.report(agent, InputLost(task=task, upstreams=lost, reason="chaos", gone=self.random.random() < 0.7))

    def other_job(self) -> None:
        self.jobs += 1
        self.world.ask_submit(streaming_constellation(self.random), job=f"other-{self.jobs}", priority=self.jobs % 2)


def quiet(constellation: Constellation) -> StreamChaos:
    """The same job without any trouble."""
    found = StreamChaos(Random(0), constellation)
    found.world.submit(constellation, job="job")
    found.calm()
    return found


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_jobs_with_streams_end_as_if_undisturbed(seed: int) -> None:
    random = Random(seed)
    constellation = streaming_constellation(random)
    chaos = StreamChaos(random, constellation)
    job = chaos.world.submit(constellation, job="job", max_parallel=random.choice((0, 0, 1, 3)))
    for _ in range(STEPS_OF_TROUBLE):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if not poisoned(chaos.world, job):
        assert outcome(chaos.world, job) == outcome(quiet(constellation).world, JobId("job"))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_results_rest_on_the_streams_that_count_though_attempts_differ(seed: int) -> None:
    random = Random(seed)
    constellation = streaming_constellation(random)
    chaos = StreamChaos(random, constellation, fickle=0.4)
    job = chaos.world.submit(constellation, job="job")
    for _ in range(STEPS_OF_TROUBLE):
        chaos.step()
    chaos.calm()
    chaos.world.check_replay()
    if chaos.world.job(job).status is JobStatus.SUCCEEDED:
        check_consistent(chaos.world, job)
