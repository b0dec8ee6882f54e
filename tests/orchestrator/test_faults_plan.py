"""What a plan of faults comes to, from a seed; and how a run under one is judged by its events. Both are pure."""

import json
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tests.orchestrator.harness import inline

from starloom.agents.faultrules import Armed, FaultRules, Way, drawn
from starloom.dag import limits
from starloom.dag.constellation import Constellation, StageSpec, Tier
from starloom.dag.errors import Conflict, InvalidInput, Overloaded
from starloom.dag.facts import (
    AgentJoined,
    AgentLost,
    AnyFact,
    EpochStarted,
    JobEnded,
    JobStatus,
    JobSubmitted,
    StageCommitted,
    StagePlaced,
    StageSuperseded,
)
from starloom.dag.ids import AgentId, Attempt, Epoch, FencingToken, JobId, StageId
from starloom.devices.faultdoc import read_plan
from starloom.devices.faults import AT_ONCE, LIVE, OF_ORCHESTRATOR, ORCHESTRATOR, Fault, FaultKind, FaultPlan
from starloom.orchestrator.infos import Event
from starloom.orchestrator.trials.planning import NodeFacts, Planned, check_fit, horizon, plan_faults
from starloom.orchestrator.trials.survival import Injection, Survival, judge

NODES = [
    NodeFacts(AgentId("a"), Tier.DEVICE),
    NodeFacts(AgentId("b"), Tier.EDGE, {"rack": "1"}),
    NodeFacts(AgentId("c"), Tier.EDGE),
    NodeFacts(AgentId("d"), Tier.CLOUD),
]
SECOND = 1_000_000_000
JOB = JobId("job-1")
WORK = Constellation(name="test", stages={StageId("s"): StageSpec(id=StageId("s"), kind="basic.noop")})

at_times = sorted(
    set(LIVE)
    - {FaultKind.FETCH_FAILS, FaultKind.FETCH_DAMAGED, FaultKind.STAGE_FAILS}
    - {FaultKind.STAGE_HANGS, FaultKind.REPLY_LOST}
)
faults = some.builds(
    Fault,
    what=some.sampled_from(at_times),
    per_minute=some.floats(1, 600),
    most=some.integers(0, 5),
    lasts_seconds=some.tuples(some.floats(0, 3), some.floats(3, 40)),
    from_seconds=some.floats(0, 10),
    to_seconds=some.floats(10, 100),
    armed=some.floats(0, 1),
)
plans = some.builds(FaultPlan, quiet_after_seconds=some.floats(5, 30), faults=some.lists(faults, max_size=4).map(tuple))


@given(plan=plans, seed=some.integers(0, 2**63 - 1), shuffle=some.integers(0, 1_000))
def test_the_same_seed_gives_the_same_faults_within_their_bounds(plan: FaultPlan, seed: int, shuffle: int) -> None:
    planned = plan_faults(plan, seed, NODES)
    nodes = list(NODES)
    Random(shuffle).shuffle(nodes)
    assert plan_faults(plan, seed, nodes) == planned
    assert [fault.id for fault in planned] == [f"fault-{number}" for number in range(1, len(planned) + 1)]
    assert len(planned) <= limits.FAULTS_PLANNED_MAX
    times = [fault.at_seconds or 0.0 for fault in planned]
    assert times == sorted(times)
    for fault in planned:
        assert fault.at_seconds is not None
        assert fault.lasts_seconds is not None
        assert fault.at_seconds + fault.lasts_seconds <= horizon(plan) + 1e-9
        assert (fault.lasts_seconds == 0) >= (fault.what in AT_ONCE)
        assert fault.node == ORCHESTRATOR if fault.what in OF_ORCHESTRATOR else fault.node in "abcd"
    for meant in plan.faults:
        if meant.most and sum(other.what == meant.what for other in plan.faults) == 1:
            assert sum(one.what == meant.what for one in planned) <= meant.most


