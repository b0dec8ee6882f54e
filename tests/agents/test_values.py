"""The codec of values: what goes in comes out, and what is malformed is named."""

import math
import pickle
from collections import OrderedDict
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from starloom.agents.values import Audio, decode, digest, encode, refer, verify
from starloom.dag import limits
from starloom.dag.errors import DigestMismatch, InvalidInput
from starloom.dag.values import PortType, ValueRef

DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64", "complex64", "complex128")
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)

tensors = st.sampled_from(DTYPES).flatmap(lambda name: arrays.arrays(np.dtype(name), SHAPES))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
documents = st.recursive(scalars | texts, lambda each: st.lists(each) | st.dictionaries(texts, each), max_leaves=20)


def again(port_type: PortType, value: Any) -> Any:
    data, meta = encode(port_type, value)
    # A reference's meta travels as JSON.
    assert decode(PortType.JSON, *encode(PortType.JSON, meta)) == meta
    return decode(port_type, data, meta)


@given(tensors)
def test_tensors_come_back(tensor: NDArray[Any]) -> None:
    found = again(PortType.TENSOR, tensor)
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    assert found.tobytes() == np.ascontiguousarray(tensor).tobytes()
    assert not found.flags.writeable


@given(tensors)
def test_layout_and_byte_order_do_not_change_a_tensors_bytes(tensor: NDArray[Any]) -> None:
    big = np.array(tensor, tensor.dtype.newbyteorder(">"), order="F")
    assert encode(PortType.TENSOR, big) == encode(PortType.TENSOR, tensor)


@given(texts)
def test_texts_come_back(text: str) -> None:
    assert again(PortType.TEXT, text) == text


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    for form in (data, bytearray(data), memoryview(data)):
        assert again(PortType.BYTES, form) == data


@given(arrays.arrays(np.uint8, st.tuples(st.integers(0, 6), st.integers(0, 6), st.just(3))))
def test_images_come_back(image: NDArray[np.uint8]) -> None:
    found = again(PortType.IMAGE, image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, image)
    assert found.shape == image.shape


def test_a_mirrored_image_keeps_its_pixels() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::-1]
    assert np.array_equal(again(PortType.IMAGE, image), image)


@given(arrays.arrays(np.float32, st.integers(0, 50)), st.integers(1, 2**31))
def test_audio_comes_back(samples: NDArray[np.float32], rate: int) -> None:
    found = again(PortType.AUDIO, Audio(samples, rate))
    assert isinstance(found, Audio)
    assert found.samples.dtype == np.float32
    assert found.samples.tobytes() == samples.tobytes()
    assert found.sample_rate_hz == rate
    assert found.seconds == len(samples) / rate


def test_audio_of_doubles_becomes_float32() -> None:
    found = again(PortType.AUDIO, Audio(np.array([0.5, -0.25]), np.int64(8000)))  # type: ignore[arg-type]
    assert found.samples.tolist() == [0.5, -0.25]
    assert type(found.sample_rate_hz) is int


@given(documents)
def test_json_comes_back_whatever_its_keys_order(document: Any) -> None:
    assert again(PortType.JSON, document) == document
    if isinstance(document, dict):
        backwards = dict(reversed(document.items()))
        assert encode(PortType.JSON, backwards) == encode(PortType.JSON, document)


def test_numbers_and_arrays_of_numpy_are_json_as_well() -> None:
    value = {
        "score": np.float32(0.5),
        "count": np.int64(3),
        "box": np.array([1, 2]),
        "yes": np.True_,
        "one": np.array([7]),
    }
    assert again(PortType.JSON, value) == {"score": 0.5, "count": 3, "box": [1, 2], "yes": True, "one": [7]}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (math.nan, "it"),
        (math.inf, "it"),
        ({"faces": [{"score": 1.0}, {"score": -math.inf}]}, "faces.1.score"),
        ({"a": None, "b": [1.0, np.float32("nan")]}, "b.1"),
        ({"m": np.array([[1.0], [np.nan]])}, "m.1.0"),
    ],
)
def test_json_refuses_what_it_would_write_as_null(value: Any, place: str) -> None:
    with pytest.raises(InvalidInput, match=f"{place} is infinite or not a number"):
        encode(PortType.JSON, value)


