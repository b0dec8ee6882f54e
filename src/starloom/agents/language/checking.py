"""Whether a folder holds a language model that can run here, before it is added to the store."""

from collections.abc import Mapping
from pathlib import Path

from starloom.agents.language.files import Files
from starloom.agents.language.model import load
from starloom.dag.errors import InvalidInput, Problem, StarloomError


def problems(name: str, files: Mapping[str, Path]) -> list[Problem]:
    """All that keeps the files, by their names in the store, from being a language model."""
    try:
        load(Files(files), name)
    except InvalidInput as error:
        return list(error.problems)
    except StarloomError as error:
        return [Problem(name, str(error))]
    return []
