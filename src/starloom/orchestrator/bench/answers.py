"""How well the language family answers: its sizes on held-out questions and text, beside the baselines, and the aims."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from starloom.agents.language import quality
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.language.quality import Asked, Extractive, Quality
from starloom.agents.manifest import shipped
from starloom.agents.modelstore import DEFAULT_FILE
from starloom.agents.sessions import CallModels
from starloom.orchestrator.bench.harness import Row
from starloom.orchestrator.bench.report import Machine, Note, Report

EXACT_MATCH_MIN: Final = 0.6
REFUSED_MIN: Final = 0.8
INT8_COST_MAX: Final = 0.02
"""What the family was made to reach, as shares: of the best size, and what INT8 may cost any size."""

EXTRACTIVE: Final = "extractive"
_EACH: Final = 100


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One size: shares in [0, 1] as `quality.Quality` has them, perplexity a token, its weights' digest.

    `int8_cost`: exact match of the float32 weights less that of these, as it was recorded when they were made; None
    if it was not.
    """

    exact_match: float
    refused: float
    wrong_refusals: float
    perplexity: float
    bits_per_byte: float
    sha256: str
    int8_cost: float | None = None


class QualityReport(Report, frozen=True, kw_only=True):
    """A report whose rows are shares and perplexities; `exact_match` and its like are those of the `best` size.

    `ngram_perplexity` was recorded, not measured now: its counts are of the training text, which does not ship.
    `aims` says of each aim whether it is met by what was measured.
    """

    best: str
    exact_match: float
    refused: float
    wrong_refusals: float
    extractive_exact_match: float
    extractive_refused: float
    perplexity: dict[str, float]
    ngram_perplexity: float
    ngram_order: int
    sizes: dict[str, Size]
    questions: int
    held_out_sha256: dict[str, str]
    aims: dict[str, bool]


def measured_report(
    models: CallModels,
    names: Sequence[str],
    count: int | None,
    note: Note,
    before: Machine,
    packages: dict[str, str],
) -> QualityReport:
    """Asks every size the first `count` held-out questions, or all of them."""
    questions, texts = quality.held_out()[:count], quality.held_out_text()
    record = read_record()
    found: dict[str, Size] = {}
    for name in names:
        size, model = name.rpartition("-")[2], load(models, name)
        good = _asked(model, questions, note)
        note(f"{name}: perplexity")
        perplexity, bits = quality.perplexity(model, texts)
        recorded = record["sizes"].get(size, {})
        digest = weights_digest(name)
        cost = recorded["float32_exact_match"] - recorded["exact_match"] if recorded.get("sha256") == digest else None
        found[size] = Size(
            exact_match=good.exact_match,
            refused=good.refused,
            wrong_refusals=good.wrong_refusals,
            perplexity=perplexity,
            bits_per_byte=bits,
            sha256=digest,
            int8_cost=cost,
        )
    note("the extractive answer")
    return report(found, quality.extractive(models, questions), record, len(questions), before, packages)


def weights_digest(name: str) -> str:
    """SHA-256 of a size's graph, which the model store has checked."""
    [digest] = [file.sha256 for file in shipped()[name].files if file.name == DEFAULT_FILE]
    return digest


def _asked(model: LanguageModel, questions: Sequence[Asked], note: Note) -> Quality:
    replies = []
    for n, asked in enumerate(questions):
        if n % _EACH == 0:
            note(f"{model.name}: {n} of {len(questions)} questions")
        replies.append(quality.answered(model, asked))
    return quality.measured(questions, replies)


def read_record(folder: Path = quality.FOLDER) -> dict[str, Any]:
    """What was measured when the family was made."""
    found: dict[str, Any] = msgspec.json.decode((folder / "record.json").read_bytes())
    return found


def report(
    found: Mapping[str, Size],
    extractive: Extractive,
    record: Mapping[str, Any],
    questions: int,
    before: Machine,
    packages: dict[str, str],
) -> QualityReport:
    """The report on sizes, smallest first."""
    best = max(found, key=lambda size: found[size].exact_match)
    ngram = min(record["ngram"], key=lambda one: float(one["perplexity"]))
    met = aims(found, best, extractive, ngram["perplexity"])
    held_out = record["held_out"]
    return QualityReport(
        bench="language",
        rows=rows(found, extractive, ngram, questions),
        repeat=1,
        notes=notes(found, met, ngram, questions, held_out["questions"]),
        machine=before,
        versions=packages,
        best=best,
        exact_match=found[best].exact_match,
        refused=found[best].refused,
        wrong_refusals=found[best].wrong_refusals,
        extractive_exact_match=extractive.exact_match,
        extractive_refused=extractive.refused,
        perplexity={size: figures.perplexity for size, figures in found.items()},
        ngram_perplexity=ngram["perplexity"],
        ngram_order=ngram["order"],
        sizes=dict(found),
        questions=questions,
        held_out_sha256={"questions": held_out["questions_sha256"], "text": held_out["text_sha256"]},
        aims=met,
    )


