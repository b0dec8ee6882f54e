"""Plans against reality: of jobs on an embedded cluster, the makespan that was predicted beside the one then measured.

Stages are measured one at a time, the job is planned by what they took, bound to its plan's places, and run.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

import starloom
from starloom.agents.catalog import Catalog
from starloom.dag.constellation import Constellation, Requirements, Tier
from starloom.dag.document import load
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.expectation import run_seconds
from starloom.dag.ids import StageId
from starloom.dag.kinds import KindSpec
from starloom.orchestrator import demo
from starloom.orchestrator.bench import harness, tiers
from starloom.orchestrator.bench.calibrating import Floor, Ran, fleet_of, floor, measured, once, sleeps
from starloom.orchestrator.bench.harness import Row
from starloom.orchestrator.bench.ours import OURS
from starloom.orchestrator.bench.report import Note, Report, machine, versions
from starloom.orchestrator.clientsync import Client
from starloom.orchestrator.cluster import EmbeddedCluster
from starloom.orchestrator.clusterfile import DEFAULT, ClusterSpec
from starloom.orchestrator.fleetfile import Fleet
from starloom.orchestrator.imports import wfformat
from starloom.orchestrator.imports.reading import Scale
from starloom.orchestrator.infos import ClusterInfo
from starloom.orchestrator.planner.building import Built, Measured, build, pinned
from starloom.orchestrator.planner.planning import Budget, plan
from starloom.orchestrator.planner.problem import Place, Plan
from starloom.orchestrator.planner.sharing import Shared

PREDICTED: Final = "predicted"
DEMO: Final = "demo"
ANYWHERE: Final = "demo-anywhere"
PEERS: Final = {"all-device": Tier.DEVICE, "all-edge": Tier.EDGE, "all-cloud": Tier.CLOUD}
IMPORT_SECONDS: Final = 2.0
"""How long the longest path of an imported execution is made, in seconds, if it is longer."""

_WARM_UPS: Final = 2
_ALONE: Final = 3
_FLOOR_REPEAT: Final = 7
_PACKAGES: Final = ("onnxruntime", "ray", "grpcio", "numba")


class Work(NamedTuple):
    """A job to predict and to run. `beside`: the same on other places, whose runs tell of its stages too."""

    name: str
    constellation: Constellation
    inputs: Mapping[str, Any] = {}
    beside: Mapping[str, Constellation] = {}


class Predicted(NamedTuple):
    """A job bound to its plan, and the seconds that were predicted until its outputs are there.

    `places`: of each stage the place that the plan has it on, and the one where it ran.
    """

    work: Work
    bound: Constellation
    seconds: float
    places: Mapping[StageId, tuple[str, str]]


class PlanContender:
    """One placement of the works that it has."""

    def __init__(self, name: str, client: Client, works: Mapping[str, tuple[Constellation, Mapping[str, Any]]]) -> None:
        self.name = name
        self._client = client
        self._works = works

    def does(self, work: str) -> bool:
        """Whether it has that work."""
        return work in self._works

    def seconds(self, work: str) -> float:
        """Runs the job once, until its outputs are here. Raises JobFailed, DeadlineExceeded."""
        return once(self._client, *self._works[work]).seconds


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures. Raises InvalidInput for files that cannot be read, StarloomError if a job fails."""
    chosen = select(works(args.files, args.examples or shipped_examples()), args.works)
    demo.pull_models(note)
    return against(DEFAULT, chosen, args.repeat, note)


def against(spec: ClusterSpec, chosen: Sequence[Work], repeat: int, note: Note) -> Report:
    """Predicts and measures works on a cluster of its own."""
    before = machine()
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as folder:
        note(f"starting a cluster of {len(spec.nodes)} nodes")
        with (
            EmbeddedCluster(spec, Path(folder) / "cluster") as cluster,
            Client(cluster.address, cluster.token) as client,
        ):
            assert cluster.info is not None, "it has started"
            note("what jobs, stages and bytes cost beside the stages' runs")
            ground = floor(client, [node.name for node in spec.nodes], before.cores, _FLOOR_REPEAT)
            predictor = _Predictor(client, cluster.info, ground, note)
            found = [predictor.predict(work) for work in chosen]
            samples = _measure(client, found, repeat, note)
    return Report(
        bench="reality",
        rows=_rows(found, samples),
        repeat=repeat,
        notes=_notes(found, samples, ground),
        machine=before,
        versions=versions(_PACKAGES),
        figures=_figures(found, samples, ground),
    )


