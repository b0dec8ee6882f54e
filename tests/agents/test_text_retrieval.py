"""Embedding and exact search, and the corpus that ships."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionPool
from starloom.agents.stage import CancelToken, Models, StageCall
from starloom.agents.stages import retrieve
from starloom.agents.stages.embed import MODEL, WIDTH, Embed, embed
from starloom.agents.stages.retrieve import FOLDER, RECORD, Retrieve, corpus, embedded_text, quantised
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, StageError


class CorpusOnly:
    """Keeps what stages cache, and has no model."""

    def session(self, model: str, file: str = "", *, target: str | None = None) -> Any:
        raise AssertionError(f"{model} was asked for")

    def path(self, model: str, file: str) -> str:
        raise AssertionError(f"{model} was asked for")

    def cached(self, model: str, name: str, make: Any) -> Any:
        return make()


@pytest.fixture(scope="module")
def models(model_store: ModelStore) -> Models:
    return SessionPool(model_store, limit=2).for_call(CancelToken())


def search(embedding: Any, k: int = 5, score_min: float = 0.1) -> list[dict[str, Any]]:
    outputs = Retrieve().run(StageCall({"embedding": embedding}, {"k": k, "score_min": score_min}, CorpusOnly()))
    assert isinstance(outputs, dict)
    passages: list[dict[str, Any]] = outputs["passages"]
    return passages


def test_a_row_of_the_index_finds_its_own_passage_first() -> None:
    passages, embeddings = corpus()
    for n in range(0, len(passages), 997):
        found = search(embeddings[n], k=3)
        assert found[0]["id"] == passages[n]["id"]
        assert found[0]["score"] == pytest.approx(1, abs=0.01)
        assert [p["score"] for p in found] == sorted((p["score"] for p in found), reverse=True)
        assert len(found) == 3


def test_search_is_exact() -> None:
    passages, embeddings = corpus()
    query = np.random.default_rng(5).standard_normal(WIDTH).astype(np.float32)
    scores = [float(sum(row * query)) for row in embeddings]
    best = sorted(range(len(scores)), key=lambda n: -scores[n])[:4]
    assert [p["id"] for p in search(query, k=4, score_min=-1e9)] == [passages[n]["id"] for n in best]


def test_nothing_finds_nothing() -> None:
    assert search(np.zeros(WIDTH, np.float32)) == []


@pytest.mark.parametrize("k", [0, limits.RETRIEVED_PASSAGES_MAX + 1])
def test_a_count_out_of_bounds_is_refused(k: int) -> None:
    with pytest.raises(StageError, match="RETRIEVED_PASSAGES_MAX"):
        search(np.zeros(WIDTH, np.float32), k=k)


def test_an_embedding_of_another_width_is_refused() -> None:
    with pytest.raises(StageError, match=r"shape \[1, 384\]"):
        search(np.zeros((1, WIDTH), np.float32))


def test_the_corpus_is_whole() -> None:
    passages, embeddings = corpus()
    assert len({p["id"] for p in passages}) == len(passages) == 6000
    assert all(p["title"] and p["text"] and not set("{}") & set(p["text"]) for p in passages)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=0.01)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 4 * 1024 * 1024


def test_an_index_of_another_corpus_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(FOLDER, copy)
    assert len(corpus(copy).passages) == 6000
    record = json.loads((copy / RECORD).read_text())
    (copy / RECORD).write_text(json.dumps({**record, "passages_sha256": "0" * 64}))
    with pytest.raises(DigestMismatch, match=r"tools/corpus\.py"):
        corpus(copy)


def test_the_index_is_of_the_manifests_model(tmp_path: Path) -> None:
    record = json.loads((FOLDER / RECORD).read_text())
    assert (record["model"], record["model_version"]) == (MODEL, ModelStore(tmp_path).entry(MODEL).version)


def test_quantised_rows_come_back() -> None:
    rows = np.random.default_rng(2).standard_normal((6, WIDTH)).astype(np.float32)
    integers, scales = quantised(rows)
    assert np.abs(rows - integers * scales).max() <= float(scales.max()) / 2 * 1.001


@pytest.mark.models
def test_a_sample_embedded_again_agrees_with_the_index(models: Models) -> None:
    passages, embeddings = corpus()
    cosines = [float(embed(models, embedded_text(passages[n])) @ embeddings[n]) for n in range(0, len(passages), 200)]
    sys.stdout.write(f"least cosine with the index: {min(cosines):.4f}\n")
    assert min(cosines) >= 0.995


@pytest.mark.models
def test_an_embedding_has_unit_length_and_blank_text_none(models: Models) -> None:
    outputs = Embed().run(StageCall({"text": "What is a pixel?"}, {}, models))
    assert isinstance(outputs, dict)
    assert outputs["embedding"].dtype == np.float32
    assert outputs["embedding"].shape == (WIDTH,)
    assert np.linalg.norm(outputs["embedding"]) == pytest.approx(1, abs=1e-5)
    blank = Embed().run(StageCall({"text": " \n", "context": ""}, {}, models))
    assert isinstance(blank, dict)
    assert not blank["embedding"].any()


@pytest.mark.models
def test_context_moves_an_embedding_towards_it(models: Models) -> None:
    context = "The cat sat on the mat."
    alone, beside = (
        embed(models, "What is it?"),
        Embed().run(StageCall({"text": "What is it?", "context": context}, {}, models)),
    )
    assert isinstance(beside, dict)
    target = embed(models, context)
    assert beside["embedding"] @ target > alone @ target + 0.2


@pytest.mark.models
def test_a_text_of_any_length_is_embedded(models: Models) -> None:
    assert np.isfinite(embed(models, "pixel " * 5000)).all()


@pytest.mark.models
@pytest.mark.parametrize("title", ["pixel", "robot", "latency", "speech recognition", "directed acyclic graph"])
def test_a_term_is_found_first(models: Models, title: str) -> None:
    assert search(embed(models, f"What is a {title}?"))[0]["title"] == title


@pytest.mark.models
def test_retrieval_counts_as_the_use_of_its_model(model_store: ModelStore) -> None:
    call_models = SessionPool(model_store, limit=1).for_call(CancelToken())
    retrieve.Retrieve().load(call_models, "cpu")
    assert call_models.models == [f"{MODEL}@{model_store.entry(MODEL).version}"]
