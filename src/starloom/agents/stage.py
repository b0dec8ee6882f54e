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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

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


class Received(NamedTuple):
    """One chunk of a stream input. `at`: seconds of the event that it tells of, on its source's clock, if it said so."""

    value: Any
    offset: int = 0
    generation: int = 0
    at: float | None = None


class StreamInput(Protocol):
    """A stream input: its chunks, in order. Asking for the next one says that the stage is done with the one before.

    The iteration ends with the stream. Where the stream breaks, by its producer's end or with the network, it raises
    InputUnavailable, and whatever the stage then does, its attempt does not count as failed.
    """

    @property
    def generation(self) -> int:
        """The greatest generation that is known, also of chunks that are yet to come: all of lesser ones is stale."""
        ...

    async def overtaken(self, generation: int) -> int:
        """Waits for a greater generation than this, so that a stage can break off what it is at; gives that generation."""
        ...

    @property
    def dropped(self) -> int:
        """Chunks that the port's policy dropped so far."""
        ...

    @property
    def stale(self) -> int:
        """Chunks that were passed over so far, because a greater generation had come."""
        ...

    def __aiter__(self) -> AsyncIterator[Received]: ...

    def __anext__(self) -> Awaitable[Received]: ...

    def close(self) -> None:
        """No more is wanted; the producer waits for this reader no longer."""
        ...


class Compute(Protocol):
    """Runs a function in a worker thread, on one of the agent's slots, and gives what it returns."""

    def __call__(self, function: Callable[..., Any], /, *args: Any) -> Awaitable[Any]: ...


async def _no_compute(function: Callable[..., Any], /, *args: Any) -> Any:
    return function(*args)


class Empty(Protocol):
    """Makes an array with nothing in particular in it, as `numpy.empty`."""

    def __call__(self, shape: int | Sequence[int], dtype: DTypeLike = ..., /) -> NDArray[Any]: ...


class StageCall(msgspec.Struct, frozen=True):
    """One attempt, as the stage sees it.

    `inputs`: Python values by port; an unbound optional port is absent. A stream port has a StreamInput in a
    StreamStage, and the list of all its values in a Stage. `compute` is for a StreamStage: whatever takes longer
    than a moment is awaited through it. `params`: checked against
    the kind, defaults filled in. `target`: what to compute on. `key` names (job, stage, kind,
    parameters, inputs): pass it to outside systems, so that a second attempt is known as such. It is made when it is asked
    for, and may take as long as an input takes to be hashed where it was made.
    `checkpoint`: the state that an earlier attempt saved, or None; `save` keeps a new one. `figure` puts
    a number under a name into the report, for people: a name that tells its unit, such as
    `first_token_seconds`; at most FIGURES_PER_STAGE_MAX, all finite.
    `empty(shape, dtype)` makes an array to compute a large output into: returned whole, it is passed on without a copy.
    From then on it must not be written to, nor what was made of it: others read it where it is.
    """

    inputs: Mapping[str, Any]
    params: Mapping[str, Any]
    models: Models
    target: str = "cpu"
    make_key: Callable[[], str] = str
    attempt: int = 1
    cancel: CancelToken = msgspec.field(default_factory=CancelToken)
    checkpoint: bytes | None = None
    save: Callable[[bytes], None] = lambda _: None
    progress: Callable[[float], None] = lambda _: None
    figure: Callable[[str, float], None] = lambda _name, _value: None
    compute: Compute = _no_compute
    empty: Empty = np.empty

    @property
    def key(self) -> str:
        """Raises Cancelled where the attempt is cancelled before all digests are known."""
        return self.make_key()


class Chunk(NamedTuple):
    """One element of a stream output; a greater `generation` tells consumers to drop older ones.

    `at` is as in Received. A chunk for a port that is no stream is that port's value; the last one counts.
    """

    port: str
    value: Any
    generation: int = 0
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Grown:
    """Outputs, and what they change of the job: for a kind whose spec says `grows`. `agents.growing` makes the patch."""

    outputs: Outputs
    patch: Patch


class Stage(ABC):
    """A kind that takes whole values and gives whole values. A stream input is collected before it runs."""

    spec: ClassVar[KindSpec]

    def load(self, models: Models, target: str) -> None:
        """Loads what `run` will need, while an attempt waits to start. Optional; for kinds whose spec names models."""
        return

    @abstractmethod
    def run(self, call: StageCall) -> Outputs | Grown:
        """Computes, in a worker thread. Raise StageError for a failure; any other exception is one as well.

        Long pure-Python work asks `call.cancel.raise_if_cancelled()` from time to time; model runs do so themselves.
        """

    def run_batch(self, calls: Sequence[StageCall]) -> Sequence[Outputs | Exception]:
        """As `run`, for several attempts at once: for kinds whose spec says `batch`. What each gives, or its failure.

        The calls share `models`, which stop once all of them are cancelled. Where this raises, each runs by itself.
        """
        raise NotImplementedError(f"{self.spec.name} says that it runs several attempts in one call, and cannot")


class StreamStage(ABC):
    """A kind with stream ports: its inputs are asynchronous iterators, and it yields chunks.

    It runs on an event loop that it shares with the other stream stages of its agent, and takes a slot only while it
    computes: what takes longer than a moment is awaited by `call.compute(function, ...)`.

        async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
            async for received in call.inputs["image"]:
                found = await call.compute(self.detect, call.models, received.value)
                yield Chunk("faces", found, received.generation, received.at)
    """

    spec: ClassVar[KindSpec]

    def load(self, models: Models, target: str) -> None:
        """As `Stage.load`; in a worker thread."""
        return

    @abstractmethod
    def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        """Yields chunks as they come; the runtime waits at a yield until the consumers have room.

        The generator is closed where it waits when nobody wants more of what it gives, and cancelled with its job.
        """


StageClass = type[Stage] | type[StreamStage]
