"""Models out of files that are in no store: one that is to be added, or measured before it ships."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from starloom.agents.modelstore import DEFAULT_FILE
from starloom.agents.sessions import OnnxModel, SessionKey
from starloom.agents.stage import CancelToken, Model
from starloom.dag.errors import NotFound, StageError


class Files:
    """`agents.stage.Models` over files by their names, on one thread.

    Without `optimised` a session is only good for a look at inputs and outputs: optimising a large graph takes minutes.
    """

    def __init__(self, files: Mapping[str, Path], *, optimised: bool = False) -> None:
        self._files = files
        self._optimised = optimised

    def session(self, model: str, file: str = DEFAULT_FILE, *, target: str | None = None) -> Model:
        options = ort.SessionOptions()
        if not self._optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
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
