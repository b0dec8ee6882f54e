"""All events of a cluster as they come, kept in order; they go on where they were after a restart."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from starloom.orchestrator.client import AsyncClient
from starloom.orchestrator.infos import Event


class Watch:
    """Follows a cluster from its first event on, inside `async with`; `events` are those that came."""

    def __init__(self, client: AsyncClient) -> None:
        self.events: list[Event] = []
        self._client = client
        self._came = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._following is not None
        self._following.cancel()
        with suppress(asyncio.CancelledError):
            await self._following

    @property
    def last(self) -> int:
        """The offset of the last event that came; 0 before the first."""
        return self.events[-1].offset if self.events else 0

    async def until(self, holds: Callable[[Event], bool], begin: int) -> Event:
        """The first event from `events[begin]` on of which it holds, once it is there. Raises what ended the events."""
        while True:
            while begin < len(self.events):
                if holds(self.events[begin]):
                    return self.events[begin]
                begin += 1
            assert self._following is not None
            if self._following.done():
                self._following.result()
            self._came.clear()
            await self._came.wait()

    async def _follow(self) -> None:
        try:
            async for event in self._client.events():
                self.events.append(event)
                self._came.set()
        finally:
            self._came.set()
