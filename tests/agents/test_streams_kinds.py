"""The kinds that cut and join streams, run by an agent as a job would."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.agents.fakes import task
from tests.agents.streamkit import NUMBERS, VALUE, Cluster, Gate, cluster, consuming, producing, streaming, values

from starloom.agents.messages import Failed, Finished
from starloom.agents.stage import Chunk, StageCall
from starloom.agents.stages.stream import JoinStreams, Latest, Windows
from starloom.dag.kinds import Param
from starloom.dag.values import Full


async def _ticks(call: StageCall) -> AsyncGenerator[Chunk, None]:
    for number in range(call.params["count"]):
        yield Chunk("out", number, at=call.params["first"] + number * call.params["every"])


async def _takes(call: StageCall) -> AsyncGenerator[Chunk, None]:
    yield Chunk("all", [[received.value, received.at] async for received in call.inputs["in"]])


TICKS = streaming(
    "t.ticks",
    _ticks,
    outputs={"out": NUMBERS},
    params={
        "count": Param(type="integer", default=10),
        "every": Param(type="number", default=1.0),
        "first": Param(type="number", default=0.0),
    },
)
TAKES = streaming("t.takes", _takes, inputs={"in": NUMBERS}, outputs={"all": VALUE})
KINDS = (TICKS, TAKES, Windows(), JoinStreams(), Latest())


async def windowed(agents: Cluster, **params: Any) -> tuple[list[Any], Finished]:
    a = agents["a"]
    a.send(
        producing("ticks", "t.ticks", "cut.values"),
        producing(
            "cut", "stream.window", "takes.in", awaits=a.awaits(values="ticks.out"), port="windows", params=params
        ),
        consuming("takes", "t.takes", a.awaits(in_="cut.windows")),
    )
    return values(await a.finished("takes")), await a.finished("cut")


async def test_windows_by_count_and_by_time() -> None:
    async with cluster("a", stages=KINDS) as agents:
        found, _ = await windowed(agents, count=4)
        assert [value["values"] for value, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    async with cluster("a", stages=KINDS) as agents:
        found, _ = await windowed(agents, seconds=5)
        assert found == [
            [{"values": [0, 1, 2, 3, 4], "start": 0.0, "end": 5.0}, 5.0],
            [{"values": [5, 6, 7, 8, 9], "start": 5.0, "end": 10.0}, 10.0],
        ]


@pytest.mark.parametrize("params", [{}, {"count": 2, "seconds": 2}, {"count": 2, "step": 0.5}, {"seconds": -1}])
async def test_windows_that_cannot_be_fail_with_the_reason(params: dict[str, Any]) -> None:
    async with cluster("a", stages=KINDS) as agents:
        agents["a"].send(consuming("cut", "stream.window", agents["a"].awaits(values="ticks.out"), params=params))
        assert isinstance(await agents["a"].told.final(task("cut")), Failed)


@pytest.mark.parametrize("full", list(Full))
async def test_streams_are_joined_by_their_time(full: Full) -> None:
    async with cluster("a", "b", stages=KINDS) as agents:
        a, b = agents["a"], agents["b"]
        a.send(producing("slow", "t.ticks", "join.slow", params={"count": 5}))
        b.send(producing("fast", "t.ticks", "join.fast", params={"count": 50, "every": 0.1, "first": 0.02}))
        params = {"leader": "slow", "tolerance": 0.05, "full": str(full)}
        awaits = (*a.awaits(slow="slow.out"), *b.awaits(fast="fast.out"))
        a.send(
            producing("join", "stream.join", "takes.in", awaits=awaits, port="joined", params=params),
            consuming("takes", "t.takes", a.awaits(in_="join.joined")),
        )
        found = values(await a.finished("takes"))
        figures = (await a.finished("join")).figures
        pairs = [(value["values"]["slow"], value["values"]["fast"]) for value, _ in found]
        assert all(fast == 10 * slow for slow, fast in pairs)
        lost = figures.get("dropped_chunks", 0) + figures.get("unmatched_chunks", 0)
        assert len(pairs) + lost == 5
        if full is Full.BLOCK:
            assert lost == 0


async def test_join_without_its_leader_fails_with_the_reason() -> None:
    async with cluster("a", stages=KINDS) as agents:
        a = agents["a"]
        a.send(consuming("join", "stream.join", a.awaits(x="ticks.out", y="ticks.out"), params={"leader": "z"}))
        failed = await a.told.final(task("join"))
        assert isinstance(failed, Failed)
        assert "one of x, y" in failed.error.message


async def test_latest_passes_on_what_is_newest_when_it_is_wanted() -> None:
    gate, all_made = Gate(), Gate()

    async def makes(call: StageCall) -> AsyncGenerator[Chunk, None]:
        yield Chunk("out", 0)
        await all_made.wait()
        for number in range(1, 500):
            yield Chunk("out", number)

    async def slow(call: StageCall) -> AsyncGenerator[Chunk, None]:
        found = []
        async for received in call.inputs["in"]:
            found.append(received.value)
            await gate.wait()
        yield Chunk("all", found)

    stages = (
        *KINDS,
        streaming("t.makes", makes, outputs={"out": NUMBERS}),
        streaming("t.slow", slow, inputs={"in": NUMBERS}, outputs={"all": VALUE}),
    )
    async with cluster("a", stages=stages) as agents:
        a = agents["a"]
        a.send(
            producing("makes", "t.makes", "newest.values", full=Full.LATEST),
            producing("newest", "stream.latest", "slow.in", awaits=a.awaits(values="makes.out"), port="latest"),
            consuming("slow", "t.slow", a.awaits(in_="newest.latest")),
        )
        await gate.until_came(1)
        all_made.open()
        await a.finished("makes")
        gate.open(500)
        found = values(await a.finished("slow"))
        figures = (await a.finished("newest")).figures
        # One may be on its way in each link; what is newest comes through.
        assert found[-1] == 499
        assert len(found) <= 4
        assert figures["values_dropped_chunks"] == 500 - len(found)
