"""A shortcut for outcomes between agents on one host: a Unix socket beside their stream of Await. Linux only.

gRPC passes each message through threads of its own, which costs both agents more than all the rest of a hop. The stream
stays, for asks and as the sign of life: it ends with its shortcut, and the shortcut with it. ADR 23 has why this is safe.

A frame is a length, 32 bits in little-endian order, and as many bytes: an Outcome, or nothing, which is the first one and
says that the other end was let in. The end that asks sends its key, and nothing else.
"""

import asyncio
import logging
import os
import secrets
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from starloom.agents.faultlayer import FaultLayer, HeldUp
from starloom.agents.wirevalues import refusal
from starloom.dag import limits
from starloom.dag.errors import StarloomError, Unavailable

_log = logging.getLogger(__name__)

KEY_BYTES: Final = 16
_LENGTH: Final = struct.Struct("<I")
_PEER: Final = struct.Struct("iII")


class Offer(NamedTuple):
    """What the stream tells of a shortcut: its socket's name in the kernel, and what lets its reader in, once."""

    name: str
    key: bytes


class Outlet(asyncio.Protocol):
    """The end of one shortcut that tells outcomes, once its reader has shown a key."""

    def __init__(self, enter: "Callable[[bytes, Outlet], Callable[[], None] | None]") -> None:
        self._enter = enter
        self._left: Callable[[], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._key = b""
        self._late: asyncio.TimerHandle | None = None
        self._full = False

    def send(self, data: bytes) -> bool:
        """Puts an outcome on its way; False, and nothing is sent, where the reader does not keep up, or has gone."""
        transport = self._transport
        if transport is None or self._full or transport.is_closing():
            return False
        transport.write(_LENGTH.pack(len(data)) + data)
        return True

    def close(self) -> None:
        """Ends it, with what was not sent yet. Nobody is told."""
        self._left = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not _is_own_user(transport):
            self._transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(limits.INPUT_PATIENCE_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._key += data
        if self._left is None and len(self._key) == KEY_BYTES:
            self._left = self._enter(self._key, self)
        if self._left is not None and len(self._key) == KEY_BYTES:
            self._forget_late()
            self._transport.write(_LENGTH.pack(0))
        elif self._left is not None or len(self._key) >= KEY_BYTES:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_late()
        left, self._left = self._left, None
        self._transport = None
        if left is not None:
            left()

    def _forget_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Shortcuts:
    """The socket of one agent, made when it is first needed, and who is expected there. For the event loop's thread."""

    def __init__(self) -> None:
        self._opening: asyncio.Task[str] | None = None
        self._server: asyncio.Server | None = None
        self._expected: dict[bytes, tuple[Callable[[Outlet], None], Callable[[], None]]] = {}

    async def offer(self, entered: Callable[[Outlet], None], left: Callable[[], None]) -> Offer | None:
        """A shortcut for one stream; None where there are none. `left` is called where one that was entered breaks."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        name = await asyncio.shield(self._opening)
        if not name:
            return None
        found = Offer(name, secrets.token_bytes(KEY_BYTES))
        self._expected[found.key] = entered, left
        return found

    def withdraw(self, offer: Offer) -> None:
        """The stream has ended; whoever has not entered yet is not let in any more."""
        self._expected.pop(offer.key, None)

    def stop(self) -> None:
        """Lets nobody in any more."""
        self._expected.clear()
        if self._server is not None:
            self._server.close()

    async def _open(self) -> str:
        """The name of the socket, empty where there is none."""
        if sys.platform != "linux":
            return ""
        name = f"starloom-{secrets.token_hex(16)}"
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(lambda: Outlet(self._enter), _address(name))
        except OSError as error:
            _log.warning("no shortcut to this agent, others are told by gRPC alone: %s", error)
            return ""
        return name

    def _enter(self, key: bytes, outlet: Outlet) -> Callable[[], None] | None:
        """What is to be called when the outlet breaks; None for a key that is none."""
        entered, left = self._expected.pop(key, (None, None))
        if entered is not None:
            entered(outlet)
        return left


class _Incoming(asyncio.Protocol):
    """The end of one shortcut that hears outcomes. `over` is set by its end, with what ended it."""

    def __init__(
        self, hear: Callable[[bytes], None], held_up: Callable[[Callable[[bytes], None]], HeldUp] | None
    ) -> None:
        self._hear = hear
        self._held_up = held_up(self._deliver) if held_up is not None else None
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._error: StarloomError | None = None
        self.entered = False
        self.over: asyncio.Future[StarloomError] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not _is_own_user(transport):
            self._fail(Unavailable("is another user's"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        start, there = 0, len(buffer)
        while self._error is None and there - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > limits.MESSAGE_BYTES_MAX:
                what = f"has {size} bytes, over MESSAGE_BYTES_MAX = {limits.MESSAGE_BYTES_MAX}"
                self._fail(refusal("shortcut", what))
            end = start + _LENGTH.size + size
            if end > there:
                break
            self._frame(buffer[start + _LENGTH.size : end])
            start = end
        self._buffer = buffer[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._held_up is not None:
            self._held_up.cancel()
        if not self.over.done():
            self.over.set_result(self._error or Unavailable("the shortcut broke off"))

    def send_key(self, key: bytes) -> None:
        """Asks to be let in."""
        assert self._transport is not None
        self._transport.write(key)

    def close(self) -> None:
        """Ends it."""
        if self._transport is not None:
            self._transport.abort()

    def _frame(self, data: bytes) -> None:
        if not data:
            self.entered = True
        elif self._held_up is not None:
            self._held_up.put(data)
        else:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        try:
            self._hear(data)
        except StarloomError as error:
            self._fail(error)
        except Exception as error:
            _log.exception("an outcome that came by a shortcut was not taken in")
            self._fail(Unavailable(type(error).__name__))

    def _fail(self, error: StarloomError) -> None:
        self._error = error
        self.close()


async def follow(offer: Offer, hear: Callable[[bytes], None], address: str, faults: FaultLayer | None) -> None:
    """Calls `hear` with each outcome that comes by the shortcut to the agent at `address`, as protobuf.

    Returns where the shortcut cannot be entered from here. Raises Unavailable where one breaks that was, and what `hear`
    raises of a StarloomError.
    """
    held_up = None if faults is None else lambda deliver: faults.held_up(address, deliver)
    loop = asyncio.get_running_loop()
    try:
        _, incoming = await loop.create_unix_connection(lambda: _Incoming(hear, held_up), _address(offer.name))
    except (OSError, ValueError, NotImplementedError) as error:
        _log.info("%s tells outcomes by gRPC alone: its shortcut: %s", address, error)
        return
    try:
        incoming.send_key(offer.key)
        end = await incoming.over
    finally:
        incoming.close()
    if incoming.entered:
        raise end
    _log.info("%s tells outcomes by gRPC alone: its shortcut: %s", address, end)


def _address(name: str) -> str:
    """Abstract: no file, so that nothing is left behind."""
    return f"\0{name}"


def _is_own_user(transport: asyncio.BaseTransport) -> bool:
    peer: socket.socket = transport.get_extra_info("socket")
    _, user, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(user == os.getuid())
