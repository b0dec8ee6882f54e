"""Stages that stand for measured tasks: what they take, give and refuse."""

import itertools
import time
from typing import Any, cast

import numpy as np
import pytest

from starloom.agents.catalog import Catalog
from starloom.agents.stage import CancelToken, Models, StageCall
from starloom.agents.stages.synthetic import Work
from starloom.dag import limits
from starloom.dag.constellation import StageSpec
from starloom.dag.errors import Cancelled, InvalidInput
from starloom.dag.expectation import expectation
from starloom.dag.ids import StageId

OUTPUTS = {"data": 300_000, "none": 0, "small": 7}


def call(cancel: CancelToken | None = None, **params: Any) -> StageCall:
    filled = {name: param.default for name, param in Work.spec.params.items()} | {"seconds": 0.0} | params
    return StageCall({}, filled, cast(Models, None), cancel=cancel or CancelToken())


def test_outputs_have_their_sizes_and_are_the_same_again() -> None:
    first = Work().run(call(outputs=OUTPUTS, work="sleep"))
    assert isinstance(first, dict)
    assert {port: len(value) for port, value in first.items()} == OUTPUTS
    assert first == Work().run(call(outputs=OUTPUTS))
    other = Work().run(call(outputs=OUTPUTS, seed=1))
    assert isinstance(other, dict)
    values = [first["data"], first["small"], other["data"], other["small"]]
    assert all(one[:7] != another[:7] for one, another in itertools.combinations(values, 2))


def test_busy_work_takes_that_much_processor_time() -> None:
    began = time.thread_time()
    Work().run(call(seconds=0.05, outputs={"data": 100_000}))
    assert time.thread_time() - began >= 0.05


def test_sleep_takes_that_long_and_hardly_any_processor_time() -> None:
    began, worked = time.monotonic(), time.thread_time()
    Work().run(call(seconds=0.3, work="sleep"))
    assert time.monotonic() - began >= 0.3
    assert time.thread_time() - worked < 0.3


@pytest.mark.parametrize("work", ["busy", "sleep"])
def test_a_cancel_ends_it(work: str) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        Work().run(call(cancel, seconds=limits.DURATION_SECONDS_MAX, work=work))


def test_memory_is_taken_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def empty(size: int, dtype: Any) -> Any:
        taken.append(np.zeros(size, dtype))
        return taken[-1]

    monkeypatch.setattr(np, "empty", empty)
    Work().run(call(memory_bytes=10_000))
    assert taken == []
    Work().run(call(memory_bytes=10_000, take_memory=True))
    assert (len(taken[0]), taken[0].sum()) == (10_000, 3)


def test_all_that_cannot_be_done_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        Work().run(call(seconds=-1, memory_bytes=-1, seed=-1, outputs={"a": 2**30 + 1, "b": "x", "c": -1}))
    assert [problem.place for problem in caught.value.problems] == [
        "params.seconds",
        "params.memory_bytes",
        "params.seed",
        "params.outputs.a",
        "params.outputs.b",
        "params.outputs.c",
    ]
    assert "VALUE_BYTES_MAX" in caught.value.problems[3].what


def test_a_planner_knows_what_it_takes_and_gives() -> None:
    params = {"seconds": 2.5, "memory_bytes": 7, "outputs": OUTPUTS, "entry_bytes": 9}
    found = expectation(
        StageSpec(id=StageId("s"), kind="synthetic.work", params=params), Catalog(points=()).kinds["synthetic.work"]
    )
    assert found == (2.5, 7, OUTPUTS, 9)
