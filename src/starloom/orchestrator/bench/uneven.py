"""The demonstration's job on tiers that are as uneven as in the field: its plan beside all that may move on one tier.

On one machine all tiers have the same processor, and no network lies between them, so that no placement can be much better
than another. Here faults make nodes slower and links longer, as a fleet file has them: a stage waits after its run,
and a message on its way, which takes no core from others. What a link carries in a second is not slowed down.
"""

import argparse
import asyncio
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from starloom.agents.catalog import Catalog
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.kinds import KindSpec
from starloom.devices.faults import ORCHESTRATOR, FaultKind
from starloom.devices.links import STORE_TIER, Link
from starloom.orchestrator import demo, fleetfile
from starloom.orchestrator.bench import harness, tiers
from starloom.orchestrator.bench.calibrating import (
    Floor,
    Ran,
    fleet_of,
    floor,
    link_between,
    measured_by_tier,
    once,
)
from starloom.orchestrator.bench.harness import Row
from starloom.orchestrator.bench.ours import OURS
from starloom.orchestrator.bench.reality import PEERS, PREDICTED, PlanContender, input_bytes, predicted
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.clientsync import Client
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT, ClusterSpec
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.planner.building import Measured, pinned
from starloom.orchestrator.trials.injector import Injector, Place
from starloom.orchestrator.trials.planning import Planned
from starloom.orchestrator.trials.roster import Roster

CLOUD: Final = "fast-cloud"
EDGE: Final = "fast-edge"

_CPU: Final = "cpu"
_WARM_UPS: Final = 2
_ALONE: Final = 3
_FLOOR_REPEAT: Final = 5
_LINK_REPEAT: Final = 3
_PACKAGES: Final = ("onnxruntime", "ray", "grpcio")


class Planning(NamedTuple):
    """A field's plan: the job bound to it, what each placement was predicted to take, and where stages were to run.

    `alone`: seconds of each stage by node and target where it has run by itself. `links`: seconds of a hop, by its tiers.
    """

    bound: Constellation
    seconds: Mapping[str, float]
    places: Mapping[str, str]
    alone: Mapping[str, float]
    links: Mapping[str, float]


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises StarloomError if the cluster does not start or a job fails."""
    demo.pull_models(note)
    inputs = {"audio": demo.example() / demo.QUESTION, "image": demo.example() / demo.PHOTO}
    return against(DEFAULT, demo.constellation(), inputs, fields(), args.repeat, note)


def fields() -> dict[str, Fleet]:
    """The fleet file of the demonstration's example, whose cloud is fastest, and the same with edge nodes as fast as the cloud.

    The one has ordinary edge nodes and a large cloud node, the other edge servers: in neither is the tier best that is best in the other.
    """
    ordinary = fleetfile.read_file(demo.example() / "fleet.yaml")
    most = max(speed for node in ordinary.nodes for speed in node.speed.values())
    servers = tuple(
        msgspec.structs.replace(node, speed=dict.fromkeys(node.speed, most)) if node.node.tier == Tier.EDGE else node
        for node in ordinary.nodes
    )
    return {CLOUD: ordinary, EDGE: msgspec.structs.replace(ordinary, nodes=servers)}


def against(
    spec: ClusterSpec,
    job: Constellation,
    inputs: Mapping[str, Any],
    chosen: Mapping[str, Fleet],
    repeat: int,
    note: Note,
) -> Report:
    """Predicts and measures a job in fields whose nodes have the names of the cluster's, on a cluster of its own."""
    before, rows, plans = machine(), list[Row](), dict[str, Planning]()
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as folder:
        note(f"starting a cluster of {len(spec.nodes)} nodes")
        with (
            EmbeddedCluster(spec, Path(folder) / "cluster", faults_allowed=True) as cluster,
            Client(cluster.address, cluster.token) as client,
        ):
            assert cluster.info is not None, "it has started"
            roster = Roster(cluster.address)
            roster.take(cluster.info)
            ways = placements(job, spec)
            note("every placement, to load models, and what jobs, stages and bytes cost beside the stages' runs")
            for what in [way for way in ways.values() for _ in range(_WARM_UPS)]:
                once(client, what, inputs)
            ground = floor(client, [node.name for node in spec.nodes], before.cores, _FLOOR_REPEAT)
            known = fleet_of(cluster.info, ground.link, {name for kind in _kinds().values() for name in kind.models})
            kinds = [_kinds()[stage.kind] for stage in job.stages.values()]
            for name, field in chosen.items():
                with uneven(cluster.token, roster.places, faults(field, kinds)):
                    note(f"{name}: faults stand")
                    plans[name] = planned = _plan(client, ways, inputs, known, field, ground, note)
                    rows += _measure(client, name, {**ways, OURS: planned.bound}, inputs, planned, repeat, note)
    return Report(
        bench="uneven",
        rows=rows,
        repeat=repeat,
        notes=_notes(chosen, rows, plans),
        machine=before,
        versions=versions(_PACKAGES),
        figures={
            name: {what: told for what, told in planned._asdict().items() if what != "bound"}
            for name, planned in plans.items()
        },
    )


