"""Faults on purpose in one process: holds up, breaks and spoils what passes through, as `agents.faultrules` decides.

There is a layer only where faults were allowed when the process was started; without one every hook is `None`.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

import grpc
import msgspec
from grpc import aio

from starloom.agents.faultrules import Armed, FaultRules, Way
from starloom.agents.status import CALL_OVER
from starloom.dag import limits
from starloom.dag.errors import StarloomError, Unavailable
from starloom.devices.faults import LIVE, FaultKind

OF_AGENT: Final = tuple(
    kind
    for kind in LIVE
    if kind.value.startswith(("link-", "partition", "fetch-", "stage-")) or kind == FaultKind.AGENT_SLOW
)
"""What can be armed in an agent's process."""

_NANOS: Final = 1e9
_DATA_PREFIX: Final = "/starloom.v1.DataService/"


class FaultLayer:
    """What is armed in this process, for its event loop; `rules` may be asked from other threads through this.

    `store_address` is the orchestrator's data service.
    """

    def __init__(self, able: Iterable[FaultKind] = OF_AGENT, store_address: str = "") -> None:
        self._rules = FaultRules(able)
        self._store_address = store_address
        self._guard = threading.Lock()
        self._changed = asyncio.Event()
        self._calls: set[DisturbedCall] = set()

    def arm(self, fault: Armed, seconds: float | None) -> None:
        """A fault begins, for so long or until it is healed. Raises as `FaultRules.arm`."""
        now = time.monotonic_ns()
        until = None if seconds is None else now + round(seconds * _NANOS)
        self._rules.arm(msgspec.structs.replace(fault, until=until), now)
        if fault.what == FaultKind.LINK_BREAK:
            self._rules.heal([fault.id], now)
            for call in tuple(self._calls):
                call.break_off()
        self._tell()

    def heal(self, ids: Iterable[str]) -> list[tuple[Armed, float | None, int]]:
        """Faults end, all where no ids are given; returns those that were armed, as `armed` does."""
        wanted, armed = frozenset(ids), self.armed()
        self._rules.heal(wanted, time.monotonic_ns())
        self._tell()
        return [each for each in armed if not wanted or each[0].id in wanted]

    def armed(self) -> list[tuple[Armed, float | None, int]]:
        """What is armed, with the seconds that it still lasts, and how often it has changed something."""
        now = time.monotonic_ns()
        return [
            (fault, None if fault.until is None else (fault.until - now) / _NANOS, self._rules.met(fault.id))
            for fault in self._rules.armed(now)
        ]

    def session(self, call: Any) -> "DisturbedCall":
        """The stream of a session, with the faults of its link."""
        made = DisturbedCall(call, self.passes, self._calls.discard)
        self._calls.add(made)
        return made

    def peer(self, call: Any, address: str) -> "DisturbedCall":
        """A stream to another agent's data service, with the faults of that path."""
        return DisturbedCall(call, partial(self._passes_peer, address), lambda _: None)

    def held_up(self, address: str, deliver: Callable[[Any], None]) -> "HeldUp":
        """What comes from another agent beside its data service's calls, with the faults of that path."""
        return HeldUp(partial(self._passes_peer, address, Way.DOWN), deliver)

    async def passes(self, way: Way, sent: int) -> None:
        """Returns when a message that was sent at this monotonic nanosecond arrives."""
        await self._arrives(sent, partial(self._rules.cuts_session, way), self._rules.session_delay)

    async def reaches(self, address: str) -> None:
        """Returns once a request to a data service gets through. Raises Unavailable where it does not."""
        store = address == self._store_address
        give_up = time.monotonic() + limits.TRANSFER_STALL_SECONDS
        while self._rules.cuts_data(address, store, time.monotonic_ns()):
            left = give_up - time.monotonic()
            if left <= 0:
                raise Unavailable(f"{address} sent nothing for TRANSFER_STALL_SECONDS: a fault is between")
            await self._wait(left)
        if delay := self._rules.data_delay(address, store, time.monotonic_ns()):
            await asyncio.sleep(delay)
        if self.fires(FaultKind.FETCH_FAILS):
            raise Unavailable(f"{address} cannot be reached: a fault has it so")

    async def fetched(self, address: str, chunks: AsyncIterator[memoryview]) -> AsyncIterator[memoryview]:
        """A fetched value's bytes as they come from a data service, or others if a fault has it so. Raises as `reaches`."""
        await self.reaches(address)
        damage = self.fires(FaultKind.FETCH_DAMAGED) is not None
        async for chunk in chunks:
            yield _turned(chunk) if damage and chunk else chunk
            damage = damage and not chunk

    def disturbs_data(self) -> bool:
        """Whether something is armed that may keep values from getting here as they are."""
        return self._rules.disturbs_data(time.monotonic_ns())

    async def serves(self) -> None:
        """Returns once somebody who asks for a value may be answered."""
        while self._rules.cuts_serving(time.monotonic_ns()):
            await self._wait(None)

    def fires(self, what: FaultKind, kind: str = "") -> Armed | None:
        """The armed fault that happens at this opportunity, in any thread."""
        with self._guard:
            return self._rules.fires(what, time.monotonic_ns(), kind)

    def slowness(self, kind: str) -> tuple[float, float]:
        """By what factor and how many seconds a stage of that kind takes longer, in any thread."""
        return self._rules.slowness(kind, time.monotonic_ns())

    def disk_full(self) -> bool:
        """Whether the disk is full but for what was set aside, in any thread."""
        return self._rules.disk_full(time.monotonic_ns())

    def is_armed(self, fault_id: str) -> bool:
        """Whether a fault has not ended, in any thread."""
        return any(fault.id == fault_id for fault in self._rules.armed(time.monotonic_ns()))

    def _tell(self) -> None:
        # Whoever waits looks again; those who come later wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    async def _passes_peer(self, address: str, way: Way, sent: int) -> None:
        cuts, delay, store = self._rules.cuts_data, self._rules.data_delay, address == self._store_address
        await self._arrives(sent, lambda now: cuts(address, store, now), lambda now: delay(address, store, now) / 2)

    async def _arrives(self, sent: int, cut: Callable[[int], bool], delay: Callable[[int], float]) -> None:
        """Returns once nothing cuts the way off, and so many seconds after it was sent."""
        while True:
            now = time.monotonic_ns()
            if cut(now):
                await self._wait(None)
                continue
            left = sent / _NANOS + delay(now) - now / _NANOS
            if left <= 0:
                return
            await self._wait(left)

    async def _wait(self, seconds: float | None) -> None:
        """Returns when something was armed or healed, when something expires, or after `seconds`."""
        ends = [each for each in (seconds, self._rules.expires(time.monotonic_ns())) if each is not None]
        try:
            async with asyncio.timeout(min(ends) if ends else None):
                await self._changed.wait()
        except TimeoutError:
            return


