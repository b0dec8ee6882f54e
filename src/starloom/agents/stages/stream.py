"""Kinds that cut and join streams of JSON values: windows, joins in time, and the newest value."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping

from starloom.agents.stage import Chunk, Received, StageCall, StreamInput, StreamStage
from starloom.agents.streams.joins import Join, Joined
from starloom.agents.streams.windows import CountWindows, TimeWindows, Window
from starloom.dag import limits
from starloom.dag.errors import StageError
from starloom.dag.kinds import Cost, KindSpec, Param
from starloom.dag.values import Full, Port, PortType

_VALUES = Port(PortType.JSON, stream=True)
_FREE = Cost(run_seconds=0.0)


class Windows(StreamStage):
    """Gives a window's values as `{values, start, end}`, by `count` of chunks or by `seconds` of their `at`.

    What came too late for its window is the figure `late_chunks`.
    """

    spec = KindSpec(
        name="stream.window",
        about="Gathers a stream's values in windows, by count or by their time.",
        inputs={"values": _VALUES},
        outputs={"windows": _VALUES},
        params={
            "count": Param(type="integer", default=0, about="chunks of a window; 0 for one by time"),
            "seconds": Param(type="number", default=0, about="seconds of a window; 0 for one by count"),
            "step": Param(
                type="number", default=0, about="chunks or seconds from one window to the next; 0 for no overlap"
            ),
            "lateness": Param(type="number", default=0, about="seconds that a window waits for what is late"),
        },
        cost=_FREE,
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        windows = _windows(call.params)
        async for received in call.inputs["values"]:
            for window in windows.add(received):
                yield _window(window)
        for window in windows.close():
            yield _window(window)
        if isinstance(windows, TimeWindows) and windows.late:
            call.figure("late_chunks", float(windows.late))


def _windows(params: Mapping[str, int | float]) -> CountWindows | TimeWindows:
    count, seconds, step = params["count"], params["seconds"], params["step"]
    if bool(count) == bool(seconds):
        raise StageError(f"stream.window: count is {count} and seconds is {seconds:g}; give one of them")
    if not count:
        return TimeWindows(seconds, step, params["lateness"])
    if step != int(step):
        raise StageError(f"stream.window: step is {step:g}, but a window of {count} chunks goes on by whole ones")
    return CountWindows(int(count), int(step))


def _window(window: Window) -> Chunk:
    value = {"values": [item.value for item in window.items], "start": window.start, "end": window.end}
    last = window.items[-1]
    return Chunk("windows", value, last.generation, last.at if window.end is None else window.end)


class JoinStreams(StreamStage):
    """For each value of the leader, those of the others that lie nearest in time: `{at, values}`, by input.

    With `full: block`, nothing is lost: whatever is behind is read first. With `oldest` or `latest`, all are read as
    they come, and values of the leader that wait for a silent stream are dropped.
    """

    spec = KindSpec(
        name="stream.join",
        about="Joins streams by the time of their values, within a tolerance.",
        outputs={"joined": _VALUES},
        variadic_input=_VALUES,
        params={
            "leader": Param(
                type="string", default="", about="the input that sets the pace; empty for the first by name"
            ),
            "tolerance": Param(type="number", default=0.05, about="seconds between values that go together, at most"),
            "full": Param(type="string", default="block", choices=tuple(map(str, Full))),
            "most": Param(type="integer", default=limits.STREAM_BUFFER_CHUNKS, about="values of a stream that wait"),
        },
        cost=_FREE,
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        names = sorted(call.inputs)
        leader = call.params["leader"] or (names[0] if names else "")
        if leader not in names:
            raise StageError(f"stream.join: no input is called {leader!r}; the leader is one of {', '.join(names)}")
        names.remove(leader)
        full = Full(call.params["full"])
        join = Join([leader, *names], call.params["tolerance"], full, call.params["most"])
        found = _lagging(join, call.inputs) if full is Full.BLOCK else _as_they_come(join, call.inputs)
        async for pair in found:
            items = pair.items
            value = {"at": pair.at, "values": {name: item.value for name, item in items.items()}}
            yield Chunk("joined", value, items[leader].generation, pair.at)
        for what in ("unmatched", "dropped", "late", "stale"):
            if count := getattr(join, what):
                call.figure(f"{what}_chunks", float(count))


async def _lagging(join: Join, inputs: Mapping[str, StreamInput]) -> AsyncGenerator[Joined, None]:
    while (name := join.lagging()) is not None:
        received = await anext(inputs[name], None)
        for pair in join.end(name) if received is None else join.add(name, received):
            yield pair


async def _as_they_come(join: Join, inputs: Mapping[str, StreamInput]) -> AsyncGenerator[Joined, None]:
    coming = {_next(stream): name for name, stream in inputs.items()}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                name, received = coming.pop(task), task.result()
                pairs: Iterable[Joined] = join.end(name) if received is None else join.add(name, received)
                if received is not None:
                    coming[_next(inputs[name])] = name
                for pair in pairs:
                    yield pair
    finally:
        for task in coming:
            task.cancel()


def _next(stream: StreamInput) -> asyncio.Task[Received | None]:
    async def get() -> Received | None:
        return await anext(stream, None)

    return asyncio.ensure_future(get())


class Latest(StreamStage):
    """Gives the newest value, whenever whoever reads it is done with the one before; what is passed over is counted."""

    spec = KindSpec(
        name="stream.latest",
        about="Passes on the newest value of a stream only, as fast as it is taken.",
        inputs={"values": Port(PortType.JSON, stream=True, full=Full.LATEST)},
        outputs={"latest": Port(PortType.JSON, stream=True, chunks=1)},
        cost=_FREE,
    )

    async def stream(self, call: StageCall) -> AsyncGenerator[Chunk, None]:
        async for received in call.inputs["values"]:
            yield Chunk("latest", received.value, received.generation, received.at)
