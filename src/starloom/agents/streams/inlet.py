"""A stream input as its stage sees it: chunks taken from a source, decoded, and acknowledged as the stage goes on."""

from collections import deque
from typing import Any, Protocol, Self

from starloom.agents import values
from starloom.agents.stage import Received
from starloom.agents.streams.flow import Reading
from starloom.agents.streams.hub import Hub
from starloom.agents.streams.records import Credit, How, ReadOpen, StreamBatch, StreamChunk, StreamEnd
from starloom.dag.errors import InputUnavailable
from starloom.dag.ids import AgentId, StageId
from starloom.dag.values import PortType

_ACKNOWLEDGE_CHUNKS = 4


class Source(Protocol):
    """Where an inlet's chunks come from."""

    @property
    def generation(self) -> int:
        """The greatest generation that is known."""
        ...

    @property
    def starved(self) -> bool:
        """Whether there is nothing to take, and nobody but a stage of this agent can change that."""
        ...

    async def overtaken(self, generation: int) -> int:
        """Waits for a greater generation than this."""
        ...

    async def next(self) -> StreamBatch:
        """What comes next. Raises InputUnavailable where nothing can come any more."""
        ...

    def acknowledge(self, offset: int) -> None:
        """All chunks below the offset are done with."""
        ...

    def close(self) -> None:
        """No more chunks are wanted, only the end."""
        ...

    def stop(self) -> None:
        """Nothing is wanted any more."""
        ...


class LocalSource:
    """A stream of this agent's own: read where it lies."""

    def __init__(self, hub: Hub, wish: ReadOpen) -> None:
        self._hub = hub
        self._wish = wish
        self._reading: Reading | None = None
        self._closed = False

    @property
    def generation(self) -> int:
        return self._reading.generation if self._reading else 0

    @property
    def starved(self) -> bool:
        return self._reading is not None and self._reading.starved

    async def overtaken(self, generation: int) -> int:
        return await (await self._open()).overtaken(generation)

    async def next(self) -> StreamBatch:
        return await (await self._open()).next()

    def acknowledge(self, offset: int) -> None:
        if self._reading is not None:
            self._reading.credit(Credit(offset, self._wish.credit.window))

    def close(self) -> None:
        self._closed = True
        if self._reading is not None:
            self._reading.close()

    def stop(self) -> None:
        return

    async def _open(self) -> Reading:
        if self._reading is None:
            # Here and not at once: it may be that the stream is yet to begin.
            reading = await self._hub.open(self._wish)
            if self._reading is None:
                self._reading = reading
                if self._closed:
                    reading.close()
        return self._reading


class Inlet:
    """`stage.StreamInput`. `upstream` and `agent` name whose stream it is; `end` is there after its last chunk."""

    def __init__(self, port: str, port_type: PortType, source: Source, upstream: StageId, agent: AgentId) -> None:
        self.port = port
        self.upstream = upstream
        self.agent = agent
        self.end: StreamEnd | None = None
        #: why the stream broke, if it did
        self.broken: InputUnavailable | None = None
        #: bytes that the stage has taken
        self.bytes = 0
        #: whether the stage waits for a chunk
        self.waiting = False
        self._type = port_type
        self._source = source
        self._queue: deque[StreamChunk] = deque()
        #: all below it was given to the stage, or passed over
        self._given = 0
        self._acknowledged = 0
        self._dropped = 0
        self._stale = 0
        self._passed = 0
        self._closed = False

    @property
    def generation(self) -> int:
        return self._source.generation

    @property
    def starved(self) -> bool:
        """Whether the stage waits for a chunk that only another stage of this agent can give."""
        return self.waiting and self._source.starved

    async def overtaken(self, generation: int) -> int:
        return await self._source.overtaken(generation)

    @property
    def dropped(self) -> int:
        return self._dropped

    @property
    def stale(self) -> int:
        return self._stale + self._passed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        # Whoever asks for another is done with the one before.
        done = self._given
        while True:
            if self._closed:
                raise StopAsyncIteration
            self._pass_stale()
            if self._queue:
                break
            if self.end is not None:
                raise StopAsyncIteration
            self._acknowledge(max(done, self._given))
            await self._more()
        chunk = self._queue.popleft()
        self._given = chunk.offset + 1
        self.bytes += len(chunk.data)
        if done - self._acknowledged >= _ACKNOWLEDGE_CHUNKS:
            self._acknowledge(done)
        return self._received(chunk)

    def close(self) -> None:
        self._closed = True
        self._queue.clear()
        self._source.close()

    async def finished(self) -> StreamEnd:
        """Wants no more, and waits for the end of the stream. Raises InputUnavailable where it breaks."""
        self.close()
        while self.end is None:
            await self._more()
            self._queue.clear()
        return self.end

    def stop(self) -> None:
        """Lets the source go, whatever became of the stage."""
        self._source.stop()

    async def _more(self) -> None:
        if self.broken is not None:
            raise self.broken
        self.waiting = True
        try:
            batch = await self._source.next()
        except InputUnavailable as error:
            self.broken = error
            raise
        finally:
            self.waiting = False
        self._dropped, self._stale = batch.dropped, batch.stale
        self._queue.extend(batch.chunks)
        if batch.end is None:
            return
        if batch.end.how is How.FINISHED:
            self.end = batch.end
            return
        why = f": {batch.end.message}" if batch.end.message else ""
        self.broken = InputUnavailable(f"the stream of {self.upstream or 'the job'} was {batch.end.how}{why}")
        if not self._queue:
            raise self.broken

    def _pass_stale(self) -> None:
        while self._queue and self._queue[0].generation < self.generation:
            self._given = self._queue.popleft().offset + 1
            self._passed += 1

    def _acknowledge(self, offset: int) -> None:
        if offset > self._acknowledged:
            self._acknowledged = offset
            self._source.acknowledge(offset)

    def _received(self, chunk: StreamChunk) -> Received:
        meta: dict[str, Any] = chunk.meta
        value = values.decode(self._type, chunk.data, meta, f"chunk {chunk.offset} of {self.port}")
        at = meta.get("at")
        return Received(value, chunk.offset, chunk.generation, at if isinstance(at, int | float) else None)
