"""How well a size of the language family answers, on questions and text from entries that it was never trained on.

Greedy decoding with a cache, one question at a time: the plainest use of the graph, which a faster engine must equal.
"""

import gzip
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from starloom.agents.language import prompt
from starloom.agents.language.prompt import Copying, Reply, Snippet

FOLDER: Final = Path(str(files("starloom.agents"))) / "data" / "language"
QUESTIONS: Final = "heldout.jsonl.gz"
TEXT: Final = "heldout-text.jsonl.gz"
ANSWER_TOKENS_MAX: Final = 72
WINDOW: Final = 256
"""Tokens of text that are read at once for the perplexity: as many as the family was trained on."""


class Session(Protocol):
    """What is used of an `onnxruntime.InferenceSession`."""

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]: ...


class Reader(Protocol):
    """What is used of a `tokenizers.Tokenizer`."""

    def encode(self, text: str) -> Any: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class Asked(NamedTuple):
    """A held-out question. `reply` is the right one: a refusal if no passage holds the answer."""

    question: str
    snippets: tuple[Snippet, ...]
    reply: Reply
    kind: str


class Quality(NamedTuple):
    """Shares in [0, 1]. `exact_match` and `wrong_refusals` are of the answerable questions, `refused` of the others.

    `by_kind` has the number of questions of each kind, and the share that was answered, or refused, rightly.
    """

    exact_match: float
    refused: float
    wrong_refusals: float
    by_kind: dict[str, tuple[int, float]]


class Decoder:
    """A graph in the usual layout with its cache: `logits` of tokens after those that came before."""

    def __init__(self, session: Session, config: Mapping[str, Any]) -> None:
        self._session = session
        self._layers = int(config["num_hidden_layers"])
        self._empty = np.zeros((1, int(config["num_key_value_heads"]), 0, int(config["head_dim"])), np.float32)
        self._names = ["logits"]
        for layer in range(self._layers):
            self._names += [f"present.{layer}.key", f"present.{layer}.value"]
        self._cache: list[NDArray[np.float32]] = []
        self._length = 0
        self.reset()

    def reset(self) -> None:
        self._cache = [self._empty] * (2 * self._layers)
        self._length = 0

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """[tokens, vocabulary]"""
        start, self._length = self._length, self._length + len(ids)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(start, self._length, dtype=np.int64)[None],
        }
        for number, kept in enumerate(self._cache):
            feeds[f"past_key_values.{number // 2}.{('key', 'value')[number % 2]}"] = kept
        outputs = self._session.run(self._names, feeds)
        self._cache = outputs[1:]
        found: NDArray[np.float32] = outputs[0][0]
        return found

    def greedy(
        self, ids: Sequence[int], end: int, copying: Copying | None = None, limit: int = ANSWER_TOKENS_MAX
    ) -> list[int]:
        """The likeliest tokens after `ids`, up to `end`, which is left out."""
        self.reset()
        made: list[int] = []
        token = likeliest(self.logits(ids)[-1], copying.allowed(made) if copying else None)
        while token != end and len(made) < limit:
            made.append(token)
            token = likeliest(self.logits([token])[-1], copying.allowed(made) if copying else None)
        return made


def likeliest(logits: NDArray[np.float32], allowed: Collection[int] | None) -> int:
    """The token of the highest logit, of those allowed if not all are."""
    if not allowed:
        return int(logits.argmax())
    among = np.fromiter(sorted(allowed), np.int64)
    return int(among[logits[among].argmax()])


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


def answered(decoder: Decoder, reader: Reader, asked: Asked, *, copied: bool = True) -> Reply:
    """The model's reply, not yet checked; its span is held to its passage unless `copied` is false."""
    ids = reader.encode(prompt.prompt(asked.snippets, asked.question)).ids
    copying = Copying(reader, asked.snippets) if copied else None
    made = decoder.greedy(ids, prompt.MARKS.index(prompt.END), copying)
    return prompt.parse(reader.decode(made, skip_special_tokens=False))


def right(reply: Reply, asked: Asked) -> bool:
    """Whether the span is the right one, normalised; which passage was named does not count."""
    # An article alone is nothing once it is normalised: a refusal must not pass for it.
    return reply.refused == asked.reply.refused and prompt.normalised(reply.span) == prompt.normalised(asked.reply.span)


def measured(questions: Sequence[Asked], replies: Sequence[Reply]) -> Quality:
    """The figures of replies to the questions."""
    answerable = [n for n, asked in enumerate(questions) if not asked.reply.refused]
    others = [n for n, asked in enumerate(questions) if asked.reply.refused]

    def share(numbers: Sequence[int], good: Sequence[bool]) -> float:
        return sum(good[n] for n in numbers) / max(1, len(numbers))

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


def quality(decoder: Decoder, reader: Reader, questions: Sequence[Asked]) -> Quality:
    """Answers all questions as a stage would, each reply copied and checked, and measures."""
    replies = [prompt.checked(answered(decoder, reader, asked), asked.snippets) for asked in questions]
    return measured(questions, replies)


def windows(reader: Reader, texts: Sequence[str]) -> Iterator[list[int]]:
    """The texts in tokens, each begun and ended by the end mark, in windows that start with a token already told."""
    end = prompt.MARKS.index(prompt.END)
    for text in texts:
        ids = [end, *reader.encode(f" {text}").ids, end]
        for start in range(0, len(ids) - 1, WINDOW - 1):
            yield ids[start : start + WINDOW]


def perplexity(decoder: Decoder, reader: Reader, texts: Sequence[str]) -> tuple[float, float]:
    """Perplexity for each token of the texts, and bits for each byte of them (lower-case, as they are read)."""
    loss, tokens = 0.0, 0
    for ids in windows(reader, texts):
        decoder.reset()
        logits = decoder.logits(ids[:-1]).astype(np.float64)
        top = logits.max(-1)
        spread = np.log(np.exp(logits - top[:, None]).sum(-1)) + top
        loss += float((spread - logits[np.arange(len(ids) - 1), ids[1:]]).sum())
        tokens += len(ids) - 1
    return math.exp(loss / tokens), loss / math.log(2) / text_bytes(texts)


def text_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.lower().encode()) for text in texts)
