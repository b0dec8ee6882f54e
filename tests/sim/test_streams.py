"""Streams in simulated runs: jobs that have them are valid, and go through what a stream may meet."""

from collections import Counter
from typing import Any

import pytest

from starloom.agents.messages import Assign, Await, Reader, Release
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Bound, Credit
from starloom.dag.constellation import Constellation, Dependency, OnFailure, Policy, StageSpec
from starloom.dag.errors import StreamGone
from starloom.dag.facts import JobOptions, JobSubmitted
from starloom.dag.ids import Attempt, Epoch, FencingToken, JobId, StageId, TaskToken
from starloom.dag.stagestate import StageStatus
from starloom.dag.validate import problems
from starloom.dag.values import Full
from starloom.devices.faults import NO_FAULTS, Fault, FaultKind, FaultPlan
from starloom.orchestrator.simulate import workload
from starloom.orchestrator.simulate.clients import Client
from starloom.orchestrator.simulate.jobview import JobView
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import KINDS, STREAMING, expected, whole_params
from starloom.orchestrator.simulate.streams import Inlet
from starloom.orchestrator.simulate.streamwork import SHAPES, streamed
from starloom.orchestrator.simulate.workload import Work
from starloom.orchestrator.simulate.world import Parts, Setup, World

TOKEN = FencingToken(Epoch(1), Attempt(1))
TROUBLE = FaultPlan(
    name="streams meet everything",
    quiet_after_seconds=20,
    faults=(
        Fault(what=FaultKind.LINK_BREAK, per_minute=300),
        Fault(what=FaultKind.AGENT_CRASH, per_minute=20, lasts_seconds=(0.5, 5.0)),
        Fault(what=FaultKind.AGENT_LEAVE, per_minute=6, lasts_seconds=(0.5, 5.0)),
        Fault(what=FaultKind.PARTITION_DATA, per_minute=20, lasts_seconds=(0.5, 5.0)),
        Fault(what=FaultKind.ORCHESTRATOR_CRASH, per_minute=4),
        Fault(what=FaultKind.STAGE_FAILS, chance=0.1),
        Fault(what=FaultKind.LIE_LINEAGE, chance=0.05),
    ),
)


def test_jobs_with_streams_are_valid_and_have_every_shape() -> None:
    seen: Counter[int] = Counter()
    for seed in range(150):
        chance = Chance(str(seed))
        given = workload.work(chance, 15, "job")
        made = streamed(chance, given).constellation
        assert not problems(made, KINDS)
        own = [arc for arc in made.dependencies if made.stages[arc.downstream].kind in STREAMING]
        if made.stages.keys() == given.constellation.stages.keys():
            continue
        streams = {(arc.upstream, arc.downstream) for arc in own if arc.output == "data"}
        seen[len(streams)] += 1
    assert sum(seen.values()) in range(20, 90)
    assert seen.keys() == {sum(len(stage) - 1 for stage in shape) for shape in SHAPES}


def test_streams_meet_breaks_waits_and_losses_and_every_property_holds() -> None:
    met: Counter[str] = Counter()

    class Watched(StreamBuffer):
        def fits(self, size: int, generation: int = 0) -> bool:
            found = super().fits(size, generation)
            met["waits for room"] += not found
            return found

        def open(self, name: str, credit: Credit, full: Full | None = None) -> None:
            met["resumes"] += credit.acknowledged > 0
            try:
                super().open(name, credit, full)
            except StreamGone:
                met["gone"] += 1
                raise

    for seed in range(1, 21):
        world = World(seed, Setup(nodes=5, stages=6, jobs=3, plan=TROUBLE), Parts(buffer=Watched))
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
        for job in world.judge.jobs.values():
            streams = [stage for stage in job.stages.values() if stage.spec.kind in STREAMING]
            met["begins again"] += any(len(stage.process) > 1 for stage in streams)
            met["succeeds"] += bool(streams) and job.status == "succeeded"
    assert {"waits for room", "resumes", "gone", "begins again", "succeeds"} == {what for what, n in met.items() if n}


def test_reader_whose_word_was_lost_makes_room_for_its_producer_when_it_comes_again() -> None:
    """It has acknowledged all that there is: no later word of it would let the producer go on."""
    world = World(1, Setup(nodes=2, jobs=0))
    world.trouble.begin(world)
    for name in world.names:
        world._start_agent(name)
    giving, reading = (world.processes[name] for name in world.names)
    readers = (Reader(port="data", reader="r.data"),)
    source = Assign(task=TaskToken(JobId("j"), StageId("s"), TOKEN), kind="sim.ticks", readers=readers)
    reader = Assign(task=TaskToken(JobId("j"), StageId("r"), TOKEN), kind="sim.sum")
    woken: list[bool] = []
    flow = giving.streams.add(source, "data", Bound(chunks=1), lambda: woken.append(flow.buffer.fits(1)))
    awaited = Await(
        upstream=StageId("s"),
        token=TOKEN,
        agent=giving.name,
        address=giving.profile.address,
        streams={"data": "data"},
    )
    inlet = Inlet(reading, reader, awaited, "data", lambda: None)
    inlet.dial()
    flow.append(b"0")
    while not inlet.queue:
        assert world.loop.step()
    assert not flow.buffer.fits(1)
    inlet.acknowledge(1)
    world.break_stream(giving.name)
    woken.clear()
    while not flow.buffer.fits(1):
        assert world.loop.step()
    assert woken == [True]


