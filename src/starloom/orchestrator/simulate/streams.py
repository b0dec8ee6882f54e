"""Streams between simulated stages, as `agents.streams` has them: real buffers, and calls that read them over the network.

A call that breaks loses what is on its way; the next one goes on from the first chunk that has not come.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from starloom.agents.messages import Assign, Await
from starloom.agents.streams.buffer import StreamBuffer
from starloom.agents.streams.records import Bound, Credit, How, StreamBatch, StreamChunk, StreamEnd, StreamName
from starloom.dag import limits
from starloom.dag.errors import StreamGone
from starloom.dag.ids import JobId
from starloom.orchestrator.simulate.loop import SECOND, Call
from starloom.orchestrator.simulate.peering import PeerStream

if TYPE_CHECKING:
    from starloom.orchestrator.simulate.agent import AgentProcess

WINDOW = Bound(3, limits.STREAM_WINDOW_BYTES)
HERE_SECONDS = 0.00005
_PATIENCE_NANOS = round(limits.INPUT_PATIENCE_SECONDS * SECOND)


class Broken(NamedTuple):
    """Why a stream cannot be read on. `gone`: chunks that are needed are not kept any more."""

    reason: str
    gone: bool = False


class Flow:
    """One stream at its producer, and the calls that read it. `wake`: its producer may have room."""

    def __init__(self, buffer: StreamBuffer, wake: Call) -> None:
        self.buffer = buffer
        self.calls: dict[str, ReadCall] = {}
        self.wake = wake

    def append(self, data: bytes) -> None:
        """Adds a chunk, for which there has to be room."""
        self.buffer.append(data, {})
        self.pump()

    def finish(self, how: How = How.FINISHED, message: str = "") -> StreamEnd:
        """Ends the stream; the first end counts."""
        end = self.buffer.finish(how, message)
        self.pump()
        return end

    def credit(self, call: "ReadCall", credit: Credit) -> None:
        """A reader is further, unless it came again since."""
        if self.calls.get(call.inlet.reader) is call:
            self.buffer.credit(call.inlet.reader, credit)
            call.pump()
            self.wake()

    def pump(self) -> None:
        """Sends all readers what there is for them."""
        for call in tuple(self.calls.values()):
            call.pump()


class ReadCall(PeerStream):
    """One call of a reader at the process that has the stream."""

    def __init__(self, inlet: "Inlet", asked: "AgentProcess") -> None:
        super().__init__(inlet.process, asked, inlet.awaited.address, 0)
        self.inlet = inlet
        self._flow: Flow | None = None
        self._over = False

    @property
    def reaches(self) -> bool:
        return self.asking is self.asked or super().reaches

    def opened(self, flow: Flow, credit: Credit) -> None:
        """The stream is there."""
        present = flow.calls.get(self.inlet.reader)
        if present is not None and present.inlet.attempt > self.inlet.attempt:
            self.refuse(Broken("a later attempt reads this stream"))
            return
        try:
            flow.buffer.open(self.inlet.reader, credit)
        except StreamGone as error:
            self.refuse(Broken(str(error), gone=True))
            return
        if present is not None and present is not self:
            present.refuse(Broken("it is read by another call now"))
        flow.calls[self.inlet.reader] = self
        self._flow = flow
        self.pump()

    def pump(self) -> None:
        """Sends what the reader's credit allows, and the end."""
        flow, reader = self._flow, self.inlet.reader
        while flow and self.open and not self._over and flow.buffer.has_something(reader):
            batch = flow.buffer.take(reader)
            self._over = batch.end is not None
            self.send(self.asking, partial(self.inlet.came, self, batch))

    def credit(self, credit: Credit) -> None:
        """Word of the reader's progress arrives."""
        if self._flow is not None:
            self._flow.credit(self, credit)

    def refuse(self, why: Broken) -> None:
        """Ends the call with an error."""
        self._over = True
        self.send(self.asking, partial(self.inlet.refused, self, why))

    def _times(self) -> int:
        return 1

    def _seconds(self, to: "AgentProcess") -> float:
        return HERE_SECONDS if self.asking is self.asked else super()._seconds(to)

    def _broke(self) -> None:
        self.inlet.broke(self)

    def _left(self) -> None:
        self.asked.streams.left(self)


