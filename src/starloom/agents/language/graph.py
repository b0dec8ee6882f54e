"""What a decoder's ONNX graph takes and gives, read off its inputs and outputs.

The layout is that of Hugging Face's exports: `input_ids`, `attention_mask`, `position_ids` and
`past_key_values.N.{key,value}` to `logits` and `present.N.{key,value}`. Met in the wild, and taken as
well: no `position_ids` or no `attention_mask`, fewer key-value heads than heads, caches of float16,
merged decoders (`use_cache_branch`), `num_logits_to_keep`, caches as [batch, length, heads, head size],
a fixed batch, and one token at a time.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from starloom.agents.language.cache import KVCache
from starloom.agents.language.config import Config
from starloom.agents.stage import TensorPort
from starloom.dag.errors import InvalidInput, Problem, StageError

Array = NDArray[Any]

_PAST = re.compile(r"(?:past_key_values|past)\.(\d+)\.(key|value)")
_PRESENT = re.compile(r"(?:present|present_key_values)\.(\d+)\.(key|value)")
_DTYPES: Final[Mapping[str, type[np.generic]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_FLOATS = (np.float32, np.float16)
_WHOLE = (np.int64, np.int32)
_LAST_ONLY = ("num_logits_to_keep", "logits_to_keep")
_LENGTH_NAMES = ("past", "sequence", "length", "seq_len")


@dataclass(frozen=True, slots=True)
class Graph:
    """How to feed a decoder's graph, and how to read what it gives.

    `past` and `present` name key and value of layer 0, then of layer 1, and so on; `shapes` are
    (heads, head size) of each. `types` are the inputs' types by name. `batch` and `tokens` are the
    rows and tokens of a run where the graph fixes them. `vocabulary` is the size of a row of
    logits, or None where only a run shows it.
    """

    past: tuple[str, ...]
    present: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    types: Mapping[str, type[np.generic]]
    outputs: tuple[str, ...]
    length_axis: int
    batch: int | None
    tokens: int | None
    vocabulary: int | None

    @property
    def has_positions(self) -> bool:
        """Whether rows of different lengths can share a run; else the graph counts columns itself."""
        return "position_ids" in self.types and "attention_mask" in self.types

    def empty(self, batch: int) -> KVCache:
        """A cache of `batch` rows without a token."""
        made = [
            np.zeros((batch, heads, 0, size), self.types[name])
            for name, (heads, size) in zip(self.past, self.shapes, strict=True)
        ]
        return KVCache(tuple(made[::2]), tuple(made[1::2]), (0,) * batch)

    def feeds(self, tokens: NDArray[np.int64], cache: KVCache, *, last_only: bool) -> dict[str, Array]:
        """The inputs of a run on `tokens`, int64 [batch, n], which come behind those of `cache`.

        `last_only`: the logits of the last token are enough, where the graph can leave out others.
        Raises StageError for rows that the graph cannot take together.
        """
        batch, count = tokens.shape
        self._check(batch, count, cache)
        padding = np.array(cache.padding, np.int64)[:, None]
        columns = np.arange(cache.length + count)
        known: dict[str, Array] = {
            "input_ids": tokens,
            "attention_mask": columns[None] >= padding,
            "position_ids": columns[None, cache.length :] - padding,
            "use_cache_branch": np.array([cache.length > 0]),
            **{name: np.array(int(last_only)) for name in _LAST_ONLY},
        }
        arrays = [array for pair in zip(cache.keys, cache.values, strict=True) for array in pair]
        for name, array in zip(self.past, arrays, strict=True):
            known[name] = self._ordered(array)
        return {name: np.ascontiguousarray(known[name], dtype) for name, dtype in self.types.items()}

    def taken(self, outputs: Sequence[Array], padding: tuple[int, ...]) -> tuple[NDArray[np.float32], KVCache]:
        """Logits, float32 [batch, n, vocabulary], and the cache with the tokens of the run in it."""
        found = dict(zip(self.outputs, outputs, strict=True))
        logits = found["logits"].astype(np.float32, copy=False)
        arrays = [self._ordered(found[name]) for name in self.present]
        cache = KVCache(tuple(arrays[::2]), tuple(arrays[1::2]), padding)
        return logits if logits.ndim == 3 else logits[:, None], cache

    def _ordered(self, array: Array) -> Array:
        return array if self.length_axis == 2 else np.swapaxes(array, 1, 2)

    def _check(self, batch: int, count: int, cache: KVCache) -> None:
        if cache.batch != batch:
            raise StageError(f"{batch} rows of tokens do not fit a cache of {cache.batch} rows")
        if self.batch not in (None, batch):
            raise StageError(f"the graph takes {self.batch} rows at a time, not {batch}; export it with a free batch")
        if self.tokens not in (None, count):
            raise StageError(f"the graph takes {self.tokens} tokens at a time, not {count}")
        if any(cache.padding) and not self.has_positions:
            raise StageError(
                "rows of different lengths need a graph with position_ids and attention_mask; run them one by one"
            )


def read_graph(inputs: Sequence[TensorPort], outputs: Sequence[TensorPort], config: Config, place: str) -> Graph:
    """The graph behind these inputs and outputs; raises InvalidInput with all that is not supported."""
    taken, given = {port.name: port for port in inputs}, {port.name: port for port in outputs}
    if fault := _other_kind(taken, given, config):
        raise InvalidInput([Problem(place, fault)], "this graph is no decoder that can run here")
    problems = _unknown_inputs(taken)
    past, present = _layers(taken, _PAST), _layers(given, _PRESENT)
    if [key for key, _ in past] != [key for key, _ in present]:
        problems.append(f"takes caches of {len(past)} arrays, but gives {len(present)} `present.N.*` for them")
    if [key for key, _ in past] != [(n // 2, ("key", "value")[n % 2]) for n in range(len(past) + len(past) % 2)]:
        problems.append("lacks the key or the value of a layer among its `past_key_values.N.*`")
    problems += _unknown_types(taken, [name for _, name in past])
    axis, shapes, faults = _cache_shapes([taken[name] for _, name in past], config)
    problems += faults
    ids, logits = taken["input_ids"].shape, given["logits"].shape
    tokens = ids[1] if len(ids) == 2 and isinstance(ids[1], int) else None
    if len(ids) != 2 or tokens not in (None, 1):
        problems.append(f"has input_ids of shape {list(ids)}; a free number of tokens, or one at a time, is supported")
    if problems:
        raise InvalidInput([Problem(place, what) for what in problems], "this decoder's graph is not supported")
    return Graph(
        past=tuple(name for _, name in past),
        present=tuple(name for _, name in present),
        shapes=tuple(shapes),
        types={name: _DTYPES[port.type] for name, port in taken.items()},
        outputs=tuple(given),
        length_axis=axis,
        batch=ids[0] if isinstance(ids[0], int) else None,
        tokens=tokens,
        vocabulary=logits[-1] if isinstance(logits[-1], int) else None,
    )


def _other_kind(taken: Mapping[str, TensorPort], given: Mapping[str, TensorPort], config: Config) -> str:
    """What kind of model this is, if it is no decoder with a cache; else an empty text."""
    if config.is_encoder_decoder or any(name.startswith("encoder_") for name in taken):
        return "is one half of an encoder-decoder; only decoders that stand alone are supported"
    if "input_ids" not in taken:
        return f"takes no input_ids, but {', '.join(taken)}; export the text model whole, with its embedding"
    if "logits" not in given:
        return f"gives no logits, but {', '.join(given)}; export it for text generation"
    if not _layers(taken, _PAST):
        found = sorted(name for name in taken if name.startswith(("past", "cache")))
        if found:
            return f"takes its cache as {', '.join(found[:4])}; only past_key_values.N.key and .value are supported"
        return "takes no past_key_values, so that every token would cost a full pass; export it with its cache"
    return ""


def _unknown_inputs(taken: Mapping[str, TensorPort]) -> list[str]:
    known = {"input_ids", "attention_mask", "position_ids", "use_cache_branch", *_LAST_ONLY}
    unknown = [name for name in taken if name not in known and not _PAST.fullmatch(name)]
    return [f"takes {', '.join(unknown)}, which nothing here can give"] if unknown else []


def _layers(ports: Mapping[str, TensorPort], pattern: re.Pattern[str]) -> list[tuple[tuple[int, str], str]]:
    """((layer, `key` or `value`), name), in the order of layers."""
    matches = [(pattern.fullmatch(name), name) for name in ports]
    return sorted(((int(match[1]), match[2]), name) for match, name in matches if match)


def _unknown_types(taken: Mapping[str, TensorPort], past: Sequence[str]) -> list[str]:
    problems = []
    for name, port in taken.items():
        dtype = _DTYPES.get(port.type)
        allowed: tuple[type[np.generic], ...] = _WHOLE
        if name in past:
            allowed = _FLOATS
        elif name == "use_cache_branch":
            allowed = (np.bool_,)
        elif name == "attention_mask":
            allowed = (*_WHOLE, np.bool_, *_FLOATS)
        # A type that numpy does not know, such as bfloat16, is none of them.
        if dtype not in allowed:
            problems.append(f"has {name} as {port.type}; supported: {', '.join(one.__name__ for one in allowed)}")
    return problems


def _cache_shapes(past: Sequence[TensorPort], config: Config) -> tuple[int, list[tuple[int, int]], list[str]]:
    """The axis of the length, (heads, head size) of each array, and problems."""
    axes = {_length_axis(port.shape) for port in past}
    odd = next((port for port in past if _length_axis(port.shape) == 0), None)
    if odd is not None:
        what = f"has {odd.name} of shape {list(odd.shape)}; supported is [batch, heads, length, head size], length free"
        return 2, [], [what]
    if len(axes) != 1:
        return 2, [], ["has caches of several orders of dimensions"]
    [axis] = axes
    shapes = []
    for port in past:
        heads, size = port.shape[3 - axis], port.shape[3]
        shapes.append(
            (heads if isinstance(heads, int) else config.kv_heads, size if isinstance(size, int) else config.head_size)
        )
    if any(0 in shape for shape in shapes):
        return axis, [], ["names no size for the heads of its cache, and config.json does not either"]
    return axis, shapes, []


def _length_axis(shape: tuple[int | str | None, ...]) -> int:
    """1 or 2; 0 for an unsupported shape."""
    if len(shape) != 4:
        return 0
    fixed = [isinstance(size, int) for size in shape[1:3]]
    if any(fixed):
        return {(True, False): 2, (False, True): 1, (True, True): 0}[fixed[0], fixed[1]]
    # Both are free: names tell, and exporters put "past_sequence_length" or the like.
    first, second = (any(word in str(size) for word in _LENGTH_NAMES) for size in shape[1:3])
    return 1 if first and not second else 2
