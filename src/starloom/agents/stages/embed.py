"""Text to a sentence embedding: the stage, and the function that other stages and the corpus tool share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.kinds import Cost, KindSpec
from starloom.dag.values import Port, PortType

MODEL = "minilm-l6-v2"
WIDTH = 384


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
        cost=Cost(run_seconds=0.003, load_seconds=0.25, memory_bytes=80 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        warm(models)

    def run(self, call: StageCall) -> Outputs:
        parts = (call.inputs["text"], call.inputs.get("context", ""))
        return {"embedding": embed(call.models, "\n".join(part for part in parts if part.strip()))}
