"""The Python object and the bytes of each port type, and digests. The only codec for values.

| type   | Python                                             | bytes                                   | meta |
|--------|----------------------------------------------------|-----------------------------------------|------|
| TENSOR | numpy.ndarray of bool, int, uint, float or complex | little-endian, C order                  | dtype, shape |
| TEXT   | str                                                | UTF-8                                   | |
| BYTES  | bytes                                              | themselves                              | |
| IMAGE  | numpy.ndarray uint8 [height, width, 3], RGB        | C order                                 | shape |
| AUDIO  | Audio: float32 [samples], mono, in [-1, 1]         | little-endian float32                   | sample_rate_hz |
| JSON   | what JSON can say                                  | UTF-8, keys sorted                      | |
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput, Problem
from starloom.dag.values import PortType, ValueRef

_DTYPES = frozenset("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split())


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Mono sound: float32 samples in [-1, 1], shape [samples]."""

    samples: NDArray[np.float32]
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate_hz


def digest(data: bytes | memoryview) -> str:
    """BLAKE3 of the bytes, in hex."""
    return blake3(data).hexdigest()


def encode(port_type: PortType, value: Any, place: str = "value") -> tuple[bytes, dict[str, Any]]:
    """The bytes and meta of a Python value. Raises InvalidInput, naming `place`, if it is not of the type."""
    try:
        return _ENCODERS[port_type](value)
    except (TypeError, ValueError) as error:
        raise InvalidInput([Problem(place, f"is no {port_type}: {error}")], "a value has the wrong type") from error


def decode(port_type: PortType, data: bytes, meta: dict[str, Any], place: str = "value") -> Any:
    """The Python value of bytes made by `encode`; arrays are read-only views. Raises InvalidInput."""
    try:
        return _DECODERS[port_type](data, meta)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidInput([Problem(place, f"is no readable {port_type}: {error!r}")], "a value cannot be read") from error


def refer(port_type: PortType, data: bytes, meta: dict[str, Any], holder: str) -> ValueRef:
    """A reference to bytes; small ones ride along inline."""
    inline = data if len(data) <= limits.INLINE_VALUE_BYTES_MAX else None
    return ValueRef(type=port_type, bytes=len(data), digest=digest(data), meta=meta, inline=inline, holder=holder)


def verify(ref: ValueRef, data: bytes) -> bytes:
    """`data`, if it is what `ref` names; raises DigestMismatch otherwise."""
    found = digest(data)
    if len(data) != ref.bytes or found != ref.digest:
        raise DigestMismatch(
            f"value {ref.digest[:12]} of {ref.bytes} bytes arrived as {found[:12]} of {len(data)} bytes; fetch it again"
        )
    return data


def _encode_tensor(value: Any) -> tuple[bytes, dict[str, Any]]:
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"dtype {array.dtype} cannot travel; use one of {', '.join(sorted(_DTYPES))}")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.tobytes(), {"dtype": array.dtype.name, "shape": list(array.shape)}


def _decode_tensor(data: bytes, meta: dict[str, Any]) -> NDArray[Any]:
    if meta["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {meta['dtype']!r} is not allowed")
    shape = _checked_shape(meta["shape"])
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    if prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"shape {shape} of {dtype.name} needs {prod(shape) * dtype.itemsize} bytes, not {len(data)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if len(shape) > limits.TENSOR_DIMENSIONS_MAX or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"shape {shape!r} is not at most {limits.TENSOR_DIMENSIONS_MAX} sizes >= 0")
    return tuple(shape)


def _encode_text(value: Any) -> tuple[bytes, dict[str, Any]]:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of str")
    return value.encode(), {}


def _encode_bytes(value: Any) -> tuple[bytes, dict[str, Any]]:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{type(value).__name__} instead of bytes")
    return bytes(value), {}


def _encode_image(value: Any) -> tuple[bytes, dict[str, Any]]:
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise TypeError(f"array of {array.dtype} {array.shape} instead of uint8 [height, width, 3]")
    if array.shape[0] * array.shape[1] > limits.IMAGE_PIXELS_MAX:
        raise ValueError(f"{array.shape[0]} x {array.shape[1]} pixels are over IMAGE_PIXELS_MAX = {limits.IMAGE_PIXELS_MAX}")
    return np.ascontiguousarray(array).tobytes(), {"shape": list(array.shape)}


def _decode_image(data: bytes, meta: dict[str, Any]) -> NDArray[np.uint8]:
    shape = _checked_shape(meta["shape"])
    if len(shape) != 3 or shape[2] != 3 or prod(shape) != len(data):
        raise ValueError(f"shape {shape} does not fit {len(data)} bytes")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _encode_audio(value: Any) -> tuple[bytes, dict[str, Any]]:
    if not isinstance(value, Audio):
        raise TypeError(f"{type(value).__name__} instead of Audio")
    if value.samples.ndim != 1 or value.sample_rate_hz <= 0:
        raise ValueError("samples are not one-dimensional, or sample_rate_hz is not above 0")
    return value.samples.astype("<f4").tobytes(), {"sample_rate_hz": int(value.sample_rate_hz)}


def _decode_audio(data: bytes, meta: dict[str, Any]) -> Audio:
    rate = meta["sample_rate_hz"]
    if not isinstance(rate, int) or rate <= 0:
        raise ValueError(f"sample_rate_hz {rate!r} is not above 0")
    return Audio(np.frombuffer(data, dtype="<f4"), rate)


def _encode_json(value: Any) -> tuple[bytes, dict[str, Any]]:
    return msgspec.json.encode(value, order="sorted", enc_hook=_plain), {}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


_ENCODERS = {
    PortType.TENSOR: _encode_tensor,
    PortType.TEXT: _encode_text,
    PortType.BYTES: _encode_bytes,
    PortType.IMAGE: _encode_image,
    PortType.AUDIO: _encode_audio,
    PortType.JSON: _encode_json,
}
_DECODERS = {
    PortType.TENSOR: _decode_tensor,
    PortType.TEXT: lambda data, _: data.decode(),
    PortType.BYTES: lambda data, _: data,
    PortType.IMAGE: _decode_image,
    PortType.AUDIO: _decode_audio,
    PortType.JSON: lambda data, _: msgspec.json.decode(data),
}