def works(files: Sequence[Path], examples: Path | None) -> list[Work]:
    """The demonstration, the examples without streams, and imported executions. Raises InvalidInput."""
    inputs = {"audio": demo.example() / demo.QUESTION, "image": demo.example() / demo.PHOTO}
    chosen = demo.constellation()
    beside = {name: tiers.on_tier(chosen, tier, DEFAULT) for name, tier in PEERS.items()}
    found = [Work(DEMO, chosen, inputs, beside), Work(ANYWHERE, anywhere(chosen), inputs, beside)]
    if examples is not None:
        page = load((examples / "read-a-page" / "constellation.yaml").read_text("utf-8"))
        relay = load((examples / "faults" / "relay.yaml").read_text("utf-8"))
        private = load((examples / "private-photo" / "constellation.yaml").read_text("utf-8"))
        found += [Work(each.name, each, {"image": inputs["image"]}) for each in (page, private)]
        found.append(Work(relay.name, relay, {"start": None}))
        survey = examples / "imports" / "survey.json"
        found.append(Work(f"{survey.stem}-busy", imported(survey, sleep=False)))
        files = [survey, *files]
    return [*found, *(Work(path.stem, imported(path)) for path in files)]


def select(found: Sequence[Work], names: str) -> list[Work]:
    """The works of these names, with commas between; all of them for none. Raises InvalidInput."""
    wanted = [name for name in names.split(",") if name]
    known = [work.name for work in found]
    if strange := [name for name in wanted if name not in known]:
        raise InvalidInput([Problem("--works", f"{name!r} is none of {', '.join(known)}") for name in strange])
    return [work for work in found if not wanted or work.name in wanted]


def shipped_examples() -> Path | None:
    """The examples' folder, where this runs from a checkout."""
    folder = Path(starloom.__file__).parents[2] / "examples"
    return folder if (folder / "imports").is_dir() else None


def anywhere(constellation: Constellation) -> Constellation:
    """The constellation with no stage kept to a tier, a node, a target or labels, as those all on one tier are not."""
    stages = {
        name: msgspec.structs.replace(stage, requires=Requirements(memory_bytes=stage.requires.memory_bytes))
        for name, stage in constellation.stages.items()
    }
    return msgspec.structs.replace(constellation, stages=stages)


def imported(path: Path, seconds: float = IMPORT_SECONDS, *, sleep: bool = True) -> Constellation:
    """An execution scaled so that its longest path takes at most `seconds`; its stages `sleep`, or want a core each.

    Raises InvalidInput.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    longest = _longest(wfformat.read(data, place=str(path)).constellation)
    scale = min(1.0, seconds / longest) if longest else 1.0
    return wfformat.read(data, Scale(scale, scale, sleep), place=str(path)).constellation


def _longest(constellation: Constellation) -> float:
    """Seconds of the longest path, by what the stages' parameters tell."""
    kinds = Catalog(points=()).kinds
    ends = {name: run_seconds(stage, kinds[stage.kind]) for name, stage in constellation.stages.items()}
    own = dict(ends)
    # Every dependency may lengthen what comes after it: as often as the longest path has stages.
    changed = True
    while changed:
        changed = False
        for arc in constellation.dependencies:
            if ends[arc.upstream] + own[arc.downstream] > ends[arc.downstream]:
                ends[arc.downstream] = ends[arc.upstream] + own[arc.downstream]
                changed = True
    return max(ends.values(), default=0.0)


class _Predictor:
    """Measures stages on a cluster, and plans by that."""

    def __init__(self, client: Client, info: ClusterInfo, ground: Floor, note: Note) -> None:
        self._client, self._ground, self._note = client, ground, note
        self._kinds = Catalog(points=()).kinds
        models = {name for kind in self._kinds.values() for name in kind.models}
        self._fleet = fleet_of(info, ground.link, models)
        self._known: list[tuple[Constellation, list[Ran]]] = []

    def predict(self, work: Work) -> Predicted:
        """Measures a work's stages one at a time, plans it by that, and warms its plan up."""
        runs = [run for what in (work.constellation, *work.beside.values()) for run in self._alone(work, what)]
        # What results add is planned as well: it is there once the job has ended.
        grown = runs[0].info.constellation or work.constellation
        told = measured(runs, self._fleet, self._ground.stage_seconds)
        built, made = predicted(grown, self._kinds, self._fleet, told, input_bytes(work.inputs), self._ground.cores)
        bound = pinned(work.constellation, built, made)
        self._note(f"{work.name}: on its plan")
        warm = [once(self._client, bound, work.inputs) for _ in range(_WARM_UPS)]
        ran = {stage.name: str(Place(stage.node, stage.target)) for stage in warm[-1].info.stages}
        places = {
            name: (str(built.problem.places[made.place[index]]), ran.get(name, ""))
            for index, name in enumerate(built.stages)
        }
        return Predicted(work, bound, self._ground.job_seconds + made.makespan, places)

    def _alone(self, work: Work, constellation: Constellation) -> list[Ran]:
        """Runs with one stage at a time, once for each constellation."""
        for what, runs in self._known:
            if what == constellation:
                return runs
        self._note(f"{work.name}: its stages, one at a time")
        for _ in range(_WARM_UPS):
            once(self._client, constellation, work.inputs)
        found = [once(self._client, constellation, work.inputs, max_parallel=1) for _ in range(_ALONE)]
        self._known.append((constellation, found))
        return found


