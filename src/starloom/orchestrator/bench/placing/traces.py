"""Real executions, in WfFormat, on tiers: they lie beside the project and do not ship with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

import starloom
from starloom.dag.constellation import Constellation
from starloom.orchestrator.bench.placing.draws import Draws
from starloom.orchestrator.bench.placing.instances import Instance, natural_ratio, placed
from starloom.orchestrator.bench.placing.jobs import Job
from starloom.orchestrator.bench.placing.networks import network
from starloom.orchestrator.imports import wfformat

_NODES: Final = 12
_SECONDS_PER_BYTE: Final = 8e-8
"""Of a link of 100 Mbit/s, which the network's relative links are taken for."""

_RATIOS: Final = (None, 1.0)
"""As measured, and with transfers scaled until they take as long as the stages."""


def folder() -> Path:
    """Where the executions lie if there are any: beside a checkout."""
    return Path(starloom.__file__).resolve().parents[3] / "shared" / "data" / "wfformat"


def instances(where: Path) -> Iterator[Instance]:
    """Each execution of a folder on a network of its own, at each ratio; none if the folder is not there."""
    for number, path in enumerate(sorted(where.glob("*.json"))):
        made = _job(wfformat.read(path.read_bytes(), place=str(path)).constellation)
        on = network("tiered", _NODES, Draws(3, number))
        on = on._replace(per_byte=on.per_byte * _SECONDS_PER_BYTE)
        for ratio in _RATIOS:
            name = f"{path.stem}-on-tiered-{_NODES}-{'as-measured' if ratio is None else f'ccr-{ratio:g}'}"
            yield placed(name, made, on, ratio or natural_ratio(made, on), False, Draws(4, number))


def _job(constellation: Constellation) -> Job:
    numbers = {stage: index for index, stage in enumerate(constellation.stages)}
    sizes = [
        float(constellation.stages[each.upstream].params["outputs"][each.output]) if each.output else 0.0
        for each in constellation.dependencies
    ]
    edges = [(numbers[each.upstream], numbers[each.downstream]) for each in constellation.dependencies]
    work = [float(stage.params["seconds"]) for stage in constellation.stages.values()]
    return Job(np.array(work), tuple(edges), np.array(sizes))
