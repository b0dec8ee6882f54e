"""The family of language models that ships: its sizes, and the word for the largest one."""

from collections.abc import Mapping
from typing import Final

from starloom.agents.manifest import ModelEntry, shipped

LARGEST: Final = "starloom"
"""Where a model is named, it stands for the largest size that ships.

All sizes together are below 25 MB, so whatever node runs the other stages has room for the largest.
"""

_PREFIX: Final = f"{LARGEST}-"


def sizes(manifest: Mapping[str, ModelEntry] | None = None) -> list[str]:
    """The names of the sizes, smallest first, in the shipped manifest unless another is given."""
    found = shipped() if manifest is None else manifest
    names = [name for name in found if name.startswith(_PREFIX)]
    return sorted(names, key=lambda name: sum(file.bytes for file in found[name].files))


def chosen(name: str) -> str:
    """The model that a name stands for: itself, but for the word for the largest size."""
    return sizes()[-1] if name == LARGEST else name
