"""Small checks that documents and validation share: names, plain values, and suggestions."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite
from typing import Any

from starloom.dag import limits

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_DOTTED_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_UNPAIRED = re.compile("[\ud800-\udfff]")
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**64 - 1


def name_fault(name: Any, *, dotted: bool = False) -> str:
    """What is wrong with a name; empty if nothing is.

    A name has letters, digits, `_` and `-`, does not begin with `-`, and has at most
    NAME_CHARACTERS_MAX characters. `dotted` names, of kinds and constellations, may have `.` as well;
    a stage's may not, because `stage.port` is how documents name an output.
    """
    if not isinstance(name, str):
        return f"the name is {kind_of(name)}, not text"
    if len(name) > limits.NAME_CHARACTERS_MAX:
        return f"the name has {len(name)} characters, over NAME_CHARACTERS_MAX = {limits.NAME_CHARACTERS_MAX}"
    if (_DOTTED_NAME if dotted else _NAME).fullmatch(name):
        return ""
    dot = ", '.'" if dotted else ""
    return f"the name {name!r} is not made of letters, digits, '_', '-'{dot}, beginning with a letter, a digit or '_'"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known one, or a few of them, or nothing."""
    names = [str(other) for other in known]
    if not names:
        return ""
    if len(names) <= limits.SUGGESTION_NAMES_MAX:
        close = get_close_matches(name, names, n=1)
        if close:
            return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(names))}" if len(names) <= limits.SUGGESTION_NAMES_SHOWN else ""


class Suggestions:
    """What `suggestion` says, for the first SUGGESTIONS_MAX names that are unknown, and nothing from then on.

    Of a document in which a hundred thousand names are wrong nobody waits for what each of them meant.
    """

    def __init__(self) -> None:
        self._left = limits.SUGGESTIONS_MAX

    def of(self, name: str, known: Iterable[str]) -> str:
        """As `suggestion`; `known` is not looked at once there have been enough."""
        if self._left <= 0:
            return ""
        self._left -= 1
        return suggestion(name, known)


def kind_of(value: Any) -> str:
    """A plain value's type, in the words of a document."""
    if value is None:
        return "nothing"
    names = ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "text"), (dict, "a mapping"))
    for python_type, name in names:
        if isinstance(value, python_type):
            return name
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def text_fault(text: str) -> str:
    """What keeps text from being UTF-8, which the wire and the journal are; else empty."""
    if text.isascii() or not _UNPAIRED.search(text):
        return ""
    return f"holds {text!r}, half of a pair of UTF-16 code units; give whole characters"


def plain_fault(value: Any) -> str:
    """What keeps a value from being JSON: an object, a key that is not text, NaN, or too much depth; else empty.

    Walks with a list of its own, so a deep or self-containing value is a fault and no crash.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > limits.DOCUMENT_DEPTH_MAX:
            return f"is nested more than DOCUMENT_DEPTH_MAX = {limits.DOCUMENT_DEPTH_MAX} deep"
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str):
                    return f"has the key {key!r}, which is {kind_of(key)}, not text"
                if fault := text_fault(key):
                    return fault
            waiting.extend((item, depth + 1) for item in part.values())
        elif isinstance(part, list | tuple):
            waiting.extend((item, depth + 1) for item in part)
        elif isinstance(part, float) and not isfinite(part):
            return f"holds {part}, which JSON cannot say"
        elif isinstance(part, int) and not _INTEGER_MIN <= part <= _INTEGER_MAX:
            return f"holds a whole number of {part.bit_length()} bits, which does not fit 64 bits; pass it as text"
        elif isinstance(part, str):
            if fault := text_fault(part):
                return fault
        elif part is not None and not isinstance(part, bool | int | float):
            return (
                f"holds a {type(part).__name__}; only text, numbers, true, false, null, lists and mappings can travel"
            )
    return ""


def number_fault(
    value: Any, *, at_least: float = 0.0, at_most: float | None = None, whole: bool = False, unit: str = ""
) -> str:
    """What is wrong with a number in a policy or requirement; empty if nothing is."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"is {kind_of(value)} ({value!r}); {_asked(at_least, at_most, whole, unit)}"
    if (
        (isinstance(value, float) and not isfinite(value))
        or value < at_least
        or (at_most is not None and value > at_most)
    ):
        return f"is {value!r}; {_asked(at_least, at_most, whole, unit)}"
    return ""


def _asked(at_least: float, at_most: float | None, whole: bool, unit: str) -> str:
    wanted = "a whole number" if whole else "a number"
    bounds = f"{at_least:g} or more" if at_most is None else f"from {at_least:g} to {at_most:g}"
    return f"give {wanted} {bounds}{f' {unit}' if unit else ''}"