def placements(job: Constellation, spec: ClusterSpec) -> dict[str, Constellation]:
    """The job as it may be planned, under OURS, and with all that may move on one tier, by the peers' names.

    What asks for labels of its node, as for a microphone or a speaker, stays there; all else may go anywhere.
    """
    tied = {name: stage for name, stage in job.stages.items() if stage.requires.labels}
    free = {
        name: msgspec.structs.replace(stage, requires=Requirements(memory_bytes=stage.requires.memory_bytes))
        for name, stage in job.stages.items()
    }
    moved = {name: tiers.on_tier(job, tier, spec).stages for name, tier in PEERS.items()}
    return {
        name: msgspec.structs.replace(job, stages={**stages, **tied}) for name, stages in ({OURS: free} | moved).items()
    }


def slower(field: Fleet) -> dict[tuple[str, str], float]:
    """By node and target, how many times as long a stage takes there as where the field is fastest, which is this machine."""
    speeds = {
        (node.node.name, target): node.speed.get(target, 1.0) for node in field.nodes for target in node.node.targets
    }
    most = max(speeds.values())
    return {place: most / speed for place, speed in speeds.items()}


def faults(field: Fleet, kinds: Sequence[KindSpec]) -> list[Planned]:
    """What makes a cluster's nodes and links as slow as a field's, for a job of these kinds, until it is healed.

    Faults know kinds and no targets: a kind that can compute on a node's accelerator is taken to do so.
    """
    found = [
        _standing(f"slow-{node.node.name}-{kind}", FaultKind.AGENT_SLOW, node, kind=kind, factor=factor)
        for node in field.nodes
        for kind, factor in _factors(field, node, kinds).items()
        if factor > 1.0
    ]
    ends = [*combinations(field.nodes, 2), *((node, None) for node in field.nodes)]
    for node, peer in ends:
        name, tier = (ORCHESTRATOR, STORE_TIER) if peer is None else (peer.node.name, peer.node.tier)
        latency = field.links[frozenset({node.node.tier, tier})].latency_seconds
        # A link's latency is of a request with its answer, a fault's of one way.
        found.append(
            _standing(f"far-{node.node.name}-{name}", FaultKind.LINK_SLOW, node, peer=name, delay_seconds=latency / 2)
        )
    return found


def _factors(field: Fleet, node: FleetNode, kinds: Sequence[KindSpec]) -> dict[str, float]:
    """By kind, how many times as long it takes on a node."""
    known, found = slower(field), dict[str, float]()
    for kind in kinds:
        target = next((each for each in node.node.targets if each != _CPU and each in kind.targets), _CPU)
        found[kind.name] = known[node.node.name, target]
    return found


def _standing(name: str, what: FaultKind, node: FleetNode, **more: Any) -> Planned:
    return Planned(id=name, what=what, node=node.node.name, lasts_seconds=None, **more)


@contextmanager
def uneven(token: str, places: Sequence[Place], standing: Sequence[Planned]) -> Iterator[None]:
    """The cluster with these faults, which end with the context. Raises as `Injector.begin`."""
    injector = Injector(token)

    async def begin() -> None:
        for fault in standing:
            await injector.begin(fault, places)

    try:
        asyncio.run(begin())
        yield
    finally:
        asyncio.run(injector.heal([fault.id for fault in standing], places))


