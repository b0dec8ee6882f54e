"""Comparisons of outputs with constants: their evaluation, and the key that a journal knows each by."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from starloom.dag.constellation import Comparison

_INDEX_DIGITS_MAX = 18
_ENCODER = msgspec.json.Encoder(order="sorted")


def comparison_key(comparison: Comparison) -> str:
    """A name for what a comparison asks; equal for equal comparisons."""
    return f"{comparison.output}|{comparison.path}|{comparison.operator}|{_ENCODER.encode(comparison.value).decode()}"


def holds(comparison: Comparison, value: Any) -> bool:
    """Whether `value` (text, or what JSON can say) compares as asked.

    A path that leads nowhere, and values without an order, do not hold, except for `!=`, which holds for them.
    """
    found, there = _walk(value, comparison.path)
    if not there:
        return comparison.operator == "!="
    try:
        return bool(_OPERATORS[comparison.operator](found, comparison.value))
    except TypeError:
        return False


def _walk(value: Any, path: str) -> tuple[Any, bool]:
    for step in path.split(".") if path else ():
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list | tuple) and _is_index(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            return None, False
    return value, True


def _is_index(step: str) -> bool:
    # Python refuses to read a number of thousands of digits.
    return step.isdecimal() and len(step) <= _INDEX_DIGITS_MAX


def _equal(left: Any, right: Any) -> bool:
    # JSON tells true from 1, Python does not.
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def checked(left: Any, right: Any) -> bool:
        if isinstance(left, bool) or isinstance(right, bool):
            return False
        return compare(left, right)

    return checked


def _contains(left: Any, right: Any) -> bool:
    if isinstance(left, str):
        return isinstance(right, str) and right in left
    if isinstance(left, Mapping):
        return right in left
    return any(_equal(item, right) for item in left)


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": _ordered(lambda left, right: left < right),
    "<=": _ordered(lambda left, right: left <= right),
    ">": _ordered(lambda left, right: left > right),
    ">=": _ordered(lambda left, right: left >= right),
    "contains": _contains,
}
