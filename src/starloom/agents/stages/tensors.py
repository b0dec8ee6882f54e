"""A stage that makes tensors, for transfer to be measured."""

import threading
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from starloom.agents.stage import Outputs, Stage, StageCall
from starloom.dag import limits
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Port, PortType

_PAGE = 4096
_NUMBER_BYTES = 8
_PERIOD = 251
_ARRAYS_KEPT = 4
_own = threading.local()


def next_tensor(size: int, value: NDArray[Any] | None) -> NDArray[np.uint8]:
    """uint8 [size], whose first bytes are a number: that of `value` plus 1. Every page of `value` is read.

    The thread's own array, written over by its next call of this size: making it costs next to nothing, and each differs.
    """
    number = 0
    if value is not None:
        page_bytes = value.reshape(-1).view(np.uint8)
        int(page_bytes[::_PAGE].sum(dtype=np.uint64))
        number = int.from_bytes(page_bytes[:_NUMBER_BYTES].tobytes(), "little")
    arrays: dict[int, NDArray[np.uint8]] = _own.__dict__.setdefault("arrays", {})
    array = arrays.get(size)
    if array is None:
        if len(arrays) == _ARRAYS_KEPT:
            arrays.clear()
        array = arrays[size] = np.resize(np.arange(_PERIOD, dtype=np.uint8), size)
    told = min(size, _NUMBER_BYTES)
    array[:told] = np.frombuffer((number + 1).to_bytes(_NUMBER_BYTES, "little"), np.uint8)[:told]
    return array


class MakeTensor(Stage):
    """`size` elements of uint8, different from those of `value`, which is read."""

    spec: ClassVar = KindSpec(
        name="basic.make_tensor",
        about="Reads a tensor and makes another, for transfer to be measured.",
        inputs={"value": Port(PortType.TENSOR, optional=True)},
        outputs={"value": Port(PortType.TENSOR)},
        params={"size": Param(type="integer", default=1024, about="bytes")},
        cost=Cost(run_seconds=0.001),
    )

    def run(self, call: StageCall) -> Outputs:
        size = call.params["size"]
        if not 0 <= size <= limits.VALUE_BYTES_MAX:
            raise StageError(
                f"basic.make_tensor: size is {size} bytes, not from 0 to VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}"
            )
        return {"value": next_tensor(size, call.inputs.get("value"))}
