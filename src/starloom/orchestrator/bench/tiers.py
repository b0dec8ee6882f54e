"""The demonstration's job where its constellation puts it, beside all of it on one tier: same cluster, same inputs."""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.orchestrator import demo
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.ours import JOB_SECONDS_MAX, OURS
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.clientsync import Client
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT, ClusterSpec, NodeSpec

WHAT: Final = "demo"
PEERS: Final = {"all-cloud": Tier.CLOUD, "all-device": Tier.DEVICE}
ANSWER: Final = "answer"
_PACKAGES: Final = ("onnxruntime", "ray", "grpcio")
_CPU = "cpu"
#: Two nodes of a tier take turns; after two runs each has loaded the models that it is asked for.
_WARM_UPS = 2


class PlacedContender:
    """The job with the requirements that one placement needs; keeps the answers that it was given."""

    def __init__(self, name: str, client: Client, constellation: Constellation, inputs: Mapping[str, Any]) -> None:
        self.name = name
        self.answers: set[str] = set()
        self._client = client
        self._constellation = constellation
        self._inputs = inputs

    def does(self, work: str) -> bool:
        """Every work, of which there is one."""
        return True

    def seconds(self, work: str) -> float:
        """Runs the job once, until its outputs are here. Raises JobFailed, DeadlineExceeded."""
        began = time.perf_counter()
        outputs = self._client.submit(self._constellation, self._inputs).result(JOB_SECONDS_MAX)
        seconds = time.perf_counter() - began
        self.answers.add(outputs[ANSWER])
        return seconds


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises StarloomError if the cluster does not start or a job fails."""
    before = machine()
    demo.pull_models(note)
    inputs = {"audio": demo.example() / demo.QUESTION, "image": demo.example() / demo.PHOTO}
    chosen = demo.constellation()
    placed = {OURS: chosen} | {name: on_tier(chosen, tier, DEFAULT) for name, tier in PEERS.items()}
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as folder:
        note(f"starting a cluster of {len(DEFAULT.nodes)} nodes")
        with (
            EmbeddedCluster(DEFAULT, Path(folder) / "cluster") as cluster,
            Client(cluster.address, cluster.token) as client,
        ):
            contenders = [PlacedContender(name, client, what, inputs) for name, what in placed.items()]
            samples = harness.alternate(contenders, [WHAT], args.repeat, warm_ups=_WARM_UPS, note=note)
    answers = set[str]().union(*(contender.answers for contender in contenders))
    return Report(
        bench="tiers",
        rows=harness.rows(WHAT, "s", OURS, PEERS, lambda name: samples[name, WHAT]),
        repeat=args.repeat,
        notes=notes(DEFAULT, len(answers)),
        machine=before,
        versions=versions(_PACKAGES),
    )


def on_tier(constellation: Constellation, tier: Tier, cluster: ClusterSpec) -> Constellation:
    """The constellation with every stage required to be on a tier of the cluster.

    Labels and targets that no node of the tier has are not required any more, nor is a node; such a stage
    computes on `cpu`.
    """
    nodes = [node for node in cluster.nodes if node.tier == tier]
    stages = {
        name: msgspec.structs.replace(stage, requires=_moved(stage.requires, tier, nodes))
        for name, stage in constellation.stages.items()
    }
    return msgspec.structs.replace(constellation, stages=stages)


def _moved(requires: Requirements, tier: Tier, nodes: Sequence[NodeSpec]) -> Requirements:
    labelled = [node for node in nodes if requires.labels.items() <= node.labels.items()]
    has_target = any(requires.target in node.targets for node in labelled or nodes)
    return Requirements(
        tiers=(tier,),
        target=requires.target if has_target or not requires.target else _CPU,
        labels=requires.labels if labelled else {},
        memory_bytes=requires.memory_bytes,
    )


def notes(cluster: ClusterSpec, answers: int) -> list[str]:
    """What must be known to read the rows; `answers` is how many different ones all runs gave."""
    counts = {tier: sum(node.tier == tier for node in cluster.nodes) for tier in Tier}
    return [
        "every node is a process on this one machine: all tiers have the same processor, and no network lies between",
        "so the rows show what spreading costs or saves here, and nothing about a real device, edge or cloud",
        f"nodes: {', '.join(f'{count} {tier}' for tier, count in counts.items())}; a tier with more nodes has more slots",
        "faces: on the device tier a static INT8 model on the emulated npu, elsewhere the float model on cpu",
        "warm: every placement has run before; from the submission until all outputs are with the client",
        f"the answer was {'the same in all runs' if answers == 1 else f'not the same in all runs: {answers} answers'}",
    ]
