"""What agents tell each other of their attempts, on one stream for each that asks another: DataService.Await, both ends.

A message is written as soon as there is one; what comes up while it is being written goes with the next. On one host
outcomes come by a shortcut instead (`agents.shortcuts`), each by itself.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, Protocol

from grpc import aio

from starloom.agents import shortcuts, status, wire
from starloom.agents.core import Ask
from starloom.agents.faultlayer import FaultLayer
from starloom.agents.messages import Outcome
from starloom.agents.peerasks import PeerAsks
from starloom.agents.shortcuts import Offer, Outlet, Shortcuts
from starloom.dag import limits
from starloom.dag.errors import InvalidInput, StarloomError, Unavailable
from starloom.dag.ids import TaskToken
from starloom.v1 import data_pb2, data_pb2_grpc

_log = logging.getLogger(__name__)


class Awaiter(Protocol):
    """What is told of attempts elsewhere, and asked for those here; as `outcomes.Outcomes` does."""

    def answered(self, outcome: Outcome) -> None:
        """An attempt that was asked for has succeeded."""
        ...

    def early(self, outcome: Outcome, address: str) -> None:
        """An attempt that was asked for is done, at the agent of this address, and its outputs are still being hashed."""
        ...

    def broke(self, task: TaskToken) -> None:
        """Who told early of an attempt may never tell the rest."""
        ...

    def unreachable(self, task: TaskToken, reason: str) -> None:
        """The agent that has an attempt cannot be asked for now."""
        ...

    def subscribed(self, subscriber: int, task: TaskToken) -> None:
        """Another agent awaits an attempt."""
        ...

    def unsubscribed(self, subscriber: int, task: TaskToken | None = None) -> None:
        """Another agent awaits an attempt no more; without one, nothing."""
        ...


class _Peer:
    """What one peer is asked for: a stream to it, dialed again for as long as an ask is open."""

    def __init__(
        self,
        address: str,
        metadata: Any,
        answered: Callable[[Outcome], None],
        awaiter: Awaiter,
        faults: FaultLayer | None,
    ) -> None:
        self._faults = faults
        self._address = address
        self._metadata = metadata
        self._answered = answered
        self._awaiter = awaiter
        self._asks = PeerAsks()
        #: what the present stream told early of
        self._early: dict[TaskToken, None] = {}
        #: what the present stream was not told yet: the last word on each, whether it is asked for
        self._untold: dict[TaskToken, bool] = {}
        self._woken = asyncio.Event()

    def ask(self, task: TaskToken) -> None:
        self._asks.ask(task)
        self._tell(task, asked=True)

    def unask(self, task: TaskToken) -> None:
        self._asks.close(task)
        self._early.pop(task, None)
        self._tell(task, asked=False)

    def answered(self, task: TaskToken) -> None:
        self._asks.close(task)

    def _tell(self, task: TaskToken, *, asked: bool) -> None:
        # A message cannot say in which order the one and the other came up.
        self._untold[task] = asked
        self._woken.set()

    async def run(self) -> None:
        """Dials until nothing is open. Whatever goes wrong is logged, and tried again."""
        wait = limits.RECONNECT_FIRST_SECONDS
        while self._asks.open:
            began = time.monotonic()
            unreadable = False
            self._asks.dialing(time.monotonic_ns())
            try:
                await self._connect()
            except StarloomError as error:
                unreadable = isinstance(error, InvalidInput)
                reason = f"{self._address}: {error}"
            except Exception as error:
                _log.exception("the stream to %s failed unexpectedly", self._address)
                reason = f"{self._address}: {type(error).__name__}"
            _log.info("attempts of other agents: %s", reason)
            early, self._early = self._early, {}
            for task in early:
                if self._asks.is_open(task):
                    self._awaiter.broke(task)
            for task in self._asks.failed(time.monotonic_ns(), at_once=unreadable):
                self._awaiter.unreachable(task, reason)
            if time.monotonic() - began > limits.RECONNECT_LAST_SECONDS:
                wait = limits.RECONNECT_FIRST_SECONDS
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, limits.RECONNECT_LAST_SECONDS)

    async def _connect(self) -> NoReturn:
        """One stream, from its dial to its end. Raises StarloomError."""
        async with aio.insecure_channel(self._address, options=status.channel_options(self._address)) as channel:
            stub: Any = data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Await(metadata=self._metadata)
            end = status.CallEnd(call)
            if self._faults is not None:
                call = self._faults.peer(call, self._address)
            writer: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(limits.INPUT_PATIENCE_SECONDS):
                    # The first message has no outcomes: it says that the call was let in.
                    first = _some(await call.read())
                self._asks.connected()
                self._untold = dict.fromkeys(self._asks.open, True)
                self._woken.set()
                writer = asyncio.create_task(self._write(call))
                await self._hear(call, first)
            except aio.AioRpcError as error:
                raise await end.error() from error
            except TimeoutError as error:
                late = f"did not answer within INPUT_PATIENCE_SECONDS = {limits.INPUT_PATIENCE_SECONDS:g}"
                raise Unavailable(late) from error
            finally:
                call.cancel()
                if writer is not None:
                    writer.cancel()

    async def _hear(self, call: Any, first: data_pb2.AwaitResponse) -> NoReturn:
        """Takes outcomes in, from the stream and from its shortcut, until the one or the other ends."""
        hearing: list[asyncio.Task[None]] = [asyncio.create_task(self._read(call))]
        if first.HasField("shortcut"):
            offer = Offer(first.shortcut.name, first.shortcut.key)
            hearing.append(asyncio.create_task(shortcuts.follow(offer, self._take_bytes, self._address, self._faults)))
        try:
            done, _ = await asyncio.wait(hearing, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in hearing:
                task.cancel()
            await asyncio.gather(*hearing, return_exceptions=True)
        raise AssertionError("a stream that is read ends with an error")

    async def _read(self, call: Any) -> None:
        while True:
            message = _some(await call.read())
            for number, each in enumerate(message.outcomes):
                self._take(wire.outcome_from_wire(each, f"outcomes.{number}"))

    def _take_bytes(self, data: bytes) -> None:
        self._take(wire.outcome_from_wire(data))

    def _take(self, outcome: Outcome) -> None:
        # Of the attempts of others it knows nothing, and what is asked for no more changes nothing.
        if not self._asks.is_open(outcome.task):
            return
        if outcome.late:
            self._early[outcome.task] = None
            self._awaiter.early(outcome, self._address)
        else:
            self._early.pop(outcome.task, None)
            self._answered(outcome)

    async def _write(self, call: Any) -> None:
        with suppress(*status.CALL_OVER):
            while True:
                await self._woken.wait()
                self._woken.clear()
                untold, self._untold = self._untold, {}
                asked = [task for task, is_asked in untold.items() if is_asked]
                unasked = [task for task, is_asked in untold.items() if not is_asked]
                for message in wire.asks_to_wire(asked, unasked):
                    await call.write(message)


def _some(message: Any) -> data_pb2.AwaitResponse:
    """What was read, if it is a message; raises Unavailable where the other end has ended the stream."""
    if message is aio.EOF:  # type: ignore[attr-defined]
        raise Unavailable("it has ended the stream")
    assert isinstance(message, data_pb2.AwaitResponse)
    return message


class _Subscriber:
    """One stream on which another agent asks, and what it was not told yet."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.woken = asyncio.Event()
        self.outlet: Outlet | None = None
        #: the shortcut has broken, and with it the stream ends: what was on its way there has to be asked for again
        self.broken = False

    def tell(self, outcome: Outcome) -> bool:
        """Whether it has gone, by the shortcut. If not it goes by the stream, in a later turn of the loop.

        What is early goes by the shortcut or not at all: elsewhere nobody can read what has no digest.
        """
        if self.outlet is not None and self.outlet.send(wire.outcome_to_wire(outcome)):
            return True
        if outcome.late:
            return True
        self.outcomes.append(outcome)
        self.woken.set()
        return False

    def entered(self, outlet: Outlet) -> None:
        self.outlet = outlet

    def left(self) -> None:
        self.broken = True
        self.woken.set()


