"""Job inputs, from Python values to bytes and references, with everything that is wrong with them found at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from starloom.agents.values import encode, refer
from starloom.dag import limits
from starloom.dag.checks import suggestion
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, Problem
from starloom.dag.values import JOB_STORE, Port, PortType, ValueRef
from starloom.orchestrator.filebytes import read_at_most


class Encoded(NamedTuple):
    """An input, ready to go: its reference, and the bytes that must be put first where they are not inline."""

    ref: ValueRef
    data: bytes


def encode_inputs(constellation: Constellation, inputs: Mapping[str, Any]) -> dict[str, Encoded]:
    """The constellation's inputs as bytes, by name. Reads the files that paths name: not for the event loop.

    Raises InvalidInput with every input that is unknown, missing, unreadable, of the wrong type or too large.
    """
    problems = [
        Problem(f"inputs.{name}", f"the constellation has no such input{suggestion(name, constellation.inputs)}")
        for name in inputs
        if name not in constellation.inputs
    ]
    encoded: dict[str, Encoded] = {}
    for name, port in constellation.inputs.items():
        place = f"inputs.{name}"
        if name not in inputs:
            if not port.optional and not port.stream:
                problems.append(Problem(place, f"is missing; it takes {port}"))
            continue
        try:
            encoded[name] = _encode(port, inputs[name], place)
        except InvalidInput as error:
            problems += error.problems
    total = sum(len(item.data) for item in encoded.values())
    if total > limits.JOB_INPUT_BYTES_MAX:
        what = f"have {total} bytes together, over JOB_INPUT_BYTES_MAX = {limits.JOB_INPUT_BYTES_MAX}"
        problems.append(Problem("inputs", what))
    if problems:
        raise InvalidInput(problems, f"the inputs of {constellation.name!r} are not right")
    return encoded


def _encode(port: Port, value: Any, place: str) -> Encoded:
    if port.stream:
        raise InvalidInput([Problem(place, "is a stream, which takes no value; feed it once the job is accepted")])
    data, meta = encode(port.type, _content(port, value, place), place)
    return Encoded(refer(port.type, data, meta, JOB_STORE), data)


def _content(port: Port, value: Any, place: str) -> Any:
    if port.type is not PortType.BYTES or not isinstance(value, Path):
        return value
    try:
        size = value.stat().st_size
        # A pipe or a device tells no size.
        data = read_at_most(value, limits.JOB_INPUT_BYTES_MAX) if size <= limits.JOB_INPUT_BYTES_MAX else b""
    except OSError as error:
        raise InvalidInput([Problem(place, f"{value} cannot be read: {error.strerror or error}")]) from error
    if (size := max(size, len(data))) > limits.JOB_INPUT_BYTES_MAX:
        what = f"{value} has {size} bytes or more, over JOB_INPUT_BYTES_MAX = {limits.JOB_INPUT_BYTES_MAX}"
        raise InvalidInput([Problem(place, what)])
    return data
