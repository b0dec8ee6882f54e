"""A constellation and a fleet become a problem: places, times, sizes, and why a stage may not stand somewhere."""

import msgspec
import numpy as np
import pytest

from starloom.dag import limits
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Preference, Preferences, Private, Requirements, Spread, Tier
from starloom.dag.ids import StageId
from starloom.dag.kinds import Cost, KindSpec
from starloom.dag.values import Port, PortType
from starloom.devices.links import BY_TIERS
from starloom.orchestrator.fleetfile import parse
from starloom.orchestrator.planner.building import STORE, USUAL_BYTES, Measured, build, pinned, preferred
from starloom.orchestrator.planner.explain import explain
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import NO_MODEL

FLEET = parse(
    b"nodes:\n"
    b"  - {name: cam, tier: device, targets: [cpu, npu], speed: {cpu: 0.5, npu: 4}, memory: 1GiB, resident: [eyes]}\n"
    b"  - {name: edge, tier: edge, slots: 3}\n"
)
KINDS = {
    spec.name: spec
    for spec in (
        KindSpec(
            name="see",
            inputs={"image": Port(PortType.IMAGE)},
            outputs={"text": Port(PortType.TEXT)},
            targets=("npu", "cpu"),
            models=("eyes",),
            tier=Tier.DEVICE,
            cost=Cost(run_seconds=2.0, load_seconds=1.0, memory_bytes=1_000),
        ),
        KindSpec(
            name="say",
            inputs={"text": Port(PortType.TEXT)},
            outputs={"audio": Port(PortType.AUDIO)},
            cost=Cost(run_seconds=1.0),
        ),
    )
}


def constellation(require: Requirements | None = None) -> Constellation:
    graph = Graph("look")
    photo = graph.input("photo", PortType.IMAGE)
    see = graph.stage("see", "see", inputs={"image": photo})
    say = graph.stage("say", "say", inputs={"text": see["text"]}, require=require)
    graph.output("speech", say["audio"])
    return graph.build()


def test_what_is_computed_from_private_data_is_kept_on_its_tier_and_that_is_told() -> None:
    private = msgspec.structs.replace(constellation(), private={"photo": Private.DEVICE})
    built = build(private, KINDS, FLEET)
    assert np.isfinite(built.problem.arrays.seconds[0]).tolist() == [True, True, False, False]
    assert np.isfinite(built.problem.arrays.seconds[1]).tolist() == [True, False, False, False]
    assert built.excluded[0] == {"is on the edge tier, where what is private to device may not be": (2,)}


def test_places_are_targets_of_nodes_and_the_job_store() -> None:
    problem = build(constellation(), KINDS, FLEET).problem
    assert [str(each) for each in problem.places] == ["cam", "cam/npu", "edge", str(STORE)]
    assert [each.slots for each in problem.places] == [1, 1, 3, 1]
    assert problem.stages == ("see", "say", "input photo", "output speech")


def test_a_run_takes_the_hint_by_the_targets_speed_and_only_where_it_may_run() -> None:
    arrays = build(constellation(), KINDS, FLEET).problem.arrays
    assert arrays.seconds[0].tolist() == [4.0, 0.5, 2.0, np.inf]
    assert arrays.seconds[1].tolist() == [2.0, np.inf, 1.0, np.inf]
    # What is given lies in the store, and what is made goes there.
    assert arrays.seconds[2:].tolist() == [[np.inf, np.inf, np.inf, 0.0]] * 2
    assert arrays.penalty[0].tolist() == [0.0, 0.0, limits.PLAN_OTHER_TIER_SECONDS, 0.0]


def test_models_load_at_the_targets_speed_unless_they_are_resident() -> None:
    problem = build(constellation(), KINDS, FLEET).problem
    assert problem.models == ("see",)
    assert problem.arrays.model.tolist() == [0, NO_MODEL, NO_MODEL, NO_MODEL]
    assert problem.arrays.load_seconds.tolist() == [[2.0, 0.25, 1.0, 0.0]]
    assert problem.arrays.resident.tolist() == [[True, False, False]]
    assert problem.arrays.memory_bytes.tolist() == [2**30, np.inf, np.inf]
    assert problem.arrays.working_bytes[:, 0].tolist() == [1_000, 0, 0, 0]


def test_values_move_over_the_links_of_the_fleet() -> None:
    problem = build(constellation(), KINDS, FLEET, {"photo": 5_000_000}).problem
    arrays = problem.arrays
    arcs = {
        (problem.stages[a], problem.stages[b]): size
        for a, b, size in zip(arrays.upstream, arrays.downstream, arrays.size_bytes, strict=True)
    }
    assert arcs == {
        ("see", "say"): USUAL_BYTES[PortType.TEXT],
        ("input photo", "see"): 5_000_000,
        ("say", "output speech"): USUAL_BYTES[PortType.AUDIO],
    }
    usual = BY_TIERS[frozenset({Tier.DEVICE, Tier.EDGE})]
    assert arrays.latency[0, 1] == arrays.latency[0, 2] == usual.latency_seconds
    assert arrays.seconds_per_byte[0, 1] == pytest.approx(1 / usual.bytes_per_second)
    assert arrays.latency.diagonal().tolist() == [0.0] * 3