def test_undisturbed_streams_begin_once_and_together() -> None:
    looked = 0
    for seed in range(1, 21):
        world = World(seed, Setup(nodes=5, stages=6, jobs=2, plan=NO_FAULTS))
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
        for job in world.judge.jobs.values():
            for stage in job.stages.values():
                if stage.spec.kind in STREAMING and job.status == "succeeded" and stage.status == "succeeded":
                    looked += 1
                    again: Any = len(stage.process) - stage.failures
                    assert again == 1, f"seed {seed}: {stage}"
    assert looked >= 20


def test_a_job_that_ends_before_a_stage_with_streams_begins_leaves_none() -> None:
    """As tests.agents.test_streams_runtime has it of real agents."""
    world = World(1, Setup(nodes=1, jobs=0), Parts(properties=()))
    world._start_agent(world.names[0])
    (process,) = world.processes.values()
    spec = StageSpec(id=StageId("s"), kind="sim.ticks")
    job, epoch = JobId("j"), Epoch(1)
    made = Constellation(name="one", stages={spec.id: spec})
    world.judge.jobs[job] = JobView(JobSubmitted(job=job, constellation=made))
    task = TaskToken(job, spec.id, FencingToken(epoch, Attempt(1)))
    for command in (Assign(task=task, kind=spec.kind, params=whole_params(spec)), Release(job=job)):
        process.runner.carry_out(process.core.commands([command], epoch, world.loop.now))
    while not process.core.idle:
        assert world.loop.step()
    assert process.runner.keeps == ()


def chain(*stages: tuple[str, bool, OnFailure], outside: bool = False) -> Constellation:
    """Stages s0, s1 ... that each read the stream of the one before, by kind, whether they always fail, and what follows then.

    With `outside` the first starts after a stage that always fails, and is skipped then.
    """
    specs = {
        StageId(f"s{number}"): StageSpec(
            id=StageId(f"s{number}"), kind=kind, params={"fails": fails}, policy=Policy(on_failure=then)
        )
        for number, (kind, fails, then) in enumerate(stages)
    }
    names = list(specs)
    ports = ["data" if KINDS[specs[name].kind].inputs else "from_it" for name in names]
    arcs = [
        Dependency(upstream=upstream, downstream=name, output="data", input=port)
        for upstream, name, port in zip(names, names[1:], ports[1:], strict=False)
    ]
    if outside:
        first = StageId("before")
        policy = Policy(on_failure=OnFailure.SKIP)
        specs[first] = StageSpec(id=first, kind="sim.work", params={"fails": True}, policy=policy)
        arcs.append(Dependency(upstream=first, downstream=names[0]))
    made = Constellation(name="chain", stages=specs, dependencies=tuple(arcs))
    assert not problems(made, KINDS)
    return made


TICKS = ("sim.ticks", False, OnFailure.FAIL)
FAILING_MAP = ("sim.map", True, OnFailure.SKIP)
FAILING_SUM = ("sim.sum", True, OnFailure.FAIL)


def test_of_a_stage_and_its_reader_that_both_fail_the_first_decides_though_nothing_disturbs_them() -> None:
    """The reader is skipped where the other is first, and fails the job where it is itself."""
    ends: Counter[str] = Counter()
    for seed in range(1, 21):
        world = World(seed, Setup(nodes=3, jobs=0))
        world.clients.append(Client(world, "c", Work(chain(TICKS, FAILING_MAP, FAILING_SUM), {}, JobOptions()), 3))
        world.run()
        assert world.judge.violations == [], f"seed {seed}"
        (job,) = world.judge.jobs.values()
        ends[f"{job.status}, {job.stages[StageId('s2')].status}"] += 1
    assert ends.keys() == {"failed, failed", "succeeded, skipped"}


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (chain(TICKS, FAILING_MAP, FAILING_SUM), None),
        (chain(TICKS, FAILING_MAP, ("sim.map", False, OnFailure.FAIL), FAILING_SUM), None),
        (chain(TICKS, FAILING_SUM), StageStatus.FAILED),
        (chain(TICKS, FAILING_MAP, ("sim.sum", True, OnFailure.SKIP)), StageStatus.SKIPPED),
        (chain(TICKS, FAILING_MAP, ("sim.sum", False, OnFailure.FAIL)), StageStatus.SKIPPED),
        (chain(TICKS, FAILING_MAP, FAILING_SUM, outside=True), StageStatus.SKIPPED),
    ],
    ids=[
        "both fail",
        "with one between",
        "it alone fails",
        "skipped either way",
        "it does not fail",
        "it never begins",
    ],
)
def test_what_a_reader_comes_to_is_open_only_where_it_may_fail_before_what_it_reads(
    made: Constellation, wanted: StageStatus | None
) -> None:
    known = expected(made, {})
    last = known[max(name for name in made.stages if name != "before")]
    assert (last and last.status) == wanted
