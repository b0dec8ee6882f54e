"""What loading models ahead gains: the demonstration's job, cold and then warm, on clusters with and without it in turns.

Prints medians over all clusters, in seconds: of the job, of what its stages spent on loading, and of the stages that load.

    python tools/coldstart.py [clusters of each kind]
"""

import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from starloom.orchestrator.clientsync import Client
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT
from starloom.orchestrator.demo import PHOTO, QUESTION, Measured, Silent, constellation, example, measure

SEEN_SECONDS = 0.01
"""Stages that never spent as long on loading are not printed."""


def runs(load_ahead: bool, rounds: int = 2) -> list[Measured]:
    """The job on a cluster of its own: cold, and then warm."""
    inputs = {"audio": example() / QUESTION, "image": example() / PHOTO}
    with (
        tempfile.TemporaryDirectory(prefix="starloom-cold-") as folder,
        EmbeddedCluster(DEFAULT, Path(folder) / "cluster", load_ahead=load_ahead) as cluster,
        Client(cluster.address, cluster.token) as client,
    ):
        return [measure(client, constellation(), inputs, Silent()) for _ in range(rounds)]


def table(found: dict[str, list[Measured]]) -> str:
    """Medians by what was measured, a column for each way."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for way, measured in found.items():
        for run in measured:
            rows["job"][way].append(run.seconds)
            rows["load, all stages"][way].append(run.load_seconds)
            for stage in run.info.stages:
                rows[f"load, {stage.name}"][way].append(stage.seconds.load)
    lines = ["".join([f"{'':<20}", *(f"{way:>20}" for way in found)])]
    for name, ways in rows.items():
        if max(max(values) for values in ways.values()) >= SEEN_SECONDS:
            cells = (f"{statistics.median(ways[way]):>20.3f}" for way in found)
            lines.append("".join([f"{name:<20}", *cells]))
    return "\n".join(lines)


def main(clusters: int) -> None:
    """Clusters with and without it, in turns."""
    found: dict[str, list[Measured]] = {name: [] for name in ("cold", "cold, ahead", "warm", "warm, ahead")}
    for number in range(2 * clusters):
        # The order changes, so that whatever drifts meets both.
        ahead = number % 4 in (1, 2)
        cold, warm = runs(ahead)
        for name, run in (("cold", cold), ("warm", warm)):
            found[f"{name}, ahead" if ahead else name].append(run)
        sys.stderr.write(
            f"{'ahead' if ahead else 'alone'}: cold {cold.seconds:.2f} s, {cold.load_seconds:.2f} of loading in its stages; "
            f"warm {warm.seconds:.2f} s\n"
        )
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
