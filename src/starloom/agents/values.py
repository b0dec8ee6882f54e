"""The Python object and the bytes of each port type, and digests. The only codec for values.

| type   | Python                                             | bytes                                   | meta |
|--------|----------------------------------------------------|-----------------------------------------|------|
| TENSOR | numpy.ndarray of bool, int, uint, float or complex | little-endian, C order                  | dtype, shape |
| TEXT   | str                                                | UTF-8                                   | |
| BYTES  | bytes                                              | themselves                              | |
| IMAGE  | numpy.ndarray uint8 [height, width, 3], RGB        | C order                                 | shape |
| AUDIO  | Audio: float32 [samples], mono, in [-1, 1]         | little-endian float32                   | sample_rate_hz |
| JSON   | None, bool, int, float, str, list, dict with str   | UTF-8, keys sorted                      | |

JSON takes numpy's numbers and arrays for its own. What it has not, as a tuple, a set, bytes or a time, is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import DTypeLike, NDArray

from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Problem
from starloom.dag.values import PortType, ValueRef

Data = bytes | memoryview
"""The bytes of a value: on the heap, or a read-only view of shared memory."""

#: what a WAV file has room for
_RATE_END = 1 << 32

AnyData = TypeVar("AnyData", bytes, memoryview, bytes | memoryview)
_Form = bytes | NDArray[Any]

_DTYPES = frozenset(
    [
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Mono sound: float32 samples in [-1, 1], shape [samples]."""

    samples: NDArray[np.float32]
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate_hz


class Room(Protocol):
    """Where large values are written to, such as `sharedmemory.Arena`; it may have no room."""

    def room(self, size: int) -> NDArray[np.uint8] | None: ...

    def whole(self, array: NDArray[Any]) -> memoryview | None:
        """The bytes of `array`, read-only, if it is all of what `room` gave once, and so is where it would be copied to."""
        ...

    def has(self, data: Data) -> bool:
        """Whether the bytes lie there."""
        ...


def digest(data: bytes | memoryview) -> str:
    """BLAKE3 of the bytes, in hex."""
    # More threads than one wait for each other where the machine is busy, longer than a smaller value takes to hash.
    threads = blake3.AUTO if len(data) >= limits.HASH_THREADS_BYTES_MIN else 1
    return blake3(data, max_threads=threads).hexdigest()


def encode(port_type: PortType, value: Any, place: str = "value") -> tuple[bytes, dict[str, Any]]:
    """The bytes and meta of a Python value.

    Raises InvalidInput, naming `place`, if it is not of the type or its bytes are over VALUE_BYTES_MAX.
    """
    found, meta = _form(port_type, value, place)
    return found if isinstance(found, bytes) else found.tobytes(), meta


def encode_into(room: Room | None, port_type: PortType, value: Any, place: str) -> tuple[Data, dict[str, Any]]:
    """As `encode`; a value of AGENT_ARENA_VALUE_BYTES_MIN or more is written to `room` by one copy, if it has room.

    One that is there already, by `empty_in`, is not copied.
    """
    found, meta = _form(port_type, value, place)
    size = len(found) if isinstance(found, bytes) else found.nbytes
    if room is None or size < limits.AGENT_ARENA_VALUE_BYTES_MIN:
        return found if isinstance(found, bytes) else found.tobytes(), meta
    array = np.frombuffer(found, np.uint8) if isinstance(found, bytes) else found
    if (there := room.whole(array)) is not None:
        return there, meta
    target = room.room(size)
    if target is None:
        return found if isinstance(found, bytes) else found.tobytes(), meta
    np.copyto(target.view(np.ndarray).view(array.dtype).reshape(array.shape), array)
    target.flags.writeable = False
    return target.data, meta


def empty_in(room: Room | None) -> Callable[..., NDArray[Any]]:
    """As `numpy.empty`; arrays of AGENT_ARENA_VALUE_BYTES_MIN or more lie in `room`, if it has room."""
    # No function of its own in here: what it is annotated with would be made anew for each attempt.
    return partial(_empty, room)


