"""A job on tiers that faults make uneven: what stands, what is measured by tier, where plans go, and that it all ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.orchestrator.rig import TOKEN
from tests.orchestrator.test_faults_live import FaultyRig

from starloom.agents.catalog import Catalog
from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.facts import JobStatus, Timing
from starloom.dag.ids import JobId, StageId
from starloom.dag.stagestate import StageStatus
from starloom.devices.faults import ORCHESTRATOR, FaultKind
from starloom.devices.links import BY_TIERS, Link
from starloom.orchestrator import demo
from starloom.orchestrator.bench import reality, uneven
from starloom.orchestrator.bench.calibrating import Ran, measured_by_tier
from starloom.orchestrator.bench.ours import OURS
from starloom.orchestrator.bench.reality import PEERS, PREDICTED
from starloom.orchestrator.clientsync import Job
from starloom.orchestrator.clusterfile import DEFAULT, ClusterSpec, NodeSpec
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.infos import JobInfo, StageInfo
from starloom.orchestrator.planner.building import Measured
from starloom.orchestrator.trials.injector import Injector, Place
from starloom.orchestrator.trials.planning import Planned

KINDS = Catalog(points=()).kinds
SLOW = NodeSpec(name="slow", tier=Tier.DEVICE, targets=("cpu", "npu"), labels={"sensor": "camera"}, slots=2)
FAST = NodeSpec(name="fast", tier=Tier.CLOUD, slots=2)
TWO = ClusterSpec(nodes=(SLOW, FAST))
FAR = Link(bytes_per_second=1e9, latency_seconds=0.05)
FIELD = Fleet(
    nodes=(FleetNode(node=SLOW, speed={"cpu": 0.5, "npu": 1.0}), FleetNode(node=FAST, speed={"cpu": 4.0})),
    links=dict.fromkeys(BY_TIERS, FAR),
)


def seen(seconds: float = 0.02) -> Constellation:
    """One stage at the camera, and one that may be anywhere."""
    graph = Graph("seen")
    work = {"seconds": seconds, "outputs": {"data": 100}}
    first = graph.stage("look", "synthetic.work", params=work, require=Requirements(labels={"sensor": "camera"}))
    graph.stage("think", "synthetic.work", params=work, require=Requirements(tiers=(Tier.CLOUD,)), data=first["data"])
    return graph.build(KINDS)


def ran(*stages: tuple[str, str, float]) -> Ran:
    """A run with these stages, each with its node and its seconds, on `cpu`."""

    class Silent:
        def events(self) -> list[Any]:
            return []

    infos = tuple(
        StageInfo(
            name=StageId(name),
            kind="synthetic.work",
            status=StageStatus.SUCCEEDED,
            node=node,
            target="cpu",
            seconds=Timing(run=seconds),
        )
        for name, node, seconds in stages
    )
    return Ran(1.0, JobInfo(id=JobId("j"), status=JobStatus.SUCCEEDED, stages=infos), cast(Job, Silent()))


def test_the_field_is_the_examples_fleet_once_with_edge_nodes_as_fast_as_its_cloud() -> None:
    ordinary, servers = uneven.fields().values()
    names = [node.name for node in DEFAULT.nodes]
    assert [node.node.name for node in ordinary.nodes] == [node.node.name for node in servers.nodes] == names
    slower = uneven.slower(ordinary)
    assert slower["cloud", "cpu"] == 1.0 < slower["edge-1", "cpu"] < slower["camera", "cpu"]
    assert slower["camera", "npu"] < slower["camera", "cpu"], "what has an accelerator is quick with it"
    assert uneven.slower(servers) == {**slower, ("edge-1", "cpu"): 1.0, ("edge-2", "cpu"): 1.0}


def test_slower_targets_make_their_kinds_slow_and_latency_goes_half_each_way() -> None:
    found = {fault.id: fault for fault in uneven.faults(FIELD, [KINDS["vision.faces"], KINDS["synthetic.work"]])}
    slow = {(fault.node, fault.kind): fault.factor for fault in found.values() if fault.what == FaultKind.AGENT_SLOW}
    # The cloud's processor is the fastest, so that nothing is to be slower there.
    assert slow == {("slow", "vision.faces"): 4.0, ("slow", "synthetic.work"): 8.0}
    far = {(each.node, each.peer): each.delay_seconds for each in found.values() if each.what == FaultKind.LINK_SLOW}
    assert far == {("slow", "fast"): 0.025, ("slow", ORCHESTRATOR): 0.025, ("fast", ORCHESTRATOR): 0.025}
    assert all(fault.lasts_seconds is None for fault in found.values()), "they stand until they are healed"


def test_what_asks_for_labels_stays_in_every_placement_and_all_else_may_move_or_is_on_one_tier() -> None:
    found = uneven.placements(demo.constellation(), DEFAULT)
    written = demo.constellation().stages
    assert found.keys() == {OURS, *PEERS}
    for name, way in found.items():
        for stage, spec in way.stages.items():
            if stage in ("hear", "see", "speak"):
                assert spec.requires == written[stage].requires
            elif name == OURS:
                assert spec.requires == Requirements(memory_bytes=spec.requires.memory_bytes)
            else:
                assert spec.requires.tiers == (PEERS[name],)


def test_measured_seconds_are_kept_by_tier_and_are_endless_where_nothing_ran() -> None:
    other = FleetNode(node=NodeSpec(name="other", tier=Tier.DEVICE))
    fleet = Fleet(nodes=(*FIELD.nodes, other))
    runs = [ran(("look", "slow", 3.0)), ran(("look", "other", 5.0)), ran(("look", "fast", 1.0), ("think", "fast", 2.0))]
    look, think, endless = StageId("look"), StageId("think"), float("inf")
    assert measured_by_tier(runs, fleet, 0.5) == Measured(
        {
            (look, "slow", "cpu"): 4.0,
            (look, "slow", "npu"): endless,
            (look, "other", "cpu"): 4.0,
            (look, "fast", "cpu"): 1.0,
            (think, "slow", "cpu"): endless,
            (think, "slow", "npu"): endless,
            (think, "other", "cpu"): endless,
            (think, "fast", "cpu"): 2.0,
        },
        {},
        0.5,
    )


@pytest.mark.parametrize(("seconds", "node"), [(8.0, "fast"), (1.05, "slow")])
def test_a_plan_keeps_off_a_slow_node_where_that_gains_more_than_the_link_takes(seconds: float, node: str) -> None:
    told = measured_by_tier(
        [ran(("look", "slow", 1.0), ("think", "slow", seconds)), ran(("think", "fast", 1.0))], FIELD, 0.0
    )
    free = uneven.placements(seen(), TWO)[OURS]
    built, made = reality.predicted(free, KINDS, FIELD, told, {}, 2.0, uneven.slower(FIELD))
    places = {name: built.problem.places[made.place[index]].node for index, name in enumerate(built.stages)}
    assert places == {"look": "slow", "think": node}


def test_what_waits_on_a_slow_node_takes_no_core_from_others() -> None:
    graph = Graph("wide")
    for name, at in (("a", "slow"), ("b", "fast")):
        graph.stage(name, "synthetic.work", require=Requirements(node=at))
    told = Measured({(StageId("a"), "slow", "cpu"): 8.0, (StageId("b"), "fast", "cpu"): 3.0})
    seconds = {}
    for name, slower in (("uneven", uneven.slower(FIELD)), ("even", {})):
        _, made = reality.predicted(graph.build(KINDS), KINDS, FIELD, told, {}, 1.0, slower)
        seconds[name] = [float(end) for end in made.finish]
    # A second of work on the slow node, an eighth of what it takes there, shares the one core, and then waits.
    assert seconds == {"uneven": pytest.approx([9.0, 4.0]), "even": pytest.approx([11.0, 6.0])}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[FaultyRig]:
    async with FaultyRig(tmp_path) as made:
        await made.faulty("a")
        await made.faulty("b")
        yield made


async def test_faults_stand_at_their_nodes_and_end_with_the_measuring_also_when_it_fails(rig: FaultyRig) -> None:
    places = [Place(name=name, address=rig.place(name), pid=0) for name in (ORCHESTRATOR, "a", "b")]
    nodes = tuple(
        FleetNode(node=NodeSpec(name=name, tier=Tier.EDGE), speed={"cpu": s}) for name, s in (("a", 1.0), ("b", 2.0))
    )
    standing = uneven.faults(Fleet(nodes=nodes), [KINDS["synthetic.work"]])
    injector = Injector(TOKEN)

    async def stand() -> set[tuple[str, str]]:
        return {(each.id, each.node) for each in await injector.standing(places)}

    def measure(fails: bool, among: list[Planned]) -> set[tuple[str, str]]:
        with uneven.uneven(TOKEN, places, among):
            found = asyncio.run(stand())
            if fails:
                raise RuntimeError(f"a job fails beside {len(found)} faults")
            return found

    expected = {("slow-a-synthetic.work", "a"), ("far-a-b", "a"), ("far-a-b", "b")}
    expected |= {(f"far-{name}-{ORCHESTRATOR}", name) for name in "ab"}
    assert await asyncio.to_thread(measure, False, standing) == expected
    assert await stand() == set()
    with pytest.raises(RuntimeError, match=f"beside {len(expected)} faults"):
        await asyncio.to_thread(measure, True, standing)
    assert await stand() == set()
    # What cannot be begun leaves nothing of what has begun before it.
    strange = Planned(id="strange", what=FaultKind.AGENT_SLOW, node="c", factor=2.0, lasts_seconds=None)
    with pytest.raises(Exception, match="there is no node 'c'"):
        await asyncio.to_thread(measure, False, [*standing, strange])
    assert await stand() == set()


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_run_plans_for_each_field_and_measures_it_beside_every_tier_that_there_is() -> None:
    spec = ClusterSpec(nodes=(SLOW, NodeSpec(name="near", tier=Tier.EDGE, slots=2), FAST))
    near = FleetNode(node=spec.nodes[1], speed={"cpu": 1.0})
    field = Fleet(nodes=(FIELD.nodes[0], near, FIELD.nodes[1]))
    found = uneven.against(spec, seen(), {}, {"steep": field}, 1, lambda _: None)
    assert [(row.what, row.peer_name, row.n) for row in found.rows] == [
        ("steep", name, 1) for name in (PREDICTED, *PEERS)
    ]
    told = found.figures["steep"]
    assert told["places"]["look"] == "slow"
    assert told["places"].keys() == seen().stages.keys()
    assert told["alone"]["look slow cpu"] >= 8 * 0.02, "it waits after its run"
    assert told["links"]["cloud device"] > 0.0
    assert told["seconds"].keys() == {OURS, *PEERS}
