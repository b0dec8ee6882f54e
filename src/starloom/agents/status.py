"""Errors of Starloom as gRPC statuses and back, and what every client and server of the wire shares.

The status code is the error class's `status`; the trailing metadata `starloom-error-bin` holds an
ErrorDetail with the class, the whole message and every problem, because gRPC may cut the message.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from starloom.dag import errors, limits
from starloom.dag.errors import InvalidInput, Problem, StarloomError, tellable
from starloom.v1 import value_pb2

_log = logging.getLogger(__name__)

ERROR_KEY: Final = "starloom-error-bin"
AUTHORIZATION_KEY: Final = "authorization"
LOCAL_PRINCIPAL: Final = "local"
"""Whom every call with the cluster's token is made by: there is one user for now."""

CALL_OVER: Final = (asyncio.InvalidStateError, aio.InternalError, aio.AioRpcError)
"""What writing to a call raises where it is over already; `CallEnd` tells why."""

_WRITE_FAILED = "Internal error from Core"
_STATUS_POLL_SECONDS = 0.005

_LOOPBACK = ("127.", "localhost:", "[::1]:")
_HEALTH_PREFIX = "/grpc.health.v1.Health/"

_CLASSES: Final[dict[str, type[StarloomError]]] = {
    name: found for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, StarloomError)
}

_BY_CODE: Final[dict[grpc.StatusCode, type[StarloomError]]] = {
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.DATA_LOSS: errors.DigestMismatch,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    # Without a detail this is gRPC's own: a message over the size limit, which no repetition makes smaller.
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.InvalidInput,
}


def detail(error: StarloomError) -> value_pb2.ErrorDetail:
    """An error as it travels. Problems that do not fit STATUS_DETAIL_BYTES_MAX are counted, not listed."""
    found = value_pb2.ErrorDetail(type=type(error).__name__, message=tellable(str(error)))
    if isinstance(error, InvalidInput | errors.JobFailed):
        found.message = tellable(error.what if isinstance(error, InvalidInput) else error.message)
        _add_problems(found, error.problems)
    if isinstance(error, errors.Overloaded):
        found.retry_after_seconds = error.retry_after_seconds
    return found


def _add_problems(found: value_pb2.ErrorDetail, problems: Sequence[Problem]) -> None:
    room = limits.STATUS_DETAIL_BYTES_MAX
    for index, problem in enumerate(problems):
        packed = value_pb2.Problem(place=tellable(problem.place), what=tellable(problem.what))
        room -= packed.ByteSize()
        if room < 0:
            found.problems.add(what=f"and {len(problems) - index} more problems, which do not fit into a status")
            return
        found.problems.append(packed)


def rebuild(found: value_pb2.ErrorDetail) -> StarloomError:
    """The error that `detail` was made of; an unknown class becomes a StarloomError that names it."""
    known = _CLASSES.get(found.type)
    if known is None:
        return StarloomError(f"{found.type}: {found.message}")
    problems = [Problem(problem.place, problem.what) for problem in found.problems]
    if issubclass(known, InvalidInput):
        return known(problems, found.message)
    if issubclass(known, errors.JobFailed):
        return known(found.message, problems)
    if issubclass(known, errors.Overloaded):
        return known(found.message, found.retry_after_seconds)
    return known(found.message)


def from_rpc(error: grpc.RpcError) -> StarloomError:
    """The error behind a failed call: what the server said, or, where it said nothing, what the status means."""
    return _error(error.code(), error.details(), error.trailing_metadata())