def test_memory_that_is_not_known_suffices() -> None:
    arrays = build(constellation(Requirements(memory_bytes=2**33)), KINDS, FLEET).problem.arrays
    # The camera says that it has 1 GiB, the edge says nothing.
    assert np.isfinite(arrays.seconds[1]).tolist() == [False, False, True, False]


def test_why_a_stage_may_not_stand_somewhere_is_told() -> None:
    built = build(constellation(Requirements(tiers=(Tier.EDGE,), labels={"rack": "7"})), KINDS, FLEET)
    assert built.excluded[0] == {}
    assert built.excluded[1] == {"is on the device tier": (0, 1), "has no label rack": (0, 1, 2)}
    assert np.isinf(built.problem.arrays.seconds[1]).all()
    elsewhere = build(constellation(), KINDS, FLEET).excluded[1]
    assert elsewhere == {"is its target npu, and say computes on cpu": (1,)}


def with_preferences(prefers: Preferences) -> Constellation:
    found = constellation()
    say = msgspec.structs.replace(found.stages[StageId("say")], prefers=prefers)
    return msgspec.structs.replace(found, stages={**found.stages, StageId("say"): say})


def test_a_preference_counts_at_the_places_that_it_does_not_fit_and_one_to_avoid_where_it_fits() -> None:
    prefers = Preferences(
        prefer=(Preference(tiers=(Tier.EDGE,), seconds=2.0), Preference(node="cam", seconds=0.5)),
        avoid=(Preference(node="edge", target="cpu", seconds=4.0),),
    )
    built = build(with_preferences(prefers), KINDS, FLEET)
    may = np.isfinite(built.problem.arrays.seconds[1])
    places = [str(place) for place in built.problem.places]
    assert dict(zip(np.array(places)[may], built.problem.arrays.penalty[1][may], strict=True)) == {
        "cam": 2.0,
        "edge": 4.5,
    }
    assert built.disliked[0] == {}
    assert built.disliked[1] == {
        places.index("cam"): ("is not on the edge tier, which is preferred by 2 s",),
        places.index("edge"): (
            "is not on node cam, which is preferred by 0.5 s",
            "is on node edge with target cpu, which is avoided by 4 s",
        ),
    }


@pytest.mark.parametrize(("seconds", "node"), [(0.5, "edge"), (1.5, "cam")])
def test_a_plan_takes_a_slower_place_for_as_long_as_that_is_worth_it(seconds: float, node: str) -> None:
    """On the camera's CPU, at half the speed, it takes two seconds instead of one; what goes there and back is little."""
    built = build(with_preferences(Preferences(prefer=(Preference(node="cam", seconds=seconds),))), KINDS, FLEET)
    found = plan(built.problem, Budget(200))
    assert built.problem.places[found.place[1]].node == node


def test_a_planned_place_stands_for_what_was_said_of_nodes_and_for_the_last_if_there_are_too_many() -> None:
    most = limits.PREFERENCES_PER_STAGE_MAX
    tier, node, avoided = Preference(tiers=(Tier.EDGE,)), Preference(node="cam"), Preference(node="edge", seconds=0.1)
    for said, left in (
        (Preferences(prefer=(node, tier), avoid=(avoided,)), Preferences(prefer=(tier,), avoid=(avoided,))),
        (Preferences(prefer=(tier,) * most), Preferences(prefer=(tier,) * (most - 1))),
        (Preferences(avoid=(avoided,) * most), Preferences(avoid=(avoided,) * (most - 1))),
    ):
        asked = with_preferences(said)
        built = build(asked, KINDS, FLEET)
        found = plan(built.problem, Budget(50))
        place = built.problem.places[found.place[1]]
        here = Preference(node=place.node, target=place.target, seconds=limits.PLAN_SOFT_SECONDS)
        written = preferred(asked, built, found).stages[StageId("say")].prefers
        assert written == Preferences(prefer=(here, *left.prefer), avoid=left.avoid)


def test_what_was_measured_goes_before_hints_and_speeds() -> None:
    see, say = StageId("see"), StageId("say")
    told = Measured({(see, "cam", "npu"): 0.125, (say, "edge", "cpu"): 3.0}, {(see, "text"): 77}, stage_seconds=0.25)
    arrays = build(constellation(), KINDS, FLEET, measured=told).problem.arrays
    assert arrays.seconds[0].tolist() == [4.25, 0.375, 2.25, np.inf]
    assert arrays.seconds[1].tolist() == [2.25, np.inf, 3.25, np.inf]
    assert arrays.seconds[2:, -1].tolist() == [0.0, 0.0], "what is only given or taken costs nothing"
    assert 77 in arrays.size_bytes


def test_stages_that_will_only_be_added_are_planned_and_not_bound() -> None:
    whole = constellation()
    built = build(whole, KINDS, FLEET)
    before = msgspec.structs.replace(whole, stages={StageId("see"): whole.stages[StageId("see")]}, dependencies=())
    bound = pinned(before, built, plan(built.problem))
    assert [(name, stage.requires.node) for name, stage in bound.stages.items()] == [("see", "cam")]


