"""Whether two states are the same, attribute by attribute: what an image of one has to give again."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import msgspec

from starloom.orchestrator.state import State

#: a stage's story is for messages, and a constellation that was asked for is kept until it changes
_ASIDE: Final = frozenset({"story", "_made"})
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})


def difference(one: Any, other: Any, path: str = "state") -> str:
    """Where two things differ first, by the path that leads there; empty if they do not.

    Objects are compared by their attributes, mappings also in their order. What is reached from two sides is
    compared once for each.
    """
    # Most of what there is; asking whether it is a mapping takes ten times as long.
    if one is other or type(one) in _PLAIN:
        return "" if type(one) is type(other) and one == other else f"{path}: {_short(one)}, {_short(other)}"
    if isinstance(one, State) and isinstance(other, State):
        complete(one)
        complete(other)
    if isinstance(one, Mapping):
        if not isinstance(other, Mapping) or list(one) != list(other):
            return f"{path}: {_short(one)}, {_short(other)}"
        return _first((f"{path}[{key!r}]", one[key], other[key]) for key in one)
    if type(one) is not type(other):
        return f"{path}: {_short(one)}, {_short(other)}"
    if isinstance(one, str | Set | msgspec.Struct) or not _parts(one):
        return "" if one == other else f"{path}: {_short(one)}, {_short(other)}"
    if isinstance(one, Sequence):
        if len(one) != len(other):
            return f"{path}: {_short(one)}, {_short(other)}"
        return _first(
            (f"{path}[{index}]", mine, others[1])
            for (index, mine), others in zip(enumerate(one), enumerate(other), strict=True)
        )
    return _first((f"{path}.{name}", getattr(one, name), getattr(other, name, None)) for name in _parts(one))


def complete(state: State) -> None:
    """Has jobs that came from a snapshot and have ended read their stages, which they do when they are asked."""
    for job in state.jobs.values():
        _ = job.stages


def _first(pairs: Any) -> str:
    return next(filter(None, (difference(one, other, path) for path, one, other in pairs)), "")


def _parts(thing: Any) -> Any:
    if isinstance(thing, Sequence):
        return True
    names = getattr(type(thing), "__slots__", ()) or getattr(thing, "__dict__", {})
    return [name for name in names if name not in _ASIDE]


def _short(thing: Any) -> str:
    text = repr(thing)
    return text if len(text) < 200 else f"{text[:200]}..."
