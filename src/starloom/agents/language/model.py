"""A language model of the store, ready for one call: tokenizer, template, sizes, and its decoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from starloom.agents.language.chat import ChatTemplate, read_template, special
from starloom.agents.language.config import Config, read_config, read_json
from starloom.agents.language.decoder import Decoder
from starloom.agents.language.family import chosen
from starloom.agents.language.graph import read_graph
from starloom.agents.language.tokens import Vocabulary
from starloom.agents.stage import DescribedModel, Models
from starloom.dag.errors import InvalidInput, NotFound, Problem, StageError

GRAPH_FILES: Final = (
    "model.onnx",
    "model_merged.onnx",
    "decoder_model_merged.onnx",
    "decoder_with_past_model.onnx",
    "model_quantized.onnx",
    "model_int8.onnx",
    "model_q4.onnx",
    "model_fp16.onnx",
    "decoder_model.onnx",
)
"""Exporters' names for a decoder's graph; the first that a model has is run, unless a file is named."""

DATA_FILES_MAX: Final = 100


class Texts(NamedTuple):
    """What of a model needs no session: its sizes, tokenizer, chat template, if it has one, and tokens that end a text."""

    config: Config
    vocabulary: Vocabulary
    template: ChatTemplate | None
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model that a call can generate with, by its own name in the store."""

    name: str
    texts: Texts
    decoder: Decoder

    @property
    def vocabulary(self) -> Vocabulary:
        return self.texts.vocabulary


def load(models: Models, name: str, file: str = "") -> LanguageModel:
    """The model of that name, or of `family.LARGEST`, on the call's target; `file` is one of its graphs.

    Raises NotFound, ModelMissing or DigestMismatch as `Models` does, InvalidInput with all that keeps the
    model from running here.
    """
    name = chosen(name)
    texts = models.cached(name, "language texts", lambda: _texts(models, name))
    file = file or _graph_file(models, name)
    for _ in _data_files(models, name, file):
        # Asking for a path verifies the file; the session then reads weights from it by itself.
        pass
    session = models.session(name, file)
    if not isinstance(session, DescribedModel):
        raise StageError(f"{name}/{file} does not say what its inputs are")
    place = f"{name}/{file}"
    graph = models.cached(
        name, f"language graph {file}", lambda: read_graph(session.inputs, session.outputs, texts.config, place)
    )
    if (logits := graph.vocabulary or texts.config.vocabulary) and (fault := texts.vocabulary.mismatch(logits)):
        raise InvalidInput([Problem(f"{name}/tokenizer.json", fault)], "the tokenizer does not match")
    return LanguageModel(name, texts, Decoder(session, graph))


def _texts(models: Models, name: str) -> Texts:
    generation = _path(models, name, "generation_config.json")
    settings_path = _path(models, name, "tokenizer_config.json")
    settings = read_json(settings_path) if settings_path else {}
    config = read_config(read_json(Path(models.path(name, "config.json"))), read_json(generation) if generation else {})
    vocabulary = Vocabulary.read(Path(models.path(name, "tokenizer.json")))
    template = read_template(_path(models, name, "chat_template.jinja"), settings)
    # Of a model tuned for chat the generation config often names only the end that it had before.
    end = vocabulary.token(special(settings, "eos_token") or "")
    return Texts(config, vocabulary, template, config.ends | ({end} if end is not None else frozenset()))


def _path(models: Models, name: str, file: str) -> Path | None:
    """The path of a file that a model need not have."""
    try:
        return Path(models.path(name, file))
    except NotFound:
        return None


def _graph_file(models: Models, name: str) -> str:
    for file in GRAPH_FILES:
        if _path(models, name, file):
            return file
    raise NotFound(f"model {name!r} has no {', '.join(GRAPH_FILES)}; name the graph with the parameter file")


def _data_files(models: Models, name: str, file: str) -> Iterator[Path]:
    """The files that hold the weights of a graph over 2 GB, under exporters' names for them."""
    for first in (f"{file}_data", f"{file}.data"):
        names = (first if n == 0 else f"{first}_{n}" for n in range(DATA_FILES_MAX))
        for candidate in names:
            if (found := _path(models, name, candidate)) is None:
                break
            yield found
