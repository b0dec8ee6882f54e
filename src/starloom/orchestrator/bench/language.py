"""The language family that ships: how fast its sizes are beside a bare loop, and how well they answer."""

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from starloom.agents.language import prompt, quality
from starloom.agents.language.budget import Budget
from starloom.agents.language.engine import Request, collected, generate
from starloom.agents.language.family import sizes
from starloom.agents.language.model import LanguageModel, load
from starloom.agents.modelpull import pull
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import CallModels, SessionPool
from starloom.agents.stage import CancelToken
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem
from starloom.orchestrator.bench import harness
from starloom.orchestrator.bench.answers import measured_report
from starloom.orchestrator.bench.ours import OURS
from starloom.orchestrator.bench.report import Machine, Note, Report, machine, versions

BARE: Final = "onnxruntime"
TOKENS: Final = 64
"""Tokens that are made after the first one, for the rate."""

QUICK_QUESTIONS: Final = 5
PACKAGES: Final = ("onnxruntime", "tokenizers")
_EMBEDDING: Final = "minilm-l6-v2"


class Work(NamedTuple):
    """A part of generating, by a size: `first-token`, which is reading the prompt, or `tokens`, TOKENS more."""

    size: str
    part: str


class _Contender(ABC):
    """Takes each prompt by itself."""

    def __init__(self, models: Mapping[str, LanguageModel], prompts: Sequence[Sequence[int]]) -> None:
        self._models = models
        self._prompts = prompts

    def does(self, work: Work) -> bool:
        return True

    def seconds(self, work: Work) -> float:
        """Of the part of the work, the mean over the prompts."""
        return sum(self._once(work, ids) for ids in self._prompts) / len(self._prompts)

    @abstractmethod
    def _once(self, work: Work, ids: Sequence[int]) -> float:
        """Seconds of the part of the work, on one prompt."""


class Ours(_Contender):
    """The engine, as a stage drives it."""

    name = OURS

    def _once(self, work: Work, ids: Sequence[int]) -> float:
        model = self._models[work.size]
        tokens = 1 if work.part == "first-token" else 1 + TOKENS
        request = Request(tuple(ids), Budget(tokens, limits.LANGUAGE_SECONDS_MAX))
        made = collected(generate(model.decoder, model.vocabulary, request, CancelToken()))
        assert made.first_token_seconds is not None
        return made.first_token_seconds if tokens == 1 else made.seconds - made.first_token_seconds


class Bare(_Contender):
    """The least that has to be done: the same session in a loop, the likeliest token, nothing checked or decoded."""

    name = BARE

    def _once(self, work: Work, ids: Sequence[int]) -> float:
        decoder = self._models[work.size].decoder
        cache = decoder.graph.empty(1)
        past = [array for pair in zip(cache.keys, cache.values, strict=True) for array in pair]
        began, tokens, length = time.perf_counter(), list(ids), 0
        for n in range(1 if work.part == "first-token" else 1 + TOKENS):
            whole = length + len(tokens)
            feeds = {
                "input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, whole), np.int64),
                "position_ids": np.arange(length, whole, dtype=np.int64)[None],
                **dict(zip(decoder.graph.past, past, strict=True)),
            }
            logits, *past = decoder.model.run(feeds)
            length, tokens = whole, [int(logits[0, -1].argmax())]
            if n == 0 and work.part != "first-token":
                began = time.perf_counter()
        return time.perf_counter() - began


def run(args: argparse.Namespace, note: Note) -> Report:
    """Measures speed, or with `quality` the answers. Raises InvalidInput for arguments that are not right."""
    if args.questions is not None and args.questions < 1:
        raise InvalidInput([Problem("--questions", f"is {args.questions}; give at least 1")], "bad number of questions")
    before = machine()
    store = ModelStore()
    names = sizes()
    needed = [*names, _EMBEDDING] if args.quality else names
    if missing := [name for name in needed if not store.present(name)]:
        pull(store, missing, lambda name, what: note(f"{name}: {what}" if name else what))
    models = SessionPool(store, limit=len(needed)).for_call(CancelToken())
    if args.quality:
        return measured_report(models, names, args.questions, note, before, versions(PACKAGES))
    return _speed(models, names, args, note, before)


def _speed(models: CallModels, names: Sequence[str], args: argparse.Namespace, note: Note, before: Machine) -> Report:
    loaded = {name: load(models, name) for name in names}
    asked = quality.held_out()[: args.questions or QUICK_QUESTIONS]
    vocabulary = loaded[names[0]].vocabulary
    prompts = [vocabulary.encode(prompt.prompt(one.snippets, one.question), marked=False) for one in asked]
    lengths = f"{min(map(len, prompts))} to {max(map(len, prompts))}"
    works = [Work(name, part) for name in names for part in ("first-token", "tokens")]
    contenders = (Ours(loaded, prompts), Bare(loaded, prompts))
    samples = harness.alternate(contenders, works, args.repeat, note=note)
    return Report(
        bench="language",
        rows=rows(names, samples),
        repeat=args.repeat,
        notes=[
            f"each repetition: means over {len(prompts)} held-out questions with their passages, {lengths} tokens",
            f"tokens: {TOKENS} after the first one",
            f"{BARE}: the same session in a bare loop that takes the likeliest token, and checks and decodes nothing",
            "one thread; nothing is kept between questions",
        ],
        machine=before,
        versions=versions(PACKAGES),
    )


def rows(names: Sequence[str], samples: harness.Samples[Work]) -> list[harness.Row]:
    """Two rows for each size: milliseconds to the first token, and tokens a second after it."""

    def milliseconds(name: str) -> harness.Pick:
        return lambda who: [1_000 * seconds for seconds in samples[who, Work(name, "first-token")]]

    def rate(name: str) -> harness.Pick:
        return lambda who: [TOKENS / seconds for seconds in samples[who, Work(name, "tokens")]]

    found = []
    for name in names:
        size = name.rpartition("-")[2]
        found += harness.rows(f"first-token-{size}", "ms", OURS, [BARE], milliseconds(name))
        found += harness.rows(f"tokens-{size}", "tokens/s", OURS, [BARE], rate(name), more_is_better=True)
    return found
