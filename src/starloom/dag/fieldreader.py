"""Fields of documents: plain mappings, lists, texts and numbers, read and checked one by one."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, TypeVar

from starloom.dag.checks import kind_of, number_fault, plain_fault, suggestion
from starloom.dag.errors import Problem

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class FieldReader:
    """Reads parts; notes what is wrong and goes on with a stand-in, so that one pass finds everything.

    Its methods are for readers that derive from it.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def _problem(self, place: str, what: str) -> None:
        self.problems.append(Problem(place, what))

    def _mapping(
        self, place: str, value: Any, known: Iterable[str] | None = None, *, needed: Iterable[str] = ()
    ) -> dict[str, Any]:
        """`value` as a mapping, without its unknown keys; an empty one where it is something else."""
        if not isinstance(value, dict):
            self._problem(place, f"is {kind_of(value)}; write a mapping, key: value")
            return {}
        prefix = f"{place}." if place else ""
        for key in value:
            if not isinstance(key, str):
                self._problem(f"{prefix}{key}", f"the key {key!r} is {kind_of(key)}; write it as text")
            elif known is not None and key not in known:
                self._problem(f"{prefix}{key}", f"there is no such key here{suggestion(key, known)}")
        for key in needed:
            if key not in value:
                self._problem(f"{prefix}{key}", "is missing; add it")
        return {key: item for key, item in value.items() if isinstance(key, str) and (known is None or key in known)}

    def _text(self, place: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        self._problem(place, f"is {kind_of(value)} ({value!r}); write text{_quoted(value)}")
        return ""

    def _flag(self, place: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self._problem(place, f"is {kind_of(value)} ({value!r}); write true or false")
        return value is True

    def _choice(self, place: str, value: Any, choices: type[E], otherwise: E) -> E:
        try:
            return choices(value)
        except ValueError:
            self._problem(place, f"is {value!r}; use {_listed(choices)}")
            return otherwise

    def _labels(self, place: str, value: Any) -> dict[str, str]:
        return {key: self._text(f"{place}.{key}", text) for key, text in self._mapping(place, value).items()}

    def _plain(self, place: str, value: Any) -> dict[str, Any]:
        part = self._mapping(place, value)
        for key, item in part.items():
            if fault := plain_fault(item):
                self._problem(f"{place}.{key}", fault)
        return part

    def _number(self, place: str, value: Any, otherwise: T, *, whole: bool = False, at_least: float = 0.0) -> T:
        if fault := number_fault(value, whole=whole, at_least=at_least):
            self._problem(place, fault)
            return otherwise
        try:
            return type(otherwise)(value)  # type: ignore[call-arg]
        except OverflowError:
            self._problem(place, f"is a whole number of {value.bit_length()} bits, which is too large")
            return otherwise

    def _quantity(self, place: str, value: Any, otherwise: T, read: Callable[[Any], T]) -> T:
        try:
            return read(value)
        except ValueError as error:
            self._problem(place, str(error))
            return otherwise


def _quoted(value: Any) -> str:
    return f", with quotes: '{value}'" if isinstance(value, bool | int | float) else ""


def _listed(choices: type[E]) -> str:
    return " or ".join([", ".join(list(choices)[:-1]), list(choices)[-1]])
