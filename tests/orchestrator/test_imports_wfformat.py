"""WfFormat executions as constellations: what becomes of tasks, files and memory, and all that can be wrong with one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from starloom.agents.catalog import Catalog
from starloom.dag import limits
from starloom.dag.constellation import Constellation
from starloom.dag.document import canonical, dump, load, to_json
from starloom.dag.errors import InvalidInput
from starloom.dag.expectation import expectation
from starloom.dag.ids import StageId
from starloom.dag.validate import problems
from starloom.orchestrator.imports.reading import AS_IT_IS, Scale
from starloom.orchestrator.imports.wfformat import MEMORY_STEP_BYTES, read

ROOT = Path(__file__).parent.parent.parent
SURVEY = ROOT / "examples" / "imports" / "survey.json"
REAL = sorted((ROOT.parent / "shared" / "data" / "wfformat").glob("*.json"))
KINDS = Catalog(points=()).kinds
SPEC = "workflow.specification"
RUNS = "workflow.execution"


def survey() -> Any:
    return json.loads(SURVEY.read_bytes())


def text(document: Any) -> bytes:
    return json.dumps(document).encode()


def wrong(document: Any, scale: Scale = AS_IT_IS) -> dict[str, str]:
    """What is wrong, by place."""
    with pytest.raises(InvalidInput) as caught:
        read(document if isinstance(document, bytes) else text(document), scale, place="some.json")
    assert caught.value.what.startswith("some.json is no WfFormat 1.5 execution")
    return {problem.place: problem.what for problem in caught.value.problems}


def small(*tasks: dict[str, Any], files: dict[str, int] | None = None, seconds: float = 1.0) -> dict[str, Any]:
    """An execution of tasks with these keys; each ran for so many seconds."""
    blank: dict[str, Any] = {"parents": [], "children": []}
    return {
        "name": "small",
        "schemaVersion": "1.5",
        "workflow": {
            "specification": {
                "tasks": [blank | task for task in tasks],
                "files": [{"id": name, "sizeInBytes": size} for name, size in (files or {}).items()],
            },
            "execution": {"tasks": [{"id": task["id"], "runtimeInSeconds": seconds} for task in tasks]},
        },
    }


def test_the_example_is_what_its_files_and_times_say() -> None:
    found = read(SURVEY.read_bytes())
    assert found.doubts == ()
    assert problems(found.constellation, KINDS) == []
    assert to_json(found.constellation) == yaml.safe_load(
        """
        api_version: starloom/v1
        name: survey
        labels: {imported_from: WfFormat 1.5}
        stages:
          cut_1:
            kind: synthetic.work
            params:
              seconds: 4.0
              outputs: {data1: 2000500, data2: 1500500, data3: 500, unread: 7000}
              memory_bytes: 180000000
              entry_bytes: 40000300
              about: cut
            require: {memory: 192MiB}
          look_a:
            kind: synthetic.work
            in: {cut_1: cut_1.data1}
            params: {seconds: 12.5, outputs: {data: 900}, memory_bytes: 400000000, entry_bytes: 9000000, seed: 1, about: look}
            require: {memory: 384MiB}
          look_b:
            kind: synthetic.work
            in: {cut_1: cut_1.data2}
            params: {seconds: 11.0, outputs: {data: 800}, memory_bytes: 390000000, entry_bytes: 9000000, seed: 2, about: look}
            require: {memory: 384MiB}
          count:
            kind: synthetic.work
            in: {look_a: look_a.data, look_b: look_b.data, cut_1: cut_1.data3}
            params: {seconds: 0.5, outputs: {data: 120}, memory_bytes: 20000000, seed: 3, about: count}
            require: {memory: 64MiB}
          warn:
            kind: synthetic.work
            in: {count: count.data}
            params: {seconds: 0.25, seed: 4}
          report:
            kind: synthetic.work
            in: {count: count.data}
            params: {seconds: 8.0, outputs: {unread: 60000}, seed: 5, about: report}
            after: [cut_1]
        """
    )


def test_scales_and_sleep() -> None:
    stages = read(SURVEY.read_bytes(), Scale(0.01, 0.001, sleep=True)).constellation.stages
    cut = stages[StageId("cut_1")]
    assert cut.params == {
        "seconds": 0.04,
        "work": "sleep",
        "outputs": {"data1": 2000, "data2": 1500, "data3": 0, "unread": 7},
        "memory_bytes": 180000,
        "entry_bytes": 40000,
        "about": "cut",
    }
    assert cut.requires.memory_bytes == MEMORY_STEP_BYTES
    nothing = read(SURVEY.read_bytes(), Scale(0.0, 0.0)).constellation
    assert problems(nothing, KINDS) == []
    assert {stage.params["seconds"] for stage in nothing.stages.values()} == {0.0}


def raw(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """A real execution's tasks and runs by id, and its files' sizes."""
    workflow = json.loads(path.read_bytes())["workflow"]
    spec, execution = workflow["specification"], workflow["execution"]
    tasks = {task["id"]: task for task in spec["tasks"]}
    runs = {run["id"]: run for run in execution["tasks"]}
    return tasks, runs, {file["id"]: file["sizeInBytes"] for file in spec["files"]}


def moved(constellation: Constellation) -> dict[tuple[str, str], int]:
    """By upstream and downstream, the bytes that a planner expects to move."""
    found = {}
    for arc in constellation.dependencies:
        stage = constellation.stages[arc.upstream]
        sizes = expectation(stage, KINDS[stage.kind]).output_bytes
        found[str(arc.upstream), str(arc.downstream)] = sizes[arc.output] if arc.output else 0
    return found


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_executions_come_over_whole(path: Path) -> None:
    tasks, runs, sizes = raw(path)
    found = read(path.read_bytes()).constellation
    assert problems(found, KINDS) == []
    assert load(dump(found)) == canonical(found)
    assert list(found.stages) == list(tasks)
    expected = {
        (parent, name): sum(sizes[file] for file in set(task["inputFiles"]) & set(tasks[parent]["outputFiles"]))
        for name, task in tasks.items()
        for parent in task["parents"]
    }
    assert moved(found) == expected
    assert len(found.dependencies) == len(expected)
    made = {file for task in tasks.values() for file in task["outputFiles"]}
    for name, stage in found.stages.items():
        told = expectation(stage, KINDS[stage.kind])
        memory = runs[name].get("memoryInBytes", 0)
        assert told.run_seconds == runs[name]["runtimeInSeconds"]
        assert told.memory_bytes == memory
        assert memory <= stage.requires.memory_bytes < memory + MEMORY_STEP_BYTES
        assert told.entry_bytes == sum(sizes[file] for file in set(tasks[name]["inputFiles"]) - made)
        # What is read together is there once, and what is read in several companies in each of them.
        assert sum(told.output_bytes.values()) >= sum(sizes[file] for file in set(tasks[name]["outputFiles"]))


def test_an_arc_that_one_end_names_counts_once() -> None:
    document = small({"id": "a", "children": ["b", "b"]}, {"id": "b"}, {"id": "c", "parents": ["b", "b"]})
    arcs = [(arc.upstream, arc.downstream) for arc in read(text(document)).constellation.dependencies]
    assert arcs == [("a", "b"), ("b", "c")]


def test_a_file_of_no_parent_is_an_entry_and_doubted() -> None:
    document = small(
        {"id": "a", "outputFiles": ["x"]},
        {"id": "b", "parents": ["a"], "inputFiles": ["x"], "outputFiles": ["y"]},
        {"id": "c", "parents": ["b"], "inputFiles": ["x", "y", "z"], "outputFiles": ["z"]},
        files={"x": 5, "y": 7, "z": 1},
    )
    found = read(text(document))
    assert moved(found.constellation) == {("a", "b"): 5, ("b", "c"): 7}
    assert found.constellation.stages[StageId("c")].params["entry_bytes"] == 5
    assert [doubt.place for doubt in found.doubts] == [f"{SPEC}.tasks[2]"]
    assert "reads 'x' of a, which is none of its parents" in found.doubts[0].what


def test_a_file_that_two_parents_make_moves_once() -> None:
    document = small(
        {"id": "a", "outputFiles": ["x"]},
        {"id": "b", "outputFiles": ["x"]},
        {"id": "c", "parents": ["b", "a"], "inputFiles": ["x"]},
        files={"x": 5},
    )
    assert moved(read(text(document)).constellation) == {("b", "c"): 5, ("a", "c"): 0}


def test_values_too_large_to_run_are_doubted() -> None:
    document = small({"id": "a", "outputFiles": ["x"]}, files={"x": 3 * 2**30})
    [doubt] = read(text(document)).doubts
    assert (doubt.place, "VALUE_BYTES_MAX" in doubt.what) == ("stages.a.params.outputs.unread", True)
    assert read(text(document), Scale(sizes=0.1)).doubts == ()


def test_ids_become_names_and_each_its_own() -> None:
    ids = ["a.b", "a b", "a_b", "-x", "é", "n" * 200, "n" * 201]
    found = read(text(small(*({"id": name} for name in ids)))).constellation
    assert problems(found, KINDS) == []
    assert list(found.stages)[:5] == ["a_b", "a_b_2", "a_b_3", "_-x", "_"]
    assert len({*found.stages}) == len(ids)


@pytest.mark.parametrize(
    ("name", "becomes"),
    [("a run of 5.json", "a_run_of_5"), ("Ünder/way", "_nder_way"), ("星座", "imported"), ("", "imported")],
)
def test_names_of_constellations(name: str, becomes: str) -> None:
    assert read(text(small({"id": "a"}) | {"name": name})).constellation.name == becomes


def changed(change: Callable[[Any, Any, Any], object]) -> Any:
    """The survey after `change(document, specification, execution)`."""
    document = survey()
    change(document, document["workflow"]["specification"], document["workflow"]["execution"])
    return document


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (lambda d, s, e: d.update(schemaVersion="1.4"), "schemaVersion", "is '1.4', and this version reads '1.5'"),
        (lambda d, s, e: d.update(schemaVersion=1.5), "schemaVersion", "is 1.5, and"),
        (lambda d, s, e: d.pop("schemaVersion"), "schemaVersion", "is missing"),
        (lambda d, s, e: d.pop("workflow"), "workflow", "is missing"),
        (lambda d, s, e: d.update(workflow=[]), "workflow", "is a list; write a mapping"),
        (lambda d, s, e: d["workflow"].pop("execution"), RUNS, "is missing"),
        (lambda d, s, e: d["workflow"].pop("specification"), SPEC, "is missing"),
        (lambda d, s, e: s.pop("tasks"), f"{SPEC}.tasks", "is missing"),
        (lambda d, s, e: s["files"].pop(0), f"{SPEC}.tasks[0].inputFiles[0]", "no file is listed as 'mosaic.tif'"),
        (lambda d, s, e: s["files"][0].update(sizeInBytes=-1), f"{SPEC}.files[0].sizeInBytes", "is -1"),
        (
            lambda d, s, e: s["files"][0].update(sizeInBytes=2**70),
            f"{SPEC}.files[0].sizeInBytes",
            "over 4611686018427387904",
        ),
        (lambda d, s, e: s["files"][0].pop("sizeInBytes"), f"{SPEC}.files[0].sizeInBytes", "is missing"),
        (lambda d, s, e: s["files"][0].update(id=7), f"{SPEC}.files[0].id", "is a whole number"),
        (
            lambda d, s, e: s["files"].append({"id": "a.png", "sizeInBytes": 1}),
            f"{SPEC}.files[11].sizeInBytes",
            "'a.png' is listed with another size",
        ),
        (
            lambda d, s, e: s["tasks"][1]["parents"].append("cut.2"),
            f"{SPEC}.tasks[1].parents[1]",
            "did you mean 'cut.1'?",
        ),
        (
            lambda d, s, e: s["tasks"][1]["children"].append("x"),
            f"{SPEC}.tasks[1].children[1]",
            "no task has the id 'x'",
        ),
        (lambda d, s, e: s["tasks"][1].update(parents=None), f"{SPEC}.tasks[1].parents", "is nothing; write a list"),
        (lambda d, s, e: s["tasks"][1].pop("parents"), f"{SPEC}.tasks[1].parents", "is missing"),
        (lambda d, s, e: s["tasks"][5].update(id="cut.1"), f"{SPEC}.tasks[5].id", "'cut.1' is the id of another task"),
        (lambda d, s, e: s["tasks"][4]["children"].append("cut.1"), f"{SPEC}.tasks", "tasks wait for each other: "),
        (lambda d, s, e: s["tasks"][4]["parents"].append("warn"), f"{SPEC}.tasks", "warn -> warn"),
        (lambda d, s, e: e["tasks"].pop(2), f"{SPEC}.tasks[2]", "'look.b' has no run time"),
        (lambda d, s, e: e["tasks"][2].pop("runtimeInSeconds"), f"{RUNS}.tasks[2].runtimeInSeconds", "is missing"),
        (lambda d, s, e: e["tasks"][2].update(runtimeInSeconds=-0.5), f"{RUNS}.tasks[2].runtimeInSeconds", "is -0.5"),
        (
            lambda d, s, e: e["tasks"][2].update(runtimeInSeconds="9"),
            f"{RUNS}.tasks[2].runtimeInSeconds",
            "is text ('9')",
        ),
        (
            lambda d, s, e: e["tasks"][2].update(runtimeInSeconds=1e9),
            f"{RUNS}.tasks[2].runtimeInSeconds",
            "comes to 1e+09 seconds, over DURATION_SECONDS_MAX",
        ),
        (lambda d, s, e: e["tasks"][2].update(memoryInBytes=-1), f"{RUNS}.tasks[2].memoryInBytes", "is -1"),
        (
            lambda d, s, e: e["tasks"].append({"id": "who", "runtimeInSeconds": 1}),
            f"{RUNS}.tasks[6].id",
            "no task has the id",
        ),
        (lambda d, s, e: e["tasks"].append(e["tasks"][0]), f"{RUNS}.tasks[6].id", "'cut.1' ran already"),
    ],
)
def test_one_mistake_has_its_place(change: Callable[[Any, Any, Any], object], place: str, words: str) -> None:
    found = wrong(changed(change))
    assert words in found[place]


def test_all_mistakes_are_told_at_once() -> None:
    def change(document: Any, spec: Any, execution: Any) -> None:
        document["schemaVersion"] = "1.3"
        spec["tasks"][0]["children"].append("nobody")
        spec["files"][3]["sizeInBytes"] = "big"
        del execution["tasks"][4]
        execution["tasks"][0]["runtimeInSeconds"] = None

    assert list(wrong(changed(change))) == [
        "schemaVersion",
        f"{SPEC}.files[3].sizeInBytes",
        f"{SPEC}.tasks[0].children[4]",
        f"{RUNS}.tasks[0].runtimeInSeconds",
        f"{SPEC}.tasks[4]",
    ]


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        (b"", "line 1, column 1", "is not JSON"),
        (b"stages: {}", "line 1, column 1", "is not JSON"),
        (b'{"name": "x",\n "workflow": }', "line 2, column 14", "is not JSON"),
        (b"\xff{}", "", "byte 0 is not UTF-8"),
        (b'{"name": NaN}', "", "holds NaN"),
        (b'{"name": "x", "name": "y"}', "", "the key 'name' is given twice"),
        (b"[" * 100_000, "", "is nested deeper"),
        (b'{"name": 1' + b"0" * 5000 + b"}", "", "is not JSON"),
        (b"[]", "", "is a list; write a mapping"),
        (b"null", "", "is nothing; write a mapping"),
    ],
)
def test_what_is_no_json_object_is_told_as_such(data: bytes, place: str, words: str) -> None:
    assert words in wrong(data)[place]


def test_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STAGES_PER_JOB_MAX", 5)
    monkeypatch.setattr(limits, "DEPENDENCIES_PER_JOB_MAX", 7)
    with pytest.raises(InvalidInput) as caught:
        read(SURVEY.read_bytes())
    assert [problem.what for problem in caught.value.problems] == [
        "6 tasks are over STAGES_PER_JOB_MAX = 5; import a part of it",
        "8 dependencies are over DEPENDENCIES_PER_JOB_MAX = 7; import a part of it",
    ]
    monkeypatch.setattr(limits, "IMPORT_BYTES_MAX", 100)
    assert "IMPORT_BYTES_MAX = 100" in wrong(SURVEY.read_bytes())[""]


def test_a_scale_may_bring_it_within_the_limits() -> None:
    document = small({"id": "a"}, seconds=1e9)
    assert wrong(document)
    assert read(text(document), Scale(seconds=1e-3)).constellation.stages[StageId("a")].params["seconds"] == 1e6
    assert "seconds" in wrong(small({"id": "a"}), Scale(seconds=1e9))[f"{RUNS}.tasks[0].runtimeInSeconds"]
