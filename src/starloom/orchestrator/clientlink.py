"""A client's way to the orchestrator: where it is, and calls that are repeated until it answers.

A call is repeated only where a second one does no harm: reads, putting bytes by their digest, a
submission under a key, a cancel. The orchestrator may be restarted meanwhile, on the same address.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from starloom.agents import status
from starloom.dag import limits
from starloom.dag.errors import (
    Cancelled,
    ClientClosed,
    InvalidInput,
    Problem,
    StarloomError,
    Unauthenticated,
    Unavailable,
)
from starloom.dag.facts import JobEnded
from starloom.orchestrator import clientwire
from starloom.orchestrator.infos import Event
from starloom.orchestrator.statefolder import read_cluster, state_folder
from starloom.v1 import control_pb2 as pb
from starloom.v1 import control_pb2_grpc, data_pb2_grpc

_log = logging.getLogger(__name__)

ADDRESS_VARIABLE: Final = "STARLOOM_ADDRESS"
TOKEN_VARIABLE: Final = "STARLOOM_TOKEN"

_BACKOFF_FACTOR = 2.0
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""What gRPC itself reports where the other end went away, beside texts of INTERNAL and UNKNOWN."""
_BROKEN_TEXTS = ("RST_STREAM", "Stream removed", "Socket closed")

Result = TypeVar("Result")


def _watched() -> list[tuple[str, Any]]:
    """Options by which a connection of calls that carries nothing any more is given up before a call's deadline.

    gRPC's core arms the timeout of a keepalive ping only where it is armed already (1.85.3, `chttp2/transport/writing.cc`),
    so that of all pings counts in its place, which is 60 s. A call to an orchestrator that stands still would end at its
    deadline, where it has to be repeated. Not for streams: behind their bulk, on a slow link, a ping waits longer than
    that. So it does behind a large answer: see `Link.call`.
    """
    return [("grpc.http2.ping_timeout_ms", int(limits.LINK_SILENT_SECONDS * 1000))]