class Peers:
    """All streams of one agent, of either direction. All methods are for the event loop's thread."""

    def __init__(self, token: str, faults: FaultLayer | None = None) -> None:
        self._faults = faults
        self._metadata = status.auth_metadata(token)
        self._awaiter: Awaiter | None = None
        self._peers: dict[str, _Peer] = {}
        self._running: dict[_Peer, asyncio.Task[None]] = {}
        self._addresses: dict[TaskToken, str] = {}
        self._subscribers: dict[int, _Subscriber] = {}
        self._numbers = itertools.count(1)
        self._shortcuts = Shortcuts()

    def bind(self, awaiter: Awaiter) -> None:
        """Says who awaits and who answers; before anything else is called."""
        self._awaiter = awaiter

    async def stop(self) -> None:
        """Ends all streams on which this agent asks."""
        self._shortcuts.stop()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # -- the end that asks

    def ask(self, ask: Ask) -> None:
        """An attempt of another agent is awaited."""
        assert self._awaiter is not None, "bind comes first"
        peer = self._peers.get(ask.address)
        if peer is None:
            peer = _Peer(ask.address, self._metadata, self._answered, self._awaiter, self._faults)
            self._peers[ask.address] = peer
        self._addresses[ask.task] = ask.address
        peer.ask(ask.task)
        if peer not in self._running:
            self._run(ask.address, peer)

    def unask(self, task: TaskToken) -> None:
        """It is awaited no more."""
        peer = self._peers.get(self._addresses.pop(task, ""))
        if peer is not None:
            peer.unask(task)

    def _run(self, address: str, peer: _Peer) -> None:
        task = self._running[peer] = asyncio.create_task(peer.run(), name=f"await-{address}")
        task.add_done_callback(partial(self._over, address, peer))

    def _over(self, address: str, peer: _Peer, task: asyncio.Task[None]) -> None:
        del self._running[peer]
        if task.cancelled() or address not in self._addresses.values():
            del self._peers[address]
        else:
            self._run(address, peer)

    def _answered(self, outcome: Outcome) -> None:
        assert self._awaiter is not None
        address = self._addresses.pop(outcome.task, None)
        if address is not None:
            self._peers[address].answered(outcome.task)
        self._awaiter.answered(outcome)

    # -- the end that is asked

    def answer(self, subscriber: int, outcome: Outcome) -> bool:
        """An attempt that was asked for has succeeded. To a stream that has ended nothing is told: it asks again.

        False where the loop has to have a turn before the other agent hears of it.
        """
        found = self._subscribers.get(subscriber)
        return found is None or found.tell(outcome)

    async def serve(
        self, requests: AsyncIterator[data_pb2.AwaitRequest], context: aio.ServicerContext[Any, Any]
    ) -> None:
        """One call of Await, until its client ends it, or its shortcut breaks. Raises InvalidInput and Unavailable."""
        assert self._awaiter is not None, "bind comes first"
        number, subscriber = next(self._numbers), _Subscriber()
        offer = await self._shortcuts.offer(subscriber.entered, subscriber.left)
        try:
            await context.write(_first(offer))
            self._subscribers[number] = subscriber
            await self._tell(self._awaiter, number, subscriber, requests, context)
        finally:
            if offer is not None:
                self._shortcuts.withdraw(offer)
            if subscriber.outlet is not None:
                subscriber.outlet.close()

    async def _tell(
        self,
        awaiter: Awaiter,
        number: int,
        subscriber: _Subscriber,
        requests: AsyncIterator[data_pb2.AwaitRequest],
        context: aio.ServicerContext[Any, Any],
    ) -> None:
        reader = asyncio.create_task(self._hear(awaiter, number, subscriber, requests))
        try:
            while not reader.done() or subscriber.outcomes:
                await subscriber.woken.wait()
                subscriber.woken.clear()
                if subscriber.broken:
                    raise Unavailable("the shortcut of this stream broke off; ask again")
                outcomes, subscriber.outcomes = subscriber.outcomes, []
                for message in wire.outcomes_to_wire(outcomes):
                    await context.write(message)
            reader.result()
        finally:
            reader.cancel()
            del self._subscribers[number]
            awaiter.unsubscribed(number)

    async def _hear(
        self,
        awaiter: Awaiter,
        number: int,
        subscriber: _Subscriber,
        requests: AsyncIterator[data_pb2.AwaitRequest],
    ) -> None:
        try:
            async for request in requests:
                asked, unasked = wire.asks_from_wire(request)
                for task in asked:
                    awaiter.subscribed(number, task)
                for task in unasked:
                    awaiter.unsubscribed(number, task)
        finally:
            subscriber.woken.set()


def _first(offer: Offer | None) -> data_pb2.AwaitResponse:
    """The message that says that a call was let in."""
    if offer is None:
        return data_pb2.AwaitResponse()
    return data_pb2.AwaitResponse(shortcut=data_pb2.Shortcut(name=offer.name, key=offer.key))
