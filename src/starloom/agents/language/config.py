"""What of a model's config.json, generation_config.json and tokenizer_config.json is needed to run it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from starloom.dag.errors import InvalidInput, Problem

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes of a decoder: 0 where its files do not say. `ends` are the tokens that end a text.

    `context`: tokens of prompt and answer together. `kv_heads` and `head_size`: of the cache.
    """

    architecture: str = ""
    is_encoder_decoder: bool = False
    vocabulary: int = 0
    context: int = 0
    kv_heads: int = 0
    head_size: int = 0
    ends: frozenset[int] = frozenset()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; raises InvalidInput, naming it, for anything else."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput([Problem(path.name, f"cannot be read: {error}")], "a model's file is unusable") from error
    if not isinstance(found, dict):
        raise InvalidInput([Problem(path.name, "is no JSON object")], "a model's file is unusable")
    return found


def read_config(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Config:
    """The sizes in `config` (config.json) and the ends of `generation` (generation_config.json), or of `config`.

    Raises InvalidInput, listing every value of a wrong type.
    """
    problems: list[Problem] = []
    # Models that read images as well keep their decoder's sizes one level deeper.
    inner = config.get("text_config")
    sizes = {**config, **inner} if isinstance(inner, Mapping) else config

    def size(*names: str) -> int:
        for name in names:
            found = sizes.get(name)
            if found is None:
                continue
            if isinstance(found, bool) or not isinstance(found, int) or found <= 0:
                problems.append(Problem(f"config.json {name}", f"is {found!r}, no integer above 0"))
                return 0
            return found
        return 0

    heads = size("num_attention_heads", "n_head", "num_heads")
    width = size("hidden_size", "n_embd", "d_model")
    made = Config(
        architecture=str(sizes.get("model_type", "")),
        is_encoder_decoder=config.get("is_encoder_decoder") is True,
        vocabulary=size("vocab_size"),
        context=size(*_CONTEXT_NAMES),
        kv_heads=size("num_key_value_heads", "num_kv_heads") or heads,
        head_size=size("head_dim") or (width // heads if heads else 0),
        ends=_ends(generation, "generation_config.json", problems) or _ends(sizes, "config.json", problems),
    )
    if problems:
        raise InvalidInput(problems, "a model's config is unusable")
    return made


def _ends(found: Mapping[str, Any], place: str, problems: list[Problem]) -> frozenset[int]:
    """`eos_token_id`, one or several."""
    raw = found.get("eos_token_id")
    listed: Iterable[Any] = raw if isinstance(raw, list) else [] if raw is None else [raw]
    ends = list(listed)
    if any(isinstance(end, bool) or not isinstance(end, int) for end in ends):
        problems.append(Problem(f"{place} eos_token_id", f"is {raw!r}, neither a token's number nor a list of them"))
        return frozenset()
    return frozenset(ends)
