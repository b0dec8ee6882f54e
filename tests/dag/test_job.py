"""The state machines of a stage and a job: every row of the table, everything that has none, and the invariants."""

from collections.abc import Callable
from typing import Any

import pytest

from starloom.dag import facts
from starloom.dag.constellation import Constellation, Dependency, OutputBinding, StageSpec
from starloom.dag.errors import InvalidTransition
from starloom.dag.facts import ErrorInfo, Fact, JobStatus, JobSubmitted
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.dag.job import JobState
from starloom.dag.stagestate import ACTIVE, ENDED, StageState, StageStatus
from starloom.dag.transitions import TRANSITIONS
from starloom.dag.values import PortType, ValueRef

A, B, JOB = StageId("a"), StageId("b"), JobId("j")
S = StageStatus
REF = ValueRef(type=PortType.TEXT, bytes=1, digest="d", inline=b"x")
KEPT = ValueRef(type=PortType.BYTES, bytes=9, digest="k", holder="n")


def token(attempt: int, epoch: int = 1) -> FencingToken:
    return FencingToken(Epoch(epoch), Attempt(attempt))


def new_job() -> JobState:
    """Stage b after stage a, whose output is the job's."""
    constellation = Constellation(
        name="two",
        stages={name: StageSpec(id=name, kind="k") for name in (A, B)},
        dependencies=(Dependency(upstream=A, downstream=B),),
        outputs={"out": OutputBinding(upstream=A, output="text")},
    )
    return JobState(JobSubmitted(job=JOB, constellation=constellation))


def placed(attempt: int = 1) -> Fact:
    return facts.StagePlaced(job=JOB, stage=A, token=token(attempt), agent=AgentId("n"), incarnation="i", target="npu")


def started(attempt: int = 1) -> Fact:
    return facts.StageStarted(job=JOB, stage=A, token=token(attempt))


def committed(attempt: int = 1) -> Fact:
    return facts.StageCommitted(
        job=JOB,
        stage=A,
        token=token(attempt),
        outputs={"text": REF, "kept": KEPT},
        published=("text",),
        holds={"c": True},
    )


def failed(attempt: int = 1, retry: float | None = None) -> Fact:
    error = ErrorInfo(message="no")
    return facts.StageFailed(job=JOB, stage=A, token=token(attempt), error=error, retry_seconds=retry)


def skipped(attempt: int = 1) -> Fact:
    return facts.StageSkipped(job=JOB, stage=A, token=token(attempt), reason="why")


def superseded(attempt: int = 1, **more: Any) -> Fact:
    return facts.StageSuperseded(job=JOB, stage=A, token=token(attempt), reason="why", **more)


def reopened(attempt: int = 1) -> Fact:
    return facts.StageReopened(job=JOB, stage=A, token=token(attempt), reason="why")


def defaulted(attempt: int = 2) -> Fact:
    return facts.StageDefaulted(job=JOB, stage=A, token=token(attempt), outputs={"text": REF}, holds={"c": False})


def outputs_held(attempt: int = 1) -> Fact:
    return facts.OutputsHeld(job=JOB, stage=A, token=token(attempt), agent=AgentId("other"), incarnation="i9")


def outputs_gone(attempt: int = 1) -> Fact:
    return facts.OutputsGone(job=JOB, stage=A, token=token(attempt), agent=AgentId("other"))


CANCELLED = facts.StageCancelled(job=JOB, stage=A)

WAYS: dict[StageStatus, list[Fact]] = {
    S.PENDING: [],
    S.PLACED: [placed()],
    S.RUNNING: [placed(), started()],
    S.SUCCEEDED: [placed(), committed()],
    S.SKIPPED: [skipped()],
    S.FAILED: [placed(), failed()],
    S.CANCELLED: [CANCELLED],
}
"""A way to each status."""

NEXT: dict[type[Fact], Callable[[StageState], Fact]] = {
    facts.StagePlaced: lambda stage: placed(stage.attempt + 1),
    facts.StageStarted: lambda stage: started(stage.attempt),
    facts.StageCommitted: lambda stage: committed(stage.attempt),
    facts.StageFailed: lambda stage: failed(stage.attempt),
    facts.StageSkipped: lambda stage: skipped(stage.attempt + 1),
    facts.StageSuperseded: lambda stage: superseded(stage.attempt),
    facts.StageReopened: lambda stage: reopened(stage.attempt),
    facts.StageDefaulted: lambda stage: defaulted(stage.attempt + 1),
    facts.OutputsHeld: lambda stage: outputs_held(stage.attempt),
    facts.OutputsGone: lambda stage: outputs_gone(stage.attempt),
    facts.StageCancelled: lambda stage: CANCELLED,
}
"""A fact of each kind that fits the numbers of a stage."""

