"""How often a job comes and what is promised of it: read, written, and refused with all that is wrong."""

import pytest

from starloom.dag.constellation import Goal, Measure, Slo
from starloom.dag.document import dump, load
from starloom.dag.errors import InvalidConstellation
from starloom.dag.slo import shorthand, slo_problems

DOCUMENT = """
api_version: starloom/v1
name: faces
{}
stages:
  a: {{kind: basic.noop}}
"""


def test_what_is_said_of_rounds_is_read_and_written_as_it_was() -> None:
    said = load(
        DOCUMENT.format("every: 100ms\nslo: {p95: 250ms, first_token: 1s, token: 60ms}\nobjective: [p95, period]")
    )
    assert said.every_seconds == 0.1
    assert said.slo == Slo(p95_seconds=0.25, first_token_seconds=1.0, token_seconds=0.06)
    assert said.objective == (Goal(by=Measure.P95), Goal(by=Measure.PERIOD))
    assert load(dump(said)) == said
    assert list(slo_problems(said)) == []
    frames = load(DOCUMENT.format("rate: 30"))
    assert frames.rate == 30.0
    assert load(dump(frames)) == frames
    assert load(DOCUMENT.format("")).slo == Slo()
    assert list(slo_problems(load(DOCUMENT.format("every: 0.000001")))) == []


def test_everything_that_is_wrong_is_told() -> None:
    with pytest.raises(InvalidConstellation) as caught:
        load(DOCUMENT.format("every: soon\nrate: many\nslo: {p90: 1s, p95: never}"))
    assert [problem.place for problem in caught.value.problems] == ["slo.p90", "slo.p95", "rate", "every"]
    both = load(DOCUMENT.format("every: 1s\nrate: 30"))
    assert [problem.place for problem in slo_problems(both)] == ["rate"]
    nothing = load(DOCUMENT.format("slo: {p95: 1s}"))
    assert [problem.place for problem in slo_problems(nothing)] == ["slo.p95"]
    assert [problem.place for problem in slo_problems(load(DOCUMENT.format("objective: p95")))] == ["objective"]


@pytest.mark.parametrize("said", ["every: 1.0e-310", "rate: 1.0e-310"])
def test_what_is_nearly_nothing_is_told_before_shares_of_it_are_without_end(said: str) -> None:
    assert [problem.place for problem in slo_problems(load(DOCUMENT.format(said)))] == [said.partition(":")[0]]


@pytest.mark.parametrize("name", ["p50", "p95", "p99", "first_token", "token"])
def test_a_promise_of_no_time_at_all_is_refused_and_not_taken_for_none(name: str) -> None:
    for said in ("0s", "0ms", "0", "0.0"):
        with pytest.raises(InvalidConstellation) as caught:
            load(DOCUMENT.format(f"every: 1s\nslo: {{{name}: {said}}}"))
        (problem,) = caught.value.problems
        assert problem.place == f"slo.{name}"
        assert "give more than 0 seconds, such as 250ms, or leave it out" in str(problem)


@pytest.mark.parametrize("said", ["every: 0", "every: 0s", "every: 0.0", "rate: 0", "rate: 0.0"])
def test_a_period_or_a_rate_of_nothing_is_refused_and_not_taken_for_none(said: str) -> None:
    with pytest.raises(InvalidConstellation) as caught:
        load(DOCUMENT.format(said))
    (problem,) = caught.value.problems
    assert problem.place == said.partition(":")[0]
    assert "or leave it out" in str(problem)


def test_a_command_line_says_the_same() -> None:
    assert shorthand("p95=250ms, token=60ms") == {"p95": "250ms", "token": "60ms"}
    assert shorthand("p95") == "p95"
