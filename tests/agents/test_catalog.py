"""The catalogue of stage kinds, and the kinds that need no model."""

import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from importlib.resources import files
from types import ModuleType
from typing import Any, ClassVar, cast

import pytest

from starloom.agents import catalog
from starloom.agents.catalog import GROUP, SHIPPED, Catalog
from starloom.agents.stage import CancelToken, Grown, Models, Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.errors import Cancelled, InvalidInput, NotFound, StageError
from starloom.dag.kinds import KindSpec
from starloom.dag.values import Port, PortType

HEAVY = ("onnxruntime", "cv2", "soundfile", "soxr", "hibari", "tokenizers", "onnx", "ray")


class Mine(Stage):
    spec: ClassVar[KindSpec] = KindSpec(name="test.mine", outputs={"value": Port(PortType.JSON)})

    def run(self, call: StageCall) -> Outputs:
        return {"value": 1}


class MineAgain(Mine):
    pass


class OtherSignature(Mine):
    spec: ClassVar[KindSpec] = KindSpec(name="test.mine", outputs={"value": Port(PortType.TEXT)})


class LikeNoop(Mine):
    spec: ClassVar[KindSpec] = KindSpec(name="basic.noop")


class NeverMade(Mine):
    spec: ClassVar[KindSpec] = KindSpec(name="test.never")

    def __init__(self) -> None:
        raise RuntimeError("no licence key")


class Unfinished(Stage):
    spec: ClassVar[KindSpec] = KindSpec(name="test.unfinished")


class NoSpec(Stage):
    def run(self, call: StageCall) -> Outputs:
        return {}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that an entry point can name, with this file's classes in it."""
    module = ModuleType("stages_of_a_test")
    for each in (Mine, MineAgain, OtherSignature, LikeNoop, NeverMade, Unfinished, NoSpec):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def point(value: str, name: str = "a") -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


def call(
    catalog: Catalog,
    kind: str,
    inputs: dict[str, Any] | None = None,
    *,
    attempt: int = 1,
    cancel: CancelToken | None = None,
    **params: Any,
) -> Any:
    stage = catalog.stage(kind)
    assert isinstance(stage, Stage)
    filled = {name: param.default for name, param in stage.spec.params.items()} | params
    return stage.run(
        StageCall(inputs or {}, filled, cast(Models, None), attempt=attempt, cancel=cancel or CancelToken())
    )


@pytest.fixture(scope="module")
def shipped() -> Catalog:
    return Catalog(points=())


def test_the_signatures_on_file_are_those_of_the_code() -> None:
    on_file = files("starloom.agents").joinpath("data", "kinds.json").read_bytes()
    assert on_file == catalog.imported_kinds(), "run `python -m starloom.agents.catalog`, as its docstring says"


def test_every_shipped_kind_is_known_and_made_once(shipped: Catalog) -> None:
    assert set(shipped.kinds) == set(SHIPPED)
    for name in SHIPPED:
        stage = shipped.stage(name)
        assert stage.spec == shipped.kinds[name]
        assert shipped.stage(name) is stage
    usable, problems = shipped.usable()
    assert list(usable.values()) == list(shipped.kinds.values())
    assert problems == []


def test_kinds_are_known_without_any_heavy_import() -> None:
    code = (
        "import sys; from starloom.agents.catalog import Catalog; catalog = Catalog(points=());"
        "assert 'speech.transcribe' in catalog.kinds; catalog.stage('basic.noop');"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Catalog({"test.mine": "starloom.no_such_module:Mine"}, [Mine.spec], points=())
    with pytest.raises(StageError, match=r"kind test.mine cannot run here: .*pip install starloom\[agent\]"):
        found.stage("test.mine")
    usable, problems = found.usable()
    assert not usable
    assert [problem.place for problem in problems] == ["kinds.test.mine"]


def test_an_unknown_kind_lists_the_known_ones(shipped: Catalog) -> None:
    with pytest.raises(NotFound, match=r"no kind 'basic.nop'; known kinds: audio.decode, .*basic.noop"):
        shipped.stage("basic.nop")


def test_entry_points_add_kinds(package: str) -> None:
    found = Catalog(points=[point(f"{package}:Mine"), point(f"{package}:Mine", "b")])
    assert found.kinds["test.mine"] == Mine.spec
    assert isinstance(found.stage("test.mine"), Mine)
    assert found.problems == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_package_at_all:Mine", "cannot be imported: ModuleNotFoundError: No module named"),
        ("stages_of_a_test:Nothing", "cannot be imported: AttributeError"),
        ("stages_of_a_test", "is no subclass"),
        ("stages_of_a_test:NoSpec", "has no `spec`"),
        ("stages_of_a_test:Unfinished", "does not define run"),
        ("stages_of_a_test:Mine.spec", "is no subclass"),
    ],
)
def test_a_broken_entry_point_is_skipped_with_its_reason(package: str, value: str, reason: str) -> None:
    found = Catalog(points=[point(value), point(f"{package}:Mine", "z")])
    (problem,) = found.problems
    assert problem.place == f"entry point a = {value}"
    assert reason in problem.what
    assert set(found.kinds) == {*SHIPPED, "test.mine"}