ROWS: dict[tuple[StageStatus, type[Fact]], StageStatus] = {
    (S.PENDING, facts.StagePlaced): S.PLACED,
    (S.PENDING, facts.StageSkipped): S.SKIPPED,
    (S.PENDING, facts.StageFailed): S.FAILED,
    (S.PENDING, facts.StageCancelled): S.CANCELLED,
    (S.PLACED, facts.StageStarted): S.RUNNING,
    (S.PLACED, facts.StageCommitted): S.SUCCEEDED,
    (S.PLACED, facts.StageFailed): S.FAILED,
    (S.PLACED, facts.StageSuperseded): S.PENDING,
    (S.PLACED, facts.StageCancelled): S.CANCELLED,
    (S.RUNNING, facts.StageCommitted): S.SUCCEEDED,
    (S.RUNNING, facts.StageFailed): S.FAILED,
    (S.RUNNING, facts.StageSuperseded): S.PENDING,
    (S.RUNNING, facts.StageCancelled): S.CANCELLED,
    (S.SUCCEEDED, facts.StageReopened): S.PENDING,
    (S.SUCCEEDED, facts.OutputsHeld): S.SUCCEEDED,
    (S.SUCCEEDED, facts.OutputsGone): S.SUCCEEDED,
    (S.SKIPPED, facts.StageReopened): S.PENDING,
    (S.FAILED, facts.StageDefaulted): S.SUCCEEDED,
    (S.FAILED, facts.StageSkipped): S.SKIPPED,
}


#: rows that need more than a status: an attempt that has started, and a copy of it
COPY_ROWS = {(S.RUNNING, facts.StagePlaced), (S.RUNNING, facts.StageStarted)}


def job_in(status: StageStatus) -> JobState:
    job = new_job()
    for fact in WAYS[status]:
        job.apply(fact)
    assert job.stages[A].status is status
    job.validate()
    return job


@pytest.mark.parametrize("status", list(StageStatus))
@pytest.mark.parametrize("kind", list(NEXT))
def test_every_status_takes_the_facts_of_its_rows_and_no_others(status: StageStatus, kind: type[Fact]) -> None:
    job = job_in(status)
    fact = NEXT[kind](job.stages[A])
    expected = ROWS.get((status, kind))
    if expected is None:
        with pytest.raises(InvalidTransition, match="does not fit"):
            job.apply(fact)
        assert job.stages[A].status is status, "a fact that does not fit changes nothing"
    else:
        job.apply(fact)
        assert job.stages[A].status is expected
    job.validate()


def test_the_table_has_these_rows() -> None:
    assert set(TRANSITIONS) == set(ROWS) | COPY_ROWS
    assert not ENDED & ACTIVE
    assert ENDED | ACTIVE | {S.PENDING} == set(StageStatus)


class TestTokens:
    def test_attempts_only_count_up(self) -> None:
        job = new_job()
        for fact in (placed(2), superseded(2)):
            job.apply(fact)
        for fact in (placed(2), placed(1), skipped(2)):
            with pytest.raises(InvalidTransition, match="attempts only count up"):
                job.apply(fact)
        job.apply(placed(3))
        assert job.stages[A].tries == 2

    @pytest.mark.parametrize("make", [started, committed, failed, superseded])
    def test_only_a_live_token_counts(self, make: Callable[[int], Fact]) -> None:
        job = job_in(S.PLACED)
        with pytest.raises(InvalidTransition, match=r"token 1\.9 is not live"):
            job.apply(make(9))

    def test_a_token_of_another_epoch_is_another_token(self) -> None:
        job = job_in(S.PLACED)
        with pytest.raises(InvalidTransition, match="not live"):
            job.apply(facts.StageStarted(job=JOB, stage=A, token=token(1, epoch=2)))

    def test_only_the_result_that_counts_is_reopened(self) -> None:
        job = job_in(S.SUCCEEDED)
        with pytest.raises(InvalidTransition, match=r"its result is of 1\.1"):
            job.apply(reopened(7))

    def test_the_message_tells_the_stages_story(self) -> None:
        job = job_in(S.SUCCEEDED)
        with pytest.raises(InvalidTransition) as caught:
            job.apply(started())
        assert "a stage that is succeeded does not take it" in str(caught.value)
        assert "StagePlaced" in str(caught.value)
        assert "StageCommitted" in str(caught.value)

    def test_a_story_keeps_the_last_facts_only(self) -> None:
        job = new_job()
        for attempt in range(1, 40):
            job.apply(placed(attempt))
            job.apply(superseded(attempt))
        assert len(job.stages[A].story) == 20
        assert job.stages[A].story[-1] == superseded(39)


