"""Starloom runs a constellation of stages across device, edge and cloud nodes.

    from starloom import Client, Graph

`Client`, `AsyncClient` and `Graph` are imported when they are first asked for, so that `import starloom`
costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from starloom.dag.builder import Graph
    from starloom.orchestrator.client import AsyncClient
    from starloom.orchestrator.clientsync import Client

__all__ = ["AsyncClient", "Client", "Graph", "__version__"]
__version__ = "0.1.0"

_LAZY: Final = {
    "AsyncClient": "starloom.orchestrator.client",
    "Client": "starloom.orchestrator.clientsync",
    "Graph": "starloom.dag.builder",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
