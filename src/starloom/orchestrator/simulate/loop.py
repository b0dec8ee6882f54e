"""Virtual time, processes that may die or stop in it, and chance."""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Final, TypeVar

SECOND: Final = 1_000_000_000
START: Final = 1_000 * SECOND
"""When a run begins, in nanoseconds: no process has been there since the clock's beginning."""

Call = Callable[[], None]
T = TypeVar("T")


class DiedError(Exception):
    """Raised by a process's code at the point where the process dies."""


class Process:
    """Something that runs, until it is not `alive` any more. While frozen, nothing happens in it."""

    alive = True
    frozen_until = 0


class Timer:
    """Something to be done at a time; `cancel` makes it nothing."""

    __slots__ = ("call", "owner")

    def __init__(self, call: Call, owner: Process | None) -> None:
        self.call: Call | None = call
        self.owner = owner

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Does what is due, in the order of time, then of asking."""

    def __init__(self) -> None:
        self.now = START
        self.events = 0
        self._heap: list[tuple[int, int, Timer]] = []
        self._seq = 0

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return (self.now - START) / SECOND

    def at(self, time: int, call: Call, owner: Process | None = None) -> Timer:
        """Calls at a time, if the owner is still alive then; once it thaws if it is frozen."""
        timer = Timer(call, owner)
        self._seq += 1
        heappush(self._heap, (max(time, self.now), self._seq, timer))
        return timer

    def after(self, seconds: float, call: Call, owner: Process | None = None) -> Timer:
        """Calls after so many seconds."""
        return self.at(self.now + round(seconds * SECOND), call, owner)

    def step(self) -> bool:
        """Does the next thing; False if there is none."""
        while self._heap:
            time, _, timer = heappop(self._heap)
            call, owner = timer.call, timer.owner
            if call is None:
                continue
            if owner is not None:
                if not owner.alive:
                    continue
                if owner.frozen_until > time:
                    self._seq += 1
                    heappush(self._heap, (owner.frozen_until, self._seq, timer))
                    continue
            self.now = time
            self.events += 1
            try:
                call()
            except DiedError:
                return True
            return True
        return False


class Chance:
    """Numbers drawn from a seed. Only `Random.random` is used, which no Python version may change."""

    def __init__(self, seed: str) -> None:
        self._next = Random(seed).random

    def happens(self, chance: float) -> bool:
        return self._next() < chance

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def below(self, end: int) -> int:
        """A whole number from 0 to `end` - 1."""
        return int(self._next() * end)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Different items, in any order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


class Chances:
    """One seed's chance, for each concern apart: more draws by one do not change what another meets."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[str, Chance] = {}

    def of(self, concern: str) -> Chance:
        """The chance of one concern."""
        found = self._known.get(concern)
        if found is None:
            found = self._known[concern] = Chance(f"{self._seed}/{concern}")
        return found
