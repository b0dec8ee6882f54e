"""Simulated agents that await each other's attempts: answers come through whatever happens to their streams."""

from functools import partial

import pytest

from starloom.agents.messages import Assign, Await, AwaitUnreachable, Finished, Release, Report, Resolve, Started
from starloom.dag import limits
from starloom.dag.constellation import Constellation, StageSpec
from starloom.dag.facts import JobSubmitted
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.orchestrator.simulate.agent import AgentProcess
from starloom.orchestrator.simulate.jobview import JobView
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.loop import SECOND
from starloom.orchestrator.simulate.model import whole_params
from starloom.orchestrator.simulate.property import Property
from starloom.orchestrator.simulate.world import Parts, Setup, World

JOB = JobId("j")
TOKEN = FencingToken(Epoch(1), Attempt(1))
EPOCH = Epoch(1)
SPEC = StageSpec(id=StageId("s"), kind="sim.work")


class Ends(Property):
    """Keeps what agents told."""

    name = "ends"

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self.reports: list[Report] = []

    def told(self, process: AgentProcess, report: Report) -> None:
        self.reports.append(report)


class Pair:
    """Two agents of a world without an orchestrator, with a chain of stages that goes to and fro between them."""

    def __init__(self, seed: int, count: int, spec: StageSpec = SPEC, output: str = "value") -> None:
        self._spec, self._output = spec, output
        self.world = World(seed, Setup(nodes=2, jobs=0), Parts(properties=(Ends,)))
        self.world.trouble.begin(self.world)
        for name in self.world.names:
            self.world._start_agent(name)
        names = [StageId(f"s{number}") for number in range(count)]
        made = Constellation(name="chain", stages=dict.fromkeys(names, spec))
        self.world.judge.jobs[JOB] = JobView(JobSubmitted(job=JOB, constellation=made))
        self.orders = [self._order(number, name) for number, name in enumerate(names)]
        (self.ends,) = [each for each in self.world.judge.properties if isinstance(each, Ends)]

    def _order(self, number: int, name: StageId) -> Assign:
        awaits: tuple[Await, ...] = ()
        if number:
            before = self.process(number - 1)
            awaits = (
                Await(
                    upstream=StageId(f"s{number - 1}"),
                    token=TOKEN,
                    agent=before.name,
                    address=before.profile.address,
                    feeds={"value": self._output},
                ),
            )
        spec = self._spec
        return Assign(task=TaskToken(JOB, name, TOKEN), kind=spec.kind, params=whole_params(spec), awaits=awaits)

    def process(self, number: int) -> AgentProcess:
        return self.world.processes[self.world.names[number % 2]]

    def tell(self, number: int, *commands: Assign | Release | Resolve) -> None:
        process = self.process(number)
        process.runner.carry_out(process.core.commands(commands, EPOCH, self.world.loop.now))

    def assign(self) -> None:
        for number, order in enumerate(self.orders):
            self.tell(number, order)

    def run(self, seconds: float) -> None:
        end = self.world.loop.now + round(seconds * SECOND)
        marker: list[int] = []
        self.world.loop.at(end, partial(marker.append, end))
        while not marker:
            assert self.world.loop.step()

    def finished(self) -> list[str]:
        """The stages that ended with a result, in order."""
        return [report.task.stage for report in self.ends.reports if type(report).__name__ == "Finished"]


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_goes_to_and_fro_by_itself(seed: int) -> None:
    pair = Pair(seed, 20)
    pair.assign()
    pair.run(10)
    assert pair.finished() == [f"s{number}" for number in range(20)]
    assert not any(isinstance(report, AwaitUnreachable) for report in pair.ends.reports)
    for number in range(2):
        pair.tell(number, Release(job=JOB))
        assert not pair.process(number).runner.keeps


@pytest.mark.parametrize("seed", range(10))
def test_breaks_and_partitions_delay_a_chain_and_start_nothing_twice(seed: int) -> None:
    pair = Pair(seed, 20)
    pair.assign()
    network, names = pair.world.network, pair.world.names
    for number in range(10):
        pair.world.break_stream(names[number % 2])
        pair.run(0.3)
        network.block(network.blocked_data, AgentId(names[0]))
        pair.run(0.4)
        network.heal(network.blocked_data, AgentId(names[0]))
        pair.run(0.1)
    pair.run(10)
    assert pair.finished() == [f"s{number}" for number in range(20)]
    starts = [report.task for report in pair.ends.reports if isinstance(report, Started)]
    assert len(starts) == len(set(starts)) == 20


def test_a_peer_out_of_reach_is_reported_once_each_outage_and_the_orchestrators_word_is_enough() -> None:
    pair = Pair(1, 2)
    network = pair.world.network
    network.block(network.blocked_data, pair.process(0).name)
    pair.assign()
    pair.run(limits.INPUT_PATIENCE_SECONDS + 3 * limits.RECONNECT_LAST_SECONDS)
    (report,) = [report for report in pair.ends.reports if isinstance(report, AwaitUnreachable)]
    assert (report.task.stage, report.upstreams) == ("s1", ("s0",))
    assert pair.finished() == ["s0"]
    pair.tell(1, Resolve(task=pair.orders[1].task, upstream=StageId("s0"), token=TOKEN))
    pair.run(2)
    assert pair.finished() == ["s0", "s1"]


@pytest.mark.parametrize("seed", range(20))
def test_values_that_are_told_early_are_read_by_the_digests_that_their_agents_tell(seed: int) -> None:
    pair = Pair(seed, 30, StageSpec(id=StageId("s"), kind="sim.blob"), "data")
    pair.assign()
    for number in range(6):
        pair.run(0.15)
        for stream in pair.process(number).peering.streams:
            stream.cut()
    pair.run(60)
    made = {report.task.stage: report for report in pair.ends.reports if isinstance(report, Finished)}
    assert len(made) == 30
    assert pair.world.judge.early
    for number in range(1, 30):
        (read,) = made[StageId(f"s{number}")].consumed.values()
        assert read.digest == made[read.upstream].outputs["data"].digest
    for number in range(2):
        pair.tell(number, Release(job=JOB))
        assert not pair.process(number).runner.keeps
        assert not pair.process(number).runner.early