def test_another_seed_gives_other_faults() -> None:
    plan = FaultPlan(faults=(Fault(what=FaultKind.AGENT_CRASH, per_minute=60),))
    assert len({plan_faults(plan, seed, NODES) for seed in range(20)}) == 20


def test_a_share_of_all_runs_is_armed() -> None:
    plan = FaultPlan(faults=(Fault(what=FaultKind.AGENT_CRASH, at_seconds=1, armed=0.3),))
    armed = sum(bool(plan_faults(plan, seed, NODES)) for seed in range(1_000))
    assert 250 < armed < 350


@pytest.mark.parametrize(
    ("fault", "nodes"),
    [
        ({"node": "b"}, {"b"}),
        ({"tier": Tier.EDGE}, {"b", "c"}),
        ({"labels": {"rack": "1"}}, {"b"}),
        ({}, {"a", "b", "c", "d"}),
    ],
)
def test_it_happens_to_the_nodes_that_are_meant_and_to_all_of_them_sooner_or_later(
    fault: dict[str, object], nodes: set[str]
) -> None:
    made = Fault(what=FaultKind.AGENT_HANG, at_seconds=1, **fault)  # type: ignore[arg-type]
    assert {plan_faults(FaultPlan(faults=(made,)), seed, NODES)[0].node for seed in range(60)} == nodes


def test_what_waits_for_a_stage_has_the_node_that_has_it_then_and_comes_as_often_as_is_said() -> None:
    plan = read_plan(
        "faults: [{what: agent-crash, stage: s, most: 2}, {what: agent-hang, stage: s, node: c, heals: false}]"
    )
    first, second, hang = plan_faults(plan, 1, NODES)
    assert [(each.node, each.at_seconds, each.stage, each.lasts_seconds) for each in (first, second, hang)] == [
        ("", None, "s", 0.0),
        ("", None, "s", 0.0),
        ("c", None, "s", None),
    ]


def test_only_the_faults_of_one_entry_take_turns_at_a_stage() -> None:
    plan = read_plan(
        "faults:\n"
        "  - {what: link-slow, stage: s, node: a, peer: b, most: 2}\n"
        "  - {what: link-slow, stage: s, node: a, peer: c}\n"
    )
    assert [(each.peer, each.entry) for each in plan_faults(plan, 1, NODES)] == [("b", 0), ("b", 0), ("c", 1)]


def test_what_happens_at_opportunities_is_armed_everywhere_for_its_time() -> None:
    plan = read_plan(
        "quiet_after_seconds: 9\n"
        "faults: [{what: stage-fails, chance: 0.5, tier: edge, from_seconds: 2}, {what: reply-lost, chance: 1, at_seconds: 1}]"
    )
    lost, fails = plan_faults(plan, 1, NODES)
    assert (fails.nodes, fails.at_seconds, fails.lasts_seconds, fails.chance) == (("b", "c"), 2.0, 7.0, 0.5)
    assert (lost.node, lost.nodes, lost.at_seconds) == (ORCHESTRATOR, (), 1.0)


def test_a_plan_that_does_not_fit_is_refused_with_everything_it_names_in_vain() -> None:
    plan = read_plan(
        "faults:\n"
        "  - {what: agent-crash, stage: t}\n"
        "  - {what: agent-crash, at_seconds: 1, node: x}\n"
        "  - {what: partition, at_seconds: 1, peer: y}\n"
        "  - {what: agent-flap, per_minute: 1}\n"
    )
    with pytest.raises(InvalidInput) as raised:
        check_fit(plan, NODES, WORK)
    assert [problem.place for problem in raised.value.problems] == [
        "faults.3.what",
        "faults.0.stage",
        "faults.1",
        "faults.2.peer",
    ]
    check_fit(read_plan("faults: [{what: partition, stage: s, node: a, peer: orchestrator}]"), NODES, WORK)


