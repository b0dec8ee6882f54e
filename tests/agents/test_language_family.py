"""The family that ships, as the model store has it."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY

from starloom.agents.language import family, quality
from starloom.agents.language.model import load
from starloom.agents.manifest import Manifest, parse_toml, shipped
from starloom.agents.modelpull import add, pull
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken
from starloom.dag.errors import DigestMismatch, InvalidInput

FOLDERS = sorted(path.parent.name for path in quality.FOLDER.glob("*/model.onnx"))


def test_each_size_that_ships_is_in_the_catalogue_with_its_digests() -> None:
    assert {f"starloom-{size}" for size in FOLDERS} == set(family.sizes())
    command = [sys.executable, str(REPOSITORY / "tools" / "family.py"), *FOLDERS]
    written = parse_toml(subprocess.run(command, capture_output=True, text=True, check=True).stdout, "written")
    for name in family.sizes():
        assert shipped()[name] == written[name], f"{name}: run tools/family.py"
        assert shipped()[name].default


def test_the_word_for_the_family_is_its_largest_size() -> None:
    sizes = family.sizes()
    assert sizes == sorted(sizes, key=lambda name: int(name.removeprefix("starloom-").removesuffix("m")))
    assert family.chosen(family.LARGEST) == sizes[-1]
    assert family.chosen("mine") == "mine"


def test_a_size_comes_into_the_store_and_runs_under_the_word(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert pull(store, [family.chosen(family.LARGEST)]) == [family.sizes()[-1]]
    models = SessionPool(store, limit=1).for_call(CancelToken())
    model = load(models, family.LARGEST)
    logits, _ = model.decoder.prefill([model.vocabulary.encode("what is a pixel?", marked=False)])
    assert logits.shape[0] == 1
    assert [name.partition("@")[0] for name in models.models] == [family.sizes()[-1]]


def test_weights_that_are_not_those_of_the_catalogue_are_refused(tmp_path: Path) -> None:
    name = family.sizes()[0]
    store = ModelStore(tmp_path)
    pull(store, [name])
    path = store.folder(name) / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatch, match=f"model {name}"):
        load(SessionPool(store, limit=1).for_call(CancelToken()), name)


def test_nobodys_own_model_takes_the_word(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InvalidInput, match="stands for the largest of the shipped language models"):
        add(ModelStore(tmp_path / "store", Manifest()), tmp_path / "weights.bin", family.LARGEST, "custom", "MIT")
