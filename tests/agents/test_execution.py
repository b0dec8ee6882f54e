"""One attempt without an event loop: inputs, parameters, outputs, comparisons, and every way to fail."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.agents.fakes import NoModels, Stages, assign, given, made, no_models, task

from starloom.agents import execution, values, wire
from starloom.agents.execution import Execution, Made, execute, failure
from starloom.agents.messages import Assign, Failed
from starloom.agents.stage import CancelToken, Chunk, Grown, Outputs, StageCall, StreamStage
from starloom.dag import limits
from starloom.dag.constellation import Comparison
from starloom.dag.errors import (
    Cancelled,
    DigestMismatch,
    InvalidInput,
    ModelMissing,
    Overloaded,
    Problem,
    StageError,
    Unavailable,
)
from starloom.dag.facts import ErrorInfo
from starloom.dag.kinds import KindSpec, Param
from starloom.dag.patch import Patch
from starloom.dag.values import Port, PortType, ValueRef

JSON = Port(PortType.JSON)
SPEC = KindSpec(
    name="t.kind",
    inputs={"value": JSON, "picture": Port(PortType.IMAGE, optional=True)},
    outputs={"value": JSON, "text": Port(PortType.TEXT, optional=True)},
    params={"times": Param(type="integer", default=2), "mode": Param(type="string", choices=("a", "b"), default="a")},
)
ONE = given("value", PortType.JSON, 1)


def run(
    function: Callable[[StageCall], Any],
    order: Assign | None = None,
    spec: KindSpec = SPEC,
    models: execution.ModelsFactory = no_models,
    **inputs: bytes,
) -> Any:
    order = order or assign(kind=spec.name, inputs=(ONE,))
    return execute(Execution(order, inputs), Stages(made(spec, function)), models, "node-1")


def failed(function: Callable[[StageCall], Any], order: Assign | None = None, spec: KindSpec = SPEC) -> ErrorInfo:
    found = run(function, order, spec)
    assert isinstance(found, ErrorInfo), found
    assert found.node == "node-1"
    return found


def passing(call: StageCall) -> Outputs:
    return {"value": call.inputs["value"]}


def raising(error: BaseException) -> Callable[[StageCall], Outputs]:
    def function(call: StageCall) -> Outputs:
        raise error

    return function


def test_call_has_inputs_parameters_and_a_name_of_its_work() -> None:
    calls: list[StageCall] = []

    def function(call: StageCall) -> Outputs:
        calls.append(call)
        return {"value": call.inputs["value"], "text": "hi"}

    order = assign(kind="t.kind", attempt=3, inputs=(ONE,), params={"mode": "b"}, target="npu")
    found = run(function, order)
    assert isinstance(found, Made)
    (call,) = calls
    assert (call.inputs, call.params) == ({"value": 1}, {"times": 2, "mode": "b"})
    assert (call.target, call.attempt) == ("npu", 3)
    assert found.data == {"value": b"1", "text": b"hi"}
    assert found.outputs["text"] == ValueRef(
        type=PortType.TEXT, bytes=2, digest=values.digest(b"hi"), inline=b"hi", holder="node-1"
    )
    assert found.began <= found.ended
    assert (found.models, found.target, found.emulated, found.load_seconds) == ((), "npu", False, 0.0)


def test_key_is_of_the_work_and_not_of_the_attempt() -> None:
    key = execution.idempotency_key
    base = assign(kind="k", inputs=(ONE,), params={"a": 1, "b": 2})
    assert key(base) == key(assign(kind="k", attempt=2, inputs=(ONE,), params={"b": 2, "a": 1}))
    for other in (
        assign(kind="l", inputs=(ONE,), params={"a": 1, "b": 2}),
        assign(kind="k", inputs=(given("value", PortType.JSON, 2),), params={"a": 1, "b": 2}),
        assign(kind="k", inputs=(ONE,), params={"a": 1}),
        assign("other", kind="k", inputs=(ONE,), params={"a": 1, "b": 2}),
    ):
        assert key(base) != key(other)


def test_large_outputs_are_not_inline_and_fetched_inputs_are_used() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    far = given("picture", PortType.IMAGE, picture, holder="b", inline=False)
    order = assign(kind="t.kind", inputs=(ONE, far))

    def function(call: StageCall) -> Outputs:
        assert call.inputs["picture"].shape == (100, 100, 3)
        return {"value": "x" * limits.INLINE_VALUE_BYTES_MAX}

    found = run(function, order, picture=picture.tobytes())
    assert found.outputs["value"].inline is None
    assert len(found.data["value"]) == limits.INLINE_VALUE_BYTES_MAX + 2


def test_private_outputs_are_not_inline_however_small() -> None:
    order = msgspec.structs.replace(assign(kind="t.kind", inputs=(ONE,)), private=True)
    found = run(lambda call: {"value": 1, "text": "hi"}, order)
    assert {name: ref.inline for name, ref in found.outputs.items()} == {"value": None, "text": None}
    assert found.data == {"value": b"1", "text": b"hi"}


NAMED = KindSpec(
    name="t.named",
    outputs={"value": JSON},
    variadic_output=Port(PortType.BYTES),
    params={"outputs": Param(type="object", default={})},
)


def test_a_stage_has_the_outputs_that_its_parameter_names() -> None:
    order = assign(kind="t.named", params={"outputs": {"a": 1, "b": 2}})
    found = run(lambda call: {"value": 1, "a": b"x", "b": b"yy"}, order, NAMED)
    assert {name: (ref.type, ref.bytes) for name, ref in found.outputs.items()} == {
        "a": (PortType.BYTES, 1),
        "b": (PortType.BYTES, 2),
        "value": (PortType.JSON, 1),
    }
    wrong = failed(lambda call: {"value": 1, "a": b"x", "c": b""}, order, NAMED)
    assert "stages.s.out.c: t.named declares no such output port" in wrong.message
    assert "stages.s.out.b: t.named gave no value for this port" in wrong.message


def test_a_report_holds_only_so_much_of_many_small_outputs() -> None:
    size = limits.INLINE_VALUE_BYTES_MAX
    fits = limits.INLINE_VALUES_BYTES_MAX // size
    names = [f"p{number}" for number in range(fits + 2)]
    order = assign(kind="t.named", params={"outputs": dict.fromkeys(names, size)})
    found = run(lambda call: {"value": 1, **{name: bytes(size) for name in names}}, order, NAMED)
    inline = [name for name, ref in found.outputs.items() if ref.inline is not None]
    assert inline == names[:fits]
    assert all(len(found.data[name]) == size for name in names)


@pytest.mark.parametrize(
    ("error", "transient", "cause"),
    [
        (StageError("no"), False, "StageError"),
        (StageError("no", transient=True), True, "StageError"),
        (MemoryError("no"), True, "MemoryError"),
        (OSError("no"), True, "OSError"),
        (ConnectionResetError("no"), True, "ConnectionResetError"),
        (TimeoutError("no"), True, "TimeoutError"),
        (InvalidInput("no"), False, "InvalidInput"),
        (ModelMissing("no"), False, "ModelMissing"),
        (DigestMismatch("no"), False, "DigestMismatch"),
        (Unavailable("no"), True, "Unavailable"),
        (Overloaded("no"), True, "Overloaded"),
        (ValueError("no"), False, "ValueError"),
        (SystemExit("no"), False, "SystemExit"),
        (KeyboardInterrupt("no"), False, "KeyboardInterrupt"),
        (Cancelled("no"), False, "Cancelled"),
    ],
)
def test_errors_are_told_by_what_they_are(error: BaseException, transient: bool, cause: str) -> None:
    found = failed(raising(error))
    assert (found.transient, found.cause) == (transient, cause)
    assert "no" in found.message


def test_foreign_errors_name_their_class_and_an_empty_message_is_not_left_empty() -> None:
    assert failed(raising(ValueError("bad"))).message == "ValueError: bad"
    assert failed(raising(StageError("bad"))).message == "bad"
    assert failed(raising(StageError(""))).message == "StageError"


def test_trace_is_short_and_shows_no_folders() -> None:
    def deep(call: StageCall, depth: int = 50) -> Outputs:
        if depth:
            return deep(call, depth - 1)
        raise ValueError("deep")

    trace = failed(deep).trace
    assert len(trace.splitlines()) == limits.TRACE_LINES_MAX
    assert trace.splitlines()[-1].startswith(f"{Path(__file__).name}:")
    assert str(Path(__file__).parent) not in trace


def test_cancel_is_told_as_one_only_if_it_was_asked_for() -> None:
    run_ = Execution(assign(kind="t.kind", inputs=(ONE,)), {})
    run_.cancel.cancel()
    stages = Stages(made(SPEC, passing))
    assert isinstance(execute(run_, stages, no_models, "n"), Cancelled)

    def stopping(call: StageCall) -> Outputs:
        call.cancel.cancel()
        return {"value": 1}

    assert isinstance(run(stopping), Cancelled)

    def breaking(call: StageCall) -> Outputs:
        call.cancel.cancel()
        raise StageError("broke while stopping")

    assert failed(breaking).message == "broke while stopping"


def test_absent_required_input_fails_for_good_and_is_named() -> None:
    found = failed(passing, assign(kind="t.kind"))
    assert not found.transient
    assert "stages.s.in.value: has no value" in found.message
    assert "picture" not in found.message


def test_inputs_that_do_not_fit_are_all_named() -> None:
    order = assign(kind="t.kind", inputs=(given("value", PortType.TEXT, "x"), given("nose", PortType.TEXT, "x")))
    found = failed(passing, order)
    assert found.cause == "InvalidInput"
    assert "stages.s.in.value: is text, but t.kind takes json there" in found.message
    assert "stages.s.in.nose: t.kind has no such input port" in found.message


def test_unreadable_input_is_invalid() -> None:
    ref = ValueRef(type=PortType.JSON, bytes=1, digest=values.digest(b"{"), inline=b"{")
    order = assign(kind="t.kind", inputs=(given("value", PortType.JSON, 1).__class__(**{**_fields(ONE), "ref": ref}),))
    found = failed(passing, order)
    assert (found.cause, found.transient) == ("InvalidInput", False)
    assert "stages.s.in.value" in found.message


def test_damaged_inline_input_is_noticed() -> None:
    ref = ValueRef(type=PortType.JSON, bytes=1, digest=ONE.ref.digest, inline=b"2")
    order = assign(kind="t.kind", inputs=(ONE.__class__(**{**_fields(ONE), "ref": ref}),))
    assert failed(passing, order).cause == "DigestMismatch"


def _fields(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__struct_fields__}


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"times": "x"}, "stages.s.params.times"),
        ({"mode": "c"}, "choose one of 'a', 'b'"),
        ({"size": 1}, "stages.s.params.size: is not a parameter of this kind"),
    ],
)
def test_parameters_that_do_not_fit_fail_for_good(params: dict[str, Any], what: str) -> None:
    found = failed(passing, assign(kind="t.kind", inputs=(ONE,), params=params))
    assert what in found.message
    assert not found.transient


def test_required_parameter_is_required() -> None:
    spec = KindSpec(name="t.needy", outputs={"value": JSON}, params={"must": Param(type="string", required=True)})
    assert "stages.s.params.must: is required" in failed(passing, assign(kind="t.needy"), spec).message


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ({}, "stages.s.out.value: t.kind gave no value"),
        ({"value": 1, "more": 2}, "stages.s.out.more: t.kind declares no such output port"),
        ({"value": object()}, "stages.s.out.value: is no json"),
        ({"value": 1, "text": 5}, "stages.s.out.text: is no text"),
        (None, "stages.s.out: is NoneType, not a mapping"),
        ([1], "stages.s.out: is list, not a mapping"),
        (Grown({"value": 1}, Patch(operations=())), "does not declare that it grows"),
    ],
)
def test_outputs_that_do_not_fit_fail_for_good(result: Any, what: str) -> None:
    found = failed(lambda call: result)
    assert what in found.message
    assert not found.transient


def test_all_faults_of_outputs_are_told() -> None:
    found = failed(lambda call: {"more": 1, "text": 2})
    assert found.message.count("stages.s.out.") == 3


def test_comparisons_are_answered_in_order() -> None:
    asked = (
        Comparison(output="value", operator=">", value=0.5, path="faces.0.score"),
        Comparison(output="value", operator=">", value=0.9, path="faces.0.score"),
        Comparison(output="text", operator="contains", value="ell"),
    )
    order = assign(kind="t.kind", inputs=(ONE,), comparisons=asked)
    result = {"value": {"faces": [{"score": np.float32(0.75)}]}, "text": "hello"}
    assert run(lambda call: result, order).holds == (True, False, True)


def test_of_an_absent_output_only_difference_holds() -> None:
    asked = (
        Comparison(output="text", operator="==", value=None),
        Comparison(output="text", operator="!=", value="x"),
    )
    assert run(passing, assign(kind="t.kind", inputs=(ONE,), comparisons=asked)).holds == (False, True)


def test_outputs_that_cannot_be_compared_fail() -> None:
    spec = KindSpec(name="t.bytes", outputs={"data": Port(PortType.BYTES)})
    order = assign(kind="t.bytes", comparisons=(Comparison(output="data", operator="==", value=""),))
    assert "only text and json" in failed(lambda call: {"data": b""}, order, spec).message


def test_unknown_kind_and_stream_kind_fail() -> None:
    class Streaming(StreamStage):
        spec = KindSpec(name="t.stream")

        async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
            yield Chunk("x", 1)

    for kind, what in (("t.nothing", "no kind 't.nothing'"), ("t.stream", "is a stream stage")):
        found = execute(Execution(assign(kind=kind), {}), Stages(Streaming()), no_models, "n")
        assert isinstance(found, ErrorInfo)
        assert what in found.message


def test_models_are_made_on_first_use_and_accounted_for() -> None:
    asked: list[str] = []

    class Counted(NoModels):
        load_seconds = 0.25
        models = ["tiny@1"]
        targets = ["cpu"]
        emulated = True

    def factory(cancel: CancelToken, target: str) -> Counted:
        asked.append(target)
        return Counted()

    def using(call: StageCall) -> Outputs:
        assert not asked
        assert call.models.cached("tiny", "words", lambda: 7) == 7
        return passing(call)

    order = assign(kind="t.kind", inputs=(ONE,), target="npu")
    found = run(using, order, models=factory)
    assert asked == ["npu"]
    # It computed on another target than it was given: the report tells where.
    assert (found.models, found.target, found.emulated) == (("tiny@1",), "cpu", True)
    assert found.load_seconds >= 0.25


def test_what_a_stage_measures_is_in_its_report() -> None:
    def measuring(call: StageCall) -> Outputs:
        call.figure("tokens", 3)
        call.figure("first_token_seconds", 0.5)
        call.figure("tokens", 4)
        return passing(call)

    assert run(measuring).figures == {"tokens": 4.0, "first_token_seconds": 0.5}
    assert run(passing).figures == {}


@pytest.mark.parametrize(
    ("figures", "what"),
    [
        (
            {"a": float("nan"), "b": 1.0, "c": "many"},
            ["figures.a: is nan, no finite", "figures.c: is 'many', no finite"],
        ),
        ({"": 1.0}, ["has a name of 0 characters"]),
        ({"\udcff": 1.0}, ["has a name that holds '\\udcff'"]),
        ({f"f{n}": 1.0 for n in range(17)}, ["17 are over FIGURES_PER_STAGE_MAX = 16"]),
    ],
)
def test_figures_that_cannot_be_told_fail_for_good(figures: dict[str, Any], what: list[str]) -> None:
    def measuring(call: StageCall) -> Outputs:
        for name, value in figures.items():
            call.figure(name, value)
        return passing(call)

    found = failed(measuring)
    assert not found.transient
    assert all(part in found.message for part in what), found.message


def test_missing_model_is_told() -> None:
    assert failed(lambda call: {"value": call.models.path("tiny", "f")}).cause == "ModelMissing"
    assert failed(lambda call: {"value": call.models.session("tiny")}).message == "model tiny is not here"


def test_failure_outside_a_stage_has_no_trace() -> None:
    assert failure(Overloaded("full"), "n") == ErrorInfo(message="full", cause="Overloaded", transient=True, node="n")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("cannot read photo-\udcff.png"), r"ValueError: cannot read photo-\udcff.png"),
        (ValueError("x" * (limits.MESSAGE_BYTES_MAX + 1)), "(cut)"),
        (InvalidInput([Problem(f"value.{n}", "is wrong") for n in range(100_000)]), "(cut)"),
        (Unspeakable(), "Unspeakable: its message cannot be had: LookupError"),
    ],
    ids=["surrogate", "large", "problems", "unspeakable"],
)
def test_whatever_a_stage_raises_fits_into_a_report(error: Exception, said: str) -> None:
    def raising(call: StageCall) -> Outputs:
        raise error

    found = failed(raising)
    assert said in found.message
    packed = wire.report_to_wire(Failed(task=task(), error=found))
    assert packed.ByteSize() < limits.SESSION_FRAME_BYTES_MAX
    assert wire.report_from_wire(packed, node=found.node) == Failed(task=task(), error=found)