def _empty(room: Room | None, shape: int | Sequence[int], dtype: DTypeLike = np.float64) -> NDArray[Any]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    found = np.dtype(dtype)
    size = prod(sizes) * found.itemsize
    fits = limits.AGENT_ARENA_VALUE_BYTES_MIN <= size <= limits.VALUE_BYTES_MAX and not found.hasobject
    block = room.room(size) if room is not None and fits else None
    # By its buffer, and no view: an array's base would be the whole room, and nothing would keep the block.
    return np.empty(sizes, found) if block is None else np.frombuffer(block.data, found).reshape(sizes)


def decode(port_type: PortType, data: Data, meta: dict[str, Any], place: str = "value") -> Any:
    """The Python value of bytes made by `encode`; arrays are read-only views. Raises InvalidInput."""
    try:
        return _DECODERS[port_type](data, meta)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise InvalidInput(
            [Problem(place, f"is no readable {port_type}: {error!r}")], "a value cannot be read"
        ) from error


def refer(port_type: PortType, data: Data, meta: dict[str, Any], holder: str, name: str = "") -> ValueRef:
    """A reference to bytes; small ones ride along inline. `name` stands for the digest of those that are hashed later."""
    inline = bytes(data) if len(data) <= limits.INLINE_VALUE_BYTES_MAX else None
    found = name or digest(data)
    return ValueRef(type=port_type, bytes=len(data), digest=found, meta=meta, inline=inline, holder=holder)


def verify(ref: ValueRef, data: AnyData) -> AnyData:
    """`data`, if it is what `ref` names; raises DigestMismatch otherwise."""
    check(ref, len(data), digest(data))
    return data


def check(ref: ValueRef, size: int, found: str) -> None:
    """Raises DigestMismatch where `size` bytes of digest `found` are not what `ref` names."""
    if size != ref.bytes or found != ref.digest:
        raise DigestMismatch(
            f"value {ref.digest[:12]} of {ref.bytes} bytes arrived as {found[:12]} of {size} bytes; fetch it again"
        )


def _form(port_type: PortType, value: Any, place: str) -> tuple[_Form, dict[str, Any]]:
    """What is to be written of a value, not copied yet, and its meta."""
    try:
        found, meta = _ENCODERS[port_type](value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput([Problem(place, f"is no {port_type}: {error}")], "a value has the wrong type") from error
    size = len(found) if isinstance(found, bytes) else found.nbytes
    if size > limits.VALUE_BYTES_MAX:
        what = f"has {size} bytes, over VALUE_BYTES_MAX = {limits.VALUE_BYTES_MAX}; pass it on in parts"
        raise InvalidInput([Problem(place, what)], "a value is too large")
    return found, meta


def _encode_tensor(value: Any) -> tuple[_Form, dict[str, Any]]:
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"dtype {array.dtype} cannot travel; use one of {', '.join(sorted(_DTYPES))}")
    _checked_shape(array.shape)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little, {"dtype": array.dtype.name, "shape": list(array.shape)}


def _decode_tensor(data: Data, meta: dict[str, Any]) -> NDArray[Any]:
    if meta["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {meta['dtype']!r} is not allowed")
    shape = _checked_shape(meta["shape"])
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    if prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"shape {shape} of {dtype.name} needs {prod(shape) * dtype.itemsize} bytes, not {len(data)}")
    if dtype.kind == "b" and bytes(data).translate(None, b"\0\1"):
        raise ValueError("a byte of a bool tensor is neither 0 nor 1")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if len(shape) > limits.TENSOR_DIMENSIONS_MAX or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"shape {shape!r} is not at most {limits.TENSOR_DIMENSIONS_MAX} sizes >= 0")
    return tuple(shape)


def _encode_text(value: Any) -> tuple[_Form, dict[str, Any]]:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of str")
    return value.encode(), {}


def _encode_bytes(value: Any) -> tuple[_Form, dict[str, Any]]:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{type(value).__name__} instead of bytes")
    return bytes(value), {}