def test_two_classes_of_one_signature_leave_the_first(package: str) -> None:
    found = Catalog(points=[point(f"{package}:MineAgain", "b"), point(f"{package}:Mine", "a")])
    assert type(found.stage("test.mine")) is Mine
    assert [problem.place for problem in found.problems] == [f"entry point b = {package}:MineAgain"]


@pytest.mark.parametrize("names", [("Mine", "OtherSignature"), ("LikeNoop",)])
def test_two_signatures_of_one_name_are_refused(package: str, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="two different signatures under one name"):
        Catalog(points=[point(f"{package}:{name}") for name in names])


def test_a_class_that_cannot_be_made_is_not_usable(package: str) -> None:
    found = Catalog(points=[point(f"{package}:NeverMade")])
    with pytest.raises(StageError, match="no licence key"):
        found.stage("test.never")
    assert [problem.place for problem in found.usable()[1]] == ["kinds.test.never"]


def test_noop_passes_its_value_on(shipped: Catalog) -> None:
    assert call(shipped, "basic.noop") == {"value": None}
    assert call(shipped, "basic.noop", {"value": {"a": [1]}, "after": 2}) == {"value": {"a": [1]}}


def test_echo_gives_its_bytes_back(shipped: Catalog) -> None:
    assert call(shipped, "basic.echo", {"data": memoryview(b"abc")}) == {"data": b"abc"}


def test_add_sums_in_the_order_of_names(shipped: Catalog) -> None:
    assert call(shipped, "basic.add") == {"value": 0}
    assert call(shipped, "basic.add", {"b": 1e16, "a": 1.0, "c": -1e16}) == call(
        shipped, "basic.add", {"c": -1e16, "a": 1.0, "b": 1e16}
    )
    assert call(shipped, "basic.add", {"a": 2, "b": 3}) == {"value": 5}
    for wrong in (True, "1", None, [1]):
        with pytest.raises(StageError, match=r"input 'b' is .*, not a number"):
            call(shipped, "basic.add", {"a": 1, "b": wrong})


def test_sleep_ends_at_once_when_cancelled(shipped: Catalog) -> None:
    assert call(shipped, "basic.sleep", {"value": 7}, seconds=0) == {"value": 7}
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        call(shipped, "basic.sleep", seconds=limits.SLEEP_SECONDS_MAX, cancel=cancel)


def test_sleep_is_woken_by_a_cancel_from_another_thread(shipped: Catalog) -> None:
    registered, ended = threading.Event(), threading.Event()

    class Observed(CancelToken):
        def on_cancel(self, callback: Any) -> Any:
            forget = super().on_cancel(callback)
            registered.set()
            return forget

    cancel = Observed()

    def run() -> None:
        with pytest.raises(Cancelled):
            call(shipped, "basic.sleep", seconds=limits.SLEEP_SECONDS_MAX, cancel=cancel)
        ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert registered.wait(30)
    cancel.cancel()
    thread.join(30)
    assert ended.is_set()


@pytest.mark.parametrize("seconds", [-1, limits.SLEEP_SECONDS_MAX + 1, float("nan")])
def test_sleep_refuses_a_length_out_of_bounds(shipped: Catalog, seconds: float) -> None:
    with pytest.raises(StageError, match="SLEEP_SECONDS_MAX"):
        call(shipped, "basic.sleep", seconds=seconds)


def test_fail_fails_as_often_as_it_is_told(shipped: Catalog) -> None:
    for attempt in (1, 2):
        with pytest.raises(StageError, match="ouch") as raised:
            call(shipped, "basic.fail", attempt=attempt, times=2, message="ouch", transient=True)
        assert raised.value.transient
    assert call(shipped, "basic.fail", {"value": 1}, attempt=3, times=2) == {"value": 1}
    with pytest.raises(StageError, match="on purpose") as raised:
        call(shipped, "basic.fail", attempt=limits.RETRIES_MAX + 1)
    assert not raised.value.transient
    assert not shipped.kinds["basic.fail"].deterministic


def test_count_adds_a_round_until_it_is_done(shipped: Catalog) -> None:
    grown = call(shipped, "basic.count", {"value": 1}, until=3)
    assert isinstance(grown, Grown)
    assert grown.outputs == {"value": 2}
    assert [type(operation).__name__ for operation in grown.patch.operations] == ["Add", "Redirect"]
    assert call(shipped, "basic.count", {"value": 2}, until=3) == {"value": 3}
    with pytest.raises(StageError, match="value is str, not a whole number"):
        call(shipped, "basic.count", {"value": "1"})


def test_make_bytes_are_the_same_everywhere(shipped: Catalog) -> None:
    made = call(shipped, "basic.make_bytes", size=2_500_001, seed=3)["data"]
    assert len(made) == 2_500_001
    assert made == call(shipped, "basic.make_bytes", size=2_500_001, seed=3)["data"]
    assert made[:1000] == call(shipped, "basic.make_bytes", size=1000, seed=3)["data"]
    assert made[:1000] != call(shipped, "basic.make_bytes", size=1000, seed=4)["data"]
    assert call(shipped, "basic.make_bytes", size=8)["data"].hex() == "5f82c2d9cfeb0fa3"
    for name, wrong in (("size", -1), ("size", limits.VALUE_BYTES_MAX + 1), ("seed", -1)):
        params: dict[str, Any] = {name: wrong}
        with pytest.raises(StageError, match=f"{name} is {wrong}"):
            call(shipped, "basic.make_bytes", **params)
