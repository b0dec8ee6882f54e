"""Which nodes may run a stage, and which one it goes to."""

from typing import Any

import msgspec
import pytest
from tests.orchestrator.harness import KINDS, SECOND, World, node, stored

from starloom.agents.messages import Load
from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Preference, Preferences, Requirements, Tier
from starloom.dag.facts import AgentJoined, Timing
from starloom.dag.ids import AgentId, JobId, StageId
from starloom.dag.kinds import Cost, KindSpec
from starloom.dag.values import PortType
from starloom.devices.linkmeter import MeasuredLink
from starloom.devices.links import STORE_TIER, link
from starloom.devices.node import NodeProfile
from starloom.orchestrator.costs import Costs
from starloom.orchestrator.feasible import dislike_seconds, dislikes, may, misfits, target_for, targets_for
from starloom.orchestrator.fleet import AgentState, Fleet, Member
from starloom.orchestrator.paths import path
from starloom.orchestrator.placement import (
    Candidate,
    Choice,
    EarliestFinish,
    Move,
    Want,
    transfer_seconds,
)

WORK = KindSpec(name="k", cost=Cost(run_seconds=1.0, load_seconds=4.0))


def members(*profiles: NodeProfile) -> list[Member]:
    """Agents that have joined, by name."""
    fleet = Fleet()
    for profile in profiles:
        fleet.joined(AgentJoined(agent=profile.name, incarnation="i", profile=msgspec.to_builtins(profile)))
    return [fleet.members[name] for name in sorted(fleet.members)]


def choose(planner: EarliestFinish, found: list[Member], kind: KindSpec = WORK, **want: Any) -> Choice | None:
    preferred = kind.tier
    candidates = [Candidate(m, "cpu", preferred in (None, m.profile.tier)) for m in found]
    return planner.choose(Want(JobId("j"), StageId("s"), kind, **want), candidates)


def name_of(choice: Choice | None) -> str:
    assert choice is not None
    return choice.candidate.member.name


class TestFeasible:
    @pytest.mark.parametrize(
        ("require", "why"),
        [
            (Requirements(), []),
            (Requirements(tiers=(Tier.EDGE, Tier.CLOUD)), []),
            (Requirements(tiers=(Tier.CLOUD,)), ["is on the edge tier"]),
            (Requirements(target="npu"), []),
            (Requirements(target="gpu"), ["has no target gpu (it has cpu, npu)"]),
            (Requirements(labels={"site": "north"}), []),
            (Requirements(labels={"site": "south"}), ["has the label site=north"]),
            (Requirements(labels={"room": "1"}), ["has no label room"]),
            (Requirements(memory_bytes=1024), []),
            (Requirements(memory_bytes=1025), ["has 1024 bytes of memory"]),
            (Requirements(node="edge-1"), []),
            (Requirements(node="edge-2", memory_bytes=2**40), ["is not 'edge-2'"]),
        ],
    )
    def test_each_requirement(self, require: Requirements, why: list[str]) -> None:
        profile = node("edge-1", targets=("cpu", "npu"), labels={"site": "north"}, memory_bytes=1024)
        kind = KindSpec(name="k", targets=("npu", "cpu", "gpu"))
        assert list(misfits(profile, True, kind, require, None)) == why
        assert may(profile, True, kind, require, None) is not bool(why)

    def test_a_kind_has_to_be_offered(self) -> None:
        assert list(misfits(node("edge-1"), False, KindSpec(name="k"), Requirements(), None)) == ["does not offer k"]

    def test_the_target_is_the_required_or_the_kinds_first_that_is_there(self) -> None:
        both, plain = node("a", targets=("cpu", "npu")), node("b")
        kind = KindSpec(name="k", targets=("npu", "cpu"))
        assert target_for(both, kind, Requirements()) == "npu"
        assert target_for(plain, kind, Requirements()) == "cpu"
        assert target_for(both, kind, Requirements(target="cpu")) == "cpu"
        assert target_for(plain, kind, Requirements(target="npu")) == ""


