"""The MiniLM converter against a second implementation, in plain numpy."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from starloom.agents.convert import minilm
from starloom.agents.convert.graphs import quantised
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, StageCall
from starloom.agents.stages.embed import EmbedTogether, embed, embed_together
from starloom.dag.errors import InvalidInput

WIDTH, INNER, WORDS, PLACES, LAYERS = 96, 160, 50, 24, 2
REFERENCE = Path(__file__).parents[1] / "data" / "text" / "float_embeddings.npz"

Weights = dict[str, NDArray[np.float32]]


@pytest.fixture
def weights() -> Weights:
    rng = np.random.default_rng(7)

    def normal(*shape: int, scale: float = 0.15) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    made = {
        f"embeddings.{name}_embeddings.weight": normal(rows, WIDTH)
        for name, rows in (("word", WORDS), ("position", PLACES), ("token_type", 2))
    }
    modules: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (WIDTH,)}
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        modules |= {f"{layer}.attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        modules |= {f"{layer}.attention.output.dense": (WIDTH, WIDTH), f"{layer}.attention.output.LayerNorm": (WIDTH,)}
        modules |= {
            f"{layer}.intermediate.dense": (INNER, WIDTH),
            f"{layer}.output.dense": (WIDTH, INNER),
            f"{layer}.output.LayerNorm": (WIDTH,),
        }
    for name, shape in modules.items():
        made[f"{name}.weight"] = normal(*shape) + (1 if len(shape) == 1 else 0)
        made[f"{name}.bias"] = normal(shape[0])
    return made


def run(weights: Weights, ids: NDArray[np.int64], mask: NDArray[np.int64], *, int8: bool) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = minilm.build(weights, int8=int8).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return output


def forward(weights: Weights, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float64]:
    """BERT and mean pooling, text by text, over the tokens of the mask alone."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    erf = np.vectorize(math.erf)

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"])

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    rows = []
    for text, used in zip(ids, mask.astype(bool), strict=True):
        places = np.arange(len(text))[used]
        embedded = (
            w["embeddings.word_embeddings.weight"][text[used]] + w["embeddings.position_embeddings.weight"][places]
        )
        x = norm(embedded + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for n in range(LAYERS):
            layer = f"encoder.layer.{n}"
            q, k, v = (linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
            heads = []
            for first in range(0, WIDTH, 32):
                part = slice(first, first + 32)
                scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(32))
                heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
            attended = linear(np.concatenate(heads, -1), f"{layer}.attention.output.dense")
            x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = linear(x, f"{layer}.intermediate.dense")
            gelu = inner * (1 + erf(inner / math.sqrt(2))) / 2
            x = norm(x + linear(gelu, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        mean = x.mean(0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


def batch() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = np.random.default_rng(3).integers(0, WORDS, (3, 11))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 1:] = 0
    return ids, mask


def test_float_graph_equals_numpy(weights: Weights) -> None:
    ids, mask = batch()
    difference = np.abs(run(weights, ids, mask, int8=False) - forward(weights, ids, mask)).max()
    assert difference <= 1e-5


def test_int8_graph_stays_near_numpy(weights: Weights) -> None:
    ids, mask = batch()
    cosines = (run(weights, ids, mask, int8=True) * forward(weights, ids, mask)).sum(-1)
    assert cosines.min() >= 0.98


def test_what_lies_under_the_mask_does_not_count(weights: Weights) -> None:
    ids, mask = batch()
    other = np.where(mask == 1, ids, 5)
    assert not np.array_equal(ids, other)
    np.testing.assert_allclose(run(weights, ids, mask, int8=False), run(weights, other, mask, int8=False), atol=1e-6)


def test_quantised_weights_are_within_half_a_step() -> None:
    weight = np.random.default_rng(1).standard_normal((40, 9)).astype(np.float32)
    weight[:, 4] = 0
    integers, scales = quantised(weight)
    assert integers.dtype == np.int8
    assert np.abs(weight - integers * scales).max(axis=0) == pytest.approx(scales / 2, abs=float(scales.max()) / 2)
    assert not integers[:, 4].any()


def write_safetensors(file: Path, tensors: Weights) -> None:
    header, body = {}, b""
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_convert_twice_gives_the_same_bytes(weights: Weights, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", weights)
    minilm.convert(tmp_path, tmp_path / "one")
    minilm.convert(tmp_path / "model.safetensors", tmp_path / "two")
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (tmp_path / "two" / "model.onnx").read_bytes()


def test_safetensors_come_back_as_they_were_written(weights: Weights, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", weights)
    read = minilm.read_safetensors(tmp_path / "x")
    assert read.keys() == weights.keys()
    assert all(np.array_equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("cut", [0, 5, 300, -4], ids=["empty", "length", "header", "body"])
def test_a_damaged_file_is_refused(weights: Weights, tmp_path: Path, cut: int) -> None:
    write_safetensors(tmp_path / "model.safetensors", weights)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:cut])
    with pytest.raises(InvalidInput, match=r"model\.safetensors: is no readable safetensors file"):
        minilm.convert(tmp_path, tmp_path / "made")


def test_every_missing_weight_is_named(weights: Weights) -> None:
    del weights["encoder.layer.1.output.dense.bias"], weights["embeddings.LayerNorm.weight"]
    with pytest.raises(InvalidInput) as caught:
        minilm.build(weights)
    assert {problem.place for problem in caught.value.problems} == {
        "encoder.layer.1.output.dense.bias",
        "embeddings.LayerNorm.weight",
    }


@pytest.mark.models
def test_the_stored_model_is_near_the_float_model(model_store: ModelStore) -> None:
    """The reference file holds the float graph's embeddings of real weights; see its README."""
    models = SessionPool(model_store, limit=1).for_call(CancelToken())
    with np.load(REFERENCE) as reference:
        cosines = [
            float(embed(models, str(text)) @ row)
            for text, row in zip(reference["texts"], reference["embeddings"], strict=True)
        ]
    sys.stdout.write(f"least cosine with float32: {min(cosines):.4f}\n")
    assert min(cosines) >= 0.98


@pytest.mark.models
def test_texts_that_share_runs_are_near_the_float_model_whatever_their_neighbours(model_store: ModelStore) -> None:
    models = SessionPool(model_store, limit=1).for_call(CancelToken())
    with np.load(REFERENCE) as reference:
        texts, rows = [str(text) for text in reference["texts"]], reference["embeddings"]
    there = embed_together(models, [*texts, " "])
    back = embed_together(models, texts[::-1])[::-1]
    cosines = [float(a @ row) for a, row in zip((*there[:-1], *back), (*rows, *rows), strict=True)]
    sys.stdout.write(f"least cosine with float32: {min(cosines):.4f}\n")
    assert min(cosines) >= 0.95
    assert not there[-1].any(), "blank text has no direction"


@pytest.mark.models
def test_calls_of_several_jobs_give_each_its_own_embedding(model_store: ModelStore) -> None:
    models = SessionPool(model_store, limit=1).for_call(CancelToken())
    texts = ("Where is the nearest harbour?", "How do bees find flowers?", "Which metal is liquid at room temperature?")
    calls = [StageCall({"text": text}, {}, models) for text in texts]
    found = [outputs["embedding"] for outputs in EmbedTogether().run_batch(calls) if not isinstance(outputs, Exception)]
    alone = [EmbedTogether().run(call)["embedding"] for call in calls]
    assert [max(range(3), key=lambda n: float(one @ alone[n])) for one in found] == [0, 1, 2]
    assert all(np.array_equal(one, embed(models, text)) for one, text in zip(alone, texts, strict=True))