class CallEnd:
    """How a call ends; to be made with the call, before anything is written.

    Where a write meets the end of a call, grpc.aio says INTERNAL in place of the server's status: for a moment,
    if it has not read that, and for good, if it just had. So the first status is noted as it is set, and is read
    again if it is that one.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._error: StarloomError | None = None
        call.add_done_callback(self._note)

    async def error(self) -> StarloomError:
        """The error that ended a call which is known to be over."""
        deadline = time.monotonic() + limits.STATUS_WAIT_SECONDS
        while self._error is None and time.monotonic() < deadline:
            await asyncio.sleep(_STATUS_POLL_SECONDS)
            self._note(self._call)
        return self._error or errors.Unavailable("the connection broke off")

    def _note(self, call: Any) -> None:
        if call.done() and self._error is None and (details := _now(call.details())) != _WRITE_FAILED:
            self._error = _error(_now(call.code()), details, _now(call.trailing_metadata()))


def _now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None


def _error(code: grpc.StatusCode, details: str | None, metadata: Any) -> StarloomError:
    for key, value in metadata or ():
        if key == ERROR_KEY:
            try:
                return rebuild(value_pb2.ErrorDetail.FromString(value))
            except DecodeError:
                break
    return _BY_CODE.get(code, StarloomError)(f"{code.name}: {details or 'no reason given'}")


async def abort(context: aio.ServicerContext[Any, Any], error: StarloomError) -> NoReturn:
    """Ends the call with the error's status and detail."""
    found = detail(error)
    metadata = ((ERROR_KEY, found.SerializeToString()),)
    await context.abort(grpc.StatusCode[error.status], found.message[: limits.STATUS_MESSAGE_CHARACTERS_MAX], metadata)
    raise AssertionError("abort raises")


@asynccontextmanager
async def reporting(context: aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Ends the call with the error that the block raises; a defect is logged whole and told in one line.

    Raises CancelledError where the client has gone.
    """
    try:
        yield
    except StarloomError as error:
        await abort(context, error)
    except (aio.AbortError, aio.UsageError):
        raise
    except aio.InternalError as error:
        # A message to a client that has gone: it is as if that had cancelled the call, which may only be known later.
        raise asyncio.CancelledError from error
    except Exception as error:
        _log.exception("a call failed unexpectedly")
        await abort(context, StarloomError(f"{type(error).__name__} in the server; its log has the traceback"))


def auth_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that a call carries to be let in."""
    return ((AUTHORIZATION_KEY, f"Bearer {token}"),)


def principal(context: aio.ServicerContext[Any, Any]) -> str:
    """Who makes a call that TokenCheck let in."""
    return LOCAL_PRINCIPAL


class TokenCheck(aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls without `authorization: Bearer <token>`, with UNAUTHENTICATED; health checks need none."""

    def __init__(self, token: str) -> None:
        if not token:
            raise ValueError("an empty token would let everybody in")
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_HEALTH_PREFIX):
            return handler
        if self._let_in(handler_call_details):
            return handler
        return _refusal(handler)

    def _let_in(self, call: grpc.HandlerCallDetails) -> bool:
        return any(
            key == AUTHORIZATION_KEY and isinstance(value, str) and hmac.compare_digest(value.encode(), self._expected)
            for key, value in call.invocation_metadata or ()
        )


def channel_options(address: str = "") -> list[tuple[str, Any]]:
    """Options of every client channel; one to this machine itself passes by the environment's `http_proxy`."""
    return [
        *_shared_options(),
        ("grpc.enable_http_proxy", 0 if address.startswith(_LOOPBACK) else 1),
        # Each channel has its own connection, so that one peer's bulk does not wait behind another's.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", int(limits.RECONNECT_FIRST_SECONDS * 1000)),
        # What a single attempt has, whatever its name says; with less, whoever is slow to say hello is never reached.
        ("grpc.min_reconnect_backoff_ms", int(limits.CONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(limits.RECONNECT_LAST_SECONDS * 1000)),
    ]


def server_options() -> list[tuple[str, Any]]:
    """Options of every server: one that finds its port taken fails, instead of sharing it."""
    return [
        *_shared_options(),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.KEEPALIVE_SECONDS * 1000 / 2)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _shared_options() -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
        # With HTTP/2's own 16 KiB a stream of large chunks is slower.
        ("grpc.http2.max_frame_size", limits.FRAME_BYTES),
        ("grpc.max_metadata_size", limits.METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", limits.METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.KEEPALIVE_SECONDS * 1000)),
    ]


def _refusal(handler: Any) -> Any:
    """A handler of the same shape as `handler` that only refuses."""
    error = errors.Unauthenticated("the call has no valid token; give the cluster's as `authorization: Bearer TOKEN`")

    async def refuse(_: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        await abort(context, error)

    async def refuse_stream(_: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await abort(context, error)
        yield

    makers = {
        (False, False): (grpc.unary_unary_rpc_method_handler, refuse),
        (False, True): (grpc.unary_stream_rpc_method_handler, refuse_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, refuse),
        (True, True): (grpc.stream_stream_rpc_method_handler, refuse_stream),
    }
    make, behaviour = makers[handler.request_streaming, handler.response_streaming]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)
