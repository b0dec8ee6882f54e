"""The stage that makes tensors, for transfer to be measured."""

import numpy as np
import pytest
from tests.agents.fakes import no_models

from starloom.agents.stage import CancelToken, StageCall
from starloom.agents.stages.tensors import MakeTensor
from starloom.dag import limits
from starloom.dag.errors import StageError


def made(size: int, **inputs: object) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    found: np.ndarray[tuple[int], np.dtype[np.uint8]] = MakeTensor().run(
        StageCall(inputs=inputs, params={"size": size}, models=no_models(CancelToken(), "cpu"))
    )["value"]
    return found.copy()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100_000])
def test_each_tensor_of_a_chain_differs_and_is_the_same_when_made_again(size: int) -> None:
    first = made(size)
    second = made(size, value=first)
    assert len(first) == len(second) == size
    assert not np.array_equal(first, second)
    assert np.array_equal(made(size), first)
    assert np.array_equal(made(size, value=first), second)
    assert np.array_equal(first[8:], second[8:])


def test_size_beyond_the_limit_fails_the_stage() -> None:
    for size in (-1, limits.VALUE_BYTES_MAX + 1):
        with pytest.raises(StageError, match="VALUE_BYTES_MAX"):
            made(size)
    assert len(made(0)) == 0