def _kinds() -> Mapping[str, KindSpec]:
    return Catalog(points=()).kinds


def _plan(
    client: Client,
    ways: Mapping[str, Constellation],
    inputs: Mapping[str, Any],
    known: Fleet,
    field: Fleet,
    ground: Floor,
    note: Note,
) -> Planning:
    """Measures stages, one at a time, and links, where the faults stand; plans by that, and predicts the peers as well."""
    runs = list[Ran]()
    for name in PEERS:
        note(f"{name}: its stages, one at a time")
        runs += [once(client, ways[name], inputs, max_parallel=1) for _ in range(_ALONE)]
    note("links")
    links = _links(client, known, ground)
    fleet = msgspec.structs.replace(known, links={**known.links, **links})
    told = measured_by_tier(runs, fleet, ground.stage_seconds)
    found = {
        name: predicted(way, _kinds(), fleet, told, input_bytes(inputs), ground.cores, slower(field))
        for name, way in ways.items()
    }
    built, made = found[OURS]
    return Planning(
        bound=pinned(ways[OURS], built, made),
        seconds={name: ground.job_seconds + plan.makespan for name, (_, plan) in found.items()},
        places={name: str(built.problem.places[made.place[index]]) for index, name in enumerate(built.stages)},
        alone=_alone(told),
        links={" ".join(sorted(ends)): link.latency_seconds for ends, link in links.items()},
    )


def _alone(told: Measured) -> dict[str, float]:
    return {" ".join(where): seconds for where, seconds in told.run_seconds.items() if math.isfinite(seconds)}


def _links(client: Client, fleet: Fleet, ground: Floor) -> dict[frozenset[Tier], Link]:
    """The link between any two tiers, or within one, by the first two nodes that stand there."""
    found = dict[frozenset[Tier], Link]()
    for one, two in combinations(fleet.nodes, 2):
        ends = frozenset({one.node.tier, two.node.tier})
        if ends not in found:
            found[ends] = link_between(client, [one.node.name, two.node.name], ground.stage_seconds, _LINK_REPEAT)
    return found


def _measure(
    client: Client,
    field: str,
    ways: Mapping[str, Constellation],
    inputs: Mapping[str, Any],
    planned: Planning,
    repeat: int,
    note: Note,
) -> list[Row]:
    """The plan's row beside its prediction, and beside each peer; all have run before, and take turns."""
    for _ in range(_WARM_UPS):
        once(client, ways[OURS], inputs)
    contenders = [PlanContender(name, client, {field: (way, inputs)}) for name, way in ways.items()]
    samples = harness.alternate(contenders, [field], repeat, warm_ups=0, note=note)
    figures = {name: samples[name, field] for name in ways} | {PREDICTED: [planned.seconds[OURS]] * repeat}
    return harness.rows(field, "s", OURS, [PREDICTED, *PEERS], figures.__getitem__)


def _notes(chosen: Mapping[str, Fleet], rows: Sequence[Row], plans: Mapping[str, Planning]) -> list[str]:
    said = [
        "stages that ask for a label, as hear, see and speak, stay on their device in every placement; all else may move",
        f"{PREDICTED}: by stages and links measured one at a time under the same faults; a ratio over 1: sooner than predicted",
        "nodes are processes of this one machine: a slower one waits after each run, and links have latency, not less bandwidth",
    ]
    for name, field in chosen.items():
        factors = ", ".join(f"{node} {target} {factor:.3g}x" for (node, target), factor in slower(field).items())
        links = ", ".join(f"{ends} {1e3 * seconds:.1f} ms" for ends, seconds in plans[name].links.items())
        best = min((row for row in rows if row.what == name and row.peer_name in PEERS), key=lambda row: row.peer)
        peers = ", ".join(f"{peer} {plans[name].seconds[peer]:.3g} s" for peer in PEERS)
        said += [
            f"{name}: stages take, times as long as where they are fastest: {factors}",
            f"{name}: a hop as measured: {links}",
            f"{name}: predicted of others: {peers}; the best of one tier is {best.peer_name}, and the plan is {best.ratio:.3g}x as fast",
        ]
    return [*said, f"load average after: {machine().load_before:g}"]