class TestPreferences:
    NEAR = Preferences(prefer=(Preference(tiers=(Tier.DEVICE,), seconds=2.0),))

    @pytest.mark.parametrize(
        ("prefers", "seconds", "said"),
        [
            (Preferences(), 0.0, []),
            (Preferences(prefer=(Preference(tiers=(Tier.EDGE, Tier.CLOUD), node="edge-1", target="npu"),)), 0.0, []),
            (Preferences(prefer=(Preference(labels={"site": "north"}),)), 0.0, []),
            (NEAR, 2.0, ["is not on the device tier, which is preferred by 2 s"]),
            (
                Preferences(prefer=(Preference(node="edge-1", target="cpu"),)),
                1.0,
                ["is not on node edge-1 with target cpu, which is preferred by 1 s"],
            ),
            (
                Preferences(avoid=(Preference(labels={"site": "north", "power": "mains"}, seconds=3.0),)),
                3.0,
                ["is on site=north with power=mains, which is avoided by 3 s"],
            ),
            (Preferences(avoid=(Preference(labels={"site": "north", "power": "battery"}),)), 0.0, []),
        ],
    )
    def test_each_counts_where_it_is_not_met(self, prefers: Preferences, seconds: float, said: list[str]) -> None:
        profile = node("edge-1", targets=("cpu", "npu"), labels={"site": "north", "power": "mains"})
        assert dislike_seconds(profile, "npu", KindSpec(name="k"), prefers) == seconds
        assert list(dislikes(profile, "npu", prefers)) == said

    def test_the_kinds_own_tier_decides_between_equal_places(self) -> None:
        kind = KindSpec(name="k", tier=Tier.DEVICE)
        here, there = (
            dislike_seconds(node("a", tier), "cpu", kind, Preferences()) for tier in (Tier.DEVICE, Tier.EDGE)
        )
        assert (here, there) == (0.0, limits.PLAN_OTHER_TIER_SECONDS)

    @pytest.mark.parametrize(("seconds", "name"), [(3.5, "b"), (4.5, "a")])
    def test_a_place_may_end_it_so_much_later(self, seconds: float, name: str) -> None:
        """`b` has loaded what `a` would load for four seconds."""
        found = members(node("a"), node("b"))
        found[1].resident.add("k")
        candidates = [Candidate(found[0], "cpu"), Candidate(found[1], "cpu", counts_seconds=seconds)]
        choice = EarliestFinish().choose(Want(JobId("j"), StageId("s"), WORK), candidates)
        assert choice is not None
        assert (choice.candidate.member.name, choice.finish) == (name, 1.0 if name == "b" else 5.0)

    def test_targets_are_weighed_if_one_is_preferred(self) -> None:
        kind = KindSpec(name="k", targets=("npu", "cpu", "gpu"))
        profile = node("a", targets=("cpu", "npu"))
        cpu = Preferences(prefer=(Preference(target="cpu"),))
        assert targets_for(profile, kind, Requirements(), self.NEAR) == ("npu",)
        assert targets_for(profile, kind, Requirements(), cpu) == ("npu", "cpu")
        assert targets_for(profile, kind, Requirements(target="npu"), cpu) == ("npu",)


class TestEarliestFinish:
    def test_equal_nodes_are_taken_by_name(self) -> None:
        assert name_of(choose(EarliestFinish(), members(node("b"), node("a"), node("c")))) == "a"

    def test_nothing_open_is_no_place(self) -> None:
        (only,) = found = members(node("a"))
        for state in (AgentState.SUSPECT, AgentState.LOST):
            only.state = state
            assert choose(EarliestFinish(), found) is None
        only.state, only.rests_until = AgentState.ONLINE, 1
        assert choose(EarliestFinish(), found) is None

    def test_a_busy_node_is_weighed_by_its_work(self) -> None:
        planner, found = EarliestFinish(), members(node("a", slots=1), node("b", slots=1))
        for member in found:
            member.resident.add("k")
        found[0].seconds, found[0].assigned = 3.0, {("x",): None}  # type: ignore[dict-item]
        assert name_of(choose(planner, found)) == "b"
        found[1].seconds, found[1].assigned = 9.0, {("y",): None}  # type: ignore[dict-item]
        assert name_of(choose(planner, found)) == "a"

    def test_a_free_slot_is_no_wait(self) -> None:
        found = members(node("a", slots=2), node("b", slots=2))
        found[0].seconds, found[0].assigned = 100.0, {("x",): None}  # type: ignore[dict-item]
        assert name_of(choose(EarliestFinish(), found)) == "b", "of equal nodes the one with less in hand"
        found[0].resident.add("k")
        assert name_of(choose(EarliestFinish(), found)) == "a"

    def test_a_loaded_model_is_worth_its_load_time(self) -> None:
        found = members(node("a"), node("b"))
        found[1].resident.add("k")
        choice = choose(EarliestFinish(), found)
        assert name_of(choice) == "b"
        assert choice is not None
        assert choice.seconds == 1.0

    def test_large_inputs_draw_the_stage_to_them(self) -> None:
        found = members(node("cloud", Tier.CLOUD), node("device", Tier.DEVICE))
        move = Move(100_000_000, found[1])
        assert name_of(choose(EarliestFinish(), found, moves=[move])) == "device"
        assert name_of(choose(EarliestFinish(), found, moves=[Move(100_000_000, None)])) == "device"

    def test_the_kinds_own_tier_goes_first_while_it_has_room(self) -> None:
        kind = KindSpec(name="k", tier=Tier.EDGE)
        found = members(node("a", Tier.CLOUD), node("b", Tier.EDGE, slots=1))
        found[1].seconds, found[1].assigned = 100.0, {("x",): None}  # type: ignore[dict-item]
        assert name_of(choose(EarliestFinish(), found, kind)) == "b"
        found[1].capacity = 1
        assert name_of(choose(EarliestFinish(), found, kind)) == "a"

    def test_nodes_to_avoid_come_last(self) -> None:
        found = members(node("a"), node("b"))
        assert name_of(choose(EarliestFinish(), found, avoid={AgentId("a")})) == "b"
        assert name_of(choose(EarliestFinish(), found, avoid={AgentId("a"), AgentId("b")})) == "a"


