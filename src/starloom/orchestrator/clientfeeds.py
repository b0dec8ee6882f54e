"""The streams of one job, as a client has them: reads its outputs chunk by chunk, and feeds its inputs."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starloom.agents.streams.records import How, generation_fault
from starloom.agents.values import encode
from starloom.dag.constellation import Constellation
from starloom.dag.errors import InvalidInput, JobFailed, NotFound, Problem
from starloom.dag.ids import JobId
from starloom.dag.values import PortType
from starloom.orchestrator.clientstreams import Feed, Reading, value_of
from starloom.orchestrator.infos import StreamItem

if TYPE_CHECKING:
    from starloom.orchestrator.client import AsyncClient


class StreamingJob:
    """What a client does with the streams of a job."""

    def __init__(self, client: "AsyncClient", job_id: JobId, constellation: Constellation | None) -> None:
        self.id = job_id
        self._client = client
        self._constellation = constellation
        self._feeds: dict[str, Feed] = {}

    @abstractmethod
    async def _known(self) -> Constellation:
        """The job's constellation, asked for if need be."""

    @abstractmethod
    async def _raise_unless_succeeded(self) -> None:
        """Waits for the job's end, and raises how it ended, unless it succeeded."""

    async def _values_of(self, port: str) -> AsyncGenerator[Any, None]:
        async with aclosing(self.chunks(port)) as chunks:
            async for chunk in chunks:
                yield chunk.value

    async def chunks(self, port: str, after: int = 0) -> AsyncGenerator[StreamItem, None]:
        """The chunks of a declared output that is a stream, from the offset `after` on, each once and in order.

        Goes on over breaks and restarts of the orchestrator, without a gap and without a repeat, also where a stage
        that gives the same again had to begin again. Whoever does not ask for the next chunk gets none: at most a
        window of them is on the way. Ends with the stream, which may be before the job ends.

        Raises StreamGone or DigestMismatch where the stream was produced again and came out differently from what was
        read, JobFailed or Cancelled where the job ends without the stream's end, and NotFound.
        """
        port_type = await self.chunk_type(port)
        if port_type is None:
            raise NotFound(f"job {self.id} has no stream among its outputs that is called {port!r}, but a value")
        reading = Reading(self._client._link, self.id, port, after)
        async with aclosing(reading.chunks()) as chunks:
            async for chunk in chunks:
                yield value_of(port_type, chunk, f"outputs.{port}")
        if reading.end is not None and reading.end.how is not How.FINISHED:
            await self._raise_unless_succeeded()
            raise JobFailed(f"job {self.id} ended without the whole of its stream {port!r}: its stage was skipped")

    async def send(self, port: str, value: Any, at: float | None = None, generation: int = 0) -> int:
        """Feeds the next chunk of an input stream; returns its offset.

        `at` is the time of the event that it tells of, in seconds on any clock that the stages agree on. A greater
        `generation` makes what was fed before stale. Returns once the chunk is within the window: `flush` waits until
        all are taken in. Where the stages are slow, this waits for them, unless the input's policy drops chunks. One
        client at a time feeds an input.

        Raises Conflict for a job that has ended, a stream that was closed, or where another client feeds it, and
        InvalidInput.
        """
        feed = await self._feed(port)
        place = f"inputs.{port}[{feed.next}]"
        if wrong := generation_fault(generation):
            raise InvalidInput([Problem(place, wrong)])
        data, meta = await asyncio.to_thread(encode, feed.type, value, place)
        return await feed.send(data, meta if at is None else {**meta, "at": at}, generation)

    async def flush(self, port: str) -> int:
        """Returns once all chunks of an input stream are taken in, and durable if it is spooled; with their number."""
        return await (await self._feed(port)).flush()

    async def close(self, port: str) -> int:
        """Ends an input stream; returns the number of its chunks. Again is fine."""
        return await (await self._feed(port)).close()

    async def _feed(self, port: str) -> Feed:
        feed = self._feeds.get(port)
        if feed is None:
            declared = (await self._known()).inputs
            found = declared.get(port)
            if found is None or not found.stream:
                streams = ", ".join(name for name, each in declared.items() if each.stream) or "none"
                raise NotFound(f"job {self.id} has no input stream {port!r}; it has {streams}")
            feed = self._feeds[port] = Feed(self._client._link, self.id, port, found.type)
        return feed

    async def chunk_type(self, port: str) -> PortType | None:
        """What the chunks of a declared output are; None for one that is no stream. Raises NotFound for no output at all."""
        constellation = await self._known()
        output = constellation.outputs.get(port)
        if output is None:
            known = ", ".join(constellation.outputs) or "none"
            raise NotFound(f"job {self.id} has no output {port!r}; its outputs: {known}")
        stage = constellation.stages.get(output.upstream)
        kind = (await self._client.kinds()).get(stage.kind) if stage is not None else None
        found = kind.outputs.get(output.output) if kind is not None else None
        return found.type if found is not None and found.stream else None
