"""The session pool: one session for each key, bounded, cancelled with its call, and accounted for."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from starloom.agents.manifest import Manifest, ModelEntry, ModelFile, Source
from starloom.agents.modelpull import pull
from starloom.agents.modelstore import ModelStore
from starloom.agents.sessions import SessionKey, SessionPool
from starloom.agents.stage import CancelToken, Model, Models
from starloom.dag.errors import Cancelled, DigestMismatch, ModelMissing, NotFound, StageError


def double() -> bytes:
    """y = x + x, float32 [2]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"words": "a\nb"})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def endless() -> bytes:
    """x times itself, some billion times over: nobody waits for its end."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["a", "a"], ["b"]), helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [64, 64]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [2**40]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


X = np.array([1.0, 2.0], dtype=np.float32)
FILES = {"model.onnx": double(), "model.int8.onnx": double(), "endless.onnx": endless(), "words.txt": b"a b"}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in FILES.items():
        (source / name).write_bytes(data)
    files = tuple(
        ModelFile(path=name, name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in FILES.items()
    )
    entry = ModelEntry(
        name="tiny", version="1.0", kind="test", licence="MIT", sources=(Source(folder=str(source)),), files=files
    )
    absent = ModelEntry(
        name="absent", version="1.0", kind="test", licence="MIT", sources=(Source(folder="none"),), files=files
    )
    found = ModelStore(tmp_path / "store", Manifest([entry, absent]))
    pull(found, ["tiny"])
    return found


@pytest.fixture
def pool(store: ModelStore) -> SessionPool:
    return SessionPool(store, limit=4)


def test_model_runs_and_names_its_ports(pool: SessionPool) -> None:
    models: Models = pool.for_call(CancelToken())
    model: Model = models.session("tiny")
    assert (model.input_names, model.output_names) == (("x",), ("y",))
    (y,) = model.run({"x": X})
    assert y.tolist() == [2.0, 4.0]
    assert pool.for_call(CancelToken()).session("tiny").metadata == {"words": "a\nb"}


def test_session_is_shared_by_calls_and_kept_apart_by_target(pool: SessionPool) -> None:
    key = SessionKey("tiny", "model.onnx", "cpu")
    pool.for_call(CancelToken()).session("tiny")
    first = pool.session(key)
    pool.for_call(CancelToken()).session("tiny")
    assert pool.session(key) is first
    assert pool.session(key._replace(target="npu")) is not first


def test_sessions_never_spin_and_use_the_named_provider(pool: SessionPool) -> None:
    session = pool.session(SessionKey("tiny", "model.onnx", "cpu"))
    options = session.get_session_options()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_two_threads_load_one_session_once(pool: SessionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[SessionKey] = []
    inside, proceed = threading.Event(), threading.Event()
    real: Callable[[SessionKey], Any] = pool._load

    def slow(key: SessionKey) -> Any:
        loads.append(key)
        inside.set()
        assert proceed.wait(30)
        return real(key)

    monkeypatch.setattr(pool, "_load", slow)
    found: list[Any] = []
    key = SessionKey("tiny", "model.onnx", "cpu")
    threads = [threading.Thread(target=lambda: found.append(pool.session(key))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(30)
    proceed.set()
    for thread in threads:
        thread.join()
    assert loads == [key]
    assert found[0] is found[1]


class Clock:
    """Seconds that only a test lets pass; loading a file takes as many as it says."""

    def __init__(self, pool: SessionPool, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.now = 0.0
        real: Callable[[SessionKey], Any] = pool._load

        def load(key: SessionKey) -> Any:
            loaded = real(key)
            loaded.seconds = seconds.get(key.file.partition(".")[0], 1.0)
            return loaded

        monkeypatch.setattr(pool, "_load", load)
        monkeypatch.setattr(pool, "_clock", lambda: self.now)


def ask(pool: SessionPool, clock: Clock, file: str) -> None:
    """A call that begins, uses one session, and ends, a second after the one before."""
    clock.now += 1.0
    models = pool.for_call(CancelToken())
    models.session("tiny", file)
    models.close()


def test_session_that_was_cheap_to_load_goes_first(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SessionPool(store, limit=2)
    clock = Clock(pool, monkeypatch, model=1.0, endless=60.0)
    ask(pool, clock, "endless.onnx")
    ask(pool, clock, "model.onnx")
    ask(pool, clock, "model.int8.onnx")
    assert [key.file for key in pool.resident()] == ["endless.onnx", "model.int8.onnx"]


def test_session_in_use_stays_until_its_call_ends(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SessionPool(store, limit=1)
    clock = Clock(pool, monkeypatch)
    running = pool.for_call(CancelToken())
    kept = running.session("tiny", "model.onnx")
    ask(pool, clock, "model.int8.onnx")
    ask(pool, clock, "endless.onnx")
    assert [key.file for key in pool.resident()] == ["model.onnx", "endless.onnx"]
    assert kept.run({"x": X})[0].tolist() == [2.0, 4.0]
    running.close()
    assert [key.file for key in pool.resident()] == ["endless.onnx"]


def test_call_that_is_forgotten_without_its_end_keeps_nothing(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SessionPool(store, limit=1)
    clock = Clock(pool, monkeypatch)
    pool.for_call(CancelToken()).session("tiny", "model.onnx")
    ask(pool, clock, "endless.onnx")
    assert [key.file for key in pool.resident()] == ["endless.onnx"]


def test_pool_is_bounded_by_bytes_but_holds_one(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SessionPool(store, limit=4, limit_bytes=1)
    clock = Clock(pool, monkeypatch)
    ask(pool, clock, "model.onnx")
    ask(pool, clock, "model.int8.onnx")
    assert [key.file for key in pool.resident()] == ["model.int8.onnx"]


def test_kind_is_resident_while_all_sessions_are_that_its_calls_used(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SessionPool(store, limit=2)
    clock = Clock(pool, monkeypatch, endless=60.0)
    assert pool.resident_kinds() == ()
    failed = pool.for_call(CancelToken())
    failed.session("tiny", "model.onnx")
    failed.close()
    assert pool.resident_kinds() == (), "it may not have come to all that it needs"
    for kind, files in {"t.one": ["model.onnx"], "t.two": ["model.onnx", "model.int8.onnx"]}.items():
        models = pool.for_call(CancelToken())
        for file in files:
            clock.now += 1.0
            models.session("tiny", file)
        models.close(kind)
    pool.for_call(CancelToken()).close("t.none")
    assert pool.resident_kinds() == ("t.one", "t.two")
    ask(pool, clock, "model.onnx")
    ask(pool, clock, "endless.onnx")
    assert pool.resident_kinds() == ("t.one",)


def test_limits_must_be_positive(store: ModelStore) -> None:
    with pytest.raises(ValueError, match="limit 0"):
        SessionPool(store, limit=0)


def test_cancel_stops_a_running_model(pool: SessionPool) -> None:
    cancel = CancelToken()
    model = pool.for_call(cancel).session("tiny", "endless.onnx")
    ended: list[BaseException] = []

    def run() -> None:
        try:
            model.run({"x": np.zeros((64, 64), np.float32)})
        except BaseException as error:
            ended.append(error)

    # The token calls back once the run is registered: only then is there something to cancel.
    registered = threading.Event()
    add = cancel.on_cancel

    def noted(callback: Callable[[], None]) -> Callable[[], None]:
        forget = add(callback)
        registered.set()
        return forget

    cancel.on_cancel = noted  # type: ignore[method-assign]
    thread = threading.Thread(target=run)
    thread.start()
    assert registered.wait(30)
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    began = time.clock_gettime(clock)
    while thread.is_alive() and time.clock_gettime(clock) < began + 0.05:
        thread.join(0)
    cancel.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(ended[0], Cancelled)
    assert "tiny/endless.onnx" in str(ended[0])


def test_cancel_of_one_call_leaves_the_others(pool: SessionPool) -> None:
    cancel = CancelToken()
    cancelled = pool.for_call(cancel).session("tiny")
    other = pool.for_call(CancelToken()).session("tiny")
    cancel.cancel()
    with pytest.raises(Cancelled):
        cancelled.run({"x": X})
    assert other.run({"x": X})[0].tolist() == [2.0, 4.0]


def test_cancelled_call_loads_nothing(pool: SessionPool) -> None:
    cancel = CancelToken()
    models = pool.for_call(cancel)
    cancel.cancel()
    for load in (
        lambda: models.session("tiny"),
        lambda: models.path("tiny", "words.txt"),
        lambda: models.cached("tiny", "words", list),
    ):
        with pytest.raises(Cancelled):
            load()
    assert pool.resident() == []


def test_runs_leave_nothing_at_the_token(pool: SessionPool) -> None:
    cancel = CancelToken()
    model = pool.for_call(cancel).session("tiny")
    model.run({"x": X})
    with pytest.raises(StageError):
        model.run({})
    assert cancel._callbacks == []


@pytest.mark.parametrize(
    ("feeds", "reason"),
    [
        ({"x": X.astype(np.float64)}, "tensor(double)"),
        ({"x": np.zeros(3, np.float32)}, "Got: 3 Expected: 2"),
        ({}, "['x']"),
        ({"x": X, "z": X}, "z"),
    ],
)
def test_bad_input_is_the_stages_error(pool: SessionPool, feeds: dict[str, Any], reason: str) -> None:
    model = pool.for_call(CancelToken()).session("tiny")
    with pytest.raises(StageError, match=r"tiny/model\.onnx") as caught:
        model.run(feeds)
    assert reason in str(caught.value)
    assert not caught.value.transient


def test_unusable_names_files_and_targets(pool: SessionPool) -> None:
    models = pool.for_call(CancelToken())
    with pytest.raises(ModelMissing, match="starloom models pull absent"):
        models.session("absent")
    with pytest.raises(NotFound):
        models.session("unknown")
    with pytest.raises(NotFound, match=r"its files: model\.onnx"):
        models.session("tiny", "other.onnx")
    with pytest.raises(StageError, match=r"tiny/words\.txt is no model"):
        models.session("tiny", "words.txt")
    with pytest.raises(StageError, match="target 'gpu'; it has cpu, npu"):
        models.session("tiny", target="gpu")
    with pytest.raises(StageError, match="'fpga'"):
        pool.for_call(CancelToken(), "fpga")
    assert (models.models, models.files, models.targets) == ([], [], [])


def test_swapped_model_is_refused(pool: SessionPool, store: ModelStore) -> None:
    (store.folder("tiny") / "model.onnx").write_bytes(FILES["endless.onnx"])
    with pytest.raises(DigestMismatch):
        pool.for_call(CancelToken()).session("tiny")


def test_call_reports_what_it_used(pool: SessionPool) -> None:
    models = pool.for_call(CancelToken(), "npu")
    assert (models.load_seconds, models.emulated) == (0.0, False)
    models.session("tiny", "model.int8.onnx")
    models.session("tiny", target="cpu")
    models.session("tiny", target="cpu")
    assert Path(models.path("tiny", "words.txt")).read_bytes() == b"a b"
    assert models.models == ["tiny@1.0"]
    assert models.files == ["tiny/model.int8.onnx", "tiny/model.onnx", "tiny/words.txt"]
    assert models.targets == ["npu", "cpu"]
    assert models.emulated
    assert models.load_seconds > 0
    assert not pool.for_call(CancelToken(), "cpu").emulated


def test_object_is_made_once_and_its_loading_counts_once(pool: SessionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(second) for second in range(100))
    monkeypatch.setattr("starloom.agents.sessions.time.perf_counter", lambda: next(now))
    models = pool.for_call(CancelToken())
    made: list[list[str]] = []

    def make() -> list[str]:
        made.append(Path(models.path("tiny", "words.txt")).read_text().split())
        return made[-1]

    assert models.cached("tiny", "words", make) == ["a", "b"]
    # The clock is read at the two beginnings and at the outer end: 0, 1 and 2.
    assert models.load_seconds == 2.0
    other = pool.for_call(CancelToken())
    assert other.cached("tiny", "words", make) is made[0]
    assert len(made) == 1
    assert other.models == ["tiny@1.0"]


def test_failed_make_is_tried_again(pool: SessionPool) -> None:
    models = pool.for_call(CancelToken())

    def fail() -> None:
        raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        models.cached("tiny", "words", fail)
    assert models.cached("tiny", "words", lambda: 1) == 1
