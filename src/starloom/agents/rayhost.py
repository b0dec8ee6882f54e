"""An agent, or whatever else runs until it is stopped, inside a Ray actor. Ray knows nothing of its work: it starts the
process, and starts it again.

Everything that is needed is in the actor's arguments, so Ray brings it back without a word from the
driver. `orchestrator.raycluster` makes the class an actor; nothing here imports Ray.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Final, Generic, Protocol, TypeVar

from starloom.dag import limits

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ENDED_EARLY: Final = 70
"""The exit status of an actor whose guest ended without having been told to."""

_log = logging.getLogger(__name__)


class Named(Protocol):
    """What says how a guest is to be: it has a name."""

    @property
    def name(self) -> str: ...


Config = TypeVar("Config", bound=Named)


class Guest(Protocol):
    """What is needed of an agent, and of any other guest: `run` lasts until `stop`."""

    async def start(self) -> None: ...
    async def run(self) -> None: ...
    async def stop(self) -> None: ...


class HostActor(Generic[Config]):
    """Runs one guest in an event loop and thread of its own, so that nothing Ray does delays its heartbeats.

    If the guest's `run` ends otherwise than by `stop`, the process ends, and Ray starts another one; so it does
    START_AGAIN_SECONDS after a `start` that failed.
    """

    def __init__(self, config: Config, log_file: str, make: Callable[[Config], Guest]) -> None:
        _log_to(Path(log_file))
        self._make = make
        self._stopping = False
        self._stopped = asyncio.Event()
        self._started: Future[tuple[Guest, asyncio.AbstractEventLoop]] = Future()
        self._thread = Thread(target=self._live, args=(config,), name="guest", daemon=True)
        self._thread.start()

    async def ready(self) -> int:
        """The process's id, once the guest has started. Raises what its `start` raised."""
        await asyncio.wrap_future(self._started)
        return os.getpid()

    async def stop(self) -> int:
        """Stops the guest in order: an agent says goodbye. Returns the process's id."""
        self._stopping = True
        guest, loop = await asyncio.wrap_future(self._started)
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(guest.stop(), loop))
        finally:
            loop.call_soon_threadsafe(self._stopped.set)
        return os.getpid()

    def _live(self, config: Config) -> None:
        try:
            asyncio.run(self._run(config))
        except BaseException as error:
            _log.exception("%s failed", config.name)
            if not self._started.done():
                self._started.set_exception(error)
                # Whoever waits for `ready` is told first; and a fault that stays is not met at once again.
                time.sleep(limits.START_AGAIN_SECONDS)
        if not self._stopping:
            _log.error("%s ended without having been told to; its process ends", config.name)
            logging.shutdown()
            os._exit(ENDED_EARLY)

    async def _run(self, config: Config) -> None:
        guest = self._make(config)
        await guest.start()
        # What was imported and read until here stays, and is much: the collector need not walk over it again and again.
        gc.freeze()
        self._started.set_result((guest, asyncio.get_running_loop()))
        await guest.run()
        if self._stopping:
            # The loop must not end while `stop`, which ends `run`, still has a goodbye to send.
            await self._stopped.wait()


def _log_to(file: Path) -> None:
    """Logs into a file; where that cannot be, on standard error: Ray never starts an actor again whose construction failed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=file, level=logging.INFO, format=LOG_FORMAT, force=True)
    except OSError as error:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, force=True)
        _log.warning("no log file: %s", error)