def test_a_kind_that_none_of_the_nodes_that_are_meant_runs_is_refused_with_those_that_there_are() -> None:
    many = [f"kind.{number}" for number in range(20)]
    nodes = [
        NodeFacts(AgentId("a"), Tier.DEVICE, kinds=["audio.decode", "text.read"]),
        NodeFacts(AgentId("b"), Tier.EDGE, kinds=["text.read"]),
        NodeFacts(AgentId("c"), Tier.CLOUD, kinds=many),
    ]

    def said(kind: str, whom: str = "") -> str:
        plan = read_plan(f"faults: [{{what: stage-fails, chance: 1, kind: {kind}{whom}}}]")
        try:
            check_fit(plan, nodes, WORK)
        except InvalidInput as error:
            return str(error)
        return ""

    assert said("text.read") == said("kind.7") == said("text.read", ", tier: edge") == ""
    assert "faults.0.kind: no node runs stages of the kind 'text.raed'; did you mean 'text.read'?" in said("text.raed")
    assert "'x'; known: audio.decode, kind.0, kind.1, " in said("x")
    assert said("x").endswith("kind.18 and 10 more")
    assert said("x", ", node: a").endswith("'x'; known: audio.decode, text.read")
    assert said("audio.decode", ", node: b").endswith("'audio.decode'; there are such on a")


class TestRules:
    def test_a_partition_one_way_keeps_back_that_way_and_values_of_the_store(self) -> None:
        rules = FaultRules()
        rules.arm(Armed(id="f", what=FaultKind.PARTITION_UP, until=10), 0)
        assert rules.cuts_session(Way.UP, 9)
        assert not rules.cuts_session(Way.DOWN, 9)
        assert rules.cuts_data("store", True, 9)
        assert not rules.cuts_data("peer", False, 9)
        assert not rules.cuts_session(Way.UP, 10), "its time is over"

    def test_a_partition_from_a_peer_is_of_that_peer_alone(self) -> None:
        rules = FaultRules()
        rules.arm(Armed(id="f", what=FaultKind.PARTITION, peer="b", address="b:1"), 0)
        assert rules.cuts_data("b:1", False, 5)
        assert not rules.cuts_data("c:1", False, 5)
        assert not rules.cuts_data("store", True, 5)
        assert not rules.cuts_session(Way.UP, 5)
        rules.arm(Armed(id="g", what=FaultKind.PARTITION, peer=ORCHESTRATOR), 0)
        assert rules.cuts_session(Way.UP, 5)
        assert rules.cuts_session(Way.DOWN, 5)
        assert not rules.cuts_data("c:1", False, 5)

    def test_delays_add_up_and_requests_take_both_ways(self) -> None:
        rules = FaultRules()
        rules.arm(Armed(id="f", what=FaultKind.LINK_SLOW, delay_seconds=0.5), 0)
        rules.arm(Armed(id="g", what=FaultKind.LINK_SLOW, delay_seconds=0.25, peer="b", address="b:1"), 0)
        assert rules.session_delay(1) == 0.5
        assert rules.data_delay("b:1", False, 1) == 1.5
        assert rules.data_delay("c:1", False, 1) == 1.0

    def test_slowness_is_of_a_kind_or_of_all(self) -> None:
        rules = FaultRules()
        rules.arm(Armed(id="f", what=FaultKind.AGENT_SLOW, factor=3), 0)
        rules.arm(Armed(id="g", what=FaultKind.AGENT_SLOW, factor=2, add_seconds=1, kind="basic.add"), 0)
        assert rules.slowness("basic.add", 1) == (6.0, 1.0)
        assert rules.slowness("basic.noop", 1) == (3.0, 0.0)

    def test_chances_are_the_same_for_a_seed_and_bounded(self) -> None:
        def fired(seed: int, most: int = 0) -> list[bool]:
            rules = FaultRules()
            rules.arm(Armed(id="f", what=FaultKind.STAGE_FAILS, chance=0.5, seed=seed, most=most), 0)
            return [rules.fires(FaultKind.STAGE_FAILS, 1) is not None for _ in range(40)]

        assert fired(1) == fired(1)
        assert fired(1) != fired(2)
        assert 10 < sum(fired(1)) < 30
        assert sum(fired(1, most=3)) == 3
        assert all(0 <= drawn(1, number) < 1 for number in range(1_000))

    def test_healing_ends_those_that_are_named_or_all(self) -> None:
        rules = FaultRules()
        for name in "fgh":
            rules.arm(Armed(id=name, what=FaultKind.STAGE_FAILS), 0)
        with pytest.raises(Conflict, match="'f' is armed already"):
            rules.arm(Armed(id="f", what=FaultKind.PARTITION), 0)
        assert [fault.id for fault in rules.heal(["g", "x"], 1)] == ["g"]
        assert [fault.id for fault in rules.armed(1)] == ["f", "h"]
        assert [fault.id for fault in rules.heal([], 1)] == ["f", "h"]
        assert rules.armed(1) == ()

    def test_what_a_process_cannot_have_and_too_many_are_refused(self) -> None:
        rules = FaultRules((FaultKind.DISK_FULL,))
        with pytest.raises(InvalidInput, match="stage-fails does not happen here"):
            rules.arm(Armed(id="f", what=FaultKind.STAGE_FAILS), 0)
        for number in range(limits.FAULTS_ARMED_MAX):
            rules.arm(Armed(id=str(number), what=FaultKind.DISK_FULL, until=5), 0)
        with pytest.raises(Overloaded):
            rules.arm(Armed(id="f", what=FaultKind.DISK_FULL), 4)
        rules.arm(Armed(id="f", what=FaultKind.DISK_FULL), 5)


