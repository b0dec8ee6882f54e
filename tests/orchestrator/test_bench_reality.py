"""Plans against reality on a small cluster: the rows that are there, and that stages ran where their plan has them."""

from pathlib import Path

import pytest

from starloom.agents.catalog import Catalog
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.errors import InvalidInput
from starloom.dag.expectation import run_seconds
from starloom.dag.ids import StageId
from starloom.devices.links import BY_TIERS, Link
from starloom.orchestrator.bench import reality, report
from starloom.orchestrator.bench.calibrating import chain, side_by_side, sleeps
from starloom.orchestrator.bench.reality import PREDICTED, Work
from starloom.orchestrator.clusterfile import ClusterSpec, NodeSpec
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.planner.building import Measured

KINDS = Catalog(points=()).kinds
SURVEY = Path(__file__).parents[2] / "examples" / "imports" / "survey.json"
TWO = ClusterSpec(
    nodes=(NodeSpec(name="near", tier=Tier.EDGE, slots=1), NodeSpec(name="far", tier=Tier.CLOUD, slots=1))
)
FAST = Link(bytes_per_second=1e9, latency_seconds=0.001)


def forked(seconds: float = 0.05) -> Constellation:
    """One stage, then two side by side, then one that reads both; all asleep."""
    graph = Graph("forked")
    work = {"seconds": seconds, "work": "sleep", "outputs": {"data": 100}}
    first = graph.stage("first", "synthetic.work", params=work)
    sides = [graph.stage(name, "synthetic.work", params=work, data=first["data"]) for name in ("left", "right")]
    graph.stage(
        "last", "synthetic.work", params=work, inputs={f"data-{i}": side["data"] for i, side in enumerate(sides)}
    )
    return graph.build(KINDS)


def test_the_prediction_counts_the_longest_path_what_stages_cost_beside_it_and_moves() -> None:
    fleet = Fleet(nodes=tuple(FleetNode(node=node) for node in TWO.nodes), links=dict.fromkeys(BY_TIERS, FAST))
    names = [StageId(name) for name in ("first", "left", "right", "last")]
    told = Measured(
        {(name, node.name, "cpu"): 1.0 for name in names for node in TWO.nodes},
        {(name, "data"): 1_000_000 for name in names},
        stage_seconds=0.25,
    )
    built, made = reality.predicted(forked(), KINDS, fleet, told, {}, cores=2.0)
    # The sides are on two nodes, so that each way has one move: a latency, and a millisecond for its megabyte.
    assert made.makespan == pytest.approx(3 * 1.25 + 0.002)
    places = {name: built.problem.places[made.place[index]].node for index, name in enumerate(built.stages)}
    assert places[names[1]] != places[names[2]]


def test_stages_that_keep_a_core_busy_share_the_machine_and_those_asleep_do_not() -> None:
    fleet = Fleet(nodes=tuple(FleetNode(node=node) for node in TWO.nodes), links=dict.fromkeys(BY_TIERS, FAST))
    seconds = {}
    for work in ("busy", "sleep"):
        graph = Graph("wide")
        for name in ("a", "b"):
            graph.stage(name, "synthetic.work", params={"seconds": 1.0, "work": work})
        _, made = reality.predicted(graph.build(KINDS), KINDS, fleet, Measured(), {}, cores=1.0)
        seconds[work] = made.makespan
    assert seconds == {"busy": pytest.approx(2.0), "sleep": pytest.approx(1.0)}


def test_which_stages_sleep() -> None:
    graph = Graph("kinds")
    graph.stage("rests", "basic.sleep")
    graph.stage("stands-in", "synthetic.work", params={"work": "sleep"})
    graph.stage("works", "synthetic.work")
    graph.stage("echoes", "basic.noop")
    assert [name for name, spec in graph.build(KINDS).stages.items() if sleeps(spec)] == ["rests", "stands-in"]


def test_a_chain_goes_to_and_fro_between_its_nodes() -> None:
    made = chain(3, ["a", "b"], 10)
    assert [stage.requires.node for stage in made.stages.values()] == ["a", "b", "a"]
    assert [(arc.upstream, arc.downstream) for arc in made.dependencies] == [("s0", "s1"), ("s1", "s2")]


def test_stages_side_by_side_want_a_core_each_on_nodes_in_turns() -> None:
    made = side_by_side(3, ["a", "b"])
    assert [stage.requires.node for stage in made.stages.values()] == ["a", "b", "a"]
    assert not made.dependencies
    assert not any(sleeps(stage) for stage in made.stages.values())


def test_an_imported_execution_sleeps_and_its_longest_path_is_cut_to_the_seconds_asked_for() -> None:
    made = reality.imported(SURVEY, seconds=0.5)
    assert all(sleeps(stage) for stage in made.stages.values())
    # cut, look.a, count, report: 4 + 12.5 + 0.5 + 8 seconds of what was written down.
    longest = sum(
        run_seconds(made.stages[StageId(name)], KINDS["synthetic.work"])
        for name in ("cut_1", "look_a", "count", "report")
    )
    assert longest == pytest.approx(0.5)
    with pytest.raises(InvalidInput, match="absent"):
        reality.imported(SURVEY.with_name("absent.json"))


def test_works_are_chosen_by_name_and_a_strange_name_is_told() -> None:
    found = reality.works([], SURVEY.parents[1])
    assert [work.name for work in found] == [
        *("demo", "demo-anywhere", "read-a-page", "private-photo", "relay", "survey-busy", "survey")
    ]
    assert [work.name for work in reality.select(found, "relay,demo")] == ["demo", "relay"]
    assert reality.select(found, "") == found
    with pytest.raises(InvalidInput, match="rely"):
        reality.select(found, "rely")


def test_anywhere_keeps_only_the_memory_that_is_required() -> None:
    graph = Graph("kept")
    graph.stage("one", "basic.noop", require=Requirements(tiers=(Tier.EDGE,), labels={"a": "b"}, memory_bytes=7))
    [stage] = reality.anywhere(graph.build(KINDS)).stages.values()
    assert stage.requires == Requirements(memory_bytes=7)


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_run_predicts_measures_and_keeps_stages_where_the_plan_has_them() -> None:
    found = reality.against(TWO, [Work("forked", forked())], 2, lambda _: None)
    [row] = found.rows
    assert (row.what, row.peer_name, row.unit, row.n) == ("forked", PREDICTED, "s", 2)
    assert row.ours > 3 * 0.05, "it cannot be over before its longest path is"
    assert row.peer > 3 * 0.05
    assert found.figures["errors"].keys() == {"forked"}
    assert found.figures["median_error"] == found.figures["errors"]["forked"]
    places = found.figures["places"]["forked"]
    assert places.keys() == forked().stages.keys()
    assert all(planned == ran for planned, ran in places.values())
    assert {ran for _, ran in places.values()} == {"near", "far"}
    assert 0 < found.figures["cores"] <= found.machine.cores
    assert report.as_json(found)["figures"]["places"]
