"""The floor: asyncio tasks in one process, each of which waits for those before it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starloom.orchestrator.bench.shapes import Shape


class FloorRunner:
    """One event loop, which lasts."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def run(self, graph: Shape) -> None:
        """See `peerhost.Runner`."""
        self._runner.run(_run(graph))


@contextmanager
def open_peers() -> Iterator[dict[str, FloorRunner]]:
    """Starts the loop."""
    with asyncio.Runner() as runner:
        yield {"floor": FloorRunner(runner)}


async def _run(graph: Shape) -> None:
    tasks: list[asyncio.Task[Any]] = []
    for upstreams in graph.upstreams:
        tasks.append(asyncio.create_task(_stage([tasks[upstream] for upstream in upstreams])))
    await asyncio.gather(*tasks)


async def _stage(upstreams: list[asyncio.Task[Any]]) -> Any:
    values = [await upstream for upstream in upstreams]
    return values[0] if values else None
