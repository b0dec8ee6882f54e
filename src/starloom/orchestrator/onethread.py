"""A thread that works for an event loop, one call after another."""

import asyncio
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class OneThread:
    """Does what it is asked to in order, and gives futures of the event loop it was made on.

    For calls that are made all the time: an executor's locks and second future cost four times as much
    processor time, which every stage of a chain would wait for.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> asyncio.Future[Result]:
        """Has the thread call a function; the future ends with what it returns or raises."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._asked.put((partial(function, *args, **kwargs), future))
        return future

    def close(self) -> None:
        """Returns when everything that was asked is done, and the thread has ended. May be called again."""
        self._asked.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            function, future = asked
            result, raised = None, None
            try:
                result = function()
            # Whoever waits for the future is told, whatever it is.
            except BaseException as error:
                raised = error
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, raised)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                return
            # A waiting thread keeps nothing of the last call alive.
            del asked, function, future, result, raised


def _settle(future: asyncio.Future[Any], result: Any, raised: BaseException | None) -> None:
    if future.cancelled():
        return
    if raised is None:
        future.set_result(result)
    else:
        future.set_exception(raised)
