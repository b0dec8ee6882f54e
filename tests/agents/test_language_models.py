"""Adding language models: what is taken, and what is refused with its reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from tests.agents import languagekit as kit
from tokenizers import Tokenizer, models

from starloom.agents.language.config import Config, read_config
from starloom.agents.language.graph import read_graph
from starloom.agents.language.model import load
from starloom.agents.manifest import Manifest
from starloom.agents.modelpull import add
from starloom.agents.modelstore import ModelStore
from starloom.agents.stage import TensorPort
from starloom.dag.errors import InvalidInput, NotFound
from starloom.orchestrator.cli.main import main


def ports(**changed: tuple[str, list[Any]] | None) -> tuple[list[TensorPort], list[TensorPort]]:
    """The inputs and outputs of a decoder of one layer, some changed, added, or dropped for None; `_` stands for `.`."""
    cache = ("tensor(float)", ["batch", 2, "past", 16])
    inputs: dict[str, Any] = {
        "input_ids": ("tensor(int64)", ["batch", "n"]),
        "attention_mask": ("tensor(int64)", ["batch", "m"]),
        "position_ids": ("tensor(int64)", ["batch", "n"]),
        "past_key_values.0.key": cache,
        "past_key_values.0.value": cache,
    }
    outputs: dict[str, Any] = {
        "logits": ("tensor(float)", ["batch", "n", 300]),
        "present.0.key": cache,
        "present.0.value": cache,
    }
    for name, value in changed.items():
        dotted = name.replace("__", ".")
        (outputs if dotted.startswith(("logits", "present")) else inputs)[dotted] = value
    return tuple(  # type: ignore[return-value]
        [TensorPort(name, value[0], tuple(value[1])) for name, value in found.items() if value]
        for found in (inputs, outputs)
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"encoder_hidden_states": ("tensor(float)", ["b", "n", 64])}, "one half of an encoder-decoder"),
        ({"input_ids": None, "inputs_embeds": ("tensor(float)", ["b", "n", 64])}, "takes no input_ids, but .*embed"),
        ({"logits": None}, "gives no logits"),
        (
            {"past_key_values__0__key": None, "past_key_values__0__value": None, "past_0": ("tensor(float)", [2])},
            "takes its cache as past_0; only",
        ),
        ({"past_key_values__0__value": None}, "lacks the key or the value of a layer"),
        ({"present__0__value": None}, "takes caches of 2 arrays, but gives 1"),
        ({"past_conv__0": ("tensor(float)", ["b", 64, 3])}, "takes past_conv.0, which nothing here can give"),
        ({"past_key_values__0__key": ("tensor(bfloat16)", ["b", 2, "past", 16])}, r"has past_key_values.0.key as .*bf"),
        ({"input_ids": ("tensor(float)", ["b", "n"])}, r"has input_ids as tensor\(float\); supported: int64, int32"),
        ({"past_key_values__0__key": ("tensor(float)", ["b", 2, 512, 16])}, r"of shape \['b', 2, 512, 16\]; supported"),
        ({"past_key_values__0__key": ("tensor(float)", ["b", "past", 32])}, "length free"),
        ({"past_key_values__0__key": ("tensor(float)", ["b", "past", 2, 16])}, "several orders of dimensions"),
        ({"input_ids": ("tensor(int64)", ["b", 64])}, r"has input_ids of shape \['b', 64\]; a free number"),
    ],
)
def test_what_a_graph_needs_and_cannot_have_is_named(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_graph(*ports(**changed), Config(), "a/model.onnx")


def test_sizes_that_the_graph_leaves_open_come_from_the_config() -> None:
    cache = ("tensor(float16)", ["batch", "past_length", "heads", None])
    found = ports(past_key_values__0__key=cache, past_key_values__0__value=cache)
    with pytest.raises(InvalidInput, match="names no size for the heads"):
        read_graph(*found, Config(), "a")
    graph = read_graph(*found, Config(kv_heads=4, head_size=8), "a")
    assert (graph.length_axis, graph.shapes) == (1, ((4, 8), (4, 8)))
    one = read_graph(*ports(input_ids=("tensor(int64)", ["batch", 1])), Config(), "a")
    assert (one.tokens, one.batch, one.vocabulary) == (1, None, 300)


def test_sizes_under_all_the_names_that_configs_have() -> None:
    gpt = read_config(
        {"n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257, "eos_token_id": 50256}, {}
    )
    assert gpt == Config("", False, 50257, 1024, 12, 64, frozenset({50256}))
    pictures = {"model_type": "outer", "text_config": {"model_type": "inner", "num_attention_heads": 4, "head_dim": 32}}
    assert read_config(pictures, {"eos_token_id": [1, 2]}) == Config("inner", False, 0, 0, 4, 32, frozenset({1, 2}))
    with pytest.raises(InvalidInput) as caught:
        read_config({"vocab_size": "many", "max_position_embeddings": -1}, {"eos_token_id": "end"})
    assert len(caught.value.problems) == 3


def test_a_folder_is_a_model_of_its_own_name(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARLOOM_HOME", str(tmp_path))
    command = ["models", "add", str(kit.TINY), "--name", "tiny", "--licence", "Apache-2.0", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert (found["kind"], found["present"]) == ("language", True)
    assert set(found["files"]) == {path.name for path in kit.TINY.iterdir()}
    model = load(kit.models(ModelStore(tmp_path / "models", Manifest())), "tiny")
    assert model.texts.config.context == 128


def test_graphs_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine")
    (folder / "onnx").mkdir()
    shutil.move(folder / "model.onnx", folder / "onnx" / "model_quantized.onnx")
    model = kit.loaded(tmp_path / "store", folder)
    assert model.decoder.graph.vocabulary == 300
    shutil.copy(folder / "onnx" / "model_quantized.onnx", folder)
    with pytest.raises(InvalidInput, match="stands there twice"):
        kit.stored(tmp_path / "other", folder)


def test_weights_beside_the_graph_are_verified_with_it(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine")
    model = onnx.load(str(folder / "model.onnx"))
    (folder / "model.onnx").unlink()
    onnx.save(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    store = kit.stored(tmp_path / "store", folder)
    used = kit.models(store)
    load(used, "tiny")
    assert "tiny/model.onnx_data" in used.files


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine")
    Tokenizer(models.WordLevel({f"word{n}": n for n in range(500)}, unk_token="word0")).save(
        str(folder / "tokenizer.json")
    )
    reason = r"tiny/tokenizer.json: has 500 tokens, but the decoder gives 300 logits: it is not this decoder's"
    with pytest.raises(InvalidInput, match=reason):
        kit.stored(tmp_path / "store", folder)
    store = kit.stored(tmp_path / "store", folder, kind="other")
    with pytest.raises(InvalidInput, match=reason):
        load(kit.models(store), "tiny")


def test_a_smaller_tokenizer_is_refused_as_well(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine")
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(InvalidInput, match="has 2 tokens, but the decoder gives 300"):
        kit.stored(tmp_path / "store", folder)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer": {}}, "tokenizer.json: is no tokenizer that can be read"),
        ({"config": {**kit.config(), "is_encoder_decoder": True}}, "encoder-decoder"),
        ({"generation_config": []}, "generation_config.json: is no JSON object"),
        ({"tokenizer_config": {"chat_template": "{% if %}"}, "drop": None}, "chat template: is no Jinja template"),
    ],
)
def test_unusable_files_are_refused_before_they_are_stored(tmp_path: Path, files: dict[str, Any], reason: str) -> None:
    folder = kit.copy(tmp_path / "mine", **{stem: content for stem, content in files.items() if stem != "drop"})
    if "drop" in files:
        (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidInput, match=reason):
        kit.stored(tmp_path / "store", folder)
    assert "tiny" not in ModelStore(tmp_path / "store", Manifest()).manifest


def test_other_models_with_a_tokenizer_stay_what_they_are(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine", config={"architectures": ["BertModel"]})
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, ir_version=8), str(folder / "model.onnx"))
    store = kit.stored(tmp_path / "store", folder)
    assert store.entry("tiny").kind == "custom"
    with pytest.raises(InvalidInput, match="takes no input_ids, but x"):
        load(kit.models(store), "tiny")


def test_a_model_without_a_graph_names_those_that_it_could_have(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine")
    (folder / "model.onnx").rename(folder / "mine.onnx")
    store = kit.stored(tmp_path / "store", folder, kind="other")
    with pytest.raises(NotFound, match="name the graph with the parameter file"):
        load(kit.models(store), "tiny")
    assert load(kit.models(store), "tiny", "mine.onnx").decoder.graph.vocabulary == 300
    with pytest.raises(InvalidInput, match="name the graph"):
        add(ModelStore(tmp_path / "b", Manifest()), folder, "tiny", "language", "MIT")
