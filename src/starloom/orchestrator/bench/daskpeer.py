"""dask.distributed on 127.0.0.1: a scheduler in this process, four worker processes, no dashboard."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, groupby
from typing import Any, Final

from starloom.orchestrator.bench.shapes import Form, Shape

WORKERS: Final = 4
_LOOPBACK = "127.0.0.1"


def first(*values: Any) -> Any:
    """The stage: its first input, or None."""
    return values[0] if values else None


class DaskRunner:
    """A dask client with its workers' addresses.

    Of the two ways to hand in a graph, one graph was faster for JOBS and futures for WIDE; for the others neither was.
    `map` takes many stages at once where they don't wait for each other. Nothing is gathered, only waited for.
    """

    def __init__(self, distributed: Any, client: Any) -> None:
        self._wait = distributed.wait
        self._client = client
        self._workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
        self._runs = count()

    def run(self, graph: Shape) -> None:
        """See `peerhost.Runner`."""
        if graph.form is Form.JOBS:
            self._run_graph(graph)
        else:
            self._run_futures(graph)

    def start(self, graph: Shape, done: Callable[[], None]) -> None:
        """See `peerhost.Paced`."""
        futures: list[Any] = []
        for upstreams in graph.upstreams:
            futures.append(self._client.submit(first, *(futures[upstream] for upstream in upstreams), pure=False))
        last = futures[-1]

        def ended(_: Any) -> None:
            # dask forgets what nobody has a future of, whether it has ended or not.
            futures.clear()
            done()

        last.add_done_callback(ended)

    def _run_futures(self, graph: Shape) -> None:
        futures: list[Any] = []
        for batch in batches(graph):
            pin = graph.workers[batch[0]]
            where = {} if pin is None else {"workers": [self._workers[pin]]}
            inputs = [[futures[upstream] for upstream in graph.upstreams[index]] for index in batch]
            if len(batch) == 1:
                futures.append(self._client.submit(first, *inputs[0], pure=False, **where))
            elif inputs[0]:
                futures.extend(self._client.map(first, *zip(*inputs, strict=True), pure=False, **where))
            else:
                futures.extend(self._client.map(first, batch, pure=False, **where))
        self._wait([futures[sink] for sink in graph.sinks])

    def _run_graph(self, graph: Shape) -> None:
        # A name that was there before would give its old result.
        run = next(self._runs)
        names = [f"stage-{run}-{index}" for index in range(len(graph.upstreams))]
        tasks = {
            name: (first, *(names[upstream] for upstream in upstreams))
            for name, upstreams in zip(names, graph.upstreams, strict=True)
        }
        self._client.get(tasks, [names[sink] for sink in graph.sinks])


@contextmanager
def open_peers() -> Iterator[dict[str, DaskRunner]]:
    """Starts the workers."""
    distributed: Any = importlib.import_module("distributed")
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, host=_LOOPBACK, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield {"dask": DaskRunner(distributed, client)}


def batches(graph: Shape) -> list[list[int]]:
    """The stages in order, in runs that can be handed in at once: as many inputs each, one pin, none waits for another."""
    found: list[list[int]] = []
    alike = groupby(range(len(graph.upstreams)), lambda index: (len(graph.upstreams[index]), graph.workers[index]))
    for _, run in alike:
        batch: list[int] = []
        for index in run:
            if batch and any(upstream >= batch[0] for upstream in graph.upstreams[index]):
                found.append(batch)
                batch = []
            batch.append(index)
        found.append(batch)
    return found
