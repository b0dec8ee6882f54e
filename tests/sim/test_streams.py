"""Streams in simulated runs: jobs that have them are valid, and go through what a stream may meet."""

from collections import Counter
from typing import Any

from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Credit
from starloom.dag.errors import StreamGone
from starloom.dag.validate import problems
from starloom.dag.values import Full
from starloom.devices.faults import NO_FAULTS, Fault, FaultKind, FaultPlan
from starloom.orchestrator.simulate import workload
from starloom.orchestrator.simulate.loop import Chance
from starloom.orchestrator.simulate.model import KINDS, STREAMING
from starloom.orchestrator.simulate.streamwork import SHAPES, streamed
from starloom.orchestrator.simulate.world import Parts, Setup, World

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
