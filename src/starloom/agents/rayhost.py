"""An agent inside a Ray actor. Ray knows nothing of Starloom's work: it starts the process, and starts it again.

Everything the agent needs is in the actor's arguments, so Ray brings it back without a word from the
driver. `orchestrator.raycluster` makes the class an actor; nothing here imports Ray.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Final, Protocol

from starloom.agents.agent import Agent, AgentConfig
from starloom.dag import limits

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ENDED_EARLY: Final = 70
"""The exit status of an actor whose agent ended without having been told to."""

_log = logging.getLogger(__name__)


class Runs(Protocol):
    """What is needed of an agent: `run` lasts until `stop`."""

    async def start(self) -> None: ...
    async def run(self) -> None: ...
    async def stop(self) -> None: ...


class AgentActor:
    """Runs one agent in an event loop and thread of its own, so that nothing Ray does delays its heartbeats.

    If the agent's `run` ends otherwise than by `stop`, the process ends, and Ray starts another one; so it does
    START_AGAIN_SECONDS after a `start` that failed.
    """

    def __init__(self, config: AgentConfig, log_file: str, make: Callable[[AgentConfig], Runs] = Agent) -> None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=log_file, level=logging.INFO, format=LOG_FORMAT, force=True)
        self._make = make
        self._stopping = False
        self._stopped = asyncio.Event()
        self._started: Future[tuple[Runs, asyncio.AbstractEventLoop]] = Future()
        self._thread = Thread(target=self._live, args=(config,), name="agent", daemon=True)
        self._thread.start()

    async def ready(self) -> int:
        """The process's id, once the agent has started. Raises what its `start` raised."""
        await asyncio.wrap_future(self._started)
        return os.getpid()

    async def stop(self) -> int:
        """Stops the agent in order: it says goodbye. Returns the process's id."""
        self._stopping = True
        agent, loop = await asyncio.wrap_future(self._started)
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(agent.stop(), loop))
        finally:
            loop.call_soon_threadsafe(self._stopped.set)
        return os.getpid()

    def _live(self, config: AgentConfig) -> None:
        try:
            asyncio.run(self._run(config))
        except BaseException as error:
            _log.exception("agent %s failed", config.name)
            if not self._started.done():
                self._started.set_exception(error)
                # Whoever waits for `ready` is told first; and a fault that stays is not met at once again.
                time.sleep(limits.START_AGAIN_SECONDS)
        if not self._stopping:
            _log.error("agent %s ended without having been told to; its process ends", config.name)
            logging.shutdown()
            os._exit(ENDED_EARLY)

    async def _run(self, config: AgentConfig) -> None:
        agent = self._make(config)
        await agent.start()
        self._started.set_result((agent, asyncio.get_running_loop()))
        await agent.run()
        if self._stopping:
            # The loop must not end while `stop`, which ends `run`, still has a goodbye to send.
            await self._stopped.wait()
