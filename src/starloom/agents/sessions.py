"""ONNX Runtime sessions of one agent: loaded once, shared by calls, bounded, and stopped by a call's cancel.

The processor is a machine's scarcest thing, and several agents may run on one: a session gets
`threads` threads, never spins, and names its execution provider instead of taking the first.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final, NamedTuple
from weakref import WeakSet

import onnxruntime as ort
from numpy.typing import NDArray

from starloom.agents.modelstore import DEFAULT_FILE, KeyedLocks, ModelStore
from starloom.agents.residency import Resident, victims
from starloom.agents.stage import CancelToken, TensorPort
from starloom.dag import limits
from starloom.dag.errors import Cancelled, StageError

_LOG_ERRORS_ONLY = 3


class TargetBackend(NamedTuple):
    """How a target computes here: ONNX Runtime's execution provider, and whether that only emulates it."""

    provider: str
    emulated: bool


BACKENDS: Final[Mapping[str, TargetBackend]] = {
    "cpu": TargetBackend("CPUExecutionProvider", emulated=False),
    "npu": TargetBackend("CPUExecutionProvider", emulated=True),
}
"""The targets that sessions can be made for. `npu` computes a static INT8 file, which the stage names."""


class SessionKey(NamedTuple):
    """What a session was made for."""

    model: str
    file: str
    target: str


@dataclass(slots=True)
class _Loaded:
    """A session, the bytes of its file, the seconds that it took to make, and when it was asked for last."""

    session: Any
    bytes: int
    seconds: float
    used: float = 0.0
    #: calls that have not ended; one that is forgotten without its end counts no more either
    users: "WeakSet[CallModels]" = field(default_factory=WeakSet)


class SessionPool:
    """Sessions by (model, file, target), each made once; `agents.residency` says which goes when there are too many.

    `limit` bounds the number of sessions, `limit_bytes` the sum of their files' sizes. What a call uses stays until
    the call ends, so while calls run there may be more. Safe for threads.
    """

    def __init__(
        self,
        store: ModelStore,
        limit: int,
        threads: int = 1,
        *,
        limit_bytes: int = limits.MODEL_SESSIONS_BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if limit < 1 or threads < 1:
            raise ValueError(f"limit {limit} and threads {threads} must be at least 1")
        self.store = store
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._threads = threads
        self._clock = clock
        self._guard = Lock()
        self._making = KeyedLocks()
        self._sessions: dict[SessionKey, _Loaded] = {}
        self._objects: dict[tuple[str, str], Any] = {}
        #: the sessions that calls of a kind have used so far, by kind and target
        self._kinds: dict[tuple[str, str], frozenset[SessionKey]] = {}

    def for_call(self, cancel: CancelToken, target: str = "cpu") -> "CallModels":
        """The models of one call, which computes on `target` unless it says otherwise. Raises StageError."""
        backend(target)
        return CallModels(self, cancel, target)

    def resident(self) -> list[SessionKey]:
        """The sessions that are loaded, the one used last at the end."""
        with self._guard:
            return sorted(self._sessions, key=lambda key: self._sessions[key].used)

    def resident_kinds(self) -> tuple[str, ...]:
        """The kinds with all sessions loaded that their calls on some target have used so far, by name."""
        with self._guard:
            found = {kind for (kind, _), keys in self._kinds.items() if keys <= self._sessions.keys()}
        return tuple(sorted(found))

    def session(self, key: SessionKey, user: "CallModels | None" = None) -> Any:
        """The `onnxruntime.InferenceSession` for the key, made if need be; one thread makes it, others wait.

        It stays while `user` has not ended. Raises NotFound, ModelMissing or DigestMismatch as `ModelStore.file` does,
        and StageError for an unknown target or a file that is no model.
        """
        if (found := self._known(key, user)) is not None:
            return found
        with self._making.of(key):
            if (found := self._known(key, user)) is not None:
                return found
            loaded = self._load(key)
            with self._guard:
                self._sessions[key] = loaded
                self._use(loaded, user)
                self._shrink()
            return loaded.session

    def ended(self, user: "CallModels", kind: str, target: str, keys: Iterable[SessionKey]) -> None:
        """A call uses these no more; with a `kind`, they are what a call of that kind needs."""
        used = frozenset(keys)
        with self._guard:
            for key in used & self._sessions.keys():
                self._sessions[key].users.discard(user)
            if kind:
                self._kinds[kind, target] = self._kinds.get((kind, target), frozenset()) | used
            self._shrink()

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned for (model, name), made once; a failed `make` is tried again by the next call."""
        key = (model, name)
        with self._making.of(key):
            if key not in self._objects:
                self._objects[key] = make()
            return self._objects[key]

    def _known(self, key: SessionKey, user: "CallModels | None") -> Any:
        with self._guard:
            if (loaded := self._sessions.get(key)) is None:
                return None
            self._use(loaded, user)
            return loaded.session

    def _use(self, loaded: _Loaded, user: "CallModels | None") -> None:
        loaded.used = self._clock()
        if user is not None:
            loaded.users.add(user)

    def _shrink(self) -> None:
        if len(self._sessions) <= self._limit and self._bytes() <= self._limit_bytes:
            return
        kept = {
            key: Resident(loaded.seconds, loaded.bytes, loaded.used, bool(loaded.users))
            for key, loaded in self._sessions.items()
        }
        for key in victims(kept, self._clock(), self._limit, self._limit_bytes):
            del self._sessions[key]

    def _bytes(self) -> int:
        return sum(loaded.bytes for loaded in self._sessions.values())

    def _load(self, key: SessionKey) -> _Loaded:
        began = self._clock()
        path = self.store.file(key.model, key.file)
        try:
            session = ort.InferenceSession(
                str(path), session_options(self._threads), providers=[backend(key.target).provider]
            )
        # ONNX Runtime's errors have no common class below Exception.
        except Exception as error:
            raise StageError(f"{key.model}/{key.file} is no model that ONNX Runtime can load: {error}") from error
        return _Loaded(session, path.stat().st_size, self._clock() - began)


def session_options(threads: int) -> Any:
    """The `onnxruntime.SessionOptions` of every session of an agent."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _LOG_ERRORS_ONLY
    return options


def backend(target: str) -> TargetBackend:
    """How `target` computes here; raises StageError, naming the targets that there are."""
    try:
        return BACKENDS[target]
    except KeyError:
        raise StageError(f"this agent cannot compute on target {target!r}; it has {', '.join(BACKENDS)}") from None


class OnnxModel:
    """A session bound to one call: `agents.stage.DescribedModel`."""

    def __init__(self, session: Any, key: SessionKey, cancel: CancelToken) -> None:
        self._session = session
        self._key = key
        self._cancel = cancel

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self._session.get_inputs())

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorPort, ...]:
        return _ports(self._session.get_inputs())

    @property
    def outputs(self) -> tuple[TensorPort, ...]:
        return _ports(self._session.get_outputs())

    @property
    def metadata(self) -> Mapping[str, str]:
        """The graph's own metadata, such as a recogniser's characters."""
        found: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """All outputs in the order of `output_names`.

        Raises Cancelled within one operator's time of the call's cancel, and StageError with ONNX
        Runtime's reason for an input of a wrong name, type or shape.
        """
        self._cancel.raise_if_cancelled()
        options = ort.RunOptions()
        forget = self._cancel.on_cancel(partial(setattr, options, "terminate", True))
        try:
            outputs: list[NDArray[Any]] = self._session.run(None, dict(feeds), options)
        # ONNX Runtime's errors have no common class below Exception.
        except Exception as error:
            where = f"{self._key.model}/{self._key.file}"
            if self._cancel.cancelled:
                raise Cancelled(f"the attempt was cancelled while it ran {where}") from error
            raise StageError(f"{where} refused its input, or failed: {error}") from error
        finally:
            forget()
        self._cancel.raise_if_cancelled()
        return outputs


