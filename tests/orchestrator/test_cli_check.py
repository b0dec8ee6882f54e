"""`starloom validate`: one error with every problem and its place, and no cluster needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from starloom.dag.document import load
from starloom.orchestrator.cli.main import main

GOOD = """
api_version: starloom/v1
name: good
inputs: {data: bytes}
stages:
  a: {kind: basic.echo, in: {data: $data}}
"""


@pytest.fixture
def validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`validate(text)` gives the exit code, the JSON and standard error of `starloom validate FILE --json`."""

    def run(text: str) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / "constellation.yaml"
        file.write_text(text, "utf-8")
        code = main(["validate", str(file), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return run


def test_the_example_is_valid(example_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = example_folder / "constellation.yaml"
    assert main(["validate", str(file), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["file"], found["name"], found["valid"]) == (str(file), "spoken-question", True)
    assert (found["problems"], found["warnings"]) == ([], [])
    constellation = load(file.read_bytes())
    assert (found["stages"], found["dependencies"]) == (len(constellation.stages), len(constellation.dependencies))
    assert said.err == ""
    assert main(["validate", str(file)]) == 0
    assert f"is valid: spoken-question, {len(constellation.stages)} stages" in capsys.readouterr().out


def test_a_device_without_an_end_is_read_up_to_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "/dev/zero", "--json"]) == 2
    assert "DOCUMENT_BYTES_MAX" in json.loads(capsys.readouterr().out)["problems"][0]["what"]


@pytest.mark.parametrize(
    ("name", "stages", "places"),
    [
        ("cyclic", "{a: {kind: basic.noop, after: [b]}, b: {kind: basic.noop, after: [a]}}", ["stages.b"]),
        ("unknown kind", "{a: {kind: basic.nope}, b: {kind: basic.neither}}", ["stages.a.kind", "stages.b.kind"]),
        (
            "badly typed",
            "{a: {kind: audio.decode, in: {data: $audio}}, b: {kind: vision.faces, in: {image: a.audio}}}",
            ["stages.b.in.image"],
        ),
        ("missing input", "{a: {kind: audio.decode}}", ["stages.a.in.data"]),
        ("a tier that is none", "{a: {kind: basic.noop, require: {tier: moon}}}", ["stages.a.require.tier"]),
    ],
)
def test_each_fault_has_its_place(validate: Any, name: str, stages: str, places: list[str]) -> None:
    code, found, err = validate(f"api_version: starloom/v1\nname: bad\ninputs: {{audio: bytes}}\nstages: {stages}\n")
    assert code == 2, name
    assert not found["valid"]
    assert [problem["place"] for problem in found["problems"]] == places
    assert found["error"]["problems"] == found["problems"]
    assert found["error"]["type"] == "InvalidConstellation"
    for problem in found["problems"]:
        assert f"{problem['place']}: {problem['what']}" in err


def test_all_faults_are_told_at_once(validate: Any) -> None:
    code, found, _ = validate(
        """
        name: Bad name!
        stages:
          a: {kind: basic.nope, retries: 3}
          b: {kind: basic.noop, require: {tier: moon}, timeout: soon}
        """
    )
    assert code == 2
    assert len(found["problems"]) >= 4


@pytest.mark.parametrize("text", ["", "stages: [", "just text", "\x00", "{}"])
def test_what_is_no_constellation_is_told_as_such(validate: Any, text: str) -> None:
    code, found, err = validate(text)
    assert code == 2
    assert found["problems"]
    assert found["error"]["message"] in err


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["validate", str(tmp_path / "nothing.yaml"), "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["problems"] == [
        {"place": str(tmp_path / "nothing.yaml"), "what": "No such file or directory"}
    ]
    assert "Traceback" not in said.err
    assert main(["validate", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_warnings_keep_nothing_from_being_valid(validate: Any) -> None:
    code, found, err = validate(GOOD.replace("inputs: {data: bytes}", "inputs: {data: bytes, idle: text}"))
    assert code == 0
    assert found["valid"]
    assert found["warnings"] == [{"place": "inputs.idle", "what": "no stage uses this input"}]
    assert "warning: inputs.idle: no stage uses this input" in err
