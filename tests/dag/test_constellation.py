"""The constellation's types: immutable, and the same after JSON."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starloom.dag.constellation import (
    API_VERSION,
    Comparison,
    Constellation,
    Dependency,
    InputBinding,
    Join,
    On,
    OnFailure,
    OutputBinding,
    Policy,
    Requirements,
    Retry,
    StageSpec,
    Tier,
)
from starloom.dag.ids import StageId
from starloom.dag.values import Port, PortType

A, B = StageId("a"), StageId("b")
SECONDS = st.floats(0, 1e6)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
MAPPINGS = st.dictionaries(st.text(), PLAIN | st.lists(PLAIN), max_size=3)
LABELS = st.dictionaries(st.text(), st.text(), max_size=2)
STAGES = st.builds(
    StageSpec,
    id=st.just(A),
    kind=st.text(),
    params=MAPPINGS,
    requires=st.builds(
        Requirements,
        tiers=st.lists(st.sampled_from(Tier)).map(tuple),
        target=st.text(),
        labels=LABELS,
        memory_bytes=st.integers(0, 2**62),
        node=st.text(),
    ),
    policy=st.builds(
        Policy,
        retry=st.builds(Retry, times=st.integers(0, 9), first_seconds=SECONDS, factor=SECONDS, last_seconds=SECONDS),
        timeout_seconds=SECONDS,
        on_failure=st.sampled_from(OnFailure),
        defaults=MAPPINGS,
    ),
    join=st.sampled_from(Join),
)
DEPENDENCIES = st.builds(
    Dependency,
    upstream=st.just(A),
    downstream=st.just(B),
    output=st.text(),
    input=st.text(),
    on=st.sampled_from(On),
    comparison=st.none() | st.builds(Comparison, output=st.text(), operator=st.just(">="), value=PLAIN, path=st.text()),
)
PORTS = st.builds(Port, type=st.sampled_from(PortType), stream=st.booleans(), optional=st.booleans())
CONSTELLATIONS = st.builds(
    Constellation,
    name=st.text(),
    stages=st.fixed_dictionaries({A: STAGES}),
    dependencies=st.lists(DEPENDENCIES, max_size=3).map(tuple),
    inputs=st.dictionaries(st.text(), PORTS, max_size=2),
    bindings=st.just(()) | st.just((InputBinding(source="i", downstream=A, input="x"),)),
    outputs=st.just({}) | st.just({"o": OutputBinding(upstream=A, output="x")}),
    labels=LABELS,
)


@given(CONSTELLATIONS)
def test_json_gives_back_an_equal_constellation(constellation: Constellation) -> None:
    encoded = msgspec.json.encode(constellation)
    assert msgspec.json.decode(encoded, type=Constellation) == constellation
    assert msgspec.json.encode(msgspec.json.decode(encoded, type=Constellation)) == encoded


def test_defaults_are_left_out_of_json() -> None:
    plain = Constellation(name="n", stages={A: StageSpec(id=A, kind="k")})
    assert msgspec.json.decode(msgspec.json.encode(plain)) == {"name": "n", "stages": {"a": {"id": "a", "kind": "k"}}}
    assert plain.api_version == API_VERSION == "starloom/v1"


@pytest.mark.parametrize(
    "data",
    [
        {"name": "n"},
        {"name": "n", "stages": {"a": {"id": "a", "kind": "k", "join": "some"}}},
        {"name": "n", "stages": {"a": {"id": "a", "kind": "k", "requires": {"tiers": ["moon"]}}}},
        {"name": "n", "stages": {}, "inputs": {"i": {"type": "film"}}},
    ],
)
def test_json_of_another_shape_is_refused(data: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(data), type=Constellation)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (Constellation(name="n", stages={}), "name"),
        (StageSpec(id=A, kind="k"), "kind"),
        (Dependency(upstream=A, downstream=B), "on"),
        (Policy(), "timeout_seconds"),
        (Port(PortType.TEXT), "stream"),
    ],
)
def test_parts_cannot_be_changed(value: msgspec.Struct, field: str) -> None:
    with pytest.raises(AttributeError, match="immutable"):
        setattr(value, field, None)


def test_data_and_order_are_told_apart() -> None:
    assert Dependency(upstream=A, downstream=B, output="x", input="y").carries_data
    assert not Dependency(upstream=A, downstream=B).carries_data


def test_a_constellation_shows_its_size() -> None:
    shown = Constellation(name="n", stages={}, dependencies=(Dependency(upstream=A, downstream=B),))
    assert repr(shown) == "<Constellation 'n': 0 stages, 1 dependencies>"


def test_networkx_and_yaml_are_loaded_only_where_they_are_used() -> None:
    light = "constellation, kinds, order, validate, builder, schema"
    script = f"import sys; from starloom.dag import {light}; print(sorted({{'networkx', 'yaml', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
