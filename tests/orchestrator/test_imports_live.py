"""Imported executions on a whole cluster: every stage runs, and each dependency moves what the task's files had."""

import json
from pathlib import Path
from typing import Any

import pytest

from starloom.agents.catalog import Catalog
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.expectation import expectation
from starloom.dag.facts import StageCommitted
from starloom.dag.ids import StageId
from starloom.dag.values import ValueRef
from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.imports.reading import Scale
from starloom.orchestrator.imports.wfformat import read

ROOT = Path(__file__).parent.parent.parent
REAL = ROOT.parent / "shared" / "data" / "wfformat"
SHIPPED = ROOT / "examples" / "imports" / "survey.json"
NAMES = (
    "helloworld-chain-5-chameleon",
    "helloworld-forkjoin-10-chameleon",
    "montage-chameleon-2mass-005d-001",
)
FILES = [SHIPPED, *(path for name in NAMES if (path := REAL / f"{name}.json").is_file())]
KINDS = Catalog(points=()).kinds
QUICK = Scale(seconds=0.001, sizes=0.1)


def imported(path: Path, scale: Scale = QUICK) -> Constellation:
    return read(path.read_bytes(), scale).constellation


async def run(cluster: EmbeddedCluster, constellation: Constellation) -> dict[StageId, dict[str, ValueRef]]:
    """What each stage gave."""
    async with AsyncClient(cluster.address, cluster.token) as client:
        job = await client.submit(constellation)
        assert await job.result(timeout=100) == {}
        facts = [event.fact async for event in job.events()]
    return {fact.stage: dict(fact.outputs) for fact in facts if isinstance(fact, StageCommitted)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_an_execution_runs_and_moves_what_its_files_had(embedded: EmbeddedCluster, path: Path) -> None:
    constellation = imported(path)
    made = await run(embedded, constellation)
    assert made.keys() == constellation.stages.keys()
    digests: dict[str, str] = {}
    for name, stage in constellation.stages.items():
        told = expectation(stage, KINDS[stage.kind]).output_bytes
        assert {port: ref.bytes for port, ref in made[name].items()} == told
        digests |= {ref.digest: f"{name}.{port}" for port, ref in made[name].items() if ref.bytes}
    large = sum(ref.bytes > 0 for outputs in made.values() for ref in outputs.values())
    assert len(digests) == large, "two values were the same, and one of both would not have moved"


async def test_asleep_it_gives_the_same(embedded: EmbeddedCluster) -> None:
    awake, asleep = (imported(SHIPPED, QUICK._replace(sleep=sleep)) for sleep in (False, True))
    first, second = await run(embedded, awake), await run(embedded, asleep)
    assert {name: {port: ref.digest for port, ref in outputs.items()} for name, outputs in first.items()} == {
        name: {port: ref.digest for port, ref in outputs.items()} for name, outputs in second.items()
    }


async def test_a_task_of_hundreds_of_files_gives_each_to_its_reader(embedded: EmbeddedCluster) -> None:
    """More than a report holds: some travel in it, and the others are fetched from their node."""
    files = [f"f{number}" for number in range(200)]
    tasks: list[dict[str, Any]] = [{"id": "split", "parents": [], "children": [], "outputFiles": files}]
    tasks += [{"id": f"read-{file}", "parents": ["split"], "children": [], "inputFiles": [file]} for file in files]
    document = {
        "name": "wide",
        "schemaVersion": "1.5",
        "workflow": {
            "specification": {"tasks": tasks, "files": [{"id": file, "sizeInBytes": 2_000} for file in files]},
            "execution": {"tasks": [{"id": task["id"], "runtimeInSeconds": 0} for task in tasks]},
        },
    }
    made = await run(embedded, read(json.dumps(document).encode()).constellation)
    assert len(made) == len(tasks)
    given = list(made[StageId("split")].values())
    assert {ref.bytes for ref in given} == {2_000}
    assert sum(ref.inline is not None for ref in given) == limits.INLINE_VALUES_BYTES_MAX // 2_000 < len(files)
