"""The stage API: what a kind's author writes.

    class Invert(Stage):
        spec = KindSpec(name="example.invert", inputs={"image": Port(PortType.IMAGE)},
                        outputs={"image": Port(PortType.IMAGE)})

        def run(self, call: StageCall) -> Outputs:
            return {"image": 255 - call.inputs["image"]}

A class is registered in `agents.catalog`, or by an entry point of the group `starloom.stages` whose
object is the class. One instance serves many calls on one agent, from several threads at once: keep
no state of a call on `self`.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from numpy.typing import NDArray

from starloom.dag.errors import Cancelled
from starloom.dag.kinds import KindSpec
from starloom.dag.patch import Patch

Outputs = Mapping[str, Any]
"""A value for each of the kind's one-shot output ports, by port name; see `agents.values` for types."""


class Model(Protocol):
    """A loaded ONNX model, shared by calls. `run` stops at the call's cancel."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]: ...


class TensorPort(NamedTuple):
    """An input or output of a graph: its type as ONNX Runtime says it, and sizes, names or None by dimension."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@runtime_checkable
class DescribedModel(Model, Protocol):
    """A model that says what its inputs and outputs are; every model of `Models.session` is one on an agent."""

    @property
    def inputs(self) -> tuple[TensorPort, ...]: ...

    @property
    def outputs(self) -> tuple[TensorPort, ...]: ...


class Models(Protocol):
    """What a call may load. The time it takes counts as `load`, and the names go into the report."""

    def session(self, model: str, file: str = "model.onnx", *, target: str | None = None) -> Model:
        """A session on one file of a model, on the call's target unless another is named.

        Raises ModelMissing or DigestMismatch.
        """
        ...

    def path(self, model: str, file: str) -> str:
        """The path of a verified file that is no ONNX graph: a tokenizer, a word list, an index."""
        ...

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        """An object made once per agent from a model's files, such as a tokenizer."""
        ...


class CancelToken:
    """Tells a running call to stop. `on_cancel` adds something to do at once, from another thread."""

    def __init__(self) -> None:
        # A truth value and no threading.Event: each attempt makes a token, and nothing waits for one.
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        for callback in tuple(self._callbacks):
            callback()

    def on_cancel(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Adds a callback, and returns a function that takes it away; calls it at once if already cancelled."""
        self._callbacks.append(callback)
        if self.cancelled:
            callback()
        return lambda: self._callbacks.remove(callback)

    def raise_if_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled("the attempt was cancelled")


@dataclass(frozen=True, slots=True)
class StageCall:
    """One attempt, as the stage sees it.

    `inputs`: Python values by port; an unbound optional port is absent. `params`: checked against
    the kind, defaults filled in. `target`: what to compute on. `key` names (job, stage, kind,
    parameters, inputs): pass it to outside systems, so that a second attempt is known as such.
    `checkpoint`: the state that an earlier attempt saved, or None; `save` keeps a new one. `figure` puts
    a number under a name into the report, for people: a name that tells its unit, such as
    `first_token_seconds`; at most FIGURES_PER_STAGE_MAX, all finite.
    """

    inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    models: Models
    target: str = "cpu"
    key: str = ""
    attempt: int = 1
    cancel: CancelToken = field(default_factory=CancelToken)
    checkpoint: bytes | None = None
    save: Callable[[bytes], None] = lambda _: None
    progress: Callable[[float], None] = lambda _: None
    figure: Callable[[str, float], None] = lambda _name, _value: None


class Chunk(NamedTuple):
    """One element of a stream output; a greater `generation` tells consumers to drop older ones."""

    port: str
    value: Any
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Grown:
    """Outputs, and what they change of the job: for a kind whose spec says `grows`. `agents.growing` makes the patch."""

    outputs: Outputs
    patch: Patch


class Stage(ABC):
    """A kind that takes whole values and gives whole values."""

    spec: ClassVar[KindSpec]

    def load(self, models: Models, target: str) -> None:
        """Loads what `run` will need, ahead of the first call. Optional."""
        return

    @abstractmethod
    def run(self, call: StageCall) -> Outputs | Grown:
        """Computes, in a worker thread. Raise StageError for a failure; any other exception is one as well.

        Long pure-Python work asks `call.cancel.raise_if_cancelled()` from time to time; model runs do so themselves.
        """


class StreamStage(ABC):
    """A kind with stream ports: its inputs are asynchronous iterators, and it yields chunks."""

    spec: ClassVar[KindSpec]

    @abstractmethod
    def stream(self, call: StageCall) -> AsyncIterator[Chunk]:
        """Yields chunks as they come; the runtime waits at a yield until the consumer has credit."""


StageClass = type[Stage] | type[StreamStage]