def aims(found: Mapping[str, Size], best: str, extractive: Extractive, ngram: float) -> dict[str, bool]:
    """Which aims are met. Perplexity cannot fall with size where there is one size only."""
    figures = found[best]
    perplexities = [one.perplexity for one in found.values()]
    costs = [one.int8_cost for one in found.values()]
    return {
        "exact_match": figures.exact_match >= EXACT_MATCH_MIN,
        "refused": figures.refused >= REFUSED_MIN,
        "beats_extractive": figures.exact_match > extractive.exact_match,
        "perplexity_falls": len(found) > 1 and all(small > large for small, large in pairwise(perplexities)),
        "beats_ngram": min(perplexities) < ngram,
        "int8_costs_little": all(cost is not None and cost <= INT8_COST_MAX for cost in costs),
    }


def rows(found: Mapping[str, Size], extractive: Extractive, ngram: Mapping[str, Any], questions: int) -> list[Row]:
    """Three rows for each size: beside the extractive answer, and the n-gram model."""
    made = []
    for size, figures in found.items():
        made += [
            _row(f"exact-match-{size}", figures.exact_match, extractive.exact_match, EXTRACTIVE, questions),
            _row(f"refused-{size}", figures.refused, extractive.refused, EXTRACTIVE, questions),
        ]
        peer = f"kneser-ney-{ngram['order']}"
        less = _row(f"perplexity-{size}", figures.perplexity, ngram["perplexity"], peer, 1, "a token")
        made.append(msgspec.structs.replace(less, ratio=less.peer / less.ours))
    return made


def _row(what: str, ours: float, peer: float, name: str, n: int, unit: str = "share") -> Row:
    """A row of figures that were measured once."""
    return Row(
        what=what,
        ours=ours,
        peer=peer,
        peer_name=name,
        ratio=ours / peer if peer else float(ours > 0),
        unit=unit,
        n=n,
        ours_spread=(ours, ours),
        peer_spread=(peer, peer),
    )


SAID: Final[Mapping[str, str]] = {
    "exact_match": f"exact match of the best size at least {EXACT_MATCH_MIN:.0%}",
    "refused": f"of unanswerable questions, it refuses at least {REFUSED_MIN:.0%}",
    "beats_extractive": "exact match better than the extractive answer's",
    "perplexity_falls": "perplexity falls with size",
    "beats_ngram": "the least perplexity is below the n-gram model's",
    "int8_costs_little": f"INT8 costs no size more than {INT8_COST_MAX:.0%} of exact match",
}


def notes(
    found: Mapping[str, Size], met: Mapping[str, bool], ngram: Mapping[str, Any], questions: int, whole: int
) -> list[str]:
    """What must be known to read the rows, and the aims."""
    sample = "all" if questions == whole else "only the first"
    costs = {size: one.int8_cost for size, one in found.items() if one.int8_cost is not None}
    said = ", ".join(f"{size} {cost:+.2%}" for size, cost in costs.items()) or "not recorded for these weights"
    wrong = ", ".join(f"{size} {one.wrong_refusals:.1%}" for size, one in found.items())
    return [
        f"{sample} {questions} of {whole} held-out questions, of entries that no size was trained on; greedy, INT8",
        "exact match: of the answerable questions, without case, punctuation and articles; refused: of the others",
        f"answerable questions that were refused: {wrong}",
        f"{EXTRACTIVE}: the best sentence, which says more than the span asked for, so it is seldom an exact match",
        f"Kneser-Ney of order {ngram['order']}: recorded when the family was made, as its training text does not ship",
        f"what INT8 costs of exact match, recorded with the weights: {said}",
        *(f"weights of {size}: SHA-256 {one.sha256}" for size, one in found.items()),
        *(f"aim {'met' if met[name] else 'NOT met'}: {what}" for name, what in SAID.items()),
    ]
