"""Whether a folder holds a language model that can run here, before it is added to the store."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from starloom.agents.language.model import load
from starloom.agents.modelstore import DEFAULT_FILE
from starloom.agents.sessions import OnnxModel, SessionKey
from starloom.agents.stage import CancelToken, Model
from starloom.dag.errors import InvalidInput, NotFound, Problem, StageError, StarloomError


class _Files:
    """`agents.stage.Models` over files that are in no store."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def session(self, model: str, file: str = DEFAULT_FILE, *, target: str | None = None) -> Model:
        options = ort.SessionOptions()
        # Only inputs and outputs are looked at; optimising a large graph takes minutes.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            made = ort.InferenceSession(self.path(model, file), options, providers=["CPUExecutionProvider"])
        # ONNX Runtime's errors have no common class below Exception.
        except Exception as error:
            raise StageError(f"{file} is no model that ONNX Runtime can load: {error}") from error
        return OnnxModel(made, SessionKey(model, file, target or "cpu"), CancelToken())

    def path(self, model: str, file: str) -> str:
        if file not in self._files:
            raise NotFound(f"{model} has no file {file!r}; its files: {', '.join(self._files)}")
        return str(self._files[file].resolve())

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        return make()


def problems(name: str, files: Mapping[str, Path]) -> list[Problem]:
    """All that keeps the files, by their names in the store, from being a language model."""
    try:
        load(_Files(files), name)
    except InvalidInput as error:
        return list(error.problems)
    except StarloomError as error:
        return [Problem(name, str(error))]
    return []