class TestCopies:
    def copied(self) -> JobState:
        job = job_in(S.RUNNING)
        job.apply(copy(2))
        job.validate()
        return job

    def test_a_copy_is_a_second_live_token(self) -> None:
        stage = self.copied().stages[A]
        assert stage.live == {token(1): "n", token(2): "m"}
        assert (stage.status, stage.tries, stage.copies, stage.agent) == (S.RUNNING, 2, 1, "m")

    @pytest.mark.parametrize("fact", [lambda: copy(3), lambda: placed(3), lambda: started(1)])
    def test_there_are_never_three(self, fact: Callable[[], Fact]) -> None:
        job = self.copied()
        with pytest.raises(InvalidTransition, match="does not fit"):
            job.apply(fact())

    def test_a_copy_is_of_what_runs_and_elsewhere(self) -> None:
        for status, fact in ((S.PLACED, copy(2)), (S.PENDING, copy(1)), (S.RUNNING, copy(2, agent="n"))):
            job = job_in(status)
            with pytest.raises(InvalidTransition, match="does not fit"):
                job.apply(fact)

    def test_the_first_attempt_alone_again(self) -> None:
        job = self.copied()
        job.apply(superseded(2))
        job.validate()
        stage = job.stages[A]
        assert (stage.status, stage.agent, stage.incarnation, stage.target) == (S.RUNNING, "n", "i", "npu")

    def test_the_copy_alone_has_not_begun(self) -> None:
        job = self.copied()
        job.apply(superseded(1))
        job.validate()
        stage = job.stages[A]
        assert (stage.status, stage.agent, stage.incarnation) == (S.PLACED, "m", "j")
        job.apply(started(2))
        assert stage.status is S.RUNNING

    @pytest.mark.parametrize(("attempt", "where"), [(1, ("n", "i")), (2, ("m", "j"))])
    def test_the_first_to_commit_empties_the_set(self, attempt: int, where: tuple[str, str]) -> None:
        job = self.copied()
        job.apply(committed(attempt))
        job.validate()
        stage = job.stages[A]
        assert (stage.live, stage.started, stage.elder) == ({}, frozenset(), None)
        assert (stage.agent, stage.incarnation) == where
        with pytest.raises(InvalidTransition):
            job.apply(committed(3 - attempt))
        assert job.active_attempts == 0

    def test_a_failure_beside_another_attempt(self) -> None:
        job = self.copied()
        job.apply(failed(1))
        job.validate()
        assert (job.stages[A].status, job.stages[A].failures) == (S.PLACED, 1)


def ahead(token_of_a: FencingToken) -> facts.StagePlaced:
    """The stage `b` is given out ahead of `a`."""
    return facts.StagePlaced(job=JOB, stage=B, token=token(1), agent=AgentId("n"), awaits={A: token_of_a})


class TestAhead:
    def test_an_attempt_awaits_live_attempts_until_these_have_results(self) -> None:
        job = new_job()
        job.apply(placed())
        job.apply(ahead(token(1)))
        assert job.stages[B].awaits == {A: token(1)}
        job.validate()
        job.apply(started())
        job.apply(committed())
        assert (dict(job.stages[B].awaits), dict(job.stages[B].ahead_of)) == ({}, {A: token(1)})
        job.validate()

    def test_what_is_awaited_has_to_be_live(self) -> None:
        job = new_job()
        job.apply(placed())
        with pytest.raises(InvalidTransition, match=r"has no live token 1\.2 that it could await"):
            job.apply(ahead(token(2)))

    def test_nothing_commits_before_what_it_awaits(self) -> None:
        job = new_job()
        job.apply(placed())
        job.apply(ahead(token(1)))
        job.apply(facts.StageStarted(job=JOB, stage=B, token=token(1)))
        with pytest.raises(InvalidTransition, match="which has no result yet"):
            job.apply(facts.StageCommitted(job=JOB, stage=B, token=token(1)))
        assert job.stages[B].status is StageStatus.RUNNING

    def test_what_awaits_is_not_copied(self) -> None:
        job = new_job()
        job.apply(placed())
        job.apply(ahead(token(1)))
        job.apply(facts.StageStarted(job=JOB, stage=B, token=token(1)))
        with pytest.raises(InvalidTransition, match="is not copied"):
            job.apply(facts.StagePlaced(job=JOB, stage=B, token=token(2), agent=AgentId("m"), copy=True))

    @pytest.mark.parametrize("begun", [False, True])
    def test_another_attempts_result_frees_only_what_has_started(self, begun: bool) -> None:
        job = new_job()
        for fact in (placed(), ahead(token(1)), started(), copy(2)):
            job.apply(fact)
        if begun:
            job.apply(facts.StageStarted(job=JOB, stage=B, token=token(1)))
        job.apply(committed(2))
        assert dict(job.stages[B].awaits) == ({} if begun else {A: token(1)})

    def test_an_attempt_that_outlives_what_it_awaits_is_found(self) -> None:
        job = new_job()
        job.apply(placed())
        job.apply(ahead(token(1)))
        job.apply(superseded())
        with pytest.raises(AssertionError, match="which is not live"):
            job.validate()