def told(*events: tuple[float, AnyFact]) -> list[Event]:
    return [Event(offset=offset, unix_nanos=round(at * SECOND), fact=fact) for offset, (at, fact) in enumerate(events)]


def token(attempt: int) -> FencingToken:
    return FencingToken(Epoch(1), Attempt(attempt))


def placed(stage: str, agent: str, attempt: int = 1) -> StagePlaced:
    return StagePlaced(job=JOB, stage=StageId(stage), token=token(attempt), agent=AgentId(agent))


def committed(stage: str, attempt: int = 1) -> StageCommitted:
    return StageCommitted(job=JOB, stage=StageId(stage), token=token(attempt), outputs={"value": inline(1)})


def superseded(stage: str) -> StageSuperseded:
    return StageSuperseded(job=JOB, stage=StageId(stage), token=token(1), reason="lost")


SUBMITTED = JobSubmitted(job=JOB, constellation=WORK)
ENDED = JobEnded(job=JOB, status=JobStatus.SUCCEEDED)
LOST = AgentLost(agent=AgentId("a"), incarnation="one", reason="silent")
BACK = AgentJoined(agent=AgentId("a"), incarnation="two")
CRASH = Injection(
    planned=Planned(id="fault-1", what=FaultKind.AGENT_CRASH, node="a", at_seconds=1.0),
    node="a",
    unix_nanos=11 * SECOND,
    healed_unix_nanos=11 * SECOND,
    incarnation="one",
)
HANG = Injection(
    planned=Planned(id="fault-2", what=FaultKind.AGENT_HANG, node="a", at_seconds=1.0, lasts_seconds=2.0),
    node="a",
    unix_nanos=11 * SECOND,
    healed_unix_nanos=13 * SECOND,
    incarnation="one",
)
LIVED = (
    (10.0, SUBMITTED),
    (10.1, placed("s", "a")),
    (10.1, placed("t", "b")),
    (12.0, LOST),
    (12.0, superseded("s")),
    (12.5, committed("t")),
    (13.0, BACK),
    (14.0, committed("s", 2)),
    (15.0, ENDED),
)
DIGESTS = {"value": "digest"}
WHOLE = frozenset({"a", ORCHESTRATOR})


def judged(
    events: Sequence[tuple[float, AnyFact]] = LIVED,
    injections: Sequence[Injection] = (CRASH,),
    whole: frozenset[str] = WHOLE,
    outputs: dict[str, str] = DIGESTS,
) -> Survival:
    return judge(JOB, told(*events), injections, whole, outputs, DIGESTS)


