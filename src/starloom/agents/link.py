"""The agent's end of its session: dials the orchestrator, stays in touch, and dials again for ever.

Work does not depend on it: what is reported waits here, in order, until the orchestrator has acknowledged it.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from grpc import aio

from starloom.agents import status, wire
from starloom.agents.channel import Channel
from starloom.agents.crashpoints import CrashPoint, reach
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.messages import NOT_ENDS, Command, Hello, Load, Report, Started, Welcome
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, StarloomError, Unauthenticated, Unavailable
from starloom.dag.ids import Epoch
from starloom.v1 import session_pb2 as pb
from starloom.v1 import session_pb2_grpc

_log = logging.getLogger(__name__)

_HOPELESS = (Unauthenticated, InvalidInput)
"""What a first dial does not get over by trying again."""


class Endpoint(Protocol):
    """What the link asks of its agent."""

    def hello(self, session: str, received: int, kept: Sequence[Report]) -> Hello:
        """The first message, for the session to resume, with the reports that are not acknowledged."""
        ...

    def welcomed(self, welcome: Welcome) -> None:
        """A session began or goes on. Raises Fenced if that orchestrator's time is over."""
        ...

    def commands(self, commands: Sequence[Command], sender_epoch: Epoch) -> None:
        """Takes new commands in, in order."""
        ...

    def load(self) -> Load:
        """For a heartbeat."""
        ...


class _Stream:
    """One connection: what its reader, writer and heartbeat tell each other."""

    def __init__(self, call: Any, welcome: Welcome) -> None:
        self.call = call
        self.welcome = welcome
        self.beat_due = True
        self.heard = time.monotonic()


