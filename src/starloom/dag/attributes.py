"""What is asked of a node's attributes: text that is read once, and whether it holds of what a node has.

    arm64                     equal
    >= 4, < 16                all of them
    >= v12.2 | v11.8          one of them
    != armv7                  holds also where there is no such attribute

Attributes are text or numbers; what is asked says how they are compared. A number may have a unit of bytes, as 4GiB. A
version begins with `v`, or has two dots or more: its parts are compared one by one, so that v12.10 is after v12.9; of
parts that are not there each is 0, and what follows `-` or `+` does not count. All else is text, equal or not.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isfinite
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final, NamedTuple

from starloom.dag import limits
from starloom.dag.checks import kind_of, text_fault
from starloom.dag.quantities import read_bytes

Value = str | float
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">=": ge,
    "<=": le,
    "==": eq,
    "!=": ne,
    ">": gt,
    "<": lt,
}
_ASKED: Final = re.compile(r"(>=|<=|==|!=|>|<)?\s*([^<>=!\s][^<>=!]*)")
_NUMBER: Final = re.compile(r"[-+]?\d{1,18}(\.\d{1,18})?")
_VERSION: Final = re.compile(r"v?(\d{1,18}(?:\.\d{1,18})*)(?:[-+].*)?")
_HOW: Final = "write a value, or one after ==, !=, >, >=, < or <=, such as '>= 4GiB, < 16GiB' or 'arm64 | armv7'"


class Test(NamedTuple):
    """One comparison. `value`: text, a number, or a version as the numbers of its parts."""

    operator: str
    value: str | float | tuple[int, ...]

    def holds(self, value: Value | None) -> bool:
        """Whether it holds of an attribute; None where there is none."""
        found = None if value is None else _as(type(self.value), value)
        if found is None:
            return self.operator == "!="
        return _OPERATORS[self.operator](found, self.value)


@lru_cache(maxsize=4_096)
def read(text: str) -> tuple[tuple[Test, ...], ...]:
    """The tests in a text: all of one of these hold. Raises ValueError with what is wrong."""
    if len(text) > limits.ATTRIBUTE_CHARACTERS_MAX:
        over = f"over ATTRIBUTE_CHARACTERS_MAX = {limits.ATTRIBUTE_CHARACTERS_MAX}"
        raise ValueError(f"has {len(text)} characters, {over}")
    return tuple(tuple(_test(part) for part in each.split(",")) for each in text.split("|"))


def fault(text: Any) -> str:
    """What is wrong with what is asked of an attribute; empty if nothing is."""
    if not isinstance(text, str):
        return f"is {kind_of(text)} ({text!r}); {_HOW}"
    try:
        read(text)
    except ValueError as error:
        return str(error)
    return text_fault(text)


def holds(text: str, value: Value | None) -> bool:
    """Whether what is asked holds of an attribute; None where there is none. Raises ValueError as `read` does."""
    return any(all(test.holds(value) for test in tests) for tests in read(text))


def as_text(value: Value) -> str:
    """An attribute as messages show it."""
    return value if isinstance(value, str) else f"{value:.15g}"


def _test(part: str) -> Test:
    found = _ASKED.fullmatch(part.strip())
    if found is None:
        raise ValueError(f"{part.strip()!r} cannot be read; {_HOW}")
    operator, text = found[1] or "==", found[2].strip()
    version = _version(text) if text.startswith("v") or text.count(".") > 1 else None
    number = _number(text) if version is None else None
    if version is None and number is None and operator not in ("==", "!="):
        raise ValueError(f"{text!r} is neither a number nor a version, and cannot come after {operator}; {_HOW}")
    return Test(operator, version if version is not None else number if number is not None else text)


def _as(kind: type, value: Value) -> Any:
    """An attribute as what it is compared with; None if it is no such thing."""
    if kind is tuple:
        return _version(as_text(value))
    if kind is float:
        return _number(value) if isinstance(value, str) else float(value)
    return as_text(value)


def _number(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        found = float(read_bytes(text))
    except ValueError:
        return None
    return found if isfinite(found) else None


def _version(text: str) -> tuple[int, ...] | None:
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    parts = [int(part) for part in found[1].split(".")]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return tuple(parts)