class Inlet:
    """A stream input of an attempt: what has come, and how far the stage is. `wake`: there is news for the stage."""

    def __init__(self, process: "AgentProcess", assign: Assign, awaited: Await, port: str, wake: Call) -> None:
        self.process = process
        self.awaited = awaited
        self.port = port
        self.name = StreamName(assign.task.job, awaited.upstream, awaited.token, awaited.streams[port])
        self.reader = f"{assign.task.stage}.{port}"
        self.attempt = assign.task.token.attempt
        self.queue: deque[StreamChunk] = deque()
        self.end: StreamEnd | None = None
        self.broken: Broken | None = None
        self._wake = wake
        self._call: ReadCall | None = None
        #: the first chunk that has not come, where the present call began, and what is done with
        self._next = self._base = self._acknowledged = 0
        self._stopped = False
        self._broken_at: int | None = None
        self._moved = False
        self._began = 0
        self._wait = limits.RECONNECT_FIRST_SECONDS

    @property
    def waiting(self) -> int:
        """How many chunks have come, and are not acknowledged."""
        return self._next - self._acknowledged

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""
        return self.end is not None or self.broken is not None

    def dial(self) -> None:
        """Begins a call."""
        local = self.awaited.agent == self.process.name
        seconds = HERE_SECONDS if local else 2 * self.process.world.network.latency(self.process.name)
        self.process.loop.after(seconds, self._dialed, self.process)

    def acknowledge(self, offset: int) -> None:
        """All below the offset is done with."""
        self._acknowledged = max(self._acknowledged, offset)
        call = self._call
        if call is not None:
            call.send(call.asked, partial(call.credit, self._credit()))

    def stop(self) -> None:
        """Nothing is wanted any more."""
        self._stopped = True
        if self._call is not None:
            self.process.streams.closed(self._call)
            self._call = None

    def came(self, call: ReadCall, batch: StreamBatch) -> None:
        """A batch has arrived."""
        if call is not self._call:
            return
        self._moved = True
        for chunk in batch.chunks:
            self._next = chunk.offset + 1
            self.queue.append(chunk)
        if (end := batch.end) is not None:
            if end.how is How.FINISHED:
                self.end = end
            else:
                self.broken = Broken(f"the stream of {self.awaited.upstream} was {end.how}: {end.message}")
            self.stop()
        self._wake()

    def refused(self, call: ReadCall, why: Broken) -> None:
        """The call ended with an error that no repetition mends."""
        if call is self._call:
            self.broken = why
            self.stop()
            self._wake()

    def broke(self, call: ReadCall) -> None:
        """The call broke off."""
        if call is self._call:
            self.process.streams.closed(call)
            self._call = None
            self._failed()

    def _dialed(self) -> None:
        if self._stopped:
            return
        world, here = self.process.world, self.process
        asked = here if self.awaited.agent == here.name else world.answers(here, self.awaited.address)
        self._began, self._base = here.loop.now, self._next
        if asked is None:
            self._failed()
            return
        call = self._call = ReadCall(self, asked)
        here.streams.began(call)
        if self.awaited.incarnation not in ("", asked.incarnation):
            call.refuse(Broken(f"{asked.name} was started anew since", gone=True))
            return
        asked.streams.open(self.name, call, self._credit())

    def _failed(self) -> None:
        now, chance = self.process.loop.now, self.process.chance
        lasted = now - self._began > _PATIENCE_NANOS
        if self._moved or lasted or self._broken_at is None:
            self._broken_at, self._wait = now, limits.RECONNECT_FIRST_SECONDS
        self._moved = False
        if now - self._broken_at > _PATIENCE_NANOS:
            self.broken = Broken(f"{self.awaited.address} cannot be reached")
            self._wake()
            return
        self.process.loop.after(self._wait * chance.between(0.9, 1.0), self.dial, self.process)
        self._wait = min(2 * self._wait, limits.RECONNECT_LAST_SECONDS)

    def _credit(self) -> Credit:
        """Of the window, what came by earlier calls and is not acknowledged is used up."""
        earlier = max(0, self._base - self._acknowledged)
        window = Bound(max(0, WINDOW.chunks - earlier), WINDOW.bytes)
        return Credit(max(self._acknowledged, self._base), window)


class Streams:
    """One process's streams, until their job is forgotten, and the calls that it makes and answers."""

    def __init__(self, process: "AgentProcess") -> None:
        self._process = process
        self._flows: dict[StreamName, Flow] = {}
        #: calls for streams whose attempts are yet to begin
        self._wanted: dict[StreamName, list[tuple[ReadCall, Credit]]] = {}
        self._calls: dict[ReadCall, None] = {}

    @property
    def jobs(self) -> tuple[JobId, ...]:
        """The jobs that streams are kept for."""
        return tuple(dict.fromkeys(name.job for name in self._flows))

    @property
    def links(self) -> Sequence[PeerStream]:
        """Calls to or from other processes."""
        return [call for call in self._calls if call.asking is not call.asked]

    def add(self, assign: Assign, port: str, bound: Bound, wake: Callable[[], None]) -> Flow:
        """A stream begins."""
        readers = [(reader.reader, reader.full) for reader in assign.readers if reader.port == port]
        name = StreamName(assign.task.job, assign.task.stage, assign.task.token, port)
        flow = self._flows[name] = Flow(self._process.world.parts.buffer(bound, readers), wake)
        for call, credit in self._wanted.pop(name, ()):
            if call.open:
                call.opened(flow, credit)
        return flow

    def open(self, name: StreamName, call: ReadCall, credit: Credit) -> None:
        """A reader has called; a stream that is not there is waited for."""
        self._calls[call] = None
        flow = self._flows.get(name)
        if flow is not None:
            call.opened(flow, credit)
            # It says how far it is: if that was on its way when an earlier call broke, only this makes room.
            flow.wake()
        else:
            self._wanted.setdefault(name, []).append((call, credit))

    def began(self, call: ReadCall) -> None:
        """This process has called another."""
        self._calls[call] = None

    def closed(self, call: ReadCall) -> None:
        """The reader has let its call go: the other end learns of it."""
        call.send(call.asked, partial(call.asked.streams.left, call))
        self._calls.pop(call, None)

    def left(self, call: ReadCall) -> None:
        """A reader has gone, or its way here has broken."""
        self._calls.pop(call, None)
        for name, wanted in tuple(self._wanted.items()):
            left = [each for each in wanted if each[0] is not call]
            if left:
                self._wanted[name] = left
            else:
                del self._wanted[name]

    def forget(self, job: JobId) -> None:
        """A job's streams are let go."""
        for name in [name for name in self._flows if name.job == job]:
            self._flows.pop(name).finish(How.CANCELLED, "the job has ended")
