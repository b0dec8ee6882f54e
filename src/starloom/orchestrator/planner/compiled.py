"""How the planner's hot code is compiled. All of it lets other threads run meanwhile, and is kept on disk.

Floats are never reordered: the same input gives the same plan.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba

Given = ParamSpec("Given")
Result = TypeVar("Result")

_HOW: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_LEAN: dict[str, Any] = {"_nrt": False}
_INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def compiled(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function as machine code."""
    made: Callable[Given, Result] = numba.njit(**_HOW)(function)
    return made


def lean(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """As `compiled`, for what neither allocates nor gives out arrays: it counts no references to them.

    With a board's forty arrays, counting costs thirty times what the work does.
    """
    made: Callable[Given, Result] = numba.njit(**_HOW, **_LEAN)(function)
    return made


def inner(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """As `lean`, for compiled callers only: unpacking forty arrays from Python is most of what is compiled otherwise."""
    made: Callable[Given, Result] = numba.njit(**_HOW, **_LEAN, **_INNER)(function)
    return made


def inlined(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """As `inner`, and copied to where it is called: for what is asked of each place or lane."""
    made: Callable[Given, Result] = numba.njit(forceinline=True, **_HOW, **_LEAN, **_INNER)(function)
    return made