def copy(attempt: int, agent: str = "m") -> facts.StagePlaced:
    return facts.StagePlaced(
        job=JOB, stage=A, token=token(attempt), agent=AgentId(agent), incarnation="j", target="cpu", copy=True
    )


class TestFields:
    def test_a_placement(self) -> None:
        job = job_in(S.PLACED)
        stage = job.stages[A]
        assert (stage.agent, stage.incarnation, stage.target, stage.tries) == ("n", "i", "npu", 1)
        assert stage.live == {token(1): "n"}
        assert (job.active_attempts, job.agents) == (1, {"n"})

    def test_a_result(self) -> None:
        job = job_in(S.SUCCEEDED)
        stage = job.stages[A]
        assert (stage.committed, stage.outputs, stage.holds) == (token(1), {"text": REF, "kept": KEPT}, {"c": True})
        assert stage.published == {"text"}
        assert (job.active_attempts, job.open_stages, job.undecided[B]) == (0, 1, 0)
        assert job.declared() == {"out": REF}

    def test_a_failure_that_is_tried_again(self) -> None:
        job = job_in(S.PLACED)
        job.apply(failed(retry=2.5))
        stage = job.stages[A]
        assert (stage.status, stage.failures, stage.retry_seconds) == (S.PENDING, 1, 2.5)
        job.apply(placed(2))
        assert stage.retry_seconds is None
        job.apply(committed(2))
        assert stage.error is None

    def test_a_skip_for_another_reason_forgets_the_error(self) -> None:
        job = job_in(S.PLACED)
        job.apply(failed(retry=2.5))
        job.apply(skipped(2))
        assert (job.stages[A].error, job.stages[A].reason) == (None, "why")

    def test_a_skip_after_the_last_failure_keeps_it(self) -> None:
        job = job_in(S.FAILED)
        job.apply(skipped(2))
        stage = job.stages[A]
        assert stage.error is not None
        assert (stage.tries, stage.attempt) == (1, 2)

    def test_deaths_and_lost_inputs_are_counted(self) -> None:
        job = new_job()
        for attempt, more in enumerate(({}, {"death": True}, {"input_lost": True}), 1):
            job.apply(placed(attempt))
            job.apply(superseded(attempt, **more))
        stage = job.stages[A]
        assert (stage.deaths, stage.input_losses, stage.failures) == (1, 1, 0)

    def test_a_reopened_stage_remembers_what_it_had(self) -> None:
        job = job_in(S.SUCCEEDED)
        job.apply(reopened())
        stage = job.stages[A]
        assert (stage.outputs, stage.holds, stage.published, stage.committed) == ({}, {}, frozenset(), None)
        assert stage.former is not None
        assert stage.former == (S.SUCCEEDED, {"text": REF, "kept": KEPT}, {"c": True})
        assert (job.open_stages, job.undecided[B]) == (2, 1)
        job.apply(placed(2))
        job.apply(committed(2))
        assert stage.former is None

    def test_an_outcome_that_nobody_was_judged_by_leaves_the_one_before_in_force(self) -> None:
        job = job_in(S.SUCCEEDED)
        stage = job.stages[A]
        first = stage.outcome
        job.apply(reopened())
        job.apply(skipped(2))
        assert (stage.earlier, stage.former) == (first, None)
        job.apply(facts.StageReopened(job=JOB, stage=A, token=token(2), reason="why", unjudged=True))
        assert (stage.earlier, stage.former) == (None, first)
        job.apply(skipped(3))
        second = stage.outcome
        job.apply(facts.StageReopened(job=JOB, stage=A, token=token(3), reason="why"))
        assert (stage.earlier, stage.former) == (None, second)

    def test_an_unjudged_first_outcome_is_what_there_is(self) -> None:
        job = job_in(S.SUCCEEDED)
        stage = job.stages[A]
        first = stage.outcome
        job.apply(facts.StageReopened(job=JOB, stage=A, token=token(1), reason="why", unjudged=True))
        assert stage.former == first

    def test_defaults_stand_in(self) -> None:
        job = job_in(S.FAILED)
        job.apply(defaulted())
        stage = job.stages[A]
        assert (stage.status, stage.committed, stage.outputs) == (S.SUCCEEDED, token(2), {"text": REF})
        assert stage.holds == {"c": False}


