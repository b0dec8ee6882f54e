"""The key-value cache as a value: what a decoder knows of the tokens so far, for a batch of rows.

Every array is [batch, key-value heads, length, head size], whatever the graph's own order is. Rows of
different lengths stand right-aligned in one array: row r begins with `padding[r]` columns that no
token ever looks at. Nothing is changed in place; slices are views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """Keys and values by layer, each [batch, heads, length, head size], and the columns of padding by row."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    padding: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = {array.shape[:1] + array.shape[2:3] for array in (*self.keys, *self.values)}
        if len(self.keys) != len(self.values) or shapes != {(len(self.padding), self.length)}:
            raise ValueError(f"{len(self.keys)} keys, {len(self.values)} values of sizes {sorted(shapes)} are no cache")

    @property
    def layers(self) -> int:
        return len(self.keys)

    @property
    def batch(self) -> int:
        return len(self.padding)

    @property
    def length(self) -> int:
        """The columns, which is the tokens of the longest row."""
        return int(self.keys[0].shape[2])

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of each row."""
        return tuple(self.length - pad for pad in self.padding)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def head(self, tokens: int) -> "KVCache":
        """The cache as it was after the first `tokens` tokens of every row; all rows must be of one length.

        Raises ValueError for fewer than 0, more than there are, or rows of different lengths.
        """
        if len(set(self.padding)) > 1 or not 0 <= tokens <= self.lengths[0]:
            raise ValueError(f"cannot take the first {tokens} tokens of rows of {self.lengths}")
        first = self.padding[0]
        return self._mapped(lambda array: array[:, :, first : first + tokens], (0,) * self.batch)

    def append(self, new: "KVCache") -> "KVCache":
        """This cache, and behind it the columns of `new`, which has the same rows and no padding."""
        if any(new.padding) or new.batch != self.batch or new.layers != self.layers:
            raise ValueError(f"{new.batch} rows with padding {new.padding} cannot follow {self.batch} rows")
        pairs = zip((*self.keys, *self.values), (*new.keys, *new.values), strict=True)
        joined = [np.concatenate(pair, axis=2) for pair in pairs]
        return KVCache(tuple(joined[: self.layers]), tuple(joined[self.layers :]), self.padding)

    def rows(self, chosen: Sequence[int]) -> "KVCache":
        """A cache of the chosen rows, without columns that are padding in all of them."""
        index = list(chosen)
        spare = min(self.padding[row] for row in index)
        padding = tuple(self.padding[row] - spare for row in index)
        return self._mapped(lambda array: array[index, :, spare:], padding)

    def _mapped(self, change: Any, padding: tuple[int, ...]) -> "KVCache":
        return KVCache(tuple(map(change, self.keys)), tuple(map(change, self.values)), padding)


def join(caches: Sequence[KVCache]) -> KVCache:
    """One cache of all rows, in order; shorter ones are padded on the left. Raises ValueError for none."""
    if not caches:
        raise ValueError("there is no cache to join")
    if len(caches) == 1:
        return caches[0]
    length = max(cache.length for cache in caches)
    keys = tuple(_stacked([cache.keys[n] for cache in caches], length) for n in range(caches[0].layers))
    values = tuple(_stacked([cache.values[n] for cache in caches], length) for n in range(caches[0].layers))
    return KVCache(keys, values, tuple(length - tokens for cache in caches for tokens in cache.lengths))


def _stacked(arrays: Sequence[Array], length: int) -> Array:
    """Arrays with unlike batch and length under each other. Padding is zero: a graph may multiply it by 0."""
    first = arrays[0]
    batch = sum(array.shape[0] for array in arrays)
    result = np.zeros((batch, first.shape[1], length, first.shape[3]), first.dtype)
    row = 0
    for array in arrays:
        result[row : row + array.shape[0], :, length - array.shape[2] :] = array
        row += array.shape[0]
    return result
