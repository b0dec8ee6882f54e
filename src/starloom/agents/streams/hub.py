"""The streams that an agent's stages produce, by name, on the event loop of its stream stages."""

import asyncio

from starloom.agents.streams.flow import Flow, Reading
from starloom.agents.streams.records import How, ReadOpen, StreamName
from starloom.dag.ids import JobId


class Hub:
    """Flows by name. One that is asked for before it is there is waited for: its attempt may be yet to come."""

    def __init__(self) -> None:
        self._flows: dict[StreamName, Flow] = {}
        self._wanted: dict[StreamName, list[asyncio.Future[Flow]]] = {}

    def add(self, name: StreamName, flow: Flow) -> None:
        """A stream begins."""
        self._flows[name] = flow
        for wanted in self._wanted.pop(name, ()):
            if not wanted.done():
                wanted.set_result(flow)

    def get(self, name: StreamName) -> Flow | None:
        """A stream, if it is there."""
        return self._flows.get(name)

    async def open(self, wish: ReadOpen) -> Reading:
        """A reader's way through a stream, once that is there. Raises StreamGone and InvalidInput."""
        flow = self._flows.get(wish.stream)
        if flow is None:
            wanted = asyncio.get_running_loop().create_future()
            waiting = self._wanted.setdefault(wish.stream, [])
            waiting.append(wanted)
            try:
                flow = await wanted
            finally:
                waiting.remove(wanted)
                if not waiting and self._wanted.get(wish.stream) is waiting:
                    del self._wanted[wish.stream]
        return flow.open(wish)

    def release(self, job: JobId) -> None:
        """Forgets a job's streams."""
        for name in [name for name in self._flows if name.job == job]:
            self._flows.pop(name).finish(How.CANCELLED, "the job has ended")
