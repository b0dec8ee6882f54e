"""What stages are expected to take and give, by their kinds and parameters."""

from typing import Any

import pytest

from starloom.dag.constellation import StageSpec
from starloom.dag.expectation import Expectation, expectation, run_seconds
from starloom.dag.ids import StageId
from starloom.dag.kinds import Cost, CostParams, KindSpec, Param
from starloom.dag.values import Port, PortType

BYTES = Port(PortType.BYTES)
WORK = KindSpec(
    name="t.work",
    outputs={"log": BYTES},
    variadic_output=BYTES,
    params={
        "seconds": Param(type="number", default=3.0),
        "memory": Param(type="integer"),
        "outputs": Param(type="object", default={"data": 5}),
        "read": Param(type="integer", default=0),
    },
    cost=Cost(
        run_seconds=7.0,
        memory_bytes=100,
        params=CostParams(run_seconds="seconds", memory_bytes="memory", output_bytes="outputs", entry_bytes="read"),
    ),
)
EACH = KindSpec(
    name="t.each",
    outputs={"a": BYTES, "b": BYTES},
    params={"size": Param(type="integer", default=8)},
    cost=Cost(params=CostParams(output_bytes="size")),
)


def stage(**params: Any) -> StageSpec:
    return StageSpec(id=StageId("s"), kind="t", params=params)


def test_parameters_know_better_than_the_kind() -> None:
    given = stage(seconds=2, memory=30, outputs={"data": 10, "log": 1}, read=4)
    assert expectation(given, WORK) == Expectation(2, 30, {"data": 10, "log": 1}, 4)
    assert run_seconds(given, WORK) == 2


def test_what_no_parameter_tells_is_the_default_and_then_the_hint() -> None:
    found = expectation(stage(), WORK)
    assert (found.run_seconds, found.memory_bytes, found.entry_bytes) == (3.0, 100, 0)
    assert found.output_bytes == {}, "the default names a port that a stage has only if it is given"
    assert expectation(stage(), EACH) == Expectation(0.01, 0, {"a": 8, "b": 8})
    assert expectation(stage(size=3), EACH).output_bytes == {"a": 3, "b": 3}


@pytest.mark.parametrize("wrong", [-1, "2", None, True, float("nan"), float("inf"), [1]])
def test_what_is_no_amount_tells_nothing(wrong: Any) -> None:
    found = expectation(stage(seconds=wrong, memory=wrong, outputs={"data": wrong, "more": 2}, read=wrong), WORK)
    assert found == Expectation(7.0, 100, {"more": 2}, 0)
    assert expectation(stage(outputs=wrong), WORK).output_bytes in ({}, {"log": 1})


def test_more_bytes_than_there_can_be_tell_nothing() -> None:
    given = stage(memory=1e300, outputs={"data": 1 << 63, "more": (1 << 63) - 1}, read=1 << 70)
    assert expectation(given, WORK) == Expectation(3.0, 100, {"more": (1 << 63) - 1}, 0)


def test_an_unknown_kind_is_taken_for_one_without_a_hint() -> None:
    assert expectation(stage(seconds=9), None) == Expectation(0.01, 0, {})