def predicted(
    constellation: Constellation,
    kinds: Mapping[str, KindSpec],
    fleet: Fleet,
    told: Measured,
    sizes: Mapping[str, int],
    cores: float,
    slower: Mapping[tuple[str, str], float] = MappingProxyType({}),
) -> tuple[Built, Plan]:
    """The problem and its plan, with the times that it has where all nodes share so many cores. Raises Infeasible.

    `slower`: by node and target, how many times as long a stage takes there as it keeps a core; 1 where nothing is said.
    """
    built = build(constellation, kinds, fleet, sizes, told)
    processor = np.where(np.isfinite(built.problem.arrays.seconds), built.problem.arrays.seconds, 0.0)
    processor /= np.array([slower.get((place.node, place.target), 1.0) for place in built.problem.places])
    for index, name in enumerate(built.stages):
        if sleeps(constellation.stages[name]):
            processor[index] = np.minimum(processor[index], told.stage_seconds)
    shared = Shared(built.problem, cores, processor)
    return built, shared.replay(shared.better(plan(built.problem, Budget())))


def input_bytes(inputs: Mapping[str, Any]) -> dict[str, int]:
    """Of inputs that are files."""
    return {name: value.stat().st_size if isinstance(value, Path) else 0 for name, value in inputs.items()}


def _measure(client: Client, found: Sequence[Predicted], repeat: int, note: Note) -> dict[tuple[str, str], list[float]]:
    ours = PlanContender(OURS, client, {each.work.name: (each.bound, each.work.inputs) for each in found})
    peers = [
        PlanContender(name, client, {each.work.name: (each.work.beside[name], each.work.inputs)})
        for each in _with_peers(found)
        for name in each.work.beside
    ]
    return harness.alternate([ours, *peers], [each.work.name for each in found], repeat, warm_ups=0, note=note)


def _with_peers(found: Sequence[Predicted]) -> list[Predicted]:
    """The first work with other placements beside it, where those are run: they are the same of all such works."""
    return [each for each in found if each.work.beside][:1]


def _rows(found: Sequence[Predicted], samples: Mapping[tuple[str, str], Sequence[float]]) -> list[Row]:
    rows: list[Row] = []
    for each in found:
        name = each.work.name
        figures = {OURS: samples[OURS, name], PREDICTED: [each.seconds] * len(samples[OURS, name])}
        figures |= {peer: samples[peer, _with_peers(found)[0].work.name] for peer in each.work.beside}
        rows += harness.rows(name, "s", OURS, [PREDICTED, *each.work.beside], figures.__getitem__)
    return rows


def _errors(found: Sequence[Predicted], samples: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, float]:
    """Of each work, by how much of the predicted makespan the measured one is off."""
    return {
        each.work.name: abs(statistics.median(samples[OURS, each.work.name]) / each.seconds - 1.0) for each in found
    }


def _figures(
    found: Sequence[Predicted], samples: Mapping[tuple[str, str], Sequence[float]], ground: Floor
) -> dict[str, Any]:
    errors = _errors(found, samples)
    return {
        "errors": errors,
        "median_error": statistics.median(errors.values()),
        "places": {each.work.name: each.places for each in found},
        "load_after": machine().load_before,
        "cores": ground.cores,
        "job_seconds": ground.job_seconds,
        "stage_seconds": ground.stage_seconds,
        "hop_seconds": ground.stage_seconds + ground.link.latency_seconds,
        "bytes_per_second": ground.link.bytes_per_second,
    }


def _notes(found: Sequence[Predicted], samples: Mapping[tuple[str, str], Sequence[float]], ground: Floor) -> list[str]:
    errors = _errors(found, samples)
    return [
        f"{PREDICTED}: by stages measured one at a time on the same cluster, before; a ratio over 1: sooner than predicted",
        (
            "every node is a process on this one machine, and the prediction has all nodes share its cores, of which "
            f"{ground.cores:.2f} were there for stages that want one each"
        ),
        *(f"{name}: off by {error:.1%} of what was predicted" for name, error in errors.items()),
        f"the median of {len(errors)}: {statistics.median(errors.values()):.1%}",
        (
            f"a job takes {1e3 * ground.job_seconds:.1f} ms, a stage {1e3 * ground.stage_seconds:.2f} ms beside its run, "
            f"to another node {1e3 * ground.link.latency_seconds:.2f} ms more, and {1 / ground.link.bytes_per_second * 1e9:.2f} ms a MB"
        ),
        f"load average after: {machine().load_before:g}",
    ]
