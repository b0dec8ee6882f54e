"""What the simulator's judge says of deadlines: neither late nor early by when a stage's dependencies held."""

from types import SimpleNamespace
from typing import Any, cast

from starloom.dag.constellation import Constellation, Dependency, Policy, StageSpec
from starloom.dag.facts import (
    ErrorInfo,
    Fact,
    JobEnded,
    JobStatus,
    JobSubmitted,
    StageCancelled,
    StageCommitted,
    StageFailed,
    StagePlaced,
    encode_fact,
)
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.devices.faults import ALL_FAULTS
from starloom.orchestrator.deadlines import CAUSE
from starloom.orchestrator.effects import Decision
from starloom.orchestrator.simulate import runs
from starloom.orchestrator.simulate.intime import LATE_SECONDS, DeadlinesAreKept
from starloom.orchestrator.simulate.judge import Judge
from starloom.orchestrator.simulate.loop import SECOND, Loop
from starloom.orchestrator.simulate.world import Setup, World

JOB = JobId("j")
TOKEN = FencingToken(Epoch(1), Attempt(1))
LIMIT = 2.0
LONG = LIMIT + LATE_SECONDS + 1.0

TICKS, GATE, MAP, SUM = (StageId(name) for name in ("ticks", "gate", "map", "sum"))
STREAMS = Constellation(
    name="streams",
    stages={
        GATE: StageSpec(id=GATE, kind="sim.work"),
        **{
            name: StageSpec(id=name, kind=kind, policy=Policy(deadline_seconds=LIMIT))
            for name, kind in ((TICKS, "sim.ticks"), (MAP, "sim.map"), (SUM, "sim.sum"))
        },
    },
    dependencies=(
        Dependency(upstream=TICKS, downstream=MAP, output="data", input="data"),
        Dependency(upstream=MAP, downstream=SUM, output="data", input="from_map"),
        Dependency(upstream=GATE, downstream=SUM),
    ),
)


class Course:
    """One job's facts, each batch decided and journaled at the time that it is said."""

    def __init__(self) -> None:
        self.world = SimpleNamespace(loop=Loop(), disk=SimpleNamespace(lines=[]))
        self.judge = Judge(cast(World, self.world), [DeadlinesAreKept])
        self.say(JobSubmitted(job=JOB, constellation=STREAMS))

    def after(self, seconds: float, *facts: Fact) -> None:
        self.world.loop.now += round(seconds * SECOND)
        self.say(*facts)

    def say(self, *facts: Fact) -> None:
        nobody = cast(Any, None)
        self.judge.decided(nobody, Decision(facts=list(facts)))
        lines = [encode_fact(fact) for fact in facts]
        self.world.disk.lines += lines
        self.judge.journaled(facts, lines, nobody)

    @property
    def broken(self) -> list[tuple[str, str]]:
        return [(found.stage, found.what) for found in self.judge.violations]


def placed(*stages: StageId) -> list[Fact]:
    return [StagePlaced(job=JOB, stage=name, token=TOKEN, agent=AgentId("a")) for name in stages]


def committed(*stages: StageId) -> list[Fact]:
    return [StageCommitted(job=JOB, stage=name, token=TOKEN, outputs={}, consumed={}) for name in stages]


def broken_off(*stages: StageId) -> list[Fact]:
    return [*(StageCancelled(job=JOB, stage=name) for name in stages), JobEnded(job=JOB, status=JobStatus.FAILED)]


def given_up(stage: StageId) -> Fact:
    return StageFailed(job=JOB, stage=stage, token=TOKEN, error=ErrorInfo(message="deadline exceeded", cause=CAUSE))


def test_readers_whose_producer_was_never_given_out_are_not_late() -> None:
    course = Course()
    course.after(0.1, *placed(GATE))
    course.after(0.1, *committed(GATE))
    course.after(LONG, *broken_off(MAP, SUM))
    assert course.broken == []


def test_a_readers_time_begins_with_its_producer() -> None:
    course = Course()
    course.after(0.1, *placed(GATE))
    course.after(0.1, *committed(GATE))
    course.after(LONG, *placed(TICKS, MAP, SUM))
    course.after(1.0, *committed(MAP, SUM))
    assert course.broken == []


def test_no_ones_time_begins_before_all_that_its_group_needs_is_there() -> None:
    course = Course()
    course.after(0.1, *placed(GATE))
    course.after(LONG - 1.0, *committed(GATE))
    course.say(*placed(TICKS, MAP, SUM))
    course.after(1.0, *committed(TICKS, MAP, SUM))
    assert course.broken == []


def test_what_ends_long_after_its_time_had_begun_is_late() -> None:
    course = Course()
    course.after(0.1, *placed(GATE))
    course.after(0.1, *committed(GATE))
    course.after(5.0, *placed(TICKS, MAP, SUM))
    course.after(LONG, *committed(MAP), *broken_off(TICKS, SUM))
    said = f"it ends after {LONG:.3f} s, and its deadline is 2 s"
    head = f"it ends after {LONG + 5.0:.3f} s, and its deadline is 2 s"
    assert course.broken == [("map", said), ("ticks", head), ("sum", said)]


def test_a_reader_that_is_given_up_by_another_time_than_its_own_is_given_up_early() -> None:
    course = Course()
    course.after(0.1, *placed(GATE))
    course.after(0.1, *committed(GATE))
    course.after(LIMIT, *placed(TICKS, MAP, SUM))
    course.after(1.0, given_up(MAP))
    assert course.broken == [("map", "it was given up after 1.000 s, and its deadline is 2 s")]


def test_what_never_had_what_it_needs_is_given_up_early() -> None:
    course = Course()
    course.after(0.1, *placed(GATE))
    course.after(LIMIT, given_up(TICKS))
    assert course.broken == [("ticks", "it was given up by its deadline before its dependencies held")]


def test_a_run_in_which_a_producer_waits_for_its_turn_to_the_end_keeps_all_deadlines() -> None:
    """The seed that showed it: `max_parallel` keeps a group back until its job breaks off, 27 s after it began."""
    assert runs.run(6765, Setup(nodes=5, stages=15, jobs=3, plan=ALL_FAULTS)).violations == ()
