"""Trials with faults: how a case is judged by its events, and the quick ones on a live cluster."""

import json
from collections.abc import Sequence

import pytest
from tests.orchestrator.harness import inline
from tests.orchestrator.onray import CommandLine

from starloom.agents.crashpoints import CrashPoint
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput
from starloom.dag.facts import (
    AgentLost,
    AnyFact,
    EpochStarted,
    JobEnded,
    JobStatus,
    JobSubmitted,
    StageCommitted,
    StageReopened,
    StageSuperseded,
)
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.infos import Event
from starloom.orchestrator.trials import crashes
from starloom.orchestrator.trials.case import BROKEN, HELD, Case, Kill, Outcome, judge, summaries
from starloom.orchestrator.trials.kills import all_cases
from starloom.orchestrator.trials.trial import chosen

JOB = JobId("job-1")
SECOND = 1_000_000_000
KILL = Kill(unix_nanos=10 * SECOND, moment="started", incarnations={"a": "one", "b": "one"})
DIGESTS = {"value": "digest"}
SUBMITTED = JobSubmitted(job=JOB, constellation=Constellation(name="test", stages={}))
ENDED = JobEnded(job=JOB, status=JobStatus.SUCCEEDED)


def committed(stage: str, attempt: int = 1, job: JobId = JOB) -> StageCommitted:
    token = FencingToken(Epoch(1), Attempt(attempt))
    return StageCommitted(job=job, stage=StageId(stage), token=token, outputs={"value": inline(1)})


def superseded(stage: str) -> StageSuperseded:
    return StageSuperseded(job=JOB, stage=StageId(stage), token=FencingToken(Epoch(1), Attempt(1)), reason="lost")


def reopened(stage: str) -> StageReopened:
    return StageReopened(job=JOB, stage=StageId(stage), token=FencingToken(Epoch(1), Attempt(1)), reason="lost")


def lost(agent: str, incarnation: str = "one") -> AgentLost:
    return AgentLost(agent=AgentId(agent), incarnation=incarnation, reason="silent")


def told(*facts: tuple[float, AnyFact]) -> list[Event]:
    """Facts with the seconds of their telling."""
    return [
        Event(offset=offset, unix_nanos=round(seconds * SECOND), fact=fact)
        for offset, (seconds, fact) in enumerate(facts)
    ]


def judged(case: Case, seen: Sequence[Event], outputs: dict[str, str] = DIGESTS) -> Outcome:
    return judge(case, JOB, seen, KILL, outputs, DIGESTS)


def test_what_an_agents_death_cost_is_told_from_the_kill_until_all_is_made_again() -> None:
    seen = told(
        (9.0, SUBMITTED),
        (9.5, committed("first")),
        (11.0, lost("a")),
        (11.0, superseded("second")),
        (11.1, reopened("first")),
        (12.0, committed("first", 2)),
        (13.5, committed("second", 2)),
        (14.0, committed("third")),
        (15.0, ENDED),
    )
    found = judged(Case(victims=("a",), stage="second"), seen)
    assert (found.verdict, found.what, found.group) == (HELD, "", "agent")
    assert (found.detect_seconds, found.recover_seconds, found.job_seconds) == (1.0, 3.5, 6.0)
    assert (found.superseded, found.reopened, found.duplicated) == (1, 1, 0)


def test_of_two_the_later_death_counts_and_other_deaths_do_not() -> None:
    seen = told((9.0, SUBMITTED), (11.0, lost("a")), (12.0, lost("b")), (12.5, lost("c")), (13.0, ENDED))
    found = judged(Case(victims=("a", "b"), stage="s"), seen)
    assert (found.verdict, found.detect_seconds, found.recover_seconds) == (HELD, 2.0, None)


def test_of_the_orchestrator_its_next_epoch_and_the_next_commit_count() -> None:
    seen = told(
        (9.0, SUBMITTED),
        (10.0, committed("r")),
        (10.4, EpochStarted(epoch=Epoch(2))),
        (10.6, committed("s")),
        (11.0, ENDED),
    )
    found = judged(Case(victims=("orchestrator",), stage="s"), seen)
    assert found.verdict == HELD
    assert [found.detect_seconds, found.recover_seconds] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(
    ("middle", "outputs", "why"),
    [
        ([(11.0, lost("a"))], {"value": "other"}, "outputs differ: value"),
        ([(11.0, lost("a"))], {}, "outputs differ: value"),
        ([], DIGESTS, "no event tells of the death"),
        ([(9.5, lost("a"))], DIGESTS, "no event tells of the death"),
        ([(11.0, lost("a", "another"))], DIGESTS, "no event tells of the death"),
        ([(11.0, lost("a")), (11.0, committed("s")), (11.1, committed("s", 2))], DIGESTS, "1 results committed twice"),
    ],
)
def test_what_is_not_as_promised_breaks_a_case(
    middle: list[tuple[float, AnyFact]], outputs: dict[str, str], why: str
) -> None:
    found = judged(Case(victims=("a",), stage="s"), told((9.0, SUBMITTED), *middle, (15.0, ENDED)), outputs)
    assert (found.verdict, found.what) == (BROKEN, why)


