"""The thread in which an agent's stream stages run, with its event loop, and the way between that and the agent's loop.

Foreign code that holds up this loop holds up streams, but not the agent's heartbeats; and between stages of one agent
a chunk goes from one to the next without changing threads.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

from starloom.dag.errors import Unavailable

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Loops:
    """The agent's loop, on which this is made, and that of its stream stages, whose thread starts with the first use."""

    def __init__(self, name: str) -> None:
        self.agent = asyncio.get_running_loop()
        self._name = name
        self._streams: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def started(self) -> bool:
        """Whether there is a loop of stream stages yet."""
        return self._streams is not None

    @property
    def streams(self) -> asyncio.AbstractEventLoop:
        """The loop of stream stages. From the agent's loop only."""
        if self._streams is None:
            self._streams = asyncio.new_event_loop()
            # A daemon: a stage that holds up the loop must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, args=(self._streams,), name=self._name, daemon=True)
            self._thread.start()
        return self._streams

    async def on_streams(self, work: Coroutine[Any, Any, Result]) -> Result:
        """From the agent's loop: the result of work on the other; a cancel goes there. Raises Unavailable after `stop`."""
        if self._stopped:
            work.close()
            raise Unavailable("the agent is stopping")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.streams))

    def to_streams(self, call: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Has a function called on the loop of stream stages; nothing happens where that has ended."""
        with suppress(RuntimeError):
            self.streams.call_soon_threadsafe(call, *arguments)

    def on_agent(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """From the loop of stream stages: work begins on the agent's."""
        return asyncio.run_coroutine_threadsafe(work, self.agent)

    def to_agent(self, call: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
        """Has a function called on the agent's loop; nothing happens where that has ended."""
        with suppress(RuntimeError):
            self.agent.call_soon_threadsafe(call, *arguments)

    async def stop(self, seconds: float) -> bool:
        """Cancels what runs on the loop of stream stages and ends it; whether it ended within `seconds`."""
        loop, thread, self._stopped = self._streams, self._thread, True
        if loop is None or thread is None:
            return True
        loop.call_soon_threadsafe(lambda: asyncio.ensure_future(_end(loop)))
        await asyncio.to_thread(thread.join, seconds)
        return not thread.is_alive()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end(loop: asyncio.AbstractEventLoop) -> None:
    left = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    loop.stop()
