"""Durations and sizes as documents write them: numbers, or text with a unit."""

import re
from collections.abc import Mapping
from typing import Any

from starloom.dag import limits
from starloom.dag.checks import number_fault

SECONDS_PER_UNIT: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES_PER_UNIT: Mapping[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SECONDS_HOW = "write a number of seconds, or text such as 100ms, 5s, 2m or 1h"
_BYTES_HOW = f"write a number of bytes, or text such as 512MiB or 2GB (units: {', '.join(BYTES_PER_UNIT)})"
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{0,24})?(?:[eE][-+]?[0-9]{1,3})?)\s*([A-Za-z]+)")


def read_seconds(value: Any) -> float:
    """Seconds from a number of them, or from text such as `100ms`, `5s`, `2m`, `1h`. Raises ValueError."""
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value.strip())
        if not found or found[2] not in SECONDS_PER_UNIT:
            raise ValueError(f"is {value!r}; {_SECONDS_HOW}")
        value = float(found[1]) * SECONDS_PER_UNIT[found[2]]
    if number_fault(value, at_most=limits.DURATION_SECONDS_MAX):
        most = f"at most DURATION_SECONDS_MAX = {limits.DURATION_SECONDS_MAX:g}"
        raise ValueError(f"is {value!r}; {_SECONDS_HOW}, not negative and {most}")
    return float(value)


def read_bytes(value: Any) -> int:
    """Bytes from a number of them, or from text such as `512MiB` or `2GB`. Raises ValueError."""
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value.strip())
        if not found or found[2] not in BYTES_PER_UNIT:
            raise ValueError(f"is {value!r}; {_BYTES_HOW}")
        unit = BYTES_PER_UNIT[found[2]]
        value = int(found[1]) * unit if found[1].isdigit() else float(found[1]) * unit
        if value % 1:
            raise ValueError(f"is {value} bytes; {_BYTES_HOW}, that comes to whole bytes")
        value = int(value)
    if fault := number_fault(value, at_most=limits.BYTES_MAX, whole=True, unit="bytes"):
        raise ValueError(fault)
    return int(value)
