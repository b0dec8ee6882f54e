"""Errors over a real gRPC call: each class arrives as itself, with all it says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tests.agents.fakes import TOKEN

from starloom.agents import status
from starloom.dag import errors, limits
from starloom.dag.errors import InvalidInput, Overloaded, Problem, StarloomError, Unavailable
from starloom.v1 import data_pb2, data_pb2_grpc, value_pb2

PROBLEMS = [Problem("stages.detect.require.tier", "is 'moon'"), Problem("", "two\nlines, and a ü")]
CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, StarloomError)]

Behaviour = Callable[[aio.ServicerContext[Any, Any]], Awaitable[None]]


class Failing(data_pb2_grpc.DataServiceServicer):
    """Ends every call as it is told to."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def Fetch(  # noqa: N802
        self, request: data_pb2.FetchRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[data_pb2.FetchResponse]:
        await self._behaviour(context)
        yield data_pb2.FetchResponse(chunk=b"there")

    async def Put(  # noqa: N802
        self, request_iterator: AsyncIterator[data_pb2.PutRequest], context: aio.ServicerContext[Any, Any]
    ) -> data_pb2.PutResponse:
        await self._behaviour(context)
        return data_pb2.PutResponse()


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[aio.Channel]:
    """A channel to a server that fails so, and lets only the token in."""
    server = aio.server(interceptors=[status.TokenCheck(TOKEN)], options=status.server_options())
    data_pb2_grpc.add_DataServiceServicer_to_server(Failing(behaviour), server)  # type: ignore[no-untyped-call]
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}", options=status.channel_options()) as channel:
            yield channel
    finally:
        await server.stop(None)


def raises(error: Exception) -> Behaviour:
    async def behave(context: aio.ServicerContext[Any, Any]) -> None:
        async with status.reporting(context):
            raise error

    return behave


async def fetch(channel: aio.Channel, token: str = TOKEN) -> bytes:
    stub: Any = data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]
    call = stub.Fetch(data_pb2.FetchRequest(), metadata=status.auth_metadata(token))
    return b"".join([message.chunk async for message in call])


async def put(channel: aio.Channel, token: str = TOKEN) -> None:
    stub: Any = data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]
    call = stub.Put(metadata=status.auth_metadata(token))
    with suppress(aio.InternalError):
        await call.done_writing()
    await call


async def over_the_wire(error: Exception) -> tuple[grpc.StatusCode, StarloomError]:
    async with serving(raises(error)) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await fetch(channel)
    return raised.value.code(), status.from_rpc(raised.value)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
async def test_each_class_arrives_as_itself(kind: type[StarloomError]) -> None:
    error = kind(PROBLEMS, "bad thing") if issubclass(kind, InvalidInput) else kind("what was wrong, and a ü")
    code, found = await over_the_wire(error)
    assert code.name == kind.status
    assert type(found) is kind
    assert str(found) == str(error)


async def test_problems_and_retry_time_survive() -> None:
    _, invalid = await over_the_wire(errors.InvalidConstellation(PROBLEMS, "bad constellation"))
    assert isinstance(invalid, errors.InvalidConstellation)
    assert (invalid.problems, invalid.what) == (tuple(PROBLEMS), "bad constellation")
    _, failed = await over_the_wire(errors.JobFailed("job j failed", PROBLEMS))
    assert isinstance(failed, errors.JobFailed)
    assert (failed.problems, failed.message) == (tuple(PROBLEMS), "job j failed")
    _, overloaded = await over_the_wire(Overloaded("full", 2.5))
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_seconds == 2.5


async def test_more_problems_than_fit_are_counted() -> None:
    many = [Problem(f"stages.s{number}", "x" * 1000) for number in range(2000)]
    _, found = await over_the_wire(InvalidInput(many))
    assert isinstance(found, InvalidInput)
    told = len(found.problems) - 1
    assert 400 < told < 2000
    assert found.problems[:told] == tuple(many[:told])
    assert found.problems[-1].what.startswith(f"and {2000 - told} more problems")


