"""Fault plans: what a document may say, and everything that is wrong with one told at once, each at its place."""

import pytest

from starloom.dag.constellation import Tier
from starloom.dag.errors import InvalidInput
from starloom.devices.faultdoc import read_plan
from starloom.devices.faults import (
    AT_ONCE,
    AT_OPPORTUNITIES,
    LIVE,
    OF_ORCHESTRATOR,
    Fault,
    FaultKind,
    FaultPlan,
    Moment,
    live_problems,
    simulated_problems,
)

WHOLE = """
name: everything
seed: 7
quiet_after_seconds: 30
faults:
  - {what: agent-crash, per_minute: 6, node: edge-1, from_seconds: 2, to_seconds: 20, most: 3, armed: 0.5}
  - {what: agent-hang, tier: edge, labels: {rack: a}, at_seconds: 1.5, lasts_seconds: 2}
  - {what: partition, node: a, peer: b, stage: transcribe, on: end, lasts_seconds: [1, 3], heals: false}
  - {what: agent-slow, at_seconds: 0, kind: basic.add, factor: 4, add_seconds: 0.5}
  - {what: link-slow, at_seconds: 0, delay_seconds: 0.25}
  - {what: stage-fails, chance: 0.02}
"""


def test_a_plan_says_what_of_whom_when_how_often_and_for_how_long() -> None:
    assert read_plan(WHOLE) == FaultPlan(
        name="everything",
        seed=7,
        quiet_after_seconds=30.0,
        faults=(
            Fault(
                what=FaultKind.AGENT_CRASH,
                per_minute=6.0,
                node="edge-1",
                from_seconds=2.0,
                to_seconds=20.0,
                most=3,
                armed=0.5,
            ),
            Fault(
                what=FaultKind.AGENT_HANG,
                tier=Tier.EDGE,
                labels={"rack": "a"},
                at_seconds=1.5,
                lasts_seconds=(2.0, 2.0),
            ),
            Fault(
                what=FaultKind.PARTITION,
                node="a",
                peer="b",
                stage="transcribe",
                on=Moment.END,
                lasts_seconds=(1.0, 3.0),
                heals=False,
            ),
            Fault(what=FaultKind.AGENT_SLOW, at_seconds=0.0, kind="basic.add", factor=4.0, add_seconds=0.5),
            Fault(what=FaultKind.LINK_SLOW, at_seconds=0.0, delay_seconds=0.25),
            Fault(what=FaultKind.STAGE_FAILS, chance=0.02),
        ),
    )


def test_everything_that_is_wrong_is_told_at_once_and_where() -> None:
    text = """
seed: -1
quiet: 3
faults:
  - {what: agent-crsh, at_seconds: 1}
  - {what: agent-hang, at_seconds: soon, tier: attic, lasts_seconds: [1, 2, 3], most: 1.5}
  - {what: agent-crash, per_minute: -1, heals: 1, nodes: [a]}
  - []
"""
    with pytest.raises(InvalidInput) as raised:
        read_plan(text, "plan.yaml")
    told = {problem.place: problem.what for problem in raised.value.problems}
    assert set(told) == {
        "seed",
        "quiet",
        "faults.0.what",
        "faults.1.at_seconds",
        "faults.1.tier",
        "faults.1.lasts_seconds",
        "faults.1.most",
        "faults.2.per_minute",
        "faults.2.heals",
        "faults.2.nodes",
        "faults.3",
    }
    assert told["faults.0.what"] == "there is no fault 'agent-crsh'; did you mean 'agent-crash'?"
    assert "did you mean 'node'?" in told["faults.2.nodes"]
    assert str(raised.value).startswith("plan.yaml is no fault plan:")


@pytest.mark.parametrize(
    ("fault", "place", "what"),
    [
        ("{what: agent-crash}", "faults.0", "does not say when agent-crash happens"),
        ("{what: agent-crash, at_seconds: 0, stage: a}", "faults.0", "says when by at_seconds and by stage"),
        ("{what: agent-crash, chance: 0.5}", "faults.0.chance", "happens at times"),
        ("{what: stage-fails, at_seconds: 1}", "faults.0.chance", "is missing"),
        ("{what: stage-fails, chance: 0.5, per_minute: 2}", "faults.0.per_minute", "happens at opportunities"),
        ("{what: stage-fails, chance: 2}", "faults.0.chance", "is 2.0; use 0 to 1"),
        ("{what: disk-full, at_seconds: 1, node: a}", "faults.0", "happens to the orchestrator"),
        ("{what: agent-crash, at_seconds: 1, peer: a}", "faults.0.peer", "has no other end"),
        ("{what: agent-crash, at_seconds: 1, kind: a}", "faults.0.kind", "happens to no stages"),
        ("{what: agent-crash, at_seconds: 1, heals: false}", "faults.0.heals", "is over at once"),
        ("{what: agent-hang, at_seconds: 1, factor: 2}", "faults.0.factor", "is for agent-slow alone"),
        ("{what: agent-hang, at_seconds: 1, delay_seconds: 2}", "faults.0.delay_seconds", "is for link-slow alone"),
        (
            "{what: agent-hang, at_seconds: 1, lasts_seconds: [3, 1]}",
            "faults.0.lasts_seconds",
            "the least, then the most",
        ),
        ("{what: agent-hang, at_seconds: 1, lasts_seconds: .inf}", "faults.0.lasts_seconds", "give a number"),
        ("{what: agent-crash, per_minute: 1, from_seconds: 5, to_seconds: 4}", "faults.0.from_seconds", "after"),
    ],
)
def test_what_does_not_go_together_is_refused(fault: str, place: str, what: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_plan(f"faults: [{fault}]")
    found = [problem for problem in raised.value.problems if problem.place == place]
    assert found
    assert what in found[0].what


@pytest.mark.parametrize("text", ["faults: {", "faults: 3", "- a", "faults: [{what: agent-crash, what: agent-hang}]"])
def test_what_is_no_document_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is no fault plan"):
        read_plan(text)


def test_what_can_only_be_simulated_and_what_can_only_be_live_is_said() -> None:
    plan = read_plan("faults: [{what: agent-flap, per_minute: 1}, {what: agent-crash, stage: a}]")
    assert [problem.place for problem in live_problems(plan)] == ["faults.0.what"]
    assert [problem.place for problem in simulated_problems(plan)] == ["faults.1.stage"]


def test_the_tables_of_kinds_go_together() -> None:
    assert set(LIVE) >= OF_ORCHESTRATOR
    assert FaultKind.FRAME_TWICE in AT_OPPORTUNITIES
    assert FaultKind.VALUES_LOST not in AT_OPPORTUNITIES
    assert not AT_ONCE & AT_OPPORTUNITIES
