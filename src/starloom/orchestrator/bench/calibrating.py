"""What a cluster's jobs tell of it, for plans: what a job, a stage and a byte cost there, and how long stages run."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from starloom.dag.builder import Graph, StageRef
from starloom.dag.constellation import Constellation, Requirements, StageSpec
from starloom.dag.facts import StageCommitted
from starloom.dag.ids import StageId
from starloom.devices.links import BY_TIERS, Link
from starloom.orchestrator.bench.ours import JOB_SECONDS_MAX
from starloom.orchestrator.clientsync import Client, Job
from starloom.orchestrator.clusterfile import NodeSpec
from starloom.orchestrator.fleetfile import Fleet, FleetNode
from starloom.orchestrator.infos import ClusterInfo, JobInfo, StageInfo
from starloom.orchestrator.planner.building import Measured

CHAIN: Final = 22
SHORT: Final = 2
SMALL_BYTES: Final = 1_000
LARGE_BYTES: Final = 4_000_000
BUSY_SECONDS: Final = 0.3
_WORK: Final = "synthetic.work"
_SLEEP: Final = "basic.sleep"
_LEAST_SECONDS_PER_BYTE: Final = 1e-12

Where = TypeVar("Where", bound=Hashable)


class Floor(NamedTuple):
    """What a job costs beside its stages' runs, in seconds: the job, each stage, and the link between two nodes.

    `cores`: as many as stages that want one each are given together; fewer than the machine has where others want them too.
    """

    job_seconds: float
    stage_seconds: float
    link: Link
    cores: float


class Ran(NamedTuple):
    """One run of a job: seconds from the submission until all outputs were here, the job as it ended, its job's handle."""

    seconds: float
    info: JobInfo
    job: Job


def once(client: Client, constellation: Constellation, inputs: Mapping[str, Any], max_parallel: int = 0) -> Ran:
    """Runs a job to its end. Raises JobFailed, DeadlineExceeded."""
    began = time.perf_counter()
    job = client.submit(constellation, inputs, max_parallel=max_parallel)
    job.result(JOB_SECONDS_MAX)
    seconds = time.perf_counter() - began
    return Ran(seconds, job.status(), job)


def floor(client: Client, nodes: Sequence[str], cores: int, repeat: int) -> Floor:
    """Of chains of stages that do nothing, on one node and to and fro between two; medians of `repeat`, in turns.

    `cores`: those of the machine.
    """
    one = list(nodes[:1])
    chains = {
        "short": chain(SHORT, one, SMALL_BYTES),
        "one": chain(CHAIN, one, SMALL_BYTES),
        **_across(nodes[:2]),
    }
    took = _beside(client, chains, repeat)
    stage = max(0.0, (took["one"] - took["short"]) / (CHAIN - SHORT))
    given = cores_given(client, nodes, cores, repeat)
    return Floor(max(0.0, took["short"] - SHORT * stage), stage, _link(took, stage), given)


def link_between(client: Client, nodes: Sequence[str], stage_seconds: float, repeat: int) -> Link:
    """Of chains to and fro between two nodes, where a stage takes `stage_seconds` beside its run; medians of `repeat`."""
    return _link(_beside(client, _across(nodes), repeat), stage_seconds)


def _across(nodes: Sequence[str]) -> dict[str, Constellation]:
    return {
        "short-two": chain(SHORT, nodes, SMALL_BYTES),
        "two": chain(CHAIN, nodes, SMALL_BYTES),
        "large": chain(CHAIN, nodes, LARGE_BYTES),
    }


def _beside(client: Client, chains: Mapping[str, Constellation], repeat: int) -> dict[str, float]:
    """Seconds that each takes beside its stages' runs: the median of `repeat`, in turns, after one that does not count."""
    beside: dict[str, list[float]] = {name: [] for name in chains}
    for repetition in range(-1, repeat):
        for name, what in chains.items():
            seconds, info, _ = once(client, what, {})
            if repetition >= 0:
                beside[name].append(seconds - sum(stage.seconds.run for stage in info.stages))
    return {name: statistics.median(figures) for name, figures in beside.items()}


def _link(took: Mapping[str, float], stage: float) -> Link:
    """What `_across` tells of the link, where a stage takes so many seconds beside its run."""
    across = max(stage, (took["two"] - took["short-two"]) / (CHAIN - SHORT))
    per_byte = max(_LEAST_SECONDS_PER_BYTE, (took["large"] - took["two"]) / ((CHAIN - 1) * LARGE_BYTES))
    return Link(bytes_per_second=1.0 / per_byte, latency_seconds=across - stage)


