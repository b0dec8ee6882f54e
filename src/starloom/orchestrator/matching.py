"""Who gets what, one each: a largest matching by augmenting paths (Kuhn, 1955)."""

from collections.abc import Collection, Mapping
from typing import TypeVar

S = TypeVar("S")
Z = TypeVar("Z")


def matching(wanted: Mapping[S, Collection[Z]]) -> dict[Z, S]:
    """Who gets what, by what there is: as many as can be. Takes time in the product of both, squared at the worst."""
    owners: dict[Z, S] = {}
    for each in wanted:
        _augment(each, wanted, owners, set())
    return owners


def spare(wanted: Mapping[S, Collection[Z]], among: Collection[Z]) -> set[Z]:
    """What of `among` can be given away, each by itself, so that as many get something as before."""
    owners = matching(wanted)
    return {each for each in among if each not in owners or _augment(owners[each], wanted, dict(owners), {each})}


def _augment(one: S, wanted: Mapping[S, Collection[Z]], owners: dict[Z, S], tried: set[Z]) -> bool:
    """Gives one something, others something else if need be; without what was tried already."""
    for thing in wanted[one]:
        if thing not in tried and thing not in owners:
            owners[thing] = one
            return True
    for thing in wanted[one]:
        if thing not in tried:
            tried.add(thing)
            if _augment(owners[thing], wanted, owners, tried):
                owners[thing] = one
                return True
    return False
