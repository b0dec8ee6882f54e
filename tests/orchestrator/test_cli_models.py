"""`starloom models`: what it says of the store, and how it ends."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from starloom.agents import modelstore
from starloom.agents.manifest import Manifest, ModelEntry, ModelFile, Source
from starloom.orchestrator.cli.main import main

KEYS = {"name", "version", "kind", "bytes", "licence", "source", "sha256", "present"}


def entry(name: str, folder: Path, data: bytes, **more: Any) -> ModelEntry:
    file = ModelFile(path="weights", name="weights", sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    source = Source(folder=str(folder))
    return ModelEntry(name=name, version="1.0", kind="test", licence="MIT", sources=(source,), files=(file,), **more)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the model `good` is made of; `damaged` is no default, and names other bytes."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1234")
    manifest = Manifest([entry("good", folder, b"1234", default=True), entry("damaged", folder, b"9876")])
    monkeypatch.setattr(modelstore, "shipped", lambda: manifest)
    monkeypatch.setenv("STARLOOM_HOME", str(tmp_path / "home"))
    return folder / "weights"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    code = main(["models", *argv, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


@pytest.mark.usefixtures("weights")
def test_pull_brings_the_default_models_and_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = run(capsys, "pull")
    assert code == 0
    assert found["pulled"] == ["good"]
    [model] = found["models"]
    assert set(model) >= KEYS
    assert model["present"]
    assert "good: pulled from folder" in err
    code, found, err = run(capsys, "pull")
    assert (code, found["pulled"], [model["name"] for model in found["models"]]) == (0, [], ["good"])
    assert err == "good: is there\n"
    assert main(["models", "pull"]) == 0
    assert "1 models in" in capsys.readouterr().out


@pytest.mark.usefixtures("weights")
def test_list_has_every_model_whether_it_is_here_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "pull")
    code, found, _ = run(capsys, "list")
    assert code == 0
    assert [(model["name"], model["present"]) for model in found["models"]] == [("good", True), ("damaged", False)]
    assert main(["models", "list"]) == 0
    assert "good" in capsys.readouterr().out


@pytest.mark.usefixtures("weights")
def test_wrong_bytes_of_a_source_are_refused_and_keep_no_other_from_being_pulled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found, err = run(capsys, "pull", "damaged", "good")
    assert code == 1
    assert found["error"]["type"] == "DigestMismatch"
    assert hashlib.sha256(b"9876").hexdigest() in found["error"]["message"]
    assert [model["name"] for model in found["models"]] == ["good"]
    assert "starloom: model damaged 1.0 could not be had" in err


@pytest.mark.usefixtures("weights")
def test_verify_finds_what_was_changed_since(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "pull")
    code, found, _ = run(capsys, "verify")
    assert (code, found["problems"], [model["name"] for model in found["models"]]) == (0, [], ["good"])
    modelstore.ModelStore().folder("good").joinpath("weights").write_bytes(b"1235")
    code, found, err = run(capsys, "verify", "good")
    assert code == 1
    [problem] = found["problems"]
    assert problem["place"] == "good/weights"
    assert "starloom models pull --again good" in problem["what"]
    assert problem["what"] in err


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("command", ["pull", "verify"])
def test_unknown_names_are_bad_input(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, found, _ = run(capsys, command, "nope", "neither")
    assert code == 2
    assert "'nope', 'neither'" in found["error"]["message"]


def test_a_model_of_ones_own_is_added(capsys: pytest.CaptureFixture[str], weights: Path) -> None:
    code, found, _ = run(capsys, "add", str(weights), "--name", "mine", "--licence", "MIT")
    assert code == 0
    assert found["model"]["name"] == "mine"
    assert found["model"]["present"]
    _, found, _ = run(capsys, "list")
    assert [model["name"] for model in found["models"]] == ["good", "damaged", "mine"]
    code, found, _ = run(capsys, "add", str(weights.parent / "none"), "--name", "other", "--licence", "MIT")
    assert code == 2
    assert found["error"]["problems"] == [{"place": str(weights.parent / "none"), "what": "is no file and no folder"}]
