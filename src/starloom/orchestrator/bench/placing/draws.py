"""Random numbers that are the same on every machine and with every version of NumPy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from starloom.orchestrator.planner.problem import Floats

_BITS = 53
_TAIL = 1 / 64


class Draws:
    """Numbers made of the raw bits of PCG64 by additions, products, quotients and square roots alone.

    NumPy keeps its streams of raw bits and its seeding over versions, but not its distributions; logarithms and
    powers differ in their last bit from processor to processor. So the same seeds give the same digests everywhere.
    """

    def __init__(self, *seeds: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seeds))

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        """Numbers from `low` up to `high`."""
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(64 - _BITS)
        return (low + (high - low) * (raw / 2.0**_BITS)).reshape(shape)

    def heavy(self, *shape: int) -> Floats:
        """Numbers with a median of 1 and a heavy tail, from 1/8 to 8: log-logistic of shape 2, cut on both sides."""
        share = self.uniform(_TAIL, 1 - _TAIL, *shape)
        return np.sqrt(share / (1 - share))

    def chance(self, share: float) -> bool:
        """True as often as the share says."""
        return self.between(0.0, 1.0) < share

    def between(self, low: float, high: float) -> float:
        """One number from `low` up to `high`."""
        return float(self.uniform(low, high, 1)[0])

    def below(self, limit: int) -> int:
        """One of 0 to `limit` - 1."""
        return min(limit - 1, int(self.between(0.0, limit)))

    def some(self, of: Sequence[int] | npt.NDArray[np.signedinteger], count: int) -> list[int]:
        """So many of the numbers, each at most once, in their order; all if there are fewer."""
        taken = np.argsort(self.uniform(0.0, 1.0, len(of)), kind="stable")[:count]
        return [int(of[index]) for index in np.sort(taken)]
