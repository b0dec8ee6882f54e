"""UFO³'s TaskConstellations: what becomes of tasks, devices and dependency types, and all that can be wrong with one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starloom.agents.catalog import Catalog
from starloom.dag import limits
from starloom.dag.constellation import On, Requirements, Retry
from starloom.dag.document import canonical, dump, load
from starloom.dag.errors import InvalidInput
from starloom.dag.ids import StageId
from starloom.dag.validate import problems
from starloom.orchestrator.imports.reading import Scale
from starloom.orchestrator.imports.ufo import DependencyType, read

TEAM = Path(__file__).parent.parent.parent / "examples" / "imports" / "team.json"
KINDS = Catalog(points=()).kinds


def team() -> Any:
    return json.loads(TEAM.read_bytes())


def text(document: Any) -> bytes:
    return json.dumps(document).encode()


def wrong(document: Any) -> dict[str, str]:
    """What is wrong, by place."""
    with pytest.raises(InvalidInput) as caught:
        read(document if isinstance(document, bytes) else text(document), place="some.json")
    assert caught.value.what == "some.json is no TaskConstellation that can be imported"
    return {problem.place: problem.what for problem in caught.value.problems}


def test_the_example_is_what_its_tasks_and_lines_say() -> None:
    found = read(TEAM.read_bytes())
    constellation = found.constellation
    assert problems(constellation, KINDS) == []
    assert load(dump(constellation)) == canonical(constellation)
    assert (constellation.name, constellation.labels) == ("Build_and_publish", {"imported_from": "UFO3"})
    stages = {str(name): stage for name, stage in constellation.stages.items()}
    assert {name: stage.params for name, stage in stages.items()} == {
        "fetch": {"seconds": 2.5, "about": "Fetch: Get the sources"},
        "build": {"seconds": 1.0, "about": "Build: Compile the sources"},
        "sign": {"seconds": 1.0, "about": "Sign: Sign the installer"},
        "tidy": {"seconds": 1.0, "about": "Tidy: Remove what is left"},
    }
    assert {name: stage.requires for name, stage in stages.items()} == {
        "fetch": Requirements(node="linux-1"),
        "build": Requirements(labels={"device_type": "linux"}),
        "sign": Requirements(labels={"device_type": "windows"}),
        "tidy": Requirements(),
    }
    assert (stages["fetch"].policy.timeout_seconds, stages["fetch"].policy.retry.times) == (60.0, 3)
    assert (stages["build"].policy.timeout_seconds, stages["build"].policy.retry) == (0.0, Retry())
    assert [(arc.upstream, arc.downstream, arc.on, arc.carries_data) for arc in constellation.dependencies] == [
        ("fetch", "build", On.SUCCESS, False),
        ("build", "sign", On.SUCCESS, False),
        ("build", "tidy", On.COMPLETION, False),
        ("sign", "tidy", On.COMPLETION, False),
    ]
    [doubt] = found.doubts
    assert doubt.place == "dependencies.line_002.dependency_type"
    assert "'the tests are green'" in doubt.what


def test_scale_and_sleep() -> None:
    stages = read(TEAM.read_bytes(), Scale(0.1, sleep=True)).constellation.stages
    assert [stage.params["seconds"] for stage in stages.values()] == [0.25, 0.1, 0.1, 0.1]
    assert {stage.params["work"] for stage in stages.values()} == {"sleep"}
    assert stages[StageId("fetch")].policy.timeout_seconds == 60.0


def test_lists_are_read_as_objects_are_and_ids_are_made_up() -> None:
    document = team()
    document["tasks"] = list(document["tasks"].values())
    document["dependencies"] = list(document["dependencies"].values())
    assert read(text(document)).constellation == read(TEAM.read_bytes()).constellation
    document["tasks"] = [{"name": "a", "description": "b"}, {"name": "c", "description": ""}]
    document["dependencies"] = [{"from_task_id": "task_001", "to_task_id": "task_002"}]
    found = read(text(document)).constellation
    assert list(found.stages) == ["task_001", "task_002"]
    assert found.stages[StageId("task_002")].params["about"] == "c"
    assert [arc.on for arc in found.dependencies] == [On.COMPLETION], "unconditional is what a line is unless it says"


@pytest.mark.parametrize("written", [*DependencyType, *(kind.upper() for kind in DependencyType)])
def test_types_are_read_in_small_and_in_large_letters(written: str) -> None:
    document = team()
    document["dependencies"]["line_001"]["dependency_type"] = written
    first = read(text(document)).constellation.dependencies[0]
    completes = written.lower() in ("unconditional", "completion_only")
    assert first.on == (On.COMPLETION if completes else On.SUCCESS)


def test_a_name_without_a_letter_that_a_name_may_have_is_the_id() -> None:
    document = {"constellation_id": "constellation_1", "name": "示例任务星座", "tasks": {"数据": {"name": "数据"}}}
    found = read(text(document)).constellation
    assert (found.name, list(found.stages)) == ("constellation_1", ["__"])
    assert problems(found, KINDS) == []
    assert found.stages[StageId("__")].params["about"] == "数据"


def test_halves_of_characters_do_not_travel() -> None:
    found = read(b'{"name": "\\ud800x", "tasks": {"\\ud800": {"description": "\\udc00y"}}}').constellation
    assert problems(found, KINDS) == []
    assert found.stages[StageId("_")].params["about"] == "?y"


def changed(change: Callable[[Any, Any], object]) -> Any:
    """The example after `change(tasks, dependencies)`."""
    document = team()
    change(document["tasks"], document["dependencies"])
    return document


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (lambda t, d: t.clear() or d.clear(), "tasks", "holds no task"),
        (lambda t, d: t.update(build=[]), "tasks.build", "is a list; write a mapping"),
        (
            lambda t, d: t["build"].update(task_id="other"),
            "tasks.build.task_id",
            "is 'other', but it is listed as 'build'",
        ),
        (lambda t, d: t["build"].update(task_id=5), "tasks.build.task_id", "is a whole number"),
        (
            lambda t, d: t["build"].update(device_type="TOASTER"),
            "tasks.build.device_type",
            "is 'toaster'; use windows, ",
        ),
        (lambda t, d: t["build"].update(target_device_id=5), "tasks.build.target_device_id", "is a whole number"),
        (lambda t, d: t["build"].update(timeout=-1), "tasks.build.timeout", "is -1"),
        (lambda t, d: t["build"].update(retry_count=-1), "tasks.build.retry_count", "is -1"),
        (lambda t, d: t["build"].update(execution_duration="1"), "tasks.build.execution_duration", "is text"),
        (
            lambda t, d: t["build"].update(execution_duration=1e12),
            "tasks.build.execution_duration",
            "DURATION_SECONDS_MAX",
        ),
        (
            lambda t, d: d["line_002"].update(from_task_id="bild"),
            "dependencies.line_002.from_task_id",
            "did you mean 'build'?",
        ),
        (lambda t, d: d["line_002"].pop("to_task_id"), "dependencies.line_002.to_task_id", "is nothing"),
        (
            lambda t, d: d["line_002"].update(dependency_type="SOMETIMES"),
            "dependencies.line_002.dependency_type",
            "use uncond",
        ),
        (
            lambda t, d: d["line_002"].update(dependency_type=None),
            "dependencies.line_002.dependency_type",
            "use uncond",
        ),
        (lambda t, d: d["line_002"].update(line_id="line_001"), "dependencies.line_002.line_id", "make both the same"),
        (
            lambda t, d: d.update(more={"from_task_id": "fetch", "to_task_id": "build"}),
            "dependencies.more",
            "'build' depends on 'fetch' already",
        ),
        (
            lambda t, d: d.update(more={"from_task_id": "tidy", "to_task_id": "fetch"}),
            "dependencies",
            "tasks wait for each other: ",
        ),
        (lambda t, d: d.update(more={"from_task_id": "tidy", "to_task_id": "tidy"}), "dependencies", "tidy -> tidy"),
    ],
)
def test_one_mistake_has_its_place(change: Callable[[Any, Any], object], place: str, words: str) -> None:
    assert words in wrong(changed(change))[place]


def test_all_mistakes_are_told_at_once() -> None:
    def change(tasks: Any, dependencies: Any) -> None:
        tasks["build"]["device_type"] = "TOASTER"
        tasks["sign"]["timeout"] = "soon"
        dependencies["line_001"]["from_task_id"] = "nobody"
        dependencies["line_003"]["dependency_type"] = "maybe"

    assert list(wrong(changed(change))) == [
        "tasks.build.device_type",
        "tasks.sign.timeout",
        "dependencies.line_001.from_task_id",
        "dependencies.line_003.dependency_type",
    ]


def test_the_same_id_twice_in_a_list() -> None:
    document = {"tasks": [{"task_id": "a"}, {"task_id": "a"}], "dependencies": []}
    assert "'a' is the id of another task" in wrong(document)["tasks[1]"]
    line = {"line_id": "l", "from_task_id": "a", "to_task_id": "b"}
    document = {"tasks": [{"task_id": "a"}, {"task_id": "b"}], "dependencies": [line, {**line, "from_task_id": "b"}]}
    assert "'l' is the id of another dependency" in wrong(document)["dependencies[1]"]


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        (b"{", "line 1, column 2", "is not JSON"),
        (b"{}", "tasks", "is missing"),
        (b'{"tasks": 5}', "tasks", "is a whole number"),
        (b'{"tasks": {"a": {}}, "dependencies": "b"}', "dependencies", "is text"),
    ],
)
def test_what_is_none_is_told_as_such(data: bytes, place: str, words: str) -> None:
    assert words in wrong(data)[place]


def test_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STAGES_PER_JOB_MAX", 3)
    assert wrong(team())["tasks"] == "4 tasks are over STAGES_PER_JOB_MAX = 3; import a part of it"
