"""Which loaded models an agent keeps: by what they would cost to load again, and by how recently they were used. Pure."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

from starloom.dag import limits

Key = TypeVar("Key", bound=Hashable)


class Resident(NamedTuple):
    """A loaded model: the seconds that loading it took, its bytes, when it was last asked for, and whether a call has it.

    `used` is in seconds of a monotonic clock.
    """

    load_seconds: float
    bytes: int
    used: float
    in_use: bool = False


def worth(resident: Resident, now: float) -> float:
    """What keeping it is worth: seconds of loading a byte, less the longer nobody asked for it.

    Models used within MODEL_RECENCY_SECONDS of each other are told apart by cost, others mostly by age.
    """
    age = max(0.0, now - resident.used) + limits.MODEL_RECENCY_SECONDS
    return resident.load_seconds / max(1, resident.bytes) / age


def victims(kept: Mapping[Key, Resident], now: float, count_max: int, bytes_max: int) -> list[Key]:
    """Which of them are to go, the one worth least first, until the others are within both bounds.

    What is in use stays, and so does the one that was asked for last, even where the bounds are then exceeded.
    """
    count, size = len(kept), sum(each.bytes for each in kept.values())
    newest = max(kept, key=lambda key: kept[key].used, default=None)
    free = [key for key, each in kept.items() if not each.in_use and key != newest]
    found: list[Key] = []
    for key in sorted(free, key=lambda key: worth(kept[key], now)):
        if count <= count_max and size <= bytes_max:
            break
        found.append(key)
        count, size = count - 1, size - kept[key].bytes
    return found