def _encode_image(value: Any) -> tuple[_Form, dict[str, Any]]:
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise TypeError(f"array of {array.dtype} {array.shape} instead of uint8 [height, width, 3]")
    _check_pixels(array.shape)
    return array, {"shape": list(array.shape)}


def _decode_image(data: Data, meta: dict[str, Any]) -> NDArray[np.uint8]:
    shape = _checked_shape(meta["shape"])
    if len(shape) != 3 or shape[2] != 3 or prod(shape) != len(data):
        raise ValueError(f"shape {shape} does not fit {len(data)} bytes")
    _check_pixels(shape)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _check_pixels(shape: tuple[int, ...]) -> None:
    if shape[0] * shape[1] > limits.IMAGE_PIXELS_MAX:
        raise ValueError(f"{shape[1]} x {shape[0]} pixels are over IMAGE_PIXELS_MAX = {limits.IMAGE_PIXELS_MAX}")


def _encode_audio(value: Any) -> tuple[_Form, dict[str, Any]]:
    if not isinstance(value, Audio):
        raise TypeError(f"{type(value).__name__} instead of Audio")
    samples = np.asarray(value.samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"samples are {samples.dtype} {samples.shape} instead of float32 [samples]")
    return samples.astype("<f4", copy=False), {"sample_rate_hz": _checked_rate(value.sample_rate_hz)}


def _decode_audio(data: Data, meta: dict[str, Any]) -> Audio:
    rate = _checked_rate(meta["sample_rate_hz"])
    return Audio(np.frombuffer(data, dtype="<f4"), rate)


def _checked_rate(rate: Any) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 0 < rate < _RATE_END:
        raise ValueError(f"sample_rate_hz {rate!r} is no integer above 0 and below 2**32")
    return int(rate)


def _encode_json(value: Any) -> tuple[_Form, dict[str, Any]]:
    try:
        data = msgspec.json.encode(value, order="sorted", enc_hook=_plain)
    except TypeError as error:
        raise TypeError(_json_fault(value) or str(error)) from error
    # What JSON has not is written as something else, which no consumer could tell from what was meant.
    if not _comes_back(data, value) and (fault := _json_fault(value)):
        raise ValueError(fault)
    return data, {}


def _comes_back(data: bytes, value: Any) -> bool:
    """Whether a reader gets what was written: much faster than looking at each part of it."""
    try:
        return bool(msgspec.json.decode(data) == value)
    # What an array makes of a comparison with a list has no truth, or no meaning.
    except (ValueError, TypeError):
        return False


def _json_fault(value: Any, place: str = "") -> str:
    """What is wrong with the first part that JSON has no form for, and its place; empty if there is none."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int):
        return ""
    if isinstance(value, float):
        return "" if isfinite(value) else f"{place or 'it'} is infinite or not a number"
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return (
            f"{place or 'it'} is a {type(value).__name__}, which JSON has not; give a text, a number, a list or a dict"
        )
    faults = (_json_fault(item, f"{place}.{key}" if place else str(key)) for key, item in items)
    return next(filter(None, faults), "")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


_ENCODERS: Mapping[PortType, Callable[[Any], tuple[_Form, dict[str, Any]]]] = {
    PortType.TENSOR: _encode_tensor,
    PortType.TEXT: _encode_text,
    PortType.BYTES: _encode_bytes,
    PortType.IMAGE: _encode_image,
    PortType.AUDIO: _encode_audio,
    PortType.JSON: _encode_json,
}
_DECODERS: Mapping[PortType, Callable[[Data, dict[str, Any]], Any]] = {
    PortType.TENSOR: _decode_tensor,
    PortType.TEXT: lambda data, _: str(data, "utf-8"),
    PortType.BYTES: lambda data, _: bytes(data),
    PortType.IMAGE: _decode_image,
    PortType.AUDIO: _decode_audio,
    PortType.JSON: lambda data, _: msgspec.json.decode(data),
}
