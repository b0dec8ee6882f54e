"""The jobs of a soak: small ones of every sort, in an order that repeats, each with what it has to give.

| work | in 20 | what it does |
|---|---|---|
| small | 11 | a diamond of four stages with values inline |
| carried | 3 | 1 MB, made on one node, read on the second and from there on the third |
| kept | 1 | 64 kB as an output, which the orchestrator keeps with the job |
| grown | 1 | a loop of five rounds |
| patched | 1 | what would wait for a minute is replaced by a patch, which adds a stage as well |
| cancelled | 1 | what would wait for a minute is cancelled |
| retried | 1 | fails in its first attempt |
| streamed | 1 | a few numbers go in by a stream, and out by another one in windows |

Beside them one job with the same streams lives as long as the soak.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from starloom.dag.builder import Graph
from starloom.dag.constellation import Constellation, Requirements
from starloom.dag.errors import StarloomError
from starloom.dag.facts import JobStatus
from starloom.dag.values import PortType
from starloom.orchestrator.client import AsyncClient

SMALL: Final = "small"
CARRIED: Final = "carried"
NODES_MIN: Final = 3
JOB_SECONDS_MAX: Final = 60.0
_CARRIED_BYTES = 1_000_000
_KEPT_BYTES = 64_000
_ROUNDS = 5
_WAIT_SECONDS = 60.0
_STREAMED_NUMBERS = 12
_WINDOW_NUMBERS = 5
STREAM_SECONDS: Final = 0.1

Run = Callable[[AsyncClient, Sequence[str], int], Awaitable[None]]
"""One job, the `number`th, on at least NODES_MIN nodes. Raises StarloomError if it does not come out as it has to."""


class WrongError(StarloomError):
    """A job gave something else than it had to."""


async def _small(client: AsyncClient, _: Sequence[str], number: int) -> None:
    job = await client.submit(SMALL_JOB, {"value": number})
    _same({"sum": 2 * number}, await job.result(JOB_SECONDS_MAX))


async def _carried(client: AsyncClient, nodes: Sequence[str], number: int) -> None:
    graph = Graph("soak-carried")
    there = [Requirements(node=nodes[(number + step) % len(nodes)]) for step in range(NODES_MIN)]
    made = graph.stage("made", "basic.make_bytes", params={"size": _CARRIED_BYTES, "seed": number}, require=there[0])
    first = graph.stage("first", "basic.echo", data=made["data"], require=there[1])
    second = graph.stage("second", "basic.echo", data=first["data"], require=there[2])
    # The bytes themselves stay with the agents.
    graph.output("value", graph.stage("told", "basic.noop", after=second)["value"])
    job = await client.submit(graph.build())
    _same({"value": None}, await job.result(JOB_SECONDS_MAX))


async def _kept(client: AsyncClient, _: Sequence[str], number: int) -> None:
    graph = Graph("soak-kept")
    graph.output("data", graph.stage("made", "basic.make_bytes", params={"size": _KEPT_BYTES, "seed": number})["data"])
    job = await client.submit(graph.build())
    _same(_KEPT_BYTES, len((await job.result(JOB_SECONDS_MAX))["data"]))


async def _grown(client: AsyncClient, _: Sequence[str], number: int) -> None:
    graph = Graph("soak-grown")
    value = graph.input("value", PortType.JSON)
    count = graph.stage("count", "basic.count", params={"until": number + _ROUNDS}, value=value)
    graph.output("value", graph.stage("total", "basic.add", value=count["value"])["value"])
    job = await client.submit(graph.build(), {"value": number})
    _same({"value": number + _ROUNDS}, await job.result(JOB_SECONDS_MAX))


async def _patched(client: AsyncClient, _: Sequence[str], number: int) -> None:
    job = await client.submit(_WAITING, {"value": number})
    async with job.edit(restart=True, why="waits no more") as edit:
        edit.replace("wait", params={"seconds": 0})
        edit.add("more", "basic.noop", value="wait.value")
        edit.output("more", "more.value")
    _same({"value": number, "more": number}, await job.result(JOB_SECONDS_MAX))


async def _cancelled(client: AsyncClient, _: Sequence[str], number: int) -> None:
    job = await client.submit(_WAITING, {"value": number})
    _same(JobStatus.CANCELLED, (await job.cancel("a soak cancels now and then")).status)


async def _retried(client: AsyncClient, _: Sequence[str], number: int) -> None:
    job = await client.submit(_RETRIED, {"value": number})
    _same({"value": number}, await job.result(JOB_SECONDS_MAX))


async def _streamed(client: AsyncClient, _: Sequence[str], number: int) -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        for each in range(number, number + _STREAMED_NUMBERS):
            yield each

    await _windows(client, numbers())


async def long_lived(client: AsyncClient, over: asyncio.Event) -> None:
    """A job that is fed a number each STREAM_SECONDS until `over`, and whose windows are read as they come."""

    async def numbers() -> AsyncGenerator[int, None]:
        number = 0
        while not over.is_set():
            yield number
            number += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(STREAM_SECONDS):
                    await over.wait()

    await _windows(client, numbers())


async def _windows(client: AsyncClient, numbers: AsyncGenerator[int, None]) -> None:
    """One job that the numbers go through."""
    job = await client.submit(_WINDOWS)

    async def feed() -> int:
        fed = 0
        async for number in numbers:
            fed += 1
            await job.send("numbers", number)
        await job.close("numbers")
        return fed

    feeding = asyncio.create_task(feed())
    try:
        found = 0
        first: int | None = None
        async for window in job.stream("windows"):
            first = window["values"][0] if first is None else first
            _same(list(range(first + found, first + found + len(window["values"]))), window["values"])
            found += len(window["values"])
        _same(await feeding, found)
        await job.result(JOB_SECONDS_MAX)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


def _same(expected: object, found: object) -> None:
    if found != expected:
        raise WrongError(f"gave {found!r}, and not {expected!r}")


def _diamond() -> Constellation:
    graph = Graph("soak-small")
    first = graph.stage("first", "basic.noop", value=graph.input("value", PortType.JSON))
    left, right = (graph.stage(side, "basic.noop", value=first["value"]) for side in ("left", "right"))
    graph.output("sum", graph.stage("sum", "basic.add", inputs={"a": left["value"], "b": right["value"]})["value"])
    return graph.build()


def _waiting() -> Constellation:
    graph = Graph("soak-waiting")
    value = graph.input("value", PortType.JSON)
    wait = graph.stage("wait", "basic.sleep", params={"seconds": _WAIT_SECONDS}, value=value)
    graph.output("value", graph.stage("last", "basic.noop", value=wait["value"])["value"])
    return graph.build()


def _retried_once() -> Constellation:
    graph = Graph("soak-retried")
    value = graph.input("value", PortType.JSON)
    fail = graph.stage("fail", "basic.fail", params={"times": 1, "transient": True}, value=value)
    graph.output("value", fail["value"])
    return graph.build()


def _windowed() -> Constellation:
    graph = Graph("soak-windows")
    numbers = graph.input("numbers", PortType.JSON, stream=True)
    cut = graph.stage("cut", "stream.window", params={"count": _WINDOW_NUMBERS}, values=numbers)
    graph.output("windows", cut["windows"])
    return graph.build()


SMALL_JOB: Final = _diamond()
_WAITING: Final = _waiting()
_RETRIED: Final = _retried_once()
_WINDOWS: Final = _windowed()

WORKS: Final[dict[str, Run]] = {
    SMALL: _small,
    CARRIED: _carried,
    "kept": _kept,
    "grown": _grown,
    "patched": _patched,
    "cancelled": _cancelled,
    "retried": _retried,
    "streamed": _streamed,
}
_OTHERS: Final = (CARRIED, "kept", CARRIED, "grown", "patched", CARRIED, "cancelled", "retried", "streamed")
ROTA: Final = tuple(work for other in _OTHERS for work in (SMALL, other)) + (SMALL,) * 2
"""Which work each job in a row has, over and over."""
