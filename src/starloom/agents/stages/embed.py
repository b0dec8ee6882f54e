"""Text to a sentence embedding: the stage, and the function that other stages and the corpus tool share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.kinds import Batch, Cost, GraphUse, KindSpec
from starloom.dag.values import Port, PortType

MODEL = "minilm-l6-v2"
WIDTH = 384

TOGETHER_MAX = 8
"""Texts in one run: more, of ever less like length, were slower a text."""


def embed(models: Models, text: str) -> NDArray[np.float32]:
    """The embedding of a text, float32 [WIDTH], of length 1; all zeros where the text is blank.

    Texts are embedded one by one, because an INT8 model's rounding depends on what else is in the batch.
    Tokens beyond EMBEDDED_TOKENS_MAX are cut off. Raises what `Models.session` raises.
    """
    if not text.strip():
        return np.zeros(WIDTH, np.float32)
    tokenizer = models.cached(MODEL, "tokenizer", lambda: _tokenizer(models))
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    embedding: NDArray[np.float32] = models.session(MODEL).run(feeds)[0][0]
    return embedding


def embed_together(models: Models, texts: Sequence[str]) -> NDArray[np.float32]:
    """As `embed`, float32 [texts, WIDTH], TOGETHER_MAX texts of like length in one run.

    Each depends a little on those beside it. They are as near to the float model's as those of `embed`, but not equal
    to them: the cosine between the two was 0.96 to 1 on 256 questions.
    """
    tokenizer = models.cached(MODEL, "tokenizer", lambda: _tokenizer(models))
    session = models.session(MODEL)
    found = np.zeros((len(texts), WIDTH), np.float32)
    tokens = {index: tokenizer.encode(text).ids for index, text in enumerate(texts) if text.strip()}
    order = sorted(tokens, key=lambda index: len(tokens[index]))
    for start in range(0, len(order), TOGETHER_MAX):
        group = order[start : start + TOGETHER_MAX]
        ids = np.zeros((len(group), len(tokens[group[-1]])), np.int64)
        mask = np.zeros_like(ids)
        for row, index in enumerate(group):
            ids[row, : len(tokens[index])] = tokens[index]
            mask[row, : len(tokens[index])] = 1
        found[group] = session.run({"input_ids": ids, "attention_mask": mask})[0]
    return found


def warm(models: Models) -> None:
    """Loads what `embed` needs."""
    models.session(MODEL)
    models.cached(MODEL, "tokenizer", lambda: _tokenizer(models))


def _tokenizer(models: Models) -> Any:
    tokenizer = Tokenizer.from_file(models.path(MODEL, "tokenizer.json"))
    # The file asks for padding to a fixed length, which would only cost time here.
    tokenizer.no_padding()
    tokenizer.enable_truncation(limits.EMBEDDED_TOKENS_MAX)
    return tokenizer


class Embed(Stage):
    """`text` with `context` after it -> `embedding` float32 [384], of length 1, or zeros for blank text.

    Cosine similarity is the inner product. `context` is what the text is about, such as what was read in
    a picture; a long one loses its end first.
    """

    spec = KindSpec(
        name="text.embed",
        about="Turns a text into a sentence embedding.",
        inputs={"text": Port(PortType.TEXT), "context": Port(PortType.TEXT, optional=True)},
        outputs={"embedding": Port(PortType.TENSOR)},
        models=(MODEL,),
        tier=Tier.CLOUD,
        cost=Cost(
            run_seconds=0.003,
            load_seconds=0.25,
            memory_bytes=80 * 1024 * 1024,
            # a short question
            graphs=(GraphUse(model=MODEL, sizes={"batch": 1, "steps": 12}),),
        ),
    )

    def load(self, models: Models, target: str) -> None:
        warm(models)

    def run(self, call: StageCall) -> Outputs:
        return {"embedding": embed(call.models, _text(call))}


class EmbedTogether(Embed):
    """As `text.embed`, for many jobs at once: their texts share runs of the model, so it does more of them a second.

    An INT8 model's rounding depends on what else is in the run, so equal texts give slightly different embeddings.
    """

    spec = KindSpec(
        name="text.embed_together",
        about="Turns texts of many jobs into sentence embeddings, in common; each depends a little on the others.",
        inputs=Embed.spec.inputs,
        outputs=Embed.spec.outputs,
        models=(MODEL,),
        tier=Tier.CLOUD,
        deterministic=False,
        cost=Embed.spec.cost,
        batch=Batch(max=4 * TOGETHER_MAX, wait_seconds=0.002),
    )

    def run_batch(self, calls: Sequence[StageCall]) -> Sequence[Outputs | Exception]:
        rows = embed_together(calls[0].models, [_text(call) for call in calls])
        return [{"embedding": row} for row in rows]


def _text(call: StageCall) -> str:
    parts = (call.inputs["text"], call.inputs.get("context", ""))
    return "\n".join(part for part in parts if part.strip())
