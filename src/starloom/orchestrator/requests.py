"""Requests that were asked of the coordinator and are not answered yet, by their numbers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starloom.dag.errors import StarloomError, Unavailable
from starloom.orchestrator.effects import Answer, Result


class Requests:
    """Gives each request its number, and its answer to whoever waits. For one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Result]] = {}
        self._last = 0

    @contextmanager
    def open(self) -> Iterator[tuple[int, asyncio.Future[Result]]]:
        """A request's number and its answer, which is not waited for any more afterwards."""
        self._last += 1
        request = self._last
        answer = self._waiting[request] = self._loop.create_future()
        try:
            yield request, answer
        finally:
            del self._waiting[request]

    def answer(self, answer: Answer) -> None:
        """A request is answered, with a result or an error, if anybody waits for that."""
        waiting = self._waiting.get(answer.request)
        if waiting is None or waiting.done():
            return
        if isinstance(answer.result, StarloomError):
            waiting.set_exception(answer.result)
        else:
            waiting.set_result(answer.result)

    def end(self) -> None:
        """No request will be answered: each ends as Unavailable."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(gone())


def gone() -> Unavailable:
    """What those are told who ask an orchestrator that stops."""
    return Unavailable("the orchestrator is stopping; ask again when it is back")