def test_stages_of_a_group_share_a_node_in_a_plan() -> None:
    found = constellation(Requirements(tiers=(Tier.EDGE,)))
    grouped = {name: msgspec.structs.replace(spec, colocate="g") for name, spec in found.stages.items()}
    built = build(msgspec.structs.replace(found, stages=grouped), KINDS, FLEET)
    assert built.problem.arrays.together.tolist() == [0, 0, -1, -1]
    place = plan(built.problem, Budget(50)).place
    assert [built.problem.places[place[stage]].node for stage in (0, 1)] == ["edge", "edge"]


RACKS = parse(
    b"nodes:\n"
    b"  - {name: a, tier: edge, slots: 2, labels: {rack: '1'}}\n"
    b"  - {name: b, tier: edge, slots: 2, labels: {rack: '1', driver: '12.10'}}\n"
    b"  - {name: c, tier: edge, slots: 2, speed: 0.5, labels: {rack: '2'}}\n"
    b"  - {name: d, tier: edge, slots: 8, speed: 9}\n"
)


def spread(*said: Spread | None) -> Constellation:
    graph = Graph("spread")
    words = graph.input("words", PortType.TEXT)
    for index, each in enumerate(said):
        graph.stage(f"s{index}", "say", inputs={"text": words}, spread=each)
    return graph.build()


def standing(found: Constellation) -> list[str]:
    built = build(found, KINDS, RACKS)
    made = plan(built.problem, Budget(200))
    return [built.problem.places[made.place[stage]].node for stage in range(len(built.stages))]


def test_stages_that_are_spread_stand_on_different_nodes_in_a_plan() -> None:
    nodes = standing(spread(*[Spread(group="g")] * 4))
    assert sorted(nodes) == ["a", "b", "c", "d"]


def test_over_an_attribute_they_stand_where_it_differs_and_only_where_it_is() -> None:
    found = spread(*[Spread(group="g", over="rack")] * 2)
    nodes = standing(found)
    assert "c" in nodes
    assert set(nodes) & {"a", "b"}
    assert build(found, KINDS, RACKS).excluded[0] == {"has no attribute rack, over which g is spread": (3,)}


def test_by_weight_they_stand_together_where_that_is_worth_it() -> None:
    assert standing(spread(*[Spread(group="g", seconds=0.01)] * 4)) == ["d"] * 4
    assert len(set(standing(spread(*[Spread(group="g", seconds=10.0)] * 4)))) == 4


def test_of_more_stages_than_values_the_conflict_names_the_nodes_that_are_one() -> None:
    built = build(spread(*[Spread(group="g", over="rack")] * 3), KINDS, RACKS)
    conflict = explain(built.problem, built.excluded)
    assert conflict is not None
    assert "s0, s1, s2 stand in different zones, where a and b are in one" in str(conflict)


def test_what_is_asked_of_attributes_is_told_of_places_that_do_not_have_it() -> None:
    found = constellation(Requirements(attributes={"driver": ">= v12.2"}))
    built = build(found, KINDS, RACKS)
    assert np.isfinite(built.problem.arrays.seconds[1]).tolist() == [False, True, False, False, False]
    assert built.excluded[1] == {"has no attribute driver, where >= v12.2 is required": (0, 2, 3)}


BATTERY = parse(
    b"nodes:\n"
    b"  - {name: cam, tier: device, targets: [cpu, npu], slots: 2, watts: {cpu: 4, npu: 3}, battery_joules: 11}\n"
    b"  - {name: edge, tier: edge, slots: 2, speed: 0.5, watts: 40, price_per_hour: 7.2, resident: [eyes]}\n"
    b"links:\n"
    b"  - {between: [device, edge], joules_per_mb: 2, price_per_gb: 4}\n"
)


def test_what_seconds_and_bytes_take_is_a_share_of_the_slots() -> None:
    built = build(constellation(), KINDS, BATTERY)
    rates = built.rates
    assert rates.watts.tolist() == [2.0, 3.0, 20.0, 0.0]
    assert rates.price.tolist() == [0.0, 0.0, 0.001, 0.0]
    assert rates.joules_per_byte.tolist() == [[0.0, 2e-6, 2e-6], [2e-6, 0.0, 0.0], [2e-6, 0.0, 0.0]]
    assert rates.price_per_byte[0, 1] == pytest.approx(4e-9)


def test_a_battery_is_charged_with_runs_and_with_what_is_to_be_loaded() -> None:
    arrays = build(constellation(), KINDS, BATTERY).problem.arrays
    assert arrays.store.tolist() == [11.0, np.inf, np.inf]
    assert arrays.charge[0].tolist() == [6.0, 9.0, 80.0, 0.0], (
        "see runs for 2 s and loads for 1 s, but where it is loaded"
    )
    assert arrays.charge[1].tolist() == [2.0, 0.0, 40.0, 0.0]
