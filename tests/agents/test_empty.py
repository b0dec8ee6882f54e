"""Outputs that a stage computes where they are read from, without a copy."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.agents.fakes import NoModels, Stages, assign, given, made, no_models

from starloom.agents import values
from starloom.agents.arena import aligned
from starloom.agents.execution import Execution, Made, execute
from starloom.agents.neighbours import Neighbour
from starloom.agents.sharedmemory import Arena, open_arena
from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.agents.stages.image import DecodeImage
from starloom.dag import limits
from starloom.dag.ids import JobId
from starloom.dag.kinds import KindSpec
from starloom.dag.values import Port, PortType

TENSOR = Port(PortType.TENSOR)
SPEC = KindSpec(
    name="t.make",
    inputs={"value": Port(PortType.TENSOR, optional=True)},
    outputs={"value": TENSOR, "other": Port(PortType.TENSOR, optional=True)},
)
SHAPE = (300, 500)
BYTES = 300 * 500 * 4
NUMBERS = np.arange(300 * 500, dtype=np.float32).reshape(SHAPE)
ARENA_BYTES = 8 * 1024 * 1024


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    found = open_arena(ARENA_BYTES, tmp_path)
    assert found is not None
    yield found
    found.close()


def run(arena: Arena | None, stage: Stage | Callable[[StageCall], Outputs], **inputs: Any) -> Made:
    stage = stage if isinstance(stage, Stage) else made(SPEC, stage)
    order = assign(kind=stage.spec.name, inputs=tuple(inputs.values()))
    found = execute(Execution(order, {}, room=arena), Stages(stage), no_models, "node-1")
    assert isinstance(found, Made), found
    return found


def filled(call: StageCall, dtype: Any = np.float32) -> NDArray[Any]:
    array = call.empty(SHAPE, dtype)
    array[:] = NUMBERS
    return array


def test_output_is_read_where_it_was_computed(arena: Arena, tmp_path: Path) -> None:
    computed: list[NDArray[Any]] = []

    def make(call: StageCall) -> Outputs:
        computed.append(filled(call))
        return {"value": computed[0]}

    found = run(arena, make)
    assert np.shares_memory(np.frombuffer(found.data["value"], np.uint8), computed[0])
    assert arena.used_bytes == aligned(BYTES)
    ref = found.outputs["value"]
    assert (ref.digest, ref.meta) == (values.digest(NUMBERS.tobytes()), {"dtype": "float32", "shape": list(SHAPE)})
    arena.add(JobId("j"), ref.digest, found.data["value"])
    read = Neighbour(arena.name, arena.nonce, tmp_path).read(JobId("j"), ref.digest, BYTES)
    assert read is not None
    np.testing.assert_array_equal(values.decode(PortType.TENSOR, read, ref.meta), NUMBERS)
    with pytest.raises(ValueError, match="read-only"):
        computed[0][0, 0] = 1


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[1:],
        lambda array: array[:, ::-1],
        lambda array: array.T,
        lambda array: np.broadcast_to(array[0], SHAPE),
        lambda array: array + 1,
        lambda array: array.astype(">f4"),
    ],
    ids=["part", "backwards", "turned", "repeated", "computed-from", "other-order"],
)
def test_what_is_not_all_of_it_is_copied(arena: Arena, part: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    found = run(arena, lambda call: {"value": part(filled(call))})
    ref = found.outputs["value"]
    np.testing.assert_array_equal(values.decode(PortType.TENSOR, found.data["value"], ref.meta), part(NUMBERS))
    gc.collect()
    assert arena.used_bytes == aligned(ref.bytes)


def test_other_shape_and_type_of_the_same_bytes_is_no_copy(arena: Arena) -> None:
    found = run(arena, lambda call: {"value": filled(call).reshape(-1).view(np.int32)})
    assert found.outputs["value"].meta == {"dtype": "int32", "shape": [BYTES // 4]}
    assert found.data["value"] == NUMBERS.tobytes()
    assert arena.used_bytes == aligned(BYTES)


def test_one_array_may_be_two_outputs(arena: Arena) -> None:
    def make(call: StageCall) -> Outputs:
        array = filled(call)
        return {"value": array, "other": array}

    found = run(arena, make)
    assert found.outputs["value"].digest == found.outputs["other"].digest
    assert arena.used_bytes == aligned(BYTES)


def test_what_is_not_returned_is_given_back(arena: Arena) -> None:
    found = run(arena, lambda call: {"value": np.float32(filled(call)[0, 1])})
    gc.collect()
    assert (found.data["value"], arena.used_bytes) == (NUMBERS[0, 1].tobytes(), 0)


def test_memory_is_kept_as_long_as_an_array_made_of_it(arena: Arena) -> None:
    kept: list[NDArray[Any]] = []

    def make(call: StageCall) -> Outputs:
        kept.append(filled(call)[7:9])
        return {"value": np.zeros(1)}

    run(arena, make)
    gc.collect()
    assert arena.used_bytes == aligned(BYTES)
    others = [values.empty_in(arena)(SHAPE, np.float32) for _ in range(3)]
    for each in others:
        each[:] = -1
    np.testing.assert_array_equal(kept[0], NUMBERS[7:9])
    kept.clear()
    del others, each
    gc.collect()
    assert arena.used_bytes == 0


@pytest.mark.parametrize("shape", [3, (3,), (0, 5), (), (limits.AGENT_ARENA_VALUE_BYTES_MIN - 1,), (ARENA_BYTES,)])
def test_what_is_small_or_does_not_fit_is_on_the_heap(arena: Arena, shape: Any) -> None:
    found = values.empty_in(arena)(shape, np.uint8)
    assert (found.shape, found.dtype) == (np.empty(shape, np.uint8).shape, np.dtype(np.uint8))
    assert found.flags.writeable
    assert arena.used_bytes == 0


def test_without_an_arena_everything_is_on_the_heap() -> None:
    found = run(None, lambda call: {"value": filled(call)})
    assert found.data["value"] == NUMBERS.tobytes()


def test_stage_outside_an_agent_has_arrays_as_well() -> None:
    assert StageCall({}, {}, NoModels()).empty((2, 3), np.uint8).shape == (2, 3)


def test_another_agents_memory_is_copied(arena: Arena, tmp_path: Path) -> None:
    """What an agent passes on of another's memory it has for itself: the other's may go any time."""
    other = open_arena(ARENA_BYTES, tmp_path)
    assert other is not None
    theirs = values.empty_in(other)(SHAPE, np.float32)
    theirs[:] = NUMBERS
    found = run(arena, lambda call: {"value": theirs})
    assert arena.used_bytes == aligned(BYTES)
    assert not np.shares_memory(np.frombuffer(found.data["value"], np.uint8), theirs)
    assert theirs.flags.writeable
    other.close()


def test_pictures_that_are_scaled_down_are_written_where_they_are_read(arena: Arena) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    there, file = cv2.imencode(".png", picture)
    assert there
    found = run(arena, DecodeImage(), data=given("data", PortType.BYTES, file.tobytes()))
    unscaled = arena.used_bytes
    assert unscaled == aligned(picture.nbytes)
    assert found.data["image"] == picture[:, :, ::-1].tobytes()
    copied: list[int] = []
    copyto = np.copyto

    def copying(*arrays: Any) -> None:
        copied.append(1)
        copyto(*arrays)

    order = assign(
        kind="image.decode", params={"max_side": 400}, inputs=(given("data", PortType.BYTES, file.tobytes()),)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "copyto", copying)
        scaled = execute(Execution(order, {}, room=arena), Stages(DecodeImage()), no_models, "node-1")
    assert isinstance(scaled, Made)
    assert copied == []
    assert arena.used_bytes == unscaled + aligned(300 * 400 * 3)
    wanted = cv2.resize(picture[:, :, ::-1], (400, 300), interpolation=cv2.INTER_AREA)
    assert scaled.data["image"] == wanted.tobytes()