@pytest.mark.parametrize(
    "value",
    [
        *((), (1, 2), b"", b"abc", bytearray(b"abc"), memoryview(b"abc"), set(), {1, 2}, frozenset({"a"})),
        *(
            datetime(2025, 1, 1),
            date(2025, 1, 1),
            time(1),
            timedelta(1),
            Decimal(1),
            UUID(int=1),
            Audio(np.zeros(1, np.float32), 1),
        ),
    ],
)
@pytest.mark.parametrize("beside", [0.5, np.float32(0.5), np.array([1, 2])])
def test_json_refuses_what_it_would_write_as_something_else(value: Any, beside: Any) -> None:
    name = type(value).__name__
    for whole, place in ((value, "it"), ({"beside": beside, "faces": [{}, {"box": value}]}, "faces.1.box")):
        with pytest.raises(InvalidInput, match=rf"stages\.s\.out\.v: is no json: {place} is a {name}, which JSON has"):
            encode(PortType.JSON, whole, "stages.s.out.v")


def test_json_takes_large_numbers_texts_and_dicts_of_other_classes() -> None:
    value = {"n": 2**63, "kind": PortType.JSON, "m": OrderedDict(a=[True, None])}
    assert again(PortType.JSON, value) == {"n": 2**63, "kind": "json", "m": {"a": [True, None]}}


def test_a_null_and_the_word_are_left_alone() -> None:
    assert again(PortType.JSON, {"a": None, "b": "null", "c": 1.5}) == {"a": None, "b": "null", "c": 1.5}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("port_type", "value"),
    [
        (PortType.TENSOR, np.array(["a"])),
        (PortType.TENSOR, np.array([object()])),
        (PortType.TENSOR, np.zeros(2, "datetime64[s]")),
        (PortType.TENSOR, np.zeros(2, [("a", "f4")])),
        (PortType.TENSOR, [[1], [1, 2]]),
        (PortType.TENSOR, np.zeros((1,) * (limits.TENSOR_DIMENSIONS_MAX + 1))),
        (PortType.TEXT, b"bytes"),
        (PortType.TEXT, "\ud800"),
        (PortType.BYTES, "text"),
        (PortType.BYTES, None),
        (PortType.IMAGE, np.zeros((4, 4), np.uint8)),
        (PortType.IMAGE, np.zeros((4, 4, 4), np.uint8)),
        (PortType.IMAGE, np.zeros((4, 4, 3), np.float32)),
        (PortType.IMAGE, "photo.jpg"),
        (PortType.AUDIO, np.zeros(4, np.float32)),
        (PortType.AUDIO, Audio(np.zeros((2, 2), np.float32), 8000)),
        (PortType.AUDIO, Audio(np.zeros(4, np.int16), 8000)),
        (PortType.AUDIO, Audio(np.zeros(4, np.float32), 0)),
        # More than a report can say.
        (PortType.AUDIO, Audio(np.zeros(4, np.float32), 1 << 64)),
        (PortType.AUDIO, Audio(np.zeros(4, np.float32), 1.5)),  # type: ignore[arg-type]
        (PortType.AUDIO, Audio(np.zeros(4, np.float32), True)),
        (PortType.JSON, object()),
        (PortType.JSON, {1: 2}),
        (PortType.JSON, {"a": np.zeros(1, complex)}),
        (PortType.JSON, nested(100_000)),
    ],
)
def test_values_of_another_type_are_refused(port_type: PortType, value: Any) -> None:
    with pytest.raises(InvalidInput) as raised:
        encode(port_type, value, "stages.a.out.b")
    (problem,) = raised.value.problems
    assert problem.place == "stages.a.out.b"
    assert problem.what.startswith(f"is no {port_type}: ")


