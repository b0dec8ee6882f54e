"""A decoder against transformers' own numbers, and its cache against the full pass, for every layout that is taken."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.agents import languagekit as kit

from starloom.agents.language.cache import KVCache, join
from starloom.agents.language.decoder import Decoder
from starloom.agents.language.model import load
from starloom.agents.stage import CancelToken
from starloom.dag.errors import Cancelled, InvalidInput, StageError

TOLERANCE = 1e-3
VARIANTS: dict[str, kit.Surgery | None] = {
    "as exported": None,
    "without position_ids": kit.without_positions,
    "float16 cache": kit.half_cache,
    "merged": kit.merged,
    "lengths first": kit.lengths_first,
    "one row": kit.one_row,
    "last logits": kit.last_logits,
}
tokens = st.lists(st.integers(0, 299), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return kit.loaded(tmp_path_factory.mktemp("store")).decoder


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = kit.copy(tmp_path_factory.mktemp("variant") / "mine", VARIANTS[request.param])
    return kit.loaded(tmp_path_factory.mktemp("store"), folder).decoder


def full(decoder: Decoder, row: Sequence[int]) -> NDArray[np.float32]:
    """Logits of every token, [n, vocabulary], in one run without a past."""
    logits, _ = decoder.forward(np.array([row], np.int64))
    found: NDArray[np.float32] = logits[0]
    return found


def tolerance(decoder: Decoder) -> float:
    """Half floats in the cache are rounded to three digits, of logits that go up to 20."""
    return TOLERANCE if decoder.graph.types[decoder.graph.past[0]] == np.float32 else 5e-2


def test_logits_are_those_of_transformers(variant: Decoder) -> None:
    for text, row in kit.PROMPTS.items():
        logits, cache = variant.prefill([row])
        np.testing.assert_allclose(logits[0], kit.EXPECTED["logits"][text], atol=tolerance(variant))
        assert (cache.batch, cache.lengths, cache.layers) == (1, (len(row),), 2)
        assert cache.keys[0].shape == (1, 2, len(row), 16)


def test_steps_equal_the_full_pass_in_every_layout(variant: Decoder) -> None:
    row = kit.PROMPTS["A stage runs on"] + kit.EXPECTED["greedy"]["A stage runs on"]
    whole = full(variant, row)
    logits, cache = variant.prefill([row[:4]])
    for n, token in enumerate(row[4:], 4):
        np.testing.assert_allclose(logits[0], whole[n - 1], atol=tolerance(variant))
        logits, cache = variant.step([token], cache)
    np.testing.assert_allclose(logits[0], whole[-1], atol=tolerance(variant))


@given(rows=st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5), steps=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_rows_of_mixed_lengths_step_together_as_each_does_alone(
    decoder: Decoder, rows: list[tuple[list[int], list[int]]], steps: int
) -> None:
    logits, cache = decoder.prefill([prompt for prompt, _ in rows])
    assert cache.lengths == tuple(len(prompt) for prompt, _ in rows)
    for n in range(steps):
        logits, cache = decoder.step([more[n % len(more)] for _, more in rows], cache)
    for got, (prompt, more) in zip(logits, rows, strict=True):
        said = prompt + [more[n % len(more)] for n in range(steps)]
        np.testing.assert_allclose(got, full(decoder, said)[-1], atol=TOLERANCE)


@given(row=st.lists(st.integers(0, 299), min_size=2, max_size=30), cut=st.integers(1, 29))
@settings(max_examples=25, deadline=None)
def test_a_prompt_may_be_read_in_two_parts(decoder: Decoder, row: list[int], cut: int) -> None:
    cut = min(cut, len(row) - 1)
    _, cache = decoder.prefill([row[:cut]])
    logits, whole = decoder.prefill([row[cut:]], cache)
    np.testing.assert_allclose(logits[0], full(decoder, row)[-1], atol=TOLERANCE)
    _, direct = decoder.prefill([row])
    np.testing.assert_allclose(whole.keys[1], direct.keys[1], atol=TOLERANCE)


def test_a_long_prompt_is_read_in_pieces(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starloom.dag.limits.LANGUAGE_PREFILL_TOKENS", 7)
    row = list(range(30, 60))
    pieces = list(decoder.pieces([row]))
    assert [cache.length for _, cache in pieces] == [7, 14, 21, 28, 30]
    np.testing.assert_allclose(pieces[-1][0][0], full(decoder, row)[-1], atol=TOLERANCE)


def test_a_cache_goes_back_and_on_another_way(decoder: Decoder) -> None:
    _, cache = decoder.prefill([[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]])
    logits, _ = decoder.step([40, 41], cache.head(2))
    np.testing.assert_allclose(logits[0], full(decoder, [5, 6, 40])[-1], atol=TOLERANCE)
    np.testing.assert_allclose(logits[1], full(decoder, [15, 16, 41])[-1], atol=TOLERANCE)
    assert cache.length == 5


def test_rows_leave_and_join_a_batch(decoder: Decoder) -> None:
    _, two = decoder.prefill([[5, 6, 7, 8], [9]])
    _, one = decoder.prefill([[50, 51]])
    mixed = join([two.rows([1]), one, two.rows([0])])
    assert mixed.lengths == (1, 2, 4)
    logits, _ = decoder.step([1, 2, 3], mixed)
    for got, row in zip(logits, ([9, 1], [50, 51, 2], [5, 6, 7, 8, 3]), strict=True):
        np.testing.assert_allclose(got, full(decoder, row)[-1], atol=TOLERANCE)
    assert two.rows([1]).length == 1, "no column is kept that is padding in every row"


def test_columns_that_were_made_elsewhere_are_appended(decoder: Decoder) -> None:
    _, whole = decoder.prefill([[5, 6, 7, 8]])
    head = whole.head(3)
    last = KVCache(tuple(key[:, :, 3:] for key in whole.keys), tuple(value[:, :, 3:] for value in whole.values), (0,))
    again = head.append(last)
    assert again.bytes == whole.bytes
    np.testing.assert_array_equal(again.values[1], whole.values[1])


def test_a_cache_refuses_what_does_not_fit(decoder: Decoder) -> None:
    cache = decoder.prefill([[5, 6], [7]])[1]
    with pytest.raises(ValueError, match="cannot take the first 1 tokens"):
        cache.head(1)
    with pytest.raises(ValueError, match="cannot follow"):
        decoder.prefill([[5]])[1].append(cache)
    with pytest.raises(ValueError, match="are no cache"):
        KVCache(cache.keys, cache.values[:1], cache.padding)
    with pytest.raises(ValueError, match="no cache to join"):
        join([])
    with pytest.raises(StageError, match="1 rows of tokens do not fit a cache of 2"):
        decoder.step([5], cache)
    with pytest.raises(StageError, match="at least one token"):
        decoder.prefill([[5], []])


def test_a_fixed_batch_and_missing_positions_say_what_they_cannot(tmp_path: Path) -> None:
    fixed = kit.loaded(tmp_path / "a", kit.copy(tmp_path / "one", kit.one_row)).decoder
    with pytest.raises(StageError, match="takes 1 rows at a time, not 2"):
        fixed.prefill([[5, 6], [7, 8]])
    blind = kit.loaded(tmp_path / "b", kit.copy(tmp_path / "none", kit.without_positions)).decoder
    _, cache = blind.prefill([[5, 6], [7]])
    with pytest.raises(StageError, match="need a graph with position_ids"):
        blind.step([1, 2], cache)


def test_a_run_ends_with_its_call(tmp_path: Path) -> None:
    cancel = CancelToken()
    decoder = load(kit.models(kit.stored(tmp_path), cancel), "tiny").decoder
    cancel.cancel()
    with pytest.raises(Cancelled):
        decoder.prefill([[5]])


def test_a_graph_of_broken_weights_is_found_out(tmp_path: Path) -> None:
    def broken(graph: object) -> None:
        weights = max(graph.initializer, key=lambda one: len(one.raw_data))  # type: ignore[attr-defined]
        weights.raw_data = np.full(len(weights.raw_data) // 4, np.nan, np.float32).tobytes()

    decoder = kit.loaded(tmp_path / "store", kit.copy(tmp_path / "mine", broken)).decoder
    with pytest.raises(StageError, match="logits that are no numbers"):
        decoder.prefill([[5]])


def test_a_graph_without_cache_inputs_is_refused(tmp_path: Path) -> None:
    folder = kit.copy(tmp_path / "mine", kit.without_cache)
    with pytest.raises(InvalidInput, match="takes no past_key_values"):
        kit.stored(tmp_path / "store", folder)
    # As a custom kind it may be kept, for a stage of one's own; this one says the same of it.
    store = kit.stored(tmp_path / "store", folder, kind="other")
    with pytest.raises(InvalidInput, match=r"tiny/model\.onnx: takes no past_key_values.*export it with its cache"):
        load(kit.models(store), "tiny")