class TestCosts:
    def test_a_hint_counts_until_something_was_measured(self) -> None:
        costs = Costs()
        assert costs.run_seconds(WORK, AgentId("a"), "cpu") == 1.0
        costs.learn("k", AgentId("a"), "cpu", Timing(run=3.0))
        assert costs.run_seconds(WORK, AgentId("a"), "cpu") == 3.0
        assert costs.run_seconds(WORK, AgentId("b"), "cpu") == 3.0, "elsewhere, what was measured anywhere"
        assert costs.run_seconds(WORK, AgentId("a"), "npu") == 1.0
        costs.learn("k", AgentId("b"), "cpu", Timing(run=5.0))
        assert costs.run_seconds(WORK, AgentId("a"), "cpu") == 3.0

    def test_averages_follow_what_is_measured(self) -> None:
        costs = Costs()
        for seconds in (1.0, 2.0, 2.0, 2.0):
            costs.learn("k", AgentId("a"), "cpu", Timing(run=seconds))
        assert 1.5 < costs.run_seconds(WORK, AgentId("a"), "cpu") < 2.0

    def test_loads_are_learned_from_those_that_took_time(self) -> None:
        costs = Costs()
        assert costs.load_seconds(WORK) == 4.0
        costs.learn("k", AgentId("a"), "cpu", Timing(run=1.0, load=2.0))
        costs.learn("k", AgentId("a"), "cpu", Timing(run=1.0))
        assert costs.load_seconds(WORK) == 2.0


class TestMeasuredLinks:
    def test_a_value_goes_where_it_was_measured_to_go_fast(self) -> None:
        cloud, device = members(node("cloud", Tier.CLOUD), node("device", Tier.DEVICE))
        device.seconds, device.assigned = 5.0, {("x",): None}  # type: ignore[dict-item]
        device.slots = 1
        moves = [Move(100_000_000, device)]
        assert name_of(choose(EarliestFinish(), [cloud, device], moves=moves)) == "device"
        cloud.beat(Load(links={"device": MeasuredLink(latency_seconds=0.001, bytes_per_second=1e9)}))
        assert transfer_seconds(moves, cloud) == pytest.approx(0.101)
        assert name_of(choose(EarliestFinish(), [cloud, device], moves=moves)) == "cloud"

    def test_the_other_way_is_told_of_until_this_one_is(self) -> None:
        a, b = members(node("a"), node("b"))
        usual = transfer_seconds([Move(10**6, a)], b)
        a.beat(Load(links={"b": MeasuredLink(latency_seconds=0.5)}))
        # Nothing said of them is nothing changed.
        a.beat(Load())
        latency = link(a.profile.tier, b.profile.tier).latency_seconds
        assert transfer_seconds([Move(10**6, a)], b) == pytest.approx(usual + 0.5 - latency)
        b.beat(Load(links={"a": MeasuredLink(latency_seconds=0.25), "": MeasuredLink(latency_seconds=3.0)}))
        assert path(a, b).latency_seconds == 0.25
        assert path(None, b).latency_seconds == 3.0
        a.beat(Load(links={"b": MeasuredLink(latency_seconds=0.5, bytes_per_second=7e8)}))
        assert path(a, b).latency_seconds == 0.25
        assert path(a, b).bytes_per_second == 7e8, "of which b has not told"
        assert path(None, a) == link(STORE_TIER, a.profile.tier)


