"""A decoder that runs: tokens and a cache go in, logits and the longer cache come out.

`prefill` and `step` are all that a serving engine needs; the cache between them is a value, so they
may run in different places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starloom.agents.language.cache import KVCache, join
from starloom.agents.language.graph import Graph
from starloom.agents.stage import Model
from starloom.dag import limits
from starloom.dag.errors import StageError

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A graph and the model that computes it, for one call: a run stops at that call's cancel."""

    model: Model
    graph: Graph

    def forward(
        self, tokens: NDArray[np.int64], cache: KVCache | None = None, *, last_only: bool = False
    ) -> tuple[Logits, KVCache]:
        """One run on int64 [batch, n] behind `cache`: logits float32 [batch, n, vocabulary], and the cache after it.

        With `last_only` the logits may be [batch, 1, vocabulary], of the last token. Raises StageError
        for rows that the graph cannot take, or where it gives what is no number; Cancelled.
        """
        past = self.graph.empty(tokens.shape[0]) if cache is None else cache
        outputs = self.model.run(self.graph.feeds(tokens, past, last_only=last_only))
        logits, present = self.graph.taken(outputs, past.padding)
        if present.length != past.length + tokens.shape[1]:
            raise StageError(
                f"the graph gave a cache of {present.length} tokens for {past.length} and {tokens.shape[1]} new ones; "
                "only caches that come back whole are supported"
            )
        # A sum is the cheapest look at every number.
        if not np.isfinite(logits[:, -1].sum()):
            raise StageError("the graph gave logits that are no numbers; its weights, or its float16, are broken")
        return logits, present

    def prefill(self, prompts: Sequence[Sequence[int]], cache: KVCache | None = None) -> tuple[Logits, KVCache]:
        """Reads prompts of one token or more each: logits of their last tokens, [batch, vocabulary], and their cache.

        Without `cache` the prompts may differ in length. With it they continue its rows, and are of one length.
        """
        if not prompts or not all(prompts):
            raise StageError("every prompt needs at least one token")
        if cache is not None or len({len(prompt) for prompt in prompts}) == 1:
            *_, read = self.pieces(prompts, cache)
            return read
        # Rows are read one by one, so that no padding is ever computed: its numbers would be nobody's, or none.
        rows = [self.prefill([prompt]) for prompt in prompts]
        return np.concatenate([logits for logits, _ in rows]), join([made for _, made in rows])

    def pieces(
        self, prompts: Sequence[Sequence[int]], cache: KVCache | None = None
    ) -> Iterator[tuple[Logits, KVCache]]:
        """`prefill` of prompts of one length, a piece at a time: what it gives, after each of them.

        Logits of a long prompt would take gigabytes, and whoever stops a request need not wait for its whole prompt.
        """
        tokens = np.array(prompts, np.int64)
        width = self.graph.tokens or limits.LANGUAGE_PREFILL_TOKENS
        for start in range(0, tokens.shape[1], width):
            logits, cache = self.forward(tokens[:, start : start + width], cache, last_only=True)
            yield logits[:, -1], cache

    def step(self, tokens: Sequence[int], cache: KVCache) -> tuple[Logits, KVCache]:
        """One more token for each row: logits [batch, vocabulary], and the cache with the tokens in it."""
        logits, present = self.forward(np.array(tokens, np.int64)[:, None], cache, last_only=True)
        return logits[:, -1], present