def find_cluster(
    address: str | None = None, token: str | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[str, str]:
    """The orchestrator's address and token: those given, else `STARLOOM_ADDRESS` and `STARLOOM_TOKEN`, else the state folder's.

    Raises Unavailable if no cluster runs here, InvalidInput for an address that is none, and
    Unauthenticated if there is no token for the address.
    """
    place = "address" if address else ADDRESS_VARIABLE
    address = address or environment.get(ADDRESS_VARIABLE, "")
    token = token or environment.get(TOKEN_VARIABLE, "")
    if address:
        _check_address(address, place)
    if address and token:
        return address, token
    record = read_cluster(state_folder(environment))
    if not address and record is None:
        raise Unavailable(
            f"no cluster runs on this machine ({state_folder(environment)}); start one with `starloom up`, "
            f"or name another with {ADDRESS_VARIABLE} and {TOKEN_VARIABLE}"
        )
    if record is None or address not in ("", record.address):
        raise Unauthenticated(f"there is no token for {address}; give it with {TOKEN_VARIABLE}")
    return record.address, token or record.token()


def _check_address(address: str, place: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidInput([Problem(place, f"{address!r} is no host:port")], "the orchestrator's address is wrong")


class Patience:
    """Waits between repeats, longer each time; gives up `seconds` after the first failure. `audible`: logs that one."""

    def __init__(self, seconds: float, *, audible: bool = False) -> None:
        self._seconds = seconds
        self._audible = audible
        self._until: float | None = None
        self._pause = limits.RECONNECT_FIRST_SECONDS

    async def wait(self, error: StarloomError) -> None:
        """Returns when it is time for the next try; raises `error` if the time is over."""
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = now + self._seconds
            if self._audible:
                _log.warning("%s; waiting up to %g s for it to come back", error, self._seconds)
        if now >= self._until:
            raise error
        await asyncio.sleep(min(self._pause, self._until - now))
        self._pause = min(self._pause * _BACKOFF_FACTOR, limits.RECONNECT_LAST_SECONDS)


class Link:
    """One client's channels to the orchestrator, for calls and for streams, made when first needed. For one event loop."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.token = token
        self._metadata = status.auth_metadata(token)
        self._calling: aio.Channel | None = None
        self._streaming: aio.Channel | None = None
        self._stub: Any = None
        self._waits: set[asyncio.Timeout] = set()
        self._closed = False
        self._reached = False

    async def close(self) -> None:
        """Ends all calls; whoever waits for one gets ClientClosed."""
        self._closed = True
        waits, self._waits = self._waits, set()
        for each in waits:
            each.reschedule(0)
        # They end by this turn of the loop: gRPC tells of some calls on a closed channel as cancelled, and of some never.
        await asyncio.sleep(0)
        channels, self._calling, self._streaming = (self._calling, self._streaming), None, None
        for channel in channels:
            if channel is not None:
                await channel.close(None)

    async def call(self, method: str, request: Any, *, seconds: float = limits.RPC_DEADLINE_SECONDS) -> Any:
        """The answer to one call of the Control service, which is repeated while nobody answers.

        What broke off as late as a ping is given up is repeated where none is given up so soon: on a slow link one waits
        behind a large answer.

        Raises Unavailable as `patiently` does, or after `seconds` without an answer, and whatever error the
        orchestrator answered with.
        """
        slow = False

        async def attempt() -> Any:
            nonlocal slow
            began = asyncio.get_running_loop().time()
            stub = self._unwatched() if slow else self._ready()
            try:
                return await getattr(stub, method)(request, metadata=self._metadata, timeout=seconds)
            except aio.AioRpcError as error:
                lasted = asyncio.get_running_loop().time() - began
                before, slow = slow, not slow and lasted >= limits.LINK_SILENT_SECONDS
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and not _has_detail(error):
                    silence = await self._silence(method, seconds, lasted - seconds)
                    # Without a ping that was given up nothing tells a link that carries nothing from an answer that is late.
                    raise (Unavailable if before else _Silent)(silence) from None
                raise self._meaning(error) from error

        return await self.patiently(attempt)

    async def patiently(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """What `attempt` gives, which is repeated while it raises Unavailable.

        For CONNECT_SECONDS, and where the orchestrator was reached before, for ORCHESTRATOR_RESTART_SECONDS: it is
        being started again then. Raises ClientClosed.
        """
        patience = self.patience()
        async with self.until_closed():
            while True:
                try:
                    found = await attempt()
                    self._reached = True
                    return found
                except _Silent as error:
                    raise Unavailable(str(error)) from None
                except Unavailable as error:
                    await patience.wait(error)

    @asynccontextmanager
    async def until_closed(self) -> AsyncIterator[None]:
        """Ends what the block waits for once the client is closed. Raises ClientClosed."""
        self._refuse_closed()
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if wait.expired():
                self._refuse_closed()
            raise

    def data(self) -> Any:
        """The orchestrator's Data service, for streams."""
        return data_pb2_grpc.DataServiceStub(self._streams())  # type: ignore[no-untyped-call]

    @property
    def metadata(self) -> Any:
        """What goes with each call."""
        return self._metadata

    def patience(self) -> Patience:
        """For a call that is made again and again: CONNECT_SECONDS, or more where the orchestrator was reached before."""
        if self._reached:
            return Patience(limits.ORCHESTRATOR_RESTART_SECONDS, audible=True)
        return Patience(limits.CONNECT_SECONDS)

    def reached(self) -> Patience:
        """It has answered: whoever waits for the next answer has all the patience again."""
        self._reached = True
        return self.patience()

    def broken(self, error: StarloomError) -> Unavailable:
        """The error of a call that broke off, to wait for what comes after it; raises any other error that ended a call."""
        lost = type(error) in (Unavailable, Cancelled) or any(text in str(error) for text in _BROKEN_TEXTS)
        if not lost or self._closed:
            raise error
        return self.unreachable(error)

    async def events(
        self, job: str, after: int = 0, *, follow: bool = True, kinds: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """Events of a job, by id or key, or of all if empty, after an offset; goes on over restarts without a gap.

        With `follow` it ends with the job, and for all jobs never. `kinds` leaves out all other facts. Raises ClientClosed.
        """
        patience = self.patience()
        over = False
        while True:
            request = pb.StreamEventsRequest(job_id=job, after_offset=after, follow=follow, kinds=kinds)
            call = self._unwatched().StreamEvents(request, metadata=self._metadata)
            try:
                while (response := await self._read(call)) is not None:
                    patience = self.reached()
                    for event in map(clientwire.event_from_wire, response.events):
                        if event.offset <= after:
                            continue
                        after = event.offset
                        over = over or (bool(job) and isinstance(event.fact, JobEnded))
                        if not kinds or clientwire.fact_kind(event.fact) in kinds:
                            yield event
            except aio.AioRpcError as error:
                meaning = self._meaning(error)
                if type(meaning) is not Unavailable:
                    raise meaning from error
                await patience.wait(meaning)
                continue
            finally:
                call.cancel()
            if over or not follow:
                return
            # The stream ended in order. If the job has ended as well, one more look finds what is still missing.
            over = bool(job) and await self._ended(job)
            if not over:
                await patience.wait(Unavailable(f"the orchestrator at {self.address} ended the stream of events"))

    async def _read(self, call: Any) -> Any:
        async with self.until_closed():
            message = await call.read()
        return None if message is aio.EOF else message  # type: ignore[attr-defined]

    async def _ended(self, job: str) -> bool:
        response = await self.call("GetJob", pb.GetJobRequest(job_id=job))
        return clientwire.job_from_wire(response.job).ended

    async def _silence(self, method: str, seconds: float, late: float) -> str:
        """What to say of a call that nobody answered, and where to look. `late`: so many seconds later it was noticed."""
        what = f"the orchestrator at {self.address} did not answer within {seconds:g} s ({method})"
        if late > limits.LOOP_SLOW_SECONDS:
            what += f"; that was noticed {late:.1f} s late, so this process was stopped or busy itself"
        self._ready()
        try:
            await health_pb2_grpc.HealthStub(self._calling).Check(
                health_pb2.HealthCheckRequest(), timeout=limits.HEALTH_SECONDS
            )
        except aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                what += f", nor a question after its health within {limits.HEALTH_SECONDS:g} s"
                why = "it is stopped, its event loop does not turn, or the link is slow"
                return f"{what}: {why}; see orchestrator.log, and what else runs there"
            if error.code() in _BROKEN:
                return f"{what}, and now its connection is broken: {error.details()}"
            # Any other status is an answer.
        what += ", but a question after its health at once"
        return f"{what}: it waits for its journal's disk, or for agents; see orchestrator.log, and what else uses that machine"

    def _ready(self) -> Any:
        self._refuse_closed()
        if self._stub is None:
            options = [*status.channel_options(self.address), *_watched()]
            self._calling = aio.insecure_channel(self.address, options=options)
            self._stub = control_pb2_grpc.ControlServiceStub(self._calling)  # type: ignore[no-untyped-call]
        return self._stub

    def _unwatched(self) -> Any:
        return control_pb2_grpc.ControlServiceStub(self._streams())  # type: ignore[no-untyped-call]

    def _streams(self) -> aio.Channel:
        self._refuse_closed()
        if self._streaming is None:
            self._streaming = aio.insecure_channel(self.address, options=status.channel_options(self.address))
        return self._streaming

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed; make a new one")

    def _meaning(self, error: aio.AioRpcError) -> StarloomError:
        """The error behind a failed call; Unavailable, and nothing derived from it, where the connection broke."""
        found = status.from_rpc(error)
        broken = error.code() in _BROKEN or any(text in (error.details() or "") for text in _BROKEN_TEXTS)
        if _has_detail(error) or not broken:
            return found
        return self.unreachable(error.details() or error.code().name)

    def unreachable(self, reason: object) -> Unavailable:
        """The error that says so, and what to do."""
        return Unavailable(
            f"the orchestrator at {self.address} cannot be reached: {reason}; "
            "is it running? `starloom up` starts a cluster"
        )


class _Silent(Unavailable):
    """Connected, but no answer in time: waited for long enough already."""


def _has_detail(error: aio.AioRpcError) -> bool:
    metadata: Any = error.trailing_metadata()
    return any(key == status.ERROR_KEY for key, _ in metadata or ())
