"""How well a size of the language family answers, on questions and text from entries that it was never trained on."""

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from starloom.agents.language import prompt, reading
from starloom.agents.language.files import Files
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.language.prompt import Encoder, Reply, Snippet
from starloom.agents.language.sampling import log_softmax
from starloom.agents.stage import CancelToken, Models
from starloom.agents.stages import answer

FOLDER: Final = Path(str(files("starloom.agents"))) / "data" / "language"
QUESTIONS: Final = "heldout.jsonl.gz"
TEXT: Final = "heldout-text.jsonl.gz"
SECONDS: Final = 60.0
"""For one answer, so that slowness does not count as a mistake."""

WINDOW: Final = 256
"""Tokens of text that are read at once for the perplexity: as many as the family was trained on."""


class Asked(NamedTuple):
    """A held-out question. `reply` is the right one: a refusal if no passage holds the answer."""

    question: str
    snippets: tuple[Snippet, ...]
    reply: Reply
    kind: str


class Extractive(NamedTuple):
    """Shares in [0, 1] of answerable questions that the best sentence is, or contains with its title, the span of; and of others refused."""

    exact_match: float
    contains: float
    refused: float


class Quality(NamedTuple):
    """Shares in [0, 1]. `exact_match` and `wrong_refusals` are of the answerable questions, `refused` of the others.

    `by_kind` has the number of questions of each kind, and the share that was answered, or refused, rightly.
    """

    exact_match: float
    refused: float
    wrong_refusals: float
    by_kind: dict[str, tuple[int, float]]


def opened(folder: Path, graph: Path | None = None) -> LanguageModel:
    """The model of a folder, which is in no store; with another `graph` in place of its own."""
    found = {path.name: path for path in folder.iterdir() if path.is_file()}
    return load(Files(found | ({"model.onnx": graph} if graph else {}), optimised=True), folder.name)


def _lines(path: Path) -> Iterator[Any]:
    for line in gzip.decompress(path.read_bytes()).splitlines():
        yield json.loads(line)


def held_out(folder: Path = FOLDER) -> list[Asked]:
    """The fixed mix of questions."""
    return [
        Asked(
            one["question"],
            tuple(Snippet(*pair) for pair in one["passages"]),
            Reply(one["title"], one["span"]),
            one["kind"],
        )
        for one in _lines(folder / QUESTIONS)
    ]


def held_out_text(folder: Path = FOLDER) -> list[str]:
    """The fixed running text."""
    return list(_lines(folder / TEXT))


def answered(model: LanguageModel, asked: Asked, *, copied: bool = True) -> Reply:
    """The model's reply, checked as a stage checks it; nothing holds it to its passage unless `copied`."""
    return reading.asked(model, asked.question, asked.snippets, CancelToken(), SECONDS, copied=copied).reply


def right(reply: Reply, asked: Asked) -> bool:
    """Whether the span is the right one, normalised; which passage was named does not count."""
    # An article alone is nothing once it is normalised: a refusal must not pass for it.
    return reply.refused == asked.reply.refused and prompt.normalised(reply.span) == prompt.normalised(asked.reply.span)


def measured(questions: Sequence[Asked], replies: Sequence[Reply]) -> Quality:
    """The figures of replies to the questions."""
    answerable = [n for n, asked in enumerate(questions) if not asked.reply.refused]
    others = [n for n, asked in enumerate(questions) if asked.reply.refused]

    def share(numbers: Sequence[int], good: Sequence[bool]) -> float:
        return _share([good[n] for n in numbers])

    exact = [right(reply, asked) for reply, asked in zip(replies, questions, strict=True)]
    refused = [reply.refused for reply in replies]
    kinds = sorted({asked.kind for asked in questions})
    groups = {kind: [n for n, asked in enumerate(questions) if asked.kind == kind] for kind in kinds}
    return Quality(
        exact_match=share(answerable, exact),
        refused=share(others, refused),
        wrong_refusals=share(answerable, refused),
        by_kind={kind: (len(numbers), share(numbers, exact)) for kind, numbers in groups.items()},
    )


def quality(model: LanguageModel, questions: Sequence[Asked]) -> Quality:
    """Answers all questions as a stage would, and measures."""
    return measured(questions, [answered(model, asked) for asked in questions])


def extractive(models: Models, questions: Sequence[Asked]) -> Extractive:
    """What the best sentence would do: `text.answer` on the passages of the questions."""
    spec = answer.Answer.spec.params["score_min"]
    exact, contains, refused = [], [], []
    for asked in questions:
        passages = [{"title": one.title, "text": one.text} for one in asked.snippets]
        ranked = answer.scored(models, asked.question, answer.candidates("", passages))
        sure = bool(ranked) and ranked[0].score >= spec.default
        if asked.reply.refused:
            refused.append(not sure)
            continue
        said, span = prompt.normalised(ranked[0].sentence if sure else ""), prompt.normalised(asked.reply.span)
        whole = prompt.normalised(f"{ranked[0].title} {ranked[0].sentence}") if sure else ""
        exact.append(said == span)
        contains.append(f" {span} " in f" {whole} ")
    return Extractive(_share(exact), _share(contains), _share(refused))


def _share(good: Sequence[bool]) -> float:
    return sum(good) / max(1, len(good))


def windows(reader: Encoder, texts: Sequence[str]) -> Iterator[list[int]]:
    """The texts in tokens, each begun and ended by the end mark, in windows that start with a token already told."""
    end = prompt.MARKS.index(prompt.END)
    for text in texts:
        ids = [end, *reader.encode(f" {text}").ids, end]
        for start in range(0, len(ids) - 1, WINDOW - 1):
            yield ids[start : start + WINDOW]


def perplexity(model: LanguageModel, texts: Sequence[str]) -> tuple[float, float]:
    """Perplexity for each token of the texts, and bits for each byte of them (lower-case, as they are read)."""
    loss, tokens = 0.0, 0
    for ids in windows(model.vocabulary.tokenizer, texts):
        logits, _ = model.decoder.forward(np.array([ids[:-1]], np.int64))
        loss -= float(log_softmax(logits[0])[np.arange(len(ids) - 1), ids[1:]].sum())
        tokens += len(ids) - 1
    return math.exp(loss / tokens), loss / math.log(2) / text_bytes(texts)


def text_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.lower().encode()) for text in texts)