class Link:
    """One agent's session with the orchestrator at `address`. All methods are for the event loop's thread."""

    def __init__(self, address: str, token: str, endpoint: Endpoint, faults: FaultLayer | None = None) -> None:
        self._address = address
        self._metadata = status.auth_metadata(token)
        self._endpoint = endpoint
        self._faults = faults
        self._channel: Channel[Report, Command] = Channel()
        self._outbox: list[Report] = []
        #: wakes the writer for starts that have waited long enough
        self._lingering: asyncio.TimerHandle | None = None
        self._session = ""
        #: whether there ever was a session
        self._known = False
        self._woken = asyncio.Event()
        self._goodbye: str | None = None
        #: set while there is a session
        self.connected = asyncio.Event()

    def send(self, report: Report, more: bool = False) -> None:
        """Queues a report: it arrives once, whatever happens to the connection.

        A start waits REPORT_STARTED_SECONDS for its attempt's end, which makes it needless. With `more` to come soon,
        any report waits REPORTS_GATHER_SECONDS for others to go with: a message costs more than what is in it.
        """
        self._outbox.append(report)
        if isinstance(report, Started):
            self._linger(limits.REPORT_STARTED_SECONDS)
        elif more:
            self._linger(limits.REPORTS_GATHER_SECONDS)
        else:
            self._woken.set()

    def _linger(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._lingering is not None:
            if self._lingering.when() <= loop.time() + seconds:
                return
            self._lingering.cancel()
        self._lingering = loop.call_later(seconds, self._woken.set)

    async def run(self) -> None:
        """Dials until `leave`. Raises what a first dial says that no repetition mends: Unauthenticated, InvalidInput."""
        wait = limits.RECONNECT_FIRST_SECONDS
        while self._goodbye is None:
            began = time.monotonic()
            try:
                await self._connect()
            except StarloomError as error:
                if not self._known and isinstance(error, _HOPELESS):
                    raise
                if isinstance(error, InvalidInput):
                    # What cannot be read would come again in this session.
                    self._session = ""
                _log.warning("session with %s: %s", self._address, error)
            was_up = self.connected.is_set()
            self.connected.clear()
            if self._goodbye is None:
                if was_up and time.monotonic() - began > limits.RECONNECT_LAST_SECONDS:
                    wait = limits.RECONNECT_FIRST_SECONDS
                # Agents that lost the same orchestrator must not come back all at once.
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, limits.RECONNECT_LAST_SECONDS)

    def leave(self, reason: str) -> None:
        """Sends what is queued and a goodbye, if there is a session, and ends `run`."""
        self._goodbye = reason
        self._woken.set()

    async def _connect(self) -> None:
        """One connection, from hello to its end. Raises StarloomError."""
        async with aio.insecure_channel(self._address, options=status.channel_options(self._address)) as channel:
            stub: Any = session_pb2_grpc.SessionServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Connect(metadata=self._metadata)
            end = status.CallEnd(call)
            if self._faults is not None:
                call = self._faults.session(call)
            try:
                async with asyncio.timeout(limits.CONNECT_SECONDS):
                    stream = _Stream(call, await self._greet(call))
                await self._converse(stream)
            except aio.AioRpcError as error:
                raise await end.error() from error
            except TimeoutError as error:
                late = f"{self._address} did not answer within CONNECT_SECONDS = {limits.CONNECT_SECONDS:g}"
                raise Unavailable(late) from error
            finally:
                call.cancel()

    async def _greet(self, call: Any) -> Welcome:
        self._flush()
        hello = self._endpoint.hello(self._session, self._channel.received, self._channel.kept)
        with suppress(*status.CALL_OVER):
            await call.write(pb.ConnectRequest(hello=wire.hello_to_wire(hello)))
        answer = await call.read()
        if answer is aio.EOF or not answer.HasField("welcome"):  # type: ignore[attr-defined]
            raise Unavailable(f"{self._address} answered a hello with something else than a welcome")
        welcome = wire.welcome_from_wire(answer.welcome)
        self._endpoint.welcomed(welcome)
        if welcome.resumed:
            self._channel.resume(welcome.received)
        else:
            self._channel.restart()
        self._session, self._known = welcome.session, True
        self.connected.set()
        return welcome

    async def _converse(self, stream: _Stream) -> None:
        """Reads, writes and beats until one of these ends; then ends the others."""
        self._woken.set()
        reader = asyncio.create_task(self._read(stream))
        tasks = [reader, asyncio.create_task(self._write(stream)), asyncio.create_task(self._beat(stream))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not any(task.exception() for task in done):
                # Nothing more can be written; the reader learns why, or that all has been taken in.
                done, _ = await asyncio.wait([reader], timeout=limits.CONNECT_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _read(self, stream: _Stream) -> None:
        while (message := await stream.call.read()) is not aio.EOF:  # type: ignore[attr-defined]
            match message.WhichOneof("message"):
                case "commands":
                    frame, epoch = wire.commands_from_wire(message.commands)
                    fresh = self._channel.receive(frame)
                    self._endpoint.commands(fresh, epoch)
                    self._channel.done()
                case "heartbeat":
                    stream.heard = time.monotonic()
                    self._channel.acknowledge(message.heartbeat.acknowledged)
                case other:
                    raise Unavailable(
                        f"{self._address} sent {other}, which does not belong here; it is of another version"
                    )
            # An acknowledgement may have made room for more reports.
            if self._channel.waiting:
                self._woken.set()

    async def _write(self, stream: _Stream) -> None:
        """Ends after the goodbye, and with a call that is over."""
        with suppress(*status.CALL_OVER):
            while True:
                await self._woken.wait()
                self._woken.clear()
                for message in self._outgoing(stream):
                    await stream.call.write(message)
                    if message.HasField("reports"):
                        reach(CrashPoint.REPORTED)
                if self._goodbye is not None and not self._outbox:
                    await stream.call.write(pb.ConnectRequest(goodbye=pb.Goodbye(reason=self._goodbye)))
                    await stream.call.done_writing()
                    return

    def _outgoing(self, stream: _Stream) -> Iterator[pb.ConnectRequest]:
        """What may go out now; a heartbeat that falls due in between goes first."""
        self._flush()
        for frame in self._channel.frames():
            for part in wire.reports_to_wire(frame):
                yield from self._due(stream)
                yield pb.ConnectRequest(reports=part)
        yield from self._due(stream)

    def _due(self, stream: _Stream) -> Iterator[pb.ConnectRequest]:
        if stream.beat_due:
            stream.beat_due = False
            load = wire.load_to_wire(self._endpoint.load())
            yield pb.ConnectRequest(
                heartbeat=pb.Heartbeat(
                    sent_nanos=time.monotonic_ns(), load_json=load, acknowledged=self._channel.acknowledged
                )
            )

    async def _beat(self, stream: _Stream) -> None:
        welcome = stream.welcome
        while True:
            await asyncio.sleep(welcome.heartbeat_seconds)
            if time.monotonic() - stream.heard > welcome.lease_seconds:
                raise Unavailable(f"{self._address} answered no heartbeat for a lease of {welcome.lease_seconds:g} s")
            stream.beat_due = True
            self._woken.set()

    def _flush(self) -> None:
        """Reports enter the channel. A start that has ended since is not told."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._outbox:
            ended = {report.task for report in self._outbox if not isinstance(report, NOT_ENDS)}
            self._channel.send(
                report for report in self._outbox if not isinstance(report, Started) or report.task not in ended
            )
            self._outbox.clear()