@pytest.mark.parametrize(
    ("port_type", "data", "meta"),
    [
        (PortType.TENSOR, b"", {}),
        (PortType.TENSOR, b"", None),
        (PortType.TENSOR, b"1234", {"dtype": "float32"}),
        (PortType.TENSOR, b"1234", {"shape": [1]}),
        (PortType.TENSOR, b"1234", {"dtype": "object", "shape": [1]}),
        (PortType.TENSOR, b"1234", {"dtype": ["float32"], "shape": [1]}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": 1}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": [2]}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": [-1]}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": [1.0]}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": [True]}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": "1"}),
        (PortType.TENSOR, b"1234", {"dtype": "float32", "shape": [1] * (limits.TENSOR_DIMENSIONS_MAX + 1)}),
        (PortType.TENSOR, b"", {"dtype": "float32", "shape": [2**40, 2**40, 0]}),
        (PortType.TENSOR, b"\2", {"dtype": "bool", "shape": [1]}),
        (PortType.TEXT, b"\xff", {}),
        (PortType.IMAGE, b"123", {}),
        (PortType.IMAGE, b"123", {"shape": [3]}),
        (PortType.IMAGE, b"123", {"shape": [1, 3, 1]}),
        (PortType.IMAGE, b"1234", {"shape": [1, 1, 3]}),
        (PortType.IMAGE, b"", {"shape": [0, limits.IMAGE_PIXELS_MAX**2, -3]}),
        (PortType.AUDIO, b"1234", {}),
        (PortType.AUDIO, b"123", {"sample_rate_hz": 8000}),
        (PortType.AUDIO, b"1234", {"sample_rate_hz": 0}),
        (PortType.AUDIO, b"1234", {"sample_rate_hz": 1 << 64}),
        (PortType.AUDIO, b"1234", {"sample_rate_hz": "8000"}),
        (PortType.AUDIO, b"1234", {"sample_rate_hz": True}),
        (PortType.JSON, b"", {}),
        (PortType.JSON, b"{", {}),
        (PortType.JSON, b"\xff", {}),
        (PortType.JSON, pickle.dumps({"a": 1}), {}),
        (PortType.JSON, b"[" * 100_000 + b"]" * 100_000, {}),
    ],
)
def test_bytes_that_cannot_be_read_are_refused(port_type: PortType, data: bytes, meta: Any) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode(port_type, data, meta, "stages.a.in.b")
    (problem,) = raised.value.problems
    assert problem.place == "stages.a.in.b"
    assert problem.what.startswith(f"is no readable {port_type}: ")


@given(st.sampled_from(PortType), st.binary(max_size=64), st.dictionaries(texts, documents, max_size=3))
def test_no_bytes_and_no_meta_raise_anything_else(port_type: PortType, data: bytes, meta: dict[str, Any]) -> None:
    try:
        decode(port_type, data, meta)
    except InvalidInput:
        return


def test_limits_are_checked_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    data, meta = encode(PortType.IMAGE, image)
    monkeypatch.setattr(limits, "IMAGE_PIXELS_MAX", 19)
    with pytest.raises(InvalidInput, match="5 x 4 pixels are over IMAGE_PIXELS_MAX = 19"):
        encode(PortType.IMAGE, image)
    with pytest.raises(InvalidInput, match="IMAGE_PIXELS_MAX"):
        decode(PortType.IMAGE, data, meta)
    monkeypatch.setattr(limits, "VALUE_BYTES_MAX", 10)
    assert encode(PortType.BYTES, bytes(10)) == (bytes(10), {})
    with pytest.raises(InvalidInput, match="out: has 11 bytes, over VALUE_BYTES_MAX = 10"):
        encode(PortType.BYTES, bytes(11), "out")


def test_small_values_ride_inline() -> None:
    for size, inline in ((limits.INLINE_VALUE_BYTES_MAX, True), (limits.INLINE_VALUE_BYTES_MAX + 1, False)):
        ref = refer(PortType.BYTES, bytes(size), {}, "agent-1")
        assert ref == ValueRef(
            type=PortType.BYTES,
            bytes=size,
            digest=digest(bytes(size)),
            inline=bytes(size) if inline else None,
            holder="agent-1",
        )


def test_digests_are_blake3() -> None:
    # The empty input's digest, of the BLAKE3 paper's test vectors.
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest(memoryview(b"abc")) == digest(b"abc")


@given(st.binary(min_size=1, max_size=100), st.data())
def test_any_changed_byte_is_noticed(data: bytes, draw: st.DataObject) -> None:
    ref = refer(PortType.BYTES, data, {}, "agent-1")
    assert verify(ref, data) == data
    place = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[place] ^= draw.draw(st.integers(1, 255))
    for wrong in (bytes(changed), data[:-1], data + b"\0"):
        with pytest.raises(DigestMismatch, match=f"value {ref.digest[:12]} of {len(data)} bytes arrived as"):
            verify(ref, wrong)