class DisturbedCall:
    """A bidirectional call that messages take their time on, each way, in order, and that may break off."""

    def __init__(
        self, call: Any, passes: Callable[[Way, int], Awaitable[None]], over: Callable[["DisturbedCall"], None]
    ) -> None:
        self._call = call
        self._passes = passes
        self._over = over
        self._broken = False
        self._up: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue()
        self._down: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def write(self, message: Any) -> None:
        """Puts a message on its way; that the call is over is told by `read`."""
        self._up.put_nowait((time.monotonic_ns(), message))

    async def done_writing(self) -> None:
        """Nothing follows."""
        self._up.put_nowait(None)

    async def initial_metadata(self) -> Any:
        """What the other end says of the call before anything else."""
        return await self._call.initial_metadata()

    async def read(self) -> Any:
        """The next message, or EOF. Raises what ended the call."""
        sent, message = await self._down.get()
        if isinstance(message, BaseException):
            raise message
        await self._passes(Way.DOWN, sent)
        if self._broken:
            raise _broken_off()
        return message

    def break_off(self) -> None:
        """The connection breaks."""
        self._broken = True
        self._call.cancel()

    def cancel(self) -> None:
        """Ends the call."""
        self._over(self)
        for task in self._tasks:
            task.cancel()
        self._call.cancel()

    async def _send(self) -> None:
        try:
            while (item := await self._up.get()) is not None:
                await self._passes(Way.UP, item[0])
                await self._call.write(item[1])
            await self._call.done_writing()
        except CALL_OVER:
            # The reader learns why.
            return

    async def _receive(self) -> None:
        message: Any = None
        while message is not aio.EOF:  # type: ignore[attr-defined]
            try:
                message = await self._call.read()
            except asyncio.CancelledError:
                if not self._broken:
                    raise
                self._down.put_nowait((0, _broken_off()))
                return
            except aio.AioRpcError as error:
                self._down.put_nowait((0, error))
                return
            self._down.put_nowait((time.monotonic_ns(), message))


class HeldUp:
    """Messages that come outside of calls, and take their time, in order; `deliver` takes each when it has passed."""

    def __init__(self, passes: Callable[[int], Awaitable[None]], deliver: Callable[[Any], None]) -> None:
        self._passes = passes
        self._deliver = deliver
        self._queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._task = asyncio.create_task(self._pass())

    def put(self, message: Any) -> None:
        """One has come."""
        self._queue.put_nowait((time.monotonic_ns(), message))

    def cancel(self) -> None:
        """What has not passed yet is lost."""
        self._task.cancel()

    async def _pass(self) -> None:
        while True:
            sent, message = await self._queue.get()
            await self._passes(sent)
            self._deliver(message)


def _turned(chunk: memoryview) -> memoryview:
    """The same bytes, with one bit turned over."""
    data = bytearray(chunk)
    data[len(data) // 2] ^= 1
    return memoryview(data)


def _broken_off() -> StarloomError:
    return Unavailable("the connection broke off: a fault has it so")


Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class HeldBack(aio.ServerInterceptor):  # type: ignore[type-arg]
    """Whoever asks an agent's data service waits while a fault cuts it off."""

    def __init__(self, layer: FaultLayer) -> None:
        self._layer = layer

    async def intercept_service(self, continuation: Continuation, call: grpc.HandlerCallDetails) -> Any:
        if call.method.startswith(_DATA_PREFIX):
            await self._layer.serves()
        return await continuation(call)


class LostReplies(aio.ServerInterceptor):  # type: ignore[type-arg]
    """Calls whose name begins with `prefix` are carried out, and now and then their answer is lost."""

    def __init__(self, layer: FaultLayer, prefix: str) -> None:
        self._layer = layer
        self._prefix = prefix

    async def intercept_service(self, continuation: Continuation, call: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(call)
        if handler is None or not call.method.startswith(self._prefix) or handler.unary_unary is None:
            return handler
        behaviour = handler.unary_unary

        async def answer(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            reply = await behaviour(request, context)
            if self._layer.fires(FaultKind.REPLY_LOST):
                # As gRPC itself tells it of a connection that went away: without a detail of Starloom's.
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            return reply

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)
