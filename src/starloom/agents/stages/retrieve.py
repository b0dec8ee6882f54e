"""Search in the corpus that ships with Starloom: the passages nearest to an embedding, exactly.

The corpus is a selection from FOLDOC, made by `tools/corpus.py`; its folder's README names the licence.
"""

import gzip
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Models, Outputs, Stage, StageCall
from starloom.agents.stages.embed import MODEL, WIDTH
from starloom.dag import limits
from starloom.dag.constellation import Tier
from starloom.dag.errors import DigestMismatch, StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

FOLDER = Path(str(files("starloom.agents"))) / "data" / "corpus"
PASSAGES = "passages.jsonl.gz"
INDEX = "index.npz"
RECORD = "record.json"


class Passage(TypedDict):
    """An entry of the corpus: `id` is unique and lasting, `title` its headword, `text` the definition."""

    id: str
    title: str
    text: str


class Corpus(NamedTuple):
    """Passages and their embeddings, float32 [passages, WIDTH], row by row."""

    passages: tuple[Passage, ...]
    embeddings: NDArray[np.float32]


def embedded_text(passage: Passage) -> str:
    """What of a passage the index holds the embedding of."""
    return f"{passage['title']}: {passage['text']}"


def quantised(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 of [n, WIDTH], and a float32 scale for each row, [n, 1]; rows are about integers * scales."""
    scales = (np.abs(rows).max(axis=1, keepdims=True) / 127).astype(np.float32)
    return np.rint(rows / scales).astype(np.int8), scales


def corpus(folder: Path = FOLDER) -> Corpus:
    """The corpus of a folder. Raises DigestMismatch if its index was made from another one."""
    record = json.loads((folder / RECORD).read_text())
    lines = gzip.decompress((folder / PASSAGES).read_bytes())
    found = hashlib.sha256(lines).hexdigest()
    passages: tuple[Passage, ...] = tuple(json.loads(line) for line in lines.splitlines())
    with np.load(folder / INDEX, allow_pickle=False) as index:
        embeddings = index["integers"].astype(np.float32) * index["scales"]
    if found != record["passages_sha256"] or record["model"] != MODEL or embeddings.shape != (len(passages), WIDTH):
        raise DigestMismatch(
            f"the index in {folder.name} is of {record['model']} over corpus {record['passages_sha256'][:12]}, "
            f"but the corpus is {found[:12]} with {len(passages)} passages; install Starloom again, or run tools/corpus.py"
        )
    return Corpus(passages, embeddings)


def _loaded(models: Models) -> Corpus:
    # The index is made of this model's embeddings: it belongs to the model, and shows as it in a report.
    loaded: Corpus = models.cached(MODEL, "corpus", corpus)
    return loaded


class Retrieve(Stage):
    """`embedding` float32 [384] -> `passages`: the `k` nearest, best first, as {id, title, text, score}.

    `score` is the cosine, in [-1, 1]; those below `score_min` are left out, so an embedding of nothing
    finds nothing. Equal scores are ordered by id.
    """

    spec = KindSpec(
        name="text.retrieve",
        about="Finds the passages of the shipped corpus that are nearest to an embedding.",
        inputs={"embedding": Port(PortType.TENSOR)},
        outputs={"passages": Port(PortType.JSON)},
        params={
            "k": Param(type="integer", default=5, about="How many passages, at least 1."),
            "score_min": Param(type="number", default=0.1, about="The least cosine of a passage."),
        },
        models=(MODEL,),
        tier=Tier.CLOUD,
        cost=Cost(run_seconds=0.002, load_seconds=0.1, memory_bytes=32 * 1024 * 1024),
    )

    def load(self, models: Models, target: str) -> None:
        _loaded(models)

    def run(self, call: StageCall) -> Outputs:
        embedding, k = np.asarray(call.inputs["embedding"]), call.params["k"]
        if embedding.shape != (WIDTH,):
            raise StageError(
                f"embedding has shape {list(embedding.shape)}, not [{WIDTH}]; bind the output of text.embed"
            )
        if not 1 <= k <= limits.RETRIEVED_PASSAGES_MAX:
            raise StageError(f"k is {k}, not from 1 to RETRIEVED_PASSAGES_MAX = {limits.RETRIEVED_PASSAGES_MAX}")
        passages, embeddings = _loaded(call.models)
        scores = embeddings @ embedding.astype(np.float32)
        best = np.argsort(-scores, kind="stable")[:k]
        return {
            "passages": [
                {**passages[n], "score": round(float(scores[n]), 4)}
                for n in best
                if scores[n] >= call.params["score_min"]
            ]
        }