def cores_given(client: Client, nodes: Sequence[str], cores: int, repeat: int) -> float:
    """How many cores stages get that want one each, as many as there are `cores`, beside what one gets by itself."""
    runs: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(repeat):
        for count, seconds in runs.items():
            info = once(client, side_by_side(count, nodes), {}).info
            seconds.append(statistics.mean(stage.seconds.run for stage in info.stages))
    return cores * min(1.0, statistics.median(runs[1]) / statistics.median(runs[cores]))


def side_by_side(count: int, nodes: Sequence[str]) -> Constellation:
    """So many stages that want a core each at the same time, on these nodes in turns."""
    graph = Graph("cores")
    for number in range(count):
        require = Requirements(node=nodes[number % len(nodes)])
        graph.stage(f"s{number}", _WORK, params={"seconds": BUSY_SECONDS}, require=require)
    return graph.build()


def chain(count: int, nodes: Sequence[str], size: int) -> Constellation:
    """So many stages that do nothing but give `size` bytes to the next, on these nodes in turns."""
    graph = Graph("floor")
    last: StageRef | None = None
    for number in range(count):
        last = graph.stage(
            f"s{number}",
            _WORK,
            params={"seconds": 0, "work": "sleep", "outputs": {"data": size}, "seed": number},
            require=Requirements(node=nodes[number % len(nodes)]),
            inputs={} if last is None else {"data": last["data"]},
        )
    return graph.build()


def fleet_of(info: ClusterInfo, link: Link, resident: Iterable[str]) -> Fleet:
    """The nodes of a cluster as they told of themselves, with one link between any two, and models that are loaded on all."""
    loaded = tuple(resident)
    nodes = tuple(
        FleetNode(
            node=NodeSpec(
                name=node.name,
                tier=node.profile.tier,
                targets=tuple(target.name for target in node.profile.targets),
                labels=node.profile.labels,
                slots=node.profile.slots,
            ),
            memory_bytes=node.profile.memory_bytes,
            resident=loaded,
        )
        for node in info.nodes
    )
    return Fleet(nodes=nodes, links=dict.fromkeys(BY_TIERS, link))


def measured(runs: Sequence[Ran], fleet: Fleet, stage_seconds: float) -> Measured:
    """What runs of one job told: of each stage the median by target, for all nodes, since they share a machine."""
    seconds, sizes = _told(runs, lambda stage: stage.target)
    known = {
        (stage, node.node.name, target): statistics.median(figures)
        for (stage, target), figures in seconds.items()
        for node in fleet.nodes
        if target in node.node.targets
    }
    return Measured(known, sizes, stage_seconds)


def measured_by_tier(runs: Sequence[Ran], fleet: Fleet, stage_seconds: float) -> Measured:
    """As `measured`, by tier and target, where only the nodes of a tier are alike.

    A stage takes infinitely long where none of the runs has had it, so that no plan has it there.
    """
    tiers = {node.node.name: node.node.tier for node in fleet.nodes}
    seconds, sizes = _told(runs, lambda stage: (tiers[stage.node], stage.target))
    known = {
        (name, node.node.name, target): statistics.median(seconds.get((name, (node.node.tier, target)), [math.inf]))
        for name in {name for name, _ in seconds}
        for node in fleet.nodes
        for target in node.node.targets
    }
    return Measured(known, sizes, stage_seconds)


def _told(
    runs: Sequence[Ran], where: Callable[[StageInfo], Where]
) -> tuple[dict[tuple[StageId, Where], list[float]], dict[tuple[StageId, str], int]]:
    """The seconds of each stage in each run, by where it ran, and the bytes of its outputs."""
    seconds: dict[tuple[StageId, Where], list[float]] = {}
    sizes: dict[tuple[StageId, str], int] = {}
    for run in runs:
        for stage in run.info.stages:
            seconds.setdefault((stage.name, where(stage)), []).append(stage.seconds.run)
        for event in run.job.events():
            if isinstance(event.fact, StageCommitted):
                sizes |= {(event.fact.stage, port): ref.bytes for port, ref in event.fact.outputs.items()}
    return seconds, sizes


def sleeps(spec: StageSpec) -> bool:
    """Whether a stage only waits, and wants no core."""
    return spec.kind == _SLEEP or (spec.kind == _WORK and spec.params.get("work") == "sleep")