async def test_long_message_is_cut_in_the_status_but_not_in_the_detail() -> None:
    text = "y" * (limits.STATUS_MESSAGE_CHARACTERS_MAX * 4)
    async with serving(raises(StarloomError(text))) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await fetch(channel)
    assert len(raised.value.details() or "") == limits.STATUS_MESSAGE_CHARACTERS_MAX
    assert str(status.from_rpc(raised.value)) == text
    assert status.detail(StarloomError("z" * 100_000)).message.endswith("(cut)")


async def test_message_to_a_client_that_has_gone_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    ended: asyncio.Queue[BaseException] = asyncio.Queue()

    async def goes_on(context: aio.ServicerContext[Any, Any]) -> None:
        try:
            async with status.reporting(context):
                # What gRPC raises from a write, now and then, before it has told that the call was cancelled.
                raise aio.InternalError("Failed execute_batch")
        except BaseException as error:
            ended.put_nowait(error)
            raise

    async with serving(goes_on) as channel:
        fetching = asyncio.create_task(fetch(channel))
        assert isinstance(await ended.get(), asyncio.CancelledError)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
    assert "unexpectedly" not in caplog.text


async def test_defect_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    code, found = await over_the_wire(ZeroDivisionError("secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in str(found)
    assert "ZeroDivisionError" in str(found)
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.Conflict),
        (grpc.StatusCode.DATA_LOSS, errors.DigestMismatch),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, InvalidInput),
        (grpc.StatusCode.UNIMPLEMENTED, StarloomError),
        (grpc.StatusCode.UNKNOWN, StarloomError),
    ],
)
async def test_status_without_a_detail_keeps_its_meaning(code: grpc.StatusCode, kind: type[StarloomError]) -> None:
    async def behave(context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort(code, "for a reason")

    async with serving(behave) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await put(channel)
    found = status.from_rpc(raised.value)
    assert type(found) is kind
    assert f"{code.name}: for a reason" in str(found)


async def test_detail_that_is_none_falls_back_on_the_status() -> None:
    async def behave(context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", ((status.ERROR_KEY, b"\xff\xff\xff"),))

    async with serving(behave) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await put(channel)
    assert type(status.from_rpc(raised.value)) is errors.NotFound


def test_class_of_a_newer_version_is_named() -> None:
    found = status.rebuild(value_pb2.ErrorDetail(type="FluxInverted", message="oh"))
    assert type(found) is StarloomError
    assert str(found) == "FluxInverted: oh"


async def test_nobody_listens() -> None:
    async with serving(raises(Unavailable("x"))) as channel:
        pass
    async with aio.insecure_channel("127.0.0.1:1", options=status.channel_options()) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await put(channel)
    assert type(status.from_rpc(raised.value)) is Unavailable


async def test_calls_without_the_token_are_refused_whatever_their_shape() -> None:
    async def behave(context: aio.ServicerContext[Any, Any]) -> None:
        assert status.principal(context) == "local"

    async with serving(behave) as channel:
        for call in (fetch, put):
            with pytest.raises(aio.AioRpcError) as raised:
                await call(channel, "wrong")
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert type(status.from_rpc(raised.value)) is errors.Unauthenticated
        stub: Any = data_pb2_grpc.DataServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(aio.AioRpcError):
            await stub.Fetch(data_pb2.FetchRequest()).read()
        assert await fetch(channel) == b"there"


async def test_health_needs_no_token_and_unknown_methods_are_unimplemented() -> None:
    async with serving(raises(Unavailable("x"))) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(aio.AioRpcError) as raised:
            await channel.unary_unary("/starloom.v1.DataService/Frobnicate", bytes, bytes)(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_empty_token_lets_nobody_in() -> None:
    with pytest.raises(ValueError, match="empty token"):
        status.TokenCheck("")


async def test_server_refuses_a_taken_port() -> None:
    first, second = (aio.server(options=status.server_options()) for _ in range(2))
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    with pytest.raises(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")
    await asyncio.gather(first.stop(None), second.stop(None))
