"""`starloom bench language`: the aims and rows by figures told beforehand, and a small run of both kinds."""

import json
from typing import Any

import msgspec
import pytest

from starloom.agents.language import family
from starloom.agents.language.quality import Extractive
from starloom.agents.modelstore import ModelStore
from starloom.orchestrator.bench import answers, language
from starloom.orchestrator.bench.answers import Size, aims
from starloom.orchestrator.bench.ours import OURS
from starloom.orchestrator.bench.report import as_json, cells, machine
from starloom.orchestrator.cli.main import main

RECORD: dict[str, Any] = {
    "ngram": [{"order": 3, "perplexity": 40.0}, {"order": 5, "perplexity": 30.0}],
    "held_out": {"questions": 1200, "questions_sha256": "q", "text_sha256": "t"},
}
EXTRACTIVE = Extractive(exact_match=0.2, contains=0.8, refused=0.5)
SIZES = [name.removeprefix("starloom-") for name in family.sizes()]


def size(exact_match: float, perplexity: float, **changed: Any) -> Size:
    figures: dict[str, Any] = {
        "refused": 0.9,
        "wrong_refusals": 0.05,
        "bits_per_byte": 1.7,
        "sha256": "s",
        "int8_cost": 0.01,
    }
    return Size(exact_match=exact_match, perplexity=perplexity, **(figures | changed))


def test_all_aims_are_met_by_figures_that_meet_them() -> None:
    found = {"1m": size(0.65, 45.0), "3m": size(0.6, 29.0)}
    assert set(aims(found, "1m", EXTRACTIVE, 30.0).values()) == {True}
    assert set(aims(found, "1m", EXTRACTIVE, 30.0)) == set(answers.SAID)


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        ({"1m": size(0.5, 45.0), "3m": size(0.59, 29.0)}, {"exact_match"}),
        ({"1m": size(0.5, 45.0), "3m": size(0.7, 29.0, refused=0.79)}, {"refused"}),
        ({"1m": size(0.1, 45.0), "3m": size(0.15, 29.0)}, {"exact_match", "beats_extractive"}),
        ({"1m": size(0.5, 28.0), "3m": size(0.7, 29.0)}, {"perplexity_falls"}),
        ({"1m": size(0.7, 29.0)}, {"perplexity_falls"}),
        ({"1m": size(0.5, 45.0), "3m": size(0.7, 31.0)}, {"beats_ngram"}),
        ({"1m": size(0.5, 45.0, int8_cost=0.03), "3m": size(0.7, 29.0)}, {"int8_costs_little"}),
        ({"1m": size(0.5, 45.0), "3m": size(0.7, 29.0, int8_cost=None)}, {"int8_costs_little"}),
    ],
)
def test_an_aim_that_is_missed_is_said_to_be(found: dict[str, Size], missed: set[str]) -> None:
    met = aims(found, list(found)[-1], EXTRACTIVE, 30.0)
    assert {name for name, reached in met.items() if not reached} == missed


def test_the_report_is_of_the_best_size_and_has_all_of_them() -> None:
    found = {"1m": size(0.7, 60.0, int8_cost=None), "3m": size(0.65, 15.0)}
    report = answers.report(found, EXTRACTIVE, RECORD, 300, machine(), {})
    told = as_json(report)
    assert (told["best"], told["exact_match"], told["refused"], told["extractive_exact_match"]) == ("1m", 0.7, 0.9, 0.2)
    assert told["perplexity"] == {"1m": 60.0, "3m": 15.0}
    assert (told["ngram_perplexity"], told["ngram_order"], told["questions"]) == (30.0, 5, 300)
    assert told["sizes"]["3m"]["int8_cost"] == 0.01
    assert told["held_out_sha256"] == {"questions": "q", "text": "t"}
    rows = {row.what: row for row in report.rows}
    assert set(rows) == {f"{what}-{one}" for what in ("exact-match", "refused", "perplexity") for one in found}
    assert rows["exact-match-1m"].ratio == pytest.approx(3.5)
    assert (rows["perplexity-3m"].ratio, rows["perplexity-3m"].peer_name) == (2.0, "kneser-ney-5")
    assert all(cells(row) for row in report.rows)
    text = "\n".join(report.notes)
    assert "only the first 300 of 1200" in text
    assert "aim NOT met: INT8 costs" in text
    assert "aim met: perplexity falls with size" in text


def test_a_baseline_that_has_nothing_right_makes_no_ratio_of_infinity() -> None:
    nothing = msgspec.json.encode(
        answers.rows({"1m": size(0.7, 60.0)}, Extractive(0.0, 0.0, 0.0), RECORD["ngram"][0], 9)
    )
    assert [row["ratio"] for row in json.loads(nothing)][:2] == [1.0, 1.0]


def test_speed_is_told_as_milliseconds_and_as_tokens_a_second() -> None:
    works = {language.Work("starloom-1m", "first-token"): 0.02, language.Work("starloom-1m", "tokens"): 0.5}
    samples = {(name, work): [took] for name in (OURS, language.BARE) for work, took in works.items()}
    first, rest = language.rows(["starloom-1m"], samples)
    assert (first.what, first.unit, first.ours) == ("first-token-1m", "ms", 20.0)
    assert (rest.what, rest.unit, rest.ours) == ("tokens-1m", "tokens/s", 2 * language.TOKENS)


def test_no_question_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "language", "--json", "--questions", "0"]) == 2
    assert "--questions" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.models
def test_a_small_run_tells_how_fast_each_size_is(capsys: pytest.CaptureFixture[str], model_store: ModelStore) -> None:
    assert main(["bench", "language", "--json", "--repeat", "1", "--questions", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["what"] for row in found["rows"]} == {
        f"{what}-{one}" for what in ("first-token", "tokens") for one in SIZES
    }
    assert {row["peer_name"] for row in found["rows"]} == {"onnxruntime"}
    assert all(row["ours"] > 0 for row in found["rows"])


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_run_tells_how_well_each_size_answers(
    capsys: pytest.CaptureFixture[str], model_store: ModelStore
) -> None:
    assert main(["bench", "language", "--quality", "--json", "--questions", "20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["sizes"]) == set(found["perplexity"]) == set(SIZES)
    assert found["best"] in SIZES
    assert found["exact_match"] == max(one["exact_match"] for one in found["sizes"].values())
    record = answers.read_record()
    for one in SIZES:
        assert found["perplexity"][one] == pytest.approx(record["sizes"][one]["perplexity"], rel=0.01)
        assert found["sizes"][one]["sha256"] == record["sizes"][one]["sha256"]
    assert set(found["aims"]) == set(answers.SAID)