def test_a_fault_is_seen_from_its_injection_until_all_that_it_cost_is_made_again() -> None:
    found = judged()
    assert (found.verdict, found.planned, found.injected, found.recovered, found.lost) == ("held", 1, 1, 1, 0)
    assert (found.detect_seconds, found.recover_seconds, found.job_seconds) == (1.0, 3.0, 5.0)
    assert (found.faults[0].at_seconds, found.faults[0].healed_seconds) == (1.0, 1.0)


def test_a_kill_that_cost_nothing_is_recovered_from_when_the_process_is_back() -> None:
    found = judged([(10.0, SUBMITTED), (12.0, LOST), (12.5, BACK), (15.0, ENDED)])
    assert (found.detect_seconds, found.recover_seconds, found.verdict) == (1.0, 1.5, "held")


def test_of_the_orchestrator_its_next_epoch_and_commit_count() -> None:
    planned = Planned(id="fault-1", what=FaultKind.ORCHESTRATOR_CRASH, node=ORCHESTRATOR, at_seconds=1.0)
    kill = Injection(planned=planned, node=ORCHESTRATOR, unix_nanos=11 * SECOND, healed_unix_nanos=11 * SECOND)
    found = judged(
        [(10.0, SUBMITTED), (11.5, EpochStarted(epoch=Epoch(2))), (12.0, committed("s")), (15.0, ENDED)], [kill]
    )
    assert (found.verdict, found.detect_seconds, found.recover_seconds) == ("held", 0.5, 1.0)


def test_what_did_not_happen_is_planned_and_breaks_nothing() -> None:
    found = judged([(10.0, SUBMITTED), (15.0, ENDED)], [Injection(planned=CRASH.planned)])
    assert (found.planned, found.injected, found.recovered, found.verdict) == (1, 0, 0, "held")


@pytest.mark.parametrize(
    ("events", "injection", "whole", "outputs", "why"),
    [
        (LIVED, CRASH, WHOLE, {"value": "other"}, "outputs differ: value"),
        (LIVED, CRASH, WHOLE, {}, "outputs differ: value"),
        ((*LIVED[:-1], (14.5, committed("s", 3)), LIVED[-1]), CRASH, WHOLE, DIGESTS, "1 results committed twice"),
        (LIVED[:-1], CRASH, WHOLE, DIGESTS, "the job is open"),
        (LIVED, CRASH, frozenset({ORCHESTRATOR}), DIGESTS, "fault-1 (agent-crash of a): a is not back"),
        (
            [event for event in LIVED if event[1] is not BACK],
            CRASH,
            WHOLE,
            DIGESTS,
            "fault-1 (agent-crash of a): nothing tells that another process took its place",
        ),
        (
            LIVED,
            Injection(planned=HANG.planned, node="a", unix_nanos=HANG.unix_nanos, incarnation="one"),
            WHOLE,
            DIGESTS,
            "fault-2 (agent-hang of a): it was not healed",
        ),
    ],
)
def test_what_is_not_as_promised_breaks_a_run(
    events: Sequence[tuple[float, AnyFact]],
    injection: Injection,
    whole: frozenset[str],
    outputs: dict[str, str],
    why: str,
) -> None:
    found = judged(events, [injection], whole, outputs)
    assert (found.verdict, found.what) == ("broken", (why,))


def test_a_hang_that_was_healed_is_recovered_from() -> None:
    found = judged(LIVED, [HANG])
    assert (found.verdict, found.recovered, found.detect_seconds) == ("held", 1, 1.0)


def test_what_is_planned_can_be_told_as_json() -> None:
    import msgspec

    plan = read_plan("faults: [{what: agent-crash, per_minute: 30}]")
    assert json.loads(msgspec.json.encode(plan_faults(plan, 3, NODES)))[0]["what"] == "agent-crash"