class TestJob:
    def test_a_cancel_is_requested_once(self) -> None:
        job = new_job()
        job.apply(facts.JobCancelRequested(job=JOB))
        assert job.status is JobStatus.CANCELLING
        with pytest.raises(InvalidTransition, match="job j is cancelling"):
            job.apply(facts.JobCancelRequested(job=JOB))

    def test_an_ended_job_takes_nothing_more(self) -> None:
        job = new_job()
        job.apply(facts.JobEnded(job=JOB, status=JobStatus.FAILED, error="no"))
        assert job.ended
        for fact in (placed(), facts.JobEnded(job=JOB, status=JobStatus.FAILED), facts.JobCancelRequested(job=JOB)):
            with pytest.raises(InvalidTransition):
                job.apply(fact)

    def test_a_job_does_not_end_while_it_runs_or_by_a_status_that_is_no_end(self) -> None:
        job = job_in(S.PLACED)
        with pytest.raises(InvalidTransition):
            job.apply(facts.JobEnded(job=JOB, status=JobStatus.CANCELLED))
        with pytest.raises(InvalidTransition):
            new_job().apply(facts.JobEnded(job=JOB, status=JobStatus.RUNNING))

    def test_facts_of_other_things_do_not_fit(self) -> None:
        job = new_job()
        with pytest.raises(InvalidTransition):
            job.apply(facts.EpochStarted(epoch=Epoch(1)))
        with pytest.raises(InvalidTransition, match="has None"):
            job.apply(facts.StageCancelled(job=JOB, stage=StageId("ghost")))


class TestInvariants:
    @pytest.mark.parametrize(
        ("breakage", "message"),
        [
            (lambda job: job.stages[A].live.update({token(1): AgentId("n")}), "do not fit the status"),
            (lambda job: setattr(job.stages[A], "committed", token(1)), "does not fit the status"),
            (lambda job: setattr(job.stages[A], "outputs", {"text": REF}), "has outputs without success"),
            (lambda job: setattr(job.stages[A], "tries", 1), "1 tries in 0 attempts"),
            (lambda job: job.undecided.update({B: 0}), "undecided 0, counted 1"),
            (lambda job: setattr(job, "open_stages", 0), "open_stages is off"),
            (lambda job: setattr(job, "active_attempts", 1), "active_attempts is off"),
            (lambda job: setattr(job, "status", JobStatus.SUCCEEDED), "succeeded with open stages"),
        ],
    )
    def test_what_is_broken_is_found(self, breakage: Callable[[JobState], None], message: str) -> None:
        job = new_job()
        job.validate()
        breakage(job)
        with pytest.raises(AssertionError, match=message):
            job.validate()


class TestCodec:
    @pytest.mark.parametrize(
        "fact",
        [fact for way in WAYS.values() for fact in way]
        + [reopened(), superseded(death=True), defaulted(), facts.EpochStarted(epoch=Epoch(3))],
    )
    def test_facts_come_back_from_their_line(self, fact: Fact) -> None:
        line = facts.encode_fact(fact)
        assert b"\n" not in line
        assert facts.decode_fact(line) == fact

    def test_a_fact_of_an_older_format_still_reads(self) -> None:
        line = b'{"fact":"stage-placed","job":"j","stage":"a","token":[1,1],"agent":"n"}'
        fact = facts.decode_fact(line)
        assert isinstance(fact, facts.StagePlaced)
        assert (fact.incarnation, fact.target) == ("", "cpu")
        joined = facts.decode_fact(b'{"fact":"agent-joined","agent":"n","incarnation":"i"}')
        assert isinstance(joined, facts.AgentJoined)
        assert joined.kinds == ()

    def test_fields_of_newer_formats_are_passed_over(self) -> None:
        fact = facts.decode_fact(b'{"fact":"epoch-started","epoch":1,"mood":"good"}')
        assert fact == facts.EpochStarted(epoch=Epoch(1))