def test_a_job_that_fails_breaks_a_case() -> None:
    seen = told((9.0, SUBMITTED), (11.0, lost("a")), (12.0, JobEnded(job=JOB, status=JobStatus.FAILED)))
    found = judged(Case(victims=("a",), stage="s"), seen)
    assert (found.verdict, found.status, found.what) == (BROKEN, "failed", "the job is failed")


def test_summaries_are_medians_with_the_most_by_sort_and_of_all() -> None:
    def outcome(group: str, detect: float | None, verdict: str = HELD) -> Outcome:
        return Outcome(
            victim="v", group=group, stage="s", status="succeeded", equal=True, detect_seconds=detect, verdict=verdict
        )

    agent, orchestrator, everything = summaries(
        [outcome("agent", 1.0), outcome("agent", 4.0, BROKEN), outcome("agent", 2.0), outcome("orchestrator", None)]
    )
    assert (agent.group, agent.cases, agent.held, agent.detect_seconds) == ("agent", 3, 2, (2.0, 4.0))
    assert (orchestrator.detect_seconds, orchestrator.held) == (None, 1)
    assert (everything.group, everything.cases, everything.held) == ("all", 4, 3)


def test_the_plan_has_every_victim_at_every_stage_and_every_pair() -> None:
    nodes, stages = ["a", "b", "c"], ["s", "t", "u"]
    cases = all_cases(nodes, stages)
    assert len(cases) == 3 * (3 + 1 + 1)
    assert {(case.victim, case.stage) for case in cases} >= {
        (victim, stage) for victim in (*nodes, "orchestrator") for stage in stages
    }
    assert {case.victim for case in cases if case.group == "two agents"} == {"a+b", "a+c", "b+c"}
    assert [case.stage for case in chosen(cases, ["a"], [])] == stages
    assert len(chosen(cases, [], ["s"])) == 5


def test_cases_that_there_are_not_are_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput) as raised:
        chosen(all_cases(["a"], ["s"]), ["b"], ["t"])
    assert [(problem.place, problem.what) for problem in raised.value.problems] == [
        ("--victim", "there is no 'b'; there are a, orchestrator"),
        ("--stage", "there is no 't'; there are s"),
    ]
    with pytest.raises(InvalidInput, match="no case has an agent at orchestrator-booted"):
        chosen(crashes.all_cases(), ["an agent"], ["orchestrator-booted"])


def test_every_point_has_a_case_and_those_of_a_snapshot_one_while_the_job_is_submitted() -> None:
    cases = crashes.all_cases()
    assert {case.point for case in cases} == set(CrashPoint)
    of_snapshot = [(case.point, case.moment, case.victim) for case in cases if case.point.of_snapshot]
    assert of_snapshot == [
        (CrashPoint.SNAPSHOT_HALF, crashes.SUBMITTING, "orchestrator"),
        (CrashPoint.SNAPSHOT_WRITTEN, crashes.SUBMITTING, "orchestrator"),
        (CrashPoint.SNAPSHOT_TAKEN, crashes.SUBMITTING, "orchestrator"),
    ]


def test_the_plans_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "list", "--json"]) == 0
    kills, points = json.loads(capsys.readouterr().out)["plans"]
    assert (kills["plan"], len(kills["stages"])) == ("kills", 13)
    assert {"mic-speaker", "cloud", "orchestrator"} <= set(kills["victims"])
    assert (points["plan"], set(points["stages"])) == ("crashes", set(CrashPoint))
    assert main(["faults", "run", "kills", "--victim", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(900)
def test_jobs_come_out_as_if_undisturbed_whoever_is_killed(command_line: CommandLine, model_store: object) -> None:
    done = command_line.run("faults", "run", "kills", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cases = told["cases"]
    assert {case["group"] for case in cases} == {"agent", "two agents", "orchestrator"}
    assert {(case["status"], case["equal"], case["duplicated"]) for case in cases} == {("succeeded", True, 0)}
    assert all(case["detect_seconds"] > 0 for case in cases)
    assert (told["verdict"], told["planned"], told["injected"], told["lost"]) == ("held", 3, 3, 0)
    assert command_line.processes == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(900)
def test_where_the_orchestrator_is_an_actor_ray_brings_it_back(command_line: CommandLine, model_store: object) -> None:
    arguments = ("--orchestrator", "actor", "--victim", "orchestrator", "--stage", "transcribe")
    done = command_line.run("faults", "run", "kills", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    [case] = json.loads(done.stdout)["cases"]
    assert (case["victim"], case["status"], case["equal"], case["verdict"]) == (
        "orchestrator",
        "succeeded",
        True,
        "held",
    )
    assert case["detect_seconds"] > 0
    assert command_line.processes == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_jobs_come_out_as_if_undisturbed_wherever_a_process_dies(command_line: CommandLine) -> None:
    done = command_line.run("faults", "run", "crashes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cases = told["cases"]
    assert {case["stage"] for case in cases} == set(CrashPoint)
    assert {(case["status"], case["equal"], case["duplicated"]) for case in cases} == {("succeeded", True, 0)}
    assert (told["verdict"], told["injected"], told["planned"]) == ("held", len(cases), len(cases))
    assert command_line.processes == []
