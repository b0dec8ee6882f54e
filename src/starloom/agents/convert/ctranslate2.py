"""Reads CTranslate2's `model.bin`: a header, named arrays, and aliases of them.

The layout, all little-endian, as CTranslate2 (MIT licence) writes it in `specs/model_spec.py`:
uint32 format version, string specification name, uint32 specification revision, uint32 number of
variables; for each variable a string name, uint8 rank, uint32 per dimension, uint8 type, uint32
bytes, and the bytes; from format version 3 on a uint32 number of aliases and two strings for each.
A string is a uint16 length that counts a final zero byte, and the bytes.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starloom.dag import limits
from starloom.dag.errors import InvalidInput, Problem

FORMAT_VERSIONS = range(3, 7)

_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a `model.bin` holds: `name` and `revision` of the specification, and its arrays by name.

    An alias stands among `variables` as the same array. Scalars have shape ().
    """

    name: str
    revision: int
    variables: dict[str, NDArray[Any]]


class _Reader:
    def __init__(self, data: bytes, place: str) -> None:
        self._data = data
        self._at = 0
        self._place = place

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise InvalidInput(
                [Problem(self._place, f"ends at byte {len(self._data)}, inside a record that starts at {self._at}")],
                "a CTranslate2 model cannot be read",
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, code: str) -> int:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return int(value)

    def text(self) -> str:
        return self.take(self.number("H")).removesuffix(b"\0").decode("utf-8", "replace")

    def refuse(self, what: str) -> InvalidInput:
        return InvalidInput([Problem(self._place, what)], "a CTranslate2 model cannot be read")


def read(path: Path) -> Checkpoint:
    """The arrays of a `model.bin`. Raises InvalidInput if it is not one, is cut short, or is of an unknown version."""
    size = path.stat().st_size
    if size > limits.CHECKPOINT_BYTES_MAX:
        what = f"{size} bytes are over CHECKPOINT_BYTES_MAX = {limits.CHECKPOINT_BYTES_MAX}"
        raise InvalidInput([Problem(path.name, what)], "a CTranslate2 model cannot be read")
    reader = _Reader(path.read_bytes(), path.name)
    version = reader.number("I")
    if version not in FORMAT_VERSIONS:
        raise reader.refuse(
            f"has format version {version}; {FORMAT_VERSIONS.start} to {FORMAT_VERSIONS.stop - 1} are known"
        )
    name, revision = reader.text(), reader.number("I")
    variables = dict(_variable(reader) for _ in range(reader.number("I")))
    for _ in range(reader.number("I")):
        alias, target = reader.text(), reader.text()
        if target not in variables:
            raise reader.refuse(f"alias {alias!r} names {target!r}, which is not there")
        variables[alias] = variables[target]
    return Checkpoint(name, revision, variables)


def _variable(reader: _Reader) -> tuple[str, NDArray[Any]]:
    name = reader.text()
    shape = tuple(reader.number("I") for _ in range(reader.number("B")))
    code = reader.number("B")
    data = reader.take(reader.number("I"))
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise reader.refuse(f"variable {name!r} has type {code}; known are {sorted(_DTYPES)}")
    if prod(shape) * dtype.itemsize != len(data):
        raise reader.refuse(f"variable {name!r} of {dtype} {list(shape)} comes with {len(data)} bytes")
    return name, np.frombuffer(data, dtype=dtype).reshape(shape)