def test_values_on_the_same_node_cost_nothing() -> None:
    a, b = members(node("a"), node("b"))
    assert transfer_seconds([Move(10**9, a)], a) == 0.0
    assert transfer_seconds([Move(10**6, a), Move(10**6, b)], a) == transfer_seconds([Move(10**6, b)], a) > 0


class TestInTheCoordinator:
    def test_a_kind_is_drawn_to_where_it_ran(self, world: Any) -> None:
        w: World = world(node("edge-1", slots=4), node("edge-2", slots=4))
        w.agents["edge-1"].profile = node("edge-1", slots=4)
        for name in ("one", "two"):
            graph = Graph(name)
            audio = graph.input("audio", PortType.BYTES)
            require = Requirements(node="edge-2") if name == "one" else Requirements()
            graph.stage(name, "t.heavy", x=audio, require=require)
            w.submit(graph.build(KINDS), {"audio": stored()})
            if name == "one":
                w.finish("one", run=1.0, load=4.0)
        assert w.where("two").name == "edge-2"

    def test_a_new_process_has_nothing_loaded(self, world: Any) -> None:
        w: World = world(node("edge-1"))
        graph = Graph("one")
        graph.stage("a", "t.work")
        w.submit(graph.build(KINDS))
        w.finish("a")
        member = w.coordinator._state.fleet.members[AgentId("edge-1")]
        assert member.resident == {"t.work"}
        w.join(node("edge-1"))
        assert member.resident == set()

    def test_what_a_heartbeat_says_is_loaded_is_believed_of_kinds_that_name_models(self, world: Any) -> None:
        w: World = world(node("edge-1"))
        member = w.coordinator._state.fleet.members[AgentId("edge-1")]
        named, unnamed = KindSpec(name="t.named", models=("m",)), KindSpec(name="t.unnamed")
        member.ran("t.named")
        member.ran("t.unnamed")
        member.beat(Load())
        assert all(map(member.is_resident, (named, unnamed))), "it does not say, so what ran is there"
        member.beat(Load(resident=()))
        assert not member.is_resident(named), "its models are gone"
        assert member.is_resident(unnamed), "of which nothing can be told"
        member.ran("t.named")
        assert member.is_resident(named), "it has run since"
        w.join(node("edge-1"))
        assert not member.is_resident(named)

    def test_requirements_overrule_the_kinds_own_tier(self, world: Any) -> None:
        w: World = world(node("a", Tier.CLOUD), node("b", Tier.EDGE))
        graph = Graph("tiers")
        graph.stage("usual", "t.heavy")
        graph.stage("told", "t.heavy", require=Requirements(tiers=(Tier.CLOUD, Tier.DEVICE)))
        w.submit(graph.build(KINDS))
        assert (w.where("usual").name, w.where("told").name) == ("b", "a")

    def test_the_target_goes_out_with_the_assignment(self, world: Any) -> None:
        w: World = world(node("edge-1", targets=("cpu", "npu")))
        graph = Graph("targets")
        graph.stage("usual", "t.see")
        graph.stage("told", "t.see", require=Requirements(target="cpu"))
        job = w.submit(graph.build(KINDS))
        assert (w.assigned("usual").target, w.assigned("told").target) == ("npu", "cpu")
        assert w.stage(job, "usual").target == "npu"

    def test_wide_work_is_spread_over_equal_nodes(self, world: Any) -> None:
        w: World = world(*(node(f"edge-{index}") for index in range(4)))
        graph = Graph("wide")
        for index in range(8):
            graph.stage(f"s{index}", "t.work")
        w.submit(graph.build(KINDS))
        assert [len(agent.tasks) for agent in w.agents.values()] == [2, 2, 2, 2]

    def test_expected_work_goes_with_its_attempts(self, world: Any) -> None:
        w: World = world(node("edge-1"))
        graph = Graph("wide")
        for index in range(limits.AGENT_BACKLOG_STAGES + 10):
            graph.stage(f"s{index}", "t.heavy")
        w.submit(graph.build(KINDS))
        member = w.coordinator._state.fleet.members[AgentId("edge-1")]
        assert member.seconds == pytest.approx(5.0 * (2 + limits.AGENT_BACKLOG_STAGES))
        w.advance(1.0)
        w.finish_all()
        assert (member.seconds, member.assigned) == (0.0, {})
        assert w.now > SECOND