def _ports(found: Iterable[Any]) -> tuple[TensorPort, ...]:
    return tuple(TensorPort(port.name, port.type, tuple(port.shape)) for port in found)


class CallModels:
    """The models of one call: `agents.stage.Models`, and what the call's report says of them.

    `load_seconds` is the time this call spent in waiting for sessions, verified files and cached
    objects. `models` are those used, as `name@version`, `files` their files as `model/file`, and
    `targets` the targets computed on, each in the order of first use. For one thread.
    """

    def __init__(self, pool: SessionPool, cancel: CancelToken, target: str) -> None:
        self._pool = pool
        self._cancel = cancel
        self._target = target
        self._sessions: dict[SessionKey, OnnxModel] = {}
        self._depth = 0
        self.load_seconds = 0.0
        self.models: list[str] = []
        self.files: list[str] = []
        self.targets: list[str] = []

    @property
    def emulated(self) -> bool:
        """Whether a target that this call computed on is emulated here."""
        return any(BACKENDS[target].emulated for target in self.targets)

    def session(self, model: str, file: str = DEFAULT_FILE, *, target: str | None = None) -> OnnxModel:
        """A model on the call's target unless another is named.

        Raises NotFound, ModelMissing or DigestMismatch as `ModelStore.file` does, StageError for an
        unknown target or a file that is no model, and Cancelled.
        """
        key = SessionKey(model, file, self._target if target is None else target)
        if key not in self._sessions:
            with self._loading():
                self._sessions[key] = OnnxModel(self._pool.session(key, self), key, self._cancel)
            self._note(model, file)
            if key.target not in self.targets:
                self.targets.append(key.target)
        return self._sessions[key]

    def path(self, model: str, file: str) -> str:
        """The path of a verified file. Raises as `ModelStore.file` does, and Cancelled."""
        with self._loading():
            found = str(self._pool.store.file(model, file))
        self._note(model, file)
        return found

    def cached(self, model: str, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned for (model, name), made once in this pool. Raises what `make` does, and Cancelled."""
        with self._loading():
            found = self._pool.cached(model, name, make)
        self._note(model, None)
        return found

    def close(self, kind: str = "") -> None:
        """The call has ended, and uses its sessions no more; `kind` is what it was of, if all went well."""
        self._pool.ended(self, kind if self.models else "", self._target, self._sessions)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Counts the time inside; a `make` of `cached` that loads in turn is counted once."""
        self._cancel.raise_if_cancelled()
        began = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.load_seconds += time.perf_counter() - began

    def _note(self, model: str, file: str | None) -> None:
        name = f"{model}@{self._pool.store.entry(model).version}"
        if name not in self.models:
            self.models.append(name)
        if file is not None and f"{model}/{file}" not in self.files:
            self.files.append(f"{model}/{file}")
