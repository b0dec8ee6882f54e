"""Ray tasks and Ray actors on one local cluster, set up as Starloom's own."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from starloom.agents.stages.tensors import next_tensor
from starloom.orchestrator.bench.shapes import Shape
from starloom.orchestrator.raycluster import RayCluster

WORKERS: Final = 4
_OBJECT_STORE_BYTES: Final = 1024 * 1024 * 1024


class _Actor:
    def first(self, *values: Any) -> Any:
        return values[0] if values else None

    def tensor(self, size: int, *values: Any) -> Any:
        return next_tensor(size, values[0] if values else None)


def _first(*values: Any) -> Any:
    return values[0] if values else None


class TaskRunner:
    """Every stage is a Ray task."""

    def __init__(self) -> None:
        import ray

        self._task = ray.remote(_first)

    def run(self, graph: Shape) -> None:
        """See `peerhost.Runner`."""
        import ray

        ray.get(self._results(graph))

    def start(self, graph: Shape, done: Callable[[], None]) -> None:
        """See `peerhost.Paced`; of a graph with one sink."""
        _call_back(self._results(graph), done)

    def _results(self, graph: Shape) -> list[Any]:
        results: list[Any] = []
        for upstreams in graph.upstreams:
            results.append(self._task.remote(*(results[upstream] for upstream in upstreams)))
        return [results[sink] for sink in graph.sinks]


class ActorRunner:
    """Every stage is a call to one of the actors, in turns where it is pinned to none."""

    def __init__(self) -> None:
        import ray

        actor: Any = ray.remote(_Actor)
        self._actors = [actor.remote() for _ in range(WORKERS)]
        ray.get([actor.first.remote() for actor in self._actors])

    def run(self, graph: Shape) -> None:
        """See `peerhost.Runner`."""
        import ray

        ray.get(self._results(graph))

    def start(self, graph: Shape, done: Callable[[], None]) -> None:
        """See `peerhost.Paced`; of a graph with one sink."""
        _call_back(self._results(graph), done)

    def _results(self, graph: Shape) -> list[Any]:
        results: list[Any] = []
        for index, (upstreams, pin) in enumerate(zip(graph.upstreams, graph.workers, strict=True)):
            actor = self._actors[index % WORKERS if pin is None else pin]
            inputs = [results[upstream] for upstream in upstreams]
            if graph.value_bytes:
                results.append(actor.tensor.remote(graph.value_bytes, *inputs))
                # As Ray's own users would: a reference that is let go frees its memory for the next tensor.
                results[:-1] = [None] * index
            else:
                results.append(actor.first.remote(*inputs))
        return [results[sink] for sink in graph.sinks]


class CompiledRunner:
    """A chain is a compiled graph, on actors that it has for itself. Compiled when it is first run."""

    def __init__(self) -> None:
        self._graphs: dict[Shape, Any] = {}

    def run(self, graph: Shape) -> None:
        """See `peerhost.Runner`."""
        import ray

        compiled = self._graphs.get(graph)
        if compiled is None:
            compiled = self._graphs[graph] = self._compile(graph)
        ray.get(compiled.execute(None))

    def _compile(self, graph: Shape) -> Any:
        import ray
        from ray.dag import InputNode

        actor: Any = ray.remote(_Actor)
        actors = {pin: actor.remote() for pin in graph.workers}
        node: Any
        with InputNode() as node:
            for pin in graph.workers:
                node = actors[pin].first.bind(node)
        return node.experimental_compile()


@contextmanager
def open_peers() -> Iterator[dict[str, TaskRunner | ActorRunner | CompiledRunner]]:
    """Starts Ray and the actors."""
    with tempfile.TemporaryDirectory(prefix="starloom-bench-") as logs:
        cluster = RayCluster(
            tuple(f"peer-{number}" for number in range(WORKERS)), Path(logs), object_store_bytes=_OBJECT_STORE_BYTES
        )
        cluster.start()
        try:
            yield {"ray-tasks": TaskRunner(), "ray-actors": ActorRunner(), "ray-compiled": CompiledRunner()}
        finally:
            cluster.stop()


def _call_back(results: Sequence[Any], done: Callable[[], None]) -> None:
    [last] = results
    last.future().add_done_callback(lambda _: done())
