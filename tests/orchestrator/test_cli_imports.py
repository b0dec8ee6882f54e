"""`starloom import`: what stands on standard output, in a file, and on standard error."""

import json
from pathlib import Path
from typing import Any

import pytest

from starloom.dag.document import from_json, load
from starloom.orchestrator.cli.main import main
from starloom.orchestrator.imports import ufo, wfformat
from starloom.orchestrator.imports.reading import Scale

FOLDER = Path(__file__).parent.parent.parent / "examples" / "imports"
FILES = {"wfformat": FOLDER / "survey.json", "ufo": FOLDER / "team.json"}
READERS: dict[str, Any] = {"wfformat": wfformat.read, "ufo": ufo.read}


@pytest.mark.parametrize("name", FILES)
def test_yaml_or_one_json_object_goes_to_standard_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = READERS[name](FILES[name].read_bytes())
    assert main(["import", name, str(FILES[name])]) == 0
    said = capsys.readouterr()
    assert load(said.out) == wanted.constellation
    assert said.err == "".join(f"warning: {doubt}\n" for doubt in wanted.doubts)
    assert main(["import", name, str(FILES[name]), "--json"]) == 0
    assert from_json(json.loads(capsys.readouterr().out)) == wanted.constellation


def test_scales_and_sleep(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scale", "0.5", "--bytes-scale", "0.25", "--sleep"]
    assert main(["import", "wfformat", str(FILES["wfformat"]), *options]) == 0
    wanted = wfformat.read(FILES["wfformat"].read_bytes(), Scale(0.5, 0.25, sleep=True)).constellation
    assert load(capsys.readouterr().out) == wanted
    assert main(["import", "wfformat", str(FILES["wfformat"]), "--scale", "-1"]) == 2
    assert "'-1' is no number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_file_is_valid_and_told_of(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / f"team.{ending}"
    assert main(["import", "ufo", str(FILES["ufo"]), "--out", str(made)]) == 0
    assert capsys.readouterr().out == f"{made}: Build_and_publish, 4 stages, 4 dependencies\n"
    assert made.read_text("utf-8").startswith("{" if ending == "json" else "api_version:")
    assert main(["validate", str(made)]) == 0
    capsys.readouterr()
    assert main(["import", "ufo", str(FILES["ufo"]), "--out", str(made), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["name"], told["stages"], told["dependencies"]) == (str(made), "Build_and_publish", 4, 4)
    assert [warning["place"] for warning in told["warnings"]] == ["dependencies.line_002.dependency_type"]


def test_what_is_wrong_is_told_with_its_place_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, bad = tmp_path / "made.yaml", tmp_path / "bad.json"
    bad.write_text('{"name": "x", "schemaVersion": "1.4"}', "utf-8")
    assert main(["import", "wfformat", str(bad), "--out", str(made), "--json"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [problem["place"] for problem in found["problems"]] == ["workflow", "schemaVersion"]
    assert found["error"]["problems"] == found["problems"]
    assert f"{bad} is no WfFormat 1.5 execution" in said.err
    assert not made.exists()


def test_more_outputs_than_a_stage_may_have_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 10_001
    names = [f"f{number}" for number in range(count)]
    tasks = [{"id": "all", "parents": [], "children": [], "outputFiles": names}]
    tasks += [{"id": f"t{n}", "parents": ["all"], "children": [], "inputFiles": [f"f{n}"]} for n in range(count)]
    document = {
        "name": "wide",
        "schemaVersion": "1.5",
        "workflow": {
            "specification": {"tasks": tasks, "files": [{"id": name, "sizeInBytes": 1} for name in names]},
            "execution": {"tasks": [{"id": task["id"], "runtimeInSeconds": 1} for task in tasks]},
        },
    }
    wide = tmp_path / "wide.json"
    wide.write_text(json.dumps(document), "utf-8")
    assert main(["import", "wfformat", str(wide), "--json"]) == 2
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem["place"] == "stages.all.params.outputs"
    assert "OUTPUTS_PER_STAGE_MAX" in problem["what"]


def test_files_that_cannot_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "ufo", str(tmp_path / "nothing.json"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"][0]["what"] == "No such file or directory"
    assert main(["import", "ufo", str(FILES["ufo"]), "--out", str(tmp_path / "no" / "folder.yaml")]) == 2
    assert "the file cannot be written" in capsys.readouterr().err
    assert main(["import", "ufo", "/dev/zero"]) == 2
    assert "IMPORT_BYTES_MAX" in capsys.readouterr().err
